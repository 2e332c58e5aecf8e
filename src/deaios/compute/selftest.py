"""Known-answer test of an engine: logits of a fixed prompt against frozen ones of the referee.

Invariant: an engine that passes has run the very weights that are named, through prefill, single tokens and several
sequences at once. It catches a wrong build, a wrong struct layout, other weights and integer activations. Knows
nothing of sampling; says nothing about prompts longer than its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deaios.compute.engine import Engine, RefusedEngine, Step
from deaios.compute.records import NoiseClass
from deaios.primitives.encoding import decode_hex, encode_hex

ANSWERS_FILE = "selftest_answers.json"
LOGIT_UNITS = 10_000
"""Frozen logits are integers of this many units per logit."""
DEVIATION_MAX = 0.02
"""Largest honest spread of centred logits at any position. Measured: 0.004 to 0.008 between llama.cpp F16 and NumPy
float32; 0.21 for 8-bit weights, 0.19 for the 4-bit file of the same weights."""
DEVIATION_CAPS: Final[Mapping[NoiseClass, float]] = {NoiseClass.FLOAT: DEVIATION_MAX, NoiseClass.QUANTISED: 0.5}
"""The most that known answers of a record may allow, by its class. Integer activations of other kernels are 0.05 to 0.2
apart; other weights of the same model, or another struct layout, more than one."""
PROBES_MIN = 64
"""Fewer probes would make the centring itself noisy."""
STEPS = 3
"""Positions decoded one id at a time."""


@dataclass(frozen=True, slots=True)
class KnownAnswers:
    """Frozen logits of one model.

    Attributes:
        tensors_root: which weights.
        prompt: token ids.
        probes: ids whose logits are frozen.
        logits: `(positions, probes) float32` of the last positions of the prompt, centred per position.
    """

    tensors_root: bytes
    prompt: tuple[int, ...]
    probes: tuple[int, ...]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What a passed test measured.

    Attributes:
        deviations: per way of running, standard deviation of the centred logits of the worst position.
    """

    deviations: Mapping[str, float]


def read_known_answers(tensors_root: bytes) -> KnownAnswers | None:
    """Frozen answers of a model, or None when the package has none for it."""
    text = resources.files("deaios.compute").joinpath(ANSWERS_FILE).read_text("utf-8")
    for record in json.loads(text)["models"]:
        if decode_hex(record["tensorsRoot"], 32) == tensors_root:
            return decode_known_answers(record)
    return None


def decode_known_answers(record: Mapping[str, Any]) -> KnownAnswers:  # Any: JSON of this package's own file
    """Known answers from their JSON form."""
    logits = np.array(record["logits"], np.float32) / np.float32(LOGIT_UNITS)
    return KnownAnswers(decode_hex(record["tensorsRoot"], 32), tuple(record["prompt"]), tuple(record["probes"]), logits)


def encode_known_answers(answers: KnownAnswers) -> dict[str, Any]:  # Any: JSON
    """The JSON form of known answers."""
    return {
        "tensorsRoot": encode_hex(answers.tensors_root),
        "prompt": list(answers.prompt),
        "probes": list(answers.probes),
        "logits": np.rint(answers.logits.astype(np.float64) * LOGIT_UNITS).astype(int).tolist(),
    }


def build_known_answers(
    engine: Engine, tensors_root: bytes, prompt: Sequence[int], probes: Sequence[int], positions: int
) -> KnownAnswers:
    """Answers of a trusted engine, for a model that the package does not know yet."""
    assert len(probes) >= PROBES_MIN
    logits = engine.decode([Step(0, 0, tuple(prompt), positions)])[0]
    engine.forget(0)
    return KnownAnswers(tensors_root, tuple(prompt), tuple(probes), _centre(logits[:, list(probes)]))


def run_selftest(engine: Engine, answers: KnownAnswers, deviation_max: float = DEVIATION_MAX) -> SelfTest:
    """Compare an idle engine with known answers in every way it will be used.

    Args:
        engine: with all sequences empty; they are empty afterwards.
        answers: of the model that the engine claims to run.
        deviation_max: from the model's noise class.

    Raises:
        RefusedEngine: the numbers are off; says how far.
    """
    if max(*answers.prompt, *answers.probes) >= engine.vocabulary_size:
        raise RefusedEngine(
            f"the engine has {engine.vocabulary_size} token ids, the known answers use {max(answers.probes)}"
        )
    deviations = {"prefill": measure_deviation(engine, answers)}
    deviations["single"] = _measure(engine, answers, (0,), len(answers.prompt) - STEPS)
    if engine.sequences_max > 1:
        deviations["together"] = _measure(engine, answers, (0, engine.sequences_max - 1), len(answers.prompt) - STEPS)
    for way, deviation in deviations.items():
        if not deviation <= deviation_max:  # also true for NaN
            raise RefusedEngine(
                f"self-test: {engine.profile.name} ({engine.profile.build}) is {deviation:.4f} logits off the known "
                f"answers ({way}), at most {deviation_max} allowed; it does not run the named weights faithfully"
            )
    return SelfTest(deviations)


def measure_deviation(engine: Engine, answers: KnownAnswers) -> float:
    """How far an idle engine's logits are from known answers when the prompt is read at once, in logits."""
    return _measure(engine, answers, (0,), len(answers.prompt))


def _measure(engine: Engine, answers: KnownAnswers, sequences: Sequence[int], prefill: int) -> float:
    """Deviation after `prefill` ids at once and the rest one by one, the worst of the sequences."""
    prompt, positions = answers.prompt, len(answers.logits)
    first_output = len(prompt) - positions
    found: dict[int, list[NDArray[np.float32]]] = {sequence: [] for sequence in sequences}
    try:
        for sequence in sequences:
            found[sequence] += engine.decode([Step(sequence, 0, prompt[:prefill], prefill - first_output)])
        for position in range(prefill, len(prompt)):
            steps = [Step(sequence, position, prompt[position : position + 1], 1) for sequence in sequences]
            for sequence, rows in zip(sequences, engine.decode(steps), strict=True):
                found[sequence].append(rows)
    finally:
        for sequence in sequences:
            engine.forget(sequence)
    probes = list(answers.probes)
    # the worst position counts, so that one bad kernel cannot hide among many good positions
    return max(
        float(np.std(_centre(np.concatenate(rows)[:, probes]) - answers.logits, -1, dtype=np.float64).max())
        for rows in found.values()
    )


def _centre(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits - np.mean(logits, -1, keepdims=True, dtype=np.float32)
