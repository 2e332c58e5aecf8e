"""The JSON of the older completions API. Struct definitions only."""

import msgspec

from deaios.gateway.openai_wire import Proof, Proofs, Usage


class TextLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of the shown tokens, in four lists of one length; `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True):
    """One continuation, or more of it."""

    text: str
    index: int
    finish_reason: str | None
    logprobs: TextLogprobs | None = None


class TextCompletion(msgspec.Struct, frozen=True):
    """A whole answer, or one event of a stream."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    object: str = "text_completion"
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    deaios: Proof | Proofs | msgspec.UnsetType = msgspec.UNSET
