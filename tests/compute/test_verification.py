"""The check of an answer: honest ones pass on both engines, every kind of cheat is named, hostile input is typed."""

import hashlib
import math

import numpy as np
import pytest

from deaios.compute.engine import EngineProfile, validate_steps
from deaios.compute.generation import Generation
from deaios.compute.records import DEFAULT_THRESHOLDS, Thresholds
from deaios.compute.sampling import InvalidLogits, InvalidParams, Rule
from deaios.compute.template import ChatTemplate
from deaios.compute.verification import (
    OUTPUTS_PER_STEP,
    PREFILL_TOKENS,
    InvalidPrompt,
    Replay,
    UnavailableCheck,
    replay_output,
    verify_output,
)
from deaios.ledger.structs import FinishReason, Params

SEED = hashlib.sha256(b"ask").digest()
VOCABULARY = 64


def make_params(max_tokens=40, temperature=800, top_k=0, top_p=1000, stop_ids=(), stop_strings=()):
    return Params(temperature, top_k, top_p, max_tokens, stop_ids, stop_strings, bytes(32))


class ToyTokenizer:
    """Every id above 0 is one letter; 0 ends an answer."""

    end_ids = frozenset({0})
    vocabulary_size = VOCABULARY

    def get_bytes(self, token):
        return b"" if token == 0 else bytes([64 + token])


class ToyEngine:
    """Logits are a hash of the ids so far, plus noise of a bounded size that differs per engine."""

    profile = EngineProfile("toy", "1", "F")
    vocabulary_size = VOCABULARY
    sequences_max = 2

    def __init__(self, noise=0.0, name=0, sharpness=2.0, context_tokens=1000, quirk=None):
        self.context_tokens = self.tokens_max = context_tokens
        self._noise, self._name, self._sharpness, self._quirk = noise, name, sharpness, quirk
        self.held = [[], []]
        self.steps = []

    def decode(self, steps):
        validate_steps(self, [len(ids) for ids in self.held], steps)
        results = []
        for step in steps:
            self.steps.append(step)
            rows = []
            for token in step.ids:
                self.held[step.sequence].append(token)
                rows.append(self._row(tuple(self.held[step.sequence])))
            results.append(np.array(rows[len(rows) - step.outputs :], np.float32).reshape(step.outputs, VOCABULARY))
        return results

    def _row(self, ids):
        dice = np.random.default_rng(int.from_bytes(hashlib.sha256(repr(ids).encode()).digest()[:8]))
        row = dice.standard_normal(VOCABULARY) * self._sharpness
        row[0] -= 3.0
        noise = np.random.default_rng([self._name, len(ids)]).uniform(-self._noise, self._noise, VOCABULARY)
        return (row + noise if self._quirk is None else self._quirk(row + noise)).astype(np.float32)

    def forget(self, sequence):
        self.held[sequence] = []

    def close(self):
        pass


TOY = ToyTokenizer()
PROMPT = (5, 9, 2)


def answer(engine, params, prompt=PROMPT, seed=SEED, tokenizer=TOY, force=None):
    """What a provider does: prompt, then id by id."""
    from deaios.compute.engine import Step

    machine = Generation(len(prompt), params, seed, tokenizer)
    engine.forget(0)
    step = Step(0, 0, tuple(prompt), 1)
    while machine.finish is None:
        (rows,) = engine.decode([step])
        forced = force(len(machine.output_ids), rows[0]) if force else None
        sampled = machine.offer(rows[0]) if forced is None else machine.accept(forced)
        step = Step(0, step.position + len(step.ids), (sampled.token,), 1)
    engine.forget(0)
    return machine


def check(engine, machine, params, prompt=PROMPT, seed=SEED, thresholds=DEFAULT_THRESHOLDS, **claims):
    return verify_output(
        engine,
        prompt,
        claims.get("output", machine.output_ids),
        params,
        seed,
        claims.get("reason", machine.finish),
        claims.get("stop_index", machine.stop_index),
        thresholds,
        claims.get("tokenizer", TOY),
    )


@pytest.mark.parametrize("filters", [(0, 1000), (8, 1000), (0, 850), (12, 700)])
@pytest.mark.parametrize("temperature", [0, 800, 1700])
def test_honest_answers_pass_under_noise(filters, temperature):
    """Noise stays below epsilon, so margins stay at or below twice the noise, whatever the filters."""
    params = make_params(60, temperature, *filters)
    for number in range(12):
        seed = hashlib.sha256(bytes([number])).digest()
        provider, checker = ToyEngine(0.004, 1), ToyEngine(0.004, 2)
        machine = answer(provider, params, seed=seed)
        report = check(checker, machine, params, seed=seed, thresholds=Thresholds(20_000, 10_000))
        assert report.ok, report.violations
        assert report.tokens_checked == len(machine.output_ids) == len(report.margins)
        assert report.margin_max <= 0.017


