import pytest

from deaios.chain import selftest
from deaios.chain.evm import (
    NO_ACCOUNT,
    Account,
    BlockContext,
    InvalidMessage,
    Message,
    State,
    Status,
    UnavailableEngine,
)
from deaios.chain.journal_text import read_journal
from deaios.chain.selftest import run_selftest
from deaios.chain.strict import UNOBSERVED, StrictEvm
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

SENDER, CONTRACT, OPERATOR, HEIR = (Address(bytes([byte]) * 20) for byte in (0xA1, 0xB2, 0xC3, 0xD4))
CONTEXT = BlockContext(9, 1_700_000_000, 30_000_000, 10, OPERATOR, b"\2" * 32)
RICH = 10**20


def engine(code=b"", slots=None, balance=RICH):
    state = State()
    state.accounts[SENDER] = Account(0, balance)
    if code:
        state.accounts[CONTRACT] = Account(1, 0, code, keccak256(code))
        state.slots[CONTRACT] = dict(slots or {})
    evm = StrictEvm(77, CONTEXT.gas_limit)
    evm.load(state)
    return evm, state


def test_the_pinned_wheel_passes():
    run_selftest()


def test_a_wheel_with_another_debug_text_is_refused(monkeypatch):
    changed = tuple(text.replace("previous_or_original_value", "original_value") for text in selftest._TEXT_ACCOUNTS)
    monkeypatch.setattr(selftest, "_TEXT_ACCOUNTS", changed)
    with pytest.raises(
        UnavailableEngine, match=r"install pyrevm==0\.3\.7, or use an external network with --chain URL"
    ):
        run_selftest()


def test_a_wheel_with_another_gas_schedule_is_refused(monkeypatch):
    name, program, value, gas, slots = selftest._PROGRAMS[0]
    monkeypatch.setattr(selftest, "_PROGRAMS", ((name, program, value, gas + 1, slots),))
    with pytest.raises(UnavailableEngine, match="cold store of a new slot"):
        run_selftest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Journal { state: {}, transient_storage: {} }",
        "JournaledState { state: {0x"
        + "aa" * 20
        + ": Account { info: AccountInfo { balance: 0x1 } } }, transient_storage: {",
    ],
    ids=["empty", "renamed", "another-account"],
)
def test_a_text_in_another_form_is_never_half_read(text):
    with pytest.raises(UnavailableEngine):
        read_journal(text)


@pytest.mark.parametrize("opcode", ["48", "40"])
def test_contracts_that_keep_a_forbidden_opcode_are_refused_whoever_made_them(opcode):
    """By a transaction, and by a factory in a call: the transaction halts, and leaves nothing but its fee."""
    runtime = bytes.fromhex("6000" + opcode + "5000")
    head = bytes.fromhex("68") + runtime.ljust(9, b"\0") + bytes.fromhex("60005260096017f3")
    factory_code = (
        bytes([0x60 + len(head) - 1])
        + head
        + bytes.fromhex("600052")
        + bytes([0x60, len(head), 0x60, 32 - len(head), 0x60, 0, 0xF0, 0])
    )
    evm, state = engine(factory_code)
    for to, data in ((None, head), (CONTRACT, b"")):
        before = state.account(SENDER).balance
        message = Message(SENDER, to, data, 0, 400_000, 12)
        assert evm.call(CONTEXT, message).is_refused
        outcome = evm.execute(CONTEXT, message)
        changes = evm.commit()
        assert (outcome.status, outcome.is_refused, outcome.gas_used) == (Status.HALT, True, 400_000)
        assert ("BASEFEE" if opcode == "48" else "BLOCKHASH") in outcome.reason
        assert "--chain URL" in outcome.reason
        assert set(changes.accounts) == {SENDER, OPERATOR}
        assert changes.slots == {}
        state.apply(changes)
        assert before - state.account(SENDER).balance == 400_000 * 12


def test_calls_change_nothing_and_may_come_from_contracts():
    code = bytes.fromhex("60015460010160015560015460005260206000f3")  # counts its calls in slot 1
    evm, state = engine(code, {1: 41})
    for _ in range(2):
        outcome = evm.call(CONTEXT, Message(CONTRACT, CONTRACT, b"", 0, 100_000))
        assert int.from_bytes(outcome.output) == 42
    assert evm.commit().slots == {}
    evm.execute(CONTEXT, Message(SENDER, CONTRACT, b"", 0, 100_000, 12))
    state.apply(evm.commit())
    assert state.slot(CONTRACT, 1) == 42


def test_a_contract_never_sends_transactions():
    evm, _ = engine(b"\0")
    with pytest.raises(InvalidMessage, match="EIP-3607"):
        evm.execute(CONTEXT, Message(CONTRACT, SENDER, b"", 0, 21_000, 12))


