"""A user's wishes about providers: the `provider` object of a body, in OpenRouter's format, read strictly.

Pure. Names, types and meaning are those of OpenRouter's provider routing (its Python SDK 1.3.84,
`components/providerpreferences.py`), with three differences: a provider's slug is its address; prices are credits per
million tokens; a member that is not known is refused, as everything in a body is. What a provider promises about data
is its own word: nobody can check it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from deaios.market.fields import InvalidParameter, read_fields, read_flag, read_text, refuse_unless_neutral, unknown
from deaios.market.fields import wrong_type as _wrong_type
from deaios.primitives.encoding import InvalidEncoding
from deaios.primitives.keys import Address, parse_address
from deaios.primitives.units import CREDIT

PROVIDERS_MAX = 64
"""Names in one list of a body."""
CACHE_KEY_CHARS_MAX = 256
PRICE_DIGITS_MAX = 30
NUMBER_MAX = 1e9
QUANTIZATIONS = frozenset({"int4", "int8", "fp4", "fp6", "fp8", "fp16", "bf16", "fp32", "unknown"})
NO_COLLECTION = "data_collection=deny"
ZERO_RETENTION = "zdr"
_PERCENTILES = ("p50", "p75", "p90", "p99")


class SortBy(StrEnum):
    """By what alone providers are ranked."""

    PRICE = "price"
    THROUGHPUT = "throughput"
    LATENCY = "latency"


class DataPolicy(StrEnum):
    """What a provider must promise about prompts and answers; each asks for what the one before it asks for."""

    ANY = "any"
    DENY = "deny"
    ZDR = "zdr"

    @property
    def promises(self) -> frozenset[str]:
        """As routing reads them."""
        return _POLICY_PROMISES[self]


_POLICY_PROMISES = {
    DataPolicy.ANY: frozenset[str](),
    DataPolicy.DENY: frozenset({NO_COLLECTION}),
    DataPolicy.ZDR: frozenset({NO_COLLECTION, ZERO_RETENTION}),
}


@dataclass(frozen=True, slots=True)
class Preferences:
    """What of the market a user wants.

    Attributes:
        order: try these first, in this order.
        only: nobody else; empty for anybody.
        ignore: none of these.
        allow_fallbacks: whether others than those in `order` may serve.
        sort: rank by this alone, without spreading load.
        input_price_max: smallest units per million prompt tokens.
        output_price_max: the same per million sampled tokens.
        quantizations: of the weights; empty for any.
        promises: what a provider must say of itself.
        throughput_min: tokens per second; who is slower comes last.
        latency_max_s: to the first token; who is slower comes last.
    """

    order: tuple[Address, ...] = ()
    only: frozenset[Address] = frozenset()
    ignore: frozenset[Address] = frozenset()
    allow_fallbacks: bool = True
    sort: SortBy | None = None
    input_price_max: int | None = None
    output_price_max: int | None = None
    quantizations: frozenset[str] = frozenset()
    promises: frozenset[str] = frozenset()
    throughput_min: float | None = None
    latency_max_s: float | None = None

    def is_missed(self, ttft_ms: float, tokens_per_s: float) -> bool:
        """Does a provider with this latency and throughput fall short of what is preferred?"""
        is_slow = self.throughput_min is not None and tokens_per_s < self.throughput_min
        return is_slow or (self.latency_max_s is not None and ttft_ms > 1000 * self.latency_max_s)


NO_PREFERENCES = Preferences()


def add_policy(preferences: Preferences | None, policy: DataPolicy) -> Preferences | None:
    """What is wanted under a policy: its promises and those of the request, so that a request loosens nothing."""
    if not policy.promises:
        return preferences
    wanted = preferences or NO_PREFERENCES
    return replace(wanted, promises=wanted.promises | policy.promises)


def read_preferences(param: str, value: object) -> Preferences:
    """The `provider` object of a body.

    Raises:
        InvalidParameter: a member that is unknown, not offered, or of the wrong type.
    """
    found: dict[str, object] = {}
    for name, item in read_fields(param, value).items():
        where = f"{param}.{name}"
        reader = _READERS.get(name)
        if reader is None:
            raise unknown(where)
        if item is not None:
            found |= reader(where, item)
    promises = {text for name, text in _PROMISES.items() if found.pop(name, False)}
    return Preferences(promises=frozenset(promises), **found)  # type: ignore[arg-type] # each reader gives its field's type


def read_cache_key(param: str, value: object) -> str:
    """OpenAI's `prompt_cache_key`: requests that share it go to one provider while that one is well."""
    text = read_text(param, value)
    if not 0 < len(text) <= CACHE_KEY_CHARS_MAX:
        raise InvalidParameter(param, f"{param} has {len(text)} characters, allowed are 1 to {CACHE_KEY_CHARS_MAX}")
    return text


def name_quantization(quantisation: str) -> str:
    """OpenRouter's word for how a model record's weights are stored, such as `fp16` for `F16` and `int8` for `Q8_0`."""
    name = quantisation.upper()
    floats = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}
    if name in floats:
        return floats[name]
    for prefix, word in (("Q4", "int4"), ("IQ4", "int4"), ("Q8", "int8"), ("MXFP4", "fp4")):
        if name.startswith(prefix):
            return word
    return "unknown"


