"""The shipped engines with one addition: a sequence may be copied, so that windows share the pass over their prompt.

The arithmetic is the shipped engines' own. Copying is kept out of the product, which has no use for it yet.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deaios.compute.engine import Engine, EngineProfile, Step
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.engines.numpy_llama import NumpyEngine, _Cache

_COPY = "void llama_memory_seq_cp(void * mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);"
CONTEXT_TOKENS = 384
"""Longest prompt, trunk and window together."""


class ForkingEngine(Engine, Protocol):
    """An engine whose sequences can be copied."""

    def fork(self, source: int, targets: Iterable[int]) -> None:
        """Let each target hold what the source holds."""


class ForkingLlama(LlamaEngine):
    """Targets share the source's cells of the cache, as llama.cpp's own parallel examples do."""

    def fork(self, source: int, targets: Iterable[int]) -> None:
        self._library.ffi.cdef(_COPY, override=True)  # the library is one per process and may know it already
        for target in targets:
            self.forget(target)
            self._library.api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self._held[target] = self._held[source]


class ForkingNumpy(NumpyEngine):
    """Targets copy the source's keys and values."""

    def fork(self, source: int, targets: Iterable[int]) -> None:
        held = self._caches[source]
        for target in targets:
            copy = _Cache(self._shape, self.context_tokens)
            copy.reserve(held.tokens)
            copy.keys[:, :, : held.tokens] = held.keys[:, :, : held.tokens]
            copy.values[:, :, : held.tokens] = held.values[:, :, : held.tokens]
            copy.tokens = held.tokens
            self._caches[target] = copy


def open_forking(kind: str, path: Path, sequences: int, threads: int) -> ForkingEngine:
    """An engine for so many windows at once; NumPy keeps its weights in memory, which changes no bit."""
    if kind == "llama":
        return ForkingLlama(path, threads=threads, context_tokens=CONTEXT_TOKENS, sequences_max=sequences)
    assert kind == "numpy"
    return ForkingNumpy(path, context_tokens=CONTEXT_TOKENS, sequences_max=sequences, resident=True)


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
