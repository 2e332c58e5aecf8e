"""Transactions that wait for a block: bounded, ordered by nonce for each sender, by tip between senders.

Whatever is admitted can be paid for: the sender's balance covers all of its waiting transactions together, and only
its own transactions can lower an ordinary account's balance. What was admitted leaves in four ways and no other: a
block takes it, its sender replaces it, a block finds it invalid, or a full pool gives its place to one that pays a
tenth more. Whoever calls keeps a record of the last three. Errors carry geth's words, because wallets match on them.
Knows no clock; order of arrival is a counter.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from deaios.chain.evm import State
from deaios.chain.gas import compute_intrinsic_gas
from deaios.ledger.transactions import Transaction
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.keys import Address

INIT_CODE_BYTES_MAX = 49152
"""EIP-3860."""
REPLACEMENT_PERCENT = 110
VICTIMS_MAX = 256
"""Cheapest transactions that are looked for at once, so that a full pool is not searched anew at every arrival."""


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


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A transaction in the pool.

    Attributes:
        arrival: smaller came earlier.
        cost: the most it can take from its sender, in wei.
    """

    transaction: Transaction
    sender: Address
    arrival: int
    cost: int


class Displaced(msgspec.Struct, frozen=True, gc=False):
    """A transaction that lost its place to another, and why."""

    waiting: Waiting
    reason: str


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
        self._victims: list[Waiting] = []

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

    def add(
        self, transaction: Transaction, sender: Address, state: State, base_fee: int, arrival: int | None = None
    ) -> tuple[Waiting, tuple[Displaced, ...]]:
        """Take a transaction whose sender was recovered and whose chain id was checked.

        Args:
            transaction: what arrived.
            sender: who signed it.
            state: after the newest block.
            base_fee: of the next block.
            arrival: its number, where a journal remembers it; later ones go on from there.

        Returns:
            The transaction in the pool, and those that it displaced: the one with its nonce, or cheaper ones of others.

        Raises:
            InvalidForPool: it could never run.
            RefusedByPool: it could, but not here or not now.
        """
        if transaction.hash in self._by_hash:
            raise AlreadyKnown("already known")
        validate_against_state(transaction, sender, state, base_fee, self._block_gas_limit)
        account, queue = state.account(sender), self._senders.get(sender)
        replaced = queue.get(transaction.nonce) if queue else None
        own_cost = transaction.gas * transaction.max_fee + transaction.value
        cost = self._cost.get(sender, 0) + own_cost - (replaced.cost if replaced else 0)
        if replaced is not None:
            _validate_replacement(replaced.transaction, transaction)
        else:
            self._validate_sender_room(transaction, len(queue or ()), account.nonce)
        if cost > account.balance:
            raise InvalidForPool(
                f"insufficient funds for gas * price + value: balance {account.balance}, tx cost {own_cost}, "
                f"cost of all waiting {cost}, overshot {cost - account.balance}"
            )
        displaced: tuple[Displaced, ...]
        if replaced is not None:
            displaced = (Displaced(replaced, f"replaced by 0x{transaction.hash.hex()}"),)
        else:
            displaced = self._make_room(transaction, sender, state, base_fee)
        for item in displaced:
            self._forget(item.waiting)
        number = self._arrivals if arrival is None else arrival
        arriving = Waiting(transaction, sender, number, own_cost)
        self._arrivals = max(self._arrivals, number + 1)
        self._senders.setdefault(sender, {})[transaction.nonce] = arriving
        self._by_hash[transaction.hash] = arriving
        self._cost[sender] = cost
        self._size_bytes += len(transaction.raw)
        return arriving, displaced

    def _validate_sender_room(self, transaction: Transaction, queued: int, nonce: int) -> None:
        limit = self._limits.per_sender
        if queued >= limit or transaction.nonce - nonce >= limit:
            raise RefusedByPool(
                f"account limit exceeded: nonce {transaction.nonce} with next nonce {nonce} and {queued} waiting; "
                f"at most {limit} a sender"
            )

    def _make_room(self, arriving: Transaction, sender: Address, state: State, base_fee: int) -> tuple[Displaced, ...]:
        """Who has to go so that `arriving` fits: the last transactions of other senders, those that pay least first.

        Only last ones, so that no nonce is missing afterwards; those behind a missing nonce before all others, because
        they hold a place and pay nothing.

        Raises:
            RefusedByPool: it does not pay a tenth more than each of them.
        """
        limits, size = self._limits, len(arriving.raw)
        count, left = len(self._by_hash) + 1 - limits.transactions, self._size_bytes + size - limits.size_bytes
        if count <= 0 and left <= 0:
            return ()
        worth = (arriving.nonce - state.account(sender).nonce <= len(self._senders.get(sender, ())), arriving)
        found: list[Waiting] = []
        while count > 0 or left > 0:  # bounded: each round takes one of the pool's transactions
            victim = self._next_victim(state, base_fee, sender, found)
            if victim is None or not self._is_worth_more(worth, victim, state, base_fee):
                self._victims += [*([] if victim is None else [victim]), *reversed(found)]
                raise RefusedByPool(
                    f"txpool is full: {len(self._by_hash)} transactions, {self._size_bytes} bytes; limits "
                    f"{limits.transactions} and {limits.size_bytes}; transaction underpriced: tip "
                    f"{effective_tip(arriving, base_fee)} is not {REPLACEMENT_PERCENT - 100} % above the lowest"
                )
            found.append(victim)
            count, left = count - 1, left - len(victim.transaction.raw)
        reason = f"evicted from a full pool by 0x{arriving.hash.hex()}, which pays more"
        return tuple(Displaced(victim, reason) for victim in found)

    def _is_worth_more(self, arriving: tuple[bool, Transaction], victim: Waiting, state: State, base_fee: int) -> bool:
        """May a transaction (and is no nonce missing before it?) take another's place?"""
        is_runnable, transaction = arriving
        if is_runnable == self._is_stranded(victim, state):
            return is_runnable
        return _pays_more(effective_tip(victim.transaction, base_fee), effective_tip(transaction, base_fee))

    def _next_victim(self, state: State, base_fee: int, sender: Address, found: list[Waiting]) -> Waiting | None:
        for is_fresh in (False, True):
            while self._victims:
                victim = self._victims.pop()
                queue = self._senders.get(victim.sender, {})
                is_last = queue.get(victim.transaction.nonce) is victim and max(queue) == victim.transaction.nonce
                if is_last and victim.sender != sender and victim not in found:
                    return victim
            if not is_fresh:
                self._victims = self._rank_victims(state, base_fee)
        return None

    def _rank_victims(self, state: State, base_fee: int) -> list[Waiting]:
        """The last transactions of senders, the first to go at the end."""

        def worth(last: Waiting) -> tuple[bool, int, int]:
            return not self._is_stranded(last, state), effective_tip(last.transaction, base_fee), -last.arrival

        lasts = [queue[max(queue)] for queue in self._senders.values()]
        return heapq.nsmallest(VICTIMS_MAX, lasts, key=worth)[::-1]

    def _is_stranded(self, last: Waiting, state: State) -> bool:
        """Is a nonce missing before a sender's last transaction, so that no block can take it?"""
        nonces = last.transaction.nonce - state.account(last.sender).nonce + 1
        return nonces > len(self._senders[last.sender])

    def remove(self, transaction_hash: bytes) -> bool:
        """Forget a transaction, because it was included or can never be; False where it was not here."""
        if (waiting := self._by_hash.get(transaction_hash)) is None:
            return False
        self._forget(waiting)
        return True

    def settle(self, sender: Address, nonce: int) -> list[Waiting]:
        """Forget every transaction of a sender below its new nonce; returns them. Once a block and sender is enough."""
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

    def has_work(self, state: State, base_fee: int = 0) -> bool:
        """Is there a transaction that a block with this base fee can take? Any falls to 0 if blocks stay empty."""
        for sender, queue in self._senders.items():
            head = queue.get(state.account(sender).nonce)
            if head is not None and head.transaction.max_fee >= base_fee:
                return True
        return False

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
        if (tip := effective_tip(waiting.transaction, self._base_fee)) >= 0:
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


def effective_tip(transaction: Transaction, base_fee: int) -> int:
    """Wei per gas beyond the base fee (EIP-1559); below zero where the base fee cannot be paid."""
    return min(transaction.tip, transaction.max_fee - base_fee)


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


def _pays_more(before: int, after: int) -> bool:
    """Is a price a tenth above another, and above it at all?"""
    return after * 100 >= before * REPLACEMENT_PERCENT and after > before


def _validate_replacement(old: Transaction, new: Transaction) -> None:
    for name, before, after in (("max fee", old.max_fee, new.max_fee), ("tip", old.tip, new.tip)):
        if not _pays_more(before, after):
            raise RefusedByPool(
                f"replacement transaction underpriced: {name} {after}, "
                f"at least {max(-(-before * REPLACEMENT_PERCENT // 100), before + 1)} needed"
            )
