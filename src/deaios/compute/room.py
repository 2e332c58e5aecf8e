"""How many sequences an engine holds, and how many ids all of them together: what memory and threads allow.

Pure: sizes come in. The rule is the operator's wherever the operator set one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.compute.gguf_file import ModelFile

SEQUENCES_LIMIT = 64
"""Most sequences that margins were measured for (docs/detection.md)."""
SEQUENCES_PER_THREAD = 8
"""Eight rows together cost half of what they cost one by one; a thread that shares itself further makes each answer
slower and gains little: 15.4 ms of CPU an id at 8 sequences of the default model, 12.2 at 64."""
SEQUENCES_WHOLE_MIN = 4
"""With fewer whole contexts than this, a shared pool of cells serves more answers, though each costs more."""
CELL_BYTES = 2
"""Keys and values are kept as F16."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bounds of an engine. `tokens_max` below the product of both others means one pool of cells for all sequences."""

    sequences_max: int
    context_tokens: int
    tokens_max: int


def compute_token_bytes(model: ModelFile) -> int:
    """Memory that one id takes in the cache of keys and values.

    Raises:
        InvalidModelFile: the file does not say how large its attention is.
    """
    name = model.get_text("general.architecture")
    heads = _get_most(model, f"{name}.attention.head_count", 1)
    width = model.get_int(f"{name}.embedding_length") // heads
    key_heads = _get_most(model, f"{name}.attention.head_count_kv", heads)
    widths = sum(model.get_int(f"{name}.attention.{kind}_length", width) for kind in ("key", "value"))
    return model.get_int(f"{name}.block_count") * key_heads * widths * CELL_BYTES


def _get_most(model: ModelFile, key: str, default: int) -> int:
    """A number, or the largest of one per layer, as some architectures write it."""
    if key in model.metadata and isinstance(values := model.get_value(key), Sequence) and not isinstance(values, str):
        return max((value for value in values if isinstance(value, int)), default=default)
    return model.get_int(key, default)


def plan_room(
    *,
    token_bytes: int,
    memory_bytes: int,
    threads: int,
    context_tokens: int,
    sequences_max: int = 0,
    tokens_max: int = 0,
) -> Room:
    """What an engine may hold.

    Args:
        token_bytes: memory of one id; 0 where it is not known, which then bounds nothing.
        memory_bytes: that the cells may take.
        threads: of the arithmetic.
        context_tokens: most ids of one sequence.
        sequences_max: as the operator wishes; 0 for as many as are sensible.
        tokens_max: as the operator wishes; 0 for what the memory allows, one whole context at least.
    """
    sequences = sequences_max or min(SEQUENCES_LIMIT, SEQUENCES_PER_THREAD * threads)
    whole = sequences * context_tokens
    if tokens_max:
        return Room(sequences, context_tokens, min(tokens_max, whole))
    affordable = max(context_tokens, memory_bytes // token_bytes) if token_bytes else whole
    if affordable >= whole:
        return Room(sequences, context_tokens, whole)
    contexts = affordable // context_tokens
    if not sequences_max and contexts >= SEQUENCES_WHOLE_MIN:
        return Room(contexts, context_tokens, contexts * context_tokens)
    return Room(sequences, context_tokens, affordable)
