"""A body of the responses API, read strictly.

Invariant: a body is understood completely or refused with the name of the parameter. `instructions` become the first
turn of this answer only; a conversation that `previous_response_id` continues keeps turns, not instructions or tools,
as in the OpenAI API. Items that a response gave come back as they were: their ids and states are read and mean nothing.
Calls that follow one another, and what the assistant said before them, are one turn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deaios.compute.tools import CALLS_MAX, ToolCall
from deaios.ledger.structs import MAX_TOKENS_LIMIT, TEMPERATURE_MILLI_MAX, TOP_K_OFF, TOP_P_OFF
from deaios.market.fields import (
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
    read_text,
    refuse_other_fields,
    refuse_unless_neutral,
    require_fields,
    settle_models,
    thousandths,
    unknown,
    wrong_type,
)
from deaios.market.preferences import read_cache_key, read_preferences
from deaios.market.question import SEED_BITS, TOP_K_MAX, Message, Question
from deaios.market.tools import (
    RESPONSES,
    combine,
    read_arguments,
    read_call_id,
    read_name,
    read_response_choice,
    read_response_format,
    read_response_tools,
    validate_exchange,
)
from deaios.primitives.encoding import Json

TURNS_MAX = 1024
METADATA_MAX = 16
METADATA_NAME_CHARS_MAX = 64
METADATA_VALUE_CHARS_MAX = 512
ID_CHARS_MAX = 80
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_KINDS = ("input_text", "output_text")
_PART_NEUTRAL = ("annotations", "logprobs")
_CALL_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "async": (False,),
    "caller": ({"type": "direct"},),
    "namespace": (),
}

_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning": ({}, {"effort": "none"}),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "user": (),
}


@dataclass(frozen=True, slots=True)
class ResponseBody:
    """What a body asks for, and what is kept of it.

    Attributes:
        question: without the turns of the response that it continues.
        turns: of the body, without the instructions.
        instructions: for this answer.
        previous: id of the response that it continues.
        metadata: the user's own words, kept and given back.
        store: whether the response can be had again.
        shown: what the response repeats of tools, the choice among them and the form of its text, as the body says it.
    """

    question: Question
    turns: tuple[Message, ...]
    instructions: str | None = None
    previous: str | None = None
    metadata: Mapping[str, str] | None = None
    store: bool = True
    shown: Mapping[str, Json] = field(default_factory=dict)

    def continue_from(self, history: tuple[Message, ...]) -> Question:
        """The question with the turns before it.

        Raises:
            InvalidParameter: a call has no result, or a result no call.
        """
        first = () if self.instructions is None else (Message("system", self.instructions),)
        turns = (*history, *self.turns)
        validate_exchange(turns, ["input"] * len(turns), "call_id")
        return replace(self.question, messages=(*first, *turns))


def read_response_body(body: bytes) -> ResponseBody:
    """Read a body of the responses API.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    found = settle_models(read_parameters(body, _READERS, _NEUTRAL, ("input",)))
    turns, instructions = found.pop("input"), found.pop("instructions", None)
    previous, metadata, store = (found.pop(name, None) for name in ("previous_response_id", "metadata", "store"))
    routing, _ = found.pop("deaios", {}), found.pop("stream_options", None)
    tools, pick, form = (found.pop(name, _Shown(None, None)) for name in ("tools", "tool_choice", "text"))
    parallel = found.pop("parallel_tool_calls", True) is not False
    assert isinstance(turns, tuple)
    assert isinstance(routing, dict)
    assert isinstance(tools, _Shown)
    assert isinstance(pick, _Shown)
    assert isinstance(form, _Shown)
    fields = {_RENAMED.get(name, name): value for name, value in found.items()} | routing
    offered = tools.meant or ()
    question = Question(
        prompt_name="input",
        limit_name="max_output_tokens",
        tools=offered,
        constraint=combine(RESPONSES, offered, pick.meant, parallel=parallel, form=form.meant),
        **fields,  # type: ignore[arg-type] # each reader returns its field's type
    )
    shown: dict[str, Json] = {
        "tools": tools.shown or [],
        "tool_choice": pick.shown or "auto",
        "parallel_tool_calls": parallel,
    }
    if form.shown is not None:
        shown["text"] = {"format": form.shown}
    return ResponseBody(
        question=question,
        turns=turns,
        instructions=instructions,  # type: ignore[arg-type] # the same
        previous=previous,  # type: ignore[arg-type] # the same
        metadata=metadata,  # type: ignore[arg-type] # the same
        store=store is not False,
        shown=shown,
    )


