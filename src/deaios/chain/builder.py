"""Builds one block: executes what the pool offers on the engine and seals the header.

A pure rule of parent, state, candidates and time: the same inputs give the same block on any machine. The engine's
working state is ahead of the committed one afterwards; the caller makes the block durable and applies its changes, or
stops.
"""

from dataclasses import dataclass, replace

from deaios.chain.blocks import (
    Block,
    BlockHeader,
    Receipt,
    compute_bloom,
    compute_logs_root,
    compute_transactions_root,
    next_base_fee,
)
from deaios.chain.commitment import StateCommitment
from deaios.chain.evm import BlockContext, Changes, Evm, InvalidMessage, Message, State, Status
from deaios.chain.gas import TRANSACTION_GAS
from deaios.chain.pool import Candidates, Waiting
from deaios.ledger.transactions import Transaction
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class BuiltBlock:
    """A block with what it did.

    Attributes:
        dropped: waiting transactions that turned out to be invalid, with the reason.
    """

    block: Block
    changes: Changes
    commitment: StateCommitment
    dropped: tuple[tuple[Waiting, str], ...]


def effective_price(transaction: Transaction, base_fee: int) -> int:
    """Wei per gas that a transaction pays at a base fee (EIP-1559)."""
    return min(transaction.max_fee, base_fee + transaction.tip)


def make_message(transaction: Transaction, sender: Address, base_fee: int) -> Message:
    """A transaction as the engine runs it."""
    return Message(
        sender=sender,
        to=transaction.to,
        data=transaction.data,
        value=transaction.value,
        gas=transaction.gas,
        price=effective_price(transaction, base_fee),
        access_list=transaction.access_list,
    )


def next_context(parent: BlockHeader, now_s: int) -> BlockContext:
    """What code in the block after `parent` reads. Time never runs backwards; two blocks may share a second."""
    return BlockContext(
        number=parent.number + 1,
        timestamp=max(parent.timestamp, now_s),
        gas_limit=parent.gas_limit,
        base_fee=next_base_fee(parent),
        coinbase=parent.coinbase,
        # The operator could grind this anyway; nothing in the protocol draws lots with it (the Beacon does that).
        prevrandao=tagged_sha256("deaios/chain/prevrandao/1", parent.hash),
    )


class Execution:
    """One block in the making: transactions run one after another, then the header is sealed.

    Whoever proposes a block and whoever is given one run this same code; only the choice of transactions is theirs.
    """

    def __init__(self, evm: Evm, context: BlockContext) -> None:
        self.context = context
        self.receipts: list[Receipt] = []
        self.gas_used = 0
        self._evm = evm
        self._log_count = 0

    @property
    def gas_left(self) -> int:
        """The most gas that the next transaction may ask for."""
        return self.context.gas_limit - self.gas_used

    def run(self, transaction: Transaction, sender: Address) -> None:
        """Execute the next transaction; a caller has seen that its gas fits.

        Raises:
            InvalidMessage: it could not start; nothing was changed.
        """
        message = make_message(transaction, sender, self.context.base_fee)
        outcome = self._evm.execute(self.context, message)
        self.receipts.append(
            Receipt(
                transaction=transaction,
                sender=sender,
                index=len(self.receipts),
                is_success=outcome.status is Status.SUCCESS,
                gas_used=outcome.gas_used,
                gas_before=self.gas_used,
                price=message.price,
                created=outcome.created,
                logs=outcome.logs,
                log_start=self._log_count,
                reason=outcome.reason if outcome.is_refused else "",
            )
        )
        self.gas_used += outcome.gas_used
        self._log_count += len(outcome.logs)

    def seal(self, state: State, commitment: StateCommitment, parent: BlockHeader) -> BuiltBlock:
        """The block of what ran, on top of `parent` with its state and commitment."""
        context, receipts = self.context, self.receipts
        changes = self._evm.commit()
        updated = commitment.updated(state, changes)
        header = BlockHeader(
            parent_hash=parent.hash,
            coinbase=context.coinbase,
            state_commitment=updated.digest(),
            transactions_root=compute_transactions_root([receipt.transaction.hash for receipt in receipts]),
            logs_root=compute_logs_root(receipts),
            logs_bloom=compute_bloom(log for receipt in receipts for log in receipt.logs),
            number=context.number,
            gas_limit=context.gas_limit,
            gas_used=self.gas_used,
            timestamp=context.timestamp,
            extra_data=b"",
            prevrandao=context.prevrandao,
            base_fee=context.base_fee,
        )
        return BuiltBlock(Block(header, tuple(receipts)), changes, updated, ())


def build_block(
    evm: Evm, state: State, commitment: StateCommitment, parent: BlockHeader, candidates: Candidates, now_s: int
) -> BuiltBlock:
    """Execute candidates until none is left or fits."""
    execution = Execution(evm, next_context(parent, now_s))
    dropped: list[tuple[Waiting, str]] = []
    while execution.gas_left >= TRANSACTION_GAS and (
        waiting := candidates.take(execution.gas_left)
    ):  # bounded: each round uses up gas or a candidate
        try:
            execution.run(waiting.transaction, waiting.sender)
        except InvalidMessage as error:
            dropped.append((waiting, str(error)))
            continue
        candidates.follow(waiting)
    return replace(execution.seal(state, commitment, parent), dropped=tuple(dropped))
