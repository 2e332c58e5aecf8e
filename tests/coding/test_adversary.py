"""An encoder that lies before it commits: whatever it corrupts, all rows that verify are rows of one payload."""

import random
from itertools import combinations
from math import comb

import numpy as np
import pytest

from deaios.coding.combinations import Combiner, draw_coefficients
from deaios.coding.field import multiply
from deaios.coding.head import Head
from deaios.coding.matrix import InvalidRows, RowVerifier, decode, encode
from deaios.coding.parameters import LEAF_BYTES, Parameters, Profile
from deaios.coding.tree import build_levels, hash_rows, read_path, seal_root

PROFILES = [Profile(1, 2), Profile(1, 4), Profile(2, 3), Profile(2, 4), Profile(3, 5), Profile(4, 8), Profile(3, 9)]
TRIALS = 1_200
DECODINGS_MAX = 8
FORMS = 150_000
"""Roots that are tried at one test each; some nine of them should let a single wrong symbol pass."""


def corrupt(rows, dice):
    """Change any rows, from one bit to everything, alone or in the same places."""
    chosen = dice.sample(range(len(rows)), dice.randrange(1, len(rows) + 1))
    kind = dice.choice(("bit", "symbol", "bytes", "swap", "copy", "same"))
    pattern = np.frombuffer(dice.randbytes(rows.shape[1]), np.uint8)
    for row in chosen:
        place = dice.randrange(rows.shape[1])
        if kind == "bit":
            rows[row, place] ^= 1 << dice.randrange(8)
        elif kind == "symbol":
            rows[row, [place & ~32, place | 32]] ^= np.frombuffer(dice.randbytes(2), np.uint8)
        elif kind == "bytes":
            rows[row] = np.frombuffer(dice.randbytes(rows.shape[1]), np.uint8)
        elif kind == "same":
            rows[row] ^= pattern
        else:
            other = dice.randrange(len(rows))
            rows[[row, other]] = rows[[other, row]] if kind == "swap" else rows[[other, other]]


def commit(rows, parameters, dice, honest):
    """Root over the rows, and the combinations that serve the liar best."""
    levels = build_levels(hash_rows(rows))
    root = seal_root(levels[-1].tobytes())
    combiner = Combiner(root, parameters)
    shown = combiner.combine(rows[: parameters.profile.data_rows])
    if dice.random() < 0.5:  # those of the rows as they should be, so that the others stand
        shown = combiner.combine(honest)
    return Head(parameters, root, shown.astype("<u2").tobytes()), levels


def test_no_lie_lets_two_payloads_stand():
    dice = random.Random(20261127)
    stood = 0
    for _ in range(TRIALS):
        profile = dice.choice(PROFILES)
        matrix = encode(dice.randbytes(dice.randrange(1, profile.data_rows * LEAF_BYTES + 1)), profile)
        rows, parameters = matrix.rows.copy(), matrix.head.parameters
        corrupt(rows, dice)
        head, levels = commit(rows, parameters, dice, matrix.rows[: profile.data_rows])
        verifier = RowVerifier(head.commitment, head)
        accepted = [i for i in range(profile.rows) if verifier.verify(i, rows[i].tobytes(), read_path(levels, i))]
        found = set()
        choices = list(combinations(accepted, profile.data_rows))
        for chosen in dice.sample(choices, min(len(choices), DECODINGS_MAX)):
            try:
                found.add(bytes(decode(parameters, {index: rows[index].tobytes() for index in chosen})))
            except InvalidRows:  # a payload behind which there is more than zeros: refused for every choice
                found.add(None)
        assert len(found) <= 1, (profile, accepted)
        stood += len(accepted) > profile.data_rows
    assert stood > TRIALS / 20, "some lies left more rows than a payload needs, else nothing was compared"


def draw_forms(parameters, count):
    """Coefficients of one test under many roots: r1, r2, r3, r4, each (count, size)."""
    parameters.profile.__dict__["tests"] = 1  # what a weaker code would use
    drawn = [draw_coefficients(number.to_bytes(32), parameters) for number in range(count)]
    return [np.stack([levels[level][:, 0] for levels in drawn]) for level in range(4)]


def evaluate(forms, symbols):
    """The test of a row that is zero but for some symbols: {(group, block, quarter, place): value}."""
    r1, r2, r3, r4 = forms
    total = np.zeros(len(r1), np.uint16)
    for (group, block, quarter, place), value in symbols.items():
        product = multiply(multiply(r1[:, block], r2[:, group]), multiply(r3[:, quarter], r4[:, place]))
        total ^= multiply(product, np.uint16(value))
    return total


def bound_poisson(expected):
    """Counts outside this come less than once in a million times."""
    low = high = int(expected)
    chances = [np.exp(count * np.log(expected) - expected - np.log(np.arange(1, count + 1)).sum())
               for count in range(int(expected * 5) + 20)]  # fmt: skip
    low = next(count for count in range(len(chances)) if sum(chances[: count + 1]) > 5e-7)
    high = next(count for count in range(len(chances)) if sum(chances[: count + 1]) > 1 - 5e-7)
    return low, high


@pytest.mark.slow
def test_false_accepts_come_as_often_as_predicted():
    """One test misses a wrong row with probability at most 4 / 2^16, and a single wrong symbol reaches that."""
    parameters = Parameters(Profile(1, 2), 64 * LEAF_BYTES)
    forms = draw_forms(parameters, FORMS)
    rates = {
        "one symbol": ({(3, 17, 2, 5): 0x1234}, 4),
        "two blocks": ({(3, 17, 2, 5): 1, (3, 40, 2, 5): 0xFFFF}, 4),
        "everywhere else": ({(0, 0, 0, 0): 7, (1, 1, 1, 1): 9, (9, 9, 3, 7): 11}, 1),
    }
    for name, (symbols, share) in rates.items():
        missed = int((evaluate(forms, symbols) == 0).sum())
        expected = FORMS * share / (1 << 16)
        low, high = bound_poisson(expected)
        assert low <= missed <= high, (name, missed, expected)


def test_the_form_is_what_the_product_computes():
    parameters = Parameters(Profile(1, 2), 64 * LEAF_BYTES)
    parameters.profile.__dict__["tests"] = 1
    forms = [level[None, :, 0] for level in draw_coefficients(bytes(32), parameters)]
    dice = random.Random(5)
    combiner = Combiner(bytes(32), parameters)
    for _ in range(40):
        group, block, quarter, place = dice.randrange(16), dice.randrange(64), dice.randrange(4), dice.randrange(8)
        value = dice.randrange(1, 1 << 16)
        row = np.zeros((1, parameters.row_bytes), np.uint8)
        start = 64 * (group * 64 + block) + 8 * quarter + place
        row[0, start], row[0, start + 32] = value & 0xFF, value >> 8
        assert combiner.combine(row)[0, 0] == evaluate(forms, {(group, block, quarter, place): value})[0]


def test_fewer_rows_than_needed_never_decode():
    dice = random.Random(9)
    for profile in PROFILES:
        matrix = encode(dice.randbytes(2000), profile)
        for count in range(profile.data_rows):
            for chosen in list(combinations(range(profile.rows), count))[: comb(profile.rows, count)]:
                with pytest.raises(InvalidRows, match="needed"):
                    decode(matrix.head.parameters, {index: matrix.get_row(index) for index in chosen})
