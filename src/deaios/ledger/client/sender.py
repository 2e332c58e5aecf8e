"""Sends transactions of one key: nonces, fees, gas, inclusion, replacement, reorganisations.

Invariants: a nonce is given to one transaction only, so that nothing is ever done twice; what was signed stays in
flight, is broadcast again and watched until it is settled (as many blocks hold it as the chain's client says) or its
time is up, also when the caller is cancelled. A transaction that a reorganisation took out of its block is broadcast
again, the same bytes under the same nonce; a receipt counts only while its block is the one at its height. A success
is returned only for a receipt with status 1. One process should own a key; where another spends its nonces, that is
noticed and said, unless both send the very same transaction, which is then one.
Knows no contract.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deaios.ledger.client.fees import FeePolicy, Quote, fetch_quote
from deaios.ledger.client.rpc import BATCH_MAX, RefusedByChain, Reverted, Rpc, UnavailableChain
from deaios.ledger.records import TransactionReceipt, read_quantity, read_receipt
from deaios.ledger.transactions import DYNAMIC_FEE, Transaction, sign_transaction
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.logs import get_logger

GAS_ATTEMPTS = 2
"""A transaction that failed for want of gas is estimated again and sent once more; it changed nothing."""
GAS_SPENT_PERCENT = 90
"""A failure that used this share of its gas is taken for want of gas: callers keep 1/64 back at each depth."""
IN_FLIGHT_MAX = 48
"""Transactions of one key waiting at once; public pools keep 64 of an account."""
NONCE_ATTEMPTS = 5
OVERTAKEN_POLLS = 4
"""Polls that must agree that a nonce was spent elsewhere before it is believed."""
REPLACEMENTS_MAX = 5
POLL_AGE_DIVISOR = 8
"""The longer the youngest transaction waits, the slower we ask."""
SETTLED_KEPT = 128
"""Settled transactions remembered, so that they can be restored after a reorganisation deeper than was promised."""

_log = get_logger("sender")


class RefusedOutOfGasMoney(Refused):
    """The account cannot pay for the transaction.

    Attributes:
        address: whose money is missing.
        balance: what it has, in wei.
        needed: the most that the transaction may cost, in wei.
    """

    def __init__(self, address: Address, balance: int, needed: int) -> None:
        super().__init__(
            f"account {encode_hex(address)} is out of gas money: it has {balance} wei, the transaction may cost "
            f"{needed} wei; send it native coin, or ask the network's faucet"
        )
        self.address = address
        self.balance = balance
        self.needed = needed


class UnavailableInclusion(UnavailableChain):
    """A signed transaction is in no block yet; it may still get into one.

    Attributes:
        hashes: every version that was broadcast.
    """

    def __init__(self, message: str, hashes: Sequence[bytes]) -> None:
        super().__init__(f"{message}: {', '.join(encode_hex(item) for item in hashes)}")
        self.hashes = tuple(hashes)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a sender waits for what; the defaults suit a chain of sub-second blocks and one of twelve seconds."""

    poll_min_s: float = 0.1
    poll_max_s: float = 2.0
    rebroadcast_s: float = 5.0
    """A node that was restarted may have lost what it had not put into a block."""
    replace_s: float = 45.0
    """A transaction that is next in line and still waits is offered again at a higher fee."""
    inclusion_s: float = 300.0
    """Without any progress: no block that holds it, or no further one on top."""


@dataclass(slots=True)
class _Flight:
    """A signed transaction on its way to being settled.

    Attributes:
        versions: as it was signed, then each replacement; all under one nonce.
        confirmations: blocks after which the caller is told; it may be watched for longer.
        moved_s: when it last came nearer to being settled.
        included_at: height of the block that held it at the last look.
    """

    versions: list[Transaction]
    result: "asyncio.Future[TransactionReceipt]"
    confirmations: int
    moved_s: float
    broadcast_s: float
    priced_s: float
    started_s: float
    is_accepted: bool = False
    overtaken: int = 0
    included_at: int | None = None
    seen_height: int = 0

    @property
    def transaction(self) -> Transaction:
        """The newest version, which pays most."""
        return self.versions[-1]

    @property
    def hashes(self) -> list[bytes]:
        """Of every version."""
        return [version.hash for version in self.versions]

    def find_version(self, receipt: TransactionReceipt) -> Transaction:
        """The version that a receipt is of."""
        return next(version for version in self.versions if version.hash == receipt.transaction_hash)


@dataclass(slots=True)
class _Head:
    """One poll's answers."""

    nonce: int
    height: int
    receipts: dict[bytes, TransactionReceipt] = field(default_factory=dict)

    def find(self, flight: _Flight) -> TransactionReceipt | None:
        """The receipt of whichever version is in a block."""
        return next((self.receipts[item] for item in flight.hashes if item in self.receipts), None)


