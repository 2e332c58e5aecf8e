"""Log probabilities: against a plain log-softmax, between two engines, and the rules that claimed ones must keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.engine import Step
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.generation import Generation
from deaios.compute.logprobs import LOGPROB_MICRO_MIN, LOGPROBS_MAX, MICRO, find_fault, rank_tokens
from deaios.compute.sampling import InvalidParams
from deaios.compute.service import EngineService
from deaios.ledger.structs import Params
from deaios.primitives.hashing import ZERO32

SEED = bytes(range(32))
NATS_MAX = 0.02
"""How far two honest engines may be apart."""


def make_params(max_tokens):
    return Params(900, 40, 950, max_tokens, (), (), ZERO32)


def logprobs_of(row):
    """The plain formula, in the most exact floats there are."""
    row = row.astype(np.longdouble)
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


logits_rows = st.lists(st.floats(-1e4, 1e4, width=32), min_size=21, max_size=60).map(lambda row: np.array(row, "f4"))


@settings(deadline=None)
@given(logits_rows, st.integers(0, 20), st.integers(0, LOGPROBS_MAX))
def test_a_ranking_is_the_log_softmax_and_has_no_fault(row, token, count):
    ranking = rank_tokens(row, token, count)
    expected = logprobs_of(row)
    assert [place for place, _ in ranking] == [token, *sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]]
    for place, value in ranking:
        assert value / MICRO == pytest.approx(max(float(expected[place]), LOGPROB_MICRO_MIN / MICRO), abs=1e-6)
    assert find_fault(ranking, token, count) is None


def test_what_is_nearly_impossible_has_a_floor_and_what_is_certain_is_zero():
    row = np.array([0.0, 3e38, -3e38], "f4")
    assert rank_tokens(row, 2, 2) == ((2, LOGPROB_MICRO_MIN), (1, 0), (0, LOGPROB_MICRO_MIN))


HONEST = ((7, -2_000_000), (5, -500_000), (6, -1_500_000))


@pytest.mark.parametrize(
    ("ranking", "words"),
    [
        (HONEST[:2], "asked for"),
        ((*HONEST, (8, -9_000_000)), "asked for"),
        ((), "asked for"),
        (((8, -2_000_000), *HONEST[1:]), "sampled one is 7"),
        (((7, 1), *HONEST[1:]), "outside"),
        (((7, LOGPROB_MICRO_MIN - 1), *HONEST[1:]), "outside"),
        ((*HONEST[:2], (1 << 32, -1_500_000)), "outside"),
        ((*HONEST[:2], (-1, -1_500_000)), "outside"),
        ((HONEST[0], HONEST[2], HONEST[1]), "descending"),
        ((*HONEST[:2], (5, -500_000)), "twice"),
        (((7, -1_000_000), *HONEST[1:]), "most probable tokens"),
        (((7, -2_000_000), (5, -500_000), (7, -2_000_001)), "most probable tokens"),
        (((7, -700_000), (5, -700_000), (6, -700_000)), "add up"),
    ],
)
def test_a_false_ranking_is_named(ranking, words):
    assert find_fault(HONEST, 7, 2) is None
    assert words in find_fault(ranking, 7, 2)


async def collect(service, prompt, count, tokenizer, max_tokens=12):
    stream = service.generate(prompt, make_params(max_tokens), SEED, tokenizer, count)
    return [sampled async for sampled in stream]


async def test_llamas_log_probabilities_are_those_that_numpy_computes(model_files, numpy_engine, tokenizer):
    service = EngineService(LlamaEngine(model_files.served, threads=2, context_tokens=128, sequences_max=2))
    prompt = tokenizer.encode_plain("The lighthouse stood at the")
    try:
        ranked, bare, beside = [await collect(service, prompt, count, tokenizer) for count in (5, 0, None)]
        with pytest.raises(InvalidParams, match="0 to 20"):
            service.generate(prompt, make_params(2), SEED, tokenizer, 21)
    finally:
        await service.close()
    ids = tuple(sampled.token for sampled in ranked)
    assert ids == tuple(sampled.token for sampled in bare) == tuple(sampled.token for sampled in beside)
    assert [sampled.logprobs for sampled in beside] == [None] * len(ids)
    assert [sampled.logprobs for sampled in bare] == [sampled.logprobs[:1] for sampled in ranked]
    numpy_engine.forget(0)
    (rows,) = numpy_engine.decode([Step(0, 0, (*prompt, *ids[:-1]), len(ids))])
    numpy_engine.forget(0)
    worst = 0.0
    for sampled, row in zip(ranked, rows, strict=True):
        assert find_fault(sampled.logprobs, sampled.token, 5) is None
        expected = logprobs_of(row)
        worst = max(worst, *(abs(value / MICRO - float(expected[place])) for place, value in sampled.logprobs))
        ours = {place for place, _ in rank_tokens(row, sampled.token, 5)[1:]}
        theirs = {place for place, _ in sampled.logprobs[1:]}
        close = min(float(expected[place]) for place in ours)
        assert all(float(expected[place]) > close - NATS_MAX for place in theirs)
    assert 0.0 < worst <= NATS_MAX


def test_a_machine_without_the_wish_ranks_nothing(tokenizer):
    row = np.zeros(tokenizer.vocabulary_size, "f4")
    assert Generation(1, make_params(3), SEED, tokenizer).offer(row).logprobs is None
    assert len(Generation(1, make_params(3), SEED, tokenizer, 20).offer(row).logprobs) == 21


def test_labels_name_special_tokens_and_show_broken_characters(tokenizer):
    assert tokenizer.get_label(tokenizer.special_ids["<|im_end|>"]) == "<|im_end|>"
    assert [tokenizer.get_label(token) for token in tokenizer.encode_plain("the sea")] == ["the", " sea"]
    emoji = tokenizer.encode_plain("\U0001f9ff")
    assert len(emoji) > 1
    assert "\ufffd" in tokenizer.get_label(emoji[0])
