"""How far two honest engines of one model are apart: the run behind the thresholds in a model's record.

Invariants: thresholds follow from the measured margins by a stated rule and never exceed the protocol's caps of the
class; a model whose honest engines differ more than the caps allow gets no record. The evidence is one canonical JSON
that a record names by its SHA-256 and that holds the known answers by which any engine of this model is tested. Knows
nothing of files, networks or how engines are opened.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from deaios.compute.engine import Engine, EngineProfile, Step
from deaios.compute.generation import Generation
from deaios.compute.records import DEFAULT_THRESHOLDS, MICRO, THRESHOLD_CAPS, Calibration, NoiseClass, Thresholds
from deaios.compute.selftest import (
    DEVIATION_CAPS,
    KnownAnswers,
    build_known_answers,
    decode_known_answers,
    encode_known_answers,
    measure_deviation,
)
from deaios.compute.sequential import ALPHA, CONFIDENCE_ERROR, Tally, bound_rate, compute_expected_tokens
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.structs import Params
from deaios.primitives.encoding import (
    InvalidEncoding,
    Json,
    decode_hex,
    encode_canonical_json,
    encode_hex,
    validate_json_depth,
)
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.hashing import sha256

EVIDENCE_VERSION: Final = 1
EVIDENCE_BYTES_MAX: Final = 1 << 20
EVIDENCE_NAME: Final = "calibration.json"

QUESTIONS: Final = (
    "Explain how a rainbow forms to a ten year old.",
    "Write a short poem about the sea in winter.",
    "How do vaccines work?",
    "Tell me about the history of the bicycle.",
    "What should I pack for a week of hiking?",
    "Invent a fable about a fox and a clock.",
    "Describe a day in the life of a lighthouse keeper.",
    "What is inflation and why does it matter?",
    "Give me a recipe for a simple tomato soup.",
    "Compare cats and dogs as pets.",
    "Suggest names for a small bakery and say why.",
    "Summarize the causes of the First World War.",
    "Why is the sky dark at night?",
    "Write a polite email asking for a deadline extension.",
    "How does a heat pump work?",
    "List five tips for sleeping better.",
)
"""The fixed prompt set; each is asked through the model's chat template, or plainly where it has none."""
ANSWER_TOKENS: Final = 64
TOGETHER: Final = 8
CONTEXT_TOKENS: Final = 512
"""Prompt and answer of one calibration answer; a longer template is refused."""
HONEST_TOKENS_MIN: Final = 256
"""Fewer tokens in each direction say too little."""
EDGE_EVERY: Final = 4
"""Every fourth answer is sampled with top_k and top_p, so that their edges are measured too."""
REPLAYS: Final = 4
"""Answers that are replayed alone before an engine's profile is listed as replayable."""
MARGIN_SAFETY: Final = 3
"""Thresholds are this many times the largest honest difference, and never below the class's floor."""
FLOORS: Final[Mapping[NoiseClass, Thresholds]] = {
    NoiseClass.FLOAT: DEFAULT_THRESHOLDS,
    NoiseClass.QUANTISED: Thresholds(750_000, 150_000),
}
TAILS_MICRO: Final[Mapping[NoiseClass, int]] = {NoiseClass.FLOAT: 5_000, NoiseClass.QUANTISED: 100_000}
"""Margins above are counted by the cumulative test (compute/sequential.py)."""
KNOWN_POSITIONS: Final = 8
KNOWN_PROMPT_TOKENS: Final = 48
PROBES: Final = 96
FREQUENT: Final = 32
DEVIATION_FLOOR_MICRO: Final = 20_000
DEVIATION_SAFETY: Final = 4
SERVED, OTHER = "served", "other"


class InvalidEvidence(Invalid):
    """Calibration evidence that is damaged or contradicts itself."""


class RefusedCalibration(Refused):
    """Honest engines of this model are too far apart for the class, or the run is too small."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One answer of one engine, as the other one sees it.

    Attributes:
        provider: `served` or `other`.
        number: of the answer.
        margins_micro: of each token, in millionths of a logit.
        is_equal: whether its replay, alone, gave the same ids; None where it was not replayed.
    """

    provider: str
    number: int
    margins_micro: tuple[int, ...]
    is_equal: bool | None = None

    def encode_line(self) -> str:
        """One line of a journal."""
        return json.dumps([self.provider, self.number, self.margins_micro, self.is_equal], separators=(",", ":"))

    @classmethod
    def decode_line(cls, line: str) -> "Measured":
        """A line of our own journal.

        Raises:
            InvalidEvidence: it is damaged.
        """
        try:
            provider, number, margins, is_equal = json.loads(line)
            return cls(str(provider), int(number), tuple(int(item) for item in margins), is_equal)
        except (ValueError, TypeError) as error:
            raise InvalidEvidence(f"a journal line is damaged: {error}") from error


