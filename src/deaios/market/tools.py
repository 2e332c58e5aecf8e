"""Tools, the choice among them and the form of an answer, as the doors' bodies say them.

Pure. Invariant: what is read is enforced by the grammar that the answer is sampled under, or refused by name; schemas
are enforced whether a body calls them strict or not. It does not know how bodies spell turns: that is each door's.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deaios.compute.constraint import Choice, Constraint, ToolCalls, json_object, json_schema, tool_calls
from deaios.compute.schema import InvalidConstraint, encode_json_text
from deaios.compute.tools import CALL_ID_PATTERN, TOOL_NAME_PATTERN, TOOLS_MAX, Tool
from deaios.market.fields import (
    InvalidParameter,
    Reader,
    read_fields,
    read_flag,
    read_text,
    refuse_other_fields,
    require_fields,
    wrong_type,
)
from deaios.market.question import Message, Question
from deaios.primitives.encoding import Json

NO_PARAMETERS: Mapping[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
"""A function whose body leaves `parameters` out takes none, as in the OpenAI API."""
_TOOL_PATH = re.compile(r"tools\[(\d+)\]\.(\w+)(.*)", re.DOTALL)
_NOTHING: Mapping[str, tuple[Json, ...]] = {}
_ALLOWED_MODES = ("auto", "required")


@dataclass(frozen=True, slots=True)
class Pick:
    """What a body says of which tools may or must be called.

    Attributes:
        choice: a mode, or the name of the one tool.
        allowed: names that may be called; None for all.
        parallel: whether an answer may hold several calls.
    """

    choice: Choice | str = Choice.AUTO
    allowed: tuple[str, ...] | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a door's bodies call what errors name.

    Attributes:
        within: what stands between a tool and its fields.
        schema: the field of its arguments' schema.
    """

    within: str
    schema: str


CHAT = Spelling("function.", "parameters")
RESPONSES = Spelling("", "parameters")
MESSAGES = Spelling("", "input_schema")


def read_name(where: str, value: object) -> str:
    """The name of a tool or a schema."""
    name = read_text(where, value)
    if not TOOL_NAME_PATTERN.fullmatch(name):
        raise InvalidParameter(where, f"{where} is {name[:80]!r}, it must match ^{TOOL_NAME_PATTERN.pattern}$")
    return name


def _expect_type(where: str, fields: Mapping[str, object], kind: str, default: str | None = None) -> None:
    said = fields.get("type", default)
    if said != kind:
        shown = read_text(f"{where}.type", said) if said is not None else "missing"
        raise InvalidParameter(
            f"{where}.type", f"{where}.type is {shown[:80]!r}, only {kind!r} is supported", "unsupported_parameter"
        )


_FUNCTION = ("name", "description", "parameters", "strict")
_RESPONSE_TOOL_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "allowed_callers": (["direct"],),
    "async": (False,),
    "defer_loading": (False,),
    "output_schema": (),
}
_MESSAGE_TOOL_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "allowed_callers": (["direct"],),
    "cache_control": (),
    "defer_loading": (False,),
    "eager_input_streaming": (False,),
    "input_examples": ([],),
}


def _read_chat_tool(where: str, value: object) -> Tool:
    fields = read_fields(where, value)
    _expect_type(where, fields, "function")
    refuse_other_fields(where, fields, ("type", "function"), _NOTHING)
    require_fields(where, fields, "function")
    function = read_fields(f"{where}.function", fields["function"])
    refuse_other_fields(f"{where}.function", function, _FUNCTION, _NOTHING)
    return _read_function(f"{where}.function", function, "parameters")


def _read_response_tool(where: str, value: object) -> Tool:
    fields = read_fields(where, value)
    _expect_type(where, fields, "function")
    refuse_other_fields(where, fields, ("type", *_FUNCTION), _RESPONSE_TOOL_NEUTRAL)
    return _read_function(where, fields, "parameters")


def _read_message_tool(where: str, value: object) -> Tool:
    fields = read_fields(where, value)
    if fields.get("type") is not None:
        _expect_type(where, fields, "custom")
    refuse_other_fields(where, fields, ("type", "name", "description", "input_schema", "strict"), _MESSAGE_TOOL_NEUTRAL)
    require_fields(where, fields, "input_schema")
    return _read_function(where, fields, "input_schema")


