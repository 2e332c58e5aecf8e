"""Frames between a relay and the role behind it: many HTTP exchanges over one WebSocket. Pure.

One binary WebSocket message is one frame: kind (1 byte), stream (4 bytes, big-endian), payload. The relay opens
streams, numbered upwards from 1 and never used twice in a session. In each direction a stream carries one head, then
data, then an end; data needs credit that the reader grants, so that a slow reader holds up its own stream and no other.

    OPEN    relay → role    JSON: method, path with query, headers
    HEAD    role → relay    JSON: status, headers
    DATA    both            1 to `DATA_BYTES_MAX` bytes
    END     both            nothing more comes in this direction
    RESET   both            the exchange failed; a reason as text
    CREDIT  both            4 bytes: so many more bytes of data may be sent
    DRAIN   role → relay    stream 0: open no more streams here, those that are open go on
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import msgspec

from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import Invalid

DATA_BYTES_MAX = 32 << 10
"""In one frame: small enough that streams take turns."""
HEAD_BYTES_MAX = 16 << 10
"""Of an OPEN or HEAD, as one line of an HTTP head."""
FRAME_BYTES_MAX = 5 + DATA_BYTES_MAX
MESSAGE_BYTES_MAX = FRAME_BYTES_MAX + 1
"""As aiohttp counts: the first size that it refuses."""
CREDIT_BYTES = 128 << 10
"""What each direction of a stream may send before any credit: thousands of lines of tokens."""
REASON_CHARACTERS_MAX = 200
PATH_CHARACTERS_MAX = 2048
HEADERS_MAX = 64
STREAM_MAX = (1 << 32) - 1
METHODS = ("GET", "POST")
"""What a provider's door is asked with."""
_HEAD_SIZE = 5

T = TypeVar("T")


class InvalidFrame(Invalid):
    """Bytes that are no frame, or a frame that must not come now; the session ends."""


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    HEAD = 2
    DATA = 3
    END = 4
    RESET = 5
    CREDIT = 6
    DRAIN = 7


_PAYLOAD_BYTES = {
    Kind.OPEN: (2, HEAD_BYTES_MAX),
    Kind.HEAD: (2, HEAD_BYTES_MAX),
    Kind.DATA: (1, DATA_BYTES_MAX),
    Kind.END: (0, 0),
    Kind.RESET: (0, 4 * REASON_CHARACTERS_MAX),
    Kind.CREDIT: (4, 4),
    Kind.DRAIN: (0, 0),
}
"""Fewest and most bytes of payload."""


class Opening(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A request's head."""

    method: str
    path: str
    headers: list[tuple[str, str]]


class Head(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An answer's head."""

    status: int
    headers: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as read; heads are decoded, everything else is its payload."""

    kind: Kind
    stream: int
    payload: bytes = b""


def encode_frame(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    """One WebSocket message."""
    return kind.to_bytes(1) + stream.to_bytes(4) + payload


def encode_credit(stream: int, size_bytes: int) -> bytes:
    """A grant."""
    return encode_frame(Kind.CREDIT, stream, size_bytes.to_bytes(4))


def encode_reset(stream: int, reason: str) -> bytes:
    """The end of an exchange that failed."""
    return encode_frame(Kind.RESET, stream, reason[:REASON_CHARACTERS_MAX].encode(errors="replace"))


def encode_opening(stream: int, opening: Opening) -> bytes:
    """A request's head.

    Raises:
        InvalidFrame: it has too many bytes.
    """
    return _encode_head(Kind.OPEN, stream, opening)


def encode_head(stream: int, head: Head) -> bytes:
    """An answer's head.

    Raises:
        InvalidFrame: it has too many bytes.
    """
    return _encode_head(Kind.HEAD, stream, head)


def _encode_head(kind: Kind, stream: int, head: Opening | Head) -> bytes:
    payload = msgspec.json.encode(head)
    if len(payload) > HEAD_BYTES_MAX:
        raise InvalidFrame(f"head has {len(payload)} bytes, at most {HEAD_BYTES_MAX} allowed")
    return encode_frame(kind, stream, payload)


def decode_frame(data: bytes) -> Frame:
    """Read one WebSocket message.

    Raises:
        InvalidFrame: too short, too long, of no known kind, or with a payload that its kind does not have.
    """
    if not _HEAD_SIZE <= len(data) <= FRAME_BYTES_MAX:
        raise InvalidFrame(f"frame has {len(data)} bytes, {_HEAD_SIZE} to {FRAME_BYTES_MAX} allowed")
    try:
        kind = Kind(data[0])
    except ValueError as error:
        raise InvalidFrame(f"frame is of kind {data[0]}, known are {Kind.OPEN} to {Kind.DRAIN}") from error
    frame = Frame(kind, int.from_bytes(data[1:_HEAD_SIZE]), bytes(data[_HEAD_SIZE:]))
    if (frame.stream == 0) != (kind is Kind.DRAIN):
        raise InvalidFrame(f"{kind.name} on stream {frame.stream}")
    size = len(frame.payload)
    least, most = _PAYLOAD_BYTES[kind]
    fits = least <= size <= most and (kind is not Kind.CREDIT or any(frame.payload))
    if not fits:
        raise InvalidFrame(f"{kind.name} has {size} bytes of payload")
    return frame


def decode_opening(frame: Frame) -> Opening:
    """Read a request's head.

    Raises:
        InvalidFrame: not of that form, or something that a door is never asked.
    """
    opening = _decode(frame.payload, Opening)
    if opening.method not in METHODS:
        raise InvalidFrame(f"method {opening.method[:16]!r} is not one of {', '.join(METHODS)}")
    validate_path(opening.path)
    _validate_headers(opening.headers)
    return opening


def decode_head(frame: Frame) -> Head:
    """Read an answer's head.

    Raises:
        InvalidFrame: not of that form.
    """
    head = _decode(frame.payload, Head)
    if not 200 <= head.status <= 599:
        raise InvalidFrame(f"status {head.status} is not 200 to 599")
    _validate_headers(head.headers)
    return head


def validate_path(path: str) -> None:
    """Refuse what is no path of a door.

    Raises:
        InvalidFrame: relative, too long, or with characters that a request line cannot have.
    """
    plain = path.isascii() and path.isprintable() and " " not in path and "#" not in path
    if not path.startswith("/") or path.startswith("//") or not plain or len(path) > PATH_CHARACTERS_MAX:
        raise InvalidFrame(f"not a path of a door: {path[:80]!r}")


def _validate_headers(headers: list[tuple[str, str]]) -> None:
    if len(headers) > HEADERS_MAX:
        raise InvalidFrame(f"{len(headers)} headers, at most {HEADERS_MAX} allowed")
    for name, value in headers:
        is_token = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not is_token or not value.isascii() or not (value.isprintable() or value == ""):
            raise InvalidFrame(f"not a header: {name[:40]!r}")


def _decode(payload: bytes, kind: type[T]) -> T:
    try:
        validate_json_depth(payload)
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeError, InvalidEncoding) as error:
        raise InvalidFrame(f"not a {kind.__name__}: {error}") from error
