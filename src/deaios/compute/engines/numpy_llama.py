"""The Llama architecture in NumPy and float32: the referee that runs everywhere and shares no code with llama.cpp.

Invariant: one decoded block of weights is multiplied the same way whether it is kept or read again from the mapped
file, so memory settings never change a bit of the result. Knows nothing of sampling or requests.

Architecture: RMS norm, rotary embedding on adjacent pairs, grouped-query attention, SwiGLU (arXiv:2302.13971,
arXiv:2104.09864, arXiv:2305.13245); tensor names are llama.cpp's.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deaios.compute.engine import (
    EngineProfile,
    Part,
    Snapshot,
    Step,
    UnavailableEngine,
    plan_batches,
    validate_steps,
)
from deaios.compute.gguf_file import InvalidModelFile, ModelFile, read_model_file

ARCHITECTURE = "llama"
BATCH_TOKENS = 256
"""Most ids in one pass; bounds attention scores to heads x 256 x context."""
OUTPUTS_MAX = 128
"""Most rows of logits in one pass: as many as a check asks for at once, because every pass decodes all weights again.
A smaller number would not save memory, since the rows of all passes are joined anyway."""
BLOCK_VALUES = 1 << 20
"""Weights decoded at once: 4 MiB of float32."""
CACHE_TOKENS_MIN = 256
"""First size of a sequence's cache; it doubles up to the context."""
LAYERS_MAX = 512
DIMENSION_MAX = 1 << 20
"""Bounds for hyperparameters, far above any model that NumPy could run."""

_UNDERSTOOD = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    }
)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Shape:
    """Hyperparameters of a plain Llama model."""

    layers: int
    width: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    rotary_base: float
    epsilon: float