def _read_function(where: str, fields: Mapping[str, object], schema_name: str) -> Tool:
    require_fields(where, fields, "name")
    name = read_name(f"{where}.name", fields["name"])
    description, strict, schema = (fields.get(key) for key in ("description", "strict", schema_name))
    place = f"{where}.{schema_name}"
    parameters = NO_PARAMETERS if schema is None else read_fields(place, schema)
    if parameters.get("type", "object") != "object":
        raise InvalidParameter(place, f"{place} is not a schema of type 'object'")
    if strict is not None:
        read_flag(f"{where}.strict", strict)
    try:
        text = encode_json_text(parameters)
    except InvalidConstraint as error:
        raise InvalidParameter(place, f"{place}: {error}") from error
    return Tool(name, "" if description is None else read_text(f"{where}.description", description), text)


def _tools_of(read_one: Callable[[str, object], Tool]) -> Reader:
    def read(param: str, value: object) -> tuple[Tool, ...]:
        if not isinstance(value, list):
            raise wrong_type(param, "an array", value)
        if len(value) > TOOLS_MAX:
            raise InvalidParameter(param, f"{param} has {len(value)} entries, at most {TOOLS_MAX} are allowed")
        tools = tuple(read_one(f"{param}[{index}]", item) for index, item in enumerate(value))
        seen: set[str] = set()
        for index, tool in enumerate(tools):
            if tool.name in seen:
                raise InvalidParameter(f"{param}[{index}]", f"two tools are called {tool.name!r}")
            seen.add(tool.name)
        return tools

    return read


read_chat_tools = _tools_of(_read_chat_tool)
read_response_tools = _tools_of(_read_response_tool)
read_message_tools = _tools_of(_read_message_tool)


def read_chat_choice(param: str, value: object) -> Pick:
    """`tool_choice` of chat completions: a mode, one function, or the functions that are allowed."""
    if isinstance(value, str):
        return _read_mode(param, value)
    fields = read_fields(param, value)
    if fields.get("type") == "allowed_tools":
        refuse_other_fields(param, fields, ("type", "allowed_tools"), _NOTHING)
        require_fields(param, fields, "allowed_tools")
        place = f"{param}.allowed_tools"
        return _read_allowed(place, read_fields(place, fields["allowed_tools"]), (), is_nested=True)
    _expect_type(param, fields, "function")
    refuse_other_fields(param, fields, ("type", "function"), _NOTHING)
    return Pick(_read_function_name(param, fields, is_nested=True))


def read_response_choice(param: str, value: object) -> Pick:
    """The same of the responses API, which nests less."""
    if isinstance(value, str):
        return _read_mode(param, value)
    fields = read_fields(param, value)
    if fields.get("type") == "allowed_tools":
        return _read_allowed(param, fields, ("type",), is_nested=False)
    _expect_type(param, fields, "function")
    refuse_other_fields(param, fields, ("type", "name"), _NOTHING)
    return Pick(_read_function_name(param, fields, is_nested=False))


def read_message_choice(param: str, value: object) -> Pick:
    """`tool_choice` of the messages API, which says with it whether several calls are allowed."""
    fields = read_fields(param, value)
    kind = read_text(f"{param}.type", fields.get("type"))
    known = {"auto": Choice.AUTO, "any": Choice.REQUIRED, "none": Choice.NONE, "tool": None}
    if kind not in known:
        raise InvalidParameter(f"{param}.type", f"{param}.type is {kind[:80]!r}, allowed are {sorted(known)}")
    names = {"tool": ("type", "name", "disable_parallel_tool_use"), "none": ("type",)}
    refuse_other_fields(param, fields, names.get(kind, ("type", "disable_parallel_tool_use")), _NOTHING)
    single = fields.get("disable_parallel_tool_use")
    parallel = single is None or not read_flag(f"{param}.disable_parallel_tool_use", single)
    mode = known[kind]
    if mode is None:
        require_fields(param, fields, "name")
        return Pick(read_name(f"{param}.name", fields["name"]), None, parallel)
    return Pick(mode, None, parallel)


