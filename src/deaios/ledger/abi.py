"""Contract ABI: selectors, calls, results, events and revert reasons, on top of eth-abi.

Addresses are 20 bytes, arrays and structs are tuples, `bytesN` values have exactly N bytes. Whatever a node returns is
bounded before it is decoded, and every failure is `InvalidAbiData`. Knows no contract and no network.
Source: https://docs.soliditylang.org/en/latest/abi-spec.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from eth_abi.abi import default_codec
from eth_abi.exceptions import ABITypeError, DecodingError, EncodingError, ParseError
from eth_abi.grammar import ABIType, BasicType, TupleType, parse

from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ADDRESS_SIZE

DATA_BYTES_MAX = 256 << 10
"""Longest call, result or event payload read; a catalogue record is the largest thing a contract returns."""
NESTED_BYTES_MAX = 32 << 10
"""The same for types with dynamic items inside a dynamic array, where offsets may point many items at one text."""
REMEMBERED_MAX = 256
REMEMBERED_BYTES_MAX = 2 << 10
"""Longest data whose values are kept for the next that is equal: with nested types they may be 32 times as long."""
SIGNATURES_MAX = 1024
REASON_CHARACTERS_MAX = 200
SELECTOR_SIZE = 4
TOPICS_MAX = 4

ERROR_SELECTOR = keccak256(b"Error(string)")[:SELECTOR_SIZE]
PANIC_SELECTOR = keccak256(b"Panic(uint256)")[:SELECTOR_SIZE]

_PYTHON_TYPES: dict[str, type] = {"address": bytes, "bytes": bytes, "string": str, "bool": bool}

Value = Any
"""int, bool, str, bytes or a tuple of values: what the ABI type beside it says, which Python's types cannot express."""


class InvalidAbiData(Invalid):
    """Bytes or values that are not of the ABI types they should be."""


@dataclass(frozen=True, slots=True)
class Function:
    """One callable of a contract; overloads and Vyper's default arguments are functions of their own."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def signature(self) -> str:
        """Canonical form, such as `transfer(address,uint256)`."""
        return f"{self.name}({','.join(self.inputs)})"

    @property
    def selector(self) -> bytes:
        """First four bytes of the signature's keccak-256."""
        return _hash_signature(self.name, self.inputs)[:SELECTOR_SIZE]

    def encode_call(self, arguments: Sequence[Value]) -> bytes:
        """Call data for these arguments."""
        return self.selector + encode_values(self.inputs, arguments, self.name)

    def decode_result(self, data: bytes) -> tuple[Value, ...]:
        """The values a call returned."""
        return decode_values(self.outputs, data, self.name)


@dataclass(frozen=True, slots=True)
class EventField:
    """One argument of an event."""

    name: str
    kind: str
    is_indexed: bool


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a contract."""

    name: str
    fields: tuple[EventField, ...]

    @property
    def topic(self) -> bytes:
        """keccak-256 of the signature: the log's first topic."""
        return _hash_signature(self.name, tuple(field.kind for field in self.fields))

    def decode(self, topics: Sequence[bytes], data: bytes) -> dict[str, Value]:
        """Values by argument name; an indexed value of dynamic type is its 32-byte hash.

        Raises:
            InvalidAbiData: another event's log, a wrong number of topics, or undecodable data.
        """
        indexed = [field for field in self.fields if field.is_indexed]
        if not topics or topics[0] != self.topic or len(topics) != len(indexed) + 1:
            raise InvalidAbiData(f"log has {len(topics)} topics that are not those of event {self.name}")
        values: dict[str, Value] = {}
        for field, topic in zip(indexed, topics[1:], strict=True):
            if len(topic) != 32:
                raise InvalidAbiData(f"topic {field.name} of {self.name} has {len(topic)} bytes, 32 expected")
            values[field.name] = topic if _parse(field.kind).is_dynamic else decode_values((field.kind,), topic)[0]
        plain = [field for field in self.fields if not field.is_indexed]
        decoded = decode_values([field.kind for field in plain], data, self.name)
        values |= {field.name: value for field, value in zip(plain, decoded, strict=True)}
        return {field.name: values[field.name] for field in self.fields}


