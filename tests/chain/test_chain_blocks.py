import random
from dataclasses import replace

import pytest
from chain_values import GWEI, OPERATOR, USERS, transaction
from eth_bloom import BloomFilter
from hypothesis import given
from hypothesis import strategies as st

from deaios.chain.blocks import (
    BlockHeader,
    InvalidBlock,
    compute_bloom,
    compute_logs_root,
    decode_header,
    encode_log_leaf,
    header_record,
    next_base_fee,
)
from deaios.chain.builder import build_block
from deaios.chain.commitment import LANES, StateCommitment, encode_account_entry, encode_slot_entry
from deaios.chain.evm import Account, Changes, Log, State
from deaios.chain.genesis import (
    CHAIN_ID_LIMIT,
    CHAIN_ID_MIN,
    Allocation,
    Genesis,
    InvalidGenesis,
    build_genesis_changes,
    build_genesis_commitment,
    build_genesis_header,
    compute_genesis_hash,
    decode_genesis,
    derive_chain_id,
    encode_genesis,
)
from deaios.chain.pool import Pool, PoolLimits
from deaios.chain.strict import StrictEvm
from deaios.primitives.errors import ConfigError
from deaios.primitives.keys import Address
from deaios.primitives.merkle import prove_leaf, verify_leaf

GENESIS = Genesis(
    seed=bytes(range(32)),
    operator=OPERATOR.address,
    timestamp=1_700_000_000,
    allocations=(
        *(Allocation(user.address, 10**21) for user in USERS),
        Allocation(Address(b"\x10" * 20), 5, 1, bytes.fromhex("600160005500"), ((3, 4), (1 << 255, 7))),
    ),
)
EMITTER = bytes.fromhex("60aa60bb60206000a2" + "4360005500")


def start():
    changes = build_genesis_changes(GENESIS)
    commitment = build_genesis_commitment(changes)
    state = State()
    state.apply(changes)
    evm = StrictEvm(GENESIS.chain_id, GENESIS.gas_limit)
    evm.load(state)
    return state, commitment, evm, build_genesis_header(GENESIS, commitment)


def test_genesis_is_frozen():
    """Format vector: a change here makes every existing chain another one."""
    assert GENESIS.chain_id == derive_chain_id(bytes(range(32))) == 1_019_740_712_659
    assert compute_genesis_hash(GENESIS).hex() == "0e8062ff2786c8d745823476c9ddc1c642102724beb6a902b559c90bb9b1bc55"
    assert decode_genesis(encode_genesis(GENESIS)) == GENESIS


@given(st.binary(min_size=32, max_size=32))
def test_chain_ids_stay_in_their_range(seed):
    assert CHAIN_ID_MIN <= derive_chain_id(seed) < CHAIN_ID_LIMIT


@pytest.mark.parametrize(
    ("allocations", "rule"),
    [
        ((Allocation(Address(b"\1" * 20), 1),) * 2, "twice"),
        ((Allocation(Address(b"\1" * 20), code=b"\x48"),), r"BASEFEE.*--chain URL"),
        ((Allocation(Address(b"\1" * 20), 1 << 128),), "out of range"),
    ],
    ids=["twice", "opcode", "balance"],
)
def test_genesis_refuses_what_cannot_be(allocations, rule):
    with pytest.raises(ConfigError, match=rule):
        build_genesis_changes(replace(GENESIS, allocations=allocations))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"version":1}', encode_genesis(GENESIS).replace(b'"version":1', b'"version":2')]
)
def test_hostile_genesis_files_are_refused(data):
    with pytest.raises(InvalidGenesis):
        decode_genesis(data)


def test_the_commitment_is_of_the_state_not_of_the_way_there():
    rolls = random.Random(3)
    addresses = [Address(bytes([number]) * 20) for number in range(6)]
    state, commitment = State(), StateCommitment()
    for _ in range(60):
        changes = Changes()
        for address in rolls.sample(addresses, 2):
            empty = rolls.random() < 0.3
            changes.accounts[address] = Account() if empty else Account(rolls.randrange(3), rolls.randrange(4))
            changes.slots[address, rolls.randrange(3)] = rolls.randrange(3)
        commitment = commitment.updated(state, changes)
        state.apply(changes)
    whole = Changes(
        dict(reversed(state.accounts.items())),
        {(address, slot): value for address, slots in state.slots.items() for slot, value in slots.items()},
    )
    assert StateCommitment().updated(State(), whole).digest() == commitment.digest()
    for address in addresses:
        whole.accounts[address] = Account()
    whole.slots = dict.fromkeys(whole.slots, 0)
    assert commitment.updated(state, whole).digest() == StateCommitment().digest()


