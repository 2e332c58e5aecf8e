"""Ethereum JSON-RPC over HTTP: bounded, timed, reads retried.

A call returns the node's answer or raises a typed error; a read is tried a few times, a submission never by itself.
A client knows how deep its chain may be reorganised: `Rpc.settled` reads what can no longer change, `Rpc` itself the
latest block. Knows no contract and no key.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from deaios.ledger.abi import decode_revert
from deaios.ledger.records import (
    CODE_BYTES_MAX,
    Block,
    InvalidAnswer,
    InvalidAnswerSize,
    Log,
    TransactionReceipt,
    read_block,
    read_data,
    read_hash,
    read_logs,
    read_quantity,
    read_receipt,
)
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock, SystemClock

CONNECT_S = 5.0
TOTAL_S = 20.0
"""A node answers from memory; longer than this is a fault."""
ATTEMPTS = 5
BACKOFF_S = 0.1
"""Wait before the second attempt; doubled for each further one."""
RESPONSE_BYTES_MAX = 32 << 20
BATCH_MAX = 100
CONNECTIONS_MAX = 32
RETRY_AFTER_S_MAX = 10.0
"""The longest pause that a node may ask for in `Retry-After`."""
LOG_BLOCKS_STEP = 10_000
"""Blocks per eth_getLogs; where a node refuses so many, fewer are asked for from then on."""
LOG_STEPS_MAX = 10_000
MESSAGE_CHARACTERS_MAX = 300

REVERT_CODE = 3
BUSY_CODES = frozenset({-32005, -32002, -32603})
"""Limit exceeded, resource unavailable, internal error: what a later attempt may not meet."""
RANGE_WORDS = ("range", "more than", "too many", "limit", "response size", "too large", "exceed", "timed out")
RATE_WORDS = ("rate", "per second", "requests", "capacity", "compute unit")
"""How nodes refuse a question about logs that spans too much, and one that comes too soon; neither has a code."""
ABSENT_WORDS = ("header not found", "block not found", "unknown block", "out of range", "outofrange")
"""How nodes say that they lack a block: while they change branches, or where another one behind the URL is ahead."""
SUBMISSIONS = frozenset({"eth_sendRawTransaction"})
"""Methods that change something; the caller decides whether to repeat them."""

Json = Any
"""Parsed JSON of unknown shape; `ledger.records` reads it."""
Topic = bytes | Sequence[bytes] | None


class UnavailableChain(Unavailable):
    """The node could not be reached, hung, or says that it cannot answer now.

    Attributes:
        retry_after_s: how long the node asks us to wait; 0 where it does not say.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefusedByChain(Refused):
    """The node understood and declined.

    Attributes:
        code: JSON-RPC error code, or the HTTP status.
        reason: the node's words.
    """

    def __init__(self, method: str, code: int, reason: str) -> None:
        super().__init__(f"{method} was refused by the node: {code} {reason}")
        self.code = code
        self.reason = reason


class RefusedLogRange(RefusedByChain):
    """A question about logs that spans more blocks, or has more answers, than this node serves at once."""


class Reverted(Refused):
    """A contract refused the call.

    Attributes:
        reason: what the contract said.
        data: the raw revert data.
        receipt: the failed transaction's receipt, when it got into a block.
    """

    def __init__(self, reason: str, data: bytes = b"", receipt: TransactionReceipt | None = None) -> None:
        where = "" if receipt is None else f" (transaction {encode_hex(receipt.transaction_hash)})"
        super().__init__(f"contract reverted: {reason}{where}")
        self.reason = reason
        self.data = data
        self.receipt = receipt


class InvalidLogRange(Invalid):
    """More blocks than one question about logs may span."""


class _Error(msgspec.Struct):
    code: int
    message: str = ""
    data: Json = None


class _Reply(msgspec.Struct):
    id: int | None = None
    result: Json = None
    error: _Error | None = None


_REPLIES = msgspec.json.Decoder(_Reply | list[_Reply])


