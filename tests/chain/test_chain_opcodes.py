import random

import pytest
from vyper import compile_code

from deaios.chain.opcodes import explain_refusal, find_forbidden_opcode

HEAD = "# pragma version 0.4.3\n# pragma evm-version cancun\n"
INTERNAL = """
@internal
def g() -> uint256:
    return block.basefee

@external
def f(a: uint256) -> uint256:
    if a > 3:
        return self.g()
    return 1
"""


def compiled(body, kind="bytecode_runtime"):
    return bytes.fromhex(compile_code(HEAD + body, output_formats=[kind])[kind][2:])


@pytest.mark.parametrize(
    ("body", "opcode"),
    [
        ("@external\ndef f() -> uint256:\n    return block.basefee\n", "BASEFEE"),
        ("@external\ndef f() -> bytes32:\n    return blockhash(block.number - 1)\n", "BLOCKHASH"),
        (INTERNAL, "BASEFEE"),
    ],
    ids=["basefee", "blockhash", "in-an-internal-function"],
)  # fmt: skip
def test_compiled_uses_are_found(body, opcode):
    assert find_forbidden_opcode(compiled(body)) == opcode


def test_a_constructor_that_uses_one_is_found():
    body = "fee: uint256\n@deploy\ndef __init__():\n    self.fee = block.basefee\n"
    assert find_forbidden_opcode(compiled(body, "bytecode")) == "BASEFEE"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("48", "BASEFEE"),
        ("40", "BLOCKHASH"),
        ("6048", None),
        ("61484000", None),
        ("7f" + "48" * 32, None),
        ("7f" + "48" * 31, None),  # a PUSH cut off by the end of the code
        ("0048", None),  # after STOP nothing comes here
        ("fe40", None),
        ("6000576048", None),
        ("60005748", "BASEFEE"),  # the way on from a JUMPI
        ("6004565b48", None),  # the JUMPDEST is at 3, and nothing names 3
        ("6003565b48", "BASEFEE"),  # PUSH1 3 JUMP JUMPDEST BASEFEE
        ("6009565b00485b", None),  # the block at 3 ends before the byte
        ("0c48", None),  # an undefined opcode ends a block
        ("", None),
    ],
)
def test_only_bytes_that_can_run_count(code, found):
    assert find_forbidden_opcode(bytes.fromhex(code)) == found


def test_jump_targets_in_data_count():
    """Vyper keeps targets as two bytes in tables behind the code."""
    code = bytes.fromhex("60005156" + "5b4800" + "0004")
    assert find_forbidden_opcode(code) == "BASEFEE"
    assert find_forbidden_opcode(code[:-2] + b"\0\0") is None


def test_random_data_behind_the_code_is_not_mistaken_for_it():
    rolls = random.Random(5)
    body = "@external\ndef f(a: uint256) -> uint256:\n    return a * 3 + block.timestamp\n"
    runtime = compiled(body)
    refused = sum(find_forbidden_opcode(runtime + rolls.randbytes(64)) is not None for _ in range(2000))
    naive = sum(any(byte in (0x40, 0x48) for byte in rolls.randbytes(64)) for _ in range(2000))
    assert refused <= 2
    assert naive > 500


def test_the_scan_ends_on_any_bytes():
    rolls = random.Random(6)
    for size in (1, 33, 500, 24_576):
        for _ in range(8):
            assert find_forbidden_opcode(rolls.randbytes(size)) in (None, "BASEFEE", "BLOCKHASH")
    assert find_forbidden_opcode(b"\x5b" * 24_575 + b"\x48") == "BASEFEE"


def test_the_refusal_names_opcode_and_way_out():
    assert "BASEFEE" in explain_refusal("BASEFEE")
    assert "--chain URL" in explain_refusal("BASEFEE")
