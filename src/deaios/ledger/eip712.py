"""EIP-712 typed data for the protocol's structs: hashing, signing, recovery, and one canonical JSON form.

A struct is a frozen dataclass whose fields carry their Solidity type:

    @eip712_struct
    class Request:
        ask_digest: Annotated[bytes, "bytes32"]

The type string is derived from the class, so it lives once. In JSON, integers above 48 bits are decimal text, byte
strings are lower-case hex, names are camelCase; any other spelling, a missing or an unknown key is refused.
Source: https://eips.ethereum.org/EIPS/eip-712
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache, partial
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_args, get_origin, get_type_hints

from deaios.primitives.encoding import Json, decode_decimal, decode_hex, encode_decimal, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address, PrivateKey, recover_address

ARRAY_ITEMS_MAX = 4096
TEXT_BYTES_MAX = 65536
JSON_NUMBER_BITS_MAX = 48
"""Wider integers are decimal text in JSON, because a JSON number is safe up to 53 bits only."""

_UINT = re.compile(r"uint([0-9]+)")
_BYTES = re.compile(r"bytes([0-9]+)")

Struct = TypeVar("Struct")


class InvalidStruct(Invalid):
    """A value or JSON object that is not a well-formed struct of its type."""


@dataclass(frozen=True, slots=True)
class Domain:
    """EIP-712 domain; `contract` is left out of the separator when it is None."""

    name: str
    version: str
    chain_id: int
    contract: Address | None = None

    def separator(self) -> bytes:
        """The 32-byte domain separator."""
        return _separator(self)


@lru_cache(maxsize=256)
def _separator(domain: Domain) -> bytes:
    kind = "EIP712Domain(string name,string version,uint256 chainId"
    body = keccak256(domain.name.encode()) + keccak256(domain.version.encode()) + domain.chain_id.to_bytes(32)
    if domain.contract is None:
        return keccak256(keccak256((kind + ")").encode()) + body)
    return keccak256(
        keccak256((kind + ",address verifyingContract)").encode()) + body + domain.contract.rjust(32, b"\0")
    )


@dataclass_transform(frozen_default=True)
def eip712_struct(cls: type[Struct]) -> type[Struct]:
    """Make a class a frozen dataclass that validates its field ranges and knows its EIP-712 type."""

    def validate(self: object) -> None:
        for field in _layout(_class_of(self)):
            if not field.is_valid(getattr(self, field.name)):
                raise InvalidStruct(_describe_fault(type(self).__name__, field, getattr(self, field.name)))

    cls.__post_init__ = validate  # type: ignore[attr-defined] # dataclasses call it after __init__
    return dataclass(frozen=True)(cls)


def _class_of(struct: object) -> Any:  # Any: mypy does not see that a class is hashable
    return type(struct)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is done with values of one Solidity type, worked out once.

    Attributes:
        is_valid: is a value in range?
        encode: 32 bytes of a valid value.
        to_json: a valid value's one spelling.
        from_json: the value of a spelling, raising `Invalid`; ranges are checked when the struct is made.
    """

    is_valid: Callable[[Any], bool]
    encode: Callable[[Any], bytes]
    to_json: Callable[[Any], Json]
    from_json: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class _Field(_Kind):
    """One field of a struct: names in Python and in the type string, Solidity type, class where it is a struct."""

    name: str
    camel: str
    kind: str
    nested: type | None


@cache
def _layout(cls: type) -> tuple[_Field, ...]:
    """The fields in order."""
    rows = []
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        hint = hints[field.name]
        head, *tail = field.name.split("_")
        camel = head + "".join(part.capitalize() for part in tail)
        nested = None if get_origin(hint) is Annotated else hint
        solidity = str(get_args(hint)[1]) if nested is None else hint.__name__
        does = _kind_of(solidity) if nested is None else _kind_of_struct(nested)
        rows.append(
            _Field(does.is_valid, does.encode, does.to_json, does.from_json, field.name, camel, solidity, nested)
        )
    return tuple(rows)


def _kind_of_struct(cls: Any) -> _Kind:  # Any: as in _class_of
    return _Kind(lambda value: isinstance(value, cls), hash_struct, encode_json, partial(decode_json, cls))


@cache
def _kind_of(kind: str) -> _Kind:
    if kind.endswith("[]"):
        return _kind_of_array(_kind_of(kind[:-2]))
    if kind == "string":
        return _Kind(_is_text, lambda value: keccak256(value.encode()), _same, _same)
    if match := _UINT.fullmatch(kind):
        return _kind_of_uint(int(match[1]))
    size = 20 if kind == "address" else int(match[1]) if (match := _BYTES.fullmatch(kind)) else None
    encode: Callable[[Any], bytes] = keccak256 if size is None else _pad_left if kind == "address" else _pad_right
    return _Kind(partial(_is_bytes, size), encode, encode_hex, lambda value: decode_hex(_text(value)))


