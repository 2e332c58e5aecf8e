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
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
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
        for name, _, kind, nested in _layout(_class_of(self)):
            _validate_value(f"{type(self).__name__}.{name}", kind, nested, getattr(self, name))

    cls.__post_init__ = validate  # type: ignore[attr-defined] # dataclasses call it after __init__
    return dataclass(frozen=True)(cls)


def _class_of(struct: object) -> Any:  # Any: mypy does not see that a class is hashable
    return type(struct)


_Layout = tuple[tuple[str, str, str, type | None], ...]


@lru_cache(maxsize=256)
def _layout(cls: type) -> _Layout:
    """(python name, camelCase name, Solidity type, nested struct class or None) per field, in order."""
    rows = []
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        hint = hints[field.name]
        head, *tail = field.name.split("_")
        camel = head + "".join(part.capitalize() for part in tail)
        if get_origin(hint) is Annotated:
            rows.append((field.name, camel, str(get_args(hint)[1]), None))
        else:
            rows.append((field.name, camel, hint.__name__, hint))
    return tuple(rows)


def _own_type(cls: type) -> str:
    return f"{cls.__name__}(" + ",".join(f"{kind} {camel}" for _, camel, kind, _ in _layout(cls)) + ")"


def _referenced(cls: type) -> dict[str, type]:
    found: dict[str, type] = {}
    for _, _, _, nested in _layout(cls):
        if nested is not None:
            found[nested.__name__] = nested
            found |= _referenced(nested)
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


def hash_struct(struct: object) -> bytes:
    """The EIP-712 struct hash: what the protocol calls a digest."""
    parts = [type_hash(_class_of(struct))]
    for name, _, kind, nested in _layout(_class_of(struct)):
        value = getattr(struct, name)
        parts.append(hash_struct(value) if nested is not None else _encode_value(kind, value))
    return keccak256(b"".join(parts))


def _encode_value(kind: str, value: object) -> bytes:
    if kind.endswith("[]"):
        items = cast("tuple[object, ...]", value)  # ranges were checked when the struct was made
        return keccak256(b"".join(_encode_value(kind[:-2], item) for item in items))
    if isinstance(value, int):
        return value.to_bytes(32)
    if isinstance(value, str):
        return keccak256(value.encode())
    assert isinstance(value, bytes)
    if kind == "bytes":
        return keccak256(value)
    return value.rjust(32, b"\0") if kind == "address" else value.ljust(32, b"\0")


def _validate_value(where: str, kind: str, nested: type | None, value: object) -> None:
    if nested is not None:
        if not isinstance(value, nested):
            raise InvalidStruct(f"{where} is not a {nested.__name__}")
    elif kind.endswith("[]"):
        if not isinstance(value, tuple) or len(value) > ARRAY_ITEMS_MAX:
            raise InvalidStruct(f"{where} is not a tuple of at most {ARRAY_ITEMS_MAX} items")
        for item in value:
            _validate_value(where, kind[:-2], None, item)
    elif match := _UINT.fullmatch(kind):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << int(match[1]):
            raise InvalidStruct(f"{where} is {value!r}, not a {kind}")
    elif kind == "string":
        if not isinstance(value, str) or len(value.encode(errors="replace")) > TEXT_BYTES_MAX:
            raise InvalidStruct(f"{where} is not text of at most {TEXT_BYTES_MAX} bytes")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidStruct(f"{where} is not valid Unicode text") from error
    else:
        size = 20 if kind == "address" else int(match[1]) if (match := _BYTES.fullmatch(kind)) else None
        if not isinstance(value, bytes) or len(value) > TEXT_BYTES_MAX or (size is not None and len(value) != size):
            raise InvalidStruct(f"{where} is not {kind}")


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
    return {
        camel: encode_json(getattr(struct, name)) if nested is not None else _to_json(kind, getattr(struct, name))
        for name, camel, kind, nested in _layout(_class_of(struct))
    }


def _to_json(kind: str, value: object) -> Json:
    if kind.endswith("[]"):
        return [_to_json(kind[:-2], item) for item in cast("tuple[object, ...]", value)]  # checked at construction
    if isinstance(value, int):
        return value if _is_json_number(kind) else encode_decimal(value)
    if isinstance(value, str):
        return value
    assert isinstance(value, bytes)
    return encode_hex(value)


def _is_json_number(kind: str) -> bool:
    return int(kind.removeprefix("uint")) <= JSON_NUMBER_BITS_MAX


def decode_json(cls: type[Struct], value: object) -> Struct:
    """Read a struct from parsed JSON.

    Raises:
        InvalidStruct: unknown or missing key, wrong type or range, or a second spelling of a value.
    """
    if not isinstance(value, Mapping):
        raise InvalidStruct(f"{cls.__name__} is not a JSON object")
    layout = _layout(cast("Any", cls))  # as in _class_of
    names = {camel for _, camel, _, _ in layout}
    if value.keys() != names:
        missing, unknown = sorted(names - value.keys()), sorted(str(key) for key in value.keys() - names)
        raise InvalidStruct(f"{cls.__name__}: missing keys {missing}, unknown keys {unknown}")
    items = {
        name: decode_json(nested, value[camel])
        if nested is not None
        else _from_json(f"{cls.__name__}.{camel}", kind, value[camel])
        for name, camel, kind, nested in layout
    }
    return cls(**items)


def _from_json(where: str, kind: str, value: object) -> object:
    if kind.endswith("[]"):
        if not isinstance(value, list) or len(value) > ARRAY_ITEMS_MAX:
            raise InvalidStruct(f"{where} is not a list of at most {ARRAY_ITEMS_MAX} items")
        return tuple(_from_json(where, kind[:-2], item) for item in value)
    if kind == "string" or (kind.startswith("uint") and _is_json_number(kind)):
        return value
    if not isinstance(value, str):
        raise InvalidStruct(f"{where} is not text")
    try:
        return decode_decimal(value, int(kind.removeprefix("uint"))) if kind.startswith("uint") else decode_hex(value)
    except Invalid as error:
        raise InvalidStruct(f"{where}: {error}") from error
