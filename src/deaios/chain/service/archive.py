"""Writes a chain's file into an archive and reads one back; see `chain.archive` for the format.

Both work in steps of about a megabyte in a thread, so that memory is bounded, progress can be shown and a cancelled
command stops between two of them. An export appears under its name only when it is whole and on disk. An import of
blocks runs each of them as a follower does, so it may stop anywhere and be repeated; an import of a state is one
transaction.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from deaios.chain import archive
from deaios.chain.archive import ArchiveWriter, Compression, InvalidArchive, Kind, Record, Rising, read_archive
from deaios.chain.blocks import header_record
from deaios.chain.commitment import StateCommitment, encode_account_code_entry, encode_slot_entry
from deaios.chain.consensus import DivergentBlock, Identity, SealedBlock, identify, recover_operator
from deaios.chain.evm import EMPTY_CODE_HASH
from deaios.chain.genesis import Genesis, compute_genesis_hash, decode_genesis, encode_genesis
from deaios.chain.service.chain import ChainService
from deaios.chain.service.follower import check_anchor, recover_senders
from deaios.chain.service.witness import Witness
from deaios.chain.store import ChainStore, holds_chain
from deaios.ledger.eip712 import hash_struct
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Refused, Unavailable
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock
from deaios.runtime.disk import UnavailableDisk, fsync_folder

T = TypeVar("T")
EVIDENCE = "evidence"
"""The folder beside a copy for what proves a divergence."""
BLOCKS_STEP = 1024
"""Blocks read at a time; fewer where they are large."""


class UnavailableHead(Unavailable):
    """The last block has no signature yet; it has one a moment later."""


class RefusedRange(Refused):
    """Blocks that this chain does not have, or no longer."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far an export, an import or a check is; `total` is 0 where it cannot be known."""

    what: str
    done: int
    total: int


Report = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an archive holds: blocks `first` to `last`, or the state after `last`."""

    genesis_hash: bytes
    first: int
    last: int
    size_bytes: int
    state_commitment: bytes | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made of an archive: blocks that were run, blocks that were there, the height afterwards."""

    genesis_hash: bytes
    executed: int
    known: int
    height: int
    is_state: bool


# Export


async def export_archive(
    database: Path,
    target: Path,
    *,
    first: int | None = None,
    last: int | None = None,
    is_state: bool = False,
    compression: Compression = Compression.ZLIB,
    report: Report = lambda _step: None,
) -> Exported:
    """Write blocks, or the state after the last one, of a chain's file into an archive. The chain may be running.

    Args:
        database: the chain's SQLite file.
        target: the archive; replaced when the new one is whole.
        first: first block; the oldest that is kept by default.
        last: last block; the newest that is signed by default.
        is_state: the state instead of blocks.
        compression: of the bodies.
        report: called after each step.

    Raises:
        ConfigError: the file holds no chain.
        RefusedRange: blocks that are not there.
        UnavailableHead: the state's block has no signature yet.
        UnavailableDisk: the archive cannot be written.
    """
    if not await asyncio.to_thread(holds_chain, database):
        raise ConfigError(f"{database} holds no chain")
    store = ChainStore(database)
    partial_path = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with _writing(partial_path) as file:
            writer = ArchiveWriter(file.write, compression)
            steps = _export_state(store, writer) if is_state else _export_blocks(store, writer, first, last)
            done = await drive(steps, report)
            await asyncio.to_thread(_make_durable, file)
        partial_path.replace(target)
        fsync_folder(target.parent)
    except OSError as error:
        raise UnavailableDisk(f"cannot write {target}: {error}") from error
    finally:
        partial_path.unlink(missing_ok=True)
        store.close()
    return done


