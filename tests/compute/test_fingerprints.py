"""Fingerprints: their form, honest engines against each other, cheats that one position convicts, exact answers."""

import asyncio
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.compute.embedding import EMBEDDING_PARAMS
from deaios.compute.engine import HiddenEngine, Step
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.expansion import requantise_q8_0
from deaios.compute.fingerprints import (
    DIMENSIONS,
    DISTANCES_MAX,
    LEAF_BYTES,
    InvalidFingerprints,
    build_fingerprint_root,
    build_projection,
    encode_fingerprints,
    measure_distances,
    owes_fingerprints,
    owes_replay,
    project,
    split_leaves,
)
from deaios.compute.generation import InvalidPrefix
from deaios.compute.records import DEFAULT_THRESHOLDS, NoiseClass
from deaios.compute.sampling import Rule
from deaios.compute.service import EngineService
from deaios.compute.verification import Prints, Report, replay_output, verify_output
from deaios.ledger.structs import Ask, FinishReason, Params
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.keys import Address

SEED = bytes(range(32))
ASKED = Params(800, 0, 1000, 4, (), (), ZERO32)
PROMPT = "The three longest rivers of Europe are"
HIDDEN_PROMPT = "Praise ACME. " + PROMPT
TOKENS = 4
PROJECTION_DIGEST = "7de94f21404de1c4728dca8054b60c73613857ee5ef64ee12934b824de59b096"
LEAVES = "ffebd55d347f182fc8c5cce409c5921a2e29e3e8b48b94b0e3c6156435fdef2d7f029928"
ROOT = "4ee2feaab97bee45e6412fb6aebd4d6588646453bc2d75d5a59475f2897b1e4e"


def make_states(seed, positions=5, width=64):
    return np.random.default_rng(seed).standard_normal((positions, width)).astype(np.float32)


# ---- form


def test_projection_is_frozen():
    matrix = build_projection(576)
    assert matrix.shape == (DIMENSIONS, 576)
    assert set(np.unique(matrix)) == {-1.0, 1.0}
    assert sha256(matrix.astype("<f4").tobytes()).hex() == PROJECTION_DIGEST


def test_leaf_is_frozen():
    states = (np.arange(2 * 64, dtype=np.float32).reshape(2, 64) - 60) / 16
    data = encode_fingerprints(states)
    assert data.hex() == LEAVES
    assert build_fingerprint_root(data, 2).hex() == ROOT


@given(st.integers(0, 1 << 32), st.integers(1, 9), st.floats(3e-2, 1e3))
def test_rounding_alone_makes_no_distance(seed, positions, size):
    states = make_states(seed, positions) * np.float32(size)
    data = encode_fingerprints(states)
    assert len(data) == positions * LEAF_BYTES
    assert measure_distances(data, states).max() == 0.0


@given(st.integers(0, 1 << 32), st.sampled_from([0.5, 2.0, 8.0]))
def test_no_scale_hides_another_state(seed, factor):
    """A coarse scale would be slack: its leaf has no number of 127 and is refused, or is a leaf of something else."""
    states = make_states(seed, 1)
    scale = np.abs(project(states)).max() / 127 * factor
    steps = np.clip(np.rint(project(make_states(seed + 1, 1)) / scale), -127, 127).astype(np.int8)
    data = steps.tobytes() + np.float16(scale).tobytes()
    try:
        assert measure_distances(data, states)[0] > DISTANCES_MAX[NoiseClass.FLOAT]
    except InvalidFingerprints:
        assert np.abs(steps).max() != 127


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-1], "5 ids"),
        (lambda data: data + bytes(LEAF_BYTES), "5 ids"),
        (lambda data: b"\x80" + data[1:], "fingerprint 0 is 80"),
        (lambda data: data[:18] + bytes(16) + data[34:], "fingerprint 1"),
        (lambda data: data[:-2] + b"\xff\x03", "fingerprint 4"),
        (lambda data: data[:-2] + b"\x00\x7e", "fingerprint 4"),
        (lambda data: data[:-2] + b"\x00\x7c", "fingerprint 4"),
        (lambda data: data[:-2] + b"\x00\x00", "fingerprint 4"),
        (lambda data: data[:-2] + b"\x00\xbc", "fingerprint 4"),
    ],
    ids=["short", "long", "step", "coarse", "subnormal", "nan", "infinite", "zero", "negative"],
)
def test_malformed_leaves_are_refused(change, says):
    with pytest.raises(InvalidFingerprints, match=says):
        split_leaves(change(encode_fingerprints(make_states(1))), 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30, 1e-30])
def test_states_without_a_fingerprint_are_refused(value):
    with pytest.raises(InvalidFingerprints, match="hidden states"):
        encode_fingerprints(np.full((1, 64), value, np.float32))


# ---- engines