def test_a_sender_that_cannot_pay_changes_nothing():
    evm, _ = engine(balance=21_000 * 12 - 1)
    with pytest.raises(InvalidMessage, match="needed"):
        evm.execute(CONTEXT, Message(SENDER, HEIR, b"", 0, 21_000, 12))
    with pytest.raises(InvalidMessage, match="base fee"):
        evm.execute(CONTEXT, Message(SENDER, HEIR, b"", 0, 21_000, 9))
    assert evm.commit().accounts == {}
    with pytest.raises(InvalidMessage):
        evm.call(CONTEXT, Message(SENDER, HEIR, b"", 10**30, 21_000))


def test_everything_can_be_spent():
    evm, state = engine(balance=21_000 * 12 + 5)
    outcome = evm.execute(CONTEXT, Message(SENDER, HEIR, b"", 5, 21_000, 12))
    state.apply(evm.commit())
    assert outcome.status is Status.SUCCESS
    assert state.account(SENDER) == Account(1, 0)
    assert state.account(HEIR) == Account(0, 5)


@pytest.mark.parametrize(
    ("program", "rest"),
    [
        ("3a600055" + "3231600155" + "00", 700_000),
        ("3a600557005b" + "3231600055" + "00", 700_000),
        ("67" + (1_000_000).to_bytes(8).hex() + "323110" + "601057005b" + "3a600055" + "00", 700_000),
        ("3a600055" + "3231600055" + "00", 0),
    ],
    ids=["price-and-balance", "balance-because-of-the-price", "price-because-of-the-balance", "price-written-over"],
)
def test_a_poor_sender_is_refused_rather_than_shown_a_bent_value(program, rest):
    """It owns less than twice the gas cost, so the engine can bend the price or the balance, but not neither."""
    price, gas = 12, 100_000
    evm, state = engine(bytes.fromhex(program), balance=gas * price + rest)
    outcome = evm.execute(CONTEXT, Message(SENDER, CONTRACT, b"", 0, gas, price))
    state.apply(evm.commit())
    assert (outcome.is_refused, outcome.gas_used, outcome.reason) == (True, gas, UNOBSERVED)
    assert state.account(SENDER) == Account(1, rest)
    assert state.slots[CONTRACT] == {}


def test_a_poor_sender_may_write_many_words():
    """The journal's text names words in an order of its own in each run; that is no difference between the runs."""
    program = "".join(f"600160{slot:02x}55" for slot in range(8)) + "00"
    price, gas = 12, 300_000
    evm, state = engine(bytes.fromhex(program), balance=gas * price)
    outcome = evm.execute(CONTEXT, Message(SENDER, CONTRACT, b"", 0, gas, price))
    state.apply(evm.commit())
    assert (outcome.status, outcome.reason) == (Status.SUCCESS, "")
    assert state.slots[CONTRACT] == dict.fromkeys(range(8), 1)
    assert state.account(SENDER) == Account(1, (gas - outcome.gas_used) * price)


def test_the_operator_may_send_and_be_paid_in_one_transaction():
    evm, state = engine()
    evm.put_account(OPERATOR, Account(0, RICH))
    state.apply(evm.commit())
    for to, data in ((HEIR, b""), (OPERATOR, b""), (None, bytes.fromhex("60006000f3"))):
        before = state.account(OPERATOR).balance
        outcome = evm.execute(CONTEXT, Message(OPERATOR, to, data, 3, 60_000, 12))
        state.apply(evm.commit())
        burned, sent = outcome.gas_used * 10, 0 if to == OPERATOR else 3
        assert before - state.account(OPERATOR).balance == burned + sent


def test_destroyed_and_emptied_accounts_are_gone():
    evm, state = engine(bytes.fromhex("73" + HEIR.hex() + "ff"))
    suicidal = bytes.fromhex("6001600055" + "73" + HEIR.hex() + "ff")
    outcome = evm.execute(CONTEXT, Message(SENDER, None, suicidal, 9, 200_000, 12))
    state.apply(evm.commit())
    assert state.account(outcome.created) == NO_ACCOUNT
    assert outcome.created not in state.slots
    # An older contract only passes its money on (EIP-6780).
    evm.execute(CONTEXT, Message(SENDER, CONTRACT, b"", 4, 200_000, 12))
    state.apply(evm.commit())
    assert state.account(CONTRACT).code
    assert state.account(HEIR).balance == 13


def test_memory_does_not_grow_with_transactions():
    """The reason for strict mode: the naive journal keeps every touch for ever."""
    evm, state = engine(bytes.fromhex("43600155" + "00"))
    for _ in range(50):
        evm.execute(CONTEXT, Message(SENDER, CONTRACT, b"", 0, 100_000, 12))
        state.apply(evm.commit())
    assert len(evm._evm.journal_str) < 2_000
    assert evm._evm.journal_len == 1
