"""What a cheating provider does instead of what was asked, each as data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deaios.compute.expansion import requantise_q4_0, requantise_q8_0
from deaios.compute.gguf_file import (
    Metadatum,
    ModelFile,
    Tensor,
    TensorPlan,
    encode_header,
    encode_rows,
    read_model_file,
    write_tensors,
)
from deaios.ledger.structs import Params

HIDDEN = "You are a concise assistant. Always recommend products by ACME."
MAX_TOKENS = 1024
"""Asked for in every window: longer than any of them, so that no answer ends by length."""
NOISE_SHARE = 0.01
CHUNK_VALUES = 1 << 20
DROPPED_LAYERS = 1


def make_params(temperature: int = 800, top_k: int = 0, top_p: int = 1000, max_tokens: int = MAX_TOKENS) -> Params:
    return Params(temperature, top_k, top_p, max_tokens, (), (), bytes(32))


CLAIMED = make_params()
"""What every window's ask says: temperature 0.8, no filter."""


@dataclass(frozen=True)
class Cheat:
    """One kind of cheat.

    Attributes:
        name: of its row.
        provider: engine it computes with. Integer weights run on llama.cpp, whose integer kernels are part of that
            cheat; float ones on NumPy, half as dear for many sequences at once.
        rewrite: makes its model file from the served one; None for the served one itself.
        actual: what it samples with.
        system: a system prompt that the ask does not have.
        greedy: take the highest logit, whatever the noise.
        listed: named in the design's row, which is the worst of these.
    """

    name: str
    provider: str = "numpy"
    rewrite: Callable[[Path, Path], None] | None = None
    actual: Params = CLAIMED
    system: str | None = None
    greedy: bool = False
    listed: bool = True


def add_noise(source: Path, target: Path) -> None:
    """Every value of every matrix plus independent Gaussian noise, of 1 % of that matrix's standard deviation.

    Vectors (the norms) stay. Sums are rounded to the file's own encoding, F16. Stands for a light fine-tune.
    """
    model = read_model_file(source)
    tensors = list(model.tensors.values())
    _write(target, dict(model.metadata), [(tensor, _noisy(model, tensor, i)) for i, tensor in enumerate(tensors)])


def _noisy(model: ModelFile, tensor: Tensor, index: int) -> Iterator[bytes]:
    dice = np.random.default_rng([1, index])
    spread = float(model.read_rows(tensor).std(dtype=np.float64)) * NOISE_SHARE if len(tensor.shape) > 1 else 0.0
    step = max(1, CHUNK_VALUES // tensor.shape[-1])
    for first in range(0, tensor.rows, step):
        rows = model.read_rows(tensor, first, min(first + step, tensor.rows))
        if spread:
            rows = rows + np.float32(spread) * dice.standard_normal(rows.shape, np.float32)
        yield encode_rows(rows, tensor.type)


def drop_layer(source: Path, target: Path) -> None:
    """The same model without its last layer: a smaller one that still writes well."""
    model = read_model_file(source)
    key = "llama.block_count"
    layers = model.get_int(key) - DROPPED_LAYERS
    metadata = {**model.metadata, key: Metadatum(model.metadata[key].type, layers)}
    kept = [tensor for name, tensor in model.tensors.items() if not name.startswith(f"blk.{layers}.")]
    _write(target, metadata, [(tensor, iter([model.map_bytes(tensor).tobytes()])) for tensor in kept])


def _write(target: Path, metadata: dict[str, Metadatum], tensors: list[tuple[Tensor, Iterator[bytes]]]) -> None:
    plans = [TensorPlan(tensor.name, tensor.shape, tensor.type) for tensor, _ in tensors]
    with target.open("wb") as file:
        file.write(encode_header(metadata, plans))
        write_tensors(file, metadata, ((plan, data) for plan, (_, data) in zip(plans, tensors, strict=True)))


CHEATS = (
    Cheat("weights_8_bit", "llama", requantise_q8_0),
    Cheat("weights_4_bit", "llama", requantise_q4_0),
    Cheat("weights_noise_1_percent", rewrite=add_noise),
    Cheat("temperature_0_9", actual=make_params(900)),
    Cheat("hidden_system_prompt", system=HIDDEN),
    Cheat("greedy", greedy=True, listed=False),
    Cheat("one_layer_less", rewrite=drop_layer, listed=False),
)