def _read_mode(param: str, value: str) -> Pick:
    if value not in set(Choice):
        raise InvalidParameter(param, f"{param} is {value[:80]!r}, allowed are {', '.join(Choice)} and objects")
    return Pick(Choice(value))


def _read_allowed(where: str, fields: Mapping[str, object], known: tuple[str, ...], *, is_nested: bool) -> Pick:
    refuse_other_fields(where, fields, (*known, "mode", "tools"), _NOTHING)
    require_fields(where, fields, "mode", "tools")
    mode = read_text(f"{where}.mode", fields["mode"])
    if mode not in _ALLOWED_MODES:
        raise InvalidParameter(
            f"{where}.mode", f"{where}.mode is {mode[:80]!r}, allowed are {', '.join(_ALLOWED_MODES)}"
        )
    items = fields["tools"]
    if not isinstance(items, list):
        raise wrong_type(f"{where}.tools", "an array", items)
    if not 0 < len(items) <= TOOLS_MAX:
        raise InvalidParameter(
            f"{where}.tools", f"{where}.tools has {len(items)} entries, allowed are 1 to {TOOLS_MAX}"
        )
    names = []
    for index, item in enumerate(items):
        place = f"{where}.tools[{index}]"
        entry = read_fields(place, item)
        _expect_type(place, entry, "function")
        refuse_other_fields(place, entry, ("type", "function" if is_nested else "name"), _NOTHING)
        names.append(_read_function_name(place, entry, is_nested=is_nested))
    return Pick(Choice(mode), tuple(names))


def _read_function_name(where: str, fields: Mapping[str, object], *, is_nested: bool) -> str:
    if is_nested:
        require_fields(where, fields, "function")
        where = f"{where}.function"
        fields = read_fields(where, fields["function"])
        refuse_other_fields(where, fields, ("name",), _NOTHING)
    require_fields(where, fields, "name")
    return read_name(f"{where}.name", fields["name"])


def read_chat_format(param: str, value: object) -> Constraint | None:
    """`response_format` of chat completions."""
    fields = read_fields(param, value)
    if fields.get("type") != "json_schema":
        return _read_plain_format(param, fields)
    refuse_other_fields(param, fields, ("type", "json_schema"), _NOTHING)
    require_fields(param, fields, "json_schema")
    place = f"{param}.json_schema"
    return _read_schema(place, read_fields(place, fields["json_schema"]), ("name", "description", "schema", "strict"))


def read_response_format(param: str, value: object) -> Constraint | None:
    """`text.format` of the responses API, which nests less."""
    fields = read_fields(param, value)
    if fields.get("type") != "json_schema":
        return _read_plain_format(param, fields)
    return _read_schema(param, fields, ("type", "name", "description", "schema", "strict"))


def read_message_format(param: str, value: object) -> Constraint | None:
    """`output_config.format` of the messages API: a schema without a name."""
    fields = read_fields(param, value)
    _expect_type(param, fields, "json_schema")
    return _read_schema(param, fields, ("type", "schema"))


def _read_plain_format(where: str, fields: Mapping[str, object]) -> Constraint | None:
    refuse_other_fields(where, fields, ("type",), _NOTHING)
    kind = read_text(f"{where}.type", fields.get("type"))
    if kind == "text":
        return None
    if kind == "json_object":
        return json_object()
    raise InvalidParameter(
        f"{where}.type", f"{where}.type is {kind[:80]!r}, allowed are 'text', 'json_object' and 'json_schema'"
    )


def _read_schema(where: str, fields: Mapping[str, object], known: tuple[str, ...]) -> Constraint:
    refuse_other_fields(where, fields, known, _NOTHING)
    require_fields(where, fields, *(name for name in ("name", "schema") if name in known))
    if "name" in known:
        read_name(f"{where}.name", fields["name"])
    for name, read in (("description", read_text), ("strict", read_flag)):
        if fields.get(name) is not None:
            read(f"{where}.{name}", fields[name])
    place = f"{where}.schema"
    try:
        return json_schema(read_fields(place, fields["schema"]), place)
    except InvalidConstraint as error:
        raise InvalidParameter(error.path or place, str(error)) from error


