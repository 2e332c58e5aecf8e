"""Random programs out of templates, one for every corner of Cancun that a contract can reach.

A program is a list of snippets, each of which leaves the stack as it found it, and an ending. Keeping them apart lets
a finding be shrunk. Every template counts its use in `counts`.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deaios.primitives.keys import PrivateKey
from soak.chain_fuzz.assembly import FORBIDDEN_BYTES, OPCODES, Item, assemble, build_init_code, place, push

SLOTS = 6
WORD = 1 << 256
CODE_BYTES_MAX = 24_576
"""EIP-170."""
INIT_CODE_BYTES_MAX = 49_152
"""EIP-3860."""
EDGES = (0, 1, 2, 3, 31, 32, 33, 255, 256, 1 << 64, (1 << 128) - 1, 1 << 255, WORD - 2, WORD - 1)
ALL_PRECOMPILES = tuple(range(1, 11))
PRECOMPILES = tuple(number.to_bytes(20) for number in ALL_PRECOMPILES)
STRANGERS = (
    *(bytes([byte]) * 20 for byte in (0xE1, 0xE2, 0xE3, 0xE4)),
    *(number.to_bytes(20) for number in (0, 0x0B, 0x100)),
)
"""Addresses without an account, until somebody sends them money; the last are precompiles of later forks."""
G1 = (1).to_bytes(32) + (2).to_bytes(32)
"""The generator of alt_bn128's first group (EIP-196)."""
G2 = bytes.fromhex(
    "198e9393920d483a7260bfb731fb5d25f1aa493335a9e71297e485b7aef312c2"
    "1800deef121f1e76426a00665e5c4479674322d4f75edadd46debd5cd992f6ed"
    "090689d0585ff075ec9e99ad690c3395bc4b313370b38ef355acdadcd122975b"
    "12c85ea5db8c6deb4aab71808dcb408fe3d1e7690c43d37b4ce6cc0166fa7daa"
)
"""The generator of the second group, as EIP-197 spells it."""
FIELD_MODULUS = 21888242871839275222246405745257275088696311157297823662689037894645226208583
BLAKE_VALID = (12).to_bytes(4) + bytes(range(208)) + b"\1"
"""EIP-152: rounds, state and message, final flag."""
_INFINITY = b"\xc0" + bytes(47)
KZG_VALID = b"\1" + hashlib.sha256(_INFINITY).digest()[1:] + (5).to_bytes(32) + bytes(32) + _INFINITY * 2
"""EIP-4844: the zero polynomial at 5; its commitment and proof are the point at infinity."""
_DIGEST = b"\x5a" * 32
_SIGNATURE = PrivateKey(b"\x42" * 32).sign_digest(_DIGEST)
ECRECOVER_VALID = _DIGEST + _SIGNATURE[64:].rjust(32, b"\0") + _SIGNATURE[:64]


@dataclass(frozen=True)
class Program:
    """Runtime code in parts.

    Attributes:
        names: the templates of `snippets`.
    """

    names: tuple[str, ...]
    snippets: tuple[bytes, ...]
    ending: bytes

    @property
    def code(self) -> bytes:
        """The parts in a row."""
        return b"".join(self.snippets) + self.ending


