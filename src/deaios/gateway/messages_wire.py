"""The JSON of the Anthropic messages API: messages, events and errors. Struct definitions only."""

import msgspec

from deaios.gateway.openai_wire import Proof, Proofs


class TextBlock(msgspec.Struct, frozen=True):
    """The text of an answer."""

    text: str
    citations: None = None
    type: str = "text"


class ToolUseBlock(msgspec.Struct, frozen=True):
    """A call of a tool; `input` is a JSON object as the model wrote it."""

    id: str
    name: str
    input: msgspec.Raw
    type: str = "tool_use"


class MessageUsage(msgspec.Struct, frozen=True):
    """Counts from the receipt; what was read from a cache is not in `input_tokens`, as in the Anthropic API."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class AnswerMessage(msgspec.Struct, frozen=True):
    """A whole answer, or its frame."""

    id: str
    model: str
    content: list[TextBlock | ToolUseBlock]
    usage: MessageUsage
    stop_reason: str | None = None
    stop_sequence: str | None = None
    role: str = "assistant"
    type: str = "message"
    deaios: Proof | Proofs | msgspec.UnsetType = msgspec.UNSET


class MessageStart(msgspec.Struct, frozen=True):
    """The frame, before any text."""

    message: AnswerMessage
    type: str = "message_start"


class BlockStart(msgspec.Struct, frozen=True):
    """A block begins."""

    content_block: TextBlock | ToolUseBlock
    index: int = 0
    type: str = "content_block_start"


class TextDelta(msgspec.Struct, frozen=True):
    """More text."""

    text: str
    type: str = "text_delta"


class InputDelta(msgspec.Struct, frozen=True):
    """More of a call's input."""

    partial_json: str
    type: str = "input_json_delta"


class BlockDelta(msgspec.Struct, frozen=True):
    """More of the block."""

    delta: TextDelta | InputDelta
    index: int = 0
    type: str = "content_block_delta"


class BlockStop(msgspec.Struct, frozen=True):
    """The block is whole."""

    index: int = 0
    type: str = "content_block_stop"


class StopDelta(msgspec.Struct, frozen=True):
    """Why the answer ends."""

    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True):
    """How the answer ends, what was paid for, and the proof."""

    delta: StopDelta
    usage: MessageUsage
    deaios: Proof | Proofs
    type: str = "message_delta"


class MessageStop(msgspec.Struct, frozen=True):
    """The end."""

    type: str = "message_stop"


class MessageError(msgspec.Struct, frozen=True):
    """What went wrong."""

    type: str
    message: str


class MessageErrorAnswer(msgspec.Struct, frozen=True):
    """An error document, or the last event of a stream that failed."""

    error: MessageError
    request_id: str | None = None
    type: str = "error"


class TokenCount(msgspec.Struct, frozen=True):
    """How many tokens a body's prompt has."""

    input_tokens: int
