"""Builds one block: executes what the pool offers on the engine and seals the header.

A pure rule of parent, state, candidates and time: the same inputs give the same block on any machine. The engine's
working state is ahead of the committed one afterwards; the caller makes the block durable and applies its changes, or
stops.
"""

from dataclasses import dataclass

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


def build_block(
    evm: Evm, state: State, commitment: StateCommitment, parent: BlockHeader, candidates: Candidates, now_s: int
) -> BuiltBlock:
    """Execute candidates until none is left or fits."""
    context = next_context(parent, now_s)
    receipts: list[Receipt] = []
    dropped: list[tuple[Waiting, str]] = []
    gas_used = log_count = 0
    while context.gas_limit - gas_used >= TRANSACTION_GAS and (
        waiting := candidates.take(context.gas_limit - gas_used)
    ):  # bounded: each round uses up gas or a candidate
        message = make_message(waiting.transaction, waiting.sender, context.base_fee)
        try:
            outcome = evm.execute(context, message)
        except InvalidMessage as error:
            dropped.append((waiting, str(error)))
            continue
        receipts.append(
            Receipt(
                transaction=waiting.transaction,
                sender=waiting.sender,
                index=len(receipts),
                is_success=outcome.status is Status.SUCCESS,
                gas_used=outcome.gas_used,
                gas_before=gas_used,
                price=message.price,
                created=outcome.created,
                logs=outcome.logs,
                log_start=log_count,
                reason=outcome.reason if outcome.is_refused else "",
            )
        )
        gas_used += outcome.gas_used
        log_count += len(outcome.logs)
        candidates.follow(waiting)
    changes = evm.commit()
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
        gas_used=gas_used,
        timestamp=context.timestamp,
        extra_data=b"",
        prevrandao=context.prevrandao,
        base_fee=context.base_fee,
    )
    return BuiltBlock(Block(header, tuple(receipts)), changes, updated, tuple(dropped))
