"""Reading JSON bodies strictly: every parameter of every door is understood or refused by its name.

Pure. Invariant: nothing in a body is ignored, clamped or rounded, save that a float within a millionth of a thousandth
is that thousandth. It knows no door: which parameters there are is the caller's table.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from deaios.compute.schema import JSON_NESTING_MAX
from deaios.ledger.structs import STOPS_MAX, AuditPolicy, Level
from deaios.primitives.encoding import InvalidEncoding, Json, validate_json_depth
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import parse_address
from deaios.primitives.units import MILLI
from deaios.runtime.errors import InvalidBody

BODY_BYTES_MAX = 1 << 20
"""Some 250,000 tokens of text: more than any context served so far."""
PARTS_MAX = 256
MODEL_CHARS_MAX = 256
MODELS_MAX = 8
"""Names in `models`: each that fails costs its attempts and their time. OpenRouter takes three."""
STOP_BYTES_MAX = 256
JSON_DEPTH_MAX = JSON_NESTING_MAX + 8
"""A schema of a tool, in its body."""
_MILLI_TOLERANCE = 1e-6
_AUDIT_POLICIES = {"buyer_only": AuditPolicy.BUYER_ONLY, "open": AuditPolicy.OPEN}

Reader = Callable[[str, object], object]
"""Takes where the value stands and the value; returns what it means."""


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


def read_parameters(
    body: bytes, readers: Mapping[str, Reader], neutral: Mapping[str, tuple[Json, ...]], required: Collection[str]
) -> dict[str, object]:
    """The parameters of a body that say something, each as its reader understands it.

    Args:
        body: the exact bytes.
        readers: of the parameters that are offered; null is the same as leaving one out.
        neutral: parameters that are known and not offered, with the values that mean the same as leaving them out.
        required: those that must be there.

    Raises:
        InvalidBody: not one JSON object in UTF-8.
        InvalidParameter: anything in it that is not understood and offered.
    """
    found: dict[str, object] = {}
    for name, value in read_object(body).items():
        if name in neutral:
            refuse_unless_neutral(name, value, neutral[name])
        elif name not in readers:
            raise unknown(name)
        elif value is not None:
            found[name] = readers[name](name, value)
    for name in required:
        if name not in found:
            raise InvalidParameter(name, f"missing required parameter: {name!r}", "missing_required_parameter")
    return found


def read_object(body: bytes) -> dict[str, object]:
    """One JSON object in UTF-8, no name twice, of bounded size and depth.

    Raises:
        InvalidBody: it is not.
    """
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


def refuse_unless_neutral(param: str, value: object, neutral: tuple[Json, ...]) -> None:
    """Accept a parameter that is not offered only where it says what leaving it out says."""
    same = any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in neutral)
    if value is not None and not same:
        allowed = ", ".join(json.dumps(item) for item in neutral)
        hint = f"; only {allowed} is accepted" if neutral else ""
        raise InvalidParameter(param, f"{param} is not supported by this network{hint}", "unsupported_parameter")


def wrong_type(param: str, expected: str, value: object) -> InvalidParameter:
    """The error for a value of another JSON type."""
    return InvalidParameter(param, f"{param} is a JSON {_kind_of(value)}, {expected} is expected", "invalid_type")


def read_text(param: str, value: object) -> str:
    """Text that has a UTF-8 form."""
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(param, f"{param} holds half of a surrogate pair at {error.start}") from error
    return value


def read_flag(param: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong_type(param, "a boolean", value)
    return value


def integers(low: int, high: int) -> Callable[[str, object], int]:
    """A reader of integers from `low` to `high`."""

    def read(param: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong_type(param, "an integer", value)
        if not low <= value <= high:
            shown = value if abs(value) < 1 << 128 else "a very large number"
            raise InvalidParameter(param, f"{param} is {shown}, allowed are {low} to {high}")
        return value

    return read


def thousandths(low_milli: int, high_milli: int) -> Callable[[str, object], int]:
    """A reader of numbers that the protocol carries in milli-units."""

    def read(param: str, value: object) -> int:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise wrong_type(param, "a number", value)
        low, high = low_milli / MILLI, high_milli / MILLI
        if not low <= value <= high:
            shown = value if isinstance(value, float) or abs(value) < 1 << 128 else "a very large number"
            raise InvalidParameter(param, f"{param} is {shown}, allowed are {low:g} to {high:g}")
        milli = round(value * MILLI)
        if not math.isclose(value * MILLI, milli, rel_tol=0, abs_tol=_MILLI_TOLERANCE):
            raise InvalidParameter(param, f"{param} is {value}, allowed are steps of 0.001")
        return milli

    return read


def read_model(param: str, value: object) -> str:
    """The name of a model."""
    text = read_text(param, value)
    if not 0 < len(text) <= MODEL_CHARS_MAX:
        raise InvalidParameter(param, f"{param} has {len(text)} characters, allowed are 1 to {MODEL_CHARS_MAX}")
    return text


def read_models(param: str, value: object) -> tuple[str, ...]:
    """Models in the order in which they are tried: OpenRouter's `models`."""
    if not isinstance(value, list):
        raise wrong_type(param, "an array of strings", value)
    if not 0 < len(value) <= MODELS_MAX:
        raise InvalidParameter(param, f"{param} has {len(value)} entries, allowed are 1 to {MODELS_MAX}")
    return tuple(read_model(f"{param}[{index}]", item) for index, item in enumerate(value))


