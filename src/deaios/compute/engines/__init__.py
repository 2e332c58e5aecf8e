"""The engines behind `compute.engine.Engine`, picked by name.

Invariant: an engine is imported only when it is asked for, so that a machine without the llama.cpp wheel still runs
the NumPy engine. Knows nothing of models or requests.
"""

from pathlib import Path
from typing import Literal, assert_never

from deaios.compute.engine import Engine

EngineKind = Literal["llama", "numpy", "transformers"]
ENGINE_KINDS: tuple[EngineKind, ...] = ("llama", "numpy", "transformers")


def open_engine(
    kind: EngineKind,
    path: Path,
    *,
    threads: int = 1,
    context_tokens: int = 2048,
    sequences_max: int = 1,
    tokens_max: int | None = None,
) -> Engine:
    """Load a model file with one of the engines.

    Args:
        kind: `llama` (fast), `numpy` (the referee) or `transformers` (an extra; whatever that library reads).
        path: GGUF file.
        threads: threads for llama.cpp; NumPy's BLAS takes its number from the process.
        context_tokens: most ids of one sequence.
        sequences_max: sequences held at once.
        tokens_max: most ids of all sequences together; the product of both when left out.

    Raises:
        UnavailableEngine: the engine cannot run here; the message names the fix.
        InvalidModelFile: the file is not a model that the engine takes.
    """
    match kind:
        case "llama":
            from deaios.compute.engines.llama import LlamaEngine  # noqa: PLC0415  # only where the wheel is needed

            return LlamaEngine(
                path,
                threads=threads,
                context_tokens=context_tokens,
                sequences_max=sequences_max,
                tokens_max=tokens_max,
            )
        case "numpy":
            from deaios.compute.engines.numpy_llama import NumpyEngine  # noqa: PLC0415  # as above

            return NumpyEngine(path, context_tokens=context_tokens, sequences_max=sequences_max, tokens_max=tokens_max)
        case "transformers":
            from deaios.compute.engines.transformers import TransformersEngine  # noqa: PLC0415  # as above

            return TransformersEngine(
                path,
                threads=threads,
                context_tokens=context_tokens,
                sequences_max=sequences_max,
                tokens_max=tokens_max,
            )
        case _:
            assert_never(kind)
