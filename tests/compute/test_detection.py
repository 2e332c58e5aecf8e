"""bench/detection.py in small: honest engines pass each other, cheats are caught, grinding nonces frames nobody."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load_bench():
    path = Path(__file__).parents[2] / "bench" / "detection.py"
    spec = importlib.util.spec_from_file_location("bench_detection", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_detection"] = module
    spec.loader.exec_module(module)
    return module


detection = load_bench()


@pytest.fixture(scope="module")
def bench(model_files):
    return detection.Bench.open(model_files.served, threads=1)


@pytest.fixture(scope="module")
def edges(bench, llama_engine, numpy_engine):
    answers = bench.answers(llama_engine, detection.make_params(1000), 1, "edges", keep_rows=True)
    return detection.find_edges(answers, [bench.rows(numpy_engine, answer) for answer in answers], 8)


def test_grinding_nonces_at_filter_edges_frames_nobody(edges):
    """The attack is real: without the edge rule these very nonces would convict."""
    assert {bool(edge.params.top_k) for edge in edges} == {True, False}
    result = detection.grind(edges, 60)
    assert result.framed_without_edge_rule > 10
    assert (result.framed, result.ok) == (0, True)


def test_grinding_with_simulated_noise_frames_nobody(edges):
    result = detection.grind(edges[:3], 256, noise=0.006)
    assert result.framed_without_edge_rule > 5
    assert (result.framed, result.ok) == (0, True)


def test_eight_bit_weights_are_caught(bench, llama_engine, tmp_path):
    """llama.cpp checks here, because it is faster; bench/detection.py runs every cheat past the NumPy referee."""
    result = detection.measure_cheat(bench, "8-bit weights", llama_engine, 64, tmp_path)
    assert result.ok, result


def test_hidden_system_prompt_is_caught(bench, llama_engine, tmp_path):
    result = detection.measure_cheat(bench, "hidden system prompt", llama_engine, 64, tmp_path)
    assert result.ok, result
