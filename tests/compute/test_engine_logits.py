"""The two engines against each other and against themselves, on the real model."""

import gc

import numpy as np
import pytest
from soak.tiny_models import write_tiny_model

from deaios.compute.engine import InvalidStep, Step, UnavailableEngine
from deaios.compute.engines import llama, open_engine
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.engines.numpy_llama import NumpyEngine
from deaios.compute.expansion import requantise_q8_0
from deaios.compute.gguf_file import (
    InvalidModelFile,
    Metadatum,
    UnavailableModelFile,
    ValueType,
    encode_header,
    read_model_file,
    write_tensors,
)
from deaios.compute.sampling import sample, score
from deaios.ledger.structs import Params
from deaios.primitives.hashing import ZERO32

NOISE_MAX = 0.02
"""Centred logit spread and margin of the float class; honest engines stay below 0.008."""
PARAMS = Params(800, 0, 1000, 64, (), (), ZERO32)
SEED = bytes(range(32))


def prompt_ids(tokenizer, text):
    return tokenizer.encode_plain(text)


@pytest.fixture(scope="module")
def ids(tokenizer):
    return prompt_ids(
        tokenizer,
        "Once upon a time a fox found a clock in the forest. It ticked all night, and the fox could not sleep, so it "
        "asked the owl what the strange thing was for, and the owl said that it counted days.",
    )


def centred(logits):
    return logits - logits.mean(-1, keepdims=True)


def spread(first, second):
    return float((centred(first) - centred(second)).std(-1).max())


def run_stepwise(engine, sequence, ids, prefill):
    rows = [engine.decode([Step(sequence, 0, ids[:prefill], 1)])[0]]
    rows += [engine.decode([Step(sequence, place, ids[place : place + 1], 1)])[0] for place in range(prefill, len(ids))]
    engine.forget(sequence)
    return np.concatenate(rows)


def run_at_once(engine, sequence, ids, outputs):
    (rows,) = engine.decode([Step(sequence, 0, ids, outputs)])
    engine.forget(sequence)
    return rows


def test_llama_and_numpy_agree_at_every_position(llama_engine, numpy_engine, ids):
    from_llama = run_at_once(llama_engine, 0, ids, len(ids))
    from_numpy = run_at_once(numpy_engine, 0, ids, len(ids))
    assert from_llama.shape == from_numpy.shape == (len(ids), 49152)
    assert from_llama.dtype == from_numpy.dtype == np.float32
    assert 0.0 < spread(from_llama, from_numpy) <= NOISE_MAX


def test_llama_prefill_and_single_tokens_agree(llama_engine, ids):
    stepwise = run_stepwise(llama_engine, 0, ids, len(ids) - 8)
    assert spread(stepwise, run_at_once(llama_engine, 0, ids, 9)) <= NOISE_MAX


def test_numpy_prefill_and_single_tokens_agree_to_rounding(numpy_engine, ids):
    stepwise = run_stepwise(numpy_engine, 1, ids, len(ids) - 2)
    assert spread(stepwise, run_at_once(numpy_engine, 0, ids, 3)) <= 1e-4


def test_several_sequences_together_give_the_tokens_and_margins_of_one_alone(llama_engine, tokenizer):
    prompts = [prompt_ids(tokenizer, text) for text in ("The sea", "Two plus two is", "My cat likes", "In 1914 the")]
    alone = []
    for prompt in prompts:
        ids, rows = list(prompt), []
        logits = llama_engine.decode([Step(0, 0, prompt, 1)])[0][0]
        for _ in range(8):
            rows.append(logits)
            ids.append(sample(logits, PARAMS, SEED, len(ids)))
            logits = llama_engine.decode([Step(0, len(ids) - 1, (ids[-1],), 1)])[0][0]
        llama_engine.forget(0)
        alone.append((ids, rows))
    # prompts of different length in one batch, then one id of each at a time
    outputs = llama_engine.decode([Step(index, 0, prompt, 1) for index, prompt in enumerate(prompts)])
    for turn in range(8):
        for index, (ids, rows) in enumerate(alone):
            place = len(prompts[index]) + turn
            assert spread(outputs[index], rows[turn][None]) <= NOISE_MAX
            assert score(outputs[index][0], PARAMS, SEED, place, ids[place], 0.0).margin <= NOISE_MAX
        outputs = llama_engine.decode(
            [
                Step(index, len(prompts[index]) + turn, (ids[len(prompts[index]) + turn],), 1)
                for index, (ids, _) in enumerate(alone)
            ]
        )
    for index in range(4):
        llama_engine.forget(index)


def test_llama_is_bit_exact_across_runs_threads_and_earlier_use(model_files, llama_engine, ids):
    first = run_stepwise(llama_engine, 0, ids, len(ids) - 4)
    run_at_once(llama_engine, 3, ids, 1)
    assert np.array_equal(first, run_stepwise(llama_engine, 0, ids, len(ids) - 4))
    other = LlamaEngine(model_files.served, threads=1, context_tokens=512)
    try:
        assert np.array_equal(first, run_stepwise(other, 0, ids, len(ids) - 4))
    finally:
        other.close()


