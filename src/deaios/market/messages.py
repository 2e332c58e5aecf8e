"""A body of the Anthropic messages API, read strictly.

Invariant: a body is understood completely or refused with the name of the parameter. `system` becomes the first turn;
text blocks are joined by line breaks. Two turns of one role in a row stay two turns; the template decides. Results of
tools stand at the head of a user's turn and become turns of their own; of one with `is_error` the model reads so.
"""

import json
from collections.abc import Mapping

from deaios.compute.constraint import Constraint
from deaios.compute.tools import CALLS_MAX, ToolCall
from deaios.ledger.structs import MAX_TOKENS_LIMIT, TEMPERATURE_MILLI_MAX, TOP_K_OFF, TOP_P_OFF
from deaios.market.fields import (
    PARTS_MAX,
    InvalidParameter,
    Reader,
    integers,
    read_content,
    read_fields,
    read_flag,
    read_model,
    read_models,
    read_parameters,
    read_route,
    read_routing,
    read_stop,
    read_text,
    refuse_other_fields,
    require_fields,
    settle_models,
    thousandths,
    wrong_type,
)
from deaios.market.preferences import read_preferences
from deaios.market.question import TOP_K_MAX, Message, Question
from deaios.market.tools import (
    MESSAGES,
    combine,
    read_call_id,
    read_message_choice,
    read_message_format,
    read_message_tools,
    read_name,
    validate_exchange,
)
from deaios.primitives.encoding import Json

TURNS_MAX = 1024
_ROLES = ("user", "assistant")
_BLOCK_NEUTRAL = ("cache_control", "citations")
_CALL_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "cache_control": (),
    "caller": ({"type": "direct"},),
    "toolset_name": (),
}
ERROR_MARK = "Error: "
"""Before the content of a result with `is_error`."""

_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "cache_control": (),
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "metadata": ({},),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "thinking": ({"type": "disabled"},),
    "user_profile_id": (),
    "workspace_id": (),
}


def read_messages_body(body: bytes) -> Question:
    """Read a body of the messages API.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    return _combine(settle_models(read_parameters(body, _READERS, _NEUTRAL, ("messages", "max_tokens"))))


def read_count_body(body: bytes) -> Question:
    """Read a body that only wants its prompt's tokens counted.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    readers = {
        name: _READERS[name]
        for name in ("messages", "model", "models", "output_config", "route", "system", "tool_choice", "tools")
    }
    return _combine(settle_models(read_parameters(body, readers, _NEUTRAL, ("messages",))))


def _combine(found: dict[str, object]) -> Question:
    system, turns, routing = found.pop("system", ""), found.pop("messages"), found.pop("deaios", {})
    tools, form, pick = found.pop("tools", ()), found.pop("output_config", None), found.pop("tool_choice", None)
    assert isinstance(system, str)
    assert isinstance(turns, tuple)
    assert isinstance(routing, dict)
    fields = {_RENAMED.get(name, name): value for name, value in found.items()} | routing
    messages = (Message("system", system), *turns) if system else turns
    constraint = combine(MESSAGES, tools, pick, parallel=True, form=form)  # type: ignore[arg-type] # each reader returns its field's type
    return Question(messages=messages, tools=tools, constraint=constraint, **fields)  # type: ignore[arg-type] # the same