def _kind_of_array(item: _Kind) -> _Kind:
    def is_valid(value: object) -> bool:
        return isinstance(value, tuple) and len(value) <= ARRAY_ITEMS_MAX and all(map(item.is_valid, value))

    def from_json(value: object) -> object:
        if not isinstance(value, list) or len(value) > ARRAY_ITEMS_MAX:
            raise InvalidStruct(f"it is not a list of at most {ARRAY_ITEMS_MAX} items")
        return tuple(map(item.from_json, value))

    return _Kind(
        is_valid,
        lambda value: keccak256(b"".join(map(item.encode, value))),
        lambda value: [item.to_json(part) for part in value],
        from_json,
    )


def _kind_of_uint(bits: int) -> _Kind:
    limit = 1 << bits

    def is_valid(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit

    def encode(value: int) -> bytes:
        return value.to_bytes(32)

    if bits <= JSON_NUMBER_BITS_MAX:
        return _Kind(is_valid, encode, _same, _same)
    return _Kind(is_valid, encode, encode_decimal, lambda value: decode_decimal(_text(value), bits))


def _same(value: Any) -> Any:  # Any: whatever JSON has
    return value


def _pad_left(value: bytes) -> bytes:
    return value.rjust(32, b"\0")


def _pad_right(value: bytes) -> bytes:
    return value.ljust(32, b"\0")


def _is_bytes(size: int | None, value: object) -> bool:
    return isinstance(value, bytes) and (len(value) <= TEXT_BYTES_MAX if size is None else len(value) == size)


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return len(value.encode()) <= TEXT_BYTES_MAX
    except UnicodeEncodeError:
        return False


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidStruct("it is not text")
    return value


def _describe_fault(struct: str, field: _Field, value: object) -> str:
    """What is wrong with the value of a field."""
    if field.nested is not None:
        return f"{struct}.{field.name} is not a {field.nested.__name__}"
    if field.kind.endswith("[]"):
        return f"{struct}.{field.name} is not a tuple of at most {ARRAY_ITEMS_MAX} {field.kind[:-2]}"
    if field.kind == "string":
        return f"{struct}.{field.name} is not valid Unicode text of at most {TEXT_BYTES_MAX} bytes"
    if field.kind.startswith("uint"):
        return f"{struct}.{field.name} is {value!r}, not a {field.kind}"
    return f"{struct}.{field.name} is not {field.kind}"


def _own_type(cls: type) -> str:
    return f"{cls.__name__}(" + ",".join(f"{field.kind} {field.camel}" for field in _layout(cls)) + ")"


def _referenced(cls: type) -> dict[str, type]:
    found: dict[str, type] = {}
    for field in _layout(cls):
        if field.nested is not None:
            found[field.nested.__name__] = field.nested
            found |= _referenced(field.nested)
    return found


@lru_cache(maxsize=256)
def encode_type(cls: type) -> str:
    """The EIP-712 type string: the struct, then the structs it refers to in name order."""
    referenced = _referenced(cls)
    return _own_type(cls) + "".join(_own_type(referenced[name]) for name in sorted(referenced))


@lru_cache(maxsize=256)
def type_hash(cls: type) -> bytes:
    """keccak-256 of the type string."""
    return keccak256(encode_type(cls).encode())


@lru_cache(maxsize=1024)
def hash_struct(struct: object) -> bytes:
    """The EIP-712 struct hash: what the protocol calls a digest. One struct is asked for it many times."""
    cls = _class_of(struct)
    parts = [field.encode(getattr(struct, field.name)) for field in _layout(cls)]
    return keccak256(type_hash(cls) + b"".join(parts))


def hash_typed_data(domain: Domain, struct: object) -> bytes:
    """The 32 bytes that are signed: keccak-256(0x1901 || separator || struct hash)."""
    return keccak256(b"\x19\x01" + domain.separator() + hash_struct(struct))


def sign_struct(key: PrivateKey, domain: Domain, struct: object) -> bytes:
    """Sign a struct; 65 bytes."""
    return key.sign_digest(hash_typed_data(domain, struct))


def recover_signer(domain: Domain, struct: object, signature: bytes) -> Address:
    """Who signed a struct.

    Raises:
        InvalidSignature: not a canonical signature of any key.
    """
    return recover_address(hash_typed_data(domain, struct), signature)


def encode_json(struct: object) -> dict[str, Json]:
    """The struct as a JSON object in its one canonical form."""
    return {field.camel: field.to_json(getattr(struct, field.name)) for field in _layout(_class_of(struct))}


@cache
def _camel_names(cls: type) -> frozenset[str]:
    return frozenset(field.camel for field in _layout(cls))


def decode_json(cls: type[Struct], value: object) -> Struct:
    """Read a struct from parsed JSON.

    Raises:
        InvalidStruct: unknown or missing key, wrong type or range, or a second spelling of a value.
    """
    if not isinstance(value, Mapping):
        raise InvalidStruct(f"{cls.__name__} is not a JSON object")
    names = _camel_names(cast("Any", cls))  # as in _class_of
    if value.keys() != names:
        missing, unknown = sorted(names - value.keys()), sorted(str(key) for key in value.keys() - names)
        raise InvalidStruct(f"{cls.__name__}: missing keys {missing}, unknown keys {unknown}")
    items = {}
    for field in _layout(cast("Any", cls)):
        try:
            items[field.name] = field.from_json(value[field.camel])
        except Invalid as error:
            raise InvalidStruct(f"{cls.__name__}.{field.camel}: {error}") from error
    return cls(**items)