class Rpc:
    """One node by URL; use as an async context manager, or close it. Safe for many tasks of one loop.

    Attributes:
        confirmations: blocks that must hold something, its own included, before it counts as settled; 1 where the
            chain never takes a block back.
        first_block: before it there is nothing of this network, so logs are not looked for.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        attempts: int = ATTEMPTS,
        total_s: float = TOTAL_S,
        confirmations: int = 1,
        first_block: int = 0,
    ) -> None:
        assert confirmations > 0
        self.url = url
        self.clock: Clock = clock or SystemClock()
        self.total_s = total_s
        self.confirmations = confirmations
        self.first_block = first_block
        self._settled: Rpc | None = None
        self._log_step = LOG_BLOCKS_STEP
        self._attempts = attempts
        self._timeout = aiohttp.ClientTimeout(total=total_s, connect=CONNECT_S)
        self._session: aiohttp.ClientSession | None = None
        self._next_id = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def settled(self) -> "Rpc":
        """The same chain as of its newest settled block: itself where the chain never takes a block back."""
        if self.confirmations == 1:
            return self
        if self._settled is None:
            self._settled = _SettledRpc(self)
        return self._settled

    async def call(self, method: str, params: Sequence[Json] = ()) -> Json:
        """One call.

        Raises:
            UnavailableChain: no usable answer, after the attempts a read has.
            Reverted: a contract refused.
            RefusedByChain: the node refused.
            InvalidAnswer: the node does not speak JSON-RPC.
        """
        return (await self.batch([(method, params)]))[0]

    async def batch(self, calls: Sequence[tuple[str, Sequence[Json]]]) -> list[Json]:
        """Several calls in one exchange; the first error of any is raised, as by `call`."""
        assert 0 < len(calls) <= BATCH_MAX
        attempts = 1 if any(method in SUBMISSIONS for method, _ in calls) else self._attempts
        for attempt in range(1, attempts):
            try:
                return await self._exchange(calls)
            except UnavailableChain as error:
                await self.clock.sleep(max(BACKOFF_S * 2 ** (attempt - 1), error.retry_after_s))
        return await self._exchange(calls)

    async def _exchange(self, calls: Sequence[tuple[str, Sequence[Json]]]) -> list[Json]:
        first = self._next_id
        self._next_id += len(calls)
        requests = [
            {"jsonrpc": "2.0", "id": first + i, "method": method, "params": params}
            for i, (method, params) in enumerate(calls)
        ]
        status, body = await self.post(msgspec.json.encode(requests if len(calls) > 1 else requests[0]))
        if status == 429 or status >= 500:
            raise UnavailableChain(f"{self.url}: HTTP status {status}")
        try:
            decoded = _REPLIES.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            if status >= 400:
                raise RefusedByChain(calls[0][0], status, body[:MESSAGE_CHARACTERS_MAX].decode(errors="replace")) from (
                    error
                )
            raise InvalidAnswer(f"{self.url}: answer is not JSON-RPC: {error}") from error
        replies = {reply.id: reply for reply in (decoded if isinstance(decoded, list) else [decoded])}
        if len(calls) > 1 and isinstance(decoded, _Reply) and decoded.error is not None:
            raise _read_error(self.url, calls[0][0], decoded.error)
        results = []
        for i, (method, _) in enumerate(calls):
            reply = replies.get(first + i)
            if reply is None:
                reply = replies.get(None)
                if reply is None or reply.error is None:
                    raise InvalidAnswer(f"{self.url}: no answer to call {first + i} ({method})")
            if reply.error is not None:
                raise _read_error(self.url, method, reply.error)
            results.append(reply.result)
        return results

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """One HTTP exchange with the node, as (status, body); a simulated world has another one.

        Raises:
            UnavailableChain: the node cannot be reached, hung, or broke off.
            InvalidAnswer: the answer is larger than `RESPONSE_BYTES_MAX`.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
            )
        try:
            async with self._session.post(self.url, data=body, allow_redirects=False) as response:
                if (response.content_length or 0) > RESPONSE_BYTES_MAX:
                    raise InvalidAnswerSize(f"{self.url}: answer has more than {RESPONSE_BYTES_MAX} bytes")
                parts, size = [], 0
                async for part in response.content.iter_any():
                    size += len(part)
                    if size > RESPONSE_BYTES_MAX:
                        raise InvalidAnswerSize(f"{self.url}: answer has more than {RESPONSE_BYTES_MAX} bytes")
                    parts.append(part)
                if response.status == 429:
                    wait_s = _read_retry_after(response.headers.get("Retry-After", ""))
                    raise UnavailableChain(f"{self.url}: HTTP status 429, too many requests", wait_s)
                return response.status, b"".join(parts)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableChain(f"{self.url}: {error!r}") from error

    async def chain_id(self) -> int:
        """The network's EIP-155 id."""
        return read_quantity(await self.call("eth_chainId"), "chain id")

    async def block_number(self) -> int:
        """Height of the latest block."""
        return read_quantity(await self.call("eth_blockNumber"), "block number")

    async def get_block(self, block: int | str = "latest") -> Block | None:
        """A block by height or tag; None where there is none."""
        answer = await self.call("eth_getBlockByNumber", [await self._name_block(block), False])
        return None if answer is None else read_block(answer)

    async def fetch_latest(self) -> Block:
        """The latest block.

        Raises:
            UnavailableChain: it has been taken back since its height was asked for.
        """
        answer = await self.call("eth_getBlockByNumber", [await self._name_block("latest"), False])
        if answer is None:
            raise UnavailableChain(f"{self.url}: the newest block is gone")
        return read_block(answer)

    async def get_block_by_hash(self, block_hash: bytes) -> Block | None:
        """A block by its hash; None where this chain has none."""
        answer = await self.call("eth_getBlockByHash", [encode_hex(block_hash), False])
        return None if answer is None else read_block(answer)

    async def get_balance(self, address: Address, block: int | str = "latest") -> int:
        """Native balance, in wei."""
        params = [encode_hex(address), await self._name_block(block)]
        return read_quantity(await self.call("eth_getBalance", params), "balance")

    async def get_nonce(self, address: Address, block: int | str = "latest") -> int:
        """Transactions an account has sent."""
        params = [encode_hex(address), await self._name_block(block)]
        return read_quantity(await self.call("eth_getTransactionCount", params), "nonce")

    async def get_code(self, address: Address) -> bytes:
        """A contract's code; empty for other accounts."""
        (code,) = await self.get_codes([address])
        return code

    async def get_codes(self, addresses: Sequence[Address]) -> list[bytes]:
        """As `get_code`, of at most `BATCH_MAX` accounts in one exchange."""
        block = await self._name_block("latest")
        answers = await self.batch([("eth_getCode", [encode_hex(address), block]) for address in addresses])
        return [read_data(answer, "code", limit=CODE_BYTES_MAX) for answer in answers]

    async def get_receipt(self, transaction_hash: bytes) -> TransactionReceipt | None:
        """The receipt of a transaction in a block, or None."""
        answer = await self.call("eth_getTransactionReceipt", [encode_hex(transaction_hash)])
        return None if answer is None else read_receipt(answer)

    async def eth_call(
        self,
        to: Address | None,
        data: bytes,
        *,
        sender: Address | None = None,
        value: int = 0,
        block: int | str = "latest",
    ) -> bytes:
        """What a call would return, without sending it.

        Raises:
            Reverted: the contract refused.
        """
        params = [encode_call_object(to, data, sender, value), await self._name_block(block)]
        return read_data(await self.call("eth_call", params), "call result", limit=CODE_BYTES_MAX)

    async def eth_calls(self, calls: Sequence[tuple[Address, bytes]]) -> list[bytes]:
        """What several calls would return at the latest block, in as few exchanges as the batch bound allows.

        Raises:
            Reverted: a contract refused one of them.
        """
        block = await self._name_block("latest")
        answers: list[Json] = []
        for start in range(0, len(calls), BATCH_MAX):
            part = calls[start : start + BATCH_MAX]
            answers += await self.batch(
                [("eth_call", [encode_call_object(to, data, None, 0), block]) for to, data in part]
            )
        return [read_data(answer, "call result", limit=CODE_BYTES_MAX) for answer in answers]

    async def estimate_gas(self, to: Address | None, data: bytes, sender: Address, value: int = 0) -> int:
        """Gas a transaction would need now.

        Raises:
            Reverted: the contract would refuse.
        """
        params = [encode_call_object(to, data, sender, value)]
        return read_quantity(await self.call("eth_estimateGas", params), "gas estimate")

    async def send_raw_transaction(self, raw: bytes) -> bytes:
        """Submit a signed transaction, once; returns its hash."""
        return read_hash(await self.call("eth_sendRawTransaction", [encode_hex(raw)]), "transaction hash")

    async def get_logs(
        self,
        address: Address | Sequence[Address],
        topics: Sequence[Topic] = (),
        from_block: int = 0,
        to_block: int | None = None,
    ) -> tuple[Log, ...]:
        """Logs of contracts in a range of blocks, oldest first, asked for in steps that the node accepts.

        Args:
            address: one contract or several.
            topics: per position a topic, alternatives, or None for any.
            from_block: first block; the network's first one where this is earlier.
            to_block: last block, the latest by default.

        Raises:
            InvalidLogRange: more blocks than any question may span.
            RefusedLogRange: the node refuses even a single block.
        """
        addresses = [address] if isinstance(address, bytes) else list(address)
        start = max(from_block, self.first_block)
        last = await self.block_number() if to_block is None else to_block
        if (last - start) // LOG_BLOCKS_STEP >= LOG_STEPS_MAX:
            raise InvalidLogRange(f"{last - start} blocks exceed {LOG_BLOCKS_STEP * LOG_STEPS_MAX}")
        criteria: dict[str, Json] = {
            "address": [encode_hex(item) for item in addresses],
            "topics": [_encode_topic(topic) for topic in topics],
        }
        found: list[Log] = []
        for _ in range(LOG_STEPS_MAX):
            if start > last:
                return tuple(found)
            end = min(start + self._log_step - 1, last)
            span = {"fromBlock": hex(start), "toBlock": hex(end)}
            try:
                found.extend(read_logs(await self.call("eth_getLogs", [{**criteria, **span}])))
            except (RefusedLogRange, InvalidAnswerSize):
                if end == start:
                    raise
                # Remembered: a node that serves fewer blocks at once will not serve more at the next question.
                self._log_step = min(self._log_step, end - start + 1) // 2
            else:
                start = end + 1
        raise InvalidLogRange(f"{self.url} serves {self._log_step} blocks at once; {last - start} are left")

    async def _name_block(self, block: int | str) -> str:
        """A height or tag as JSON-RPC spells it."""
        return hex(block) if isinstance(block, int) else block


