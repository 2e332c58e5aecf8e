"""How transactions come in: decoded and recovered in threads, taken by the pool, journalled, then acknowledged.

A hash is returned only after its transaction is on disk. What the pool gives up again (replaced, evicted, found
invalid) is written down with the reason before whoever displaced it is acknowledged, so that nothing acknowledged
disappears without a record. Requests that arrive together share one journey to a thread and one write.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from deaios.chain.blocks import BlockHeader, next_base_fee
from deaios.chain.evm import InvalidMessage, Message, Outcome, State
from deaios.chain.opcodes import explain_refusal, find_forbidden_opcode
from deaios.chain.pool import Displaced, InvalidForPool, Pool, RefusedByPool, Waiting
from deaios.chain.service.news import Listeners
from deaios.chain.service.threads import Threads
from deaios.chain.store import ChainStore
from deaios.chain.stored import Gone
from deaios.ledger.transactions import Transaction, decode_transaction, recover_sender, validate_chain_id
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import DeaiosError, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.logs import get_logger

Decoded = tuple[Transaction, Address]

INLINE_MAX = 1
"""So many transactions of one round of the event loop are recovered on it: 60 us each, less than a way to a thread."""
CHUNK_MIN = 8
"""Fewer in a thread of their own would cost more in hand-over than they gain."""
CORES = min(os.cpu_count() or 1, 8)
_log = get_logger("chain")


class Admission:
    """The way in to one chain's pool."""

    def __init__(
        self,
        store: ChainStore,
        pool: Pool,
        chain_id: int,
        threads: Threads,
        writer: asyncio.Lock,
        *,
        is_journalling: bool,
        slots_max: int,
    ) -> None:
        """Make an empty one.

        Args:
            store: where arrivals are journalled.
            pool: what takes them.
            chain_id: they must be signed for.
            threads: for signatures and the disk.
            writer: the lock around the store's writing connection.
            is_journalling: False on a follower, whose pool only mirrors.
            slots_max: storage words at which nothing more is admitted.
        """
        self.wake = asyncio.Event()
        self.listeners = Listeners()
        self._store = store
        self._pool = pool
        self._chain_id = chain_id
        self._threads = threads
        self._writer = writer
        self._is_journalling = is_journalling
        self._slots_max = slots_max
        self._undecoded: list[tuple[Sequence[bytes], asyncio.Future[list[Decoded | DeaiosError]]]] = []
        self._arrived: list[Waiting] = []
        self._gone: list[Gone] = []
        self._flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flush_wanted = asyncio.Event()

    async def submit(
        self,
        raws: Sequence[bytes],
        state: State,
        head: Callable[[], BlockHeader],
        call: Callable[[Message], Awaitable[Outcome]],
    ) -> list[bytes | DeaiosError]:
        """Admit raw transactions, in order; each gives its hash or its error. Hashes are durable on return.

        Args:
            raws: signed bytes.
            state: of the newest block; the same object while it changes.
            head: the newest block's header.
            call: runs a deployment once, to see whether it is refused.
        """
        results: list[bytes | DeaiosError] = []
        is_flushing = False
        decoded = await self.decode(raws)
        base_fee = next_base_fee(head())
        for item in decoded:
            if isinstance(item, DeaiosError):
                results.append(item)
                continue
            transaction, sender = item
            try:
                if transaction.to is None:
                    await _refuse_inexact(transaction, sender, call)
                    base_fee = next_base_fee(head())  # a block may have come meanwhile
                self._admit(transaction, sender, state, base_fee)
            except DeaiosError as error:
                results.append(error)
            else:
                results.append(transaction.hash)
                is_flushing = True
        if is_flushing:
            self._flush_wanted.set()
            await asyncio.shield(self._flushed)
        return results

    async def decode(self, raws: Sequence[bytes]) -> list[Decoded | DeaiosError]:
        """Transactions with their senders; what comes in one round of the event loop is decoded together."""
        decoded: asyncio.Future[list[Decoded | DeaiosError]] = asyncio.get_running_loop().create_future()
        if not self._undecoded:
            asyncio.get_running_loop().call_soon(self._decode_together)
        self._undecoded.append((raws, decoded))
        return await decoded

    def _decode_together(self) -> None:
        requests, self._undecoded = self._undecoded, []
        if sum(len(raws) for raws, _ in requests) <= INLINE_MAX:
            for raws, decoded in requests:
                if not decoded.done():  # the caller may have gone away
                    decoded.set_result(self._decode_all(raws))
        else:
            _ = self._threads.start(self._decode_in_threads(requests))

    async def _decode_in_threads(
        self, requests: list[tuple[Sequence[bytes], asyncio.Future[list[Decoded | DeaiosError]]]]
    ) -> None:
        everything = [raw for raws, _ in requests for raw in raws]
        size = max(CHUNK_MIN, -(-len(everything) // CORES))
        chunks = [everything[start : start + size] for start in range(0, len(everything), size)]
        try:
            parts = await asyncio.gather(*(self._threads.run(partial(self._decode_all, chunk)) for chunk in chunks))
            found = [item for part in parts for item in part]
            start = 0
            for raws, decoded in requests:
                if not decoded.done():
                    decoded.set_result(found[start : start + len(raws)])
                start += len(raws)
        finally:
            for _, decoded in requests:
                decoded.cancel()  # nobody waits for an answer that will not come; the others have theirs

    def _decode_all(self, raws: Iterable[bytes]) -> list[Decoded | DeaiosError]:
        return [self._decode(raw) for raw in raws]

    def _decode(self, raw: bytes) -> Decoded | DeaiosError:
        try:
            transaction = decode_transaction(raw)
            validate_chain_id(transaction, self._chain_id)
            sender = recover_sender(transaction)
        except DeaiosError as error:
            return error
        # Computed here, in a thread, and kept: the event loop asks for it several times.
        _ = transaction.hash
        return transaction, sender

    def _admit(self, transaction: Transaction, sender: Address, state: State, base_fee: int) -> None:
        if state.slot_count >= self._slots_max:
            raise RefusedByPool(
                f"the chain's state is full: {state.slot_count} storage words, at most {self._slots_max}; "
                "raise the limit where there is memory (some 380 bytes a word), or use another network with --chain URL"
            )
        waiting, displaced = self._pool.add(transaction, sender, state, base_fee)
        self._arrived.append(waiting)
        for item in displaced:
            self.give_up(item)
        self.listeners.tell_transaction(waiting)
        self.wake.set()

    def show(self, item: Decoded | DeaiosError, state: State) -> None:
        """Let readers see as pending what was admitted elsewhere; nothing is journalled."""
        if not isinstance(item, DeaiosError):
            with contextlib.suppress(InvalidForPool, RefusedByPool):
                self._pool.add(*item, state, 0)

    def give_up(self, item: Displaced) -> None:
        """Write down soon that a transaction has left the pool without a block."""
        if not self._is_journalling:
            return
        transaction_hash = item.waiting.transaction.hash
        _log.info("transaction dropped", hash=encode_hex(transaction_hash), reason=item.reason)
        self._gone.append(Gone(item.waiting.arrival, transaction_hash, item.reason))
        self._flush_wanted.set()

    async def flush_forever(self) -> None:
        """Journal what arrives, as many at once as arrived during the last write.

        Raises:
            Unavailable: a write failed.
        """
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted.clear()
            arrived, self._arrived = self._arrived, []
            gone, self._gone = self._gone, []
            flushed, self._flushed = self._flushed, asyncio.get_running_loop().create_future()
            try:
                await self._threads.run_locked(self._writer, partial(self._journal, arrived, gone))
            except Unavailable as error:
                flushed.set_exception(error)
                flushed.exception()
                raise
            flushed.set_result(None)

    def _journal(self, arrived: list[Waiting], gone: list[Gone]) -> None:
        """Runs with the writer's lock: what a block has taken or another transaction displaced is not written."""
        rows = [
            (item.arrival, item.transaction.raw, item.sender)
            for item in arrived
            if self._pool.get(item.transaction.hash) is not None
        ]
        # A block that was under way when the pool gave something up may have taken it before this came to be written.
        lost = [
            item if not self._store.has_transaction(item.transaction_hash) else replace(item, reason="")
            for item in gone
        ]
        self._store.put_waiting(rows, lost)

    def stop(self) -> None:
        """Answer whoever waits for a write that will not come."""
        if not self._flushed.done():
            self._flushed.set_exception(Unavailable("the chain is stopping; send the transaction again"))
            self._flushed.exception()

    def reload(self, state: State) -> None:
        """Put journalled transactions back into the pool; what the chain has overtaken is forgotten. In a thread."""
        stale: list[Gone] = []
        for arrival, raw, sender in self._store.load_waiting():
            transaction = decode_transaction(raw)
            try:
                # The fee cap was above the base fee on arrival; a base fee that rose since falls again.
                _, displaced = self._pool.add(transaction, sender, state, 0, arrival)
            except (InvalidForPool, RefusedByPool) as error:
                is_included = self._store.has_transaction(transaction.hash)
                stale.append(Gone(arrival, transaction.hash, "" if is_included else str(error)))
            else:
                stale += [Gone(item.waiting.arrival, item.waiting.transaction.hash, item.reason) for item in displaced]
        if stale:
            self._store.put_waiting([], stale)


async def _refuse_inexact(
    transaction: Transaction, sender: Address, call: Callable[[Message], Awaitable[Outcome]]
) -> None:
    """Refuse a deployment that would leave code behind, or run code, that the engine cannot run exactly."""
    if opcode := find_forbidden_opcode(transaction.data):
        raise RefusedByPool(explain_refusal(opcode))
    message = Message(sender, None, transaction.data, transaction.value, transaction.gas)
    with contextlib.suppress(InvalidMessage):  # the pool says the same in geth's words
        outcome = await call(message)
        if outcome.is_refused:
            raise RefusedByPool(outcome.reason)
