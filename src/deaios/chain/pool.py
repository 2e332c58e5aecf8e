"""Transactions that wait for a block: bounded, ordered by nonce for each sender, by tip between senders.

Whatever is admitted can be paid for: the sender's balance covers all of its waiting transactions together, and only
its own transactions can lower an ordinary account's balance. Nothing admitted is ever evicted to make room; a full
pool refuses. Errors carry geth's words, because wallets match on them. Knows no clock; order of arrival is a counter.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from deaios.chain.evm import State
from deaios.chain.gas import compute_intrinsic_gas
from deaios.ledger.transactions import Transaction
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.keys import Address

INIT_CODE_BYTES_MAX = 49152
"""EIP-3860."""
REPLACEMENT_PERCENT = 110


class InvalidForPool(Invalid):
    """A transaction that breaks a rule of the chain in its present state."""


class RefusedByPool(Refused):
    """A valid transaction that the pool does not take now."""


class AlreadyKnown(RefusedByPool):
    """These very bytes wait already."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of the pool; together they bound its memory and how long a restart re-reads it."""

    transactions: int = 16_384
    size_bytes: int = 64 << 20
    per_sender: int = 4_096


@dataclass(frozen=True, slots=True)
class Waiting:
    """A transaction in the pool.

    Attributes:
        arrival: smaller came earlier.
    """

    transaction: Transaction
    sender: Address
    arrival: int

    @property
    def cost(self) -> int:
        """The most it can take from its sender, in wei."""
        return self.transaction.gas * self.transaction.max_fee + self.transaction.value


class Pool:
    """The waiting transactions."""

    def __init__(self, limits: PoolLimits, block_gas_limit: int) -> None:
        self._limits = limits
        self._block_gas_limit = block_gas_limit
        self._senders: dict[Address, dict[int, Waiting]] = {}
        self._by_hash: dict[bytes, Waiting] = {}
        self._cost: dict[Address, int] = {}
        self._size_bytes = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._by_hash)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._by_hash.values())

    def get(self, transaction_hash: bytes) -> Waiting | None:
        """The waiting transaction with this hash."""
        return self._by_hash.get(transaction_hash)

    def pending_nonce(self, sender: Address, state: State) -> int:
        """The nonce that the sender's next transaction should carry."""
        nonce, queue = state.account(sender).nonce, self._senders.get(sender, {})
        while nonce in queue:
            nonce += 1
        return nonce

    def add(self, transaction: Transaction, sender: Address, state: State, base_fee: int) -> Waiting | None:
        """Take a transaction whose sender was recovered and whose chain id was checked.

        Returns:
            The transaction that this one replaces, if any.

        Raises:
            InvalidForPool: it could never run.
            RefusedByPool: it could, but not here or not now.
        """
        if transaction.hash in self._by_hash:
            raise AlreadyKnown("already known")
        validate_against_state(transaction, sender, state, base_fee, self._block_gas_limit)
        queue = self._senders.get(sender, {})
        replaced = queue.get(transaction.nonce)
        arriving = Waiting(transaction, sender, self._arrivals)
        if replaced is not None:
            _validate_replacement(replaced.transaction, transaction)
        else:
            self._validate_room(transaction, len(queue), state.account(sender).nonce)
        cost = self._cost.get(sender, 0) + arriving.cost - (replaced.cost if replaced else 0)
        balance = state.account(sender).balance
        if cost > balance:
            raise InvalidForPool(
                f"insufficient funds for gas * price + value: balance {balance}, tx cost {arriving.cost}, "
                f"cost of all waiting {cost}, overshot {cost - balance}"
            )
        if replaced is not None:
            self._forget(replaced)
        self._arrivals += 1
        self._senders.setdefault(sender, {})[transaction.nonce] = arriving
        self._by_hash[transaction.hash] = arriving
        self._cost[sender] = cost
        self._size_bytes += len(transaction.raw)
        return replaced

    def _validate_room(self, transaction: Transaction, queued: int, nonce: int) -> None:
        limits = self._limits
        if len(self._by_hash) >= limits.transactions or self._size_bytes + len(transaction.raw) > limits.size_bytes:
            raise RefusedByPool(
                f"txpool is full: {len(self._by_hash)} transactions, {self._size_bytes} bytes; "
                f"limits {limits.transactions} and {limits.size_bytes}"
            )
        if queued >= limits.per_sender or transaction.nonce - nonce >= limits.per_sender:
            raise RefusedByPool(
                f"account limit exceeded: nonce {transaction.nonce} with next nonce {nonce} and {queued} waiting; "
                f"at most {limits.per_sender} a sender"
            )

    def remove(self, transaction_hash: bytes) -> None:
        """Forget a transaction, because it was included or can never be."""
        if waiting := self._by_hash.get(transaction_hash):
            self._forget(waiting)

    def settle(self, sender: Address, nonce: int) -> list[Waiting]:
        """Forget every transaction of a sender below its new nonce; returns them."""
        stale = [waiting for number, waiting in self._senders.get(sender, {}).items() if number < nonce]
        for waiting in stale:
            self._forget(waiting)
        return stale

    def _forget(self, waiting: Waiting) -> None:
        sender, queue = waiting.sender, self._senders[waiting.sender]
        del queue[waiting.transaction.nonce]
        del self._by_hash[waiting.transaction.hash]
        self._size_bytes -= len(waiting.transaction.raw)
        self._cost[sender] -= waiting.cost
        if not queue:
            del self._senders[sender], self._cost[sender]

    def has_work(self, state: State) -> bool:
        """Is there a transaction that some coming block can take, once the base fee is low enough?"""
        return any(state.account(sender).nonce in queue for sender, queue in self._senders.items())

    def candidates(self, state: State, base_fee: int) -> "Candidates":
        """What the next block may take, best first."""
        heads = []
        for sender, queue in self._senders.items():
            if head := queue.get(state.account(sender).nonce):
                heads.append(head)
        return Candidates({sender: dict(queue) for sender, queue in self._senders.items()}, heads, base_fee)


