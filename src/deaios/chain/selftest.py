"""Refuses to start when the pinned wheel is not the one that strict mode was written for.

Two checks: the debug text of one known message, byte for byte but for the order of its accounts, and known answers
(gas, writes, logs, revert data, creation, EIP-2929, 3529, 6780, 1153, access lists) run through the engine itself.
Expected numbers are Cancun's; tests compare the same programs with a foreign node.
"""

import pyrevm

from deaios.chain.evm import Account, BlockContext, Evm, Log, Message, Outcome, State, Status, UnavailableEngine
from deaios.chain.journal_text import read_journal
from deaios.chain.strict import StrictEvm, insert_account
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

_SENDER = Address(b"\xaa" * 20)
_CONTRACT = Address(b"\xbb" * 20)
_COINBASE = Address(b"\xcc" * 20)
_CONTEXT = BlockContext(7, 1_700_000_000, 30_000_000, 5, _COINBASE, b"\x11" * 32)
_PRICE = 7
_GAS = 200_000

_EMPTY = "0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
_TEXT_ACCOUNTS = (
    (
        f"0x{_SENDER.hex()}: Account {{ info: AccountInfo {{ balance: 999999999999999995, nonce: 3, "
        f"code_hash: {_EMPTY}, code: None }}, storage: {{}}, status: AccountStatus(Touched) }}"
    ),
    (
        f"0x{_CONTRACT.hex()}: Account {{ info: AccountInfo {{ balance: 5, nonce: 1, "
        "code_hash: 0xa66f89b0fd055b56dec343abffd76724652beea2201b7ba20b35c43d98330878, "
        "code: Some(Bytecode { bytecode: 0x600260015500, state: Raw }) }, "
        "storage: {1: StorageSlot { previous_or_original_value: 0, present_value: 2 }}, "
        "status: AccountStatus(Touched) }"
    ),
    (
        f"0x{_COINBASE.hex()}: Account {{ info: AccountInfo {{ balance: 0, nonce: 0, code_hash: {_EMPTY}, "
        'code: Some(Bytecode { bytecode: 0x00, state: Analysed { len: 0, jump_map: JumpMap { map: "00" } } }) }, '
        "storage: {}, status: AccountStatus(0x0) }"
    ),
)
_TEXT_TAIL = "}, transient_storage: {}, logs: [], depth: 1, journal: [[], ["


def run_selftest() -> None:
    """Check the wheel.

    Raises:
        UnavailableEngine: it answers differently; the message says where.
    """
    _check_text()
    for name, program, value, expected_gas, expected_slots in _PROGRAMS:
        engine, state = _engine(bytes.fromhex(program))
        outcome = engine.execute(_CONTEXT, Message(_SENDER, _CONTRACT, b"", value, _GAS, _PRICE))
        state.apply(engine.commit())
        slots = state.slots.get(_CONTRACT, {})
        if (outcome.gas_used, slots) != (expected_gas, expected_slots):
            raise _different(name, (outcome.gas_used, slots), (expected_gas, expected_slots))
    _check_settlement()
    _check_transient()
    _check_failures()
    _check_creation()
    _check_slots()
    _check_access_list()


def _different(name: str, found: object, expected: object) -> UnavailableEngine:
    return UnavailableEngine(
        f"the installed pyrevm is not the one this program was written for ({name}: {found}, expected {expected}); "
        "install pyrevm==0.3.7, or use an external network with --chain URL"
    )


