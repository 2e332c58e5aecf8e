"""Finds BASEFEE and BLOCKHASH in contract code, because the embedded engine cannot run those two exactly.

Code bytes are instructions only where execution can come: at offset 0, after an instruction that does not end the
block, and at a JUMPDEST whose offset the code names, as a PUSH operand or as two bytes in its data (Vyper's selector
tables). Data behind the code (Vyper immutables, Solidity metadata) is random, and a scan that took every byte for an
opcode would refuse one contract in four. Hand-written code that computes a jump offset can hide an opcode from this;
it then reads a wrong value, and harms nobody else.
"""

from collections.abc import Iterator
from functools import lru_cache

BLOCKHASH = 0x40
BASEFEE = 0x48
FORBIDDEN = {BLOCKHASH: "BLOCKHASH", BASEFEE: "BASEFEE"}

_JUMPDEST = 0x5B
_PUSH1, _PUSH32 = 0x60, 0x7F
_CONTINUING = frozenset(
    opcode
    for first, last in (
        (0x01, 0x0B),  # arithmetic
        (0x10, 0x1D),  # comparison and bits
        (0x20, 0x20),  # KECCAK256
        (0x30, 0x4A),  # environment and block
        (0x50, 0x55),  # POP to SSTORE
        (0x57, 0x5F),  # JUMPI to PUSH0; JUMP ends a block
        (0x60, 0xA4),  # PUSH, DUP, SWAP, LOG
        (0xF0, 0xF2),  # CREATE, CALL, CALLCODE
        (0xF4, 0xF5),  # DELEGATECALL, CREATE2
        (0xFA, 0xFA),  # STATICCALL
    )
    for opcode in range(first, last + 1)
)
"""Cancun opcodes after which the next one may run; all others (STOP, JUMP, RETURN, undefined ...) end a block."""


def _sweep(code: bytes) -> Iterator[tuple[int, int, int]]:
    """(offset, opcode, offset of the next instruction), from 0: where JUMPDEST validity is decided."""
    offset, end = 0, len(code)
    while offset < end:
        opcode = code[offset]
        following = offset + (opcode - _PUSH1 + 2 if _PUSH1 <= opcode <= _PUSH32 else 1)
        yield offset, opcode, following
        offset = following


@lru_cache(maxsize=256)
def find_forbidden_opcode(code: bytes) -> str | None:
    """Name of the first opcode in the code that the embedded engine cannot run exactly, or None."""
    if not any(opcode in code for opcode in FORBIDDEN):
        return None
    instructions = {offset: (opcode, following) for offset, opcode, following in _sweep(code)}
    targets = {offset for offset, (opcode, _) in instructions.items() if opcode == _JUMPDEST}
    operands = {
        int.from_bytes(code[offset + 1 : following])
        for offset, (opcode, following) in instructions.items()
        if _PUSH1 <= opcode <= _PUSH32
    }
    reached: set[int] = set()
    entries = {0} | (targets & operands)
    while entries:  # bounded: each round adds instructions to `reached`
        for entry in entries:
            if found := _walk(instructions, entry, reached):
                return found
        entries = (targets & _named_by_data(code, instructions, reached)) - reached
    return None


def _walk(instructions: dict[int, tuple[int, int]], start: int, reached: set[int]) -> str | None:
    offset = start
    while offset in instructions and offset not in reached:
        reached.add(offset)
        opcode, following = instructions[offset]
        if opcode in FORBIDDEN:
            return FORBIDDEN[opcode]
        if opcode not in _CONTINUING:
            return None
        offset = following
    return None


def _named_by_data(code: bytes, instructions: dict[int, tuple[int, int]], reached: set[int]) -> set[int]:
    """Every two-byte number in the bytes that no reached instruction covers."""
    is_data = bytearray(b"\1" * len(code))
    for offset in reached:
        following = min(instructions[offset][1], len(code))
        is_data[offset:following] = bytes(following - offset)
    return {
        code[offset] << 8 | code[offset + 1]
        for offset in range(len(code) - 1)
        if is_data[offset] and is_data[offset + 1]
    }


def explain_refusal(opcode: str) -> str:
    """The refusal in words: the opcode, why, and the way out."""
    return (
        f"code contains the opcode {opcode}, which the embedded engine cannot run exactly; "
        "remove it, or use an external network with --chain URL"
    )
