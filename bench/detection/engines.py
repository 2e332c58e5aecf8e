"""The shipped engines, whose sequences are copied so that windows share the pass over their prompt; and ready rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deaios.compute.engine import Engine, EngineProfile, SavingEngine, Step
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.engines.numpy_llama import NumpyEngine

CONTEXT_TOKENS = 384
"""Longest prompt, trunk and window together."""


def fork(engine: SavingEngine, source: int, targets: Iterable[int]) -> None:
    """Let each target hold what the source holds, bit for bit."""
    snapshot = engine.save(source)
    for target in targets:
        engine.forget(target)
        is_restored = engine.restore(target, snapshot, snapshot.tokens)
        assert is_restored, "every sequence has room for a whole context"


def open_forking(kind: str, path: Path, sequences: int, threads: int) -> SavingEngine:
    """An engine for so many windows at once; NumPy keeps its weights in memory, which changes no bit."""
    if kind == "llama":
        return LlamaEngine(path, threads=threads, context_tokens=CONTEXT_TOKENS, sequences_max=sequences)
    assert kind == "numpy"
    return NumpyEngine(path, context_tokens=CONTEXT_TOKENS, sequences_max=sequences, resident=True)


class ReadyRows:
    """Logits that a batched prefill has already computed, in the shape of an engine, for `verify_output` to read."""

    sequences_max = 1

    def __init__(self, engine: Engine, ids: tuple[int, ...], rows: NDArray[np.float32]) -> None:
        """Hold the rows of the last `len(rows)` ids of what a sequence has read."""
        self.profile: EngineProfile = engine.profile
        self.vocabulary_size = engine.vocabulary_size
        self.context_tokens = self.tokens_max = engine.context_tokens
        self._ids, self._rows = ids, rows

    def decode(self, steps: Sequence[Step]) -> list[NDArray[np.float32]]:
        (step,) = steps
        assert (step.position, step.ids, step.outputs) == (0, self._ids, len(self._rows))
        return [self._rows]

    def forget(self, sequence: int) -> None:
        assert sequence == 0

    def close(self) -> None:
        pass