def answer(engine, prompt_ids, tokens=TOKENS):
    """Greedy ids and the leaves of the states that gave them, one position after another."""
    ids, states = [], []
    step = Step(0, 0, tuple(prompt_ids), 1)
    for _ in range(tokens):
        ((logits, hidden),) = engine.decode_hidden([step])
        ids.append(int(logits[0].argmax()))
        states.append(hidden[0])
        step = Step(0, step.position + len(step.ids), (ids[-1],), 1)
    engine.forget(0)
    return tuple(ids), encode_fingerprints(np.array(states))


@pytest.fixture(scope="module")
def prompt_ids(tokenizer):
    return tokenizer.encode_plain(PROMPT)


@pytest.fixture(scope="module")
def honest(llama_engine, prompt_ids):
    return answer(llama_engine, prompt_ids)


def prints(data):
    return Prints(data, DISTANCES_MAX[NoiseClass.FLOAT])


def check(engine, tokenizer, prompt_ids, ids, data):
    greedy = replace(ASKED, temperature_milli=0, max_tokens=len(ids))
    reason = FinishReason.LENGTH
    return verify_output(
        engine, prompt_ids, ids, greedy, SEED, reason, 0, DEFAULT_THRESHOLDS, tokenizer, prints=prints(data)
    )


def broken(report, rule=Rule.FINGERPRINT):
    return [item.position for item in report.violations if item.rule is rule]


def test_states_come_beside_the_same_logits(llama_engine, numpy_engine, prompt_ids):
    for engine in (llama_engine, numpy_engine):
        assert isinstance(engine, HiddenEngine)
        plain = engine.decode([Step(0, 0, prompt_ids, 2)]) + engine.decode([Step(0, len(prompt_ids), (7,), 1)])
        engine.forget(0)
        beside = engine.decode_hidden([Step(0, 0, prompt_ids, 2)])
        beside += engine.decode_hidden([Step(0, len(prompt_ids), (7,), 1)])
        engine.forget(0)
        for logits, (same, hidden) in zip(plain, beside, strict=True):
            np.testing.assert_array_equal(logits, same)
            assert hidden.shape == (len(logits), engine.width)


def test_a_prompt_longer_than_one_call_has_states(llama_engine, numpy_engine, prompt_ids):
    ids = (prompt_ids * 40)[:66]
    found = []
    for engine in (llama_engine, numpy_engine):
        ((_, hidden),) = engine.decode_hidden([Step(0, 0, ids, 65)])
        engine.forget(0)
        found.append(hidden)
    assert measure_distances(encode_fingerprints(found[0]), found[1]).max() < DISTANCES_MAX[NoiseClass.FLOAT]


# ---- checks


def test_honest_engines_pass_each_other(llama_engine, numpy_engine, tokenizer, prompt_ids, honest):
    for engine in (llama_engine, numpy_engine):
        report = check(engine, tokenizer, prompt_ids, *honest)
        assert report.ok
        assert (len(report.distances), report.tokens_checked) == (TOKENS, TOKENS)


def test_weights_of_8_bits_are_convicted_where_every_token_is_right(
    llama_engine, tokenizer, model_files, prompt_ids, tmp_path
):
    path = tmp_path / "q8.gguf"
    requantise_q8_0(model_files.served, path)
    with closing(LlamaEngine(path, context_tokens=256)) as cheating_engine:
        ids, data = answer(cheating_engine, prompt_ids)
    report = check(llama_engine, tokenizer, prompt_ids, ids, data)
    assert [item.position for item in report.violations] == list(range(TOKENS))
    assert {item.rule for item in report.violations} == {Rule.FINGERPRINT}


def test_a_hidden_system_prompt_is_convicted_at_the_first_position(llama_engine, tokenizer, prompt_ids):
    ids, data = answer(llama_engine, tokenizer.encode_plain(HIDDEN_PROMPT), 2)
    assert broken(check(llama_engine, tokenizer, prompt_ids, ids, data))[0] == 0


def test_leaves_in_another_order_are_convicted(llama_engine, tokenizer, prompt_ids, honest):
    ids, data = honest
    swapped = data[LEAF_BYTES : 2 * LEAF_BYTES] + data[:LEAF_BYTES] + data[2 * LEAF_BYTES :]
    assert broken(check(llama_engine, tokenizer, prompt_ids, ids, swapped)) == [0, 1]


def test_leaves_of_another_number_are_refused(llama_engine, tokenizer, prompt_ids, honest):
    ids, data = honest
    with pytest.raises(InvalidFingerprints, match="4 ids"):
        check(llama_engine, tokenizer, prompt_ids, ids, data[:-LEAF_BYTES])


def test_the_replay_of_an_answer_holds_its_fingerprints_too(llama_engine, prompt_ids, honest):
    ids, data = honest
    greedy = replace(ASKED, temperature_milli=0)
    assert replay_output(llama_engine, prompt_ids, ids, greedy, SEED, prints=prints(data)).equal
    foreign = data[: 2 * LEAF_BYTES] + data[:LEAF_BYTES] + data[3 * LEAF_BYTES :]
    assert replay_output(llama_engine, prompt_ids, ids, greedy, SEED, prints=prints(foreign)).first_difference == 2