def read_route(param: str, value: object) -> str:
    """OpenRouter's `route`, whose one value means what `models` means without it."""
    text = read_text(param, value)
    if text != "fallback":
        raise InvalidParameter(param, f"{param} is {text[:80]!r}, only 'fallback' is allowed")
    return text


def settle_models(found: Mapping[str, object]) -> dict[str, object]:
    """The parameters with one `model` and its `fallbacks`: `model` comes first where both are given, no name twice.

    Args:
        found: parameters of a body, `model` and `models` as their readers gave them.

    Raises:
        InvalidParameter: neither is there.
    """
    listed = found.get("models", ())
    assert isinstance(listed, tuple)
    names = list(dict.fromkeys([found["model"], *listed] if "model" in found else listed))
    if not names:
        raise InvalidParameter("model", "missing required parameter: 'model'", "missing_required_parameter")
    rest = {name: value for name, value in found.items() if name not in ("model", "models", "route")}
    return rest | {"model": names[0], "fallbacks": tuple(names[1:])}


def read_stop(param: str, value: object) -> tuple[str, ...]:
    """One stop string or several."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise wrong_type(param, "a string or an array of strings", value)
    if len(items) > STOPS_MAX:
        raise InvalidParameter(param, f"{param} has {len(items)} strings, at most {STOPS_MAX} are allowed")
    stops = []
    for index, item in enumerate(items):
        text = read_text(f"{param}[{index}]", item)
        if not 0 < len(text.encode()) <= STOP_BYTES_MAX:
            raise InvalidParameter(
                f"{param}[{index}]", f"a stop string has {len(text.encode())} bytes, allowed are 1 to {STOP_BYTES_MAX}"
            )
        stops.append(text)
    return tuple(stops)


def read_stream_options(param: str, value: object) -> bool:
    """Whether a usage chunk is wanted."""
    fields = read_fields(param, value)
    include = False
    for name, item in fields.items():
        if name == "include_usage":
            include = item is not None and read_flag(f"{param}.{name}", item)
        elif name == "include_obfuscation":
            refuse_unless_neutral(f"{param}.{name}", item, (False,))
        else:
            raise unknown(f"{param}.{name}")
    return include


def read_routing(param: str, value: object) -> dict[str, object]:
    """The network's own extension: who may serve and who may look."""
    found: dict[str, object] = {}
    for name, item in read_fields(param, value).items():
        where = f"{param}.{name}"
        if name == "min_level":
            found[name] = integers(Level.SIGNED, Level.REPLAYABLE)(where, item)
        elif name == "audit_policy":
            policy = _AUDIT_POLICIES.get(read_text(where, item))
            if policy is None:
                raise InvalidParameter(where, f"{where} is {item!r:.80}, allowed are {sorted(_AUDIT_POLICIES)}")
            found[name] = policy
        elif name == "hedge":
            found[name] = read_flag(where, item)
        elif name == "provider":
            try:
                found[name] = parse_address(read_text(where, item))
            except InvalidEncoding as error:
                raise InvalidParameter(where, f"{where}: {error}") from error
        else:
            raise unknown(where)
    return found


def read_fields(param: str, value: object) -> dict[str, object]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise wrong_type(param, "an object", value)
    return value


def require_fields(where: str, fields: Mapping[str, object], *names: str) -> None:
    """Hold an object to having these fields, none of them null."""
    for name in names:
        if fields.get(name) is None:
            raise InvalidParameter(f"{where}.{name}", f"{where}.{name} is missing", "missing_required_parameter")


def refuse_other_fields(
    where: str, fields: Mapping[str, object], known: Collection[str], neutral: Mapping[str, tuple[Json, ...]]
) -> None:
    """Hold an object to fields that are known, or said with a value that means the same as leaving them out."""
    for name, value in fields.items():
        if name in neutral:
            refuse_unless_neutral(f"{where}.{name}", value, neutral[name])
        elif name not in known:
            raise unknown(f"{where}.{name}")


def unknown(where: str) -> InvalidParameter:
    """The error for a name that nobody knows."""
    return InvalidParameter(where[:160], f"unrecognized parameter: {where[:160]!r}", "unknown_parameter")


def read_content(where: str, value: object, kinds: Collection[str] = ("text",), neutral: Collection[str] = ()) -> str:
    """Text, or text parts, which are joined by line breaks as vLLM joins them.

    Args:
        where: it stands.
        value: a string or a list of parts.
        kinds: what `type` of a part may be.
        neutral: further fields of a part, which must be null or empty.
    """
    if not isinstance(value, list):
        return read_text(where, value)
    if not 0 < len(value) <= PARTS_MAX:
        raise InvalidParameter(where, f"{where} has {len(value)} parts, allowed are 1 to {PARTS_MAX}")
    texts = []
    for index, part in enumerate(value):
        place = f"{where}[{index}]"
        fields = read_fields(place, part)
        if fields.get("type") not in kinds:
            allowed = " and ".join(map(repr, sorted(kinds)))
            raise InvalidParameter(f"{place}.type", f"only parts of type {allowed} are supported")
        for name in fields.keys() - {"type", "text"}:
            if name not in neutral:
                raise unknown(f"{place}.{name}")
            refuse_unless_neutral(f"{place}.{name}", fields[name], ([],))
        texts.append(read_text(f"{place}.text", fields.get("text")))
    return "\n".join(texts)
