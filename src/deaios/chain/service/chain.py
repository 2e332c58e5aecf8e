"""One chain that runs: admits transactions, makes blocks, keeps them, signs their headers.

Order of promises: a transaction is on disk before its hash is returned; a block is on disk, with the one header digest
that may ever be signed at its height, before anyone can read it and before the signature exists. A failed write stops
the service; memory never runs ahead of what was acknowledged. The engine and the writer are each used by one task at a
time, in a thread of the pool that the caller gave.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar

from deaios.chain.blocks import Block, BlockHeader, Receipt, header_record, next_base_fee
from deaios.chain.builder import BuiltBlock, build_block, next_context
from deaios.chain.commitment import StateCommitment
from deaios.chain.consensus import (
    DivergentBlock,
    Identity,
    SealedBlock,
    finalise_block,
    validate_block,
    validate_same_header,
)
from deaios.chain.evm import BlockContext, Evm, Message, Outcome, State
from deaios.chain.fees import FeeRecords
from deaios.chain.genesis import (
    Genesis,
    compute_genesis_hash,
)
from deaios.chain.pool import Displaced, Pool, RefusedByPool
from deaios.chain.selftest import run_selftest
from deaios.chain.service.admission import Admission
from deaios.chain.service.founding import settle_genesis
from deaios.chain.service.pace import Deadline, Limits, Pace
from deaios.chain.service.threads import Threads
from deaios.chain.service.watermark import Watermark
from deaios.chain.store import ChainStore
from deaios.chain.strict import StrictEvm
from deaios.ledger.eip712 import encode_json, hash_struct, sign_struct
from deaios.ledger.structs import Header, header_domain
from deaios.primitives.encoding import Json, encode_hex
from deaios.primitives.errors import ConfigError, DeaiosError, Refused
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

T = TypeVar("T")
Forward = Callable[[Sequence[bytes]], Awaitable[list[bytes | DeaiosError]]]

RECENT_BLOCKS_MAX = 256
"""Blocks kept in memory for receipts and reads; older ones come from disk."""
RECENT_TRANSACTIONS_MAX = 50_000
"""In those blocks together: about 100 MiB."""
LOADED_BLOCKS_MAX = 64
"""Blocks read into memory at start; fee history begins with them."""
_log = get_logger("chain")


class RefusedPruned(Refused):
    """A block whose transactions and logs are no longer, or never were, kept here."""


class ChainService:
    """See the module. Make one with `start`, keep `run` running, end with `close`."""

    def __init__(
        self,
        store: ChainStore,
        genesis: Genesis,
        key: PrivateKey | None,
        executor: Executor,
        clock: Clock,
        deadline: Deadline | None,
        limits: Limits,
        forward: Forward | None,
    ) -> None:
        """Internal; use `start`."""
        self.genesis = genesis
        self.chain_id = genesis.chain_id
        self.limits = limits
        self.state = State()
        self.pool = Pool(limits.pool, genesis.gas_limit)
        self.fees = FeeRecords()
        self.oldest_block = 0
        self.sealed = Watermark()
        self.recent: OrderedDict[int, Block] = OrderedDict()
        self._recent_places: dict[bytes, tuple[int, int]] = {}
        self._recent_hashes: dict[bytes, int] = {}
        self._store = store
        self._key = key
        self._clock = clock
        self._forward = forward
        self._commitment = StateCommitment()
        self._evm: Evm = StrictEvm(genesis.chain_id, genesis.gas_limit)
        self._engine_lock = asyncio.Lock()
        self._writer_lock = asyncio.Lock()
        self._reader_lock = asyncio.Lock()
        self.threads = Threads(executor)
        self.admission = Admission(
            store,
            self.pool,
            genesis.chain_id,
            self.threads,
            self._writer_lock,
            is_journalling=key is not None,
            slots_max=limits.slots_max,
        )
        self.listeners = self.admission.listeners
        self._genesis_hash = ZERO32
        self._pace = Pace(limits, clock, deadline, self.admission.wake, self.pool)

    @classmethod
    async def start(
        cls,
        path: Path,
        key: PrivateKey | None,
        genesis: Genesis | None,
        *,
        executor: Executor,
        clock: Clock,
        deadline: Deadline | None = None,
        limits: Limits | None = None,
        forward: Forward | None = None,
    ) -> Self:
        """Open or create a chain and bring it to where it was.

        Args:
            path: the SQLite file.
            key: the operator's; its address must be the genesis operator. None makes a follower, which takes blocks
                by `append` and makes none.
            genesis: wanted for a new file; for an existing one None, or the same.
            executor: threads for signatures, the engine and the disk; at least two.
            clock: block times and pace.
            deadline: says until which timestamp empty blocks are wanted, 0 for none; asked again after every block
                that holds a transaction.
            limits: pace and bounds.
            forward: where a follower sends transactions; without one it refuses them.

        Raises:
            ConfigError: no genesis for a new file, another genesis or operator for an existing one.
            UnavailableEngine: the installed wheel fails its self-test.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(executor, run_selftest)
        store = await loop.run_in_executor(executor, ChainStore, path)
        with ExitStack() as stack:
            stack.callback(store.close)
            kept = await loop.run_in_executor(executor, settle_genesis, store, genesis, path)
            if key is not None and kept.operator != key.address:
                raise ConfigError(
                    f"{path}: the operator is {encode_hex(kept.operator)}, the key given is {encode_hex(key.address)}; "
                    "use the key that made this chain"
                )
            service = cls(store, kept, key, executor, clock, deadline, limits or Limits(), forward)
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

    @property
    def identity(self) -> Identity:
        """What tells this chain from another."""
        return Identity(self._genesis_hash, self.chain_id, self.genesis.operator)

    async def run(self) -> None:
        """Produce blocks and journal admissions until cancelled, or until the disk or the engine fails.

        Raises:
            Unavailable: a write failed; restart to go on from what is on disk.
        """
        tasks = [asyncio.create_task(self._produce()), asyncio.create_task(self.admission.flush_forever())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.admission.stop()

    async def close(self) -> None:
        """Wait for work in threads and close the file."""
        await self.threads.drain()
        self._store.close()

    # Admission

    async def submit(self, raws: Sequence[bytes]) -> list[bytes | DeaiosError]:
        """Admit raw transactions, in order; each gives its hash or its error. Hashes are durable on return."""
        if self._key is None:
            return await self._submit_elsewhere(raws)
        return await self.admission.submit(raws, self.state, lambda: self.head, self.call)

    async def _submit_elsewhere(self, raws: Sequence[bytes]) -> list[bytes | DeaiosError]:
        """Forward raw transactions, and show those that were admitted as waiting here too."""
        if self._forward is None:
            return [RefusedByPool("this node only follows; send transactions to the chain that it follows")] * len(raws)
        results = await self._forward(raws)
        admitted = [raw for raw, result in zip(raws, results, strict=True) if isinstance(result, bytes)]
        for item in await self.admission.decode(admitted):
            self.admission.show(item, self.state)
        return results

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
        return await self.inspect(lambda evm, _state, context: work(lambda message: evm.call(context, message)))

    async def inspect(self, work: Callable[[Evm, State, BlockContext], T]) -> T:
        """Run work on the engine itself, in a thread, between two blocks.

        Args:
            work: gets the engine, the newest state and the next block's context; what it puts it takes away again.
        """
        return await self.threads.run_locked(
            self._engine_lock, lambda: work(self._evm, self.state, self.pending_context())
        )

    # Blocks

    async def _produce(self) -> None:
        while True:
            if await self._pace.wait_until_due(self.state, self.head):
                await self.threads.shield(self._make_block())

    def mine(self, blocks: int) -> int:
        """Make so many blocks at the usual pace, whether or not anything waits; returns the last one's height."""
        self._pace.mine_until = max(self._pace.mine_until, self.head.number + blocks)
        self._pace.wake.set()
        return self.head.number + blocks

    async def _make_block(self) -> None:
        parent = self.head
        now_s = self._clock.now_ms() // 1000
        candidates = self.pool.candidates(self.state, next_base_fee(parent))
        async with self._engine_lock:
            built = await self.threads.run(
                lambda: build_block(self._evm, self.state, self._commitment, parent, candidates, now_s)
            )
            header = header_record(self.genesis_hash, built.block.header)
            digest = hash_struct(header)
            async with self._writer_lock:
                finished, returned = self._find_finished(built)
                await self.threads.run(
                    lambda: self._store.append(
                        built.block, built.changes, built.commitment, digest, finished, returned=returned
                    )
                )
                self._take_over(built)
        await self._sign(header)
        await self._prune()

    async def _prune(self) -> None:
        """Forget transactions and logs of blocks beyond those that are kept; a few each time."""
        if self.limits.keep_blocks:
            before = self.head.number + 1 - self.limits.keep_blocks
            if self._store.oldest < before:
                await self.threads.run_locked(self._writer_lock, lambda: self._store.prune(before))
                self.oldest_block = self._store.oldest

    def _find_finished(self, built: BuiltBlock) -> tuple[list[int], list[bytes]]:
        """Arrivals that a block ends, and hashes in it that the pool gave up while it was built."""
        finished, returned = list[int](), list[bytes]()
        for receipt in built.block.receipts:
            if waiting := self.pool.get(receipt.transaction.hash):
                finished.append(waiting.arrival)
            else:
                returned.append(receipt.transaction.hash)
        return finished, returned

    async def _sign(self, header: Header) -> None:
        assert self._key is not None, "a follower makes no blocks"
        signature = sign_struct(self._key, header_domain(self.chain_id), header)
        await self.threads.run_locked(self._writer_lock, lambda: self._store.put_signature(header.height, signature))
        self.sealed.raise_to(header.height)

    async def append(self, block: SealedBlock, senders: Sequence[Address | None]) -> None:
        """Follow: run the next block of another node, compare, make it durable, show it to readers.

        Args:
            block: its successor to the head.
            senders: recovered from its transactions, in order; None where a signature recovers to no key.

        Raises:
            DivergentBlock: it is not what its parent and transactions give. The engine may have gone ahead: stop.
        """
        parent, identity = self.head, self.identity

        def job() -> BuiltBlock:
            known = validate_block(identity, self.state, parent, block, senders)
            return finalise_block(self._evm, self.state, self._commitment, parent, block, known)

        async def work() -> None:
            async with self._engine_lock:
                built = await self.threads.run(job)
                digest = hash_struct(header_record(identity.genesis_hash, built.block.header))
                async with self._writer_lock:
                    await self.threads.run(
                        lambda: self._store.append(
                            built.block, built.changes, built.commitment, digest, (), block.signature
                        )
                    )
                    self._take_over(built)
            self.sealed.raise_to(built.block.header.number)

        await self.threads.shield(work())

    async def confirm(self, block: SealedBlock) -> None:
        """Follow: take the operator's signature over a block that is here without one, such as block 0.

        Raises:
            DivergentBlock: another block stands here at that height, or the signature is not the operator's.
        """
        header = await self.header(block.header.number)
        if header is None:
            raise DivergentBlock(block.header.number, "number", str(block.header.number), "a height that is kept here")
        validate_same_header(self.identity, header, block)
        await self.threads.run_locked(
            self._writer_lock, lambda: self._store.put_signature(header.number, block.signature)
        )
        self.sealed.raise_to(header.number)

    def _take_over(self, built: BuiltBlock) -> None:
        """Show a durable block to readers; runs without a break on the event loop."""
        self.state.apply(built.changes)
        self._commitment = built.commitment
        self._remember(built.block)
        for waiting, reason in built.dropped:
            if self.pool.remove(waiting.transaction.hash):
                self.admission.give_up(Displaced(waiting, f"invalid when its block was made: {reason}"))
        for receipt in built.block.receipts:
            self.pool.remove(receipt.transaction.hash)
        for sender in {receipt.sender for receipt in built.block.receipts}:
            nonce = self.state.account(sender).nonce
            for waiting in self.pool.settle(sender, nonce):
                self.admission.give_up(Displaced(waiting, f"its nonce was used by another: next nonce {nonce}"))
        if built.block.receipts:
            self._pace.is_deadline_stale = True
        self.listeners.tell_block(built.block)

    def _remember(self, block: Block) -> None:
        number = block.header.number
        self.recent[number] = block
        self._recent_hashes[block.header.hash] = number
        self._recent_places |= {receipt.transaction.hash: (number, receipt.index) for receipt in block.receipts}
        self.fees.append(block)
        while len(self.recent) > RECENT_BLOCKS_MAX or (
            len(self._recent_places) > RECENT_TRANSACTIONS_MAX and len(self.recent) > 1
        ):  # bounded: takes one away each time
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
        """A block by height.

        Raises:
            RefusedPruned: its transactions and logs are not kept here.
        """
        if number < self.oldest_block:
            raise RefusedPruned(
                f"pruned history unavailable: block {number} asked, this node keeps blocks from {self.oldest_block} on"
            )
        if (block := self.recent.get(number)) is not None or number > self.head.number:
            return block
        return await self.read(lambda store: store.fetch_block(number))

    async def header(self, number: int) -> BlockHeader | None:
        """A block's header by height; headers outlive their bodies."""
        if (block := self.recent.get(number)) is not None:
            return block.header
        return None if number > self.head.number else await self.read(lambda store: store.fetch_header(number))

    async def receipt(self, transaction_hash: bytes) -> tuple[BlockHeader, Receipt] | None:
        """An included transaction's receipt and its block's header."""
        if place := self._recent_places.get(transaction_hash):
            block = self.recent[place[0]]
            return block.header, block.receipts[place[1]]
        found = await self.read(lambda store: store.fetch_receipt(transaction_hash))
        # A block is on disk a moment before it is the head; readers must not see it in one place and not in another.
        return None if found is None or found[0].number > self.head.number else found

    async def dropped(self, transaction_hash: bytes) -> str | None:
        """Why an acknowledged transaction will not run: replaced, evicted, found invalid. None where none is known."""
        if self.pool.get(transaction_hash) is not None or await self.receipt(transaction_hash) is not None:
            return None
        return await self.read(lambda store: store.fetch_gone(transaction_hash))

    async def signed_header(self, number: int) -> dict[str, Json] | None:
        """The signed record of a block: header, signature, and the hash of the Ethereum-shaped block."""
        header = await self.header(number)
        if header is None:
            return None
        signature = await self.read(lambda store: store.fetch_signature(number))
        record: Header = header_record(self.genesis_hash, header)
        return {
            "header": encode_json(record),
            "signature": None if signature is None else encode_hex(signature),
            "operator": encode_hex(self.genesis.operator),
            "blockHash": encode_hex(header.hash),
        }

    async def read(self, query: Callable[[ChainStore], T]) -> T:
        """Run a query on the reading connection, in a thread."""
        return await self.threads.run_locked(self._reader_lock, lambda: query(self._store))

    # Start

    async def _load(self) -> None:
        await self.threads.run(self._load_files)
        if self._key is not None:
            for height, digest in self._store.unsigned_heights():
                await self._sign_again(height, digest)
            self.sealed.raise_to(self.head.number)
        else:
            unsigned = self._store.unsigned_heights()
            self.sealed.raise_to(unsigned[0][0] - 1 if unsigned else self.head.number)

    def _load_files(self) -> None:
        store = self._store
        self.state, self._commitment = store.load_state()
        self._evm.load(self.state)
        head, self.oldest_block = store.fetch_head(), store.oldest_block()
        assert head is not None, "a chain has a block 0"
        if head.number < self.oldest_block:
            # The file began with the state after this block; what was in it, nobody here knows.
            self._remember(Block(head, ()))
        for number in range(max(self.oldest_block, head.number - LOADED_BLOCKS_MAX + 1), head.number + 1):
            block = store.fetch_block(number)
            assert block is not None, "heights have no gaps"
            self._remember(block)
        if head.state_commitment != self._commitment.digest():
            raise ConfigError(f"{store.path}: state and last header disagree; restore a copy of the file")
        self._genesis_hash = compute_genesis_hash(self.genesis)
        self.admission.reload(self.state)

    async def _sign_again(self, height: int, digest: bytes) -> None:
        """Sign what a crash left promised but unsigned: the same header, so nothing is signed twice differently."""
        block = await self.block(height)
        assert block is not None, "a promised header belongs to a stored block"
        header = header_record(self.genesis_hash, block.header)
        if hash_struct(header) != digest:
            raise ConfigError(f"{self._store.path}: height {height} was promised another header; restore a copy")
        await self._sign(header)
