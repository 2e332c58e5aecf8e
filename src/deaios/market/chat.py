"""A chat completion body, read strictly: what exactly a set of bytes asks for.

The gateway that buys and the verifier that checks read the same bytes with this module, so both derive the same
messages, tools, parameters and context. Invariant: a body is either understood completely or refused with the name
of the parameter. It knows no tokenizer, no template and no price.
"""

from collections.abc import Mapping

from deaios.compute.logprobs import LOGPROBS_MAX
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
    read_stop,
    read_stream_options,
    read_text,
    refuse_other_fields,
    require_fields,
    settle_models,
    thousandths,
    wrong_type,
)
from deaios.market.preferences import read_cache_key, read_preferences
from deaios.market.question import CHOICES_MAX, SEED_BITS, TOP_K_MAX, Message, Question
from deaios.market.tools import (
    CHAT,
    combine,
    read_arguments,
    read_call_id,
    read_chat_choice,
    read_chat_format,
    read_chat_tools,
    read_name,
    validate_exchange,
)
from deaios.primitives.encoding import Json

MESSAGES_MAX = 1024

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_OWN_FIELDS = {"assistant": ("tool_calls", "parsed"), "tool": ("tool_call_id",)}

_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "user": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters of the OpenAI API that are not offered, with the values that mean the same as leaving them out."""

_MESSAGE_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
}
"""The same for fields of a message: clients send back the assistant message they were given. What SDKs put beside its
texts when they parse them (`parsed`, `parsed_arguments`, a call's `index`) repeats them and says nothing more."""


def read_chat_body(body: bytes) -> Question:
    """Read a chat completion body.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    return _combine(settle_models(read_parameters(body, _READERS, _NEUTRAL, ("messages",))))


def _combine(found: Mapping[str, object]) -> Question:
    """Resolve parameters that bear on each other."""
    fields = {name: found[name] for name in found.keys() & _PLAIN_FIELDS}
    old, new = found.get("max_tokens"), found.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise InvalidParameter("max_tokens", f"max_tokens is {old} but max_completion_tokens is {new}")
    fields["max_tokens"] = new if old is None else old
    if "stream_options" in found and not found.get("stream"):
        raise InvalidParameter("stream_options", "stream_options is only allowed when stream is true")
    fields["include_usage"] = found.get("stream_options", False)
    if not found.get("logprobs"):
        if found.get("top_logprobs"):
            raise InvalidParameter("top_logprobs", "top_logprobs is only allowed when logprobs is true")
    else:
        fields["top_logprobs"] = found.get("top_logprobs", 0)
    renamed = {
        "temperature": "temperature_milli",
        "top_p": "top_p_milli",
        "provider": "preferences",
        "prompt_cache_key": "cache_key",
    }
    fields |= {renamed[name]: found[name] for name in renamed if name in found}
    fields["constraint"] = combine(
        CHAT,
        found.get("tools", ()),  # type: ignore[arg-type] # each reader returns its field's type
        found.get("tool_choice"),  # type: ignore[arg-type] # the same
        parallel=found.get("parallel_tool_calls") is not False,
        form=found.get("response_format"),  # type: ignore[arg-type] # the same
    )
    routing = found.get("deaios", {})
    assert isinstance(routing, dict)
    return Question(**fields, **routing)  # type: ignore[arg-type] # each reader returns its field's type


def _read_messages(param: str, value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise wrong_type(param, "an array", value)
    if not 0 < len(value) <= MESSAGES_MAX:
        raise InvalidParameter(param, f"{param} has {len(value)} entries, allowed are 1 to {MESSAGES_MAX}")
    messages = tuple(_read_message(f"{param}[{index}]", item) for index, item in enumerate(value))
    validate_exchange(messages, [f"{param}[{index}]" for index in range(len(messages))], "tool_call_id")
    return messages


def _read_message(where: str, value: object) -> Message:
    fields = read_fields(where, value)
    require_fields(where, fields, "role")
    written = read_text(f"{where}.role", fields["role"])
    role = _ROLES.get(written)
    if role is None:
        raise InvalidParameter(f"{where}.role", f"role is {written[:80]!r}, allowed are {sorted(_ROLES)}")
    refuse_other_fields(where, fields, ("role", "content", *_OWN_FIELDS.get(role, ())), _MESSAGE_NEUTRAL)
    calls = _read_calls(f"{where}.tool_calls", fields.get("tool_calls"))
    if calls and fields.get("content") is None:
        return Message(role, "", calls)
    if "content" not in fields:
        require_fields(where, fields, "content")
    answered: str | None = None
    if role == "tool":
        require_fields(where, fields, "tool_call_id")
        answered = read_call_id(f"{where}.tool_call_id", fields["tool_call_id"])
    return Message(role, read_content(f"{where}.content", fields["content"]), calls, answered)


def _read_calls(where: str, value: object) -> tuple[ToolCall, ...]:
    """Calls that come back in the assistant's message."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong_type(where, "an array", value)
    if len(value) > CALLS_MAX:
        raise InvalidParameter(where, f"{where} has {len(value)} entries, at most {CALLS_MAX} are allowed")
    return tuple(_read_call(f"{where}[{index}]", item) for index, item in enumerate(value))


def _read_call(where: str, value: object) -> ToolCall:
    fields = read_fields(where, value)
    refuse_other_fields(where, fields, ("id", "type", "function", "index"), {})
    require_fields(where, fields, "id", "function")
    if fields.get("type", "function") != "function":
        raise InvalidParameter(f"{where}.type", "only calls of type 'function' are supported", "unsupported_parameter")
    place = f"{where}.function"
    function = read_fields(place, fields["function"])
    refuse_other_fields(place, function, ("name", "arguments", "parsed_arguments"), {})
    require_fields(place, function, "name", "arguments")
    return ToolCall(
        read_call_id(f"{where}.id", fields["id"]),
        read_name(f"{place}.name", function["name"]),
        read_arguments(f"{place}.arguments", function["arguments"]),
    )


_READERS: Mapping[str, Reader] = {
    "deaios": read_routing,
    "logprobs": read_flag,
    "max_completion_tokens": integers(1, MAX_TOKENS_LIMIT),
    "max_tokens": integers(1, MAX_TOKENS_LIMIT),
    "messages": _read_messages,
    "model": read_model,
    "models": read_models,
    "route": read_route,
    "n": integers(1, CHOICES_MAX),
    "parallel_tool_calls": read_flag,
    "response_format": read_chat_format,
    "prompt_cache_key": read_cache_key,
    "provider": read_preferences,
    "seed": integers(-(1 << SEED_BITS - 1), (1 << SEED_BITS - 1) - 1),
    "stop": read_stop,
    "stream": read_flag,
    "stream_options": read_stream_options,
    "temperature": thousandths(0, TEMPERATURE_MILLI_MAX),
    "tool_choice": read_chat_choice,
    "tools": read_chat_tools,
    "top_k": integers(TOP_K_OFF, TOP_K_MAX),
    "top_logprobs": integers(0, LOGPROBS_MAX),
    "top_p": thousandths(1, TOP_P_OFF),
}
_PLAIN_FIELDS = frozenset({"fallbacks", "messages", "model", "n", "seed", "stop", "stream", "tools", "top_k"})
