"""The transformers engine against itself in every way of running, and against the referee on the real model.

Needs the extra (`pip install "deaios[transformers]"`); without it these tests are skipped, and nothing here is checked.
"""

import sys

import numpy as np
import pytest

from deaios.compute.engine import InvalidStep, Step, UnavailableEngine
from deaios.compute.engines import open_engine
from deaios.compute.gguf_file import InvalidModelFile
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import sample
from deaios.compute.selftest import read_known_answers, run_selftest
from deaios.compute.verification import verify_output
from deaios.ledger.structs import FinishReason, Params
from deaios.primitives.hashing import ZERO32, sha256


def test_without_the_extra_the_engine_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableEngine, match="deaios\\[transformers\\]"):
        open_engine("transformers", tmp_path)


def load_library():
    pytest.importorskip("torch", reason="torch is not installed: the transformers engine is NOT tested")
    return pytest.importorskip("transformers", reason="transformers is not installed: its engine is NOT tested")


@pytest.fixture(scope="module", params=["Llama", "GPT2"])
def folder(request, tmp_path_factory):
    library = load_library()
    import torch

    torch.manual_seed(7)
    if request.param == "Llama":
        config = library.LlamaConfig(
            vocab_size=301, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=700,
        )  # fmt: skip
    else:
        config = library.GPT2Config(vocab_size=301, n_embd=64, n_layer=2, n_head=4, n_positions=700)
    place = tmp_path_factory.mktemp("model")
    library.AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place


@pytest.fixture
def engine(folder):
    engine = open_engine("transformers", folder, context_tokens=640, sequences_max=3)
    yield engine
    engine.close()


IDS = tuple(int(value) for value in np.random.default_rng(1).integers(0, 301, 600))


def test_rows_do_not_depend_on_how_a_sequence_is_cut(engine):
    (whole,) = engine.decode([Step(0, 0, IDS, 600)])  # more than one pass
    assert whole.shape == (600, 301)
    (first,) = engine.decode([Step(1, 0, IDS[:590], 0)])
    assert first.shape == (0, 301)
    for place in range(590, 600):
        (row,) = engine.decode([Step(1, place, IDS[place : place + 1], 1)])
        assert np.abs(row[0] - whole[place]).max() < 1e-4
    engine.forget(1)
    (again,) = engine.decode([Step(1, 0, IDS, 2)])
    assert np.abs(again - whole[-2:]).max() < 1e-5


def test_sequences_keep_apart_and_give_the_same_bits_in_any_company(engine):
    alone = [engine.decode([Step(0, 0, IDS[n : n + 40], 1)])[0] for n in (0, 50, 100) if engine.forget(0) is None]
    engine.forget(0)
    together = engine.decode([Step(place, 0, IDS[n : n + 40], 1) for place, n in enumerate((0, 50, 100))])
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    engine.decode([Step(2, 40, IDS[:3], 0), Step(0, 40, IDS[:5], 1)])
    with pytest.raises(InvalidStep):
        engine.decode([Step(1, 41, IDS[:1], 1)])
    with pytest.raises(InvalidStep):
        engine.decode([Step(1, 40, IDS, 1), Step(2, 43, (301,), 1)])


def test_its_answers_verify(engine, tokenizer):
    params, seed = Params(900, 40, 950, 24, (), (), ZERO32), sha256(b"transformers")
    ids: list[int] = []
    (rows,) = engine.decode([Step(0, 0, IDS[:20], 1)])
    for place in range(24):
        ids.append(sample(rows[0], params, seed, 20 + place))
        (rows,) = engine.decode([Step(0, 20 + place, (ids[-1],), 1)])
    ids = ids[: next((place + 1 for place, token in enumerate(ids) if token in tokenizer.end_ids), 24)]
    reason = FinishReason.STOP_TOKEN if ids[-1] in tokenizer.end_ids else FinishReason.LENGTH
    report = verify_output(engine, IDS[:20], ids, params, seed, reason, 0, DEFAULT_THRESHOLDS, tokenizer, sequence=1)
    assert report.ok
    assert report.tokens_checked == len(ids)


def test_the_profile_says_what_changes_the_numbers(folder):
    whole = open_engine("transformers", folder)
    from deaios.compute.engines.transformers import TransformersEngine

    half = TransformersEngine(folder, dtype="bfloat16")
    assert (whole.profile.noise_class, half.profile.noise_class) == ("F", "B")
    assert whole.profile.digest() != half.profile.digest()
    assert half.decode([Step(0, 0, IDS[:5], 1)])[0].dtype == np.float32
    whole.close()
    with pytest.raises(UnavailableEngine, match="closed"):
        whole.decode([Step(0, 0, IDS[:1], 1)])


def test_what_cannot_be_loaded_is_refused(tmp_path):
    load_library()
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    (tmp_path / "file.gguf").write_bytes(b"GGUF nonsense")
    for path in (tmp_path, tmp_path / "file.gguf", tmp_path / "none"):
        with pytest.raises(InvalidModelFile):
            open_engine("transformers", path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_model_has_the_referees_numbers(model_files):
    """transformers reads the same GGUF and passes the known-answer test of this model's engines."""
    load_library()
    from deaios.compute.roots import compute_tensors_root

    engine = open_engine("transformers", model_files.served, threads=2, context_tokens=256, sequences_max=2)
    answers = read_known_answers(compute_tensors_root(model_files.served))
    assert answers is not None
    passed = run_selftest(engine, answers)
    assert max(passed.deviations.values()) < 0.002
    engine.close()