def test_long_steps_are_cut_without_changing_what_comes_out(llama_engine, ids):
    long = (ids * 8)[:300]
    cut = run_at_once(llama_engine, 0, long, 140)
    assert cut.shape == (140, 49152)
    tail = run_at_once(llama_engine, 0, long, 3)
    assert spread(cut[-3:], tail) <= NOISE_MAX
    assert run_at_once(llama_engine, 0, long[:10], 0).shape == (0, 49152)


def test_numpy_gives_the_same_bits_with_weights_kept_in_memory(model_files, numpy_engine, ids):
    resident = NumpyEngine(model_files.served, context_tokens=64, resident=True)
    assert np.array_equal(run_at_once(numpy_engine, 0, ids[:20], 4), run_at_once(resident, 0, ids[:20], 4))
    assert np.array_equal(run_at_once(numpy_engine, 0, ids[:20], 4), run_at_once(resident, 0, ids[:20], 4))
    resident.close()


@pytest.mark.parametrize("kind", ["llama", "numpy"])
def test_refused_steps_leave_the_sequences_as_they_were(kind, llama_engine, numpy_engine, ids):
    engine = llama_engine if kind == "llama" else numpy_engine
    engine.decode([Step(0, 0, ids[:4], 0)])
    with pytest.raises(InvalidStep, match="holds 4 ids"):
        engine.decode([Step(0, 0, ids[:4], 0)])
    with pytest.raises(InvalidStep, match="outside the vocabulary"):
        engine.decode([Step(0, 4, (49152,), 1)])
    rows = engine.decode([Step(0, 4, ids[4:6], 1)])[0]
    engine.forget(0)
    assert spread(rows, run_at_once(engine, 0, ids[:6], 1)) <= NOISE_MAX


def test_noise_class_follows_the_weights(model_files, tmp_path):
    small = tmp_path / "eight.gguf"
    requantise_q8_0(model_files.served, small)
    engine = open_engine("llama", small, context_tokens=64)
    assert (engine.profile.noise_class, engine.profile.details["weights"]) == ("Q", "Q8_0")
    engine.close()
    engine.close()
    with pytest.raises(UnavailableEngine, match="closed"):
        engine.decode([Step(0, 0, (1,), 1)])


@pytest.mark.parametrize("kind", ["llama", "numpy"])
def test_files_that_are_no_model_are_refused(kind, tmp_path):
    with pytest.raises(UnavailableModelFile, match="cannot be opened"):
        open_engine(kind, tmp_path / "missing.gguf")
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InvalidModelFile, match="version 0"):
        open_engine(kind, junk)


def forget_library(monkeypatch):
    monkeypatch.setattr(llama._Library, "_loaded", None)


def test_a_vocabulary_of_another_size_than_the_tensors_is_refused(tmp_path):
    """The library loads no vocabulary of its own, but it is told how many ids there are, and compares."""
    whole, short = write_tiny_model(tmp_path / "whole.gguf"), tmp_path / "short.gguf"
    model = read_model_file(whole)
    tokens = model.get_texts("tokenizer.ggml.tokens")
    engine = LlamaEngine(whole)
    assert engine.vocabulary_size == len(tokens)
    engine.close()
    metadata = {**model.metadata, "tokenizer.ggml.tokens": Metadatum(ValueType.ARRAY, tokens[:-1], ValueType.STRING)}
    tensors = list(model.tensors.values())
    with short.open("wb") as file:
        file.write(encode_header(metadata, tensors))
        write_tensors(file, metadata, [(tensor, iter([model.map_bytes(tensor).tobytes()])) for tensor in tensors])
    with pytest.raises(InvalidModelFile, match="refuses short"):
        LlamaEngine(short)


def test_a_missing_wheel_names_the_fix(monkeypatch):
    forget_library(monkeypatch)
    monkeypatch.setattr(llama, "WHEEL", "xllamacpp_missing")
    with pytest.raises(UnavailableEngine, match=r"not installed; install it with: pip install .*numpy engine"):
        llama._Library.load()


def test_another_wheel_is_refused_before_a_struct_crosses(monkeypatch):
    forget_library(monkeypatch)
    monkeypatch.setattr(llama, "WHEEL_VERSION", "2026.1.1")
    with pytest.raises(
        UnavailableEngine, match=r"xllamacpp 2026\.10\.11549 found, .* pip install xllamacpp==2026\.1\.1"
    ):
        llama._Library.load()


def test_other_struct_layouts_are_noticed_and_earlier_engines_live_on(monkeypatch, model_files):
    engine = LlamaEngine(model_files.served, context_tokens=64)
    forget_library(monkeypatch)
    monkeypatch.setattr(llama, "_CONTEXT_DEFAULTS", {**llama._CONTEXT_DEFAULTS, "n_ubatch": 2048})
    with pytest.raises(UnavailableEngine, match="other struct layouts"):
        llama._Library.load()
    gc.collect()
    engine.close()  # logs through the callback that the first load installed


def test_a_missing_system_library_names_the_package(tmp_path):
    reason = "libgomp.so.1: cannot open shared object file: No such file or directory"
    assert "apt-get install libgomp1" in llama._explain_load_failure(reason)
    broken = tmp_path / "xllamacpp.abi3.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(UnavailableEngine, match="cannot be loaded"):
        llama._Library(broken, "broken")
