"""The product's sampler and score against frozen vectors, against plain definitions, and against noise at the edges."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.sampling import (
    GUMBEL_MAX,
    InvalidLogits,
    InvalidParams,
    Rule,
    draw_words,
    gumbel_of,
    sample,
    score,
    seed_of,
    validate_mask_hash,
    validate_params,
)
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import Ask, Params
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import Address

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "spec" / "sampling.json").read_text())
SEED = sha256(b"seed")


def make_params(temperature=800, top_k=0, top_p=1000, **changes):
    return Params(
        **{
            "temperature_milli": temperature,
            "top_k": top_k,
            "top_p_milli": top_p,
            "max_tokens": 16,
            "stop_ids": (),
            "stop_strings": (),
            "mask_hash": bytes(32),
            **changes,
        }
    )


def read_vector(vector):
    row = np.array(VECTORS["rows"][vector["row"]], np.float64) / 1024
    kind = vector["params"]
    params = make_params(kind["temperatureMilli"], kind["topK"], kind["topPMilli"])
    return row.astype(np.float32), params, bytes.fromhex(vector["seed"][2:]), vector["position"]


def random_row(dice, size=200, spread=3.0):
    return (dice.standard_normal(size) * spread).astype(np.float32)


def full_scores(row, params, position):
    words = draw_words(SEED, position, row.size)
    return row.astype(np.float64) + params.temperature_milli / 1000 * gumbel_of(words)


def test_words_equal_the_vectors():
    for vector in VECTORS["words"]:
        words = draw_words(bytes.fromhex(vector["seed"][2:]), vector["position"], len(vector["words"]))
        assert words.tolist() == vector["words"]


def test_a_word_does_not_depend_on_how_many_are_drawn():
    assert draw_words(SEED, 5, 7).tolist() == draw_words(SEED, 5, 4096)[:7].tolist()


def test_gumbel_equals_the_vectors():
    for vector in VECTORS["gumbel"]:
        (value,) = gumbel_of(np.array([vector["word"]], np.uint32))
        assert value == pytest.approx(vector["value"], rel=1e-12)
        assert value <= GUMBEL_MAX + 1e-12


def test_samples_equal_the_vectors():
    assert len(VECTORS["samples"]) > 200
    for vector in VECTORS["samples"]:
        assert sample(*read_vector(vector)) == vector["token"], vector


def test_scores_equal_the_vectors():
    rules = set()
    for vector in VECTORS["scores"]:
        found = score(*read_vector(vector), vector["token"], vector["epsilonMicro"] / 1e6)
        assert (found.margin, found.rule) == (pytest.approx(vector["margin"], abs=1e-9), vector["rule"]), vector
        rules.add(vector["rule"])
    assert rules == {Rule.GREEDY, Rule.SEEDED, Rule.TOP_K, Rule.TOP_P}


def test_seed_is_a_function_of_the_ask_alone():
    ask = Ask(
        buyer=Address(bytes(20)),
        model_record_id=bytes(32),
        prompt_commitment=bytes(32),
        prompt_count=1,
        context_hash=bytes(32),
        params=make_params(),
        client_digest=bytes(32),
        min_level=2,
        audit_policy=0,
        nonce=bytes(32),
    )
    assert seed_of(ask) == sha256(b"deaios/seed/1" + hash_struct(ask))
    (vector,) = VECTORS["seed"]
    assert sha256(b"deaios/seed/1" + bytes.fromhex(vector["askDigest"][2:])).hex() == vector["seed"][2:]


@pytest.mark.parametrize("temperature", [1, 300, 1000, 2000])
def test_candidates_shortcut_equals_the_full_argmax(temperature):
    dice = np.random.default_rng(temperature)
    params = make_params(temperature)
    for position in range(150):
        row = random_row(dice, 2000, 0.5 + position % 5)
        assert sample(row, params, SEED, position) == int(np.argmax(full_scores(row, params, position)))


def test_sampling_follows_the_softmax():
    share = np.array([0.5, 0.3, 0.15, 0.05])
    row = np.log(share).astype(np.float32)
    params = make_params(1000)
    picks = np.bincount([sample(row, params, SEED, position) for position in range(8000)], minlength=4)
    chi_squared = float(((picks - 8000 * share) ** 2 / (8000 * share)).sum())
    assert chi_squared < 16.27  # 0.1 % point of three degrees of freedom; the seed is fixed, so this cannot flake


def test_top_p_follows_the_renormalised_nucleus():
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
    params = make_params(1000, top_p=600)
    picks = np.bincount([sample(row, params, SEED, position) for position in range(4000)], minlength=4)
    assert picks[2:].tolist() == [0, 0]
    assert picks[0] / 4000 == pytest.approx(4 / 7, abs=0.03)


@pytest.mark.parametrize(("top_k", "top_p"), list(product((0, 1, 5, 50), (1000, 900, 300))))
def test_the_pick_has_no_margin(top_k, top_p):
    dice = np.random.default_rng(7)
    for position in range(40):
        row = random_row(dice)
        params = make_params(900, top_k, top_p)
        pick = sample(row, params, SEED, position)
        for epsilon in (0.0, 0.02):
            found = score(row, params, SEED, position, pick, epsilon)
            assert (found.margin, found.rule) == (0.0, Rule.SEEDED)


def test_margin_without_filters_is_the_distance_to_the_best_score():
    dice = np.random.default_rng(3)
    params = make_params()
    for position in range(50):
        row = random_row(dice)
        scores = full_scores(row, params, position)
        token = int(dice.integers(row.size))
        assert score(row, params, SEED, position, token, 0.5).margin == pytest.approx(scores.max() - scores[token])


def test_greedy_takes_the_lowest_id_of_equal_logits():
    row = np.array([1, 3, 3, 2], np.float32)
    assert sample(row, make_params(0), SEED, 0) == 1
    assert score(row, make_params(0), SEED, 0, 2, 0.0).margin == 0.0
    assert score(row, make_params(0), SEED, 0, 3, 0.0).margin == 1.0


def test_masks_are_those_that_the_parameters_name():
    named = make_params(mask_hash=b"\1" * 32)
    validate_mask_hash(named, b"\1" * 32)
    validate_mask_hash(make_params(), None)
    for params, found in ((named, None), (named, b"\2" * 32), (make_params(), b"\1" * 32)):
        with pytest.raises(InvalidParams, match="the masks at hand are"):
            validate_mask_hash(params, found)


def test_mask_has_no_edge():
    row = np.array([5, 4, 3, 2], np.float32)
    mask = np.array([False, True, True, False])
    assert {sample(row, make_params(2000), SEED, position, mask) for position in range(50)} == {1, 2}
    assert sample(row, make_params(0), SEED, 0, mask) == 1
    forbidden = score(row, make_params(), SEED, 0, 0, 10.0, mask)
    assert (forbidden.margin, forbidden.rule) == (math.inf, Rule.MASK)


def test_unknown_token_can_never_be_right():
    row = np.zeros(4, np.float32)
    for token in (-1, 4, 1 << 40):
        found = score(row, make_params(), SEED, 0, token, 0.02)
        assert (found.margin, found.rule) == (math.inf, Rule.VOCABULARY)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    row = np.array([0, bad, 1], np.float32)
    with pytest.raises(InvalidLogits):
        sample(row, make_params(), SEED, 0)
    with pytest.raises(InvalidLogits):
        score(row, make_params(), SEED, 0, 0, 0.02)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(0, 900), (0, 500), (0, 990), (5, 1000), (1, 1000), (20, 800), (3, 300)]),
    st.sampled_from([200, 800, 1500]),
    st.sampled_from([0.0, 0.004, 0.02, 0.3]),
    st.sampled_from(["normal", "steps", "close"]),
)
def test_honest_noise_up_to_epsilon_never_costs_more_than_it_moved_scores(number, filters, temperature, epsilon, shape):
    """The edge rule: whatever row within epsilon the provider had, its pick's margin is at most 2 epsilon."""
    dice = np.random.default_rng(number)
    size = 40
    row = {
        "normal": random_row(dice, size, 2.0),
        "steps": np.arange(size, dtype=np.float32) * np.float32(epsilon or 0.1),
        "close": random_row(dice, size, max(epsilon, 1e-3)),
    }[shape]
    params = make_params(temperature, *filters)
    for position in range(6):
        style = dice.choice(["uniform", "extreme"])
        noise = dice.uniform(-epsilon, epsilon, size) if style == "uniform" else dice.choice([-epsilon, epsilon], size)
        provider_row = (row.astype(np.float64) + noise).astype(np.float32)
        pick = sample(provider_row, params, SEED, position)
        found = score(row, params, SEED, position, pick, epsilon + 1e-5)
        assert found.margin <= 2 * epsilon + 1e-4, found