def _writing(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


Steps = Generator[Step, None, T]


async def drive(steps: Steps[T], report: Report) -> T:
    """Run a generator step by step in a thread; cancelled, it ends between two steps."""

    def advance() -> tuple[Step | None, T | None]:
        try:
            return next(steps), None
        except StopIteration as stop:
            return None, stop.value

    try:
        while True:
            step, result = await _finish(asyncio.to_thread(advance))
            if step is None:
                return result  # type: ignore[return-value] # the generator's own return value
            report(step)
    finally:
        steps.close()


async def _finish(work: Coroutine[None, None, T]) -> T:
    """Await work in a thread to its end, even when cancelled meanwhile."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _genesis_of(store: ChainStore) -> Genesis:
    genesis = store.load_genesis()
    assert genesis is not None, "the caller saw a chain in it"
    return genesis


def _export_blocks(store: ChainStore, writer: ArchiveWriter, first: int | None, last: int | None) -> Steps[Exported]:
    genesis = _genesis_of(store)
    writer.put(Kind.GENESIS, encode_genesis(genesis))
    with store.snapshot():
        head = store.fetch_head()
        assert head is not None, "a chain has a head"
        oldest = store.oldest_block()
        start = oldest if first is None else first
        end = head.number if last is None else last
        if not oldest <= start <= end <= head.number:
            raise RefusedRange(f"blocks {start} to {end} asked for, this chain keeps {oldest} to {head.number}")
        number = start
        while number <= end:
            found = store.fetch_sealed(number, min(BLOCKS_STEP, end + 1 - number), archive.CHUNK_BYTES)
            assert found, "heights have no gaps"
            for block in found:
                if block.signature is None:
                    if last is not None:
                        raise UnavailableHead(f"block {block.number} has no signature yet")
                    end = block.number - 1
                    break
                writer.put(Kind.BLOCK, archive.encode_block(block.header, block.signature, block.raws))
            number = found[-1].number + 1
            yield Step("blocks", min(number, end + 1) - start, end + 1 - start)
    writer.finish()
    return Exported(compute_genesis_hash(genesis), start, end, writer.size_bytes)


def _export_state(store: ChainStore, writer: ArchiveWriter) -> Steps[Exported]:
    genesis = _genesis_of(store)
    writer.put(Kind.GENESIS, encode_genesis(genesis))
    with store.snapshot():
        head = store.fetch_head()
        assert head is not None, "a chain has a head"
        signature = store.fetch_signature(head.number)
        if signature is None:
            raise UnavailableHead(f"block {head.number} has no signature yet; try again")
        writer.put(Kind.STATE, archive.encode_state_head(head.encoded, signature))
        done = 0
        for kind, rows in (
            (Kind.CODES, (code for _, code in store.iterate_codes())),
            (Kind.ACCOUNTS, (archive.encode_account(*row) for row in store.iterate_accounts())),
            (Kind.SLOTS, (archive.encode_slot(*row) for row in store.iterate_slots())),
        ):
            for chunk in _chunks(rows):
                writer.put(kind, archive.encode_codes(chunk) if kind is Kind.CODES else b"".join(chunk))
                done += len(chunk)
                yield Step("entries of state", done, 0)
    writer.finish()
    return Exported(compute_genesis_hash(genesis), head.number, head.number, writer.size_bytes, head.state_commitment)


def _chunks(rows: Iterable[bytes]) -> Iterator[list[bytes]]:
    chunk, size = list[bytes](), 0
    for row in rows:
        chunk.append(row)
        size += len(row)
        if size >= archive.CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


# Import


async def import_archive(
    source: Path,
    database: Path,
    genesis_hash: bytes | None,
    *,
    executor: Executor,
    clock: Clock,
    report: Report = lambda _step: None,
) -> Imported:
    """Read an archive into a follower's file: run its blocks, or check its state against the operator's signature.

    Args:
        source: the archive.
        database: the SQLite file, new or with the blocks before the archive's; blocks that are there are compared.
        genesis_hash: the trusted hash of block 0; None trusts what the file holds.
        executor: threads for the engine and the disk; at least three.
        clock: what a chain is opened with; no block depends on it.
        report: called after each step.

    Raises:
        InvalidArchive: not a whole archive; what it held before that is imported.
        Diverged: a block that does not follow from its parent and its transactions, or is not ours.
        DivergentBlock: another block 0, or a state that is not what the operator signed.
        ConfigError: nothing says which chain is trusted, or the file holds another one.
    """
    is_known = await asyncio.to_thread(holds_chain, database)
    try:
        with source.open("rb") as file:
            records = read_archive(file.read)
            genesis = await asyncio.to_thread(_read_genesis, records)
            found = await asyncio.to_thread(compute_genesis_hash, genesis)
            check_anchor(found, genesis_hash, str(source), is_known=is_known)
            record = await asyncio.to_thread(next, records, None)
            if record is not None and record.kind is Kind.STATE:
                if is_known:
                    raise ConfigError(f"{database} holds a chain already; a state begins a new one: use another --dir")
                return await _import_state(record, records, database, identify(genesis, found), genesis, report)
            chain = await ChainService.start(database, None, genesis, executor=executor, clock=clock)
            try:
                witness = Witness(chain, str(source), database.parent / EVIDENCE)
                return await _import_blocks(record, records, chain, witness, report)
            finally:
                await chain.close()
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error}") from error


def _read_genesis(records: Iterator[Record]) -> Genesis:
    record = next(records, None)
    if record is None:
        raise InvalidArchive("archive is empty")
    return decode_genesis(record.body)


async def _import_blocks(
    record: Record | None, records: Iterator[Record], chain: ChainService, witness: Witness, report: Report
) -> Imported:
    """Run blocks while the next ones are read and their senders recovered."""
    executed = known = 0

    def read_next(record: Record | None) -> tuple[SealedBlock, list[Address | None]] | None:
        record = record or next(records, None)
        if record is None:
            return None
        block = archive.decode_block(record.body)
        return block, recover_senders(block)

    reading = asyncio.create_task(asyncio.to_thread(read_next, record)) if record is not None else None
    try:
        while reading is not None and (found := await asyncio.shield(reading)) is not None:
            reading = asyncio.create_task(asyncio.to_thread(read_next, None))
            block, senders = found
            number, head = block.header.number, chain.head
            if number > head.number + 1:
                raise InvalidArchive(f"archive goes on at block {number}, this chain stands at {head.number}")
            try:
                if number == head.number + 1:
                    await chain.append(block, senders)
                    executed += 1
                else:
                    await chain.confirm(block)
                    known += 1
            except DivergentBlock as error:
                raise await witness.take(block, head, error) from error
            report(Step("blocks", executed + known, 0))
    finally:
        if reading is not None:
            await asyncio.wait([reading])
    return Imported(chain.genesis_hash, executed, known, chain.head.number, is_state=False)


async def _import_state(
    head: Record, records: Iterator[Record], database: Path, identity: Identity, genesis: Genesis, report: Report
) -> Imported:
    block = archive.decode_state_head(head.body)
    signer = recover_operator(identity, block.header, block.signature)
    if signer != identity.operator:
        text = encode_hex(signer) if isinstance(signer, bytes) else signer
        raise DivergentBlock(block.header.number, "signature", text, encode_hex(identity.operator))
    loop = asyncio.get_running_loop()

    def report_soon(step: Step) -> None:
        loop.call_soon_threadsafe(report, step)

    stream = _StateStream(records, block, report_soon)
    store = ChainStore(database)
    record = header_record(identity.genesis_hash, block.header)
    restoring = asyncio.create_task(
        asyncio.to_thread(
            store.restore,
            genesis,
            block.header,
            block.signature,
            hash_struct(record),
            stream.codes(),
            stream.accounts(),
            stream.slots(),
            stream.settle,
        )
    )
    try:
        await asyncio.shield(restoring)
    finally:
        stream.stopping.set()
        await asyncio.wait([restoring])
        store.close()
    return Imported(identity.genesis_hash, 0, 0, block.header.number, is_state=True)


class _Stopped(Refused):
    """Somebody asked to stop; the transaction is taken back."""


class _StateStream:
    """The records of a state as three iterables that are used up one after another, checked on the way."""

    def __init__(self, records: Iterator[Record], block: SealedBlock, report: Report) -> None:
        self._records = records
        self._block = block
        self._report = report
        self._record = next(records, None)
        self._commitment = StateCommitment()
        self._known_codes = {EMPTY_CODE_HASH}
        self._done = 0
        self.stopping = threading.Event()

    def codes(self) -> Iterator[tuple[bytes, bytes]]:
        """Every code with its hash."""
        rising = Rising("codes")
        for body in self._bodies(Kind.CODES):
            for code in archive.decode_codes(body):
                code_hash = keccak256(code)
                rising.see(code_hash)
                self._known_codes.add(code_hash)
                yield code_hash, code

    def accounts(self) -> Iterator[tuple[Address, int, int, bytes]]:
        """Every account; its code stands among the codes."""
        rising = Rising("accounts")
        for body in self._bodies(Kind.ACCOUNTS):
            rows = list(archive.decode_accounts(body))
            self._commitment = self._commitment.added(encode_account_code_entry(*row) for row in rows)
            for row in rows:
                rising.see(row[0])
                if row[3] not in self._known_codes:
                    raise InvalidArchive(
                        f"account {encode_hex(row[0])} has code {encode_hex(row[3])}, which is missing"
                    )
                yield row

    def slots(self) -> Iterator[tuple[Address, int, int]]:
        """Every word of storage."""
        rising = Rising("slots")
        for body in self._bodies(Kind.SLOTS):
            rows = list(archive.decode_slots(body))
            self._commitment = self._commitment.added(encode_slot_entry(*row) for row in rows)
            for address, slot, value in rows:
                rising.see(address + slot.to_bytes(32))
                yield address, slot, value

    def settle(self) -> StateCommitment:
        """The commitment of all that came, which is the signed header's."""
        if self._record is not None:
            raise InvalidArchive(f"{self._record.kind.name} record stands where the state has ended")
        header = self._block.header
        if (found := self._commitment.digest()) != header.state_commitment:
            raise DivergentBlock(
                header.number, "state_commitment", encode_hex(header.state_commitment), encode_hex(found)
            )
        return self._commitment

    def _bodies(self, kind: Kind) -> Iterator[bytes]:
        while self._record is not None and self._record.kind is kind:
            if self.stopping.is_set():
                raise _Stopped("the import was stopped")
            yield self._record.body
            self._done += len(self._record.body)
            self._report(Step("bytes of state", self._done, 0))
            self._record = next(self._records, None)
