"""The node that a follower follows, over JSON-RPC: its genesis, its sealed blocks, and the way for transactions to it.

Everything that it says is hostile until decoded: answers are bounded by `ledger.client.rpc`, and what is malformed is
`InvalidAnswer`. Nothing here believes a block; that is for `chain.consensus`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from deaios.chain.blocks import BlockHeader, InvalidBlock, decode_header
from deaios.chain.consensus import SIGNATURE_SIZE, SealedBlock, decode_sealed_block
from deaios.chain.genesis import Genesis, decode_genesis
from deaios.chain.rpc import METHOD_NOT_FOUND, RpcFault
from deaios.ledger.client.rpc import RefusedByChain, Rpc, UnavailableChain
from deaios.ledger.records import InvalidAnswer
from deaios.primitives.encoding import decode_hex, encode_hex
from deaios.primitives.errors import DeaiosError, Invalid, Refused

BLOCKS_MAX = 256
"""Blocks asked for at a time: some seconds of work, so that little is fetched twice after a kill."""


class RefusedSource(Refused):
    """The node does not serve followers."""


class _HeaderJson(msgspec.Struct):
    header: str
    signature: str


class _BlockJson(_HeaderJson):
    transactions: list[str]


class _BatchJson(msgspec.Struct):
    head: str
    previous: _HeaderJson | None
    blocks: list[_BlockJson]


class _ErrorJson(msgspec.Struct):
    code: int
    message: str = ""


class _SentJson(msgspec.Struct):
    id: int | None = None
    result: str | None = None
    error: _ErrorJson | None = None


class Source:
    """See the module."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    @property
    def url(self) -> str:
        """Where it answers."""
        return self._rpc.url

    async def fetch_genesis(self) -> Genesis:
        """The genesis that the source says it began with.

        Raises:
            InvalidAnswer: not a genesis.
        """
        answer = await self._call("deaios_getGenesis", [])
        try:
            return decode_genesis(msgspec.json.encode(answer))
        except Invalid as error:
            raise InvalidAnswer(f"{self.url}: {error}") from error

    async def fetch_batch(self, first: int, count: int, wait_ms: int = 0) -> "Batch":
        """Blocks from a height on; with `wait_ms` once block `first` is there, or the time is up.

        Raises:
            InvalidAnswer: more or other blocks than were asked for, or bytes that are none.
        """
        answer = await self._call("deaios_getBlocks", [hex(first), hex(count), wait_ms])
        return read_batch(self.url, first, count, answer)

    async def fetch_header(self, number: int) -> tuple[BlockHeader, bytes] | None:
        """The source's header and signature at a height; None where it has none."""
        return (await self.fetch_batch(number + 1, 0)).previous

    async def _call(self, method: str, params: Sequence[object]) -> object:
        try:
            return await self._rpc.call(method, params)
        except RefusedByChain as error:
            if error.code == METHOD_NOT_FOUND:
                raise RefusedSource(f"{self.url} is no embedded chain of this program: it has no {method}") from error
            raise

    async def send(self, raws: Sequence[bytes]) -> list[bytes | DeaiosError]:
        """Forward raw transactions in order; each gives its hash, or the source's error."""
        requests = [
            {"jsonrpc": "2.0", "id": index, "method": "eth_sendRawTransaction", "params": [encode_hex(raw)]}
            for index, raw in enumerate(raws)
        ]
        status, body = await self._rpc.post(msgspec.json.encode(requests))
        if status != 200:
            raise UnavailableChain(f"{self.url}: HTTP status {status}")
        try:
            sent = {reply.id: reply for reply in msgspec.json.decode(body, type=list[_SentJson])}
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise InvalidAnswer(f"{self.url}: answer is not JSON-RPC: {error}") from error
        return [self._read_sent(sent.get(index)) for index in range(len(raws))]

    def _read_sent(self, reply: _SentJson | None) -> bytes | DeaiosError:
        if reply is not None and reply.error is not None:
            return RpcFault(reply.error.code, reply.error.message)
        try:
            return decode_hex("" if reply is None or reply.result is None else reply.result, 32)
        except Invalid as error:
            return InvalidAnswer(f"{self.url}: {error}")


@dataclass(frozen=True, slots=True)
class Batch:
    """An answer of deaios_getBlocks.

    Attributes:
        url: whose.
        first: the height asked for.
        head: the source's newest signed height; -1 before it signed any.
        previous: header and signature before `first`; None where the source has none.
        texts: the blocks from `first` on, still as text: decoding one is work for a thread.
    """

    url: str
    first: int
    head: int
    previous: tuple[BlockHeader, bytes] | None
    texts: Sequence[_BlockJson]

    def decode_block(self, index: int) -> SealedBlock:
        """Read the block at `first + index`.

        Raises:
            InvalidAnswer: another block, or bytes that are none.
        """
        text, number = self.texts[index], self.first + index
        try:
            block = decode_sealed_block(
                decode_hex(text.header), decode_hex(text.signature), [decode_hex(raw) for raw in text.transactions]
            )
        except Invalid as error:
            raise InvalidAnswer(f"{self.url}: block {number}: {error}") from error
        if block.header.number != number:
            raise InvalidAnswer(f"{self.url}: block {block.header.number} stands where block {number} belongs")
        return block


def read_batch(url: str, first: int, count: int, answer: object) -> Batch:
    """Read an answer of deaios_getBlocks, but for its blocks.

    Raises:
        InvalidAnswer: not such an answer, or one to another question.
    """
    try:
        found = msgspec.convert(answer, _BatchJson)
        previous = None if found.previous is None else _read_header(found.previous)
        head = _read_height(found.head)
    except (msgspec.ValidationError, Invalid) as error:
        raise InvalidAnswer(f"{url}: answer to deaios_getBlocks: {error}") from error
    if len(found.blocks) > count:
        raise InvalidAnswer(f"{url}: {len(found.blocks)} blocks where {count} were asked for")
    if previous is not None and previous[0].number != first - 1:
        raise InvalidAnswer(f"{url}: block {previous[0].number} stands before block {first}")
    if previous is None and first and found.blocks:
        raise InvalidAnswer(f"{url}: blocks from {first} on without the one before them")
    return Batch(url, first, head, previous, found.blocks)


def _read_height(text: str) -> int:
    if not text.startswith("0x") or len(text) > 18:
        raise InvalidBlock(f"height {text[:20]!r}")
    try:
        # -0x1 is what a chain without any signed block says.
        return int(text, 16)
    except ValueError as error:
        raise InvalidBlock(f"height {text!r}") from error


def _read_header(found: _HeaderJson) -> tuple[BlockHeader, bytes]:
    return decode_header(decode_hex(found.header)), decode_hex(found.signature, SIGNATURE_SIZE)