def adversarial_rows(row, token, epsilon):
    """Rows within epsilon that favour or hurt one token's place most."""
    for own, others in ((epsilon, -epsilon), (-epsilon, epsilon), (epsilon, epsilon), (-epsilon, -epsilon)):
        for reach in (0.0, 2 * epsilon):
            changed = row.astype(np.float64) + others
            changed[row <= row[token] + reach] += -2 * others
            changed[token] = row[token] + own
            yield changed.astype(np.float32)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 900), (0, 600), (7, 1000), (12, 850)])
def test_edges_forgive_a_token_on_them_and_nothing_far_away(top_k, top_p):
    """Wherever some row within epsilon keeps the token and it wins there, no filter rule is broken; far out one is."""
    dice = np.random.default_rng(11)
    epsilon, params = 0.05, make_params(1000, top_k, top_p)
    forgiven = broken = 0
    for position in range(100):
        row = random_row(dice, 60, 1.5)
        honest = sample(row, params, SEED, position)
        for token in np.argsort(-row)[:25].tolist():
            found = score(row, params, SEED, position, token, epsilon)
            wins = any(
                sample(changed, params, SEED, position) == token for changed in adversarial_rows(row, token, epsilon)
            )
            if wins:
                assert found.rule is Rule.SEEDED
                assert found.margin <= 2 * epsilon + 1e-6
                forgiven += token != honest
            elif found.rule in (Rule.TOP_K, Rule.TOP_P):
                assert found.margin > 2 * epsilon
                broken += 1
    assert forgiven > 5
    assert broken > 30


