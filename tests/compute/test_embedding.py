"""Vectors: two engines agree, cheaper weights are told apart, and words have one spelling."""

import numpy as np
import pytest
from soak.tiny_models import write_tiny_model

from deaios.compute.commitments import commit_embedding, commit_output
from deaios.compute.embedding import (
    EMBEDDING_PARAMS,
    InvalidVector,
    RefusedEmbedding,
    decode_vector,
    encode_vector,
)
from deaios.compute.embedding_check import DISTANCES_MAX, compute_vector, verify_vector
from deaios.compute.engine import UnavailableEngine
from deaios.compute.engines import open_engine
from deaios.compute.records import NoiseClass
from deaios.compute.sampling import InvalidParams, Rule, validate_params
from deaios.compute.service import EngineService, RefusedLength
from deaios.compute.verification import InvalidPrompt, UnavailableCheck

CONTEXT = 700
F = NoiseClass.FLOAT


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    paths = {encoding: folder / f"{encoding}.gguf" for encoding in ("f16", "q8_0", "q4_0")}
    for encoding, path in paths.items():
        write_tiny_model(path, encoding=encoding)
    return paths


@pytest.fixture
def engines(weights):
    kinds = {"llama": "f16", "numpy": "f16", "q8_0": "q8_0", "q4_0": "q4_0"}
    opened = {
        name: open_engine("numpy" if name == "numpy" else "llama", weights[encoding], context_tokens=CONTEXT)
        for name, encoding in kinds.items()
    }
    yield opened
    for engine in opened.values():
        engine.close()


def draw_ids(engine, count, seed=1):
    return np.random.default_rng(seed).integers(0, engine.vocabulary_size, count).tolist()


@pytest.mark.parametrize("count", [1, 65, CONTEXT])
def test_honest_engines_agree_and_cheaper_weights_do_not(engines, count):
    ids = draw_ids(engines["llama"], count)
    words = {name: encode_vector(compute_vector(engine, ids)) for name, engine in engines.items()}
    for name, engine in (("llama", engines["numpy"]), ("numpy", engines["llama"])):
        report = verify_vector(engine, ids, words[name], F)
        assert report.ok, report
        assert report.margin_max < DISTANCES_MAX[F] / 10
    for cheat in ("q8_0", "q4_0"):
        (violation,) = verify_vector(engines["numpy"], ids, words[cheat], F).violations
        assert violation.rule == Rule.VECTOR


def test_one_id_more_or_another_order_is_told_apart(engines):
    engine = engines["llama"]
    ids = draw_ids(engine, 40)
    words = encode_vector(compute_vector(engine, ids))
    for other in ([*ids, ids[0]], ids[:-1], ids[::-1], [*ids[:20], (ids[20] + 1) % engine.vocabulary_size, *ids[21:]]):
        assert not verify_vector(engine, other, words, F).ok


def test_what_cannot_be_run_says_nothing_about_the_provider(engines):
    engine = engines["llama"]
    words = encode_vector(compute_vector(engine, [1]))
    with pytest.raises(InvalidPrompt):
        verify_vector(engine, [], words, F)
    with pytest.raises(InvalidPrompt):
        verify_vector(engine, [engine.vocabulary_size], words, F)
    with pytest.raises(UnavailableCheck):
        verify_vector(engine, [1] * (CONTEXT + 1), words, F)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 8191])
def test_words_hold_a_vector_exactly(size):
    vector = np.random.default_rng(size).normal(size=size)
    vector /= np.linalg.norm(vector)
    words = encode_vector(vector)
    found = decode_vector(words)
    assert np.array_equal(found, vector.astype(np.float16).astype(np.float32))
    assert encode_vector(found.astype(np.float64)) == words


@pytest.mark.parametrize(
    "words",
    [
        (),
        (0,),
        (2,),
        (2, 0x3C00, 0),
        (1, 0x3C00_3C00),
        (2, 0),
        (2, 0x3C00_3C00),
        (1, 0x7C00),
        (1, -1),
        (1, 1 << 32),
        (1, 0x7E00),
        (1 << 20, *[0] * (1 << 19)),
    ],
)
def test_what_is_no_vector_in_its_one_spelling_is_refused(words):
    with pytest.raises(InvalidVector):
        decode_vector(words)


def test_no_answer_passes_as_a_vector_nor_a_vector_as_an_answer():
    words, salt = (1, 0x3C00), bytes(32)
    assert commit_embedding(words, salt) != commit_output(words, salt)
    with pytest.raises(InvalidParams):
        validate_params(EMBEDDING_PARAMS)


async def test_the_service_embeds_between_answers_and_refuses_what_does_not_fit(weights):
    service = EngineService(open_engine("llama", weights["f16"], context_tokens=64, sequences_max=2))
    lone = open_engine("llama", weights["f16"], context_tokens=64)
    try:
        ids = draw_ids(lone, 50)
        assert encode_vector(await service.embed(ids)) == encode_vector(compute_vector(lone, ids))
        with pytest.raises(RefusedLength):
            await service.embed(draw_ids(lone, 65))
    finally:
        lone.close()
        await service.close()
    with pytest.raises(UnavailableEngine):
        await service.embed(ids)


class Blind:
    """An engine that gives logits only."""

    def __init__(self, engine):
        for name in ("profile", "vocabulary_size", "context_tokens", "sequences_max", "tokens_max", "decode", "forget"):
            setattr(self, name, getattr(engine, name))
        self.close = engine.close


async def test_an_engine_without_hidden_states_refuses(weights):
    service = EngineService(Blind(open_engine("llama", weights["f16"], context_tokens=64)))
    try:
        with pytest.raises(RefusedEmbedding):
            await service.embed([1, 2])
    finally:
        await service.close()
