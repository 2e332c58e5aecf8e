"""The strict engine against anvil under Cancun: the same random programs, the same blocks, every receipt and word."""

import random

import pytest

from deaios.chain.builder import make_message
from deaios.chain.evm import Account, BlockContext, State, Status
from deaios.chain.strict import StrictEvm
from deaios.ledger.rlp import encode_integer, encode_rlp
from deaios.ledger.transactions import ACCESS_LIST, DYNAMIC_FEE, LEGACY, Transaction, sign_transaction
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address, PrivateKey

CHAIN_ID = 1337
CONTRACTS = 8
SENDERS = 3
CALLS = 90
GWEI = 10**9
OP = {
    "STOP": 0x00, "ADD": 0x01, "MUL": 0x02, "EXP": 0x0A, "AND": 0x16, "KECCAK256": 0x20, "ADDRESS": 0x30,
    "BALANCE": 0x31, "ORIGIN": 0x32, "CALLER": 0x33, "CALLVALUE": 0x34, "CALLDATALOAD": 0x35, "CALLDATASIZE": 0x36,
    "CODECOPY": 0x39, "GASPRICE": 0x3A, "EXTCODESIZE": 0x3B, "EXTCODECOPY": 0x3C, "RETURNDATASIZE": 0x3D,
    "EXTCODEHASH": 0x3F, "COINBASE": 0x41, "TIMESTAMP": 0x42, "NUMBER": 0x43, "PREVRANDAO": 0x44, "GASLIMIT": 0x45,
    "CHAINID": 0x46, "SELFBALANCE": 0x47, "POP": 0x50, "MLOAD": 0x51, "MSTORE": 0x52, "SLOAD": 0x54, "SSTORE": 0x55,
    "GAS": 0x5A, "TLOAD": 0x5C, "TSTORE": 0x5D, "MCOPY": 0x5E, "LOG0": 0xA0, "CREATE": 0xF0, "CALL": 0xF1,
    "CALLCODE": 0xF2, "RETURN": 0xF3, "DELEGATECALL": 0xF4, "CREATE2": 0xF5, "STATICCALL": 0xFA, "REVERT": 0xFD,
    "INVALID": 0xFE, "SELFDESTRUCT": 0xFF,
}  # fmt: skip