def _read_addresses(where: str, value: object) -> tuple[Address, ...]:
    if not isinstance(value, list):
        raise _wrong_type(where, "an array", value)
    if len(value) > PROVIDERS_MAX:
        raise InvalidParameter(where, f"{where} has {len(value)} entries, at most {PROVIDERS_MAX} are allowed")
    found = []
    for index, item in enumerate(value):
        place = f"{where}[{index}]"
        try:
            found.append(parse_address(read_text(place, item)))
        except InvalidEncoding as error:
            raise InvalidParameter(place, f"{place} is not the address of a provider: {error}") from error
    return tuple(found)


def _read_price(where: str, value: object) -> int:
    """Credits per million tokens as smallest units, rounded down; a number or, as OpenRouter also takes, its text."""
    text = value if isinstance(value, str) else repr(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong_type(where, "a number", value)
    try:
        price = Decimal(text[:PRICE_DIGITS_MAX])
    except InvalidOperation as error:
        raise InvalidParameter(where, f"{where} is {text[:40]!r}, a number is expected") from error
    if len(text) > PRICE_DIGITS_MAX or not price.is_finite() or not 0 <= price <= NUMBER_MAX:
        raise InvalidParameter(where, f"{where} is {text[:40]}, allowed are 0 to {NUMBER_MAX:g}")
    return int(price * CREDIT)


def _read_max_price(where: str, value: object) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for name, item in read_fields(where, value).items():
        if name not in _PRICES:
            raise unknown(f"{where}.{name}")
        if item is not None:
            price, field = _read_price(f"{where}.{name}", item), _PRICES[name]
            if field is not None:  # nothing is charged here per request, image or minute: any maximum holds
                found[field] = price
    return found


def _read_sort(where: str, value: object) -> Mapping[str, object]:
    by = value
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "partition":
                refuse_unless_neutral(f"{where}.{name}", item, ("model", "none"))
            elif name != "by":
                raise unknown(f"{where}.{name}")
        by = value.get("by")
        if by is None:
            return {}
    text = read_text(where, by)
    if text not in set(SortBy):
        raise InvalidParameter(where, f"{where} is {text[:80]!r}, allowed are {sorted(SortBy)}")
    return {"sort": SortBy(text)}


def _read_threshold(where: str, value: object) -> float:
    """A number, for the median. Only `p50` of OpenRouter's object is offered: routing knows moving averages."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in _PERCENTILES:
                raise unknown(f"{where}.{name}")
            if name != "p50":
                refuse_unless_neutral(f"{where}.{name}", item, ())
        value = value.get("p50")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong_type(where, "a number or an object with p50", value)
    if not 0 < value <= NUMBER_MAX:
        raise InvalidParameter(where, f"{where} is {value}, allowed are numbers above 0 up to {NUMBER_MAX:g}")
    return float(value)


def _read_quantizations(where: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, list) or len(value) > len(QUANTIZATIONS):
        raise InvalidParameter(where, f"{where} is an array of at most {len(QUANTIZATIONS)} of {sorted(QUANTIZATIONS)}")
    names = [read_text(f"{where}[{index}]", item) for index, item in enumerate(value)]
    for index, name in enumerate(names):
        if name not in QUANTIZATIONS:
            raise InvalidParameter(f"{where}[{index}]", f"{name[:80]!r} is not one of {sorted(QUANTIZATIONS)}")
    return {"quantizations": frozenset(names)}


def _read_collection(where: str, value: object) -> Mapping[str, object]:
    text = read_text(where, value)
    if text not in ("allow", "deny"):
        raise InvalidParameter(where, f"{where} is {text[:80]!r}, allowed are 'allow' and 'deny'")
    return {"data_collection": text == "deny"}


def _refuse_distillation(where: str, value: object) -> Mapping[str, object]:
    refuse_unless_neutral(where, value, (False,))
    return {}


def _read_required(where: str, value: object) -> Mapping[str, object]:
    """Every provider of a model takes every parameter, and a body with another is refused: nothing is left to do."""
    read_flag(where, value)
    return {}


_PROMISES = {"data_collection": NO_COLLECTION, "zdr": ZERO_RETENTION}
_PRICES: Mapping[str, str | None] = {
    "prompt": "input_price_max",
    "completion": "output_price_max",
    "request": None,
    "image": None,
    "audio": None,
}
_READERS: Mapping[str, Callable[[str, object], Mapping[str, object]]] = {
    "allow_fallbacks": lambda where, value: {"allow_fallbacks": read_flag(where, value)},
    "data_collection": _read_collection,
    "enforce_distillable_text": _refuse_distillation,
    "ignore": lambda where, value: {"ignore": frozenset(_read_addresses(where, value))},
    "max_price": _read_max_price,
    "only": lambda where, value: {"only": frozenset(_read_addresses(where, value))},
    "order": lambda where, value: {"order": _read_addresses(where, value)},
    "preferred_max_latency": lambda where, value: {"latency_max_s": _read_threshold(where, value)},
    "preferred_min_throughput": lambda where, value: {"throughput_min": _read_threshold(where, value)},
    "quantizations": _read_quantizations,
    "require_parameters": _read_required,
    "sort": _read_sort,
    "zdr": lambda where, value: {"zdr": read_flag(where, value)},
}
