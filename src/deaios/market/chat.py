"""A chat completion body, read strictly: what exactly a set of bytes asks for.

The gateway that buys and the verifier that checks read the same bytes with this module, so both derive the same
messages, sampling parameters and context. Invariant: a body is either understood completely or refused with the name
of the parameter; nothing in it is ignored, clamped or rounded, save that a float within a millionth of a thousandth
is that thousandth. It knows no tokenizer, no template and no price.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deaios.compute.commitments import Context, encode_context
from deaios.compute.logprobs import LOGPROBS_MAX
from deaios.ledger.structs import (
    MAX_TOKENS_LIMIT,
    STOPS_MAX,
    TEMPERATURE_MILLI_MAX,
    TOP_K_OFF,
    TOP_P_OFF,
    AuditPolicy,
    Level,
    Params,
)
from deaios.primitives.encoding import InvalidEncoding, Json, validate_json_depth
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import Address, parse_address
from deaios.primitives.units import MILLI
from deaios.runtime.errors import InvalidBody

BODY_BYTES_MAX = 1 << 20
"""Some 250,000 tokens of text: more than any context served so far."""
MESSAGES_MAX = 1024
PARTS_MAX = 256
MODEL_CHARS_MAX = 256
STOP_BYTES_MAX = 256
TOP_K_MAX = 1 << 20
"""Above every vocabulary known; a larger value would mean the same as no limit."""
SEED_BITS = 64
TEMPERATURE_MILLI_DEFAULT = 1000
MAX_TOKENS_DEFAULT = 256
MIN_LEVEL_DEFAULT = Level.SEEDED
AUDIT_POLICY_DEFAULT = AuditPolicy.BUYER_ONLY
JSON_DEPTH_MAX = 16
"""Three times what any accepted body needs."""
_MILLI_TOLERANCE = 1e-6

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_AUDIT_POLICIES = {"buyer_only": AuditPolicy.BUYER_ONLY, "open": AuditPolicy.OPEN}

_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
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
    "tool_calls": ([],),
}
"""The same for fields of a message: clients send back the assistant message they were given."""


class InvalidParameter(Invalid):
    """A parameter that is unknown, not offered, of the wrong type or out of range.

    Args:
        param: where in the body, such as `messages[2].content`.
        message: the rule and the value.
        code: machine-readable kind, as in the OpenAI API.
    """

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; the role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatBody:
    """Everything that a body asks for.

    `max_tokens` is None where the body left it open; `top_logprobs` is None where no log probabilities are wanted,
    otherwise the number of alternatives per token. `provider` restricts who may serve.
    """

    model: str
    messages: tuple[Message, ...]
    temperature_milli: int = TEMPERATURE_MILLI_DEFAULT
    top_p_milli: int = TOP_P_OFF
    top_k: int = TOP_K_OFF
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    top_logprobs: int | None = None
    min_level: int = MIN_LEVEL_DEFAULT
    audit_policy: int = AUDIT_POLICY_DEFAULT
    provider: Address | None = None

    def message_objects(self) -> list[dict[str, str]]:
        """The messages as plain objects, the form that templates and the context take."""
        return [{"role": message.role, "content": message.content} for message in self.messages]

    def params(self, context_tokens: int, prompt_tokens: int) -> Params:
        """The sampling parameters that are signed, given the room that the prompt leaves.

        Args:
            context_tokens: the model record's context.
            prompt_tokens: ids of the rendered prompt.

        Raises:
            InvalidParameter: prompt and output do not fit the context.
        """
        room = context_tokens - prompt_tokens
        wanted = 1 if self.max_tokens is None else self.max_tokens
        if wanted > room:
            raise InvalidParameter(
                "messages" if self.max_tokens is None or room < 1 else "max_tokens",
                f"the prompt has {prompt_tokens} tokens and at least {wanted} are wanted, "
                f"but the context holds {context_tokens}",
                "context_length_exceeded",
            )
        return Params(
            temperature_milli=self.temperature_milli,
            top_k=self.top_k,
            top_p_milli=self.top_p_milli,
            max_tokens=min(MAX_TOKENS_DEFAULT, room) if self.max_tokens is None else self.max_tokens,
            stop_ids=(),
            stop_strings=self.stop,
            mask_hash=ZERO32,
        )


def context_of(chat: ChatBody, template_hash: bytes, now: str = "") -> bytes:
    """The context as canonical JSON, which the ask binds by a salted hash.

    Args:
        chat: the body.
        template_hash: 32 bytes, from the model record.
        now: the text that the template shows as the current date; empty where it shows none.
    """
    return encode_context(Context(tuple(chat.message_objects()), now, template_hash))


def read_chat_body(body: bytes) -> ChatBody:
    """Read a chat completion body.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    fields = _read_object(body)
    found: dict[str, object] = {}
    for name, value in fields.items():
        if name in _NEUTRAL:
            _refuse_unless_neutral(name, value, _NEUTRAL[name])
        elif name not in _READERS:
            raise InvalidParameter(name[:80], f"unrecognized parameter: {name[:80]!r}", "unknown_parameter")
        elif value is not None:
            found[name] = _READERS[name](name, value)
    for name in ("model", "messages"):
        if name not in found:
            raise InvalidParameter(name, f"missing required parameter: {name!r}", "missing_required_parameter")
    return _combine(found)


