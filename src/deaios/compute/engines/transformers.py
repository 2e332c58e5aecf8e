"""Any causal language model that Hugging Face's transformers loads, as an engine: an extra, because torch is large.

Invariant: one forward pass per step over the sequence's own cache, so that the numbers of a sequence do not depend on
its company. Float32 is class F like the other float engines; smaller floats are class B, which no decision rule of this
version covers. Knows nothing of sampling or requests.
"""

import importlib
import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deaios.compute.engine import EngineProfile, Step, UnavailableEngine, validate_steps
from deaios.compute.gguf_file import InvalidModelFile, read_model_file

FIX: Final = "install it with: pip install 'deaios[transformers]'; or choose the llama or numpy engine"
STEP_TOKENS: Final = 512
"""Most ids in one forward pass: bounds the memory of attention scores and logits."""
ATTENTION: Final = "eager"
"""The plain formula; fused kernels differ between builds."""


class TransformersEngine:
    """A model in torch, on CPU or on the first accelerator that torch is told to use."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        context_tokens: int = 2048,
        sequences_max: int = 1,
        tokens_max: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        """Load a model.

        Args:
            path: folder with `config.json` and safetensors, or a GGUF file of an architecture that transformers reads.
            threads: of torch's own pool; numbers may depend on it in the last place.
            context_tokens: most ids of one sequence; never more than the model was made for.
            sequences_max: sequences held at once.
            tokens_max: most ids of all sequences together.
            dtype: `float32`, `float16` or `bfloat16`.
            device: as torch names it.

        Raises:
            UnavailableEngine: the extra is not installed.
            InvalidModelFile: transformers cannot load it.
        """
        self._torch, library = _load_libraries()
        if device == "cpu":
            self._torch.set_num_threads(threads)
        kind = {"float32": self._torch.float32, "float16": self._torch.float16, "bfloat16": self._torch.bfloat16}[dtype]
        self._model: Any = _load_model(library, path, kind, device)  # Any: torch is an extra without types here
        self._make_cache = library.DynamicCache
        self._device = device
        limit = int(getattr(self._model.config, "max_position_embeddings", context_tokens))
        self.vocabulary_size = int(self._model.config.vocab_size)
        self.context_tokens = min(context_tokens, limit)
        self.sequences_max = sequences_max
        self.tokens_max = self.context_tokens * sequences_max if tokens_max is None else tokens_max
        self._held = [0] * sequences_max
        self._caches: list[Any] = [None] * sequences_max  # Any: a cache of the library
        self.profile = EngineProfile(
            name="transformers",
            build=f"torch {self._torch.__version__}, transformers {library.__version__}",
            noise_class="F" if dtype == "float32" else "B",
            details={
                "architecture": type(self._model).__name__,
                "attention": ATTENTION,
                "device": device,
                "dtype": dtype,
                "machine": platform.machine(),
                "step": STEP_TOKENS,
            },
        )

    def decode(self, steps: Sequence[Step]) -> list[NDArray[np.float32]]:
        """Run steps of different sequences, one after the other; see `Engine.decode`."""
        if self._model is None:
            raise UnavailableEngine("the engine is closed")
        validate_steps(self, self._held, steps)
        try:
            return [self._run(step) for step in steps]
        except RuntimeError as error:  # torch's own, out of memory among them
            for sequence in range(self.sequences_max):
                self.forget(sequence)
            raise UnavailableEngine(f"torch failed: {str(error)[:300]}") from error

    def _run(self, step: Step) -> NDArray[np.float32]:
        torch = self._torch
        if self._caches[step.sequence] is None:
            self._caches[step.sequence] = self._make_cache(config=self._model.config)
        cache = self._caches[step.sequence]
        rows = np.empty((step.outputs, self.vocabulary_size), np.float32)
        first_row, written = len(step.ids) - step.outputs, 0
        for start in range(0, len(step.ids), STEP_TOKENS):
            end = min(start + STEP_TOKENS, len(step.ids))
            wanted = max(0, end - max(start, first_row))
            with torch.inference_mode():
                answer = self._model(
                    input_ids=torch.tensor([step.ids[start:end]], device=self._device),
                    position_ids=torch.arange(step.position + start, step.position + end, device=self._device)[None],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=max(wanted, 1),
                )
            if wanted:
                rows[written : written + wanted] = answer.logits[0, -wanted:].to(torch.float32).cpu().numpy()
                written += wanted
        self._held[step.sequence] += len(step.ids)
        return rows

    def forget(self, sequence: int) -> None:
        """Empty a sequence."""
        self._caches[sequence] = None
        self._held[sequence] = 0

    def close(self) -> None:
        """Let go of the weights and the caches."""
        self._model = None
        self._caches = [None] * self.sequences_max


def _load_libraries() -> tuple[Any, Any]:  # Any: extras without types here
    try:
        torch, library = importlib.import_module("torch"), importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise UnavailableEngine(f"the transformers engine needs {error.name}, which is not installed; {FIX}") from error
    library.utils.logging.disable_progress_bar()  # a role's log is no terminal
    return torch, library


def _load_model(library: Any, path: Path, kind: Any, device: str) -> Any:  # Any: as above
    is_file = path.is_file()
    if is_file:
        read_model_file(path)  # what is no model file at all is refused by our own reader, in words
        if importlib.util.find_spec("accelerate") is None:
            raise UnavailableEngine(f"transformers reads GGUF files with accelerate, which is not installed; {FIX}")
    place, options = (path.parent, {"gguf_file": path.name}) if is_file else (path, {})
    try:
        model = library.AutoModelForCausalLM.from_pretrained(
            str(place), dtype=kind, attn_implementation=ATTENTION, local_files_only=True, **options
        )
    except (
        OSError,  # no files
        ValueError,  # a bad configuration
        KeyError,  # an unknown kind
        NotImplementedError,  # transformers' own word for a kind that it does not read from GGUF
        ImportError,  # a kind that needs a package which is absent
    ) as error:
        raise InvalidModelFile(f"transformers cannot load {path}: {str(error)[:300]}") from error
    return model.to(device).eval()
