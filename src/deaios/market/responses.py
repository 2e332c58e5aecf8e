"""A body of the responses API, read strictly.

Invariant: a body is understood completely or refused with the name of the parameter. `instructions` become the first
turn of this answer only; a conversation that `previous_response_id` continues keeps turns, not instructions, as in the
OpenAI API. Items that a response gave come back as they were: their ids and states are read and mean nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
    read_text,
    refuse_unless_neutral,
    thousandths,
    unknown,
    wrong_type,
)
from deaios.market.preferences import read_cache_key, read_preferences
from deaios.market.question import SEED_BITS, TOP_K_MAX, Message, Question
from deaios.primitives.encoding import Json

TURNS_MAX = 1024
METADATA_MAX = 16
METADATA_NAME_CHARS_MAX = 64
METADATA_VALUE_CHARS_MAX = 512
ID_CHARS_MAX = 80
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_KINDS = ("input_text", "output_text")
_PART_NEUTRAL = ("annotations", "logprobs")

_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prompt": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning": ({}, {"effort": "none"}),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
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
    """

    question: Question
    turns: tuple[Message, ...]
    instructions: str | None = None
    previous: str | None = None
    metadata: Mapping[str, str] | None = None
    store: bool = True

    def continue_from(self, history: tuple[Message, ...]) -> Question:
        """The question with the turns before it."""
        first = () if self.instructions is None else (Message("system", self.instructions),)
        return replace(self.question, messages=(*first, *history, *self.turns))


def read_response_body(body: bytes) -> ResponseBody:
    """Read a body of the responses API.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    found = read_parameters(body, _READERS, _NEUTRAL, ("model", "input"))
    turns, instructions = found.pop("input"), found.pop("instructions", None)
    previous, metadata, store = (found.pop(name, None) for name in ("previous_response_id", "metadata", "store"))
    routing, _ = found.pop("deaios", {}), found.pop("stream_options", None)
    assert isinstance(turns, tuple)
    assert isinstance(routing, dict)
    fields = {_RENAMED.get(name, name): value for name, value in found.items()} | routing
    question = Question(prompt_name="input", limit_name="max_output_tokens", **fields)  # type: ignore[arg-type] # each reader returns its field's type
    return ResponseBody(
        question=question,
        turns=turns,
        instructions=instructions,  # type: ignore[arg-type] # the same
        previous=previous,  # type: ignore[arg-type] # the same
        metadata=metadata,  # type: ignore[arg-type] # the same
        store=store is not False,
    )


def _read_input(param: str, value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", read_text(param, value)),)
    if not isinstance(value, list):
        raise wrong_type(param, "a string or an array", value)
    if not 0 < len(value) <= TURNS_MAX:
        raise InvalidParameter(param, f"{param} has {len(value)} entries, allowed are 1 to {TURNS_MAX}")
    return tuple(_read_item(f"{param}[{index}]", item) for index, item in enumerate(value))


def _read_item(where: str, value: object) -> Message:
    fields = read_fields(where, value)
    if fields.get("type", "message") != "message":
        raise InvalidParameter(f"{where}.type", "only items of type 'message' are supported", "unsupported_parameter")
    for name, item in fields.items():
        if name in ("id", "status"):
            read_text(f"{where}.{name}", item)
        elif name == "phase":
            refuse_unless_neutral(f"{where}.{name}", item, ("final_answer",))
        elif name not in ("role", "content", "type"):
            raise unknown(f"{where}.{name}")
    for name in ("role", "content"):
        if name not in fields:
            raise InvalidParameter(f"{where}.{name}", f"{where}.{name} is missing", "missing_required_parameter")
    role = _ROLES.get(read_text(f"{where}.role", fields["role"]))
    if role is None:
        raise InvalidParameter(f"{where}.role", f"role is not one of {sorted(_ROLES)}")
    return Message(role, read_content(f"{where}.content", fields["content"], _KINDS, _PART_NEUTRAL))


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
    "previous_response_id": _read_previous,
    "prompt_cache_key": read_cache_key,
    "provider": read_preferences,
    "seed": integers(-(1 << SEED_BITS - 1), (1 << SEED_BITS - 1) - 1),
    "store": read_flag,
    "stream": read_flag,
    "stream_options": _read_options,
    "temperature": thousandths(0, TEMPERATURE_MILLI_MAX),
    "top_k": integers(TOP_K_OFF, TOP_K_MAX),
    "top_p": thousandths(1, TOP_P_OFF),
}
