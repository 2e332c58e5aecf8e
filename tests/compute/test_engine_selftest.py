"""The known answers: honest engines pass, every wrong one is refused."""

import numpy as np
import pytest

from deaios.compute import selftest
from deaios.compute.engine import EngineProfile, RefusedEngine
from deaios.compute.engines import open_engine
from deaios.compute.expansion import requantise_q8_0
from deaios.compute.roots import compute_tensors_root

TENSORS_ROOT = "05e6bf727c0861da57e19626f454bdb83c946f62c2f260db6c5c2adbce9b778d"


@pytest.fixture(scope="module")
def answers():
    found = selftest.read_known_answers(bytes.fromhex(TENSORS_ROOT))
    assert found is not None
    return found


def test_answers_are_of_the_served_model(model_files, answers):
    assert compute_tensors_root(model_files.served).hex() == TENSORS_ROOT
    assert answers.logits.shape == (16, len(answers.probes))
    assert len(answers.probes) >= selftest.PROBES_MIN
    assert selftest.read_known_answers(bytes(32)) is None


def test_answers_survive_their_json_form(answers):
    again = selftest.decode_known_answers(selftest.encode_known_answers(answers))
    assert again.tensors_root == answers.tensors_root
    assert again.prompt == answers.prompt
    assert np.array_equal(again.logits, answers.logits)


def test_llama_passes_in_every_way_it_is_used(llama_engine, answers):
    result = selftest.run_selftest(llama_engine, answers)
    assert set(result.deviations) == {"prefill", "single", "together"}
    assert all(0.0 < deviation < 0.01 for deviation in result.deviations.values())


def test_the_referee_still_gives_its_own_answers(numpy_engine, answers):
    again = selftest.build_known_answers(numpy_engine, answers.tensors_root, answers.prompt, answers.probes, 16)
    assert np.abs(again.logits - answers.logits).max() <= 0.001


def test_eight_bit_weights_are_refused(model_files, answers, tmp_path):
    path = tmp_path / "eight.gguf"
    requantise_q8_0(model_files.served, path)
    engine = open_engine("llama", path, context_tokens=64, threads=2)
    with pytest.raises(RefusedEngine, match=r"0\.\d+ logits off the known answers \(prefill\), at most 0\.02"):
        selftest.run_selftest(engine, answers)
    engine.close()


def test_the_shipped_file_instead_of_its_expansion_is_refused(model_files, answers):
    engine = open_engine("llama", model_files.source, context_tokens=64, threads=2)
    with pytest.raises(RefusedEngine, match="does not run the named weights"):
        selftest.run_selftest(engine, answers)
    engine.close()


class LyingEngine:
    """The honest engine with one way of running spoiled."""

    profile = EngineProfile("lying", "1", "F")
    context_tokens = 512
    sequences_max = 4
    tokens_max = 2048

    def __init__(self, honest, spoil, vocabulary_size=49152):
        self._honest = honest
        self._spoil = spoil
        self.vocabulary_size = vocabulary_size

    def decode(self, steps):
        return [self._spoil(steps, step, rows) for step, rows in zip(steps, self._honest.decode(steps), strict=True)]

    def forget(self, sequence):
        self._honest.forget(sequence)


def noisy(rows):
    return rows + np.random.default_rng(1).normal(0, 0.1, rows.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("way", "spoil"),
    [
        ("single", lambda steps, step, rows: noisy(rows) if len(step.ids) == 1 else rows),
        ("together", lambda steps, step, rows: noisy(rows) if len(steps) > 1 and step.sequence > 0 else rows),
        ("prefill", lambda steps, step, rows: rows * np.float32("nan")),
    ],
)
def test_one_spoiled_way_is_enough(llama_engine, answers, way, spoil):
    with pytest.raises(RefusedEngine, match=rf"\({way}\)"):
        selftest.run_selftest(LyingEngine(llama_engine, spoil), answers)


def test_another_vocabulary_is_refused(llama_engine, answers):
    engine = LyingEngine(llama_engine, lambda steps, step, rows: rows, vocabulary_size=32000)
    with pytest.raises(RefusedEngine, match="32000 token ids"):
        selftest.run_selftest(engine, answers)