def _combine(found: Mapping[str, object]) -> ChatBody:
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
    renamed = {"temperature": "temperature_milli", "top_p": "top_p_milli"}
    fields |= {renamed[name]: found[name] for name in renamed if name in found}
    routing = found.get("deaios", {})
    assert isinstance(routing, dict)
    return ChatBody(**fields, **routing)  # type: ignore[arg-type] # each reader returns its field's type


def _read_object(body: bytes) -> dict[str, object]:
    if len(body) > BODY_BYTES_MAX:
        raise InvalidBody(f"body has {len(body)} bytes, at most {BODY_BYTES_MAX} are read")
    try:
        text = body.decode()
        validate_json_depth(body, JSON_DEPTH_MAX)
        value = json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidBody(f"body is not UTF-8 at byte {error.start}") from error
    except InvalidEncoding as error:
        raise InvalidBody(str(error)) from error
    except ValueError as error:
        raise InvalidBody(f"body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidBody(f"body is a JSON {_kind_of(value)}, an object is expected")
    return value


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose names are all different: two readers must never pick two different values."""
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InvalidBody(f"the name {twice[:80]!r} occurs twice in one JSON object")
    return value


def _refuse_constant(text: str) -> object:
    raise InvalidBody(f"{text} is not JSON")


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _refuse_unless_neutral(param: str, value: object, neutral: tuple[Json, ...]) -> None:
    """Accept a parameter that is not offered only where it says what leaving it out says."""
    same = any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in neutral)
    if value is not None and not same:
        allowed = ", ".join(json.dumps(item) for item in neutral)
        hint = f"; only {allowed} is accepted" if neutral else ""
        raise InvalidParameter(param, f"{param} is not supported by this network{hint}", "unsupported_parameter")


def _wrong_type(param: str, expected: str, value: object) -> InvalidParameter:
    return InvalidParameter(param, f"{param} is a JSON {_kind_of(value)}, {expected} is expected", "invalid_type")


def _read_text(param: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(param, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(param, f"{param} holds half of a surrogate pair at {error.start}") from error
    return value


def _read_flag(param: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(param, "a boolean", value)
    return value


def _integers(low: int, high: int) -> Callable[[str, object], int]:
    def read(param: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(param, "an integer", value)
        if not low <= value <= high:
            shown = value if abs(value) < 1 << 128 else "a very large number"
            raise InvalidParameter(param, f"{param} is {shown}, allowed are {low} to {high}")
        return value

    return read


def _thousandths(low_milli: int, high_milli: int) -> Callable[[str, object], int]:
    """A reader of numbers that the protocol carries in milli-units."""

    def read(param: str, value: object) -> int:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _wrong_type(param, "a number", value)
        low, high = low_milli / MILLI, high_milli / MILLI
        if not low <= value <= high:
            shown = value if isinstance(value, float) or abs(value) < 1 << 128 else "a very large number"
            raise InvalidParameter(param, f"{param} is {shown}, allowed are {low:g} to {high:g}")
        milli = round(value * MILLI)
        if not math.isclose(value * MILLI, milli, rel_tol=0, abs_tol=_MILLI_TOLERANCE):
            raise InvalidParameter(param, f"{param} is {value}, allowed are steps of 0.001")
        return milli

    return read


def _read_model(param: str, value: object) -> str:
    text = _read_text(param, value)
    if not 0 < len(text) <= MODEL_CHARS_MAX:
        raise InvalidParameter(param, f"{param} has {len(text)} characters, allowed are 1 to {MODEL_CHARS_MAX}")
    return text


def _read_stop(param: str, value: object) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _wrong_type(param, "a string or an array of strings", value)
    if len(items) > STOPS_MAX:
        raise InvalidParameter(param, f"{param} has {len(items)} strings, at most {STOPS_MAX} are allowed")
    stops = []
    for index, item in enumerate(items):
        text = _read_text(f"{param}[{index}]", item)
        if not 0 < len(text.encode()) <= STOP_BYTES_MAX:
            raise InvalidParameter(
                f"{param}[{index}]", f"a stop string has {len(text.encode())} bytes, allowed are 1 to {STOP_BYTES_MAX}"
            )
        stops.append(text)
    return tuple(stops)


def _read_stream_options(param: str, value: object) -> bool:
    """Whether a usage chunk is wanted."""
    fields = _read_fields(param, value)
    include = False
    for name, item in fields.items():
        if name == "include_usage":
            include = item is not None and _read_flag(f"{param}.{name}", item)
        elif name == "include_obfuscation":
            _refuse_unless_neutral(f"{param}.{name}", item, (False,))
        else:
            raise _unknown(f"{param}.{name}")
    return include


def _read_routing(param: str, value: object) -> dict[str, object]:
    """The network's own extension: who may serve and who may look."""
    found: dict[str, object] = {}
    for name, item in _read_fields(param, value).items():
        where = f"{param}.{name}"
        if name == "min_level":
            found[name] = _integers(Level.SIGNED, Level.REPLAYABLE)(where, item)
        elif name == "audit_policy":
            policy = _AUDIT_POLICIES.get(_read_text(where, item))
            if policy is None:
                raise InvalidParameter(where, f"{where} is {item!r:.80}, allowed are {sorted(_AUDIT_POLICIES)}")
            found[name] = policy
        elif name == "provider":
            try:
                found[name] = parse_address(_read_text(where, item))
            except InvalidEncoding as error:
                raise InvalidParameter(where, f"{where}: {error}") from error
        else:
            raise _unknown(where)
    return found


def _read_fields(param: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong_type(param, "an object", value)
    return value


def _unknown(where: str) -> InvalidParameter:
    return InvalidParameter(where[:160], f"unrecognized parameter: {where[:160]!r}", "unknown_parameter")


def _read_messages(param: str, value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise _wrong_type(param, "an array", value)
    if not 0 < len(value) <= MESSAGES_MAX:
        raise InvalidParameter(param, f"{param} has {len(value)} entries, allowed are 1 to {MESSAGES_MAX}")
    return tuple(_read_message(f"{param}[{index}]", item) for index, item in enumerate(value))


def _read_message(where: str, value: object) -> Message:
    fields = _read_fields(where, value)
    for name, item in fields.items():
        if name in _MESSAGE_NEUTRAL:
            _refuse_unless_neutral(f"{where}.{name}", item, _MESSAGE_NEUTRAL[name])
        elif name not in ("role", "content"):
            raise _unknown(f"{where}.{name}")
    for name in ("role", "content"):
        if name not in fields:
            raise InvalidParameter(f"{where}.{name}", f"{where}.{name} is missing", "missing_required_parameter")
    written = _read_text(f"{where}.role", fields["role"])
    role = _ROLES.get(written)
    if role is None:
        raise InvalidParameter(f"{where}.role", f"role is {written[:80]!r}, allowed are {sorted(_ROLES)}")
    return Message(role, _read_content(f"{where}.content", fields["content"]))


def _read_content(where: str, value: object) -> str:
    """Text, or text parts, which are joined by line breaks as vLLM joins them."""
    if not isinstance(value, list):
        return _read_text(where, value)
    if not 0 < len(value) <= PARTS_MAX:
        raise InvalidParameter(where, f"{where} has {len(value)} parts, allowed are 1 to {PARTS_MAX}")
    texts = []
    for index, part in enumerate(value):
        fields = _read_fields(f"{where}[{index}]", part)
        if fields.get("type") != "text":
            raise InvalidParameter(f"{where}[{index}].type", "only parts of type 'text' are supported")
        for name in fields.keys() - {"type", "text"}:
            raise _unknown(f"{where}[{index}].{name}")
        texts.append(_read_text(f"{where}[{index}].text", fields.get("text")))
    return "\n".join(texts)


_READERS: Mapping[str, Callable[[str, object], object]] = {
    "deaios": _read_routing,
    "logprobs": _read_flag,
    "max_completion_tokens": _integers(1, MAX_TOKENS_LIMIT),
    "max_tokens": _integers(1, MAX_TOKENS_LIMIT),
    "messages": _read_messages,
    "model": _read_model,
    "seed": _integers(-(1 << SEED_BITS - 1), (1 << SEED_BITS - 1) - 1),
    "stop": _read_stop,
    "stream": _read_flag,
    "stream_options": _read_stream_options,
    "temperature": _thousandths(0, TEMPERATURE_MILLI_MAX),
    "top_k": _integers(TOP_K_OFF, TOP_K_MAX),
    "top_logprobs": _integers(0, LOGPROBS_MAX),
    "top_p": _thousandths(1, TOP_P_OFF),
}
_PLAIN_FIELDS = frozenset({"messages", "model", "seed", "stop", "stream", "top_k"})
