"""The JSON of the responses API: documents, items and events. Struct definitions only."""

import msgspec

from deaios.gateway.openai_wire import Proof, Proofs
from deaios.primitives.encoding import Json


class OutputText(msgspec.Struct, frozen=True):
    """The text of an answer."""

    text: str
    annotations: list[Json] = []
    logprobs: list[Json] = []
    type: str = "output_text"


class OutputItem(msgspec.Struct, frozen=True):
    """The assistant's turn."""

    id: str
    content: list[OutputText]
    status: str
    role: str = "assistant"
    type: str = "message"


class CallItem(msgspec.Struct, frozen=True):
    """A call that the assistant makes; `arguments` is JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: str
    type: str = "function_call"


class CallOutputItem(msgspec.Struct, frozen=True):
    """What a call gave."""

    id: str
    call_id: str
    output: str
    status: str = "completed"
    type: str = "function_call_output"


class InputText(msgspec.Struct, frozen=True):
    """The text of a turn that came in."""

    text: str
    type: str = "input_text"


class InputItem(msgspec.Struct, frozen=True):
    """A turn that came in."""

    id: str
    role: str
    content: list[InputText]
    status: str = "completed"
    type: str = "message"


class InputDetails(msgspec.Struct, frozen=True):
    """Part of the prompt that was not computed again; nothing is billed for writing a cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    """No model here thinks apart from its answer."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Counts from the receipt."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(msgspec.Struct, frozen=True):
    """Why an answer ends early."""

    reason: str


class Failure(msgspec.Struct, frozen=True):
    """Why there is no answer."""

    code: str
    message: str


class Reasoning(msgspec.Struct, frozen=True):
    """Nothing of it."""

    effort: None = None
    summary: None = None


class TextFormat(msgspec.Struct, frozen=True):
    """Plain text."""

    type: str = "text"


class TextConfig(msgspec.Struct, frozen=True):
    """Plain text."""

    format: TextFormat = TextFormat()


class Response(msgspec.Struct, frozen=True):
    """A response as it stands."""

    id: str
    created_at: int
    status: str
    model: str
    output: list[OutputItem | CallItem]
    temperature: float
    top_p: float
    store: bool
    metadata: dict[str, str]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    usage: ResponseUsage | None = None
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    completed_at: int | None = None
    background: bool = False
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Reasoning()
    service_tier: str = "default"
    text: TextConfig | Json = TextConfig()
    tool_choice: Json = "auto"
    tools: list[Json] = []
    top_logprobs: int = 0
    truncation: str = "disabled"
    object: str = "response"
    deaios: Proof | Proofs | msgspec.UnsetType = msgspec.UNSET


class ResponseEvent(msgspec.Struct, frozen=True):
    """The response itself at a turn of its life."""

    type: str
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct, frozen=True):
    """An item begins or is whole."""

    type: str
    sequence_number: int
    item: OutputItem | CallItem
    output_index: int = 0


class ContentEvent(msgspec.Struct, frozen=True):
    """A part of an item begins or is whole."""

    type: str
    sequence_number: int
    item_id: str
    part: OutputText
    output_index: int = 0
    content_index: int = 0


class DeltaEvent(msgspec.Struct, frozen=True):
    """More text."""

    sequence_number: int
    item_id: str
    delta: str
    logprobs: list[Json] = []
    output_index: int = 0
    content_index: int = 0
    type: str = "response.output_text.delta"


class TextEvent(msgspec.Struct, frozen=True):
    """The whole text."""

    sequence_number: int
    item_id: str
    text: str
    logprobs: list[Json] = []
    output_index: int = 0
    content_index: int = 0
    type: str = "response.output_text.done"


class ArgumentsDeltaEvent(msgspec.Struct, frozen=True):
    """More of a call's arguments."""

    sequence_number: int
    item_id: str
    delta: str
    output_index: int
    type: str = "response.function_call_arguments.delta"


class ArgumentsEvent(msgspec.Struct, frozen=True):
    """A call's whole arguments."""

    sequence_number: int
    item_id: str
    name: str
    arguments: str
    output_index: int
    type: str = "response.function_call_arguments.done"


class ItemList(msgspec.Struct, frozen=True):
    """Some of a response's turns."""

    data: list[InputItem | OutputItem | CallItem | CallOutputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Deleted(msgspec.Struct, frozen=True):
    """Something is gone."""

    id: str
    object: str
    deleted: bool = True


class InputTokens(msgspec.Struct, frozen=True):
    """How many tokens a body's prompt has."""

    input_tokens: int
    object: str = "response.input_tokens"