def _read_turns(param: str, value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise wrong_type(param, "an array", value)
    if not 0 < len(value) <= TURNS_MAX:
        raise InvalidParameter(param, f"{param} has {len(value)} entries, allowed are 1 to {TURNS_MAX}")
    turns: list[Message] = []
    places: list[str] = []
    for index, item in enumerate(value):
        read = _read_turn(f"{param}[{index}]", item)
        turns += read
        places += [f"{param}[{index}]"] * len(read)
    if turns[-1].role == "assistant":
        raise InvalidParameter(
            f"{param}[{len(value) - 1}].role", "the last turn is the assistant's; answers are not prefilled here"
        )
    validate_exchange(turns, places, "content")
    return tuple(turns)


def _read_turn(where: str, value: object) -> list[Message]:
    fields = read_fields(where, value)
    refuse_other_fields(where, fields, ("role", "content"), {})
    require_fields(where, fields, "role", "content")
    role = read_text(f"{where}.role", fields["role"])
    if role not in _ROLES:
        raise InvalidParameter(f"{where}.role", f"role is {role[:80]!r}, allowed are {sorted(_ROLES)}")
    content, place = fields["content"], f"{where}.content"
    if not isinstance(content, list):
        return [Message(role, read_text(place, content))]
    if not 0 < len(content) <= PARTS_MAX:
        raise InvalidParameter(place, f"{place} has {len(content)} parts, allowed are 1 to {PARTS_MAX}")
    kind = "tool_use" if role == "assistant" else "tool_result"
    own = [isinstance(block, dict) and block.get("type") == kind for block in content]
    if sum(own) > CALLS_MAX:
        raise InvalidParameter(
            place, f"{place} has {sum(own)} blocks of type {kind!r}, at most {CALLS_MAX} are allowed"
        )
    # Calls stand at the end of a turn, results at its head; the other blocks are text.
    bound = len(content) - sum(own) if role == "assistant" else sum(own)
    if own != sorted(own, reverse=role == "user"):
        stand = "last" if role == "assistant" else "first"
        raise InvalidParameter(place, f"{place}: blocks of type {kind!r} must come {stand}")
    if role == "assistant":
        text = _read_blocks(place, content[:bound]) if bound else ""
        calls = [_read_call(f"{place}[{bound + at}]", block) for at, block in enumerate(content[bound:])]
        return [Message(role, text, tuple(calls))]
    turns = [_read_result(f"{place}[{at}]", block) for at, block in enumerate(content[:bound])]
    if bound < len(content):
        turns.append(Message(role, _read_blocks(place, content[bound:])))
    return turns


def _read_call(where: str, value: object) -> ToolCall:
    fields = read_fields(where, value)
    refuse_other_fields(where, fields, ("type", "id", "name", "input"), _CALL_NEUTRAL)
    require_fields(where, fields, "id", "name", "input")
    given = read_fields(f"{where}.input", fields["input"])
    text = read_text(f"{where}.input", json.dumps(given, ensure_ascii=False))
    return ToolCall(read_call_id(f"{where}.id", fields["id"]), read_name(f"{where}.name", fields["name"]), text)


def _read_result(where: str, value: object) -> Message:
    fields = read_fields(where, value)
    known = ("type", "tool_use_id", "content", "is_error")
    refuse_other_fields(where, fields, known, {"cache_control": (), "toolset_name": ()})
    require_fields(where, fields, "tool_use_id")
    content, failed = fields.get("content"), fields.get("is_error")
    text = "" if content is None or content == [] else _read_blocks(f"{where}.content", content)
    if failed is not None and read_flag(f"{where}.is_error", failed):
        text = ERROR_MARK + text
    return Message("tool", text, (), read_call_id(f"{where}.tool_use_id", fields["tool_use_id"]))


def _read_output_config(param: str, value: object) -> Constraint | None:
    fields = read_fields(param, value)
    refuse_other_fields(param, fields, ("format",), {"effort": ("high",)})
    return None if fields.get("format") is None else read_message_format(f"{param}.format", fields["format"])


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
    "models": read_models,
    "route": read_route,
    "output_config": _read_output_config,
    "provider": read_preferences,
    "stop_sequences": read_stop,
    "stream": read_flag,
    "system": _read_blocks,
    "temperature": thousandths(0, TEMPERATURE_MILLI_MAX),
    "tool_choice": read_message_choice,
    "tools": read_message_tools,
    "top_k": integers(TOP_K_OFF, TOP_K_MAX),
    "top_p": thousandths(1, TOP_P_OFF),
}
