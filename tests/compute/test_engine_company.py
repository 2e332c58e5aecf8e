"""Many sequences on real engines: copies and moves keep every bit, and answers made in any company pass the check."""

import asyncio
from contextlib import closing

import numpy as np
import pytest
from soak.tiny_models import write_tiny_model

from deaios.compute.engine import SavingEngine, Step
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.engines.numpy_llama import NumpyEngine
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.service import EngineService
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.structs import Params
from deaios.primitives.hashing import ZERO32, sha256

VOCABULARY = 400
"""Ids below this are words of the tiny model."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", seed=1, end_bias=-30.0)


def open_llama(path, sequences_max, context_tokens=512, tokens_max=None):
    return LlamaEngine(path, context_tokens=context_tokens, sequences_max=sequences_max, tokens_max=tokens_max)


def draw_ids(label, count):
    return tuple(int(value) for value in np.random.default_rng([7, label]).integers(3, VOCABULARY, count))


def read_alone(engine, ids):
    """Logits after the last id, read at once by an engine that holds nothing else."""
    (rows,) = engine.decode([Step(0, 0, ids, 1)])
    engine.forget(0)
    return rows[0]


def test_sequences_are_closed_up_bit_for_bit_when_others_end(tiny):
    prompts = [draw_ids(number, 20 + number) for number in range(12)]
    # A row alone in its batch is computed by another kernel, so both engines always decode four rows.
    with closing(open_llama(tiny, 16)) as moving, closing(open_llama(tiny, 16)) as still:
        for number, prompt in enumerate(prompts):
            moving.decode([Step(number, 0, prompt, 0)])
        left = [1, 4, 8, 11]
        for number in set(range(12)) - set(left):
            moving.forget(number)
        for place, number in enumerate(left):
            still.decode([Step(place, 0, prompts[number], 0)])
        for turn in range(3):
            moved = moving.decode([Step(number, len(prompts[number]) + turn, (9 + turn,), 1) for number in left])
            alone = still.decode([Step(i, len(prompts[n]) + turn, (9 + turn,), 1) for i, n in enumerate(left)])
            order = np.argsort([moving._slots[number] for number in left])
            assert sorted(moving._slots[number] for number in left) == [0, 1, 2, 3]
            for place in order:
                assert np.array_equal(moved[place], alone[place])


def test_sequences_of_a_pool_give_what_sequences_alone_give(tiny):
    """One pool of cells or cells of its own for each: the same bits for one sequence, on which replay relies."""
    ids = draw_ids(1, 300)
    with closing(open_llama(tiny, 4)) as whole, closing(open_llama(tiny, 4, tokens_max=600)) as pool:
        assert np.array_equal(read_alone(whole, ids), read_alone(pool, ids))
        assert whole.profile.digest() == pool.profile.digest()


@pytest.mark.parametrize("kind", ["llama", "pool", "numpy"])
def test_what_was_saved_goes_on_bit_for_bit_and_from_any_place(tiny, kind):
    ids = draw_ids(2, 60)
    if kind == "numpy":
        engine = NumpyEngine(tiny, context_tokens=512, sequences_max=4)
    else:
        engine = open_llama(tiny, 4, tokens_max=600 if kind == "pool" else None)
    with closing(engine):
        assert isinstance(engine, SavingEngine)
        engine.decode([Step(3, 0, ids, 0)])
        snapshot = engine.save(3)
        assert (snapshot.tokens, snapshot.size_bytes > 60 * 100) == (60, True)
        (wanted,) = engine.decode([Step(3, 60, (5, 6, 7), 3)])
        engine.forget(3)
        engine.decode([Step(0, 0, draw_ids(3, 30), 0)])  # others come and go
        assert engine.restore(2, snapshot, 60)
        (found,) = engine.decode([Step(2, 60, (5, 6, 7), 3)])
        engine.forget(0)
        engine.forget(2)
        # In a pool the order of cells is another, and sums of floats with it.
        assert np.array_equal(found, wanted) if kind != "pool" else np.allclose(found, wanted, atol=0.01)
        assert engine.restore(1, snapshot, 25)
        (part,) = engine.decode([Step(1, 25, ids[25:], 1)])
        engine.forget(1)
        assert np.allclose(part[0], read_alone(engine, ids), atol=0.01)


def test_a_snapshot_that_has_no_room_is_refused_and_leaves_nothing(tiny):
    with closing(open_llama(tiny, 4, context_tokens=256, tokens_max=300)) as engine:
        engine.decode([Step(0, 0, draw_ids(4, 200), 0)])
        snapshot = engine.save(0)
        assert not engine.restore(1, snapshot, 50)
        assert engine._held == [200, 0, 0, 0]
        engine.forget(0)
        assert engine.restore(1, snapshot, 50)


@pytest.mark.parametrize(("tokens_max", "cache"), [(None, 0), (None, 1 << 22), (9000, 0)])
async def test_64_answers_with_long_prompts_between_them_all_verify(tiny, tokens_max, cache):
    tokenizer = Tokenizer.from_gguf(tiny)
    service = EngineService(open_llama(tiny, 64, tokens_max=tokens_max), waiting_max=150, cache_bytes_max=cache)
    owner = b"one payer" if cache else None
    asked = Params(800, 0, 1000, 16, (), (), ZERO32)
    system = draw_ids(5, 260)

    async def answer(number):
        seed = sha256(number.to_bytes(4))
        prompt = (*system, *draw_ids(number, 5)) if number % 6 == 0 else draw_ids(number, 8 + number % 40)
        stream = service.generate(prompt, asked, seed, tokenizer, owner=owner)
        items = [item async for item in stream]
        return prompt, seed, items, stream.cached_tokens

    # More than there are sequences, so that prompts are read while answers go on.
    answers = await asyncio.gather(*(answer(number) for number in range(90)))
    margins = []
    for prompt, seed, items, _ in answers:
        report = await service.verify(
            prompt,
            [item.token for item in items],
            asked,
            seed,
            items[-1].finish,
            items[-1].stop_index,
            DEFAULT_THRESHOLDS,
            tokenizer,
        )
        assert report.ok, report.violations
        margins += report.margins
    load = service.get_load()
    await service.close()
    assert len(margins) == load.sampled_tokens == 90 * 16
    assert load.cached_tokens == sum(cached for _, _, _, cached in answers)
    assert load.prompt_tokens + load.cached_tokens == sum(len(prompt) for prompt, _, _, _ in answers)
    assert (load.cached_tokens > 500) == bool(cache)
