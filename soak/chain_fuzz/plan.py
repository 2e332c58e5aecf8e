"""Random transactions of every kind that the embedded chain takes, and of every kind that it refuses."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from deaios.chain.evm import InvalidMessage, Message, Outcome
from deaios.chain.gas import compute_intrinsic_gas
from deaios.ledger.abi import InvalidAbiData, encode_values
from deaios.ledger.artifacts import NAMES, load_artifact
from deaios.ledger.suite import compute_contract_address
from deaios.ledger.transactions import (
    ACCESS_LIST,
    DYNAMIC_FEE,
    LEGACY,
    AccessList,
    Transaction,
    recover_sender,
    sign_transaction,
)
from deaios.primitives.keys import Address, PrivateKey
from soak.chain_fuzz.abi_values import random_value
from soak.chain_fuzz.assembly import assemble, build_init_code
from soak.chain_fuzz.foreign import CHAIN_ID, GAS_LIMIT
from soak.chain_fuzz.programs import (
    CODE_BYTES_MAX,
    INIT_CODE_BYTES_MAX,
    PRECOMPILES,
    SLOTS,
    STRANGERS,
    Program,
    Programs,
    child_init_code,
    precompile_input,
)
from soak.chain_fuzz.twin import Twin

GAS_ROOMY = 3_000_000
GAS_LARGE = 7_500_000
"""Enough to deploy the largest contract."""
KNOWN_MAX = 40
"""Contracts that programs and transactions are aimed at."""
TIPS = (0, 1, 1_000_000, 10**9)


@dataclass(frozen=True)
class Planned:
    """A signed transaction and what it is for.

    Attributes:
        refused_by: who must refuse it: "both", or "ours" where the embedded chain is stricter on purpose.
        program: what a contract made by it would consist of.
    """

    transaction: Transaction
    label: str
    refused_by: str = ""
    program: Program | None = None


@dataclass
class Planner:
    """Plans transactions for one seed.

    Attributes:
        rich: keys whose money never ends.
        poor: a key whose balance is set for each of its transactions.
        precompiles: those that get inputs made for them.
    """

    rolls: random.Random
    counts: Counter[str]
    twin: Twin
    rich: list[PrivateKey]
    poor: PrivateKey
    precompiles: Sequence[int]
    nonces: dict[Address, int] = field(default_factory=dict)
    artifacts: dict[Address, str] = field(default_factory=dict)
    tip: int = 0

    def __post_init__(self) -> None:
        self.programs = Programs(self.rolls, self.counts, self.precompiles)

    def begin_block(self) -> None:
        """Choose what a block has in common.

        All of its transactions pay the same, so that our pool, which orders by tip and then by arrival, takes them in
        the order in which anvil does, which is that of arrival.
        """
        self.tip = self.rolls.choice(TIPS)
        self.nonces = {key.address: self.twin.state.account(key.address).nonce for key in [*self.rich, self.poor]}
        contracts = sorted(address for address, account in self.twin.state.accounts.items() if account.code)
        if len(contracts) > KNOWN_MAX:
            contracts = self.rolls.sample(contracts, KNOWN_MAX)
        self.programs.addresses[:] = contracts

    def plan(self) -> Planned:
        """The next transaction of a rich account."""
        kinds: list[Callable[[], Planned]] = (
            [self._call] * 10 + [self._deploy] * 5 + [self._deploy_oddly] * 2 + [self._transfer] * 3
            + [self._call_precompile] + [self._deploy_artifact] + [self._call_artifact] * 3
        )  # fmt: skip
        planned = self.rolls.choice(kinds)()
        if planned.transaction.to is None:
            created = compute_contract_address(planned_sender(planned), planned.transaction.nonce)
            self.programs.addresses.append(created)
        return planned

    def _call(self) -> Planned:
        if not self.programs.addresses:
            return self._deploy()
        to = Address(self.rolls.choice(self.programs.addresses))
        data = self.rolls.randrange(8).to_bytes(32) + self.rolls.randrange(3).to_bytes(32)
        data = self.rolls.choice([data, data, b"", self.rolls.randbytes(5)])
        return self._send("call", to, data, self.rolls.choice([0, 0, 0, 1, 10**6]))

    def _deploy(self) -> Planned:
        program = self.programs.program(self.rolls.randrange(2, 10))
        before = self.programs.program(self.rolls.choice([0, 0, 1, 3]))
        code = build_init_code(program.code, b"".join(before.snippets))
        return replace(self._send("deploy", None, code, self.rolls.choice([0, 0, 3, 10**6])), program=program)

    def _deploy_oddly(self) -> Planned:
        name = self.rolls.choice(["child", "child", "garbage", "ends", "limit", "size"])
        match name:
            case "child":
                code = child_init_code(self.programs)
            case "garbage":
                code = self.programs.snippet("garbage")
            case "ends":
                code = self.programs.snippet("store") + self.programs.ending()
            case "limit":  # EIP-3860's largest; mostly zeros, which are STOP
                code = self.programs.snippet("store").ljust(INIT_CODE_BYTES_MAX, b"\0")
            case _:  # EIP-170 at the limit, for a transaction
                code = assemble(CODE_BYTES_MAX + self.rolls.choice([0, 0, 1]), 0, "RETURN")
        return self._send(f"deploy {name}", None, code, self.rolls.choice([0, 0, 1]), roomy=GAS_LARGE)

    def plan_burn(self) -> Planned:
        """A transaction that uses up as much gas as it may, so that the base fee rises or stands still."""
        key = self.rolls.choice(self.rich)
        gas = self.rolls.choice([GAS_LIMIT // 2, GAS_LIMIT // 2 + 1, self.rolls.randrange(100_000, GAS_LIMIT)])
        return self.sign(key, "burn", self.fields(key, DYNAMIC_FEE, None, assemble("INVALID"), 0, gas, ()))

    def _transfer(self) -> Planned:
        name = self.rolls.choice(["stranger", "fresh", "sender", "coinbase", "precompile", "contract", "account"])
        to = {
            "stranger": self.rolls.choice(STRANGERS),
            "fresh": self.rolls.randbytes(20),
            "sender": b"",
            "coinbase": self.twin.head.coinbase,
            "precompile": self.rolls.choice(PRECOMPILES),
            "contract": self.rolls.choice(self.programs.addresses or list(STRANGERS)),
            "account": self.rolls.choice(self.rich).address,
        }[name]
        data = self.rolls.choice([b"", b"", b"", self.rolls.randbytes(40), bytes(100_000)])
        return self._send(f"transfer to {name}", Address(to), data, self.rolls.choice([0, 1, 10**9]))

    def _call_precompile(self) -> Planned:
        number = self.rolls.choice(self.programs.precompiles)
        data = precompile_input(self.rolls, number)
        return self._send("precompile", Address(PRECOMPILES[number - 1]), data, self.rolls.choice([0, 0, 1]))

    def _deploy_artifact(self) -> Planned:
        name = self.rolls.choice(NAMES)
        artifact = load_artifact(name)
        values = [random_value(self.rolls, kind, self._accounts()) for kind in artifact.abi.constructor]
        code = artifact.creation + encode_values(artifact.abi.constructor, values)
        planned = self._send("deploy artifact", None, code, 0, roomy=GAS_LARGE)
        address = compute_contract_address(planned_sender(planned), planned.transaction.nonce)
        self.artifacts[address] = name
        return planned

    def _call_artifact(self) -> Planned:
        deployed = sorted(address for address in self.artifacts if self.twin.state.account(address).code)
        if not deployed:
            return self._deploy_artifact()
        address = self.rolls.choice(deployed)
        functions = load_artifact(self.artifacts[address]).abi.functions
        function = functions[self.rolls.choice(sorted(functions))]
        values = [random_value(self.rolls, kind, self._accounts()) for kind in function.inputs]
        try:
            data = function.encode_call(values)
        except InvalidAbiData:
            data = function.selector
        return self._send("call artifact", address, data, self.rolls.choice([0, 0, 1, 10**9]))

    def _accounts(self) -> list[bytes]:
        return [key.address for key in self.rich] + sorted(self.artifacts)

    # Amounts

    def _send(self, label: str, to: Address | None, data: bytes, value: int, *, roomy: int = GAS_ROOMY) -> Planned:
        key = self.rolls.choice(self.rich)
        if label == "transfer to sender":
            to = key.address
        kind = self.rolls.choice([LEGACY, ACCESS_LIST, DYNAMIC_FEE, DYNAMIC_FEE])
        listed = self._access_list(key.address, to) if kind != LEGACY and self.rolls.random() < 0.5 else ()
        gas = self._gas(key.address, to, data, value, listed, roomy)
        return self.sign(key, label, self.fields(key, kind, to, data, value, gas, listed))

    def fields(
        self, key: PrivateKey, kind: int, to: Address | None, data: bytes, value: int, gas: int, listed: AccessList
    ) -> Transaction:
        """An unsigned transaction that pays exactly the block's tip, whichever way it says so."""
        price = self.twin.base_fee + self.tip
        max_fee, tip = price, price
        if kind == DYNAMIC_FEE:
            max_fee, tip = self.rolls.choice([(price, self.tip), (price, price), (price + 10**9, self.tip)])
        return Transaction(kind, CHAIN_ID, self.nonces[key.address], max_fee, tip, gas, to, value, data, listed)

    def sign(self, key: PrivateKey, label: str, fields: Transaction, refused_by: str = "") -> Planned:
        """Sign; an account's next transaction gets the next nonce unless this one is to be refused."""
        if not refused_by:
            self.nonces[key.address] += 1
            self.counts[f"type {fields.kind}{' with list' if fields.access_list else ''}"] += 1
        self.counts[f"sent {label}"] += 1
        return Planned(sign_transaction(key, fields), label, refused_by)

    def _gas(self, sender: Address, to: Address | None, data: bytes, value: int, listed: AccessList, roomy: int) -> int:
        """A gas limit: enough, exactly what is spent, one less, the bare minimum, or anywhere between."""
        intrinsic = compute_intrinsic_gas(to is None, data, listed)
        name = self.rolls.choice(["roomy"] * 12 + ["exact", "one less", "between", "between", "intrinsic"])
        self.counts[f"gas {name}"] += 1
        if name == "roomy":
            return max(roomy, intrinsic)
        if name == "intrinsic":
            return intrinsic
        spent = self._spent(Message(sender, to, data, value, max(roomy, intrinsic), 0, listed), intrinsic)
        if name == "between":
            return self.rolls.randint(intrinsic, spent)
        return max(intrinsic, spent - (name == "one less"))

    def _spent(self, message: Message, intrinsic: int) -> int:
        try:
            outcome: Outcome = self.twin.call(message)
        except InvalidMessage:
            return intrinsic
        return max(intrinsic, outcome.gas_used + outcome.gas_refunded)

    def _access_list(self, sender: Address, to: Address | None) -> AccessList:
        """Known and unknown places, twice over, and the contract that this very transaction makes (EIP-2930)."""
        places = [sender, self.twin.head.coinbase, *PRECOMPILES[:3], *STRANGERS, *self.programs.addresses]
        places.append(to or compute_contract_address(sender, self.nonces[sender]))
        chosen = [self.rolls.choice(places) for _ in range(self.rolls.randrange(1, 5))]
        if self.rolls.random() < 0.3:
            chosen.append(chosen[0])
            self.counts["access list with an address twice"] += 1
        entries = []
        for place in chosen:
            keys = [self.rolls.randrange(SLOTS + 2) for _ in range(self.rolls.randrange(5))]
            entries.append((Address(place), tuple(keys)))
            self.counts["access list with a key twice"] += len(set(keys)) < len(keys)
        return tuple(entries)

    # Edges

    def plan_poor(self) -> tuple[Planned, int]:
        """A transaction that costs about all its sender has, and the balance to give it."""
        to = Address(self.rolls.choice([*self.programs.addresses, STRANGERS[0]])) if self.rolls.random() < 0.8 else None
        program = self.programs.program(2)
        data = build_init_code(program.code) if to is None else b""
        value = self.rolls.choice([0, 1, 10**6])
        kind = self.rolls.choice([LEGACY, DYNAMIC_FEE])
        gas = self._gas(self.poor.address, to, data, 0, (), 200_000)
        fields = self.fields(self.poor, kind, to, data, value, gas, ())
        cost = gas * fields.max_fee + value
        extra = self.rolls.choice([-1, 0, 0, 1, self.rolls.randrange(cost), cost - 1, cost, cost + 1])
        label = "with too little money" if extra < 0 else "with just enough money"
        return self.sign(self.poor, label, fields, "both" if extra < 0 else ""), cost + extra

    def forbidden_code(self) -> tuple[bytes, str]:
        """Init code that leaves behind what the embedded chain does not run, and the opcode's name."""
        opcode, name = self.rolls.choice([(b"\x48", "BASEFEE"), (b"\x40", "BLOCKHASH")])
        program = self.programs.program(self.rolls.randrange(1, 5))
        return build_init_code(assemble(0, opcode, "POP") + program.code), name

    def plan_refused(self) -> Planned:
        """A transaction that must not get into a block."""
        key = self.rolls.choice(self.rich)
        good = self.fields(key, DYNAMIC_FEE, Address(STRANGERS[0]), b"", 0, 21_000, ())
        creation = replace(good, to=None, gas=GAS_LARGE)
        balance = self.twin.state.account(key.address).balance
        changes: dict[str, tuple[Transaction, str]] = {
            "another chain": (replace(good, chain_id=CHAIN_ID + 1), "both"),
            "too little gas": (replace(good, gas=20_999), "both"),
            "too little gas to create": (replace(creation, gas=52_999), "ours"),
            "more gas than a block": (replace(good, gas=GAS_LIMIT + 1), "both"),
            "more money than there is": (replace(good, value=balance - 21_000 * good.max_fee + 1), "both"),
            "tip above the fee": (replace(good, tip=good.max_fee + 1), "both"),
            "fee below the base fee": (replace(good, max_fee=self.twin.base_fee - 1, tip=0), "both"),
            "too large init code": (replace(creation, data=bytes(INIT_CODE_BYTES_MAX + 1)), "both"),
            "no chain id": (replace(good, kind=LEGACY, chain_id=None, tip=good.max_fee), "ours"),
        }
        if nonce := self.twin.state.account(key.address).nonce:
            changes["a used nonce"] = (replace(good, nonce=nonce - 1), "both")
        label = self.rolls.choice(sorted(changes))
        fields, refused_by = changes[label]
        return self.sign(key, f"refused: {label}", fields, refused_by)


def planned_sender(planned: Planned) -> Address:
    """Who signed it."""
    return recover_sender(planned.transaction)
