"""The embedded chain against anvil under Cancun: fuzzed histories, and what earlier ones found, by name.

`python -m soak.chain` runs the same search for as long as one likes.
"""

import re

import pytest
from soak.chain_fuzz import twin as twin_module
from soak.chain_fuzz.assembly import assemble, build_init_code, push
from soak.chain_fuzz.campaign import Campaign
from soak.chain_fuzz.foreign import CHAIN_ID, ForeignNode
from soak.chain_fuzz.twin import Mismatch, Twin

from deaios.chain.evm import Status
from deaios.ledger.suite import compute_contract_address
from deaios.ledger.transactions import ACCESS_LIST, DYNAMIC_FEE, LEGACY, Transaction, sign_transaction
from deaios.primitives.keys import Address, PrivateKey

GWEI = 10**9
RICH, POOR, OPERATOR = (PrivateKey(bytes([0x77, number]).rjust(32, b"\x55")) for number in range(3))
HEIR = b"\xee" * 20


@pytest.fixture
def node(anvil):
    node = ForeignNode(anvil.url)
    yield node
    node.close()


@pytest.fixture
def twin(node):
    twin = Twin(node, OPERATOR.address)
    for key in (RICH, OPERATOR):
        twin.put_balance(key.address, 10**22)
    return twin


def run(twin, to, data=b"", *, key=RICH, value=0, gas=500_000, kind=DYNAMIC_FEE, listed=()):
    """One block of one transaction on both chains, compared in everything."""
    price = 30 * GWEI
    nonce = twin.state.account(key.address).nonce
    fields = Transaction(kind, CHAIN_ID, nonce, price, price, gas, to, value, data, listed)
    offer = twin.offer(sign_transaction(key, fields).raw)
    assert (offer.ours, offer.theirs) == (None, None)
    ((receipt, outcome),) = twin.mine(1)
    twin.compare_state()
    return receipt, outcome


def deploy(twin, *items):
    """A contract with this code."""
    receipt, _ = run(twin, None, build_init_code(assemble(*items)))
    assert receipt.created is not None
    return receipt.created


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_fuzzed_histories_are_equal(node, seed):
    campaign = Campaign(node, precompiles=range(1, 10))
    campaign.run_seed(seed, 150)
    counts = campaign.counts
    assert campaign.transactions > 120
    assert min(counts[f"ended {status.value}"] for status in Status) >= 5
    assert min(counts[f"type {kind}"] for kind in ("0", "1 with list", "2", "2 with list")) >= 5
    assert counts["contracts made by a transaction"] >= 10
    assert counts["blocks of several"] >= 5
    assert len(campaign.errors) >= 3
    assert counts["opcode SSTORE"] > 10


def test_a_failed_creation_shows_the_address_it_would_have_had(twin):
    """As geth and anvil do; ours said null."""
    nonce = twin.state.account(RICH.address).nonce
    receipt, outcome = run(twin, None, assemble(0, 0, "REVERT"))
    assert outcome.status is Status.REVERT
    shown = twin_module.render_receipt(receipt, twin.head)["contractAddress"]
    assert shown == "0x" + compute_contract_address(RICH.address, nonce).hex()


@pytest.mark.parametrize(
    "reads", [("ORIGIN", "BALANCE"), ("GASPRICE",), (5,)], ids=["its-balance", "the-price", "neither"]
)
def test_a_sender_with_little_more_than_the_gas_cost_sees_its_true_balance(twin, reads):
    """The wheel checks the balance twice; the engine finds the exact result when code reads balance or price."""
    words = [item for slot in range(5) for item in (*reads, slot, "ADD", slot, "SSTORE")]
    reader = deploy(twin, *words, "STOP")
    twin.put_balance(POOR.address, 200_000 * (30 * GWEI + 1) + 9)
    _, outcome = run(twin, reader, key=POOR, value=7, gas=200_000, kind=LEGACY)
    assert outcome.status is Status.SUCCESS
    assert len(twin.state.slots[reader]) == 5


def test_words_of_a_contract_that_the_transaction_makes_can_be_listed(twin):
    """EIP-2930: warm before they exist, and still zero when they do."""
    address = compute_contract_address(RICH.address, twin.state.account(RICH.address).nonce)
    listed = ((address, (0, 0, 1)), (address, ()), (Address(HEIR), (3,)))
    code = assemble(0, "SLOAD", 1, "ADD", 0, "SSTORE", 7, 1, "SSTORE", 0, 0, "RETURN")
    for kind in (ACCESS_LIST, DYNAMIC_FEE):
        receipt, _ = run(twin, None, code, kind=kind, listed=listed)
        assert twin.state.slots[receipt.created] == {0: 1, 1: 7}


def test_money_sent_to_a_contract_destroyed_in_the_same_transaction_burns(twin):
    """EIP-6780; and the address can be made anew only in a later transaction."""
    child = build_init_code(assemble(push(HEIR), "SELFDESTRUCT"))
    assert len(child) <= 64
    memory = assemble(push(child[:32]), 0, "MSTORE", push(child[32:].ljust(32, b"\0")), 32, "MSTORE")
    make = assemble(9, len(child), 0, 2, "CREATE2")
    pay = assemble(0, 0, 0, 0, 3, "DUP6", "GAS", "CALL", "POP")
    factory = deploy(twin, memory, make, pay, pay, make, 1, "ADD", 0, "SSTORE", 1, "SSTORE")
    for round_number in (1, 2):
        run(twin, factory, value=100, gas=9_000_000)
        assert twin.state.account(Address(HEIR)).balance == round_number * (2 + 3 + 3)
        assert twin.state.slots[factory][0] == 1, "the second creation must collide"


def test_an_operator_may_send_create_and_be_paid_at_once(twin):
    for to in (None, Address(HEIR), OPERATOR.address):
        run(twin, to, assemble("COINBASE", "BALANCE", 0, "SSTORE"), key=OPERATOR, value=1)


def test_a_difference_of_a_single_wei_or_word_is_found(twin):
    """The comparison itself must be able to fail."""
    keeper = deploy(twin, 1, 2, "SSTORE")
    run(twin, keeper)
    twin.node.rpc("anvil_setStorageAt", "0x" + keeper.hex(), "0x2", "0x" + (5).to_bytes(32).hex())
    with pytest.raises(Mismatch, match=re.escape(f"slot 0x2 of 0x{keeper.hex()}: ours 0x1, anvil's 0x5")):
        twin.compare_state()
    twin.reload()
    twin.node.rpc("anvil_setBalance", "0x" + HEIR.hex(), "0x1")
    with pytest.raises(Mismatch, match="balance 0, 0 bytes of code, anvil's nonce 0, balance 1"):
        twin.compare_state()
