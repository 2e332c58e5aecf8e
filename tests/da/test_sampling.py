"""Samples against closed forms, counting by hand, and draws at small sizes."""

import json
from fractions import Fraction
from itertools import combinations, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.coding.parameters import PROFILE_SAMPLED, Profile, build_committee_profile
from deaios.da.sampling import InvalidSample, compute_confidence, count_samples, draw_rows

VECTORS = json.loads((Path(__file__).parents[2] / "docs/spec/da-vectors.json").read_text())


@pytest.mark.parametrize(("data_rows", "rows"), [(1, 2), (2, 3), (3, 7), (4, 9), (5, 6)])
def test_confidence_is_the_share_of_draws_that_meet_a_missing_row(data_rows, rows):
    for samples in range(rows + 1):
        draws = list(combinations(range(rows), samples))
        missed = sum(all(row < data_rows - 1 for row in draw) for draw in draws)
        assert compute_confidence(Profile(data_rows, rows), samples) == 1 - Fraction(missed, len(draws))


@given(st.integers(3, 256), st.integers(0, 80))
def test_count_is_the_least_that_suffices(seats, bits):
    profile = build_committee_profile(seats)
    epsilon = Fraction(1, 2**bits) if bits else Fraction(1, 3)
    count = count_samples(profile, epsilon)
    assert 1 <= count <= profile.data_rows
    assert 1 - compute_confidence(profile, count) <= epsilon < 1 - compute_confidence(profile, count - 1)


def test_as_many_samples_as_data_rows_are_certain():
    profile = build_committee_profile(16)
    assert count_samples(profile, Fraction(0)) == profile.data_rows
    assert compute_confidence(profile, profile.data_rows) == 1 > compute_confidence(profile, profile.data_rows - 1)
    assert compute_confidence(profile, 0) == 0


def test_counts_equal_the_frozen_ones():
    for data_rows, rows, bits, samples in VECTORS["samples"]:
        assert count_samples(Profile(data_rows, rows), Fraction(1, 1 << bits)) == samples
    # Each sample of a code of rate 1/4 misses with a probability below 1/4, so half as many samples as bits suffice.
    assert count_samples(PROFILE_SAMPLED, Fraction(1, 1 << 40)) == 20


def test_the_largest_codes_are_counted_quickly():
    assert count_samples(Profile(32768, 65535), Fraction(1, 1 << 100)) == 100


def test_a_simulated_loss_is_noticed_as_often_as_computed():
    profile, samples, rounds = Profile(4, 9), 2, 4000
    noticed = sum(any(row >= 3 for row in draw_rows(seed(number), 9, samples)) for number in range(rounds))
    assert abs(noticed / rounds - compute_confidence(profile, samples)) < 0.02


def test_draws_equal_the_frozen_ones():
    for vector in VECTORS["draws"]:
        drawn = draw_rows(bytes.fromhex(vector["randomness"][2:]), vector["rows"], len(vector["drawn"]))
        assert list(drawn) == vector["drawn"]


@given(st.binary(min_size=32, max_size=32), st.integers(1, 65_535), st.data())
def test_draws_are_distinct_rows(randomness, rows, data):
    count = data.draw(st.integers(0, min(rows, 200)))
    drawn = draw_rows(randomness, rows, count)
    assert len(set(drawn)) == count
    assert all(0 <= row < rows for row in drawn)
    assert draw_rows(randomness, rows, min(count, 1)) == drawn[:1]


def test_all_rows_can_be_drawn():
    assert sorted(draw_rows(bytes(32), 65_535, 65_535)) == list(range(65_535))


def test_orders_are_equally_likely():
    rounds = 12_000
    found = dict.fromkeys(permutations(range(4), 2), 0)
    for number in range(rounds):
        found[draw_rows(seed(number), 4, 2)] += 1
    expected = rounds / len(found)
    # Chi-square with 11 degrees of freedom; 31.3 is passed by chance once in a thousand, and the seeds are fixed.
    assert sum((count - expected) ** 2 / expected for count in found.values()) < 31.3


def test_samples_that_cannot_be_taken_are_refused():
    for randomness, rows, count in ((bytes(31), 5, 1), (bytes(32), 5, 6), (bytes(32), 5, -1), (bytes(32), 65_536, 1)):
        with pytest.raises(InvalidSample):
            draw_rows(randomness, rows, count)
    for epsilon in (Fraction(-1, 2), Fraction(1)):
        with pytest.raises(InvalidSample):
            count_samples(Profile(2, 3), epsilon)
    with pytest.raises(InvalidSample):
        compute_confidence(Profile(2, 3), 4)


def seed(number):
    return number.to_bytes(32)
