"""validate and finalise: a block is taken as it was made; anything else is refused, by the name of what differs."""

import asyncio
import json
import random
from dataclasses import replace

import pytest
from chain_values import GWEI, OPERATOR, USERS, transaction, transfer
from follower_values import CHAIN_ID, GENESIS, TO, make_history, producing

from deaios.chain.blocks import compute_transactions_root, decode_header, header_record
from deaios.chain.commitment import StateCommitment
from deaios.chain.consensus import (
    DivergentBlock,
    SealedBlock,
    decode_sealed_block,
    finalise_block,
    identify,
    is_signed,
    validate_block,
)
from deaios.chain.evidence import InvalidEvidence, decode_equivocation, encode_equivocation, find_equivocation
from deaios.chain.evm import Account, Changes, State
from deaios.chain.genesis import (
    build_genesis_changes,
    build_genesis_commitment,
    build_genesis_header,
    compute_genesis_hash,
)
from deaios.chain.store import ChainStore
from deaios.chain.strict import StrictEvm
from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import header_domain
from deaios.ledger.transactions import InvalidTransaction, decode_transaction, recover_sender
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address

IDENTITY = identify(GENESIS, compute_genesis_hash(GENESIS))
HEIGHT = 4
"""The block that the tests change; the ones before it are taken as they are."""


def sign(header, key=OPERATOR):
    return sign_struct(key, header_domain(CHAIN_ID), header_record(IDENTITY.genesis_hash, header))


def recover(block):
    senders = []
    for item in block.transactions:
        try:
            senders.append(recover_sender(item))
        except InvalidTransaction:
            senders.append(None)
    return senders


class Replica:
    """The chain as it stands after some of its blocks."""

    def __init__(self, state, commitment, head):
        self.state, self.commitment, self.head = state, commitment, head

    def take(self, block):
        """Run a block on an engine that nobody used before."""
        evm = StrictEvm(CHAIN_ID, GENESIS.gas_limit)
        evm.load(self.state)
        senders = validate_block(IDENTITY, self.state, self.head, block, recover(block))
        return finalise_block(evm, self.state, self.commitment, self.head, block, senders)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Sealed blocks 1 to `HEIGHT` of a chain that was produced."""
    path = tmp_path_factory.mktemp("consensus") / "chain.db"

    async def make():
        async with producing(path) as (chain, _):
            await make_history(chain, HEIGHT)

    asyncio.run(make())
    store = ChainStore(path)
    try:
        found = store.fetch_sealed(1, HEIGHT, 1 << 30)
    finally:
        store.close()
    return [decode_sealed_block(item.header, item.signature, item.raws) for item in found]


@pytest.fixture(scope="module")
def replica(blocks):
    changes = build_genesis_changes(GENESIS)
    commitment = build_genesis_commitment(changes)
    state = State()
    state.apply(changes)
    found = Replica(state, commitment, build_genesis_header(GENESIS, commitment))
    for block in blocks[:-1]:
        built = found.take(block)
        found.state.apply(built.changes)
        found.commitment, found.head = built.commitment, built.block.header
    return found


def test_a_produced_block_is_taken(blocks, replica):
    built = replica.take(blocks[-1])
    assert built.block.header == blocks[-1].header
    assert [item.is_success for item in built.block.receipts] == [True, True, False]
    assert built.commitment.digest() == blocks[-1].header.state_commitment


OTHER = {
    "parent_hash": b"\1" * 32,
    "coinbase": TO,
    "state_commitment": b"\2" * 32,
    "transactions_root": b"\3" * 32,
    "logs_root": b"\4" * 32,
    "logs_bloom": b"\5" * 256,
    "number": HEIGHT + 1,
    "gas_limit": 29_999_999,
    "gas_used": 21_000,
    "timestamp": 1_700_000_000,
    "extra_data": b"x",
    "prevrandao": b"\6" * 32,
    "base_fee": 7,
}
RECORDED = {"parent_hash", "state_commitment", "transactions_root", "logs_root", "number", "timestamp"}
GIVEN = {"parent_hash", "number", "transactions_root", "timestamp"}


@pytest.mark.parametrize("is_resigned", [False, True], ids=["by whoever serves it", "by the operator"])
@pytest.mark.parametrize("field", OTHER)
def test_every_field_of_a_header_is_compared_and_named(blocks, replica, field, is_resigned):
    block = blocks[-1]
    header = replace(block.header, **{field: OTHER[field]})
    signature = sign(header) if is_resigned else block.signature
    with pytest.raises(DivergentBlock) as caught:
        replica.take(SealedBlock(header, signature, block.transactions))
    # What only running the block would show is not run for bytes that the operator did not sign.
    expected = "signature" if field in RECORDED - GIVEN and not is_resigned else field
    assert (caught.value.field, caught.value.number) == (expected, HEIGHT)
    assert caught.value.theirs != caught.value.ours
    assert caught.value.theirs in str(caught.value)


def reseal(block, transactions):
    """The operator's own lie: other transactions under a root and a signature that fit them."""
    root = compute_transactions_root([item.hash for item in transactions])
    header = replace(block.header, transactions_root=root)
    return SealedBlock(header, sign(header), tuple(transactions))


