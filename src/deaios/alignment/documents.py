"""JSON documents that strangers hand over, read so that no two readers can see two different things in one of them.

Every name of an object occurs once, every number is an unsigned integer in its one spelling, nesting is bounded before
a recursive parser sees the bytes. Pure; knows no format.
"""

import json
import re

from deaios.primitives.encoding import InvalidEncoding, decode_hex
from deaios.primitives.errors import Invalid

DEPTH_MAX = 8
"""Twice what an answer or evidence needs."""
DIGITS_MAX = 20
"""An unsigned 64-bit number; wider ones are text in every format here."""
MESSAGE_CHARACTERS_MAX = 300
"""Of what a parser says about hostile bytes."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A JSON string, or an unfinished one up to the end."""
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class InvalidDocument(Invalid):
    """Bytes that are not one JSON object with one meaning."""


def read_document(data: bytes, bytes_max: int) -> dict[str, object]:
    """Parse one JSON object.

    Raises:
        InvalidDocument: too long, not JSON, too deep, a name twice, or a number that is no unsigned integer.
    """
    if len(data) > bytes_max:
        raise InvalidDocument(f"{len(data)} bytes, at most {bytes_max} are read")
    try:
        text = data.decode()
        _refuse_deep(data)
        value = json.loads(
            text,
            object_pairs_hook=_refuse_duplicates,
            parse_int=_read_unsigned,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except ValueError as error:
        raise InvalidDocument(f"not JSON: {cut(str(error))}") from error
    if not isinstance(value, dict):
        raise InvalidDocument("not a JSON object")
    return value


def read_hex(name: str, value: object, size_bytes: int) -> bytes:
    """A leaf that holds bytes.

    Raises:
        InvalidDocument: names the leaf.
    """
    try:
        return decode_hex(value, size_bytes)  # type: ignore[arg-type]  # decode_hex refuses what is not text
    except InvalidEncoding as error:
        raise InvalidDocument(f"{name}: {cut(str(error))}") from error


def cut(message: str) -> str:
    """A message of bounded length, whatever a stranger's bytes made of it."""
    return message if len(message) <= MESSAGE_CHARACTERS_MAX else message[:MESSAGE_CHARACTERS_MAX] + "…"


def _refuse_deep(data: bytes) -> None:
    """Without strings, valid JSON keeps matched brackets only, and every pass removes at least the innermost level."""
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(DEPTH_MAX):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise InvalidDocument(f"brackets do not match, or are nested more than {DEPTH_MAX} deep")


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value: dict[str, object] = {}
    for name, item in pairs:
        if name in value:
            raise InvalidDocument(f"the name {name[:80]!r} occurs twice in one JSON object")
        value[name] = item
    return value


def _read_unsigned(text: str) -> int:
    if text.startswith("-") or len(text) > DIGITS_MAX:
        _refuse_number(text)
    return int(text)


def _refuse_number(text: str) -> object:
    raise InvalidDocument(f"{text[:40]} is not an unsigned integer of at most {DIGITS_MAX} digits")
