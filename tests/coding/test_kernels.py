"""Kernels of every tier give the bits of the slow, plain way; what they rest on is checked, not believed."""

import ctypes
import hashlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import reed_solomon_leopard

from deaios.coding.evaluation import (
    build_basis,
    build_closings,
    build_maps,
    build_multiples,
    build_pairs,
    build_steps,
    compute_values,
    compute_weights,
)
from deaios.coding.field import multiply, pack_symbols, unpack_symbols
from deaios.coding.kernels import compiler, tiers
from deaios.coding.kernels.compiler import compile_functions
from deaios.coding.kernels.machine import get_features
from deaios.coding.kernels.sha256 import ROUND_CONSTANTS, START, Hasher, write_climb, write_lanes, write_streams
from deaios.coding.kernels.tiers import TIER_VARIABLE, list_tiers
from deaios.coding.kernels.values import ValueFolds, mix_values
from deaios.coding.kernels.weigh import Weights
from deaios.coding.parameters import Profile
from deaios.coding.points import compute_constants, find_points
from deaios.coding.tables import build_bases
from deaios.primitives.errors import ConfigError

needs_avx2 = pytest.mark.skipif(
    "avx2" not in get_features(),
    reason="this processor has no AVX2: kernels in its instructions cannot run and are NOT tested here",
)
"""For kernels written in AVX2's instructions, which another processor cannot run and is not offered: see
`test_a_machine_runs_what_it_can`, which runs on every one."""
HASHERS = [(Hasher(1024, 0), 16), (Hasher(64, 1), 1)]


def digests_of(messages, hasher):
    size, data = hasher.message_bytes, messages.tobytes()
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(hashlib.sha256(part + bytes([hasher.tag])).digest() for part in parts)


def write(writing, hasher, blocks):
    kind, width = writing
    if kind == "streams":
        return write_streams("hash", blocks, hasher.tag, width), 1
    return write_lanes("hash", blocks, hasher.tag, width), width


@pytest.mark.parametrize(("hasher", "blocks"), HASHERS, ids=("leaf", "node"))
@pytest.mark.parametrize(
    "writing",
    [("streams", 1), ("streams", 4), ("lanes", 4), ("lanes", 8), ("lanes", 16)],
    ids=lambda writing: "-".join(map(str, writing)),
)
def test_every_writing_of_the_hash_is_the_hash(writing, hasher, blocks):
    if writing[0] == "streams" and "sha" not in get_features():
        pytest.skip("this processor has no SHA instructions")
    code, least = write(writing, hasher, blocks)
    function = compile_functions(code, {"hash": (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)})["hash"]
    for count in {least, least + 1, 2 * least, 37} - set(range(least)):
        messages = np.frombuffer(random.Random(count).randbytes(count * hasher.message_bytes), np.uint8)
        room = np.full((count + 2, 32), 0xA5, np.uint8)
        function(messages.ctypes.data, count, room[1:-1].ctypes.data)
        assert room[1:-1].tobytes() == digests_of(messages, hasher), count
        assert (room[[0, -1]] == 0xA5).all(), "nothing outside is written"


@pytest.mark.parametrize(("hasher", "blocks"), HASHERS, ids=("leaf", "node"))
def test_any_count_is_hashed(hasher, blocks):
    for count in (0, 1, 2, 15, 16, 17, 33):
        messages = np.frombuffer(random.Random(count).randbytes(count * hasher.message_bytes), np.uint8)
        assert hasher.hash(messages).tobytes() == digests_of(messages, hasher)


