"""Rows prove themselves; any k give the payload back; nothing else is accepted."""

import random
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.coding.combinations import Combiner
from deaios.coding.head import Head, InvalidHead, decode_head
from deaios.coding.matrix import (
    CodedMatrix,
    InvalidRows,
    RowVerifier,
    decode,
    encode,
    prove_leaf,
    prove_row,
    rebuild_row,
    verify_leaf,
    verify_payload,
    verify_place,
    verify_row,
)
from deaios.coding.parameters import (
    LEAF_BYTES,
    LENGTH_MAX,
    PROFILE_ARCHIVE,
    PROFILE_HOT,
    PROFILE_LOCAL,
    InvalidParameters,
    Parameters,
    Profile,
    build_committee_profile,
    decode_parameters,
)
from deaios.coding.tree import build_levels, hash_rows, seal_root
from deaios.coding.workers import Workers
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32

PROFILES = [PROFILE_LOCAL, PROFILE_HOT, PROFILE_ARCHIVE, Profile(1, 2), Profile(21, 64), Profile(3, 5)]


def build_payload(length, seed=1):
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_every_row_verifies_and_any_k_decode(profile):
    payload = build_payload(70_001)
    matrix = encode(payload, profile)
    parameters = matrix.head.parameters
    verifier = RowVerifier(matrix.commitment, matrix.head)
    assert all(verifier.verify(i, matrix.get_row(i), prove_row(matrix, i)) for i in range(profile.rows))
    dice = random.Random(7)
    for _ in range(4):
        chosen = dice.sample(range(profile.rows), profile.data_rows)
        rows = {index: matrix.get_row(index) for index in chosen}
        assert decode(parameters, rows) == payload
        lost = dice.randrange(profile.rows)
        assert rebuild_row(parameters, lost, rows) == matrix.get_row(lost)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 20_000), st.randoms(use_true_random=False))
def test_round_trip_for_any_profile_and_length(data_rows, recovery_rows, length, dice):
    profile = Profile(data_rows, data_rows + recovery_rows)
    payload = dice.randbytes(length)
    matrix = encode(payload, profile)
    index = dice.randrange(profile.rows)
    assert verify_row(matrix.commitment, matrix.head, index, matrix.get_row(index), prove_row(matrix, index))
    chosen = dice.sample(range(profile.rows), data_rows)
    assert decode(matrix.head.parameters, {i: matrix.get_row(i) for i in chosen}) == payload


