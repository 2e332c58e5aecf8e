"""The filters of eth_newFilter and its kin: who asks again and again what is new, and how far each was told.

A filter holds no queue. The chain never goes back, so what is new since the last question follows from a height, or for
waiting transactions from a place in one list that all filters share. So a filter costs what it names, however
long nobody asks; and 10,000 wanted filters cost a bounded sum, because beyond `FILTERS_MAX` they are refused. A filter
that nobody asked for five minutes is gone, as in geth.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from deaios.chain.blocks import Block
from deaios.chain.pool import Waiting
from deaios.chain.rpc import LIMIT_EXCEEDED, LogFilter, RpcFault, bad_params, server_error
from deaios.runtime.dice import Dice

FILTERS_MAX = 4_096
NAMED_MAX = 262_144
"""Addresses and topics that all filters together may name: about 100 bytes each."""
IDLE_S = 300.0
"""As geth."""
ARRIVALS_KEPT = 16_384
"""Hashes of admitted transactions that a filter may lag behind: the pool's size."""
ID_BYTES = 16


@dataclass(slots=True, eq=False)
class BlockFilter:
    """Wants the hash of each new block.

    Attributes:
        next_number: the first block that it was not told of.
        asked_s: when it was last asked.
        turn: one question at a time, so that nothing is told twice.
    """

    next_number: int
    asked_s: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    size: int = 0


@dataclass(slots=True, eq=False)
class LogsFilter:
    """Wants each new log that matches; see `BlockFilter`.

    Attributes:
        last_number: the last block that is of interest; None for no end.
    """

    wanted: LogFilter
    next_number: int
    last_number: int | None
    asked_s: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def size(self) -> int:
        """Addresses and topics named."""
        return self.wanted.size


@dataclass(slots=True, eq=False)
class ArrivalFilter:
    """Wants each transaction that is admitted.

    Attributes:
        next_arrival: the first that it was not told of.
        is_full: wants whole transactions.
    """

    next_arrival: int
    is_full: bool
    asked_s: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    size: int = 0


Filter = BlockFilter | LogsFilter | ArrivalFilter


class Filters:
    """All filters of one chain; a listener to its news."""

    def __init__(self, dice: Dice, now_s: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            dice: makes ids that nobody guesses, because whoever has one can take what is new away.
            now_s: monotonic time.
        """
        self._dice = dice
        self._now_s = now_s
        self._filters: dict[str, Filter] = {}
        """Those that nobody asked for longest come first."""
        self._named = 0
        self._arrivals: deque[bytes] = deque(maxlen=ARRIVALS_KEPT)
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._filters)

    def on_block(self, block: Block) -> None:
        """Nothing to note: heights tell."""

    def on_transaction(self, waiting: Waiting) -> None:
        """Note its hash."""
        self._arrivals.append(waiting.transaction.hash)
        self._arrived += 1

    def add_blocks(self, head: int) -> str:
        """A filter for blocks after `head`; returns its id.

        Raises:
            RpcFault: there are too many filters.
        """
        return self._add(BlockFilter(head + 1, self._now_s()))

    def add_logs(self, wanted: LogFilter, head: int) -> str:
        """A filter for logs after `head`; returns its id.

        Raises:
            RpcFault: the range ends before it begins, or there are too many filters.
        """
        first, last = validate_range(wanted)
        return self._add(LogsFilter(wanted, max(head + 1, first or 0), last, self._now_s()))

    def add_arrivals(self, *, is_full: bool) -> str:
        """A filter for transactions that are admitted from now on; returns its id.

        Raises:
            RpcFault: there are too many filters.
        """
        return self._add(ArrivalFilter(self._arrived, is_full, self._now_s()))

    def _add(self, item: Filter) -> str:
        if len(self._filters) >= FILTERS_MAX or self._named + item.size > NAMED_MAX:
            self._drop_idle()
        if len(self._filters) >= FILTERS_MAX:
            raise RpcFault(
                LIMIT_EXCEEDED,
                f"too many filters: {FILTERS_MAX} are in use; uninstall one, or ask again after {IDLE_S:g} s",
            )
        if self._named + item.size > NAMED_MAX:
            raise RpcFault(
                LIMIT_EXCEEDED,
                f"too many filters: together they may name {NAMED_MAX} addresses and topics, {self._named} are named, "
                f"this one names {item.size}",
            )
        identity = hex(int.from_bytes(self._dice.token_bytes(ID_BYTES)))
        self._filters[identity] = item
        self._named += item.size
        return identity

    def _drop_idle(self) -> None:
        now_s = self._now_s()
        while self._filters:  # bounded: each round removes one, or ends
            identity, item = next(iter(self._filters.items()))
            if now_s - item.asked_s <= IDLE_S:
                break
            self.remove(identity)

    def find(self, identity: str) -> Filter:
        """The filter with this id, which thereby was asked.

        Raises:
            RpcFault: there is none, or nobody asked for too long.
        """
        item = self._filters.get(identity)
        if item is not None and self._now_s() - item.asked_s > IDLE_S:
            self.remove(identity)
            item = None
        if item is None:
            raise server_error("filter not found")
        item.asked_s = self._now_s()
        self._filters[identity] = self._filters.pop(identity)
        return item

    def remove(self, identity: str) -> bool:
        """Forget a filter; False when there was none."""
        item = self._filters.pop(identity, None)
        if item is None:
            return False
        self._named -= item.size
        return True

    def take_arrivals(self, item: ArrivalFilter) -> list[bytes]:
        """Hashes that it was not told of, oldest first.

        Raises:
            RpcFault: some of them are no longer known; the next question goes on from here.
        """
        missed = self._arrived - len(self._arrivals) - item.next_arrival
        first, item.next_arrival = item.next_arrival, self._arrived
        if missed > 0:
            raise RpcFault(
                LIMIT_EXCEEDED,
                f"the filter lost {missed} transactions: more than {ARRIVALS_KEPT} were admitted since it was asked",
            )
        count = self._arrived - first
        return [self._arrivals[index] for index in range(len(self._arrivals) - count, len(self._arrivals))]


def validate_range(wanted: LogFilter) -> tuple[int | None, int | None]:
    """The first and last block of logs still to come, None where it is open.

    Raises:
        RpcFault: as geth words it.
    """
    if wanted.first.is_pending or wanted.last.is_pending:
        raise bad_params("pending logs are not supported")
    first, last = wanted.first.number, wanted.last.number
    if last is not None and (first is None or first > last):
        raise bad_params("invalid block range params")
    return first, last