def test_entries_of_the_commitment_never_coincide():
    address = Address(b"\1" * 20)
    entries = {
        encode_account_entry(address, Account(1, 2)),
        encode_account_entry(address, Account(2, 1)),
        encode_slot_entry(address, 1, 2),
        encode_slot_entry(address, 2, 1),
    }
    assert len(entries) == 4
    assert len(StateCommitment().encode()) == 2 * LANES


def test_bloom_and_header_are_ethereums():
    log = Log(Address(b"\x12" * 20), (b"\x34" * 32, b"\x56" * 32), b"data")
    foreign = BloomFilter()
    for item in (log.address, *log.topics):
        foreign.add(item)
    assert compute_bloom([log]) == int(foreign).to_bytes(256)
    header = start()[3]
    assert decode_header(header.encoded) == header
    # The post-merge London fields of a header in order, hashed by a foreign RLP implementation.
    import rlp
    from eth_utils import keccak

    fields = rlp.decode(header.encoded)
    assert len(fields) == 16
    assert keccak(rlp.encode(fields)) == header.hash


@given(st.binary(max_size=600))
def test_hostile_headers_are_refused(data):
    from deaios.ledger.rlp import InvalidRlp

    with pytest.raises((InvalidBlock, InvalidRlp)):
        decode_header(data)


@pytest.mark.parametrize(
    ("used", "base_fee", "expected"),
    [
        (15_000_000, 1_000, 1_000),
        (30_000_000, 1_000, 1_125),
        (0, 1_000, 875),
        (15_000_001, 8, 9),
        (0, 7, 7),
        (7_500_000, 10**9, 937_500_000),
    ],
)
def test_base_fee_follows_eip_1559(used, base_fee, expected):
    header = replace(start()[3], gas_used=used, base_fee=base_fee)
    assert next_base_fee(header) == expected


def fill(pool, state, base_fee):
    chain_id = GENESIS.chain_id
    deploy = bytes.fromhex("6d" + EMITTER.hex() + "600052600e6012f3")
    pool.add(transaction(USERS[0], chain_id, 0, None, data=deploy, gas=200_000), USERS[0].address, state, base_fee)
    for index, user in enumerate(USERS):
        nonce = 1 if index == 0 else 0
        signed = transaction(user, chain_id, nonce, b"\x10" * 20, gas=100_000, value=index)
        pool.add(signed, user.address, state, base_fee)


def test_the_same_inputs_build_the_same_block_and_a_follower_agrees():
    blocks = []
    for _ in range(2):
        state, commitment, evm, parent = start()
        pool = Pool(PoolLimits(), GENESIS.gas_limit)
        fill(pool, state, next_base_fee(parent))
        candidates = pool.candidates(state, next_base_fee(parent))
        built = build_block(evm, state, commitment, parent, candidates, 1_700_000_005)
        blocks.append(built)
        state.apply(built.changes)
        whole = Changes(
            dict(state.accounts),
            {(address, slot): value for address, slots in state.slots.items() for slot, value in slots.items()},
        )
        assert StateCommitment().updated(State(), whole).digest() == built.block.header.state_commitment
    first, second = (built.block for built in blocks)
    assert first == second
    assert len(first.receipts) == 7
    assert all(receipt.is_success for receipt in first.receipts)
    assert first.header.gas_used == sum(receipt.gas_used for receipt in first.receipts)
    record = header_record(b"\7" * 32, first.header)
    assert (record.height, record.previous_hash, record.timestamp) == (1, start()[3].hash, 1_700_000_005)


def test_a_log_is_provable_under_the_signed_logs_root():
    logs = [Log(Address(bytes([number]) * 20), (), bytes(number)) for number in range(5)]
    leaves = [encode_log_leaf(b"\1" * 32, log) for log in logs]

    class Included:
        def __init__(self, log):
            self.logs = (log,)
            self.transaction = type("Hashed", (), {"hash": b"\1" * 32})

    root = compute_logs_root([Included(log) for log in logs])
    for index, leaf in enumerate(leaves):
        assert verify_leaf("deaios/chain/logs/1", root, 5, index, leaf, prove_leaf(leaves, index))


def test_time_never_runs_backwards_and_gas_is_bounded():
    state, commitment, evm, parent = start()
    pool = Pool(PoolLimits(), GENESIS.gas_limit)
    for nonce in range(4):
        heavy = transaction(USERS[0], GENESIS.chain_id, nonce, None, data=b"\xfe", gas=14_000_000, max_fee=2 * GWEI)
        pool.add(heavy, USERS[0].address, state, next_base_fee(parent))
    built = build_block(evm, state, commitment, parent, pool.candidates(state, next_base_fee(parent)), 5)
    assert built.block.header.timestamp == parent.timestamp
    assert len(built.block.receipts) == 2
    assert built.block.header.gas_used == 28_000_000 <= GENESIS.gas_limit
    assert isinstance(built.block.header, BlockHeader)