_STORE_NEW = "600260015500"
# name, runtime code, value, gas with a price and no access list, final slots
_PROGRAMS: tuple[tuple[str, str, int, int, dict[int, int]], ...] = (
    ("cold store of a new slot", _STORE_NEW, 0, 21_000 + 6 + 22_100, {1: 2, 9: 9}),
    ("store, clear, refund capped at a fifth", "6001600155" + "6000600155" + "00", 0, 43_212 - 43_212 // 5, {9: 9}),
    ("refund of a cleared slot", "600060095500", 0, 21_206, {}),
    ("cold and warm load", "600154506001545000", 0, 21_000 + 2 * 5 + 2_100 + 100, {9: 9}),
    (
        "transient storage within a message",
        "6007600a5d" + "600a5c600155" + "00",
        5,
        21_000 + 12 + 200 + 22_100,
        {1: 7, 9: 9},
    ),
    ("coinbase is warm", "41315000", 0, 21_000 + 4 + 100, {9: 9}),
)


def _engine(code: bytes, balance: int = 10**18) -> tuple[Evm, State]:
    state = State()
    state.accounts[_SENDER] = Account(3, balance)
    state.accounts[_CONTRACT] = Account(1, 0, code, keccak256(code))
    state.slots[_CONTRACT] = {9: 9}
    engine = StrictEvm(1337, _CONTEXT.gas_limit)
    engine.load(state)
    return engine, state


def _check_text() -> None:
    evm = pyrevm.EVM(spec_id="CANCUN", gas_limit=_CONTEXT.gas_limit)
    evm.set_block_env(pyrevm.BlockEnv(number=7, coinbase="0x" + _COINBASE.hex()))
    code = bytes.fromhex(_STORE_NEW)
    insert_account(evm, _SENDER, Account(3, 10**18))
    insert_account(evm, _CONTRACT, Account(1, 0, code, keccak256(code)))
    evm.snapshot()
    evm.message_call("0x" + _SENDER.hex(), "0x" + _CONTRACT.hex(), b"", 5, _GAS, _PRICE)
    text = evm.journal_str
    rest = text.removeprefix("JournaledState { state: {")
    for account in sorted(_TEXT_ACCOUNTS, key=rest.find):
        if not rest.startswith(account):
            raise _different("debug text of an account", rest[:200], account)
        rest = rest.removeprefix(account).removeprefix(", ")
    if not rest.startswith(_TEXT_TAIL):
        raise _different("debug text after the accounts", rest[:100], _TEXT_TAIL)
    if len(read_journal(text)) != len(_TEXT_ACCOUNTS):
        raise _different("accounts read", len(read_journal(text)), len(_TEXT_ACCOUNTS))


def _check_settlement() -> None:
    """Base fee burned, tip to the coinbase, nonce up by one, money conserved, the next transaction cold again."""
    engine, state = _engine(bytes.fromhex("600154600155" + "00"))
    gas = []
    for _ in range(2):
        gas.append(engine.execute(_CONTEXT, Message(_SENDER, _CONTRACT, b"", 11, _GAS, _PRICE)).gas_used)
        state.apply(engine.commit())
    burned = sum(gas) * _CONTEXT.base_fee
    found = (
        gas[0] == gas[1],
        state.account(_SENDER),
        state.account(_COINBASE).balance,
        state.account(_CONTRACT).balance,
        sum(account.balance for account in state.accounts.values()) + burned,
    )
    tip = sum(gas) * (_PRICE - _CONTEXT.base_fee)
    expected = (True, Account(5, 10**18 - sum(gas) * _PRICE - 22), tip, 22, 10**18)
    if found != expected:
        raise _different("settlement", found, expected)


def _check_transient() -> None:
    """What one message leaves in transient storage, the next does not find."""
    engine, state = _engine(bytes.fromhex("600a5c600155" + "6007600a5d" + "00"))
    for _ in range(2):
        engine.execute(_CONTEXT, Message(_SENDER, _CONTRACT, b"", 0, _GAS, _PRICE))
        state.apply(engine.commit())
    if state.slots[_CONTRACT] != {9: 9}:
        raise _different("transient storage of the next message", state.slots[_CONTRACT], {9: 9})


def _check_failures() -> None:
    for name, program, expected in (
        ("revert data", "60aa60005260206000fd", Outcome(Status.REVERT, 21_018, output=(0xAA).to_bytes(32))),
        ("invalid opcode", "fe", Outcome(Status.HALT, _GAS, reason="InvalidFEOpcode")),
        ("out of gas", "5b600056", Outcome(Status.HALT, _GAS, reason="OutOfGas(Basic)")),
    ):
        engine, state = _engine(bytes.fromhex(program))
        outcome = engine.execute(_CONTEXT, Message(_SENDER, _CONTRACT, b"", 5, _GAS, _PRICE))
        state.apply(engine.commit())
        if outcome != expected or state.account(_SENDER) != Account(4, 10**18 - outcome.gas_used * _PRICE):
            raise _different(name, (outcome, state.account(_SENDER)), expected)


def _check_creation() -> None:
    """A deployed contract with a slot and a log that shows what its code saw, then one that destroys itself at once."""
    # Its constructor stores 1, logs its caller's balance under the gas price, and returns five zero bytes.
    deploy = bytes.fromhex("6001600055" + "3331600052" + "3a60206000a1" + "60056040f3")
    engine, state = _engine(b"")
    outcome = engine.execute(_CONTEXT, Message(_SENDER, None, deploy, 4, _GAS, _PRICE))
    state.apply(engine.commit())
    created = outcome.created or _SENDER
    log = Log(created, (_PRICE.to_bytes(32),), (10**18 - _GAS * _PRICE - 4).to_bytes(32))
    tip = outcome.gas_used * (_PRICE - _CONTEXT.base_fee)
    found = (
        (outcome.status, outcome.logs, state.account(created), state.slot(created, 0)),
        (state.account(_SENDER), state.account(_COINBASE).balance),
    )
    expected = (
        (Status.SUCCESS, (log,), Account(1, 4, bytes(5), keccak256(bytes(5))), 1),
        (Account(4, 10**18 - 4 - outcome.gas_used * _PRICE), tip),
    )
    if found != expected:
        raise _different("creation", found, expected)
    suicidal = bytes.fromhex("6001600055" + "73" + "dd" * 20 + "ff")
    outcome = engine.execute(_CONTEXT, Message(_SENDER, None, suicidal, 9, _GAS, _PRICE))
    state.apply(engine.commit())
    tip += outcome.gas_used * (_PRICE - _CONTEXT.base_fee)
    heir, paid = state.account(Address(b"\xdd" * 20)).balance, state.account(_COINBASE).balance
    if (outcome.created in state.accounts, outcome.created in state.slots, heir, paid) != (False, False, 9, tip):
        raise _different("destruction within the creating transaction", (heir, paid), (9, tip))


def _check_slots() -> None:
    """Several words of one account, written from outside, are all found."""
    engine, state = _engine(bytes.fromhex("600154600254600354010160045500"))
    for slot in (1, 2, 3):
        engine.put_slot(_CONTRACT, slot, slot)
    engine.execute(_CONTEXT, Message(_SENDER, _CONTRACT, b"", 0, _GAS, _PRICE))
    state.apply(engine.commit())
    if state.slot(_CONTRACT, 4) != 6:
        raise _different("sum of three words", state.slot(_CONTRACT, 4), 6)


def _check_access_list() -> None:
    """Slots named in the list cost 1,900 up front and are warm once, then cold again."""
    program = bytes.fromhex("6009545000")
    engine, _ = _engine(program)
    base = 21_000 + 5
    listed = ((_CONTRACT, (9,)),)
    gas = [
        engine.execute(_CONTEXT, Message(_SENDER, _CONTRACT, b"", 0, _GAS, _PRICE, entries)).gas_used
        for entries in ((), listed, ())
    ]
    expected = [base + 2_100, base + 2_400 + 1_900 + 100, base + 2_100]
    if gas != expected:
        raise _different("access list", gas, expected)