@dataclass(frozen=True, slots=True)
class Abi:
    """What a contract can be asked and what it tells."""

    constructor: tuple[str, ...]
    constructor_names: tuple[str, ...]
    functions: Mapping[str, Function]
    """By signature, and by bare name where only one function has it."""
    events: Mapping[str, Event]
    by_topic: Mapping[bytes, Event]

    def get_function(self, name: str) -> Function:
        """A function by name or signature.

        Raises:
            InvalidAbiData: no such function, or several of that name.
        """
        function = self.functions.get(name)
        if function is None:
            raise InvalidAbiData(f"contract has no single function {name}")
        return function

    def get_event(self, name: str) -> Event:
        """An event by name.

        Raises:
            InvalidAbiData: no such event.
        """
        event = self.events.get(name)
        if event is None:
            raise InvalidAbiData(f"contract has no event {name}")
        return event


def parse_abi(entries: object) -> Abi:
    """Read the standard JSON form of an ABI.

    Raises:
        InvalidAbiData: not that form.
    """
    if not isinstance(entries, list):
        raise InvalidAbiData("ABI is not a JSON list")
    constructor: tuple[str, ...] = ()
    constructor_names: tuple[str, ...] = ()
    functions: list[Function] = []
    events: dict[str, Event] = {}
    for entry in entries:
        try:
            kind = entry["type"]
            if kind == "constructor":
                constructor = tuple(_type_of(item) for item in entry["inputs"])
                constructor_names = tuple(str(item["name"]) for item in entry["inputs"])
            elif kind == "function":
                inputs = tuple(_type_of(item) for item in entry["inputs"])
                functions.append(Function(entry["name"], inputs, tuple(_type_of(item) for item in entry["outputs"])))
            elif kind == "event":
                fields = tuple(EventField(i["name"], _type_of(i), bool(i["indexed"])) for i in entry["inputs"])
                events[entry["name"]] = Event(entry["name"], fields)
        except (KeyError, TypeError) as error:
            raise InvalidAbiData(f"ABI entry is malformed: {str(entry)[:REASON_CHARACTERS_MAX]}") from error
    named = {function.signature: function for function in functions}
    for function in functions:
        if sum(other.name == function.name for other in functions) == 1:
            named[function.name] = function
    return Abi(constructor, constructor_names, named, events, {event.topic: event for event in events.values()})


def _type_of(item: Mapping[str, Any]) -> str:  # Any: parsed JSON, checked by parse_abi
    kind = str(item["type"])
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_type_of(part) for part in item['components'])}){kind.removeprefix('tuple')}"


def encode_values(kinds: Sequence[str], values: Sequence[Value], where: str = "values") -> bytes:
    """ABI-encode values as one tuple.

    Raises:
        InvalidAbiData: a value is not of its type; nothing is padded, cut or converted.
    """
    if len(kinds) != len(values):
        raise InvalidAbiData(f"{where} takes {len(kinds)} arguments, {len(values)} given")
    for kind, value in zip(kinds, values, strict=True):
        _validate(_parse(kind), value, where)
    try:
        return bytes(default_codec.encode(kinds, values))
    except (EncodingError, UnicodeEncodeError) as error:
        raise InvalidAbiData(f"{where}: {str(error)[:REASON_CHARACTERS_MAX]}") from error


def decode_values(kinds: Sequence[str], data: bytes, where: str = "values") -> tuple[Value, ...]:
    """Decode one ABI-encoded tuple.

    Raises:
        InvalidAbiData: too long, too short, or not of these types.
    """
    decode = _decode_remembered if len(data) <= REMEMBERED_BYTES_MAX else _decode
    return decode(tuple(kinds), data, where)