@dataclass(frozen=True, slots=True)
class Subject:
    """What is calibrated.

    Attributes:
        tensors_root: of what is served.
        noise_class: what the operator claims.
        tokens: honest tokens wanted from each engine.
    """

    tensors_root: bytes
    noise_class: NoiseClass
    tokenizer: Tokenizer
    template: ChatTemplate
    tokens: int

    def prompt(self, number: int) -> tuple[int, ...]:
        """Prompt ids of a question of the fixed set.

        Raises:
            RefusedCalibration: too long to be answered within `CONTEXT_TOKENS`.
        """
        question = QUESTIONS[number % len(QUESTIONS)]
        if self.template.source:
            ids = self.template.render_ids([{"role": "user", "content": question}], self.tokenizer)
        else:
            ids = self.tokenizer.encode_prompt(question)
        if not 1 <= len(ids) <= CONTEXT_TOKENS - ANSWER_TOKENS:
            raise RefusedCalibration(f"a prompt has {len(ids)} ids, 1 to {CONTEXT_TOKENS - ANSWER_TOKENS} are measured")
        return ids


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished calibration.

    Attributes:
        evidence: canonical JSON bytes.
        calibration: as the record states it.
        replay_profiles: of engines whose replay was bit-exact, as the record lists them.
        known_answers: what engines of this model are tested with, and how far off they may be, in logits.
    """

    noise_class: NoiseClass
    thresholds: Thresholds
    calibration: Calibration
    evidence: bytes
    replay_profiles: tuple[bytes, ...]
    known_answers: KnownAnswers
    deviation_max: float


def _params(number: int) -> Params:
    if number % EDGE_EVERY == EDGE_EVERY - 1:
        return Params(1000, 40, 950, ANSWER_TOKENS, (), (), bytes(32))
    return Params(800, 0, 1000, ANSWER_TOKENS, (), (), bytes(32))


def measure_honest(
    subject: Subject, engines: Mapping[str, Engine], done: Sequence[Measured], keep: Callable[[Measured], None]
) -> list[Measured]:
    """Let each engine answer and the other one check, until enough tokens were seen both ways.

    Args:
        subject: the model.
        engines: `served` and `other`, both idle, with room for `TOGETHER` sequences.
        done: what an earlier run measured already; it is not measured again.
        keep: told each new answer, so that an interrupted run can go on.

    Raises:
        RefusedCalibration: fewer tokens are wanted than would say anything.
    """
    if subject.tokens < HONEST_TOKENS_MIN:
        raise RefusedCalibration(f"{subject.tokens} tokens are wanted, at least {HONEST_TOKENS_MIN} say something")
    found = list(done)
    for provider, checker in ((SERVED, OTHER), (OTHER, SERVED)):
        known = {item.number for item in found if item.provider == provider}
        tokens = sum(len(item.margins_micro) for item in found if item.provider == provider)
        number = 0
        while tokens < subject.tokens:
            wanted: list[int] = []
            while len(wanted) < min(TOGETHER, -(-(subject.tokens - tokens) // ANSWER_TOKENS)):
                if number not in known:
                    wanted.append(number)
                number += 1
            for measured in _measure(subject, engines[provider], engines[checker], provider, wanted):
                keep(measured)
                found.append(measured)
                tokens += len(measured.margins_micro)
    return found


def _measure(
    subject: Subject, engine: Engine, checker: Engine, provider: str, numbers: Sequence[int]
) -> Iterator[Measured]:
    # Whoever only reads evidence checks no answer, and need not load what does.
    from deaios.compute.verification import replay_output, verify_output  # noqa: PLC0415

    cap = THRESHOLD_CAPS[subject.noise_class]
    prompts = [subject.prompt(number) for number in numbers]
    seeds = [hashlib.sha256(f"deaios calibration {provider} {number}".encode()).digest() for number in numbers]
    machines = [
        Generation(len(prompt), _params(number), seed, subject.tokenizer)
        for prompt, number, seed in zip(prompts, numbers, seeds, strict=True)
    ]
    _generate(engine, prompts, machines)
    for prompt, number, seed, machine in zip(prompts, numbers, seeds, machines, strict=True):
        assert machine.finish is not None
        report = verify_output(
            checker,
            prompt,
            machine.output_ids,
            _params(number),
            seed,
            machine.finish,
            machine.stop_index,
            Thresholds(cap.margin_micro, cap.epsilon_micro),
            subject.tokenizer,
        )
        if not all(np.isfinite(report.margins)):
            raise RefusedCalibration("two honest engines disagree about what can be sampled at all; see both profiles")
        is_equal = None
        if provider == SERVED and number < REPLAYS:
            is_equal = replay_output(engine, prompt, machine.output_ids, _params(number), seed).equal
        margins = tuple(round(margin * MICRO) for margin in report.margins)
        yield Measured(provider, number, margins, is_equal)


def _generate(engine: Engine, prompts: Sequence[Sequence[int]], machines: Sequence[Generation]) -> None:
    pending = [tuple(prompt) for prompt in prompts]
    places = [0] * len(prompts)
    for sequence in range(len(prompts)):
        engine.forget(sequence)
    try:
        while active := [index for index, machine in enumerate(machines) if machine.finish is None]:
            rows = engine.decode([Step(index, places[index], pending[index], 1) for index in active])
            for index, row in zip(active, rows, strict=True):
                places[index] += len(pending[index])
                pending[index] = (machines[index].offer(row[0]).token,)
    finally:
        for sequence in range(len(prompts)):
            engine.forget(sequence)


def conclude(subject: Subject, engines: Mapping[str, Engine], measured: Sequence[Measured]) -> Outcome:
    """Thresholds, known answers and evidence of a measured model.

    Raises:
        RefusedCalibration: honest engines differ more than the class's caps allow; says how far.
    """
    caps, floor = THRESHOLD_CAPS[subject.noise_class], FLOORS[subject.noise_class]
    margins = [margin for item in measured for margin in item.margins_micro]
    margin_max = max(margins)
    answers, spread_micro = _read_known_answers(subject, engines)
    deviation_micro = round(measure_deviation(engines[SERVED], answers) * MICRO)
    thresholds = Thresholds(
        _choose("margin", margin_max, floor.margin_micro, caps.margin_micro, subject.noise_class),
        _choose("logit difference", spread_micro, floor.epsilon_micro, caps.epsilon_micro, subject.noise_class),
    )
    deviation_cap = round(DEVIATION_CAPS[subject.noise_class] * MICRO)
    if deviation_micro > deviation_cap:
        raise RefusedCalibration(
            f"two honest engines are {deviation_micro / MICRO:.4f} logits apart on the known answers, class "
            f"{subject.noise_class} allows {deviation_cap / MICRO}"
        )
    deviation_max = min(deviation_cap, max(DEVIATION_FLOOR_MICRO, DEVIATION_SAFETY * deviation_micro))
    tail = TAILS_MICRO[subject.noise_class]
    exceeding = sum(margin > tail for margin in margins)
    replays = [item.is_equal for item in measured if item.is_equal is not None]
    evidence: dict[str, Json] = {
        "version": EVIDENCE_VERSION,
        "noiseClass": subject.noise_class.value,
        "prompts": len(QUESTIONS),
        "engines": {name: _describe(engine.profile) for name, engine in sorted(engines.items())},
        "honest": {
            "tokens": len(margins),
            "tokensByEngine": {
                name: sum(len(item.margins_micro) for item in measured if item.provider == name)
                for name in (OTHER, SERVED)
            },
            "exactTokens": sum(margin == 0 for margin in margins),
            "marginMaxMicro": margin_max,
            "marginP99Micro": sorted(margins)[len(margins) * 99 // 100],
            "logitDifferenceMaxMicro": spread_micro,
        },
        "thresholds": {"marginMicro": thresholds.margin_micro, "epsilonMicro": thresholds.epsilon_micro},
        "replays": {"answers": len(replays), "equal": sum(replays)},
        "sequential": _describe_test(Tally(len(margins), exceeding), tail),
        "knownAnswers": {**encode_known_answers(answers), "deviationMaxMicro": deviation_max},
    }
    return read_evidence(encode_canonical_json(evidence), subject.tensors_root, subject.noise_class)


def _choose(what: str, seen_micro: int, floor: int, cap: int, noise_class: NoiseClass) -> int:
    if seen_micro > cap:
        raise RefusedCalibration(
            f"two honest engines differ by a {what} of {seen_micro / MICRO:.4f} logits, class {noise_class} allows at "
            f"most {cap / MICRO}" + ("; try --class Q" if noise_class is NoiseClass.FLOAT else "")
        )
    return min(cap, max(floor, MARGIN_SAFETY * seen_micro))


def _describe(profile: EngineProfile) -> dict[str, Json]:
    return {
        "name": profile.name,
        "build": profile.build,
        "noiseClass": profile.noise_class,
        "details": dict(profile.details),
        "digest": encode_hex(profile.digest()),
    }


def _describe_test(tally: Tally, tail_micro: int) -> dict[str, Json]:
    """The cumulative test and its error rates, in words that need no code to be read."""
    rate = bound_rate(tally.tokens, tally.exceeding)
    expected = {
        f"{multiple}x": compute_expected_tokens(min(0.9, multiple * rate), rate) if rate < 0.5 else None
        for multiple in (2, 5, 10, 20)
    }
    return {
        "test": "mean of Bernoulli likelihood ratios over fixed alternatives, looked at after every token",
        "tailMicro": tail_micro,
        "exceedingTokens": tally.exceeding,
        "honestRateMaxMicro": round(rate * MICRO),
        "honestRateErrorMicro": round(CONFIDENCE_ERROR * MICRO),
        "falseAlarmMicro": round(ALPHA * MICRO),
        "expectedTokensByRate": expected,
    }


def _read_known_answers(subject: Subject, engines: Mapping[str, Engine]) -> tuple[KnownAnswers, int]:
    """Known answers by the other engine, and the largest difference of one logit between both, in millionths."""
    prompt = (subject.prompt(0) + subject.tokenizer.encode_plain(QUESTIONS[1] + " " + QUESTIONS[4]))[
        :KNOWN_PROMPT_TOKENS
    ]
    if len(prompt) <= KNOWN_POSITIONS + 4:
        raise RefusedCalibration(f"the prompt of the known answers has {len(prompt)} ids, which are too few")
    rows = {}
    for name, engine in engines.items():
        engine.forget(0)
        (rows[name],) = engine.decode([Step(0, 0, prompt, KNOWN_POSITIONS)])
        engine.forget(0)
    likely = np.argsort(-rows[OTHER].max(0), kind="stable")[:FREQUENT]
    vocabulary = engines[OTHER].vocabulary_size
    probes = sorted({*range(0, vocabulary, max(1, vocabulary // PROBES)), *(int(token) for token in likely)})
    centred = {name: found - found.mean(-1, keepdims=True) for name, found in rows.items()}
    spread = float(np.abs(centred[SERVED] - centred[OTHER])[:, likely].max())
    answers = build_known_answers(engines[OTHER], subject.tensors_root, prompt, probes, KNOWN_POSITIONS)
    return answers, round(spread * MICRO)


def read_evidence(data: bytes, tensors_root: bytes, noise_class: NoiseClass) -> Outcome:
    """What evidence says of a model, as far as it is used.

    Args:
        data: the evidence's bytes; whether they are those that a record names is the caller's to check.
        tensors_root: of the model.
        noise_class: of the record.

    Raises:
        InvalidEvidence: it is of another model or class, or claims more than the class allows.
    """
    if len(data) > EVIDENCE_BYTES_MAX:
        raise InvalidEvidence(f"evidence of {len(data)} bytes exceeds {EVIDENCE_BYTES_MAX}")
    try:
        validate_json_depth(data)
        value: Any = json.loads(data)  # Any: JSON of a stranger, read field by field below
        answers = decode_known_answers(value["knownAnswers"])
        deviation_max = int(value["knownAnswers"]["deviationMaxMicro"]) / MICRO
        version, claimed, honest, replays = value["version"], value["noiseClass"], value["honest"], value["replays"]
        thresholds = Thresholds(int(value["thresholds"]["marginMicro"]), int(value["thresholds"]["epsilonMicro"]))
        calibration = Calibration(int(honest["tokens"]), int(honest["marginMaxMicro"]), sha256(data))
        is_replayable = 0 < int(replays["answers"]) == int(replays["equal"])
        profile = decode_hex(value["engines"][SERVED]["digest"], 32)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, InvalidEncoding) as error:
        raise InvalidEvidence(f"calibration evidence is not readable: {type(error).__name__}: {error}") from error
    _validate_answers(answers)
    if version != EVIDENCE_VERSION or claimed != noise_class.value or answers.tensors_root != tensors_root:
        raise InvalidEvidence("calibration evidence is of another version, class or model")
    if not 0.0 < deviation_max <= DEVIATION_CAPS[noise_class]:
        raise InvalidEvidence(
            f"known answers allow {deviation_max} logits, class {noise_class} allows {DEVIATION_CAPS[noise_class]}"
        )
    profiles = (profile,) if is_replayable else ()
    return Outcome(noise_class, thresholds, calibration, data, profiles, answers, deviation_max)


def _validate_answers(answers: KnownAnswers) -> None:
    numbers = (*answers.prompt, *answers.probes)
    if not all(isinstance(item, int) and 0 <= item < 1 << 32 for item in numbers):
        raise InvalidEvidence("known answers name ids that are none")
    positions, probes = answers.logits.shape if answers.logits.ndim == 2 else (0, 0)
    if not 4 <= positions < len(answers.prompt) <= CONTEXT_TOKENS or probes != len(answers.probes) or probes < 64:
        raise InvalidEvidence(f"known answers of shape {answers.logits.shape} do not fit their prompt and probes")
    if not np.isfinite(answers.logits).all():
        raise InvalidEvidence("known answers hold what is no number")
