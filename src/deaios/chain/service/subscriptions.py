"""eth_subscribe: what one connection wants to be told, and the news that wait for it to read.

Each connection has one line of things to send: answers, and news by reference. News are rendered when their turn comes,
once for all connections, so a line costs little however much it holds; a peer that reads more slowly than the chain
moves fills its line and is cut off, because what it missed could not be told any more. Nothing is ever skipped in
silence. News that come while a subscription's id is not yet answered stay behind the answer.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from deaios.chain.blocks import Block
from deaios.chain.pool import Waiting
from deaios.chain.rendering import hex_data, render_header, render_log, render_transaction
from deaios.chain.rpc import (
    LIMIT_EXCEEDED,
    METHOD_NOT_FOUND,
    LogFilter,
    RpcFault,
    bad_params,
    read_at,
    read_flag,
    read_log_filter,
    server_error,
    take_params,
)
from deaios.chain.service.filters import ID_BYTES, validate_range
from deaios.runtime.dice import Dice

SUBSCRIPTIONS_MAX = 64
"""Of one connection."""
NAMED_MAX = 4_096
"""Addresses and topics that one connection's subscriptions may name together."""
NEWS_MAX = 16_384
"""Things in one connection's line: a whole pool's transactions may be admitted at once."""
NEWS_BYTES_MAX = 16 << 20
"""Bytes that one connection's line may keep in memory, beside the newest thing."""
LOG_BYTES = 256
"""What a log costs beside its data."""