class _Cache:
    """Keys and values of one sequence `(layers, key_heads, capacity, head_width)`; grows by doubling."""

    def __init__(self, shape: _Shape, tokens_max: int) -> None:
        self._shape = shape
        self._tokens_max = tokens_max
        self.tokens = 0
        self.keys = self.values = np.zeros((shape.layers, shape.key_heads, 0, shape.head_width), np.float32)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in all."""
        capacity = self.keys.shape[2]
        if tokens <= capacity:
            return
        capacity = min(self._tokens_max, max(CACHE_TOKENS_MIN, 2 * capacity, tokens))
        grown = []
        for old in (self.keys, self.values):
            new = np.zeros((*old.shape[:2], capacity, old.shape[3]), np.float32)
            new[:, :, : self.tokens] = old[:, :, : self.tokens]
            grown.append(new)
        self.keys, self.values = grown


class NumpyEngine:
    """A Llama GGUF run by NumPy; weights stay in the mapped file unless `resident`."""

    def __init__(
        self,
        path: Path,
        *,
        context_tokens: int = 2048,
        sequences_max: int = 1,
        tokens_max: int | None = None,
        resident: bool = False,
    ) -> None:
        """Open a model.

        Args:
            path: GGUF file of architecture `llama`.
            context_tokens: most ids of one sequence.
            sequences_max: sequences held at once.
            tokens_max: most ids of all sequences together.
            resident: keep decoded weights in memory; single tokens are then about three times faster.

        Raises:
            InvalidModelFile: another architecture, or a part of it that is not understood.
            UnavailableModelFile: the file cannot be opened.
        """
        self._file = read_model_file(path)
        self._shape = _read_shape(self._file)
        _validate_tensors(self._file, self._shape)
        self.vocabulary_size = self._shape.vocabulary
        self.width = self._shape.width
        self.context_tokens = context_tokens
        self.sequences_max = sequences_max
        self.tokens_max = context_tokens * sequences_max if tokens_max is None else tokens_max
        self._caches = [_Cache(self._shape, context_tokens) for _ in range(sequences_max)]
        self._kept: dict[tuple[str, int], Floats] | None = {} if resident else None
        self._closed = False
        pairs = np.arange(0, self._shape.head_width, 2, dtype=np.float64) / self._shape.head_width
        angles = np.outer(np.arange(context_tokens), self._shape.rotary_base**-pairs)
        self._cosines = np.cos(angles).astype(np.float32)
        self._sines = np.sin(angles).astype(np.float32)
        encodings = sorted({tensor.type.name for tensor in self._file.tensors.values() if len(tensor.shape) > 1})
        self.profile = EngineProfile(
            name="numpy",
            build=f"numpy {np.__version__}",
            noise_class="F",
            details={"cache": "f32", "machine": platform.machine(), "weights": "+".join(encodings)},
        )

    def decode(self, steps: Sequence[Step]) -> list[Floats]:
        """Run steps of different sequences together; see `Engine.decode`."""
        return [logits for logits, _ in self.decode_hidden(steps)]

    def decode_hidden(self, steps: Sequence[Step]) -> list[tuple[Floats, Floats]]:
        """Run steps with their hidden states; see `HiddenEngine.decode_hidden`. Always the bits of `decode`."""
        if self._closed:
            raise UnavailableEngine("the engine is closed")
        validate_steps(self, [cache.tokens for cache in self._caches], steps)
        rows: list[list[Floats]] = [[] for _ in steps]
        states: list[list[Floats]] = [[] for _ in steps]
        for parts in plan_batches(steps, BATCH_TOKENS, OUTPUTS_MAX):
            for part, (logits, hidden) in zip(parts, self._run(steps, parts), strict=True):
                rows[part.index].append(logits)
                states[part.index].append(hidden)
        return [(np.concatenate(found), np.concatenate(seen)) for found, seen in zip(rows, states, strict=True)]

    def forget(self, sequence: int) -> None:
        """Empty a sequence and give its memory back."""
        self._caches[sequence] = _Cache(self._shape, self.context_tokens)

    def save(self, sequence: int) -> Snapshot:
        """Copy what a sequence holds; see `SavingEngine.save`."""
        cache = self._caches[sequence]
        state = (cache.keys[:, :, : cache.tokens].copy(), cache.values[:, :, : cache.tokens].copy())
        return Snapshot(cache.tokens, sum(array.nbytes for array in state), state)

    def restore(self, sequence: int, snapshot: Snapshot, tokens: int) -> bool:
        """Let an empty sequence hold the start of a snapshot; see `SavingEngine.restore`."""
        cache = self._caches[sequence]
        assert cache.tokens == 0
        assert 0 < tokens <= snapshot.tokens
        assert isinstance(snapshot.state, tuple)
        if sum(other.tokens for other in self._caches) + tokens > self.tokens_max:
            return False
        keys, values = snapshot.state
        cache.reserve(tokens)
        cache.keys[:, :, :tokens], cache.values[:, :, :tokens] = keys[:, :, :tokens], values[:, :, :tokens]
        cache.tokens = tokens
        return True

    def close(self) -> None:
        """Drop weights and caches."""
        self._closed = True
        self._kept = None
        self._caches = []

    def _run(self, steps: Sequence[Step], parts: Sequence[Part]) -> list[tuple[Floats, Floats]]:
        """One pass over all parts, to the logits and hidden states that are wanted."""
        hidden, spans = self._pass(steps, parts)
        return self._project(hidden, parts, spans)

    def hidden(self, step: Step) -> Floats:
        """Run one step and give the hidden states of all its ids; see `EmbeddingEngine.hidden`."""
        if self._closed:
            raise UnavailableEngine("the engine is closed")
        silent = replace(step, outputs=0)
        validate_steps(self, [cache.tokens for cache in self._caches], [silent])
        found = [self._pass([silent], parts)[0] for parts in plan_batches([silent], BATCH_TOKENS, OUTPUTS_MAX)]
        return self._normalise(np.concatenate(found), "output_norm.weight")

    def _pass(self, steps: Sequence[Step], parts: Sequence[Part]) -> tuple[Floats, list[tuple[_Cache, int, int, int]]]:
        """All layers; matrices see all tokens at once, attention sees one sequence at a time."""
        shape = self._shape
        spans = []
        start = 0
        for part in parts:
            step = steps[part.index]
            size = part.last - part.first
            self._caches[step.sequence].reserve(step.position + part.last)
            spans.append((self._caches[step.sequence], step.position + part.first, start, start + size))
            start += size
        ids = [token for part in parts for token in steps[part.index].ids[part.first : part.last]]
        hidden = self._embed(ids)
        for layer in range(shape.layers):
            prefix = f"blk.{layer}."
            inner = self._normalise(hidden, prefix + "attn_norm.weight")
            queries = self._multiply(inner, prefix + "attn_q.weight").reshape(start, shape.heads, shape.head_width)
            keys = self._multiply(inner, prefix + "attn_k.weight").reshape(start, shape.key_heads, shape.head_width)
            values = self._multiply(inner, prefix + "attn_v.weight").reshape(start, shape.key_heads, shape.head_width)
            mixed = np.empty((start, shape.heads * shape.head_width), np.float32)
            for cache, position, first, last in spans:
                mixed[first:last] = self._attend(
                    cache, layer, position, queries[first:last], keys[first:last], values[first:last]
                )
            hidden += self._multiply(mixed, prefix + "attn_output.weight")
            inner = self._normalise(hidden, prefix + "ffn_norm.weight")
            gate = self._multiply(inner, prefix + "ffn_gate.weight")
            # x * sigmoid(x), by tanh because exp overflows for large negative x
            gate *= np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * gate))
            gate *= self._multiply(inner, prefix + "ffn_up.weight")
            hidden += self._multiply(gate, prefix + "ffn_down.weight")
        for part, (cache, position, _, _) in zip(parts, spans, strict=True):
            cache.tokens = position + part.last - part.first
        return hidden, spans

    def _project(
        self, hidden: Floats, parts: Sequence[Part], spans: Sequence[tuple[_Cache, int, int, int]]
    ) -> list[tuple[Floats, Floats]]:
        """Logits of the wanted rows and the hidden states they are made of, two arrays per part."""
        wanted = np.concatenate(
            [hidden[last - part.outputs : last] for part, (_, _, _, last) in zip(parts, spans, strict=True)]
        )
        if not len(wanted):
            nothing = np.empty((0, self.vocabulary_size), np.float32), np.empty((0, self.width), np.float32)
            return [nothing for _ in parts]
        head = "output.weight" if "output.weight" in self._file.tensors else "token_embd.weight"
        states = self._normalise(wanted, "output_norm.weight")
        logits = self._multiply(states, head)
        edges = np.cumsum([part.outputs for part in parts])[:-1]
        return list(zip(np.split(logits, edges), np.split(states, edges), strict=True))

    def _embed(self, ids: Sequence[int]) -> Floats:
        tensor = self._file.get_tensor("token_embd.weight")
        rows = {token: self._file.read_rows(tensor, token, token + 1)[0] for token in set(ids)}
        return np.stack([rows[token] for token in ids])

    def _attend(
        self, cache: _Cache, layer: int, position: int, queries: Floats, keys: Floats, values: Floats
    ) -> Floats:
        """Causal attention of one sequence; `(tokens, heads, head_width)` in, `(tokens, heads * head_width)` out."""
        shape = self._shape
        tokens = len(queries)
        end = position + tokens
        shared = shape.heads // shape.key_heads
        cache.keys[layer, :, position:end] = self._rotate(keys, position).transpose(1, 0, 2)
        cache.values[layer, :, position:end] = values.transpose(1, 0, 2)
        # (key_heads, shared * tokens, head_width) against (key_heads, head_width, end)
        grouped = self._rotate(queries, position).transpose(1, 0, 2).reshape(shape.key_heads, -1, shape.head_width)
        scores = grouped @ cache.keys[layer, :, :end].transpose(0, 2, 1)
        scores *= np.float32(shape.head_width**-0.5)
        scores = scores.reshape(shape.key_heads, shared, tokens, end)
        if tokens > 1:
            future = np.arange(end)[None, :] > np.arange(position, end)[:, None]
            np.copyto(scores, np.float32(-np.inf), where=future)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        weights = scores.reshape(shape.key_heads, shared * tokens, end)
        mixed: Floats = np.matmul(weights, cache.values[layer, :, :end], dtype=np.float32)
        by_token = mixed.reshape(shape.heads, tokens, shape.head_width).transpose(1, 0, 2)
        return by_token.reshape(tokens, shape.heads * shape.head_width)

    def _rotate(self, heads: Floats, position: int) -> Floats:
        """Rotary embedding on adjacent pairs, `(tokens, heads, head_width)`."""
        cosines = self._cosines[position : position + len(heads), None]
        sines = self._sines[position : position + len(heads), None]
        even, odd = heads[..., 0::2], heads[..., 1::2]
        turned = np.empty_like(heads)
        turned[..., 0::2] = even * cosines - odd * sines
        turned[..., 1::2] = even * sines + odd * cosines
        return turned

    def _normalise(self, rows: Floats, name: str) -> Floats:
        """RMS norm with the weights of a vector."""
        scale = np.sqrt(np.mean(rows * rows, -1, keepdims=True) + np.float32(self._shape.epsilon))
        return np.asarray(rows / scale * self._read_block(name, 0, 1)[0], np.float32)

    def _multiply(self, rows: Floats, name: str) -> Floats:
        """`rows @ weights.T`, block of weight rows by block."""
        tensor = self._file.get_tensor(name)
        product = np.empty((len(rows), tensor.rows), np.float32)
        size = max(1, BLOCK_VALUES // tensor.shape[-1])
        for first in range(0, tensor.rows, size):
            last = min(first + size, tensor.rows)
            np.matmul(rows, self._read_block(name, first, last).T, out=product[:, first:last])
        return product

    def _read_block(self, name: str, first: int, last: int) -> Floats:
        if self._kept is None:
            return self._file.read_rows(self._file.get_tensor(name), first, last)
        block = self._kept.get((name, first))
        if block is None:
            block = self._kept[name, first] = self._file.read_rows(self._file.get_tensor(name), first, last)
        return block


def _read_shape(model: ModelFile) -> _Shape:
    name = model.get_text("general.architecture")
    if name != ARCHITECTURE:
        raise InvalidModelFile(f"{model.path.name}: architecture {name}; the numpy engine runs {ARCHITECTURE} only")
    prefix = ARCHITECTURE + "."
    strange = sorted(
        key for key in model.metadata if key.startswith(prefix) and key.removeprefix(prefix) not in _UNDERSTOOD
    )
    if strange:
        raise InvalidModelFile(f"{model.path.name}: the numpy engine does not understand {', '.join(strange)[:200]}")
    heads = model.get_int(prefix + "attention.head_count")
    width = model.get_int(prefix + "embedding_length")
    head_width = model.get_int(prefix + "attention.key_length", width // max(heads, 1))
    shape = _Shape(
        layers=model.get_int(prefix + "block_count"),
        width=width,
        hidden=model.get_int(prefix + "feed_forward_length"),
        heads=heads,
        key_heads=model.get_int(prefix + "attention.head_count_kv", heads),
        head_width=head_width,
        vocabulary=model.get_tensor("token_embd.weight").shape[0],
        rotary_base=model.get_float(prefix + "rope.freq_base", 10000.0),
        epsilon=model.get_float(prefix + "attention.layer_norm_rms_epsilon"),
    )
    sizes = (shape.width, shape.hidden, shape.heads, shape.key_heads, shape.head_width)
    if not 1 <= shape.layers <= LAYERS_MAX or not all(1 <= size <= DIMENSION_MAX for size in sizes):
        raise InvalidModelFile(f"{model.path.name}: hyperparameters out of bounds: {shape}")
    if (
        shape.heads % shape.key_heads
        or shape.head_width % 2
        or model.get_int(prefix + "rope.dimension_count", head_width) != head_width
        or model.get_int(prefix + "attention.value_length", head_width) != head_width
        or not shape.rotary_base > 0.0
        or not shape.epsilon > 0.0
    ):
        raise InvalidModelFile(f"{model.path.name}: head layout not supported by the numpy engine: {shape}")
    return shape


def _validate_tensors(model: ModelFile, shape: _Shape) -> None:
    """The file must hold exactly the tensors of a plain Llama model, each of its one possible shape."""
    attention = shape.heads * shape.head_width
    keys = shape.key_heads * shape.head_width
    expected: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocabulary, shape.width),
        "output_norm.weight": (shape.width,),
    }
    if "output.weight" in model.tensors:
        expected["output.weight"] = (shape.vocabulary, shape.width)
    for layer in range(shape.layers):
        expected |= {
            f"blk.{layer}.attn_norm.weight": (shape.width,),
            f"blk.{layer}.attn_q.weight": (attention, shape.width),
            f"blk.{layer}.attn_k.weight": (keys, shape.width),
            f"blk.{layer}.attn_v.weight": (keys, shape.width),
            f"blk.{layer}.attn_output.weight": (shape.width, attention),
            f"blk.{layer}.ffn_norm.weight": (shape.width,),
            f"blk.{layer}.ffn_gate.weight": (shape.hidden, shape.width),
            f"blk.{layer}.ffn_up.weight": (shape.hidden, shape.width),
            f"blk.{layer}.ffn_down.weight": (shape.width, shape.hidden),
        }
    found = {name: tensor.shape for name, tensor in model.tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        first = wrong[0]
        raise InvalidModelFile(
            f"{model.path.name}: {len(wrong)} tensors differ from a plain Llama model, first {first}: "
            f"shape {found.get(first)} found, {expected.get(first)} expected"
        )
