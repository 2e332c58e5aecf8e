"""Bytes to text and back, one canonical spelling each.

Hex is lower case with `0x`; canonical JSON has sorted keys, no spaces and no floats. A second spelling of the same
value is refused, so that a signed file has exactly one form.
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate

import msgspec

from deaios.primitives.errors import Invalid

JSON_DEPTH_MAX = 64
"""Deeper than any document of ours, far shallower than any stack."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A JSON string, or an unfinished one up to the end: it matches at every quote, so one pass is linear."""
_NOT_BRACKETS_OR_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Brackets as the signed bytes 1 and -1."""
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)

Json = None | bool | int | str | Sequence["Json"] | Mapping[str, "Json"]


class InvalidEncoding(Invalid):
    """Text that is not the canonical spelling of any value."""


def encode_hex(data: bytes) -> str:
    """Bytes as lower-case hex with the `0x` prefix."""
    return "0x" + data.hex()


def decode_hex(text: str, size_bytes: int | None = None) -> bytes:
    """Read canonical hex.

    Args:
        text: lower-case hex with `0x`.
        size_bytes: exact length wanted, when the format fixes one.

    Raises:
        InvalidEncoding: not canonical hex, or another length.
    """
    digits = text[2:] if isinstance(text, str) and text.startswith("0x") else "?"
    try:
        data = bytes.fromhex(digits)
    except ValueError:
        data = None
    if data is None or data.hex() != digits:  # capitals and spaces, which `fromhex` takes
        raise InvalidEncoding(f"not lower-case 0x hex: {str(text)[:80]!r}")
    if size_bytes is not None and len(data) != size_bytes:
        raise InvalidEncoding(f"hex holds {len(data)} bytes, {size_bytes} expected")
    return data


def encode_decimal(value: int) -> str:
    """An unsigned integer as decimal text, for JSON numbers that would exceed 53 bits."""
    if value < 0:
        raise InvalidEncoding(f"negative integer {value}")
    return str(value)


def decode_decimal(text: str, bits: int) -> int:
    """Read canonical decimal text below `2**bits`.

    Raises:
        InvalidEncoding: signs, leading zeros, spaces, or out of range.
    """
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        raise InvalidEncoding(f"not canonical decimal text: {str(text)[:80]!r}")
    value = int(text)
    if value >> bits:
        raise InvalidEncoding(f"{value} exceeds {bits} bits")
    return value


def encode_canonical_json(value: Json) -> bytes:
    """JSON bytes with sorted keys and no spaces: the form that is hashed and signed. Floats are refused."""
    _refuse_strangers(value)
    return _CANONICAL.encode(value)


_CANONICAL = msgspec.json.Encoder(order="sorted")
"""Byte for byte `json.dumps(sort_keys=True, separators=(",", ":"), ensure_ascii=False)`, in a tenth of its time."""


def validate_json_depth(data: bytes, depth_max: int = JSON_DEPTH_MAX) -> None:
    """Bound the nesting of JSON before a recursive parser sees it: its own limit is the C stack's, which may crash.

    Brackets that do not match are the parser's matter: up to where it stops at one, the depth counted here is its own.
    One pass, whatever the nesting, because a stranger chooses it.

    Raises:
        InvalidEncoding: brackets are nested more than `depth_max` deep.
    """
    if data.count(b"[") + data.count(b"{") <= depth_max:
        return
    if b"\\" in data:
        bare = _STRING.sub(b"", data)
    else:  # without escapes each quote ends or begins a string, which is found many times faster
        bare = b"".join(data.translate(None, _NOT_BRACKETS_OR_QUOTES).split(b'"')[::2])
    steps = array("b", bare.translate(_STEPS, _NOT_BRACKETS))
    if max(accumulate(steps), default=0) > depth_max:
        raise InvalidEncoding(f"JSON is nested more than {depth_max} deep")


_PLAIN = frozenset({str, int, bool, type(None)})
"""What needs no second look: a tokenizer's list has a hundred thousand texts."""
_TEXT = frozenset({str})


def _refuse_strangers(value: object) -> None:
    """Refuse floats and whatever else is no JSON of ours; the encoder would find some spelling for it."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if not _TEXT.issuperset(map(type, item)):
                odd = [key for key in item if not isinstance(key, str)]
                if odd:
                    raise InvalidEncoding(f"JSON key is not text: {odd[0]!r}")
            waiting += [inner for inner in item.values() if type(inner) not in _PLAIN]
        elif isinstance(item, list | tuple):
            if not _PLAIN.issuperset(map(type, item)):
                waiting += [inner for inner in item if type(inner) not in _PLAIN]
        elif isinstance(item, float):
            raise InvalidEncoding("canonical JSON has no floats; use integers of a named unit")
        elif not isinstance(item, str | int | None):
            raise TypeError(f"{type(item).__name__} is not JSON")
