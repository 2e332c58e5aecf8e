"""Calibration on real engines of tiny models: thresholds, evidence, resuming, refusals, hostile evidence."""

import json

import pytest
from soak.tiny_models import write_tiny_model

from deaios.compute.calibration import (
    OTHER,
    SERVED,
    InvalidEvidence,
    Measured,
    RefusedCalibration,
    Subject,
    conclude,
    measure_honest,
    read_evidence,
)
from deaios.compute.engine import RefusedEngine
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.expansion import requantise_q8_0
from deaios.compute.records import DEFAULT_THRESHOLDS, THRESHOLD_CAPS, NoiseClass
from deaios.compute.roots import compute_tensors_root
from deaios.compute.selftest import run_selftest
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.node.calibrating import calibrate_served
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.hashing import sha256

TOKENS = 256


def describe(path, noise_class, tokens=TOKENS):
    return Subject(
        compute_tensors_root(path), noise_class, Tokenizer.from_gguf(path), ChatTemplate.from_gguf(path), tokens
    )


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A class F model with its calibration: (file, subject, outcome)."""
    folder = tmp_path_factory.mktemp("floats")
    path = write_tiny_model(folder / "tiny.gguf", seed=1)
    subject = describe(path, NoiseClass.FLOAT)
    return path, subject, calibrate_served(path, subject, folder / "journal", threads=1)


def test_float_engines_that_share_no_code_give_the_default_thresholds(floats):
    _, subject, outcome = floats
    value = json.loads(outcome.evidence)
    assert outcome.thresholds == DEFAULT_THRESHOLDS
    assert {engine["name"] for engine in value["engines"].values()} == {"llama", "numpy"}
    assert min(value["honest"]["tokensByEngine"].values()) >= TOKENS
    assert outcome.calibration.tokens == value["honest"]["tokens"] >= 2 * TOKENS
    assert outcome.calibration.margin_max_micro <= outcome.thresholds.margin_micro
    assert outcome.calibration.evidence == sha256(outcome.evidence)
    assert value["sequential"]["falseAlarmMicro"] == 100
    again = read_evidence(outcome.evidence, subject.tensors_root, NoiseClass.FLOAT)
    assert (again.thresholds, again.calibration) == (outcome.thresholds, outcome.calibration)


def test_the_known_answers_refuse_other_weights_and_take_the_right_ones(floats, tmp_path):
    path, _, outcome = floats
    engine = LlamaEngine(path, context_tokens=256, sequences_max=2)
    run_selftest(engine, outcome.known_answers, outcome.deviation_max)
    engine.close()
    weak = tmp_path / "weak.gguf"
    requantise_q8_0(path, weak)
    engine = LlamaEngine(weak, context_tokens=256, sequences_max=2)
    with pytest.raises(RefusedEngine, match="off the known answers"):
        run_selftest(engine, outcome.known_answers, outcome.deviation_max)
    engine.close()


def test_a_quantised_file_is_of_class_q_and_refused_as_f(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", architecture="qwen2", encoding="q8_0", vocabulary="spm")
    outcome = calibrate_served(path, describe(path, NoiseClass.QUANTISED), tmp_path / "journal", threads=1)
    value, caps = json.loads(outcome.evidence), THRESHOLD_CAPS[NoiseClass.QUANTISED]
    assert [value["engines"][name]["details"]["flashAttention"] for name in (SERVED, OTHER)] == [False, True]
    assert 0 < outcome.calibration.margin_max_micro <= outcome.thresholds.margin_micro <= caps.margin_micro
    assert outcome.thresholds.epsilon_micro <= caps.epsilon_micro
    with pytest.raises(RefusedCalibration, match="class F allows at most"):
        calibrate_served(path, describe(path, NoiseClass.FLOAT), tmp_path / "journal", threads=1)


def test_an_interrupted_run_goes_on_and_ends_the_same(floats, tmp_path):
    path, subject, outcome = floats

    class Interrupted(Exception):
        pass

    told = []

    def stop(_what, done, _total):
        told.append(done)
        if done > TOKENS:
            raise Interrupted

    journal = tmp_path / "journal"
    with pytest.raises(Interrupted):
        calibrate_served(path, subject, journal, threads=1, progress=stop)
    finished = len(journal.read_text().splitlines()) - 1
    assert finished >= TOKENS // 64
    with journal.open("a") as file:
        file.write('["served",')  # cut in the middle of a line
    again = []
    second = calibrate_served(
        path, subject, journal, threads=1, progress=lambda _what, done, _total: again.append(done)
    )
    assert again[0] >= TOKENS  # what was measured is not measured again
    assert second.evidence == outcome.evidence
    assert not journal.exists()


def test_a_journal_of_other_weights_is_not_gone_on_with(tmp_path, floats):
    path, subject, outcome = floats
    journal = tmp_path / "journal"
    journal.write_text('["other"]\n["served",0,[0,0],true]\n')
    assert calibrate_served(path, subject, journal, threads=1).evidence == outcome.evidence


def test_too_little_is_refused(floats):
    path, _, _ = floats
    engine = LlamaEngine(path, context_tokens=512, sequences_max=8)
    with pytest.raises(RefusedCalibration, match="at least 256"):
        measure_honest(describe(path, NoiseClass.FLOAT, 10), {SERVED: engine, OTHER: engine}, (), lambda _item: None)
    engine.close()


def test_engines_too_far_apart_get_no_record(floats):
    path, subject, _ = floats
    engine = LlamaEngine(path, context_tokens=512, sequences_max=8)
    far = [Measured(SERVED, 0, (0, 60_000)), Measured(OTHER, 0, (0, 0))]
    with pytest.raises(RefusedCalibration, match=r"margin of 0\.0600 logits"):
        conclude(subject, {SERVED: engine, OTHER: engine}, far)
    engine.close()


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (("noiseClass",), "Q", "another version, class or model"),
        (("version",), 2, "another version"),
        (("knownAnswers", "tensorsRoot"), "0x" + "11" * 32, "or model"),
        (("knownAnswers", "deviationMaxMicro"), 900_000, "class F allows"),
        (("knownAnswers", "deviationMaxMicro"), 0, "class F allows"),
        (("knownAnswers", "probes"), [1, 2], "do not fit"),
        (("knownAnswers", "prompt"), [-1] * 20, "ids that are none"),
        (("knownAnswers", "logits"), [[1], [1, 2]], "not readable"),
        (("knownAnswers",), None, "not readable"),
        (("engines", "served", "digest"), "0x12", "not readable"),
        (("honest", "tokens"), {}, "not readable"),
    ],
)
def test_hostile_evidence_is_a_typed_refusal(floats, place, value, word):
    _, subject, outcome = floats
    changed = json.loads(outcome.evidence)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(InvalidEvidence, match=word):
        read_evidence(encode_canonical_json(changed), subject.tensors_root, NoiseClass.FLOAT)


def test_garbage_is_a_typed_refusal(floats):
    _, subject, _ = floats
    for data in (b"", b"[]", b"null", b"[" * 100_000, b"\xff", b"1" * (1 << 21)):
        with pytest.raises(InvalidEvidence):
            read_evidence(data, subject.tensors_root, NoiseClass.FLOAT)