class Programs:
    """Makes programs; `addresses` grows while a run goes on."""

    def __init__(
        self, rolls: random.Random, counts: Counter[str], precompiles: Sequence[int] = ALL_PRECOMPILES
    ) -> None:
        self.rolls = rolls
        self.counts = counts
        self.precompiles = precompiles
        self.addresses: list[bytes] = []

    def program(self, size: int) -> Program:
        """A program of so many snippets, few of which end it."""
        names = [self.rolls.choice(_HARMLESS) for _ in range(size)]
        if size and self.rolls.random() < 0.25:
            names[self.rolls.randrange(size)] = self.rolls.choice(_HARMFUL)
        snippets = tuple(self.snippet(name) for name in names)
        return Program(tuple(names), snippets, self.ending())

    def snippet(self, name: str) -> bytes:
        """One template, filled in."""
        self.counts[f"template {name}"] += 1
        return _TEMPLATES[name](self)

    def ending(self) -> bytes:
        """How a program ends."""
        name = self.rolls.choice(["stop"] * 9 + ["return"] * 5 + ["revert", "invalid", "undefined", "destroy", "fall"])
        self.counts[f"ending {name}"] += 1
        match name:
            case "return":
                return assemble(self.rolls.choice([0, 5, 32, 100]), 0, "RETURN")
            case "revert":
                return assemble(self.rolls.choice([0, 5, 32, 100]), 0, "REVERT")
            case "invalid":
                return assemble("INVALID")
            case "undefined":
                return self.rolls.choice([b"\x0c", b"\x21", b"\x4b", b"\xa5", b"\xef", b"\xf6", b"\xfb"])
            case "destroy":
                return assemble(self.address(), "SELFDESTRUCT")
            case "fall":
                return b""
        return assemble("STOP")

    def address(self) -> Item:
        """Code that pushes an address: of a contract most of the time."""
        roll = self.rolls.random()
        if roll < 0.08:
            return self.rolls.choice(["ADDRESS", "CALLER", "ORIGIN", "COINBASE"])
        known = self.addresses if self.addresses and roll < 0.75 else [*PRECOMPILES, *STRANGERS]
        return push(self.rolls.choice(known))

    def number(self) -> int:
        """A number at some edge, or any."""
        return self.rolls.choice(EDGES) if self.rolls.random() < 0.6 else self.rolls.getrandbits(256)

    def slot(self) -> int:
        return self.rolls.randrange(SLOTS)

    def keep(self, *items: Item) -> bytes:
        """Code that stores what `items` leave on the stack."""
        return assemble(*items, self.slot(), "SSTORE")

    def area(self) -> tuple[int, int]:
        """Size and offset of some memory."""
        return self.rolls.choice([0, 0, 1, 32, 33, 96, 300]), self.rolls.choice([0, 0, 1, 31, 32, 500])


def _store(p: Programs) -> bytes:
    return assemble(p.number() if p.rolls.random() < 0.5 else p.rolls.randrange(3), p.slot(), "SSTORE")


def _clear(p: Programs) -> bytes:
    return assemble(0, p.slot(), "SSTORE")


def _store_cycle(p: Programs) -> bytes:
    """EIP-2200 and 3529: a slot written several times in one go, to and from zero and its first value."""
    slot = p.slot()
    writes = [assemble(p.rolls.choice([0, 0, 1, 2]), slot, "SSTORE") for _ in range(p.rolls.randrange(2, 5))]
    restore = assemble(slot, "SSTORE")  # of the value loaded first
    return assemble(slot, "SLOAD") + b"".join(writes) + restore


def _load(p: Programs) -> bytes:
    return p.keep(p.slot(), "SLOAD", p.rolls.randrange(3), "ADD")


def _store_by_calldata(p: Programs) -> bytes:
    mask = p.rolls.choice([1, SLOTS - 1])
    return assemble(32, "CALLDATALOAD", 0, "CALLDATALOAD", mask, "AND", "SSTORE")


def _transient(p: Programs) -> bytes:
    return assemble(p.rolls.randrange(3), p.slot(), "TSTORE") + p.keep(p.slot(), "TLOAD")


def _transient_across_a_call(p: Programs) -> bytes:
    slot = p.slot()
    once = assemble("CALLVALUE", slot, "TLOAD", "ADD", slot, "TSTORE")
    return once + assemble(0, 0, 0, 0, 0, "ADDRESS", p.rolls.choice([3_000, 30_000]), "CALL", "POP")


def _environment(p: Programs) -> bytes:
    names = ["ADDRESS", "ORIGIN", "CALLER", "CALLVALUE", "CALLDATASIZE", "CODESIZE", "GASPRICE", "RETURNDATASIZE"]
    names += ["COINBASE", "TIMESTAMP", "NUMBER", "PREVRANDAO", "GASLIMIT", "CHAINID", "SELFBALANCE", "BLOBBASEFEE"]
    first, second, third = (p.rolls.choice([*names, "PC", "MSIZE", "GAS"]) for _ in range(3))
    return p.keep(first, second, "ADD", third, "XOR")


def _blob_hash(p: Programs) -> bytes:
    return p.keep(p.rolls.choice([0, 1, WORD - 1]), "BLOBHASH", 1, "ADD")


