"""Keeps a read-only copy of another chain: fetches, runs every transaction itself, compares, refuses what differs.

Trust anchor: the hash of block 0 that the caller gives, or that the file has from before; the operator's address is in
that block. A block is shown to readers only after the operator's signature was recovered, every transaction's sender
too, and its execution gave the very gas, logs and state commitment that the header says. After `kill -9` it goes on
behind the last whole block. A source that cannot be reached is asked again for ever, more and more slowly; one that
serves another block than ours at any height, or one that cannot be, ends the follower with evidence on disk.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from deaios.chain.blocks import BlockHeader
from deaios.chain.consensus import DivergentBlock, SealedBlock
from deaios.chain.genesis import Genesis, InvalidGenesis, compute_genesis_hash
from deaios.chain.service.chain import ChainService
from deaios.chain.service.pace import Limits
from deaios.chain.service.source import BLOCKS_MAX, Batch, Source
from deaios.chain.service.witness import Witness
from deaios.chain.store import holds_chain
from deaios.ledger.client.rpc import UnavailableChain
from deaios.ledger.records import InvalidAnswer
from deaios.ledger.transactions import InvalidTransaction, Transaction, recover_sender
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

T = TypeVar("T")

WAIT_MS = 10_000
"""How long the source is asked to hold an answer back until there is a next block."""
PACE_S = 0.25
"""Least time between two empty answers, for a source that does not wait."""
BACKOFF_S = 0.25
BACKOFF_MAX_S = 5.0
INVALID_ANSWERS_MAX = 5
"""Malformed answers in a row before the source is given up: a proxy's error page passes, a broken node does not."""
_log = get_logger("follower")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a follower stands.

    Attributes:
        trouble: why the source gives nothing now; empty while it answers.
    """

    height: int
    source_height: int
    trouble: str = ""


Report = Callable[[Progress], None]


async def start_follower(
    path: Path,
    source: Source,
    genesis_hash: bytes | None,
    *,
    executor: Executor,
    clock: Clock,
    is_forwarding: bool = True,
    limits: Limits | None = None,
) -> ChainService:
    """Open or begin a follower's copy; `Follower.run` keeps it up to date.

    Args:
        path: the SQLite file.
        source: asked for the genesis of a new copy.
        genesis_hash: the trusted hash of block 0. None trusts the file.
        executor: threads for the engine, the disk and signatures; at least three.
        clock: for pending blocks' time.
        is_forwarding: hand transactions that come here to the source; refuse them otherwise.
        limits: bounds of the copy.

    Raises:
        ConfigError: a new copy without a trusted hash, or a file of another chain.
        DivergentBlock: the source begins with another block 0.
    """
    loop = asyncio.get_running_loop()
    genesis: Genesis | None = None
    if not await loop.run_in_executor(executor, holds_chain, path):
        genesis = await source.fetch_genesis()
        try:
            found = await loop.run_in_executor(executor, compute_genesis_hash, genesis)
        except ConfigError as error:
            raise InvalidGenesis(f"{source.url}: {error}") from error
        check_anchor(found, genesis_hash, source.url, is_known=False)
    forward = source.send if is_forwarding else None
    chain = await ChainService.start(
        path, None, genesis, executor=executor, clock=clock, limits=limits, forward=forward
    )
    if genesis_hash is not None and chain.genesis_hash != genesis_hash:
        await chain.close()
        raise ConfigError(
            f"{path} is a copy of {encode_hex(chain.genesis_hash)}, the trusted hash is {encode_hex(genesis_hash)}; "
            "use another --dir"
        )
    return chain


def check_anchor(found: bytes, genesis_hash: bytes | None, where: str, *, is_known: bool) -> None:
    """Is this the chain that somebody trusts?

    Args:
        found: hash of the block 0 that was offered.
        genesis_hash: the trusted one, where it was given.
        where: who offered it.
        is_known: is there a copy already, whose block 0 is trusted?

    Raises:
        ConfigError: nothing says which chain is trusted; the message says how to say it.
        DivergentBlock: another chain.
    """
    if genesis_hash is None and not is_known:
        raise ConfigError(
            f"nothing says which chain is trusted; {where} begins with block 0 {encode_hex(found)}. If you know that "
            f"hash from somebody you trust, give --genesis-hash {encode_hex(found)}"
        )
    if genesis_hash is not None and found != genesis_hash:
        raise DivergentBlock(0, "hash", encode_hex(found), encode_hex(genesis_hash))


class Follower:
    """Brings a copy up to its source and keeps it there."""

    def __init__(
        self,
        chain: ChainService,
        source: Source,
        *,
        executor: Executor,
        clock: Clock,
        evidence: Path,
        report: Report = lambda _progress: None,
    ) -> None:
        """Prepare.

        Args:
            chain: from `start_follower`.
            source: whom to follow.
            executor: threads for decoding and signatures.
            clock: pace and back-off.
            evidence: folder for what proves a divergence.
            report: called on the event loop whenever something changed.
        """
        self._chain = chain
        self._source = source
        self._executor = executor
        self._clock = clock
        self._witness = Witness(chain, source.url, evidence)
        self._report = report
        self._is_connected = False

    async def run(self) -> NoReturn:
        """Follow until cancelled.

        Raises:
            Diverged: the source serves another chain; the copy keeps what it had, and may not be served any longer.
            InvalidAnswer: the source does not speak the protocol.
            Unavailable: this machine's disk failed.
        """
        invalid = 0
        fetching = asyncio.create_task(self._fetch(self._chain.sealed.number + 1))
        try:
            while True:
                batch = await fetching
                # The next batch travels while this one runs.
                fetching = asyncio.create_task(self._fetch(batch.first + len(batch.texts)))
                try:
                    await self._take(batch)
                    invalid = 0
                except InvalidAnswer as error:
                    invalid += 1
                    if invalid >= INVALID_ANSWERS_MAX:
                        raise
                    await _cancel(fetching)
                    await self._pause(str(error), BACKOFF_S)
                    fetching = asyncio.create_task(self._fetch(self._chain.sealed.number + 1))
        finally:
            await _cancel(fetching)

    async def _take(self, batch: Batch) -> None:
        chain = self._chain
        if batch.previous is not None:
            await self._compare(batch.previous)
        elif batch.first and batch.head >= 0:
            # The source is behind us: an older copy of the same chain, or the beginning of another.
            theirs = await self._patiently(lambda: self._source.fetch_header(min(batch.head, chain.head.number)))
            if theirs is not None:
                await self._compare(theirs)
        if not batch.texts:
            return
        preparing = self._prepare(batch, 0)
        try:
            for index in range(len(batch.texts)):
                block, senders = await asyncio.shield(preparing)
                # The next block's signatures are recovered while this one runs.
                if index + 1 < len(batch.texts):
                    preparing = self._prepare(batch, index + 1)
                await self._take_block(block, senders)
                self._report(Progress(chain.head.number, max(batch.head, chain.head.number)))
        finally:
            await _cancel(preparing)

    def _prepare(self, batch: Batch, index: int) -> "asyncio.Future[tuple[SealedBlock, list[Address | None]]]":
        def job() -> tuple[SealedBlock, list[Address | None]]:
            block = batch.decode_block(index)
            return block, recover_senders(block)

        return asyncio.get_running_loop().run_in_executor(self._executor, job)

    async def _take_block(self, block: SealedBlock, senders: Sequence[Address | None]) -> None:
        parent = self._chain.head
        try:
            if block.header.number <= parent.number:
                await self._chain.confirm(block)
            else:
                await self._chain.append(block, senders)
        except DivergentBlock as error:
            raise await self._witness.take(block, parent, error) from error

    async def _compare(self, theirs: tuple[BlockHeader, bytes]) -> None:
        """Refuse a source whose block at some height is not ours."""
        number = theirs[0].number
        ours = await self._chain.header(number)
        if ours is not None and ours.hash != theirs[0].hash:
            await self._refuse_fork(theirs)

    async def _refuse_fork(self, theirs: tuple[BlockHeader, bytes]) -> NoReturn:
        """Find the lowest height at which both differ; two signatures for it are proof against the operator."""
        chain, same, other = self._chain, -1, theirs
        while other[0].number - same > 1:  # bounded: halves a 64-bit distance
            number = (same + other[0].number) // 2
            ours = await chain.header(number)
            found = await self._patiently(partial(self._source.fetch_header, number))
            if ours is None or found is None or ours.hash == found[0].hash:
                same = number
            else:
                other = found
        kept = await chain.header(other[0].number)
        assert kept is not None, "it was compared"
        raise await self._witness.compare(kept, other)

    async def _fetch(self, first: int) -> Batch:
        """The batch from a height on; waits for the source's next block."""

        async def attempt() -> Batch:
            started_s = self._clock.monotonic_s()
            # After a silence the source may be on another chain, or behind: that is looked at before waiting for more.
            wait_ms, self._is_connected = (WAIT_MS if self._is_connected else 0), False
            batch = await self._source.fetch_batch(first, BLOCKS_MAX, wait_ms)
            self._is_connected = True
            if not batch.texts and (left := started_s + PACE_S - self._clock.monotonic_s()) > 0:
                await self._clock.sleep(left)
            return batch

        return await self._patiently(attempt)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Ask until the source answers; endless where it cannot be reached, bounded where it talks nonsense."""
        pause_s, invalid = BACKOFF_S, 0
        while True:
            try:
                return await attempt()
            except UnavailableChain as error:
                trouble = str(error)
            except InvalidAnswer as error:
                invalid += 1
                if invalid >= INVALID_ANSWERS_MAX:
                    raise
                trouble = str(error)
            await self._pause(trouble, pause_s)
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)

    async def _pause(self, trouble: str, seconds: float) -> None:
        _log.warning("source gives nothing, asked again soon", error=trouble, pause_s=seconds)
        self._report(Progress(self._chain.head.number, -1, trouble))
        await self._clock.sleep(seconds)


async def _cancel(work: "asyncio.Future[T]") -> None:
    """End work and let nobody hear of how it ended."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


def recover_senders(block: SealedBlock) -> list[Address | None]:
    """Runs in a thread; None where a signature recovers to no key."""
    return [_recover_sender(transaction) for transaction in block.transactions]


def _recover_sender(transaction: Transaction) -> Address | None:
    try:
        return recover_sender(transaction)
    except InvalidTransaction:
        return None