def combine(
    spelling: Spelling, tools: Sequence[Tool], pick: Pick | None, *, parallel: bool, form: Constraint | None
) -> Constraint | None:
    """What an answer is held to.

    Args:
        spelling: the door's.
        tools: of the body.
        pick: which of them; None where the body leaves it open.
        parallel: may an answer hold several calls, where the choice does not say it?
        form: of an answer that calls nothing.

    Raises:
        InvalidParameter: the choice names no tool of the body, or a schema is not understood.
    """
    if not tools:
        if pick is not None and (pick.allowed is not None or pick.choice not in (Choice.NONE, Choice.AUTO)):
            raise InvalidParameter("tool_choice", "tool_choice wants a call, but there are no tools")
        return form
    pick = pick or Pick()
    names = {tool.name for tool in tools}
    named = () if isinstance(pick.choice, Choice) else (pick.choice,)
    for name in (*named, *(pick.allowed or ())):
        if name not in names:
            raise InvalidParameter("tool_choice", f"tool_choice names {name!r}, which is none of the tools")
    places = [place for place, tool in enumerate(tools) if pick.allowed is None or tool.name in pick.allowed]
    try:
        constraint = tool_calls([tools[place] for place in places], pick.choice, parallel and pick.parallel, form)
        if constraint is not None:
            constraint.encode()
    except InvalidConstraint as error:
        raise _name_fault(spelling, places, error) from error
    return constraint


def _name_fault(spelling: Spelling, places: Sequence[int], error: InvalidConstraint) -> InvalidParameter:
    """The error in the words of the body: which tool, and where in it."""
    found = _TOOL_PATH.fullmatch(error.path)
    if found is None:
        return InvalidParameter("tools", str(error))
    name = spelling.schema if found[2] == "parameters" else found[2]
    param = f"tools[{places[int(found[1])]}].{spelling.within}{name}{found[3]}"
    return InvalidParameter(param, param + str(error).removeprefix(error.path))


def may_call(question: Question) -> bool:
    """Is an answer to it to be read for calls?"""
    return question.constraint is not None and isinstance(question.constraint.form, ToolCalls)


def read_call_id(where: str, value: object) -> str:
    """What names a call in turns that come back."""
    text = read_text(where, value)
    if not CALL_ID_PATTERN.fullmatch(text):
        raise InvalidParameter(where, f"{where} is {text[:80]!r}, it must match ^{CALL_ID_PATTERN.pattern}$")
    return text


def read_arguments(where: str, value: object) -> str:
    """Arguments of a call that comes back: the text of a JSON object."""
    text = read_text(where, value)
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidParameter(where, f"{where} is not the text of a JSON object: {text[:80]!r}")
    return text


def validate_exchange(turns: Sequence[Message], wheres: Sequence[str], id_field: str) -> None:
    """Hold a conversation to its order: each call has its result in the turns right after it, and nothing else has one.

    Args:
        turns: the conversation.
        wheres: where each stands in the body.
        id_field: what the body calls the name of a call in a result.

    Raises:
        InvalidParameter: where it is broken.
    """
    waiting: dict[str, None] = {}
    for turn, where in zip(turns, wheres, strict=True):
        if turn.role == "tool":
            assert turn.tool_call_id is not None
            if turn.tool_call_id not in waiting:
                raise InvalidParameter(
                    f"{where}.{id_field}",
                    f"{where}.{id_field} is {turn.tool_call_id!r}, which names no call of the turn before that waits "
                    f"for a result; waiting are {list(waiting)}",
                )
            del waiting[turn.tool_call_id]
            continue
        if waiting:
            raise InvalidParameter(where, f"{where}: the calls {list(waiting)} before it have no result")
        for call in turn.tool_calls:
            if call.id in waiting:
                raise InvalidParameter(where, f"{where}: two calls are called {call.id!r}")
            waiting[call.id] = None
    if waiting:
        raise InvalidParameter(wheres[-1], f"the calls {list(waiting)} have no result")