def _account(p: Programs) -> bytes:
    return p.keep(p.address(), p.rolls.choice(["BALANCE", "EXTCODESIZE", "EXTCODEHASH"]))


def _code_of_another(p: Programs) -> bytes:
    size, offset = p.area()
    return assemble(size, p.rolls.choice([0, 1, 24_000, WORD - 1]), offset, p.address(), "EXTCODECOPY") + _digest(p)


_ARITHMETIC = (
    *(
        (name, 2)
        for name in ("ADD", "MUL", "SUB", "DIV", "SDIV", "MOD", "SMOD", "EXP", "SIGNEXTEND", "LT", "GT", "SLT")
    ),
    *((name, 2) for name in ("SGT", "EQ", "AND", "OR", "XOR", "BYTE", "SHL", "SHR", "SAR")),
    *(("ADDMOD", 3), ("MULMOD", 3), ("ISZERO", 1), ("NOT", 1)),
)
"""Name and how many it takes."""


def _arithmetic(p: Programs) -> bytes:
    parts = []
    for _ in range(3):
        name, count = p.rolls.choice(_ARITHMETIC)
        parts.append(assemble(*(p.number() for _ in range(count)), name))
    return p.keep(*parts, "XOR", "XOR")


def _stack(p: Programs) -> bytes:
    """Seventeen items, some of them copied, some exchanged, one kept."""
    items = [p.rolls.choice([b"\x5f", push(p.rolls.randbytes(p.rolls.randrange(1, 33)))]) for _ in range(17)]
    moves: list[Item] = []
    for _ in range(4):
        moves += [f"DUP{p.rolls.randrange(1, 17)}", "XOR", f"SWAP{p.rolls.randrange(1, 17)}"]
    return assemble(*items, *moves, p.keep()) + assemble("POP") * 16


def _counting(body: bytes, rounds: int) -> bytes:
    """Run a body so many times; the first word of memory counts down."""
    loop = assemble("JUMPDEST", body, 1, 0, "MLOAD", "SUB", "DUP1", 0, "MSTORE")
    # PC is read behind a PUSH2; the distance leads from there back to the JUMPDEST.
    return assemble(rounds, 0, "MSTORE", loop, push((len(loop) + 3).to_bytes(2)), "PC", "SUB", "JUMPI")


def _stack_overflow(p: Programs) -> bytes:
    """Around the limit of 1,024 items; what stays below it stays on the stack."""
    return _counting(assemble(7), p.rolls.choice([500, 1018, 1021, 1022, 1023, 1024, 1100]))


def _loop(p: Programs) -> bytes:
    return _counting(b"", p.rolls.choice([1, 3, 50, 400]))


def _bad_jump(p: Programs) -> bytes:
    """To a place that is no JUMPDEST, or one inside a PUSH; behind a condition it often does not happen."""
    inside_push = assemble(push(b"\x5b"), "POP", 4, "PC", "SUB")
    target = p.rolls.choice([push(b"\xff\xff"), push((WORD - 1).to_bytes(32)), inside_push, push(b"\0")])
    if p.rolls.random() < 0.5:
        return target + assemble("JUMP")
    return assemble(p.rolls.choice([0, 0, 1]), target, "JUMPI")


def _underflow(p: Programs) -> bytes:
    return assemble(p.rolls.choice(["POP", "ADD", "SSTORE", "CALL", "SWAP16", "LOG4", "CREATE2"]))


def _memory(p: Programs) -> bytes:
    offset = p.rolls.choice([0, 1, 32, 1000, 60_000])
    return assemble(p.number(), offset, p.rolls.choice(["MSTORE", "MSTORE8"])) + p.keep(offset + 5, "MLOAD")


def _memory_beyond(p: Programs) -> bytes:
    """Sizes and offsets around what gas can pay for and what 64 bits can hold; size zero never expands."""
    huge = [1 << 20, 1 << 32, (1 << 64) - 1, 1 << 64, WORD - 1]
    size, offset = p.rolls.choice([(0, p.rolls.choice(huge)), (p.rolls.choice(huge), 0), (32, p.rolls.choice(huge))])
    name = p.rolls.choice(["KECCAK256", "LOG0", "CALLDATACOPY", "CODECOPY", "MCOPY", "CREATE", "RETURN"])
    match name:
        case "KECCAK256":
            return p.keep(size, offset, name)
        case "LOG0" | "RETURN":
            return assemble(size, offset, name)
        case "CREATE":
            return p.keep(size, offset, 0, name)
    return assemble(size, p.number(), offset, name)