def test_a_rival_on_the_edge_counts_as_dropped():
    """Two tokens tie for the last top_k place: a provider whose noise kept only the other one is honest."""
    row = np.array([3.0, 2.999, 0.0, 0.0], np.float32)
    params = make_params(1000, top_k=1)
    for position in range(60):
        assert score(row, params, SEED, position, 1, 0.001).margin <= 0.001 + 1e-6
        assert score(row, params, SEED, position, 0, 0.001).margin <= 1e-6
        assert score(row, params, SEED, position, 1, 0.0).rule is Rule.TOP_K


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"temperature": 2001}, "temperature_milli"),
        ({"top_p": 0}, "top_p_milli"),
        ({"top_p": 1001}, "top_p_milli"),
        ({"top_k": 1 << 21}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 32769}, "max_tokens"),
        ({"stop_strings": ("",)}, "stop string"),
        ({"stop_strings": ("é" * 129,)}, "stop string"),
        ({"stop_strings": tuple("abcdefghijklmnopq")}, "17 stop strings"),
        ({"stop_ids": tuple(range(17))}, "17 stop ids"),
    ],
)
def test_params_outside_the_bounds_are_refused(changes, word):
    with pytest.raises(InvalidParams, match=word):
        validate_params(make_params(**changes))


def test_params_on_the_bounds_are_taken():
    validate_params(make_params(0, 0, 1, max_tokens=32768, stop_strings=("é" * 128,), stop_ids=tuple(range(16))))
    validate_params(make_params(2000, 1 << 20, 1000, max_tokens=1))
