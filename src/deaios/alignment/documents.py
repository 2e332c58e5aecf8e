"""JSON documents that strangers hand over, read so that no two readers can see two different things in one of them.

Every name of an object occurs once, every number is an unsigned integer in its one spelling (any other comes out as
`Misspelt`, which no leaf accepts, so that the leaf is named), nesting is bounded before a recursive parser sees the
bytes. Pure; knows no format.
"""

import json

from deaios.primitives.encoding import InvalidEncoding, decode_hex, validate_json_depth
from deaios.primitives.errors import Invalid

DEPTH_MAX = 8
"""Twice what an answer or evidence needs."""
DIGITS_MAX = 20
"""An unsigned 64-bit number; wider ones are text in every format here."""
MESSAGE_CHARACTERS_MAX = 300
"""Of what a parser says about hostile bytes."""


class InvalidDocument(Invalid):
    """Bytes that are not one JSON object with one meaning."""


class Misspelt:
    """A JSON number that is no unsigned integer of bounded size."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text[:40]


def read_document(data: bytes, bytes_max: int) -> dict[str, object]:
    """Parse one JSON object.

    Raises:
        InvalidDocument: too long, not JSON, too deep, or a name twice.
    """
    if len(data) > bytes_max:
        raise InvalidDocument(f"{len(data)} bytes, at most {bytes_max} are read")
    try:
        text = data.decode()
        validate_json_depth(data, DEPTH_MAX)
        value = json.loads(
            text,
            object_pairs_hook=_refuse_duplicates,
            parse_int=_read_unsigned,
            parse_float=Misspelt,
            parse_constant=Misspelt,
        )
    except (ValueError, InvalidEncoding) as error:
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


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value: dict[str, object] = {}
    for name, item in pairs:
        if name in value:
            raise InvalidDocument(f"the name {name[:80]!r} occurs twice in one JSON object")
        value[name] = item
    return value


def _read_unsigned(text: str) -> object:
    return Misspelt(text) if text.startswith("-") or len(text) > DIGITS_MAX else int(text)
