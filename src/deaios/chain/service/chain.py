"""One chain that runs: admits transactions, makes blocks, keeps them, signs their headers.

Order of promises: a transaction is on disk before its hash is returned; a block is on disk, with the one header digest
that may ever be signed at its height, before anyone can read it and before the signature exists. A failed write stops
the service; memory never runs ahead of what was acknowledged. The engine and the writer are each used by one task at a
time, in a thread of the pool that the caller gave.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from deaios.chain.blocks import Block, BlockHeader, Receipt, header_record, next_base_fee
from deaios.chain.builder import BuiltBlock, build_block, next_context
from deaios.chain.commitment import StateCommitment
from deaios.chain.evm import BlockContext, Evm, InvalidMessage, Message, Outcome, State
from deaios.chain.fees import FeeRecords
from deaios.chain.genesis import Genesis, build_genesis_changes, build_genesis_commitment, build_genesis_header
from deaios.chain.opcodes import explain_refusal, find_forbidden_opcode
from deaios.chain.pool import InvalidForPool, Pool, PoolLimits, RefusedByPool, Waiting
from deaios.chain.selftest import run_selftest
from deaios.chain.store import ChainStore
from deaios.chain.strict import StrictEvm
from deaios.ledger.eip712 import encode_json, hash_struct, sign_struct
from deaios.ledger.structs import Header, header_domain
from deaios.ledger.transactions import Transaction, decode_transaction, recover_sender, validate_chain_id
from deaios.primitives.encoding import Json, encode_hex
from deaios.primitives.errors import ConfigError, DeaiosError, Unavailable
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

T = TypeVar("T")
Deadline = Callable[[], Awaitable[int]]

RECENT_BLOCKS_MAX = 256
"""Blocks kept in memory for receipts and reads; older ones come from disk."""
LOADED_BLOCKS_MAX = 64
"""Blocks read into memory at start; fee history begins with them."""
DEADLINE_RETRY_S = 1.0
"""How soon an unanswered deadline is asked for again while nothing else happens."""
_log = get_logger("chain")


@dataclass(frozen=True, slots=True)
class Limits:
    """Pace and bounds of one chain.

    Attributes:
        block_ms: least time between blocks.
        gather_ms: how long a first transaction waits for others. Above 250 ms, because ethers 6 caches nonces that
            long and would use one twice after an inclusion that is too quick.
    """

    block_ms: int = 500
    gather_ms: int = 260
    pool: PoolLimits = field(default_factory=PoolLimits)


class ChainService:
    """See the module. Make one with `start`, keep `run` running, end with `close`."""

    def __init__(
        self,
        store: ChainStore,
        genesis: Genesis,
        key: PrivateKey,
        executor: Executor,
        clock: Clock,
        deadline: Deadline | None,
        limits: Limits,
    ) -> None:
        """Internal; use `start`."""
        self.genesis = genesis
        self.chain_id = genesis.chain_id
        self.limits = limits
        self.state = State()
        self.pool = Pool(limits.pool, genesis.gas_limit)
        self.fees = FeeRecords()
        self.recent: OrderedDict[int, Block] = OrderedDict()
        self._recent_places: dict[bytes, tuple[int, int]] = {}
        self._recent_hashes: dict[bytes, int] = {}
        self._store = store
        self._key = key
        self._executor = executor
        self._clock = clock
        self._deadline = deadline
        self._commitment = StateCommitment()
        self._evm: Evm = StrictEvm(genesis.chain_id, genesis.gas_limit)
        self._engine_lock = asyncio.Lock()
        self._writer_lock = asyncio.Lock()
        self._reader_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._arrived: list[tuple[int, Waiting]] = []
        self._replaced: list[bytes] = []
        self._flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flush_wanted = asyncio.Event()
        self._arrivals = 0
        self._genesis_hash = ZERO32
        self._beat_until = 0
        self._is_deadline_stale = True
        self._tasks: set[asyncio.Task[Any]] = set()  # Any: results of several types

    @classmethod
    async def start(
        cls,
        path: Path,
        key: PrivateKey,
        genesis: Genesis | None,
        *,
        executor: Executor,
        clock: Clock,
        deadline: Deadline | None = None,
        limits: Limits | None = None,
    ) -> Self:
        """Open or create a chain and bring it to where it was.

        Args:
            path: the SQLite file.
            key: the operator's; its address must be the genesis operator.
            genesis: wanted for a new file; for an existing one None, or the same.
            executor: threads for signatures, the engine and the disk; at least two.
            clock: block times and pace.
            deadline: says until which timestamp empty blocks are wanted, 0 for none; asked again after every block
                that holds a transaction.
            limits: pace and bounds.

        Raises:
            ConfigError: no genesis for a new file, another genesis or operator for an existing one.
            UnavailableEngine: the installed wheel fails its self-test.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(executor, run_selftest)
        store = await loop.run_in_executor(executor, ChainStore, path)
        with ExitStack() as stack:
            stack.callback(store.close)
            kept = await loop.run_in_executor(executor, _settle_genesis, store, genesis, path)
            if kept.operator != key.address:
                raise ConfigError(
                    f"{path}: the operator is {encode_hex(kept.operator)}, the key given is {encode_hex(key.address)}; "
                    "use the key that made this chain"
                )
            service = cls(store, kept, key, executor, clock, deadline, limits or Limits())
            await service._load()
            stack.pop_all()
        return service

    @property
    def head(self) -> BlockHeader:
        """The newest block's header."""
        return self.recent[next(reversed(self.recent))].header

    @property
    def genesis_hash(self) -> bytes:
        """The network id."""
        return self._genesis_hash

    async def run(self) -> None:
        """Produce blocks and journal admissions until cancelled, or until the disk or the engine fails.

        Raises:
            Unavailable: a write failed; restart to go on from what is on disk.
        """
        tasks = [asyncio.create_task(self._produce()), asyncio.create_task(self._flush_forever())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not self._flushed.done():
                self._flushed.set_exception(Unavailable("the chain is stopping; send the transaction again"))
                self._flushed.exception()

    async def close(self) -> None:
        """Wait for work in threads and close the file."""
        while self._tasks:  # bounded: nothing adds work after the HTTP server and `run` have ended
            await asyncio.wait(self._tasks)
        self._store.close()

    # Admission

    async def submit(self, raws: Sequence[bytes]) -> list[bytes | DeaiosError]:
        """Admit raw transactions, in order; each gives its hash or its error. Hashes are durable on return."""
        decoded = await self._in_thread(None, lambda: [self._decode(raw) for raw in raws])
        results: list[bytes | DeaiosError] = []
        for item in decoded:
            if isinstance(item, DeaiosError):
                results.append(item)
                continue
            try:
                results.append(await self._admit(*item))
            except DeaiosError as error:
                results.append(error)
        if any(isinstance(result, bytes) for result in results):
            self._flush_wanted.set()
            await asyncio.shield(self._flushed)
        return results

    def _decode(self, raw: bytes) -> tuple[Transaction, Address] | DeaiosError:
        try:
            transaction = decode_transaction(raw)
            validate_chain_id(transaction, self.chain_id)
            return transaction, recover_sender(transaction)
        except DeaiosError as error:
            return error

    async def _admit(self, transaction: Transaction, sender: Address) -> bytes:
        if transaction.to is None:
            await self._refuse_inexact(transaction, sender)
        replaced = self.pool.add(transaction, sender, self.state, next_base_fee(self.head))
        waiting = self.pool.get(transaction.hash)
        assert waiting is not None, "it was just added"
        self._arrivals += 1
        self._arrived.append((self._arrivals, waiting))
        if replaced is not None:
            self._replaced.append(replaced.transaction.hash)
        self._wake.set()
        return transaction.hash

    async def _refuse_inexact(self, transaction: Transaction, sender: Address) -> None:
        """Refuse a deployment that would leave code behind, or run code, that the engine cannot run exactly."""
        if opcode := find_forbidden_opcode(transaction.data):
            raise RefusedByPool(explain_refusal(opcode))
        message = Message(sender, None, transaction.data, transaction.value, transaction.gas)
        with contextlib.suppress(InvalidMessage):  # the pool says the same in geth's words
            outcome = await self.call(message)
            if outcome.is_refused:
                raise RefusedByPool(outcome.reason)

    async def _flush_forever(self) -> None:
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted.clear()
            arrived, self._arrived = self._arrived, []
            replaced, self._replaced = self._replaced, []
            flushed, self._flushed = self._flushed, asyncio.get_running_loop().create_future()
            try:
                await self._in_thread(self._writer_lock, partial(self._journal, arrived, replaced))
            except Unavailable as error:
                flushed.set_exception(error)
                flushed.exception()
                raise
            flushed.set_result(None)

    def _journal(self, arrived: list[tuple[int, Waiting]], replaced: list[bytes]) -> None:
        """Runs with the writer's lock: what a block has taken or another transaction replaced is not written."""
        rows = [
            (number, item.transaction.hash, item.transaction.raw, item.sender)
            for number, item in arrived
            if self.pool.get(item.transaction.hash) is not None
        ]
        self._store.put_waiting(rows, replaced)

    # Execution

    def pending_context(self) -> BlockContext:
        """The block that a transaction sent now would land in: what calls and estimates run against."""
        return next_context(self.head, self._clock.now_ms() // 1000)

    async def call(self, message: Message) -> Outcome:
        """Run a message on the newest state and forget it."""
        return await self.with_engine(lambda run: run(message))

    async def with_engine(self, work: Callable[[Callable[[Message], Outcome]], T]) -> T:
        """Run several calls on one and the same state, in a thread.

        Args:
            work: gets a function that runs one message.
        """

        def job() -> T:
            context = self.pending_context()
            return work(lambda message: self._evm.call(context, message))

        return await self._in_thread(self._engine_lock, job)

    # Blocks

    async def _produce(self) -> None:
        last_s = self._clock.monotonic_s() - self.limits.block_ms / 1000
        while True:
            await self._ask_deadline()
            is_beating = self.head.timestamp <= self._beat_until
            if not is_beating and not self.pool.has_work(self.state):
                if not await self._wait_for_work():
                    continue
                await self._clock.sleep(self.limits.gather_ms / 1000)
            if (left := last_s + self.limits.block_ms / 1000 - self._clock.monotonic_s()) > 0:
                await self._clock.sleep(left)
            last_s = self._clock.monotonic_s()
            if is_beating or self.pool.has_work(self.state):
                await self._shielded(self._make_block())

    async def _wait_for_work(self) -> bool:
        """Sleep until a transaction arrives; False when it is time to ask for the deadline again instead."""
        self._wake.clear()
        is_asking = self._deadline is not None and self._is_deadline_stale
        try:
            async with asyncio.timeout(DEADLINE_RETRY_S if is_asking else None):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _ask_deadline(self) -> None:
        if self._deadline is None or not self._is_deadline_stale:
            return
        try:
            self._beat_until = await self._deadline()
            self._is_deadline_stale = False
        except DeaiosError as error:
            _log.warning("deadline unknown, asked again soon", error=str(error))

    async def _make_block(self) -> None:
        parent = self.head
        now_s = self._clock.now_ms() // 1000
        candidates = self.pool.candidates(self.state, next_base_fee(parent))
        async with self._engine_lock:
            built = await self._run_thread(
                lambda: build_block(self._evm, self.state, self._commitment, parent, candidates, now_s)
            )
            header = header_record(self.genesis_hash, built.block.header)
            digest = hash_struct(header)
            finished = [receipt.transaction.hash for receipt in built.block.receipts]
            finished += [waiting.transaction.hash for waiting, _ in built.dropped]
            async with self._writer_lock:
                await self._run_thread(
                    lambda: self._store.append(built.block, built.changes, built.commitment, digest, finished)
                )
                self._take_over(built)
        signature = sign_struct(self._key, header_domain(self.chain_id), header)
        await self._in_thread(self._writer_lock, lambda: self._store.put_signature(header.height, signature))

    def _take_over(self, built: BuiltBlock) -> None:
        """Show a durable block to readers; runs without a break on the event loop."""
        self.state.apply(built.changes)
        self._commitment = built.commitment
        self._remember(built.block)
        for waiting, reason in built.dropped:
            _log.warning("transaction dropped", hash=encode_hex(waiting.transaction.hash), reason=reason)
            self.pool.remove(waiting.transaction.hash)
        for receipt in built.block.receipts:
            self.pool.settle(receipt.sender, self.state.account(receipt.sender).nonce)
        if built.block.receipts:
            self._is_deadline_stale = True

    def _remember(self, block: Block) -> None:
        number = block.header.number
        self.recent[number] = block
        self._recent_hashes[block.header.hash] = number
        self._recent_places |= {receipt.transaction.hash: (number, receipt.index) for receipt in block.receipts}
        self.fees.append(block)
        if len(self.recent) > RECENT_BLOCKS_MAX:
            _, old = self.recent.popitem(last=False)
            del self._recent_hashes[old.header.hash]
            for receipt in old.receipts:
                del self._recent_places[receipt.transaction.hash]

    # Reads

    async def block_number(self, block_hash: bytes) -> int | None:
        """The height of a block hash."""
        if (number := self._recent_hashes.get(block_hash)) is not None:
            return number
        number = await self.read(lambda store: store.fetch_number(block_hash))
        return None if number is None or number > self.head.number else number

    async def block(self, number: int) -> Block | None:
        """A block by height."""
        if (block := self.recent.get(number)) is not None or number > self.head.number:
            return block
        return await self.read(lambda store: store.fetch_block(number))

    async def receipt(self, transaction_hash: bytes) -> tuple[BlockHeader, Receipt] | None:
        """An included transaction's receipt and its block's header."""
        if place := self._recent_places.get(transaction_hash):
            block = self.recent[place[0]]
            return block.header, block.receipts[place[1]]
        found = await self.read(lambda store: store.fetch_receipt(transaction_hash))
        # A block is on disk a moment before it is the head; readers must not see it in one place and not in another.
        return None if found is None or found[0].number > self.head.number else found

    async def signed_header(self, number: int) -> dict[str, Json] | None:
        """The signed record of a block: header, signature, and the hash of the Ethereum-shaped block."""
        block = await self.block(number)
        if block is None:
            return None
        signature = await self.read(lambda store: store.fetch_signature(number))
        record: Header = header_record(self.genesis_hash, block.header)
        return {
            "header": encode_json(record),
            "signature": None if signature is None else encode_hex(signature),
            "operator": encode_hex(self.genesis.operator),
            "blockHash": encode_hex(block.header.hash),
        }

    async def read(self, query: Callable[[ChainStore], T]) -> T:
        """Run a query on the reading connection, in a thread."""
        return await self._in_thread(self._reader_lock, lambda: query(self._store))

    # Start

    async def _load(self) -> None:
        await self._run_thread(self._load_files)
        for height, digest in self._store.unsigned_heights():
            await self._sign_again(height, digest)

    def _load_files(self) -> None:
        store = self._store
        self.state, self._commitment = store.load_state()
        self._evm.load(self.state)
        head = store.load_head()
        for number in range(max(0, head.number - LOADED_BLOCKS_MAX + 1), head.number + 1):
            block = store.fetch_block(number)
            assert block is not None, "heights have no gaps"
            self._remember(block)
        if head.state_commitment != self._commitment.digest():
            raise ConfigError(f"{store.path}: state and last header disagree; restore a copy of the file")
        first = store.fetch_header(0)
        assert first is not None, "a chain has a block 0"
        self._genesis_hash = first.hash
        self._reload_waiting()

    def _reload_waiting(self) -> None:
        """Put journalled transactions back into the pool; what the chain has overtaken is forgotten."""
        stale = []
        for raw, sender in self._store.load_waiting():
            transaction = decode_transaction(raw)
            try:
                # The fee cap was above the base fee on arrival; a base fee that rose since falls again.
                self.pool.add(transaction, sender, self.state, 0)
            except (InvalidForPool, RefusedByPool) as error:
                _log.info("waiting transaction forgotten", hash=encode_hex(transaction.hash), reason=str(error))
                stale.append(transaction.hash)
        if stale:
            self._store.delete_waiting(stale)
        self._arrivals = len(self.pool)

    async def _sign_again(self, height: int, digest: bytes) -> None:
        """Sign what a crash left promised but unsigned: the same header, so nothing is signed twice differently."""
        block = await self.block(height)
        assert block is not None, "a promised header belongs to a stored block"
        header = header_record(self.genesis_hash, block.header)
        if hash_struct(header) != digest:
            raise ConfigError(f"{self._store.path}: height {height} was promised another header; restore a copy")
        signature = sign_struct(self._key, header_domain(self.chain_id), header)
        await self._in_thread(self._writer_lock, lambda: self._store.put_signature(height, signature))

    # Threads

    async def _run_thread(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    async def _in_thread(self, lock: asyncio.Lock | None, job: Callable[[], T]) -> T:
        """Run a job in a thread; a caller that goes away does not free the lock before the thread is done."""

        async def locked() -> T:
            if lock is None:
                return await self._run_thread(job)
            async with lock:
                return await self._run_thread(job)

        return await self._shielded(locked())

    async def _shielded(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


def _settle_genesis(store: ChainStore, wanted: Genesis | None, path: Path) -> Genesis:
    """The genesis of the file; a new file is given `wanted`."""
    kept = store.load_genesis()
    if kept is None:
        if wanted is None:
            raise ConfigError(f"{path} holds no chain yet; give a genesis")
        changes = build_genesis_changes(wanted)
        commitment = build_genesis_commitment(changes)
        header = build_genesis_header(wanted, commitment)
        store.create(wanted, header, changes, commitment, hash_struct(header_record(header.hash, header)))
        return wanted
    if wanted is not None and wanted != kept:
        raise ConfigError(f"{path} holds a chain with another genesis; use another --dir, or start it as it was made")
    return kept
