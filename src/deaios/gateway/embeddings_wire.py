"""The JSON of the embeddings API. Struct definitions only."""

import msgspec

from deaios.gateway.openai_wire import Proof, Proofs


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Counts from the receipts; vectors cost their inputs and nothing else."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True):
    """The vector of one input: numbers, or base64 of little-endian float32."""

    embedding: list[float] | str
    index: int
    object: str = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True):
    """A whole answer."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    deaios: Proof | Proofs
    object: str = "list"