class _SettledRpc(Rpc):
    """Another client's connection, for which the newest settled block is the latest one."""

    def __init__(self, whole: Rpc) -> None:
        super().__init__(
            whole.url,
            clock=whole.clock,
            attempts=whole._attempts,
            total_s=whole.total_s,
            confirmations=whole.confirmations,
            first_block=whole.first_block,
        )
        self._whole = whole
        self._height = 0

    @property
    def settled(self) -> Rpc:
        return self

    async def close(self) -> None:
        """Nothing: the connection is another's."""

    async def post(self, body: bytes) -> tuple[int, bytes]:
        return await self._whole.post(body)

    async def block_number(self) -> int:
        """Height of the newest settled block; it never goes back, whatever the node says."""
        head = await self._whole.block_number()
        self._height = max(self._height, head - self.confirmations + 1, 0)
        return min(self._height, head)

    async def _name_block(self, block: int | str) -> str:
        return hex(await self.block_number()) if block == "latest" else await super()._name_block(block)


def encode_call_object(to: Address | None, data: bytes, sender: Address | None, value: int) -> Mapping[str, str]:
    """A call object."""
    items = {"data": encode_hex(data)}
    if to is not None:
        items["to"] = encode_hex(to)
    if sender is not None:
        items["from"] = encode_hex(sender)
    if value:
        items["value"] = hex(value)
    return items


def _encode_topic(topic: Topic) -> Json:
    if topic is None:
        return None
    return encode_hex(topic) if isinstance(topic, bytes) else [encode_hex(item) for item in topic]


def _read_retry_after(text: str) -> float:
    """Seconds of a `Retry-After` header; 0 for a date, or none."""
    return min(float(text), RETRY_AFTER_S_MAX) if text.isascii() and text.isdigit() else 0.0


def _read_error(url: str, method: str, error: _Error) -> Exception:
    message = error.message[:MESSAGE_CHARACTERS_MAX]
    words = message.lower()
    is_range = any(word in words for word in RANGE_WORDS) and not any(word in words for word in RATE_WORDS)
    if method == "eth_getLogs" and is_range:
        return RefusedLogRange(method, error.code, message)
    if error.code == REVERT_CODE or "execution reverted" in message.lower():
        try:
            data = read_data(error.data, "revert data") if isinstance(error.data, str) else b""
        except InvalidAnswer as invalid:
            return invalid
        return Reverted(decode_revert(data) if data else message, data)
    if error.code in BUSY_CODES or any(word in words for word in ABSENT_WORDS):
        return UnavailableChain(f"{url}: {method}: {error.code} {message}")
    return RefusedByChain(method, error.code, message)