def _read_input(param: str, value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", read_text(param, value)),)
    if not isinstance(value, list):
        raise wrong_type(param, "a string or an array", value)
    if not 0 < len(value) <= TURNS_MAX:
        raise InvalidParameter(param, f"{param} has {len(value)} entries, allowed are 1 to {TURNS_MAX}")
    turns: list[Message] = []
    for index, item in enumerate(value):
        turn = _read_item(f"{param}[{index}]", item)
        if turn.tool_calls and turns and turns[-1].role == "assistant":
            before = turns.pop()
            if len(before.tool_calls) == CALLS_MAX:
                raise InvalidParameter(param, f"{param} has more than {CALLS_MAX} calls in one turn")
            turn = replace(before, tool_calls=(*before.tool_calls, *turn.tool_calls))
        turns.append(turn)
    return tuple(turns)


def _read_item(where: str, value: object) -> Message:
    fields = read_fields(where, value)
    for name in ("id", "status"):
        if fields.get(name) is not None:
            read_text(f"{where}.{name}", fields[name])
    kind = fields.get("type", "message")
    if kind == "function_call":
        return _read_call(where, fields)
    if kind == "function_call_output":
        return _read_output(where, fields)
    if kind != "message":
        raise InvalidParameter(
            f"{where}.type",
            "only items of type 'message', 'function_call' and 'function_call_output' are supported",
            "unsupported_parameter",
        )
    refuse_other_fields(where, fields, ("id", "status", "role", "content", "type"), {"phase": ("final_answer",)})
    require_fields(where, fields, "role", "content")
    role = _ROLES.get(read_text(f"{where}.role", fields["role"]))
    if role is None:
        raise InvalidParameter(f"{where}.role", f"role is not one of {sorted(_ROLES)}")
    return Message(role, read_content(f"{where}.content", fields["content"], _KINDS, _PART_NEUTRAL))


def _read_call(where: str, fields: Mapping[str, object]) -> Message:
    """A call that an earlier answer made."""
    refuse_other_fields(where, fields, ("id", "status", "type", "call_id", "name", "arguments"), _CALL_NEUTRAL)
    require_fields(where, fields, "call_id", "name", "arguments")
    call = ToolCall(
        read_call_id(f"{where}.call_id", fields["call_id"]),
        read_name(f"{where}.name", fields["name"]),
        read_arguments(f"{where}.arguments", fields["arguments"]),
    )
    return Message("assistant", "", (call,))


def _read_output(where: str, fields: Mapping[str, object]) -> Message:
    """What a call gave."""
    refuse_other_fields(where, fields, ("id", "status", "type", "call_id", "name", "output"), _CALL_NEUTRAL)
    require_fields(where, fields, "call_id", "output")
    if fields.get("name") is not None:
        read_name(f"{where}.name", fields["name"])
    content = read_content(f"{where}.output", fields["output"], _KINDS, _PART_NEUTRAL)
    return Message("tool", content, (), read_call_id(f"{where}.call_id", fields["call_id"]))


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a parameter means, and how the body says it, which the response repeats."""

    meant: Any  # its reader's own type
    shown: Any  # parsed JSON


def _read_shown_tools(param: str, value: object) -> _Shown:
    return _Shown(read_response_tools(param, value), value)


def _read_shown_choice(param: str, value: object) -> _Shown:
    return _Shown(read_response_choice(param, value), value)


def _read_text_options(param: str, value: object) -> _Shown:
    fields = read_fields(param, value)
    refuse_other_fields(param, fields, ("format",), {"verbosity": ("medium",)})
    if fields.get("format") is None:
        return _Shown(None, None)
    return _Shown(read_response_format(f"{param}.format", fields["format"]), fields["format"])


def read_metadata(param: str, value: object) -> dict[str, str]:
    """Up to 16 short names with short texts, as in the OpenAI API."""
    fields = read_fields(param, value)
    if len(fields) > METADATA_MAX:
        raise InvalidParameter(param, f"{param} has {len(fields)} entries, at most {METADATA_MAX} are allowed")
    for name, item in fields.items():
        text = read_text(f"{param}.{name[:64]}", item)
        if len(name) > METADATA_NAME_CHARS_MAX or len(text) > METADATA_VALUE_CHARS_MAX:
            raise InvalidParameter(
                param,
                f"{param} has a name of {len(name)} and a text of {len(text)} characters, allowed are "
                f"{METADATA_NAME_CHARS_MAX} and {METADATA_VALUE_CHARS_MAX}",
            )
    return fields  # type: ignore[return-value] # every value was read as text


def _read_previous(param: str, value: object) -> str:
    text = read_text(param, value)
    if not 0 < len(text) <= ID_CHARS_MAX:
        raise InvalidParameter(param, f"{param} has {len(text)} characters, allowed are 1 to {ID_CHARS_MAX}")
    return text


def _read_options(param: str, value: object) -> None:
    for name, item in read_fields(param, value).items():
        if name != "include_obfuscation":
            raise unknown(f"{param}.{name}")
        refuse_unless_neutral(f"{param}.{name}", item, (False,))


_RENAMED = {
    "temperature": "temperature_milli",
    "top_p": "top_p_milli",
    "max_output_tokens": "max_tokens",
    "provider": "preferences",
    "prompt_cache_key": "cache_key",
}
_READERS: Mapping[str, Reader] = {
    "deaios": read_routing,
    "input": _read_input,
    "instructions": read_text,
    "max_output_tokens": integers(1, MAX_TOKENS_LIMIT),
    "metadata": read_metadata,
    "model": read_model,
    "models": read_models,
    "route": read_route,
    "parallel_tool_calls": read_flag,
    "previous_response_id": _read_previous,
    "prompt_cache_key": read_cache_key,
    "provider": read_preferences,
    "seed": integers(-(1 << SEED_BITS - 1), (1 << SEED_BITS - 1) - 1),
    "store": read_flag,
    "stream": read_flag,
    "stream_options": _read_options,
    "temperature": thousandths(0, TEMPERATURE_MILLI_MAX),
    "text": _read_text_options,
    "tool_choice": _read_shown_choice,
    "tools": _read_shown_tools,
    "top_k": integers(TOP_K_OFF, TOP_K_MAX),
    "top_p": thousandths(1, TOP_P_OFF),
}
