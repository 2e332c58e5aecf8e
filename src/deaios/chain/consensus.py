"""The seam between the state machine and whoever orders blocks: propose, validate, finalise.

    propose    `builder.build_block`   the operator's own choice from the pool       (ABCI 2.0: PrepareProposal)
    validate   `validate_block`        is this block allowed to follow its parent?   (ProcessProposal)
    finalise   `finalise_block`        run it; is it what it says it does?           (FinalizeBlock, up to Commit)

A block that was proposed and one that was given run the same `builder.Execution`, so the producing chain, followers,
imports and checks cannot drift apart. Everything is a rule of parent, state and block: no wall clock, no disk, no
threads. A block's time is checked against its parent's alone. The engine's working state is ahead of the committed one
after `finalise_block`, also when it raises: the caller makes the block durable and applies its changes, or stops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.chain.blocks import BlockHeader, InvalidBlock, compute_transactions_root, decode_header, header_record
from deaios.chain.builder import BuiltBlock, Execution, next_context
from deaios.chain.commitment import StateCommitment
from deaios.chain.evm import Evm, InvalidMessage, State
from deaios.chain.gas import TRANSACTION_GAS, compute_intrinsic_gas
from deaios.chain.genesis import Genesis
from deaios.chain.pool import INIT_CODE_BYTES_MAX
from deaios.ledger.eip712 import recover_signer
from deaios.ledger.structs import header_domain
from deaios.ledger.transactions import Transaction, decode_transaction, validate_chain_id
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import DeaiosError, Invalid
from deaios.primitives.keys import Address, InvalidSignature

SIGNATURE_SIZE = 65
HEADER_BYTES_MAX = 1024
"""A header is about 600 bytes; its only free field has 32."""

# Fields in the order in which they are compared, by the names that messages use.
_GIVEN = ("number", "coinbase", "gas_limit", "base_fee", "prevrandao", "timestamp")
"""What the parent fixes; of the timestamp, a lower bound."""
_EXECUTED = ("gas_used", "logs_root", "logs_bloom", "state_commitment")
"""What only running the transactions tells."""
SIGNED_FIELDS = frozenset({"number", "parent_hash", "logs_root", "state_commitment", "timestamp"})
"""Where one of these is wrong under the operator's signature, the operator lied. Not the transactions' root, which is
in the record too: who served the block may have put other transactions beside it."""


class DivergentBlock(Invalid):
    """A block that does not follow from its parent and its transactions.

    Attributes:
        number: the height at which it was to stand.
        field: what differs.
        theirs: what the block says, as text.
        ours: what it would have to say, as text.
    """

    def __init__(self, number: int, field: str, theirs: str, ours: str) -> None:
        super().__init__(f"block {number} differs in {field}: it says {theirs}, {ours} expected")
        self.number = number
        self.field = field
        self.theirs = theirs
        self.ours = ours


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one embedded chain from another; derived from a genesis that somebody trusts."""

    genesis_hash: bytes
    chain_id: int
    operator: Address


@dataclass(frozen=True)
class SealedBlock:
    """A block as it travels: header, transactions, and the operator's signature over its record; nothing checked."""

    header: BlockHeader
    signature: bytes
    transactions: tuple[Transaction, ...]


def identify(genesis: Genesis, genesis_hash: bytes) -> Identity:
    """The identity of a chain with this genesis."""
    return Identity(genesis_hash, genesis.chain_id, genesis.operator)


def decode_sealed_block(header: bytes, signature: bytes, raws: Sequence[bytes]) -> SealedBlock:
    """Read a block that came from outside.

    Raises:
        InvalidBlock: not a header, not a signature, more transactions than gas could pay for, or one that is none.
    """
    if len(header) > HEADER_BYTES_MAX or len(signature) != SIGNATURE_SIZE:
        raise InvalidBlock(
            f"block has a header of {len(header)} bytes, at most {HEADER_BYTES_MAX}, "
            f"and a signature of {len(signature)}, {SIGNATURE_SIZE} expected"
        )
    try:
        decoded = decode_header(header)
        if len(raws) * TRANSACTION_GAS > decoded.gas_limit:
            raise InvalidBlock(f"block {decoded.number} has {len(raws)} transactions in {decoded.gas_limit} gas")
        return SealedBlock(decoded, signature, tuple(decode_transaction(raw) for raw in raws))
    except InvalidBlock:
        raise
    except DeaiosError as error:
        raise InvalidBlock(f"block cannot be read: {error}") from error


