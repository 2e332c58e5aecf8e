"""The JSON that OpenAI SDKs read: answers, chunks, models and errors.

Field names and order follow the OpenAI API; `deaios` is an extra field that SDKs keep without knowing it. Struct
definitions only: what goes into them is decided elsewhere.
"""

import msgspec

from deaios.primitives.encoding import Json


class PromptDetails(msgspec.Struct, frozen=True):
    """Part of the prompt that was not computed again."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Counts from the receipt: what was paid for, the stopping token included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Proof(msgspec.Struct, rename="camel", frozen=True):
    """What a user needs to check the answer without the gateway.

    `network` is the genesis hash, `client_nonce` what the body was hashed with, `opening` the signed papers of the
    purchase, `provider` who served, `privacy` what is enforced, promised or neither (docs/privacy.md), `part` which
    purchase of which door where that is not the one answer of a chat.
    """

    network: str
    client_nonce: str
    opening: dict[str, Json]
    provider: str
    privacy: dict[str, str]
    part: dict[str, Json] | msgspec.UnsetType = msgspec.UNSET


class Bought(msgspec.Struct, rename="camel", frozen=True):
    """The papers of one purchase among several."""

    client_nonce: str
    opening: dict[str, Json]
    provider: str
    privacy: dict[str, str]
    part: dict[str, Json] | msgspec.UnsetType = msgspec.UNSET


class Proofs(msgspec.Struct, rename="camel", frozen=True):
    """The same as `Proof` for a request that bought several answers, in the order of their choices."""

    network: str
    purchases: list[Bought]


class CalledFunction(msgspec.Struct, frozen=True):
    """What a call calls; `arguments` is JSON text."""

    name: str
    arguments: str


class Call(msgspec.Struct, frozen=True):
    """One call of an answer."""

    id: str
    function: CalledFunction
    type: str = "function"


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's turn; without words of its own where it only calls."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: list[Call] | msgspec.UnsetType = msgspec.UNSET


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most probable tokens at a place; `bytes` is None for special tokens."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token of the text, with how probable the provider says the model found it, in nats."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """The tokens of a text, each a `TokenLogprob` that was encoded when it came."""

    content: list[msgspec.Raw]
    refusal: None = None


class Choice(msgspec.Struct, frozen=True):
    """One answer to a request."""

    message: AnswerMessage
    finish_reason: str
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """A whole answer."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    deaios: Proof | Proofs
    object: str = "chat.completion"


class CallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a call: all but the arguments at once, then those as they grow."""

    index: int
    function: dict[str, str]
    id: str | None = None
    type: str | None = None


class ChunkDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """One choice of a chunk."""

    delta: ChunkDelta
    finish_reason: str | None = None
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """One event of a stream; `usage` and `deaios` are left out where they do not belong."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    object: str = "chat.completion.chunk"
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    deaios: Proof | Proofs | msgspec.UnsetType = msgspec.UNSET


class Pricing(msgspec.Struct, frozen=True):
    """Credits per token as decimal text, in OpenRouter's form; the most that is paid, not what each provider asks."""

    prompt: str
    completion: str


class Model(msgspec.Struct, frozen=True):
    """One entry of the models list."""

    id: str
    created: int
    owned_by: str
    context_length: int
    pricing: Pricing
    record_id: str
    supported_parameters: tuple[str, ...]
    object: str = "model"


class ModelList(msgspec.Struct, frozen=True):
    """The models that a key may use."""

    data: list[Model]
    object: str = "list"


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong, in the API's terms."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """An error document."""

    error: ErrorBody