def _decode(kinds: tuple[str, ...], data: bytes, where: str) -> tuple[Value, ...]:
    parsed = [_parse(kind) for kind in kinds]
    limit = NESTED_BYTES_MAX if any(_is_nested(kind) for kind in parsed) else DATA_BYTES_MAX
    if len(data) > limit:
        raise InvalidAbiData(f"{where}: {len(data)} bytes of ABI data exceed {limit}")
    try:
        decoded = default_codec.decode(kinds, data)
    except (DecodingError, UnicodeDecodeError, OverflowError) as error:
        raise InvalidAbiData(f"{where}: {str(error)[:REASON_CHARACTERS_MAX]}") from error
    return tuple(_restore(kind, value) for kind, value in zip(parsed, decoded, strict=True))


_decode_remembered = lru_cache(maxsize=REMEMBERED_MAX)(_decode)
"""Roles ask the same views every second, and most answers are those of a second ago; values are immutable."""


@lru_cache(maxsize=SIGNATURES_MAX)
def _hash_signature(name: str, kinds: tuple[str, ...]) -> bytes:
    return keccak256(f"{name}({','.join(kinds)})".encode())


def decode_revert(data: bytes) -> str:
    """What a contract said when it reverted; never raises, because the bytes are the contract's own."""
    if not data:
        return "reverted without a reason"
    try:
        if data[:SELECTOR_SIZE] == ERROR_SELECTOR:
            return str(decode_values(("string",), data[SELECTOR_SIZE:])[0])[:REASON_CHARACTERS_MAX]
        if data[:SELECTOR_SIZE] == PANIC_SELECTOR:
            return f"panic 0x{decode_values(('uint256',), data[SELECTOR_SIZE:])[0]:02x}"
    except InvalidAbiData:
        return f"reverted with malformed data {encode_hex(data[:36])}"
    return f"reverted with data {encode_hex(data[:36])}"


@lru_cache(maxsize=1024)
def _parse(kind: str) -> ABIType:
    try:
        parsed: ABIType = parse(kind)
        parsed.validate()  # type: ignore[no-untyped-call] # eth-abi leaves it untyped
    except (ParseError, ABITypeError) as error:
        raise InvalidAbiData(f"not an ABI type: {kind[:REASON_CHARACTERS_MAX]!r}") from error
    if not default_codec.is_encodable_type(kind):
        raise InvalidAbiData(f"not an ABI type: {kind[:REASON_CHARACTERS_MAX]!r}")
    return parsed


def _is_nested(kind: ABIType) -> bool:
    if kind.is_array:
        return bool(kind.item_type.is_dynamic) or _is_nested(kind.item_type)
    return isinstance(kind, TupleType) and any(_is_nested(part) for part in kind.components)


def _validate(kind: ABIType, value: Value, where: str) -> None:
    """Refuse what eth-abi would pad or convert; it checks integer ranges itself."""
    if kind.is_array or isinstance(kind, TupleType):
        if not isinstance(value, tuple | list):
            raise InvalidAbiData(f"{where}: {type(value).__name__} is not an array or struct")
        parts = list(kind.components) if isinstance(kind, TupleType) and not kind.is_array else None
        if parts is not None and len(parts) != len(value):
            raise InvalidAbiData(f"{where}: {len(value)} values for a struct of {len(parts)}")
        for index, item in enumerate(value):
            _validate(kind.item_type if parts is None else parts[index], item, where)
        return
    assert isinstance(kind, BasicType)
    name = f"{kind.base}{kind.sub or ''}"
    expected = _PYTHON_TYPES.get(kind.base, int)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise InvalidAbiData(f"{where}: {type(value).__name__} is not {name}")
    size = ADDRESS_SIZE if kind.base == "address" else kind.sub if kind.base == "bytes" else None
    if isinstance(value, bytes) and size is not None and len(value) != size:
        raise InvalidAbiData(f"{where}: {len(value)} bytes are not {name}")


def _restore(kind: ABIType, value: Value) -> Value:
    """eth-abi's values in this module's form: addresses as bytes."""
    if kind.is_array:
        return tuple(_restore(kind.item_type, item) for item in value)
    if isinstance(kind, TupleType):
        return tuple(_restore(part, item) for part, item in zip(kind.components, value, strict=True))
    assert isinstance(kind, BasicType)
    return bytes.fromhex(value[2:]) if kind.base == "address" else value
