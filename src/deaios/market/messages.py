"""A body of the Anthropic messages API, read strictly.

Invariant: a body is understood completely or refused with the name of the parameter. `system` becomes the first turn;
text blocks are joined by line breaks. Two turns of one role in a row stay two turns; the template decides.
"""

from collections.abc import Mapping

from deaios.ledger.structs import MAX_TOKENS_LIMIT, TEMPERATURE_MILLI_MAX, TOP_K_OFF, TOP_P_OFF
from deaios.market.fields import (
    InvalidParameter,
    Reader,
    integers,
    read_content,
    read_fields,
    read_flag,
    read_model,
    read_parameters,
    read_routing,
    read_stop,
    read_text,
    thousandths,
    unknown,
    wrong_type,
)
from deaios.market.preferences import read_preferences
from deaios.market.question import TOP_K_MAX, Message, Question
from deaios.primitives.encoding import Json

TURNS_MAX = 1024
_ROLES = ("user", "assistant")
_BLOCK_NEUTRAL = ("cache_control", "citations")

_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "cache_control": (),
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "metadata": ({},),
    "output_config": ({},),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "thinking": ({"type": "disabled"},),
    "tool_choice": ({"type": "none"},),
    "tools": ([],),
    "user_profile_id": (),
    "workspace_id": (),
}


def read_messages_body(body: bytes) -> Question:
    """Read a body of the messages API.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    return _combine(read_parameters(body, _READERS, _NEUTRAL, ("model", "messages", "max_tokens")))


def read_count_body(body: bytes) -> Question:
    """Read a body that only wants its prompt's tokens counted.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    readers = {name: _READERS[name] for name in ("messages", "model", "system")}
    return _combine(read_parameters(body, readers, _NEUTRAL, ("model", "messages")))


def _combine(found: dict[str, object]) -> Question:
    system, turns, routing = found.pop("system", ""), found.pop("messages"), found.pop("deaios", {})
    assert isinstance(system, str)
    assert isinstance(turns, tuple)
    assert isinstance(routing, dict)
    fields = {_RENAMED.get(name, name): value for name, value in found.items()} | routing
    messages = (Message("system", system), *turns) if system else turns
    return Question(messages=messages, **fields)  # type: ignore[arg-type] # each reader returns its field's type


def _read_turns(param: str, value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise wrong_type(param, "an array", value)
    if not 0 < len(value) <= TURNS_MAX:
        raise InvalidParameter(param, f"{param} has {len(value)} entries, allowed are 1 to {TURNS_MAX}")
    turns = tuple(_read_turn(f"{param}[{index}]", item) for index, item in enumerate(value))
    if turns[-1].role != "user":
        raise InvalidParameter(
            f"{param}[{len(turns) - 1}].role", "the last turn is the assistant's; answers are not prefilled here"
        )
    return turns


def _read_turn(where: str, value: object) -> Message:
    fields = read_fields(where, value)
    for name in fields:
        if name not in ("role", "content"):
            raise unknown(f"{where}.{name}")
    for name in ("role", "content"):
        if name not in fields:
            raise InvalidParameter(f"{where}.{name}", f"{where}.{name} is missing", "missing_required_parameter")
    role = read_text(f"{where}.role", fields["role"])
    if role not in _ROLES:
        raise InvalidParameter(f"{where}.role", f"role is {role[:80]!r}, allowed are {sorted(_ROLES)}")
    return Message(role, _read_blocks(f"{where}.content", fields["content"]))


def _read_blocks(where: str, value: object) -> str:
    return read_content(where, value, neutral=_BLOCK_NEUTRAL)


_RENAMED = {
    "temperature": "temperature_milli",
    "top_p": "top_p_milli",
    "stop_sequences": "stop",
    "provider": "preferences",
}
_READERS: Mapping[str, Reader] = {
    "deaios": read_routing,
    "max_tokens": integers(1, MAX_TOKENS_LIMIT),
    "messages": _read_turns,
    "model": read_model,
    "provider": read_preferences,
    "stop_sequences": read_stop,
    "stream": read_flag,
    "system": _read_blocks,
    "temperature": thousandths(0, TEMPERATURE_MILLI_MAX),
    "top_k": integers(TOP_K_OFF, TOP_K_MAX),
    "top_p": thousandths(1, TOP_P_OFF),
}