class BlockNews:
    """A new head, rendered at most once."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.size = 1024 + sum(LOG_BYTES + len(log.data) for receipt in block.receipts for log in receipt.logs)
        self._header: bytes | None = None
        self._rendered: dict[int, bytes] = {}

    def header(self) -> bytes:
        """The header as JSON."""
        if self._header is None:
            self._header = msgspec.json.encode(render_header(self.block.header))
        return self._header

    def logs(self, wanted: LogFilter) -> Iterator[bytes]:
        """The logs that are wanted, as JSON."""
        block = self.block
        for receipt in block.receipts:
            for offset, log in enumerate(receipt.logs):
                if not wanted.matches(log):
                    continue
                position = receipt.log_start + offset
                if position not in self._rendered:
                    self._rendered[position] = msgspec.json.encode(
                        render_log(log, block.header, position, receipt.transaction.hash, receipt.index)
                    )
                yield self._rendered[position]


class ArrivalNews:
    """A transaction that was admitted, rendered at most once."""

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.size = 128 + len(waiting.transaction.raw)
        self._whole: bytes | None = None

    def hash(self) -> bytes:
        """The hash as JSON."""
        return b'"' + hex_data(self.waiting.transaction.hash).encode() + b'"'

    def whole(self) -> bytes:
        """The transaction as JSON."""
        if self._whole is None:
            self._whole = msgspec.json.encode(render_transaction(self.waiting.transaction, self.waiting.sender))
        return self._whole


News = BlockNews | ArrivalNews


@dataclass(frozen=True, slots=True)
class Subscription:
    """One eth_subscribe.

    Attributes:
        since: news with this number and later ones are told.
        wanted: of `logs`.
        is_full: of `newPendingTransactions`.
    """

    identity: str
    kind: str
    since: int
    wanted: LogFilter | None = None
    first: int = 0
    last: int | None = None
    is_full: bool = False

    def tell(self, news: News) -> Iterator[bytes]:
        """The results to notify of."""
        match news, self.kind:
            case BlockNews(), "newHeads":
                yield news.header()
            case BlockNews(), "logs":
                assert self.wanted is not None, "log subscriptions have a filter"
                number = news.block.header.number
                if self.first <= number and (self.last is None or number <= self.last):
                    yield from news.logs(self.wanted)
            case ArrivalNews(), "newPendingTransactions":
                yield news.whole() if self.is_full else news.hash()
            case _:
                pass


@dataclass(slots=True, eq=False)
class Line:
    """What waits to be sent on one connection, and its subscriptions.

    Attributes:
        dice: makes the ids.
        overflow: called once, when the peer has fallen too far behind.
    """

    dice: Dice
    overflow: Callable[[], None]
    _subscriptions: dict[str, Subscription] = field(default_factory=dict)
    _items: deque[tuple[bytes, asyncio.Future[None]] | tuple[int, News]] = field(default_factory=deque)
    _held: list[tuple[int, News]] | None = None
    _count: int = 0
    _news_bytes: int = 0
    _is_cut: bool = False
    _filled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_subscriptions(self) -> bool:
        """Is anything wanted?"""
        return bool(self._subscriptions)

    # Requests

    def subscribe(self, params: object) -> str:
        """Begin a subscription; returns its id.

        Raises:
            RpcFault: as geth words it, or too many.
        """
        subscription = self._read(params)
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise RpcFault(LIMIT_EXCEEDED, f"too many subscriptions: one connection may have {SUBSCRIPTIONS_MAX}")
        named = sum(item.wanted.size for item in (*self._subscriptions.values(), subscription) if item.wanted)
        if named > NAMED_MAX:
            raise RpcFault(
                LIMIT_EXCEEDED,
                f"subscriptions of one connection may name {NAMED_MAX} addresses and topics together, not {named}",
            )
        self._subscriptions[subscription.identity] = subscription
        if self._held is None:
            self._held = []
        return subscription.identity

    def _read(self, params: object) -> Subscription:
        if not isinstance(params, list):
            raise bad_params("non-array args")
        if not params or not isinstance(params[0], str):
            raise bad_params("expected subscription name as first argument")
        identity = hex(int.from_bytes(self.dice.token_bytes(ID_BYTES)))
        match params[0]:
            case "newHeads":
                take_params(params, 1, 1)
                return Subscription(identity, "newHeads", self._count)
            case "logs":
                wanted: LogFilter = read_at(take_params(params, 2, 2), 1, read_log_filter)
                first, last = validate_range(wanted)
                return Subscription(identity, "logs", self._count, wanted, first or 0, last)
            case "newPendingTransactions":
                is_full = read_at(take_params(params, 1, 2), 1, read_flag, "fullTx")
                return Subscription(identity, "newPendingTransactions", self._count, is_full=is_full)
            case name:
                raise RpcFault(METHOD_NOT_FOUND, f'no "{name[:80]}" subscription in eth namespace')

    def unsubscribe(self, params: object) -> bool:
        """End a subscription.

        Raises:
            RpcFault: there is none with this id.
        """
        (identity,) = take_params(params, 1, 1)
        if not isinstance(identity, str) or self._subscriptions.pop(identity, None) is None:
            raise server_error("subscription not found")
        return True

    # What comes in

    async def answer(self, body: bytes) -> None:
        """Put an answer in line, and behind it the news that came while it was made; returns when its turn came."""
        turn = asyncio.get_running_loop().create_future()
        self._items.append((body, turn))
        held, self._held = self._held, None
        self._items.extend(held or ())
        self._filled.set()
        await turn

    def take(self, news: News) -> None:
        """Put news in line, where some subscription wants them."""
        is_arrival = isinstance(news, ArrivalNews)
        if self._is_cut or not any(
            (item.kind == "newPendingTransactions") == is_arrival for item in self._subscriptions.values()
        ):
            return
        queue = self._items if self._held is None else self._held
        waiting = len(self._items) + len(self._held or ())
        if waiting >= NEWS_MAX or self._news_bytes > NEWS_BYTES_MAX:
            self._is_cut = True
            self.overflow()
            return
        queue.append((self._count, news))
        self._count += 1
        self._news_bytes += news.size
        if self._held is None:
            self._filled.set()

    # What goes out

    async def next_messages(self) -> Iterator[bytes]:
        """The messages of the next thing in line, once there is one."""
        while not self._items:  # bounded: the caller's connection ends it
            self._filled.clear()
            await self._filled.wait()
        first, second = self._items.popleft()
        if isinstance(first, bytes):
            assert isinstance(second, asyncio.Future), "an answer has a turn"
            if not second.done():
                second.set_result(None)
            return iter((first,) if first else ())
        assert not isinstance(second, asyncio.Future), "news have no turn"
        self._news_bytes -= second.size
        return self._notify(first, second)

    def _notify(self, number: int, news: News) -> Iterator[bytes]:
        for subscription in list(self._subscriptions.values()):
            if subscription.since > number:
                continue
            for result in subscription.tell(news):
                if subscription.identity not in self._subscriptions:
                    break
                yield (
                    b'{"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"%s","result":%s}}'
                    % (subscription.identity.encode(), result)
                )


class Newsroom:
    """Hands each piece of news to every line; a listener of the chain."""

    def __init__(self) -> None:
        self._lines: dict[Line, None] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: Line) -> None:
        """Tell this one from now on."""
        self._lines[line] = None

    def remove(self, line: Line) -> None:
        """Tell this one no more."""
        self._lines.pop(line, None)

    def on_block(self, block: Block) -> None:
        """A block became the head."""
        if self._lines:
            self._tell(BlockNews(block))

    def on_transaction(self, waiting: Waiting) -> None:
        """A transaction was admitted."""
        if self._lines:
            self._tell(ArrivalNews(waiting))

    def _tell(self, news: News) -> None:
        for line in list(self._lines):
            line.take(news)