def _copy(p: Programs) -> bytes:
    size, offset = p.area()
    source = p.rolls.choice([0, 1, 20, 200, 1 << 64, WORD - 1])
    return assemble(size, source, offset, p.rolls.choice(["CALLDATACOPY", "CODECOPY"])) + _digest(p)


def _move(p: Programs) -> bytes:
    """MCOPY: overlapping both ways, nothing, and from far away (EIP-5656)."""
    size = p.rolls.choice([0, 1, 31, 32, 33, 200])
    source, target = (p.rolls.choice([0, 1, 16, 32, 64, 3000]) for _ in range(2))
    return place(p.rolls.randbytes(70)) + assemble(size, source, target, "MCOPY") + p.keep("MSIZE") + _digest(p)


def _digest(p: Programs) -> bytes:
    return p.keep(p.rolls.choice([0, 32, 100, 600]), p.rolls.choice([0, 7]), "KECCAK256")


def _log(p: Programs) -> bytes:
    topics = p.rolls.randrange(5)
    size, offset = p.area()
    return assemble(*(p.number() for _ in range(topics)), size, offset, f"LOG{topics}")


def _call(p: Programs) -> bytes:
    """Any kind, with value where it takes one, gas around the 63/64 rule and the stipend, areas in and out."""
    kind = p.rolls.choice(["CALL", "CALL", "CALL", "CALLCODE", "DELEGATECALL", "STATICCALL"])
    p.counts[f"call {kind}"] += 1
    whole_but_a_64th = assemble(64, "GAS", "DIV", "GAS", "SUB")
    gas: Item = p.rolls.choice(
        [*(60_000, 100_000, 200_000) * 2, "GAS", 0, 1, 700, 2_300, 2_301, 5_000, WORD - 1, whole_but_a_64th]
    )
    value = [p.rolls.choice([0, 0, 1, "SELFBALANCE", 1 << 100])] if kind in ("CALL", "CALLCODE") else []
    call = assemble(*p.area(), *p.area(), *value, p.address(), gas, kind)
    return p.keep(call) + p.rolls.choice([b"", p.keep("RETURNDATASIZE")])


def _recursion(p: Programs) -> bytes:
    """Into itself with all gas but a 64th, until that is too little."""
    kind = p.rolls.choice(["CALL", "DELEGATECALL", "STATICCALL", "CALLCODE"])
    value = [0] if kind in ("CALL", "CALLCODE") else []
    return assemble(0, 0, 0, 0, *value, "ADDRESS", "GAS", kind, "POP")


def _return_data(p: Programs) -> bytes:
    """RETURNDATACOPY inside the bounds, at them, and beyond, where it fails (EIP-211)."""
    call = assemble(0, 0, 40, 0, push(PRECOMPILES[3]), 30_000, "STATICCALL", "POP")
    size, source = p.rolls.choice([(40, 0), (0, 40), (8, 32), (41, 0), (0, 41), (1, 40), (0, WORD - 1), (WORD - 1, 1)])
    return call + assemble(size, source, 3, "RETURNDATACOPY") + _digest(p)


def _precompile(p: Programs) -> bytes:
    number = p.rolls.choice(p.precompiles)
    data = precompile_input(p.rolls, number)
    p.counts[f"precompile {number}"] += 1
    gas = p.rolls.choice(["GAS", 0, 100, 3_000, 50_000, 200_000, 200_000, 200_000])
    kind = p.rolls.choice(["CALL", "STATICCALL", "DELEGATECALL", "CALLCODE"])
    value = [p.rolls.choice([0, 0, 1])] if kind in ("CALL", "CALLCODE") else []
    call = assemble(64, 0, len(data), 0, *value, push(PRECOMPILES[number - 1]), gas, kind)
    return place(data) + p.keep(call) + p.keep("RETURNDATASIZE") + p.keep(0, "MLOAD")