def test_what_an_operator_leaves_out_or_adds_shows(blocks, replica):
    block = blocks[-1]
    transactions = list(block.transactions)
    foreign = transfer(USERS[4], CHAIN_ID + 1, 0, TO, 1)
    poor = transfer(USERS[4], CHAIN_ID, 0, TO, 10**30)
    cheap = transaction(USERS[4], CHAIN_ID, 0, TO, value=1, max_fee=GWEI // 2)
    hungry = transaction(USERS[4], CHAIN_ID, 0, TO, value=1, gas=GENESIS.gas_limit)
    starved = transaction(USERS[4], CHAIN_ID, 0, TO, value=1, gas=20_999)
    nobody = replace(transfer(USERS[4], CHAIN_ID, 0, TO, 1), r=5, s=7)
    cases = [
        (transactions[:-1], "gas_used", ""),
        ([*transactions, transfer(USERS[4], CHAIN_ID, 0, TO, 1)], "gas_used", ""),
        ([*transactions, transactions[0]], "transaction 3", "nonce"),
        ([transfer(USERS[4], CHAIN_ID, 1, TO, 1), *transactions], "transaction 0", "nonce 1, next nonce 0"),
        ([foreign, *transactions], "transaction 0", "chain id"),
        ([poor, *transactions], "transaction 0", "wei"),
        ([cheap, *transactions], "transaction 0", "base fee"),
        ([*transactions, hungry], "transaction 3", "left in the block"),
        ([starved, *transactions], "transaction 0", "minimum needed 21000"),
        ([nobody, *transactions], "transaction 0", "recovers to no key"),
    ]
    for number, (changed, field, words) in enumerate(cases):
        with pytest.raises(DivergentBlock) as caught:
            replica.take(reseal(block, [decode_transaction(item.raw) for item in changed]))
        assert caught.value.field == field, (number, str(caught.value))
        assert words in str(caught.value)
    # The order of transactions that do not touch one another is the operator's to choose.
    moved = reseal(block, transactions[::-1])
    assert replica.take(moved).block.header == moved.header


def test_any_changed_bit_is_refused_with_a_typed_error(blocks, replica):
    """Seeded flips in header, signature and transactions as they travel."""
    block, dice = blocks[-1], random.Random(7)
    parts = [block.header.encoded, block.signature, *(item.raw for item in block.transactions)]
    kinds = set()
    for _ in range(400):
        index = dice.randrange(len(parts))
        changed = bytearray(parts[index])
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        header, signature, *raws = [bytes(changed) if number == index else part for number, part in enumerate(parts)]
        with pytest.raises(Invalid) as caught:
            replica.take(decode_sealed_block(header, signature, raws))
        kinds.add(type(caught.value).__name__)
    assert kinds == {"InvalidBlock", "DivergentBlock"}


def test_time_comes_from_the_block_alone(blocks, replica):
    """A block of any later time is taken on any day; nothing asks the machine's clock."""
    block = blocks[-1]
    for timestamp in (replica.head.timestamp, replica.head.timestamp + 10**6):
        header = replace(block.header, timestamp=timestamp)
        sealed = SealedBlock(header, sign(header), block.transactions)
        assert replica.take(sealed).block.header == header


def test_two_signed_headers_of_one_height_are_proof_and_nothing_else_is(blocks):
    ours = (blocks[-1].header, blocks[-1].signature)
    other = replace(blocks[-1].header, state_commitment=b"\7" * 32)
    proof = find_equivocation(IDENTITY, ours, (other, sign(other)))
    assert proof is not None
    data = encode_equivocation(proof)
    assert decode_equivocation(data) == proof
    said = json.loads(data)
    assert sorted(said) == ["chainId", "first", "operator", "second", "type"]
    assert (said["type"], said["chainId"]) == ("deaios/chain/equivocation/1", CHAIN_ID)
    assert sorted(said["first"]["header"]) == sorted(
        ["genesisHash", "height", "previousHash", "transactionsRoot", "logsRoot", "stateCommitment", "timestamp"]
    )
    assert find_equivocation(IDENTITY, ours, ours) is None
    assert find_equivocation(IDENTITY, ours, (other, sign(other, USERS[0]))) is None
    assert find_equivocation(IDENTITY, ours, (other, bytes(65))) is None
    assert find_equivocation(IDENTITY, ours, (blocks[-2].header, blocks[-2].signature)) is None
    # A field outside the record changes the block's hash, but not what was signed.
    assert find_equivocation(IDENTITY, ours, (replace(ours[0], gas_used=1), ours[1])) is None
    for change in (
        lambda text: text.replace(b'"height":"4"', b'"height":"5"', 1),
        lambda text: text.replace(b"equivocation/1", b"equivocation/2"),
        lambda text: text.replace(proof.first.signature.hex().encode(), proof.second.signature.hex().encode()),
        lambda text: text.replace(str(CHAIN_ID).encode(), b"1"),
        lambda text: text.replace(OPERATOR.address.hex().encode(), TO.hex().encode()),
        lambda text: text[:-1],
        lambda _text: b"[" * 100_000,
    ):
        with pytest.raises(InvalidEvidence):
            decode_equivocation(change(data))


def test_decoding_bounds_what_a_block_may_be(blocks):
    block = blocks[-1]
    raws = [item.raw for item in block.transactions]
    with pytest.raises(Invalid, match="at most 1024"):
        decode_sealed_block(bytes(1025), block.signature, raws)
    with pytest.raises(Invalid, match="65 expected"):
        decode_sealed_block(block.header.encoded, block.signature[:64], raws)
    with pytest.raises(Invalid, match="1429 transactions in 30000000 gas"):
        decode_sealed_block(block.header.encoded, block.signature, raws[:1] * 1429)
    assert is_signed(IDENTITY, decode_header(block.header.encoded), block.signature)


def test_equal_states_are_equal_objects_whatever_path_led_there():
    """A word that came and went left an empty table behind, so that a state that was read again differed."""
    address, state = Address(TO), State()
    state.apply(Changes(accounts={address: Account(1)}, slots={(address, 1): 5}))
    state.apply(Changes(slots={(address, 1): 0, (address, 2): 0}))
    assert state == State(accounts={address: Account(1)})


def test_entries_added_in_any_order_give_the_commitment_that_blocks_give(replica):
    from deaios.chain.commitment import encode_account_entry, encode_slot_entry

    entries = [encode_account_entry(address, account) for address, account in replica.state.accounts.items()]
    entries += [
        encode_slot_entry(address, slot, value)
        for address, slots in replica.state.slots.items()
        for slot, value in slots.items()
    ]
    random.Random(1).shuffle(entries)
    half = len(entries) // 2
    assert StateCommitment().added(entries[:half]).added(entries[half:]).digest() == replica.commitment.digest()
