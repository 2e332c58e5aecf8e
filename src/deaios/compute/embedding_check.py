"""The vector of token ids on an engine, and the check of one that somebody else computed.

Pure. Invariant: the verdict is a function of ids, words, class and the checker's own hidden states; nothing a provider
says about itself enters it. Knows nothing of receipts or money.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deaios.compute.embedding import InvalidVector, decode_vector
from deaios.compute.engine import EmbeddingEngine, Step, split_evenly
from deaios.compute.records import NoiseClass
from deaios.compute.sampling import Rule
from deaios.compute.verification import PREFILL_TOKENS, InvalidPrompt, Report, UnavailableCheck, Violation

DISTANCES_MAX: Final[Mapping[NoiseClass, float]] = {NoiseClass.FLOAT: 1e-5, NoiseClass.QUANTISED: 5e-3}
"""Largest 1 - cosine between honest engines, by the record's class; the measurements are in docs/detection.md."""


def compute_vector(engine: EmbeddingEngine, ids: Sequence[int], sequence: int = 0) -> NDArray[np.float64]:
    """The vector `(dimensions,) float64` of token ids. The engine's sequence is emptied before and after.

    Raises:
        InvalidVector: the model gives numbers without a direction.
        InvalidStep, UnavailableEngine: as the engine says.
    """
    engine.forget(sequence)
    try:
        total = np.zeros(engine.width, np.float64)
        for first, last in split_evenly(len(ids), PREFILL_TOKENS):
            total += engine.hidden(Step(sequence, first, tuple(ids[first:last]), 0)).sum(0, dtype=np.float64)
    finally:
        engine.forget(sequence)
    length = float(np.linalg.norm(total))
    if not 0.0 < length < float("inf"):
        raise InvalidVector(f"the model's hidden states sum up to length {length}")
    return total / length


def verify_vector(
    engine: EmbeddingEngine, ids: Sequence[int], words: Sequence[int], noise_class: NoiseClass, sequence: int = 0
) -> Report:
    """Compute a vector again and compare: the report's one margin is 1 - cosine.

    Args:
        engine: the checker's.
        ids: of the input.
        words: as the receipt covers them.
        noise_class: of the model record.
        sequence: of the engine, which is used.

    Raises:
        InvalidPrompt: nothing the provider did; the ids cannot be run.
        UnavailableCheck: they do not fit the checker's engine.
        InvalidStep, UnavailableEngine: as the engine says.
    """
    if not ids or min(ids) < 0 or max(ids) >= engine.vocabulary_size:
        raise InvalidPrompt(f"{len(ids)} ids, up to {max(ids, default=None)} of {engine.vocabulary_size}")
    if len(ids) > engine.context_tokens:
        raise UnavailableCheck(f"{len(ids)} ids exceed this engine's context of {engine.context_tokens}")
    return compare_vector(compute_vector(engine, ids, sequence), words, noise_class)


def compare_vector(ours: NDArray[np.float64], words: Sequence[int], noise_class: NoiseClass) -> Report:
    """The same where the checker's own vector `(dimensions,)` is known."""
    try:
        theirs = decode_vector(words).astype(np.float64)
    except InvalidVector as error:
        return Report(0, (), (Violation(0, float("inf"), Rule.VECTOR, str(error)),))
    if len(ours) != len(theirs):
        detail = f"{len(theirs)} dimensions, the model has {len(ours)}"
        return Report(0, (), (Violation(0, float("inf"), Rule.VECTOR, detail),))
    distance = max(0.0, 1.0 - float(ours @ theirs) / float(np.linalg.norm(theirs)))
    allowed = DISTANCES_MAX[noise_class]
    if distance <= allowed:
        return Report(1, (distance,), ())
    detail = f"1 - cosine is {distance:.3g}, more than {allowed:g} ({Rule.VECTOR})"
    return Report(1, (distance,), (Violation(0, distance, Rule.VECTOR, detail),))