class Candidates:
    """A block builder's view of the pool: the best transaction now, nonces in order. A copy, safe in another thread."""

    def __init__(self, queues: dict[Address, dict[int, Waiting]], heads: list[Waiting], base_fee: int) -> None:
        self._queues = queues
        self._base_fee = base_fee
        self._heap: list[tuple[int, int, Waiting]] = []
        for head in heads:
            self._push(head)

    def _push(self, waiting: Waiting) -> None:
        transaction = waiting.transaction
        if transaction.max_fee >= self._base_fee:
            tip = min(transaction.tip, transaction.max_fee - self._base_fee)
            heapq.heappush(self._heap, (-tip, waiting.arrival, waiting))

    def take(self, gas_left: int) -> Waiting | None:
        """The best transaction whose gas limit fits; senders whose next one does not fit are passed over."""
        while self._heap:
            waiting = heapq.heappop(self._heap)[2]
            if waiting.transaction.gas <= gas_left:
                return waiting
        return None

    def follow(self, waiting: Waiting) -> None:
        """Offer the sender's next transaction, after `waiting` was included."""
        if following := self._queues[waiting.sender].get(waiting.transaction.nonce + 1):
            self._push(following)


def validate_against_state(
    transaction: Transaction, sender: Address, state: State, base_fee: int, block_gas_limit: int
) -> None:
    """The rules of the chain that need the present state, but for what the sender has waiting already.

    Raises:
        InvalidForPool: with geth's words.
        RefusedByPool: fee cap below the present base fee.
    """
    account = state.account(sender)
    if account.code:
        raise InvalidForPool(f"sender not an eoa: address 0x{sender.hex()}, len(code): {len(account.code)} (EIP-3607)")
    if transaction.nonce < account.nonce:
        raise InvalidForPool(f"nonce too low: next nonce {account.nonce}, tx nonce {transaction.nonce}")
    if transaction.gas > block_gas_limit:
        raise InvalidForPool(f"exceeds block gas limit: gas {transaction.gas}, limit {block_gas_limit}")
    if transaction.to is None and len(transaction.data) > INIT_CODE_BYTES_MAX:
        raise InvalidForPool(
            f"max initcode size exceeded: code size {len(transaction.data)}, limit {INIT_CODE_BYTES_MAX}"
        )
    needed = compute_intrinsic_gas(transaction.to is None, transaction.data, transaction.access_list)
    if transaction.gas < needed:
        raise InvalidForPool(f"intrinsic gas too low: gas {transaction.gas}, minimum needed {needed}")
    cost = transaction.gas * transaction.max_fee + transaction.value
    if cost > account.balance:
        raise InvalidForPool(
            f"insufficient funds for gas * price + value: balance {account.balance}, tx cost {cost}, "
            f"overshot {cost - account.balance}"
        )
    if transaction.max_fee < base_fee:
        raise RefusedByPool(
            f"max fee per gas less than block base fee: address 0x{sender.hex()}, "
            f"maxFeePerGas: {transaction.max_fee}, baseFee: {base_fee}"
        )


def _validate_replacement(old: Transaction, new: Transaction) -> None:
    for name, before, after in (("max fee", old.max_fee, new.max_fee), ("tip", old.tip, new.tip)):
        if after * 100 < before * REPLACEMENT_PERCENT or after <= before:
            raise RefusedByPool(
                f"replacement transaction underpriced: {name} {after}, "
                f"at least {max(-(-before * REPLACEMENT_PERCENT // 100), before + 1)} needed"
            )