def validate_header(identity: Identity, parent: BlockHeader, block: SealedBlock) -> None:
    """Does the header follow its parent, name these transactions and carry the operator's signature?

    Raises:
        DivergentBlock: it does not; names the field.
    """
    header = block.header
    context = next_context(parent, header.timestamp)
    for field in _GIVEN:
        _compare(context.number, field, getattr(header, field), getattr(context, field))
    _compare(context.number, "parent_hash", header.parent_hash, parent.hash)
    _compare(context.number, "extra_data", header.extra_data, b"")
    root = compute_transactions_root([transaction.hash for transaction in block.transactions])
    _compare(context.number, "transactions_root", header.transactions_root, root)
    _compare(context.number, "signature", recover_operator(identity, header, block.signature), identity.operator)


def validate_same_header(identity: Identity, ours: BlockHeader, block: SealedBlock) -> None:
    """Is this our block of that height, with the operator's signature?

    Raises:
        DivergentBlock: another block, or no signature of the operator's.
    """
    _compare(ours.number, "number", block.header.number, ours.number)
    _compare(ours.number, "hash", block.header.hash, ours.hash)
    _compare(ours.number, "signature", recover_operator(identity, ours, block.signature), identity.operator)


def recover_operator(identity: Identity, header: BlockHeader, signature: bytes) -> Address | str:
    """Who signed a header's record; a sentence where the signature is nobody's."""
    record = header_record(identity.genesis_hash, header)
    try:
        return recover_signer(header_domain(identity.chain_id), record, signature)
    except InvalidSignature as error:
        return f"no signature ({error})"


def is_signed(identity: Identity, header: BlockHeader, signature: bytes) -> bool:
    """Did the operator sign this header's record?"""
    return recover_operator(identity, header, signature) == identity.operator


def validate_block(
    identity: Identity, state: State, parent: BlockHeader, block: SealedBlock, senders: Sequence[Address | None]
) -> list[Address]:
    """May this block follow `parent`, as far as can be said without running it?

    Args:
        identity: the chain's.
        state: after `parent`.
        parent: the head.
        block: what is to follow.
        senders: recovered from the transactions' signatures, in order; None where one recovers to no key.

    Returns:
        The senders, all of them known.

    Raises:
        DivergentBlock: it may not; names the field.
    """
    validate_header(identity, parent, block)
    number, nonces, known = block.header.number, dict[Address, int](), list[Address]()
    for index, (transaction, sender) in enumerate(zip(block.transactions, senders, strict=True)):
        try:
            validate_chain_id(transaction, identity.chain_id)
        except Invalid as error:
            raise _bad_transaction(number, index, str(error)) from error
        if sender is None:
            raise _bad_transaction(number, index, "its signature recovers to no key")
        known.append(sender)
        nonce = nonces.get(sender)
        expected = state.account(sender).nonce if nonce is None else nonce
        if transaction.nonce != expected:
            raise _bad_transaction(number, index, f"nonce {transaction.nonce}, next nonce {expected}")
        nonces[sender] = expected + 1
        if transaction.to is None and len(transaction.data) > INIT_CODE_BYTES_MAX:
            raise _bad_transaction(number, index, f"init code of {len(transaction.data)} bytes (EIP-3860)")
        needed = compute_intrinsic_gas(transaction.to is None, transaction.data, transaction.access_list)
        if transaction.gas < needed:
            raise _bad_transaction(number, index, f"gas {transaction.gas}, minimum needed {needed}")
    return known


def finalise_block(
    evm: Evm,
    state: State,
    commitment: StateCommitment,
    parent: BlockHeader,
    block: SealedBlock,
    senders: Sequence[Address],
) -> BuiltBlock:
    """Run a validated block's transactions and compare everything that they did with what its header says.

    Raises:
        DivergentBlock: another result than the header's; names the field.
    """
    number = block.header.number
    execution = Execution(evm, next_context(parent, block.header.timestamp))
    for index, (transaction, sender) in enumerate(zip(block.transactions, senders, strict=True)):
        if transaction.gas > execution.gas_left:
            raise _bad_transaction(number, index, f"gas {transaction.gas}, left in the block {execution.gas_left}")
        try:
            execution.run(transaction, sender)
        except InvalidMessage as error:
            raise _bad_transaction(number, index, str(error)) from error
    built = execution.seal(state, commitment, parent)
    for field in _EXECUTED:
        _compare(number, field, getattr(block.header, field), getattr(built.block.header, field))
    _compare(number, "hash", block.header.hash, built.block.header.hash)
    return built


def _bad_transaction(number: int, index: int, reason: str) -> DivergentBlock:
    return DivergentBlock(number, f"transaction {index}", reason, "a transaction that can run there")


def _compare(number: int, field: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        raise DivergentBlock(number, field, _show(theirs), _show(ours))


def _show(value: object) -> str:
    return encode_hex(value) if isinstance(value, bytes) else str(value)