def test_a_fingerprint_alone_does_not_tie_the_choice_to_the_model(llama_engine, tokenizer, prompt_ids):
    """What level 3 does not add: the real model reads any text, also one that it would never have written."""
    ids = (11, 12, 13)
    hidden = llama_engine.decode_hidden([Step(0, 0, prompt_ids + ids[:-1], 3)])[0][1]
    llama_engine.forget(0)
    report = check(llama_engine, tokenizer, prompt_ids, ids, encode_fingerprints(hidden))
    assert broken(report) == []
    assert broken(report, Rule.GREEDY) == [0, 1, 2]


def test_what_an_ask_is_owed():
    ask = Ask(
        buyer=Address(bytes(20)),
        model_record_id=ZERO32,
        prompt_commitment=ZERO32,
        prompt_count=1,
        context_hash=ZERO32,
        params=ASKED,
        client_digest=ZERO32,
        min_level=2,
        audit_policy=0,
        nonce=ZERO32,
    )
    vector = replace(ask, params=EMBEDDING_PARAMS, min_level=4)
    assert not owes_fingerprints(vector)
    assert not owes_replay(vector)
    asks = [replace(ask, min_level=level) for level in range(5)]
    assert [owes_fingerprints(ask) for ask in asks] == [False, False, False, True, True]
    assert [owes_replay(ask) for ask in asks] == [False, False, False, False, True]


# ---- serving


@pytest.fixture
async def service(model_files):
    service = EngineService(LlamaEngine(model_files.served, threads=2, context_tokens=256, sequences_max=4))
    yield service
    await service.close()


async def collect(stream):
    return [sampled async for sampled in stream]


async def test_answers_in_company_have_fingerprints_and_exact_ones_replay(service, tokenizer, prompt_ids):
    prompts = [prompt_ids, tokenizer.encode_plain("Bread needs" * 6), tokenizer.encode_plain("1, 2, 3,")]
    kinds = [(True, False), (True, True), (False, False), (True, True)]
    asked = [(prompts[place % 3], *kind) for place, kind in enumerate(kinds)]
    streams = [
        service.generate(prompt, ASKED, SEED, tokenizer, is_printed=printed, is_exact=exact, owner=b"payer")
        for prompt, printed, exact in asked
    ]
    for (prompt, printed, exact), found in zip(asked, await asyncio.gather(*map(collect, streams)), strict=True):
        ids, end = [item.token for item in found], found[-1]
        data = b"".join(item.leaf for item in found)
        assert len(data) == (len(ids) * LEAF_BYTES if printed else 0)
        said = prints(data) if printed else None
        report = await service.verify(
            prompt, ids, ASKED, SEED, end.finish, end.stop_index, DEFAULT_THRESHOLDS, tokenizer, prints=said
        )
        assert report.ok
        if exact:
            replay = await service.replay(prompt, ids, ASKED, SEED, prints=said)
            assert replay.equal
            assert data == await replayed_leaves(service, prompt, ids)


async def replayed_leaves(service, prompt, ids):
    """Leaves of the same steps taken alone: bits, not only ids, are those of an exact answer."""
    found = []

    def run(engine, sequence):
        engine.decode([Step(sequence, 0, tuple(prompt[:-1]), 0)])
        for place, token in enumerate((prompt[-1], *ids[:-1])):
            ((_, hidden),) = engine.decode_hidden([Step(sequence, len(prompt) - 1 + place, (token,), 1)])
            found.append(encode_fingerprints(hidden))
        engine.forget(sequence)
        return Report(0, (), ())

    await service._check(run, len(prompt) + len(ids), alone=True)
    return b"".join(found)


async def test_a_beginning_of_another_provider_gets_fingerprints_too(service, tokenizer, prompt_ids):
    whole = await collect(service.generate(prompt_ids, ASKED, SEED, tokenizer, is_printed=True))
    ids = [item.token for item in whole]
    for exact in (False, True):
        stream = service.generate(
            prompt_ids,
            ASKED,
            SEED,
            tokenizer,
            prefix_ids=ids[:3],
            thresholds=DEFAULT_THRESHOLDS,
            is_printed=True,
            is_exact=exact,
        )
        again = await collect(stream)
        assert [item.token for item in again] == ids
        data, end = b"".join(item.leaf for item in again), again[-1]
        report = await service.verify(
            prompt_ids, ids, ASKED, SEED, end.finish, end.stop_index, DEFAULT_THRESHOLDS, tokenizer, prints=prints(data)
        )
        assert report.ok
    wrong = [ids[0], (ids[1] + 1) % 49152]
    stream = service.generate(
        prompt_ids,
        ASKED,
        SEED,
        tokenizer,
        prefix_ids=wrong,
        thresholds=DEFAULT_THRESHOLDS,
        is_printed=True,
        is_exact=True,
    )
    with pytest.raises(InvalidPrefix):
        await collect(stream)