def precompile_input(rolls: random.Random, number: int) -> bytes:
    """A valid input, that with a fault, or noise."""
    valid = {
        1: [ECRECOVER_VALID],
        2: [b"", b"abc"],
        3: [b"", b"abc"],
        4: [b"", b"abcde" * 30],
        5: [_modexp(rolls) for _ in range(3)],
        6: [G1 + G1, G1 + bytes(64), b"", G1 + (1).to_bytes(32) + (FIELD_MODULUS - 2).to_bytes(32)],
        7: [G1 + rolls.getrandbits(256).to_bytes(32), G1, bytes(96)],
        8: [b"", G1 + G2, G1 + G2 + (1).to_bytes(32) + (FIELD_MODULUS - 2).to_bytes(32) + G2, bytes(192)],
        9: [BLAKE_VALID, bytes(212) + b"\1", bytes(213)],
        10: [KZG_VALID],
    }[number]
    data = bytearray(rolls.choice(valid))
    roll = rolls.random()
    if roll < 0.25 and data:
        data[rolls.randrange(len(data))] ^= 1 << rolls.randrange(8)
    elif roll < 0.4:
        data = data[:-1] if rolls.random() < 0.5 else data + b"\1"
    elif roll < 0.5:
        data = bytearray(rolls.randbytes(rolls.choice([1, 32, 96, 128, 192, 213])))
    return bytes(data)


def _modexp(rolls: random.Random) -> bytes:
    sizes = [rolls.choice([0, 1, 2, 32, 33, 64]) for _ in range(3)]
    if rolls.random() < 0.1:
        sizes[rolls.randrange(3)] = rolls.choice([1 << 20, 1 << 64, WORD - 1])
    body = rolls.randbytes(min(sum(sizes), 200))
    return b"".join(size.to_bytes(32) for size in sizes) + (bytes(len(body)) if rolls.random() < 0.2 else body)


_CHILDREN = (
    *("empty", "nothing", "runtime", "writes", "calls-back", "destroys-later", "destroys-now") * 2,
    *("runtime", "destroys-later", "reverts", "invalid", "ef", "large", "largest"),
)


def child_init_code(p: Programs) -> bytes:
    """Init code for a contract that another one makes: short, and every way to fail."""
    name = p.rolls.choice(_CHILDREN)
    p.counts[f"child {name}"] += 1
    match name:
        case "runtime":
            read = assemble(p.slot(), "SLOAD", 1, "ADD", p.slot(), "SSTORE")
            return build_init_code(read + assemble("CALLVALUE", 0, "MSTORE", 32, 0, "RETURN"))
        case "destroys-later":
            return build_init_code(assemble(5, 1, "SSTORE", p.address(), "SELFDESTRUCT"), _store(p))
        case "destroys-now":
            return assemble(7, 1, "SSTORE", p.address(), "SELFDESTRUCT")
        case "reverts":
            return assemble(1, 1, "SSTORE", 9, 0, "MSTORE", 32, 0, "REVERT")
        case "invalid":
            return assemble(1, 1, "SSTORE", "INVALID")
        case "ef":  # EIP-3541
            return assemble(0xEF, 0, "MSTORE8", p.rolls.choice([1, 10]), 0, "RETURN")
        case "large":  # EIP-170, one byte too many
            return assemble(CODE_BYTES_MAX + 1, 0, "RETURN")
        case "largest":
            return assemble(CODE_BYTES_MAX, 0, "RETURN")
        case "writes":
            return _store(p) + _log(p) + p.keep("CALLER") + assemble(0, 0, "RETURN")
        case "calls-back":
            return assemble(0, 0, 0, 0, 0, "CALLER", "GAS", "CALL", 3, "SSTORE", 1, 0, "RETURN")
        case "nothing":
            return b""
    return assemble("STOP")


def _create(p: Programs) -> bytes:
    """CREATE or CREATE2, then money and a call to what was made, twice; a salt is from a set of two, so it collides."""
    child = child_init_code(p)
    salt: list[Item] = [p.rolls.randrange(2)] if p.rolls.random() < 0.6 else []
    name = "CREATE2" if salt else "CREATE"
    value = p.rolls.choice([0, 0, 0, 1, 1 << 100])
    made = assemble(*salt, len(child), 0, value, name)
    p.counts[f"create {name}"] += 1
    touch = assemble(0, 0, 0, 0, p.rolls.choice([0, 1]), "DUP6", p.rolls.choice(["GAS", 60_000]), "CALL", "POP")
    look = assemble("DUP1", p.rolls.choice(["EXTCODEHASH", "EXTCODESIZE", "BALANCE"]), p.slot(), "SSTORE")
    again = made + p.keep() if p.rolls.random() < 0.5 else b""
    keep = assemble(SLOTS + 1, "SSTORE")
    return place(child) + made + touch * p.rolls.randrange(3) + look + keep + again + p.keep("RETURNDATASIZE")