@pytest.mark.parametrize(("trees", "width"), [(1, 1), (1, 2), (1, 64), (3, 1), (3, 16), (20, 4)])
def test_trees_are_climbed_level_by_level(trees, width):
    hasher = Hasher(64, 1)
    hashes = np.frombuffer(random.Random(width).randbytes(trees * width * 32), np.uint8).reshape(trees, width, 32)
    levels = [hashes.tobytes()]
    while len(levels[-1]) > trees * 32:
        levels.append(digests_of(np.frombuffer(levels[-1], np.uint8), hasher))
    assert hasher.climb(hashes).tobytes() == b"".join(levels[1:])


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize(("trees", "width"), [(1, 2), (1, 64), (3, 16), (20, 4)])
def test_a_climb_stops_where_too_few_are_left(lanes, trees, width):
    code = write_lanes("hash", 1, 1, lanes) + write_climb("climb", "hash", lanes)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    climb = compile_functions(code, {"climb": (pointer, number, number, pointer)})["climb"]
    hashes = np.frombuffer(random.Random(width).randbytes(trees * width * 32), np.uint8)
    nodes = np.full((trees * (width - 1) + 1, 32), 0xA5, np.uint8)
    climb(hashes.ctypes.data, trees * width, trees, nodes.ctypes.data)
    level, start = hashes, 0
    for count in (trees * width >> depth for depth in range(1, width.bit_length())):
        found, start = nodes[start : start + count], start + count
        if count < lanes:
            break
        assert found.tobytes() == digests_of(level, Hasher(64, 1))
        level = found
    else:
        found = nodes[start:]
    assert (found == 0xA5).all(), "nothing outside is written"


def test_the_constants_of_the_hash_are_the_standard_s():
    assert [hex(word) for word in (START[0], START[7], ROUND_CONSTANTS[0], ROUND_CONSTANTS[63])] == [
        "0x6a09e667",
        "0x5be0cd19",
        "0x428a2f98",
        "0xc67178f2",
    ]


CODE = """
import hashlib, json, random, sys
from deaios.coding.kernels.tiers import get_tier
from deaios.coding.matrix import RowVerifier, decode, encode, prove_row, rebuild_row, verify_payload, verify_place
from deaios.coding.parameters import Profile
said = {"tier": str(get_tier())}
for k, n, length in json.loads(sys.argv[1]):
    dice = random.Random(length)
    payload = dice.randbytes(length)
    matrix = encode(payload, Profile(k, n))
    if matrix.head.parameters.profile.is_sampled:
        assert verify_payload(matrix.commitment, matrix.head, payload)
        verify = lambda i, row, proof: verify_place(matrix.commitment, matrix.head, i, row, proof)
    else:
        verify = RowVerifier(matrix.commitment, matrix.head).verify
    for i in dice.sample(range(n), min(n, 256)):
        assert verify(i, bytes(matrix.get_row(i)), prove_row(matrix, i))
    broken = bytearray(matrix.get_row(n - 1))
    broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
    assert not verify(n - 1, broken, prove_row(matrix, n - 1))
    for _ in range(3):
        chosen = dice.sample(range(n), k)
        rows = {i: matrix.get_row(i) for i in chosen}
        assert decode(matrix.head.parameters, rows) == payload
        lost = dice.randrange(n)
        assert rebuild_row(matrix.head.parameters, lost, rows) == matrix.get_row(lost)
    said[f"{k},{n},{length}"] = [matrix.commitment.hex(), hashlib.sha256(matrix.rows.tobytes()).hexdigest()]
print(json.dumps(said))
"""
SHAPES = [(2, 3, 5000), (1, 2, 1), (1, 9, 3000), (9, 10, 40_000), (3, 5, 70_001), (21, 64, 30_000), (32, 64, 200_000)]
SHAPES += [(300, 700, 400_000), (1024, 4096, 1_050_000), (3, 500, 9_000), (400, 420, 500_000)]
SHAPES += [(64, 96, 300_001), (10, 14, 65_536), (100, 256, 150_000), (200, 256, 210_000), (255, 256, 262_144)]


