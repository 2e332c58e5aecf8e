"""bench/detection in small: honest engines pass each other, cheats are caught, grinding nonces frames nobody."""

import dataclasses
import importlib
import importlib.util
import math
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from deaios.compute.gguf_file import TensorPlan, TensorType, encode_header, encode_rows, read_model_file, write_tensors
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.verification import verify_output
from deaios.ledger.structs import FinishReason


def load_bench(name):
    """A module of the bench, which is a package beside src and not installed."""
    if "bench" not in sys.modules:
        folder = Path(__file__).parents[2] / "bench"
        spec = importlib.util.spec_from_file_location(
            "bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["bench"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["bench"])
    return importlib.import_module(f"bench.detection.{name}")


bounds = load_bench("bounds")
calibration = load_bench("calibration")
campaign = load_bench("campaign")
cheats = load_bench("cheats")
engines = load_bench("engines")
grinding = load_bench("grinding")
honest = load_bench("honest")
store = load_bench("store")
summary = load_bench("summary")
windows = load_bench("windows")


@pytest.fixture(scope="module")
def bench(model_files):
    return calibration.Bench.open(model_files.served, threads=1)


@pytest.fixture(scope="module")
def forking_llama(model_files):
    with closing(engines.open_forking("llama", model_files.served, 8, 1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def forking_numpy(model_files):
    with closing(engines.open_forking("numpy", model_files.served, 8, 1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def edges(bench, llama_engine, numpy_engine):
    answers = bench.answers(llama_engine, calibration.make_params(1000), 1, "edges", keep_rows=True)
    return grinding.find_edges(answers, [bench.rows(numpy_engine, answer) for answer in answers], 8)


def test_grinding_nonces_at_filter_edges_frames_nobody(edges):
    """The attack is real: without the edge rule these very nonces would convict."""
    assert {bool(edge.params.top_k) for edge in edges} == {True, False}
    result = grinding.grind(edges, 60)
    assert result.framed_without_edge_rule > 10
    assert (result.framed, result.ok) == (0, True)


def test_grinding_with_simulated_noise_frames_nobody(edges):
    result = grinding.grind(edges[:3], 256, noise=0.006)
    assert result.framed_without_edge_rule > 5
    assert (result.framed, result.ok) == (0, True)


def test_honest_windows_pass_and_have_the_margins_of_one_pass(bench, forking_llama, forking_numpy, numpy_engine):
    """Branches that share passes, chunks and answers that end within a window change nothing that the check sees.

    Questions 12 to 14 are an email, code, and a fact, whose answer ends before its branch point and again within the
    window.
    """
    role = cheats.Cheat("honest", "llama")
    found = windows.Round(bench, role, forking_llama, forking_numpy, 12, audited=24).play(0, 3, 2)
    assert [(window.caught, len(window.margins)) for window in found] == [(None, 24)] * 6
    assert [window.answers > 1 for window in found] == [False] * 4 + [True] * 2
    assert [window.offset for window in found[:4]] == [0, 0, 24, 24]
    assert 0 < found[4].offset < 48
    assert len({window.seed for window in found}) == 6
    for window in found[:2]:
        prompt, output = window.claimed[:-24], window.claimed[-24:]
        alone = verify_output(
            numpy_engine,
            prompt,
            output,
            cheats.CLAIMED,
            window.seed,
            FinishReason.CANCELLED,
            0,
            DEFAULT_THRESHOLDS,
            bench.tokenizer,
        )
        assert window.margins == pytest.approx(alone.margins, abs=1e-4)
    assert found[2].claimed[:-24] == found[3].claimed[:-24]
    assert found[0].claimed[-24:-8] != found[1].claimed[-24:-8]


def test_eight_bit_weights_are_caught(bench, model_files, forking_llama, tmp_path):
    """llama.cpp checks here, because it is loaded; the bench runs every cheat past the NumPy referee."""
    (cheat,) = (item for item in cheats.CHEATS if item.name == "weights_8_bit")
    cheat.rewrite(model_files.served, tmp_path / "weights.gguf")
    with closing(engines.open_forking("llama", tmp_path / "weights.gguf", 8, 1)) as provider:
        found = windows.Round(bench, cheat, provider, forking_llama, 0, audited=48).play(0, 1, 4)
    caught = [window for window in found if window.caught is not None]
    assert len(caught) >= 2
    for window in caught:
        *before, first = window.margins[: window.caught]
        assert max(before, default=0.0) <= DEFAULT_THRESHOLDS.margin < first
        outcome = window.outcome()
        assert (outcome.tokens, outcome.margin) == (window.caught, first)


@pytest.mark.parametrize("name", ["temperature_0_9", "hidden_system_prompt"])
def test_a_cheat_with_honest_weights_is_caught(bench, forking_llama, forking_numpy, name):
    (cheat,) = (item for item in cheats.CHEATS if item.name == name)
    outcomes = windows.Round(bench, cheat, forking_llama, forking_numpy, 0, audited=32).run(0, 1, 4)
    assert sum(outcome.caught is not None for outcome in outcomes) >= 2, outcomes


def test_a_round_that_runs_out_of_time_leaves_nothing(bench, forking_llama, forking_numpy):
    looks = iter([False] * 6)
    late = windows.Round(
        bench, cheats.Cheat("honest"), forking_llama, forking_numpy, 0, lambda: next(looks, True), audited=40
    )
    with pytest.raises(windows.OutOfTime):
        late.run(0, 1, 2)
    whole = engines.Step(0, 0, (1, 2, 3), 1)
    assert [len(engine.decode([whole])) for engine in (forking_llama, forking_numpy)] == [1, 1]
    forking_llama.forget(0)
    forking_numpy.forget(0)


def test_honest_answers_pass_the_shipped_check(bench, llama_engine):
    provider = honest.Provider("numpy", 1, ("llama",))
    answers = honest.answer(bench, provider, 3, 1, 11, lambda: False)
    assert (answers[0].params.top_k, len(answers[0].output) < 64) == (40, True)
    (line,) = honest.check(bench, llama_engine, answers, 3, lambda: False)
    assert (line.number, line.tokens, line.flagged) == (3, len(answers[0].output), 0)
    # Another first token is one that no honest provider samples: the check is not blind.
    other = dataclasses.replace(answers[0], output=(answers[0].output[0] + 1, *answers[0].output[1:]))
    (blamed,) = honest.check(bench, llama_engine, [other], 3, lambda: False)
    assert blamed.flagged
    with pytest.raises(windows.OutOfTime):
        honest.answer(bench, provider, 3, 1, 11, lambda: True)


def test_a_campaign_without_time_does_nothing(bench, tmp_path):
    results = store.Store(tmp_path / "results.jsonl", 0)
    late = campaign.Campaign(bench, results, 0, tmp_path, seconds=0.0)
    assert late.run() is False
    assert results.read() == {}


def test_finished_results_count_once_per_seed_and_up_to_the_first_gap(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = [honest.Checked(number, 10, 0, 0, 0.0, ()) for number in range(4)]
    store.Store(path, 0).append("pair", lines[:2])
    store.Store(path, 0).append("pair", lines[1:2])
    store.Store(path, 0).append("pair", lines[3:])
    store.Store(path, 1).append("pair", lines[2:3])
    assert [line["number"] for line in store.Store(path, 0).read()["pair"]] == [0, 1]
    assert store.Store(path, 1).read() == {"pair": []}


def test_a_campaign_at_its_targets_is_done(bench, tmp_path):
    results = store.Store(tmp_path / "results.jsonl", 0)
    outcomes = [windows.Outcome(number, 0, 0, 5, 5, 1, 0.5, ()) for number in range(4)]
    results.append("greedy", outcomes)
    done = campaign.Campaign(bench, results, 0, tmp_path, windows=4)
    assert done.run(["greedy"]) is True
    assert len(results.read()["greedy"]) == 4


def test_the_summary_counts_windows_and_tokens():
    outcomes = [
        {"caught": 5, "tokens": 5, "question": 0, "offset": 0, "inexact": 1, "margin": 0.5},
        {"caught": 40, "tokens": 40, "question": 1, "offset": 24, "inexact": 3, "margin": 0.1},
        {"caught": None, "tokens": 128, "question": 13, "offset": 24, "inexact": 2, "margin": 0.01},
    ]
    found = summary.summarise_windows(outcomes)
    assert (found["windows"], found["caught"], found["median_tokens"]) == (3, 2, 40)
    assert found["caught_in"] == {"16": 1, "32": 1, "64": 2, "96": 2, "128": 2}
    assert (found["missed_by_kind"], found["missed_by_offset"]) == ({"code": 1}, {"24": 1})
    whole = summary.build_summary({"weights_8_bit": outcomes, "pair": [{**HONEST, "flagged": 1}, HONEST]})
    assert whole["worst_lower_bound_95"] is None
    assert (whole["honest"]["pair"]["tokens"], whole["honest_flagged"]) == (20, 1)
    rows = {row.name: row.value for row in summary.build_rows(whole)}
    assert rows == {
        "compute.detection_128.weights_8_bit": found["lower_bound_95"],
        "compute.honest_margin.pair": 0.5,
    }


HONEST = {"tokens": 10, "flagged": 0, "inexact": 0, "margin": 0.5}


def test_bounds_are_clopper_and_pearsons():
    """8 of 10: the 90 % interval of tables is 0.4931 to 0.9632."""
    assert bounds.compute_lower_bound(8, 10) == pytest.approx(0.4931, abs=5e-5)
    assert bounds.compute_upper_bound(8, 10) == pytest.approx(0.9632, abs=5e-5)
    assert bounds.compute_lower_bound(1000, 1000) == pytest.approx(0.05 ** (1 / 1000))
    assert bounds.compute_upper_bound(0, 10_000) == pytest.approx(1 - 0.05 ** (1 / 10_000))
    assert (bounds.compute_lower_bound(0, 5), bounds.compute_upper_bound(5, 5)) == (0.0, 1.0)
    share = bounds.compute_lower_bound(963, 1000)
    tail = sum(math.comb(1000, k) * share**k * (1 - share) ** (1000 - k) for k in range(963, 1001))
    assert tail == pytest.approx(0.05)


def test_weight_noise_is_one_percent_of_each_matrix(tmp_path):
    dice = np.random.default_rng(3)
    tensors = {"wide": (dice.normal(0, 2.0, (64, 96)), TensorType.F16), "norm": (np.ones((1, 96)), TensorType.F32)}
    plans = [TensorPlan("wide", (64, 96), TensorType.F16), TensorPlan("norm", (96,), TensorType.F32)]
    with (tmp_path / "plain.gguf").open("wb") as file:
        file.write(encode_header({}, plans))
        values = [encode_rows(rows.astype(np.float32), encoding) for rows, encoding in tensors.values()]
        write_tensors(file, {}, ((plan, iter([data])) for plan, data in zip(plans, values, strict=True)))
    cheats.add_noise(tmp_path / "plain.gguf", tmp_path / "noisy.gguf")
    plain, noisy = read_model_file(tmp_path / "plain.gguf"), read_model_file(tmp_path / "noisy.gguf")
    change = noisy.read_rows(noisy.get_tensor("wide")) - plain.read_rows(plain.get_tensor("wide"))
    assert change.std() == pytest.approx(0.02, rel=0.05)
    assert abs(change.mean()) < 0.001
    assert np.array_equal(noisy.read_rows(noisy.get_tensor("norm")), np.ones((1, 96), np.float32))