def test_a_flipped_bit_anywhere_is_refused():
    matrix = encode(build_payload(9_000), PROFILE_LOCAL)
    verifier = RowVerifier(matrix.commitment, matrix.head)
    proof = prove_row(matrix, 1)
    row = bytes(matrix.get_row(1))
    assert verifier.verify(1, row, proof)
    for position in (0, 1, len(row) // 2, len(row) - 1):
        changed = bytearray(row)
        changed[position] ^= 0x10
        assert not verifier.verify(1, changed, proof)
    for node in range(len(proof)):
        changed_proof = tuple(bytes(32) if i == node else sibling for i, sibling in enumerate(proof))
        assert not verifier.verify(1, row, changed_proof)
    assert not verifier.verify(0, row, proof)
    assert not verifier.verify(3, row, proof)
    assert not verifier.verify(-1, row, proof)
    assert not verifier.verify(1, row[:-1024], proof)
    assert not verifier.verify(1, row + bytes(1024), proof)
    assert not verifier.verify(1, row, proof[:-1])
    assert not verifier.verify(1, row, (*proof, ZERO32))
    assert not verifier.verify(1, row, (proof[0][:31], *proof[1:]))
    assert not verify_row(bytes(32), matrix.head, 1, row, proof)


def cheat_encoding(payload, profile, corrupt):
    """What a dishonest encoder can publish: a tree over rows that are no codeword, with honest combinations of them."""
    honest = encode(payload, profile)
    rows = honest.rows.copy()
    corrupt(rows)
    levels = build_levels(hash_rows(rows))
    root = seal_root(levels[-1].tobytes())
    y = Combiner(root, honest.head.parameters).combine(rows[: profile.data_rows])
    return CodedMatrix(Head(honest.head.parameters, root, y.astype("<u2").tobytes()), rows, levels)


@pytest.mark.parametrize("profile", [PROFILE_LOCAL, PROFILE_HOT], ids=str)
def test_a_wrongly_encoded_row_convicts_itself(profile):
    dice = random.Random(3)
    for _ in range(20):
        bad = dice.randrange(profile.data_rows, profile.rows)
        place = dice.randrange(1024)

        def corrupt(rows, bad=bad, place=place):
            rows[bad, place] ^= 1 + dice.randrange(255)

        matrix = cheat_encoding(build_payload(20_000), profile, corrupt)
        verifier = RowVerifier(matrix.commitment, matrix.head)
        accepted = [i for i in range(profile.rows) if verifier.verify(i, matrix.get_row(i), prove_row(matrix, i))]
        assert accepted == [i for i in range(profile.rows) if i != bad]


def test_a_wrong_data_row_leaves_fewer_than_k_plus_one_rows_standing():
    def corrupt(rows):
        rows[0, 5] ^= 1

    matrix = cheat_encoding(build_payload(20_000), PROFILE_HOT, corrupt)
    verifier = RowVerifier(matrix.commitment, matrix.head)
    accepted = [i for i in range(64) if verifier.verify(i, matrix.get_row(i), prove_row(matrix, i))]
    assert accepted == list(range(32))


def test_leaves_open_to_the_root():
    matrix = encode(build_payload(2 * 5 * 1024), PROFILE_LOCAL)
    parameters = matrix.head.parameters
    assert (parameters.leaves_per_row, parameters.leaf_depth) == (5, 3)
    for row_index in range(3):
        row = bytes(matrix.get_row(row_index))
        for leaf_index in range(5):
            leaf = row[leaf_index * LEAF_BYTES : (leaf_index + 1) * LEAF_BYTES]
            path = prove_leaf(parameters, row, prove_row(matrix, row_index), leaf_index)
            assert verify_leaf(matrix.root, parameters, row_index, leaf_index, leaf, path)
            assert not verify_leaf(matrix.root, parameters, row_index, (leaf_index + 1) % 5, leaf, path)
            assert not verify_leaf(matrix.root, parameters, (row_index + 1) % 3, leaf_index, leaf, path)
            assert not verify_leaf(matrix.root, parameters, row_index, leaf_index, leaf[:-1] + b"\xff", path)
            assert not verify_leaf(matrix.root, parameters, row_index, leaf_index, leaf, path[1:])
            assert not verify_leaf(matrix.root, parameters, row_index, leaf_index, leaf, (*path, ZERO32))


def test_padding_and_inner_nodes_are_no_leaves():
    matrix = encode(build_payload(2 * 5 * 1024), PROFILE_LOCAL)
    parameters = matrix.head.parameters
    row = bytes(matrix.get_row(0))
    path = prove_leaf(parameters, row, prove_row(matrix, 0), 4)
    for outside in (5, 6, 7, 8, -1):
        assert not verify_leaf(matrix.root, parameters, 0, outside, bytes(LEAF_BYTES), path)
    assert not verify_leaf(matrix.root, parameters, 3, 0, bytes(LEAF_BYTES), path)
    assert not verify_leaf(matrix.root, parameters, 0, 4, ZERO32, path)
    with pytest.raises(InvalidRows):
        prove_leaf(parameters, row, prove_row(matrix, 0), 5)
    with pytest.raises(InvalidRows):
        prove_row(matrix, 3)


def test_heads_are_bound_and_canonical():
    matrix = encode(build_payload(3_000), PROFILE_LOCAL)
    encoded = matrix.head.encode()
    assert decode_head(encoded + b"row follows") == (matrix.head, len(encoded))
    changed_y = bytes([matrix.y[0] ^ 1]) + matrix.y[1:]
    for head in (
        replace(matrix.head, root=ZERO32),
        replace(matrix.head, y=changed_y),
        replace(matrix.head, parameters=Parameters(PROFILE_LOCAL, 2_999)),
    ):
        with pytest.raises(InvalidHead):
            RowVerifier(matrix.commitment, head)
        assert not verify_row(matrix.commitment, head, 0, matrix.get_row(0), prove_row(matrix, 0))
    with pytest.raises(InvalidHead, match="y has"):
        replace(matrix.head, y=matrix.y + b"\0\0")
    with pytest.raises(InvalidHead, match="root has"):
        replace(matrix.head, root=b"")


@given(st.binary(max_size=400))
def test_hostile_heads_give_typed_errors(data):
    try:
        head, size = decode_head(data)
    except Invalid:
        return
    assert data[:size] == head.encode()


def test_claimed_sizes_are_refused_before_anything_is_allocated():
    huge = (2).to_bytes(2) + (3).to_bytes(2) + (1 << 62).to_bytes(8)
    with pytest.raises(InvalidParameters, match="1 to 67108864 allowed"):
        decode_parameters(huge)
    with pytest.raises(InvalidParameters):
        decode_parameters((2).to_bytes(2) + (65535).to_bytes(2) + LENGTH_MAX.to_bytes(8))
    with pytest.raises(InvalidParameters):
        decode_parameters(huge[:-1])
    for data_rows, rows in ((0, 3), (3, 3), (4, 3), (1, 65_536), (40_000, 65_535)):
        with pytest.raises(InvalidParameters):
            Profile(data_rows, rows)
    for length in (0, -1, LENGTH_MAX + 1):
        with pytest.raises(InvalidParameters):
            Parameters(PROFILE_LOCAL, length)
    with pytest.raises(InvalidParameters):
        encode(b"", PROFILE_LOCAL)


def test_a_sampled_code_proves_no_row_and_settles_payloads():
    payload = build_payload(290 * LEAF_BYTES)
    profile = Profile(290, 300)
    matrix = encode(payload, profile)
    assert (profile.is_sampled, profile.tests, matrix.y) == (True, 0, b"")
    with pytest.raises(InvalidParameters, match="proves nothing alone"):
        RowVerifier(matrix.commitment, matrix.head)
    with pytest.raises(InvalidParameters, match="proves nothing alone"):
        verify_row(matrix.commitment, matrix.head, 0, matrix.get_row(0), prove_row(matrix, 0))
    assert verify_place(matrix.commitment, matrix.head, 7, matrix.get_row(7), prove_row(matrix, 7))
    for index, row, proof in (
        (8, matrix.get_row(7), prove_row(matrix, 7)),
        (7, matrix.get_row(8), prove_row(matrix, 7)),
        (7, matrix.get_row(7), prove_row(matrix, 7)[:-1]),
        (300, matrix.get_row(7), prove_row(matrix, 7)),
    ):
        assert not verify_place(matrix.commitment, matrix.head, index, row, proof)
    assert not verify_place(ZERO32, matrix.head, 7, matrix.get_row(7), prove_row(matrix, 7))
    decoded = decode(matrix.head.parameters, {index: matrix.get_row(index) for index in range(10, 300)})
    assert verify_payload(matrix.commitment, matrix.head, decoded)
    for wrong in (payload[:-1], payload + b"\0", b"\xff" + payload[1:]):
        assert not verify_payload(matrix.commitment, matrix.head, wrong)


def test_a_liar_s_sampled_payload_does_not_settle():
    def corrupt(rows):
        rows[3, 0] ^= 1

    honest = encode(build_payload(290 * LEAF_BYTES), Profile(290, 300))
    rows = honest.rows.copy()
    corrupt(rows)
    levels = build_levels(hash_rows(rows))
    head = Head(honest.head.parameters, seal_root(levels[-1].tobytes()), b"")
    for chosen in (range(290), range(10, 300)):
        decoded = decode(head.parameters, {index: rows[index].tobytes() for index in chosen})
        assert not verify_payload(head.commitment, head, decoded)


def test_wide_codes_decode_and_rebuild_in_memory_of_their_size():
    """Not in the square of their rows."""
    profile = Profile(2_500, 6_500)
    payload = build_payload(profile.data_rows * LEAF_BYTES - 7)
    matrix = encode(payload, profile)
    chosen = [*range(900, 2_500), *range(5_000, 5_900)]
    rows = {index: matrix.get_row(index) for index in chosen}
    tracemalloc.start()
    try:
        assert decode(matrix.head.parameters, rows) == payload
        assert rebuild_row(matrix.head.parameters, 3, rows) == matrix.get_row(3)
        assert rebuild_row(matrix.head.parameters, 6_001, rows) == matrix.get_row(6_001)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * matrix.rows.nbytes


def test_committees_need_an_honest_third():
    assert [build_committee_profile(seats) for seats in (3, 16, 64, 256)] == [
        Profile(1, 3),
        Profile(5, 16),
        Profile(21, 64),
        Profile(85, 256),
    ]
    for seats in (2, 257):
        with pytest.raises(InvalidParameters, match="3 to 256 allowed"):
            build_committee_profile(seats)


def test_decode_refuses_what_does_not_fit():
    matrix = encode(build_payload(5_000), PROFILE_HOT)
    parameters = matrix.head.parameters
    rows = {index: matrix.get_row(index) for index in range(31)}
    with pytest.raises(InvalidRows, match="31 rows given, 32 needed"):
        decode(parameters, rows)
    with pytest.raises(InvalidRows):
        decode(parameters, rows | {64: matrix.get_row(0)})
    with pytest.raises(InvalidRows):
        decode(parameters, rows | {31: matrix.get_row(31)[:-64]})
    with pytest.raises(InvalidRows):
        rebuild_row(parameters, 64, rows | {31: matrix.get_row(31)})


def test_a_dirty_tail_is_refused():
    def corrupt(rows):
        rows[1, -1] = 9

    matrix = cheat_encoding(build_payload(5_000), Profile(2, 3), corrupt)
    with pytest.raises(InvalidRows, match="not zero"):
        decode(matrix.head.parameters, {0: matrix.get_row(0), 1: matrix.get_row(1)})


def test_tests_leave_192_bits_after_the_union_bound():
    for data_rows in (1, 2, 21, 32, 64, 85, 128, 255):
        profile = Profile(data_rows, 256)
        assert 2 ** (14 * profile.tests) >= 2**192 * comb(256, data_rows + 1) > 2 ** (14 * (profile.tests - 1))


@pytest.mark.parametrize("profile", [Profile(2, 3), Profile(21, 64), Profile(64, 96), Profile(290, 300)], ids=str)
def test_helpers_change_no_bit(profile):
    payload = build_payload(profile.data_rows * 3 * LEAF_BYTES - 5)
    alone = encode(payload, profile)
    with ThreadPoolExecutor(4) as pool:
        for count in (1, 2, 3, 5, 1000):
            helped = encode(payload, profile, Workers(pool, count))
            assert helped.commitment == alone.commitment
            assert np.array_equal(helped.rows, alone.rows)


def test_all_parts_have_ended_when_one_fails():
    done = []

    def work(start, end):
        if start == 2:
            raise ValueError("part failed")
        done.append((start, end))

    with ThreadPoolExecutor(2) as pool:
        workers = Workers(pool, 4)
        with pytest.raises(ValueError, match="part failed"):
            workers.run(work, 8)
        assert sorted(done) == [(0, 2), (4, 6), (6, 8)]
        done.clear()
        workers.run(lambda start, end: done.append((start, end)), 2500, 1024)
        assert sorted(done) == [(0, 1024), (1024, 2048), (2048, 2500)]


FIRST_USE = """
from concurrent.futures import ThreadPoolExecutor
from deaios.coding.matrix import encode
from deaios.coding.parameters import PROFILE_LOCAL
with ThreadPoolExecutor(8) as pool:
    names = set(pool.map(lambda _: encode(bytes(range(256)) * 500, PROFILE_LOCAL).commitment, range(16)))
assert len(names) == 1
print(names.pop().hex())
"""


def test_first_use_from_several_threads_gives_the_same_bits():
    result = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == encode(bytes(range(256)) * 500, PROFILE_LOCAL).commitment.hex()


def test_importing_coding_loads_no_compiler():
    program = "import sys, deaios.coding.matrix; print([name for name in sys.modules if 'llvmlite' in name])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