def test_all_tiers_give_the_same_bits():
    """Commitments, all rows, and what is decoded and rebuilt; in a process for each, which decides its tier once."""
    told = []
    for tier in list_tiers():
        environment = os.environ | {TIER_VARIABLE: tier}
        command = [sys.executable, "-c", CODE, json.dumps(SHAPES)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        told.append(json.loads(done.stdout))
    assert [said.pop("tier") for said in told] == list(list_tiers())
    assert told[0]
    assert all(said == told[0] for said in told)


def test_a_product_follows_from_its_values_at_seven_points():
    dice = np.random.default_rng(1)
    left, right = dice.integers(0, 1 << 16, (2, 4000)).astype(np.uint16)
    left[:2], right[1:3] = 0, 0
    assert (compute_values(np.arange(1 << 16, dtype=np.uint16)) < 16).all()
    points = [compute_values(factor).astype(np.uint16).T for factor in (left, right)]
    weighted = multiply(compute_weights()[:, None], multiply(*points))
    assert np.array_equal(np.bitwise_xor.reduce(weighted), multiply(left, right))


def test_a_symbol_is_two_elements_of_gf_256_in_another_basis():
    """There, multiplying by an element of GF(256) multiplies both bytes by it; the way back is the way back."""
    symbols = np.arange(1 << 16, dtype=np.uint16)

    def change(symbols, tables):
        high = symbols >> 8
        added, becomes = (half[0, high & 15] ^ half[1, high >> 4] for half in tables.astype(np.uint16))
        return (symbols & 0xFF ^ added) | becomes << 8

    to, back = build_bases()
    changed = change(symbols, to)
    assert np.array_equal(change(changed, back), symbols)
    for constant in np.array([0, 1, 2, 77, 255], np.uint16):
        low, high = multiply(constant, changed & 0xFF), multiply(constant, changed >> 8)
        assert np.array_equal(change(multiply(constant, symbols), to), low | high << 8)


@needs_avx2
@pytest.mark.parametrize(("sources", "targets", "chunks"), [(1, 1, 4), (3, 2, 8), (64, 5, 4), (255, 1, 12)])
def test_sums_of_values_are_sums_of_products(sources, targets, chunks):
    dice = np.random.default_rng(sources)
    rows = [dice.integers(0, 256, chunks * 64, np.uint8) for _ in range(sources)]
    constants = dice.integers(0, 1 << 16, (targets, sources)).astype(np.uint16)
    room = np.full((targets, chunks * 64 + 2), 0xA5, np.uint8)
    mix_values(
        rows, build_maps(), build_pairs(constants.T), build_closings(np.array(1, np.uint16)), list(room[:, 1:-1])
    )
    symbols = unpack_symbols(np.stack(rows))
    expected = [np.bitwise_xor.reduce(multiply(factors[:, None], symbols)) for factors in constants]
    assert np.array_equal(unpack_symbols(room[:, 1:-1].copy()), expected)
    assert (room[:, [0, -1]] == 0xA5).all(), "nothing outside is written"


@needs_avx2
@pytest.mark.parametrize(("groups", "blocks", "tests"), [(1, 1, 1), (3, 5, 4), (4, 2, 23), (9, 64, 6)])
def test_folds_of_values_are_folds_of_products(groups, blocks, tests):
    dice = np.random.default_rng(groups)
    rows = dice.integers(0, 256, (2, groups * blocks * 64), np.uint8)
    first, second = (dice.integers(0, 1 << 16, (size, tests)).astype(np.uint16) for size in (blocks, groups))
    width = -(-tests // 4) * 4
    steps = build_steps(np.pad(second, ((0, 0), (0, width - tests))))
    folded = ValueFolds(build_maps(), build_pairs(first), build_multiples(), steps).fold(rows)[:, :tests]
    symbols = unpack_symbols(rows).reshape(2, groups, blocks, 1, 32)
    weights = multiply(second[:, None, :], first[None, :, :])[None, ..., None]
    expected = np.bitwise_xor.reduce(multiply(weights, symbols), axis=(1, 2))
    digits = unpack_symbols(folded.reshape(-1, 64))
    counted = [np.where(digits >> bit & 1, element, 0) for bit, element in enumerate(build_basis())]
    assert np.array_equal(np.bitwise_xor.reduce(counted), expected.reshape(-1, 32))


def test_symbols_are_weighed_one_by_one():
    dice = np.random.default_rng(3)
    chunks = dice.integers(0, 256, (3, 6, 64), np.uint8)
    constants = dice.integers(0, 1 << 16, (5, 32)).astype(np.uint16)
    bits = (1 << np.arange(16)).astype(np.uint16)[:, None]
    symbols = unpack_symbols(chunks.reshape(-1, 64)).reshape(3, 6, 32)[:, :5]
    expected = np.bitwise_xor.reduce(multiply(constants, symbols), axis=2)
    assert np.array_equal(Weights(multiply(constants[:, None, :], bits)).weigh(chunks), expected)


@pytest.mark.parametrize("profile", [(1, 2), (2, 3), (3, 5), (5, 8), (10, 14), (21, 64), (33, 97), (64, 97), (64, 128)])
def test_the_wheel_s_code_is_evaluation_at_these_points(profile):
    """One data row at a time: what the wheel makes of a single one is the constant by which it counts."""
    profile = Profile(*profile)
    data, recovery = profile.data_rows, profile.rows - profile.data_rows
    made = []
    for chosen in range(data):
        symbols = np.zeros((data, 32), np.uint16)
        symbols[chosen, 0] = 1
        rows = [row.tobytes() for row in pack_symbols(symbols)]
        encoded = np.frombuffer(b"".join(reed_solomon_leopard.encode(rows, recovery)), np.uint8)
        made.append(unpack_symbols(encoded.reshape(recovery, 64))[:, 0])
    constants = compute_constants(profile, range(data, profile.rows), range(data))
    assert np.array_equal(constants, np.stack(made, axis=1))


def test_points_are_all_different():
    for data in range(1, 24):
        for recovery in range(1, 24):
            points = find_points(Profile(data, data + recovery))
            everything = (*points.rows, *points.zeros)
            assert len(set(everything)) == len(everything)


def test_a_torn_or_foreign_file_in_the_cache_is_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler.platformdirs, "user_cache_dir", lambda _name: str(tmp_path))
    code = write_lanes("hash", 1, 1, 4)
    signature = {"hash": (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)}
    hasher = Hasher(64, 1)
    messages = np.frombuffer(random.Random(1).randbytes(4 * 64), np.uint8)

    def run():
        hashes = np.empty((4, 32), np.uint8)
        compile_functions(code, signature)["hash"](messages.ctypes.data, 4, hashes.ctypes.data)
        assert hashes.tobytes() == digests_of(messages, hasher)

    run()
    (path,) = (tmp_path / "kernels").iterdir()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x7fELF", bytes(32) + whole[32:], whole):
        path.write_bytes(content)
        run()
        assert path.read_bytes() == whole
    path.chmod(0o666)
    run()
    assert path.stat().st_mode & 0o777 == 0o644, "what others could have written is not executed, and is replaced"


def test_a_home_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiler.platformdirs, "user_cache_dir", lambda _name: str(tmp_path / "file"))
    function = compile_functions("define void @nothing() {\n  ret void\n}", {"nothing": ()})["nothing"]
    function()


@pytest.mark.parametrize(("features", "expected"), [((), ["portable"]), (("avx2",), ["portable", "avx2"])])
def test_a_machine_runs_what_it_can(monkeypatch, features, expected):
    monkeypatch.setattr(tiers, "get_features", lambda: frozenset(features))
    assert list_tiers() == tuple(expected)
    tiers.get_tier.cache_clear()
    try:
        assert tiers.get_tier() == expected[-1]
        tiers.get_tier.cache_clear()
        monkeypatch.setenv(TIER_VARIABLE, "avx512")
        with pytest.raises(ConfigError, match=f"avx512.*runs {', '.join(expected)}"):
            tiers.get_tier()
    finally:
        tiers.get_tier.cache_clear()
