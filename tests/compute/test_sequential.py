"""The cumulative test: its promise to the honest, its power, and its bounds, against simulation and exact sums."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.compute.sequential import (
    ALPHA,
    Tally,
    bound_rate,
    compute_evalue,
    compute_expected_tokens,
    is_convicting,
)


def test_nothing_seen_says_nothing():
    assert compute_evalue(Tally(), 0.01) == pytest.approx(1.0)
    assert not is_convicting(Tally(), 0.01)


@given(rate=st.floats(0.001, 0.4), tokens=st.integers(1, 12))
def test_the_value_is_a_martingale_of_honest_tokens(rate, tokens):
    """Its mean over everything that an honest provider can show is one: with Ville's inequality that is the promise."""
    mean = sum(
        math.comb(tokens, seen) * rate**seen * (1 - rate) ** (tokens - seen) * compute_evalue(Tally(tokens, seen), rate)
        for seen in range(tokens + 1)
    )
    assert mean == pytest.approx(1.0)


def test_honest_providers_are_not_reported_however_often_one_looks():
    dice, alpha, alarms = random.Random(1), 0.05, 0
    for _ in range(400):
        tally = Tally()
        for _ in range(300):
            tally = tally.add(1, dice.random() < 0.02)
            if is_convicting(tally, 0.02, alpha):
                alarms += 1
                break
    assert alarms <= 400 * alpha  # the bound itself; some 10 are expected


def test_cheats_are_reported_within_about_the_stated_number_of_tokens():
    dice, honest, cheat = random.Random(2), 0.005, 0.05
    stated = compute_expected_tokens(cheat, honest)
    needed = []
    for _ in range(60):
        tally = Tally()
        while not is_convicting(tally, honest):
            tally = tally.add(1, dice.random() < cheat)
            assert tally.tokens < 20 * stated
        needed.append(tally.tokens)
    assert sum(needed) / len(needed) < 1.3 * stated
    assert compute_expected_tokens(honest, honest) is None
    assert compute_expected_tokens(honest / 2, honest) is None


@pytest.mark.parametrize(("tokens", "exceeding"), [(100, 0), (1000, 0), (1000, 3), (500, 40), (50, 50)])
def test_the_bound_of_a_rate_is_the_one_of_clopper_and_pearson(tokens, exceeding):
    bound = bound_rate(tokens, exceeding, 1e-3)
    if exceeding == tokens:
        assert bound == 1.0
        return
    at_most = sum(
        math.comb(tokens, seen) * bound**seen * (1 - bound) ** (tokens - seen) for seen in range(exceeding + 1)
    )
    assert at_most == pytest.approx(1e-3, rel=1e-6)
    assert bound > exceeding / tokens


def test_error_rates_are_those_of_the_protocol():
    assert ALPHA == 1e-4
    assert 1 / ALPHA == 10_000