def code(*items):
    """Assemble: text is an opcode, an int a PUSH of its shortest form, bytes go in as they are."""
    out = b""
    for item in items:
        if isinstance(item, str):
            out += bytes([OP[item]])
        elif isinstance(item, bytes):
            out += item
        else:
            number = item.to_bytes(max(1, (item.bit_length() + 7) // 8))
            out += bytes([0x5F + len(number)]) + number
    return out


def initcode(runtime):
    """Code that deploys `runtime`."""
    head = code(len(runtime), 0, 0, "CODECOPY", len(runtime), 0, "RETURN")
    head = code(len(runtime), len(head), 0, "CODECOPY", len(runtime), 0, "RETURN")
    assert len(head) < 256
    return head + runtime


class Programs:
    """Random programs that call each other, write, create, destroy and fail."""

    def __init__(self, seed, addresses):
        self.random = random.Random(seed)
        self.addresses = [*addresses, *(number.to_bytes(20) for number in (1, 2, 3, 4, 5, 9, 10))]
        self.addresses += [b"\xee" * 20, b"\xef" * 20]

    def runtime(self, snippets):
        parts = [self.random.choice(self.KINDS)(self) for _ in range(snippets)]
        return b"".join(parts) + self.random.choice(self.ENDS)

    def address(self):
        return int.from_bytes(self.random.choice(self.addresses))

    def slot(self):
        return self.random.randrange(6)

    def write(self):
        return code(self.random.choice([0, 0, 1, 2, 1 << 255]), self.slot(), "SSTORE")

    def keep(self, *items):
        return code(*items, self.slot(), "SSTORE")

    def read(self):
        return self.keep(self.slot(), "SLOAD", 3, "ADD")

    def transient(self):
        return code(self.random.randrange(9), self.slot(), "TSTORE") + self.keep(self.slot(), "TLOAD")

    def environment(self):
        names = ["ORIGIN", "CALLER", "CALLVALUE", "GASPRICE", "COINBASE", "TIMESTAMP", "NUMBER", "PREVRANDAO"]
        return self.keep(self.random.choice([*names, "GASLIMIT", "CHAINID", "SELFBALANCE", "GAS", "RETURNDATASIZE"]))

    def account(self):
        return self.keep(self.address(), self.random.choice(["BALANCE", "EXTCODESIZE", "EXTCODEHASH"]))

    def own_balance(self):
        return self.keep(self.random.choice(["ORIGIN", "COINBASE", "ADDRESS"]), "BALANCE")

    def log(self):
        topics = self.random.randrange(5)
        return code(
            *[self.random.getrandbits(200) for _ in range(topics)],
            self.random.choice([0, 5, 64]),
            0,
            bytes([0xA0 + topics]),
        )

    def calldata(self):
        return code(32, "CALLDATALOAD", 0, "CALLDATALOAD", 7, "AND", "SSTORE")

    def memory(self):
        return code(self.random.getrandbits(256), self.random.choice([0, 32, 1000]), "MSTORE", 40, 3, 64, "MCOPY")

    def digest(self):
        return self.keep(self.random.choice([0, 32, 100]), 0, "KECCAK256", self.random.getrandbits(40), "EXP")

    def call(self):
        kind = self.random.choice(["CALL", "CALL", "CALLCODE", "DELEGATECALL", "STATICCALL"])
        gas = self.random.choice(["GAS", 5_000, 60_000, 200_000])
        value = [self.random.choice([0, 0, 1])] if kind in ("CALL", "CALLCODE") else []
        return self.keep(32, 0, self.random.choice([0, 32, 96]), 0, *value, self.address(), gas, kind)

    def create(self):
        child = self.random.choice(
            [
                code(7, 1, "SSTORE", "ORIGIN", "SELFDESTRUCT"),
                initcode(code(1, 0, "SSTORE", self.address(), "SELFDESTRUCT"))[:32],
                initcode(code(0, "SLOAD", 0, "MSTORE", 32, 0, "RETURN")),
                code(0, 0, "REVERT"),
                b"\xfe",
            ]
        )[:32]
        store = code(int.from_bytes(child.ljust(32, b"\0")), 0, "MSTORE")
        salt, opcode = ([self.random.randrange(3)], "CREATE2") if self.random.random() < 0.5 else ([], "CREATE")
        made = code(*salt, len(child), 0, self.random.choice([0, 0, 1]), opcode)
        touch = (
            bytes([0x80]) + code(8, "SSTORE") + code(0, 0, 0, 0, 0) + bytes([0x85]) + code("GAS", "CALL", "POP", "POP")
        )
        return store + made + touch

    KINDS = (
        [write] * 4 + [read] * 2 + [call] * 6 + [create] * 2
        + [transient, environment, environment, account, own_balance, log, log, calldata, memory, digest]
    )  # fmt: skip
    ENDS = (
        [b"\0"] * 6 + [code(32, 0, "RETURN")] * 3
        + [code(32, 0, "REVERT"), b"\xfe", code("CALLER", "SELFDESTRUCT"), code(0xEE, "SELFDESTRUCT")]
    )  # fmt: skip


def create_address(sender, nonce):
    return Address(keccak256(encode_rlp([sender, encode_integer(nonce)]))[12:])


class Twin:
    """One stream of transactions into both engines."""

    def __init__(self, anvil, keys):
        self.anvil = anvil
        self.state = State()
        for key in keys:
            anvil.rpc("anvil_setBalance", "0x" + key.address.hex(), hex(10**21))
            self.state.accounts[key.address] = Account(0, 10**21)
        coinbase = Address(bytes.fromhex(anvil.rpc("eth_getBlockByNumber", "latest", False)["miner"][2:]))
        paid = int(anvil.rpc("eth_getBalance", "0x" + coinbase.hex(), "latest"), 16)
        self.state.accounts[coinbase] = Account(0, paid)
        self.engine = StrictEvm(CHAIN_ID, 30_000_000)
        self.engine.load(self.state)
        self.nonces = {key.address: 0 for key in keys}
        self.failed = 0

    def send(self, key, to, data, value, gas, kind=DYNAMIC_FEE, access_list=()):
        tip = GWEI
        fields = Transaction(
            kind, CHAIN_ID, self.nonces[key.address], 30 * GWEI, tip if kind == DYNAMIC_FEE else 30 * GWEI, gas,
            to, value, data, access_list,
        )  # fmt: skip
        self.nonces[key.address] += 1
        signed = sign_transaction(key, fields)
        self.anvil.rpc("eth_sendRawTransaction", "0x" + signed.raw.hex())
        self.anvil.rpc("evm_mine")
        block = self.anvil.rpc("eth_getBlockByNumber", "latest", False)
        assert block["transactions"] == ["0x" + signed.hash.hex()]
        receipt = self.anvil.rpc("eth_getTransactionReceipt", "0x" + signed.hash.hex())
        context = BlockContext(
            number=int(block["number"], 16),
            timestamp=int(block["timestamp"], 16),
            gas_limit=int(block["gasLimit"], 16),
            base_fee=int(block["baseFeePerGas"], 16),
            coinbase=Address(bytes.fromhex(block["miner"][2:])),
            prevrandao=bytes.fromhex(block["mixHash"][2:]),
        )
        message = make_message(signed, key.address, context.base_fee)
        outcome = self.engine.execute(context, message)
        self.state.apply(self.engine.commit())
        theirs = (
            int(receipt["status"], 16),
            int(receipt["gasUsed"], 16),
            int(receipt["effectiveGasPrice"], 16),
            receipt["contractAddress"] if receipt["status"] == "0x1" else None,
            [(log["address"], log["topics"], log["data"]) for log in receipt["logs"]],
        )
        ours = (
            int(outcome.status is Status.SUCCESS),
            outcome.gas_used,
            message.price,
            "0x" + outcome.created.hex() if outcome.created else None,
            [
                ("0x" + log.address.hex(), ["0x" + topic.hex() for topic in log.topics], "0x" + log.data.hex())
                for log in outcome.logs
            ],
        )
        assert ours == theirs, f"transaction {signed.nonce} of 0x{key.address.hex()}"
        self.failed += outcome.status is not Status.SUCCESS
        return outcome

    def compare_state(self):
        """Every account and slot that we know of, in one batch."""
        questions, expected = [], []

        def ask(method, *params, answer):
            questions.append({"jsonrpc": "2.0", "id": len(questions), "method": method, "params": [*params, "latest"]})
            expected.append(answer)

        for address, account in self.state.accounts.items():
            name = "0x" + address.hex()
            ask("eth_getBalance", name, answer=hex(account.balance))
            ask("eth_getTransactionCount", name, answer=hex(account.nonce))
            ask("eth_getCode", name, answer="0x" + account.code.hex())
        for address in (a for a, account in self.state.accounts.items() if account.code):
            for slot in range(10):
                value = self.state.slot(address, slot)
                ask("eth_getStorageAt", "0x" + address.hex(), hex(slot), answer="0x" + value.to_bytes(32).hex())
        answers = {item["id"]: item["result"] for item in self.anvil.exchange(questions)}
        found = [answers[number] for number in range(len(questions))]
        different = [
            (question["method"], question["params"], ours, theirs)
            for question, ours, theirs in zip(questions, expected, found, strict=True)
            if ours != theirs
        ]
        assert different == [], "\n".join(map(str, different))
        return len(questions)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_programs_give_equal_receipts_and_state(anvil, seed):
    rolls = random.Random(seed)
    keys = [PrivateKey(bytes([seed, number, 7]).rjust(32, b"\x55")) for number in range(SENDERS)]
    twin = Twin(anvil, keys)
    addresses = [create_address(keys[0].address, nonce) for nonce in range(CONTRACTS)]
    programs = Programs(seed, addresses)
    for address in addresses:
        outcome = twin.send(keys[0], None, initcode(programs.runtime(rolls.randrange(3, 12))), 3, 3_000_000)
        assert outcome.created == address
    for _ in range(CALLS):
        data = rolls.randrange(8).to_bytes(32) + rolls.randrange(3).to_bytes(32)
        listed = tuple((Address(a), (0, 3)) for a in rolls.sample(addresses, 2)) if rolls.random() < 0.3 else ()
        kind = rolls.choice([ACCESS_LIST, DYNAMIC_FEE]) if listed else rolls.choice([LEGACY, DYNAMIC_FEE])
        to = rolls.choice([*addresses, *addresses, keys[1].address, None])
        if to is None:
            data = initcode(programs.runtime(rolls.randrange(1, 5)))
        gas = rolls.choice([90_000, 250_000, 1_000_000, 1_000_000])
        twin.send(rolls.choice(keys), to, data, rolls.choice([0, 0, 1]), gas, kind, listed)
    compared = twin.compare_state()
    assert twin.failed > 5, "the programs did not fail often enough to compare failures"
    assert compared > 100


def test_a_sender_with_little_more_than_the_gas_cost_sees_its_true_balance(anvil):
    """The wheel checks the balance twice; the engine finds the exact result when code reads balance or price."""
    rich, poor = (PrivateKey(bytes([0x77, number]).rjust(32, b"\x55")) for number in range(2))
    twin = Twin(anvil, [rich, poor])
    readers = [
        twin.send(rich, None, initcode(code(*items, 0, "SSTORE", "STOP")), 0, 500_000).created
        for items in (("ORIGIN", "BALANCE"), ("GASPRICE",), (5,))
    ]
    for reader in readers:
        balance = 100_000 * 30 * GWEI + 9
        anvil.rpc("anvil_setBalance", "0x" + poor.address.hex(), hex(balance))
        nonce = twin.nonces[poor.address]
        twin.engine.put_account(poor.address, Account(nonce, balance))
        twin.state.apply(twin.engine.commit())
        twin.send(poor, reader, b"", 7, 100_000, kind=LEGACY)
    assert twin.compare_state() > 20