class Sender:
    """Sends transactions of one key; many `send` calls may run at once and share nonces without gaps."""

    def __init__(
        self,
        rpc: Rpc,
        key: PrivateKey,
        chain_id: int,
        *,
        patience: Patience | None = None,
        fees: FeePolicy | None = None,
    ) -> None:
        self.rpc = rpc
        self.address = key.address
        self.chain_id = chain_id
        self._key = key
        self._patience = patience or Patience()
        self._fees = fees or FeePolicy()
        self._lock = asyncio.Lock()
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._next_nonce: int | None = None
        self._flights: dict[int, _Flight] = {}
        self._settled: deque[Transaction] = deque(maxlen=SETTLED_KEPT)
        self._restored_s: float | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop watching. What is in flight stays with the network; waiting callers get `UnavailableInclusion`."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait([watcher])

    async def send(
        self,
        to: Address | None,
        data: bytes = b"",
        value: int = 0,
        gas: int | None = None,
        *,
        confirmations: int | None = None,
    ) -> TransactionReceipt:
        """Send a transaction and wait until it is settled.

        Args:
            to: whom to call; None creates a contract.
            data: call data, or creation code.
            value: wei to send along.
            gas: gas limit; estimated when it is not given.
            confirmations: blocks to wait for, its own included, where that many are enough: as many as the chain's
                client counts as settled by default. It is watched until it is settled all the same.

        Raises:
            Reverted: the contract refuses, found before sending or in the block.
            RefusedOutOfGasMoney: the account cannot pay.
            RefusedFee: gas is too dear now.
            RefusedByChain: the node declines the transaction.
            UnavailableChain: the node cannot be reached; nothing was signed.
            UnavailableInclusion: signed and broadcast, but in no block in time.
        """
        attempts = GAS_ATTEMPTS if gas is None else 1
        depth = min(confirmations or self.rpc.confirmations, self.rpc.confirmations)
        for _ in range(1, attempts):
            transaction, receipt = await self._send_once(to, data, value, gas, depth)
            if receipt.is_success:
                return receipt
            if not _has_lacked_gas(transaction, receipt):
                raise await self._explain_revert(transaction, receipt)
        transaction, receipt = await self._send_once(to, data, value, gas, depth)
        if not receipt.is_success:
            raise await self._explain_revert(transaction, receipt)
        return receipt

    async def _send_once(
        self, to: Address | None, data: bytes, value: int, gas: int | None, depth: int
    ) -> tuple[Transaction, TransactionReceipt]:
        async with self._slots:
            quote = await self._quote(to, data, value, gas)
            async with self._lock:
                flight = await self._launch(to, data, value, quote, depth)
            receipt = await asyncio.shield(flight.result)
        return flight.find_version(receipt), receipt

    async def _quote(self, to: Address | None, data: bytes, value: int, gas: int | None) -> Quote:
        try:
            return await fetch_quote(self.rpc, self._fees, self.address, to, data, value, gas)
        except RefusedByChain as error:
            if value and (balance := await self.rpc.get_balance(self.address)) < value:
                raise RefusedOutOfGasMoney(self.address, balance, value) from error
            raise

    async def _launch(self, to: Address | None, data: bytes, value: int, quote: Quote, depth: int) -> _Flight:
        """Sign under the next nonce and broadcast. Runs under the lock."""
        hashes: list[bytes] = []
        for _ in range(NONCE_ATTEMPTS):
            nonce = await self._pick_nonce()
            transaction = sign_transaction(
                self._key,
                Transaction(
                    kind=DYNAMIC_FEE,
                    chain_id=self.chain_id,
                    nonce=nonce,
                    max_fee=quote.max_fee,
                    tip=quote.tip,
                    gas=quote.gas,
                    to=to,
                    value=value,
                    data=data,
                ),
            )
            now = self.rpc.clock.monotonic_s()
            result: asyncio.Future[TransactionReceipt] = asyncio.get_running_loop().create_future()
            flight = _Flight([transaction], result, depth, now, now, now, now)
            hashes.append(transaction.hash)
            # In flight before the first byte leaves, so that a cancelled caller cannot lose the nonce.
            self._flights[nonce] = flight
            self._next_nonce = nonce + 1
            self._watch()
            try:
                if await self._broadcast(transaction):
                    flight.is_accepted = True
                    return flight
            except (UnavailableChain, Invalid):
                return flight  # whether the node has it is unknown, so it stays in flight and is broadcast again
            except Refused:
                self._land(flight)
                self._next_nonce = None
                raise
            self._land(flight)
            self._next_nonce = None
        raise UnavailableInclusion(f"another sender spends the nonces of {encode_hex(self.address)}", hashes)

    async def _pick_nonce(self) -> int:
        nonce = self._next_nonce
        if nonce is None:
            nonce = await self.rpc.get_nonce(self.address, "pending")
        while nonce in self._flights:
            nonce += 1
        return nonce

    async def _broadcast(self, transaction: Transaction) -> bool:
        """Hand a transaction to the node.

        Returns:
            False when its nonce is spent or taken by another transaction.
        """
        try:
            await self.rpc.send_raw_transaction(transaction.raw)
        except RefusedByChain as error:
            if await self.rpc.call("eth_getTransactionByHash", [encode_hex(transaction.hash)]) is not None:
                return True
            if await self.rpc.get_nonce(self.address, "pending") > transaction.nonce:
                return False
            needed = transaction.value + transaction.gas * transaction.max_fee
            balance = await self.rpc.get_balance(self.address)
            if balance < needed:
                raise RefusedOutOfGasMoney(self.address, balance, needed) from error
            raise
        return True

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._run_watcher(), name=f"sender {encode_hex(self.address)}")
            self._watcher.add_done_callback(self._end_watch)

    def _end_watch(self, watcher: "asyncio.Task[None]") -> None:
        """A watcher that ended early leaves nobody waiting."""
        error = None if watcher.cancelled() else watcher.exception()
        for flight in list(self._flights.values()):
            if watcher.cancelled() or error is not None:
                self._land(flight, error=error or UnavailableInclusion("the sender was closed", flight.hashes))

    async def _run_watcher(self) -> None:
        clock, patience = self.rpc.clock, self._patience
        while self._flights:
            age = clock.monotonic_s() - max(flight.started_s for flight in self._flights.values())
            await clock.sleep(min(max(age / POLL_AGE_DIVISOR, patience.poll_min_s), patience.poll_max_s))
            try:
                await self._poll()
            except UnavailableChain as error:
                _log.info("chain does not answer", sender=encode_hex(self.address), error=str(error))
            now = clock.monotonic_s()
            for flight in list(self._flights.values()):
                if now - flight.moved_s > patience.inclusion_s:
                    where = "no block" if flight.included_at is None else f"block {flight.included_at}, not settled,"
                    message = f"in {where} after {patience.inclusion_s} s"
                    self._land(flight, error=UnavailableInclusion(message, flight.hashes))
                    self._next_nonce = None

    async def _poll(self) -> None:
        flights = sorted(self._flights.values(), key=lambda flight: flight.transaction.nonce)
        if not flights:
            return
        head = await self._fetch_head([item for flight in flights for item in flight.hashes])
        await self._restore(head, flights[0].transaction.nonce)
        landing: list[tuple[_Flight, TransactionReceipt]] = []
        for flight in flights:
            receipt = head.find(flight)
            if receipt is not None:
                self._note_included(flight, receipt, head.height)
                if receipt.block_number + flight.confirmations - 1 <= head.height:
                    landing.append((flight, receipt))
            elif head.nonce > flight.transaction.nonce:
                self._note_overtaken(flight)
            else:
                flight.overtaken = 0
                await self._nurse(flight, is_next=head.nonce == flight.transaction.nonce)
        standing = await self._fetch_standing({receipt.block_number for _, receipt in landing})
        for flight, receipt in landing:
            if standing is None or standing.get(receipt.block_number) == receipt.block_hash:
                if receipt.block_number + self.rpc.confirmations - 1 <= head.height:
                    self._settled.append(flight.find_version(receipt))
                    self._land(flight, receipt)
                elif not flight.result.done():
                    flight.result.set_result(receipt)

    def _note_included(self, flight: _Flight, receipt: TransactionReceipt, height: int) -> None:
        flight.overtaken = 0
        if flight.included_at is None or height > flight.seen_height:
            flight.moved_s, flight.seen_height = self.rpc.clock.monotonic_s(), height
        flight.included_at = receipt.block_number

    def _note_overtaken(self, flight: _Flight) -> None:
        flight.overtaken += 1
        if flight.overtaken >= OVERTAKEN_POLLS:
            message = f"nonce {flight.transaction.nonce} was spent by another transaction of this key"
            self._land(flight, error=UnavailableInclusion(message, flight.hashes))
            self._next_nonce = None

    async def _fetch_standing(self, heights: set[int]) -> dict[int, bytes] | None:
        """Hashes of the blocks at some heights; None where no block is ever taken back, and nothing is asked."""
        if self.rpc.confirmations == 1:
            return None
        standing: dict[int, bytes] = {}
        for height in sorted(heights):
            block = await self.rpc.get_block(height)
            if block is not None:
                standing[height] = block.hash
        return standing

    async def _restore(self, head: _Head, lowest: int) -> None:
        """Broadcast settled transactions again that a deeper reorganisation than promised took back.

        Without them nothing in flight could ever be included: its nonces are behind theirs.
        """
        now = self.rpc.clock.monotonic_s()
        lost = [item for item in self._settled if head.nonce <= item.nonce < lowest]
        is_recent = self._restored_s is not None and now - self._restored_s < self._patience.rebroadcast_s
        if not lost or is_recent:
            return
        self._restored_s = now
        _log.error("a settled transaction was taken back", nonces=[item.nonce for item in lost])
        for transaction in lost:
            try:
                await self._broadcast(transaction)
            except (Refused, Invalid) as error:
                _log.warning("not restored", nonce=transaction.nonce, error=str(error))

    async def _fetch_head(self, hashes: Sequence[bytes]) -> _Head:
        # The nonce is asked for first: a nonce that is spent then has a receipt in the answers after it.
        calls: list[tuple[str, list[Any]]] = [  # Any: JSON of each method's own shape
            ("eth_getTransactionCount", [encode_hex(self.address), "latest"]),
            ("eth_blockNumber", []),
            *(("eth_getTransactionReceipt", [encode_hex(item)]) for item in hashes),
        ]
        answers: list[Any] = []  # Any: parsed JSON, read just below
        for start in range(0, len(calls), BATCH_MAX):
            answers += await self.rpc.batch(calls[start : start + BATCH_MAX])
        head = _Head(read_quantity(answers[0], "nonce"), read_quantity(answers[1], "height"))
        for answer in answers[2:]:
            if answer is not None:
                receipt = read_receipt(answer)
                head.receipts[receipt.transaction_hash] = receipt
        return head

    async def _nurse(self, flight: _Flight, *, is_next: bool) -> None:
        """Broadcast again what may have been lost; pay more for what is next in line and still waits."""
        now, patience = self.rpc.clock.monotonic_s(), self._patience
        was_taken_back = flight.included_at is not None
        if was_taken_back:
            _log.info("transaction was taken back", nonce=flight.transaction.nonce, block=flight.included_at)
            flight.included_at, flight.priced_s = None, now
        is_stuck = is_next and now - flight.priced_s > patience.replace_s and len(flight.versions) <= REPLACEMENTS_MAX
        if not is_stuck and not was_taken_back and now - flight.broadcast_s < patience.rebroadcast_s:
            return
        flight.broadcast_s = now
        if is_stuck:
            self._replace(flight)
        try:
            flight.is_accepted |= await self._broadcast(flight.transaction)
        except (Refused, Invalid) as error:
            # An accepted version may still be included, so only what no node ever took is given up.
            if not flight.is_accepted:
                self._land(flight, error=error)
                self._next_nonce = None

    def _replace(self, flight: _Flight) -> None:
        """Sign a version that pays more, where the policy leaves room for one."""
        old = flight.transaction
        flight.priced_s = self.rpc.clock.monotonic_s()
        price = self._fees.raise_price(old.max_fee, old.tip)
        if price is None:
            _log.warning("transaction waits at the highest fee", nonce=old.nonce, fee=old.max_fee)
            return
        flight.versions.append(sign_transaction(self._key, replace(old, max_fee=price[0], tip=price[1])))
        _log.info("transaction replaced", nonce=old.nonce, old_fee=old.max_fee, fee=flight.transaction.max_fee)

    def _land(
        self, flight: _Flight, receipt: TransactionReceipt | None = None, error: BaseException | None = None
    ) -> None:
        self._flights.pop(flight.transaction.nonce, None)
        if flight.result.done():
            return
        if receipt is not None:
            flight.result.set_result(receipt)
        elif error is not None:
            flight.result.set_exception(error)
            flight.result.exception()  # a cancelled caller never asks, and that is not a fault
        else:
            flight.result.cancel()

    async def _explain_revert(self, transaction: Transaction, receipt: TransactionReceipt) -> Reverted:
        """Run a failed transaction again as a call, to learn what the contract said."""
        if _has_lacked_gas(transaction, receipt):
            return Reverted(f"out of gas: {receipt.gas_used} of {transaction.gas} were used", b"", receipt)
        reason = "unknown, because the call could not be repeated"
        for block in (receipt.block_number, "latest"):  # nodes without older states answer for the latest one only
            try:
                await self.rpc.eth_call(
                    transaction.to, transaction.data, sender=self.address, value=transaction.value, block=block
                )
            except Reverted as error:
                return Reverted(error.reason, error.data, receipt)
            except (Refused, UnavailableChain):
                continue
            reason = "unknown, because the same call succeeds after the block"
        return Reverted(f"reason {reason}", b"", receipt)


def _has_lacked_gas(transaction: Transaction, receipt: TransactionReceipt) -> bool:
    return receipt.gas_used * 100 >= transaction.gas * GAS_SPENT_PERCENT