def _create_oversized(p: Programs) -> bytes:
    """EIP-3860 at the limit and one byte beyond; memory is zero there, which is STOP."""
    size = INIT_CODE_BYTES_MAX + p.rolls.choice([0, 1])
    salt: list[Item] = [3] if p.rolls.random() < 0.5 else []
    return p.keep(*salt, size, p.rolls.choice([1 << 12, 1 << 13]), 0, "CREATE2" if salt else "CREATE")


def _create_destroy_pay(p: Programs) -> bytes:
    """A contract made, destroyed and paid again within one transaction (EIP-6780): the money burns."""
    child = build_init_code(assemble(p.address(), "SELFDESTRUCT"))
    pay = assemble(0, 0, 0, 0, 1, "DUP6", "GAS", "CALL", "POP")
    return place(child) + assemble(len(child), 0, 1, "CREATE") + pay * 3 + assemble("DUP1", p.keep("BALANCE"), "POP")


def _delegate(p: Programs) -> bytes:
    return p.keep(0, 0, 64, 0, p.address(), p.rolls.choice(["GAS", 30_000]), "DELEGATECALL")


def _reads_price_and_balance(p: Programs) -> bytes:
    return p.keep("GASPRICE") + p.keep("ORIGIN", "BALANCE")


def _garbage(p: Programs) -> bytes:
    """Random bytes as code; the zeros behind it end what it may have begun."""
    known = bytes(set(OPCODES.values()) - _NOT_AT_RANDOM)
    source = known if p.rolls.random() < 0.7 else bytes(set(range(256)) - _NOT_AT_RANDOM)
    return bytes(p.rolls.choice(source) for _ in range(p.rolls.choice([1, 10, 60]))) + bytes(33)


_NOT_AT_RANDOM = {*FORBIDDEN_BYTES, OPCODES["CREATE"], OPCODES["CREATE2"]}
"""Random creations would run random memory, which may hold what the embedded chain refuses."""

Template = Callable[[Programs], bytes]
HARMLESS: dict[str, tuple[Template, int]] = {
    "store": (_store, 6),
    "clear": (_clear, 4),
    "store cycle": (_store_cycle, 4),
    "load": (_load, 3),
    "store by calldata": (_store_by_calldata, 3),
    "transient": (_transient, 2),
    "transient across a call": (_transient_across_a_call, 1),
    "environment": (_environment, 4),
    "blob hash": (_blob_hash, 1),
    "account": (_account, 3),
    "code of another": (_code_of_another, 2),
    "arithmetic": (_arithmetic, 4),
    "stack": (_stack, 2),
    "loop": (_loop, 1),
    "memory": (_memory, 3),
    "copy": (_copy, 2),
    "move": (_move, 2),
    "digest": (_digest, 1),
    "log": (_log, 4),
    "call": (_call, 12),
    "return data": (_return_data, 2),
    "precompile": (_precompile, 6),
    "create": (_create, 6),
    "create, destroy, pay": (_create_destroy_pay, 2),
    "delegate": (_delegate, 2),
    "price and balance": (_reads_price_and_balance, 1),
}
"""Those that mostly let a program go on, each with its weight."""
HARMFUL: dict[str, Template] = {
    "stack overflow": _stack_overflow,
    "bad jump": _bad_jump,
    "underflow": _underflow,
    "memory beyond": _memory_beyond,
    "create oversized": _create_oversized,
    "recursion": _recursion,
    "garbage": _garbage,
}
"""Those that often end it or use up its gas; one of them is in every fourth program."""
_TEMPLATES = {name: template for name, (template, _) in HARMLESS.items()} | HARMFUL
_HARMLESS = [name for name, (_, weight) in HARMLESS.items() for _ in range(weight)]
_HARMFUL = list(HARMFUL)