def test_an_exact_engine_gives_no_margin_at_all():
    machine = answer(ToyEngine(), make_params())
    report = check(ToyEngine(), machine, make_params())
    assert (report.ok, report.margin_max, report.exact_count) == (True, 0.0, len(machine.output_ids))


def test_long_answers_are_read_in_bounded_pieces():
    params = make_params(300, stop_ids=())
    engine = ToyEngine(quirk=lambda row: np.where(np.arange(VOCABULARY) == 0, -90.0, row))
    machine = answer(engine, params)
    engine.steps.clear()
    report = check(engine, machine, params)
    assert (report.ok, report.tokens_checked) == (True, 300)
    assert [step.outputs for step in engine.steps] == [128, 128, 44]
    assert max(step.outputs for step in engine.steps) <= OUTPUTS_PER_STEP
    assert sum(len(step.ids) for step in engine.steps) == len(PROMPT) + 299
    assert engine.held == [[], []]


def sharper(row):
    return row * 1.3


CHEATS = {
    "other weights": {"quirk": lambda row: np.roll(row, 1)},
    "coarser weights": {"quirk": np.round},
    "temperature": {"quirk": sharper},
    "greedy": {"force": lambda _place, row: int(np.argmax(row))},
    "invented ids": {"force": lambda place, row: place % 60 + 1},
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_are_caught(name):
    cheat = dict(CHEATS[name])
    force = cheat.pop("force", None)
    params = make_params(60)
    machine = answer(ToyEngine(**cheat), params, force=force)
    report = check(ToyEngine(), machine, params)
    assert not report.ok
    first = report.violations[0]
    assert first.rule is Rule.SEEDED
    assert first.margin == report.margins[first.position] > 0.02
    assert f"{first.margin:.6f}" in first.detail


def test_hidden_prompt_and_wrong_seed_are_caught():
    params = make_params(60)
    assert not check(ToyEngine(), answer(ToyEngine(), params, prompt=(5, 9, 3)), params).ok
    assert not check(ToyEngine(), answer(ToyEngine(), params, seed=bytes(32)), params).ok


@pytest.mark.parametrize(("filters", "rule"), [((4, 1000), Rule.TOP_K), ((0, 500), Rule.TOP_P)])
def test_ignoring_a_filter_is_caught_by_its_rule(filters, rule):
    machine = answer(ToyEngine(), make_params(60))
    report = check(ToyEngine(), machine, make_params(60, 800, *filters))
    assert rule in {item.rule for item in report.violations}


def test_one_swapped_id_is_found_where_it_is():
    params = make_params(60)
    machine = answer(ToyEngine(), params)
    assert len(machine.output_ids) > 12
    output = list(machine.output_ids)
    output[5] = output[5] % 60 + 1
    report = check(ToyEngine(), machine, params, output=tuple(output))
    assert report.violations[0].position == 5


def test_finish_is_checked():
    params = make_params(10)
    machine = answer(ToyEngine(quirk=lambda row: np.where(np.arange(VOCABULARY) == 0, -90.0, row)), params)
    assert machine.finish is FinishReason.LENGTH
    quiet = ToyEngine(quirk=lambda row: np.where(np.arange(VOCABULARY) == 0, -90.0, row))
    cut = check(quiet, machine, params, output=machine.output_ids[:7])
    assert [(item.rule, item.position) for item in cut.violations] == [(Rule.FINISH, 6)]
    assert cut.tokens_checked == 7
    assert check(quiet, machine, params, output=machine.output_ids[:7], reason=FinishReason.CANCELLED).ok
    assert not check(quiet, machine, params, reason=FinishReason.STOP_TOKEN).ok
    assert not check(quiet, machine, params, stop_index=1).ok
    long = check(quiet, machine, params, output=(*machine.output_ids, 3))
    assert Rule.LENGTH in {item.rule for item in long.violations}
    assert long.tokens_checked == 0


def test_an_end_that_was_not_sampled_is_a_violation():
    params = make_params(40)
    machine = answer(ToyEngine(), params)
    output = (*machine.output_ids[:3], 0)
    report = check(ToyEngine(), machine, params, output=output, reason=FinishReason.STOP_TOKEN)
    assert [(item.rule, item.position) for item in report.violations] == [(Rule.SEEDED, 3)]


def test_nothing_was_sampled():
    machine = answer(ToyEngine(), make_params())
    report = check(ToyEngine(), machine, make_params(), output=(), reason=FinishReason.CANCELLED)
    assert (report.ok, report.tokens_checked, report.margin_max) == (True, 0, 0.0)
    assert not check(ToyEngine(), machine, make_params(), output=(), reason=FinishReason.LENGTH).ok


@pytest.mark.parametrize("bad", [-1, VOCABULARY, 1 << 40])
def test_ids_outside_the_vocabulary(bad):
    machine = answer(ToyEngine(), make_params())
    report = check(ToyEngine(), machine, make_params(), output=(3, bad))
    assert Rule.VOCABULARY in {item.rule for item in report.violations}
    assert report.violations[-1].margin == math.inf
    assert replay_output(ToyEngine(), PROMPT, (3, bad), make_params(), SEED) == Replay(False, 1)


def test_what_is_not_the_providers_fault_is_an_error():
    machine = answer(ToyEngine(), make_params())
    with pytest.raises(InvalidPrompt, match="no ids"):
        check(ToyEngine(), machine, make_params(), prompt=())
    with pytest.raises(InvalidPrompt, match="outside the vocabulary"):
        check(ToyEngine(), machine, make_params(), prompt=(1, VOCABULARY))
    with pytest.raises(InvalidParams):
        check(ToyEngine(), machine, make_params(0))
    with pytest.raises(UnavailableCheck, match="context of 10"):
        check(ToyEngine(context_tokens=10), machine, make_params(), output=(3,) * 30)
    with pytest.raises(UnavailableCheck):
        replay_output(ToyEngine(context_tokens=10), PROMPT, (3,) * 30, make_params(), SEED)
    broken = ToyEngine(quirk=lambda row: row * np.nan)
    with pytest.raises(InvalidLogits):
        check(broken, machine, make_params())
    assert broken.held[0] == []


def test_an_answer_that_fills_the_context_can_be_checked():
    params = make_params(20)
    quiet = ToyEngine(context_tokens=22, quirk=lambda row: np.where(np.arange(VOCABULARY) == 0, -90.0, row))
    machine = answer(quiet, params)
    assert len(PROMPT) + len(machine.output_ids) == 23
    assert check(quiet, machine, params).ok
    assert replay_output(quiet, PROMPT, machine.output_ids, params, SEED).equal


def test_replay_finds_the_first_difference():
    params = make_params(60)
    machine = answer(ToyEngine(), params)
    assert replay_output(ToyEngine(), PROMPT, machine.output_ids, params, SEED) == Replay(True, None)
    output = list(machine.output_ids)
    output[4] = output[4] % 60 + 1
    assert replay_output(ToyEngine(), PROMPT, tuple(output), params, SEED) == Replay(False, 4)
    too_long = (*machine.output_ids, *machine.output_ids) * 9
    assert replay_output(ToyEngine(), PROMPT, too_long, params, SEED) == Replay(False, 60)


def test_replay_keeps_the_schedule_of_the_service():
    engine = ToyEngine()
    prompt = tuple(place % 60 + 1 for place in range(PREFILL_TOKENS * 2 + 90))
    machine = answer(ToyEngine(), make_params(3), prompt=prompt)
    assert replay_output(engine, prompt, machine.output_ids, make_params(3), SEED).equal
    sizes = [len(step.ids) for step in engine.steps]
    assert sizes[:3] == [200, 201, 201]
    assert set(sizes[3:]) <= {1}


@pytest.fixture(scope="module")
def prompt(model_files, tokenizer):
    messages = [{"role": "user", "content": "Write two sentences about lighthouses."}]
    return ChatTemplate.from_gguf(model_files.served).render_ids(messages, tokenizer)


def test_llama_is_checked_by_numpy(llama_engine, numpy_engine, tokenizer, prompt):
    params = make_params(24, 900, 40, 950)
    machine = answer(llama_engine, params, prompt=prompt, tokenizer=tokenizer)
    report = check(numpy_engine, machine, params, prompt=prompt, tokenizer=tokenizer)
    assert (report.ok, report.tokens_checked) == (True, len(machine.output_ids)), report.violations
    assert not check(numpy_engine, machine, make_params(24, 500), prompt=prompt, tokenizer=tokenizer).ok


def test_numpy_is_checked_by_llama(llama_engine, numpy_engine, tokenizer, prompt):
    params = make_params(5, 900)
    machine = answer(numpy_engine, params, prompt=prompt, tokenizer=tokenizer)
    assert check(llama_engine, machine, params, prompt=prompt, tokenizer=tokenizer).ok


def test_llama_replays_itself_exactly(llama_engine, tokenizer, prompt):
    params = make_params(24, 900)
    machine = answer(llama_engine, params, prompt=prompt, tokenizer=tokenizer)
    assert replay_output(llama_engine, prompt, machine.output_ids, params, SEED) == Replay(True, None)
