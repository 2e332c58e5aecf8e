"""What a published matrix holds: one content, a bundle of small ones, or the manifest of a large one.

    "deaios/blob/1" || kind byte || body
    kind 1, single: content
    kind 2, bundle: count uint32 || count times (end uint32 || expires_at uint64) || items back to back
    kind 3, large: encoding of a manifest whose segments are raw matrices

All integers big-endian. A payload has one encoding: no empty content, ends rise and the last one is the end of the
payload. Every count is checked against the bytes at hand. Knows no matrix, network or time: whether an item has
expired is for who knows the time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

import numpy as np

from deaios.primitives.encoding import decode_decimal, decode_hex, encode_decimal, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import HASH_BYTES
from deaios.rows.manifest import SEGMENT_BYTES_MAX, Manifest, decode_manifest

Bytes = bytes | memoryview

MAGIC = b"deaios/blob/1"

PAYLOAD_BYTES_MAX = SEGMENT_BYTES_MAX
"""Largest payload: what a reader must hold in memory at once. A longer content is published as a large blob."""

ITEMS_MAX = 65_536
"""Items of a bundle: their numbers take 16 bits."""

_NUMBER_BITS = (ITEMS_MAX - 1).bit_length()
_COUNT_BYTES = 4
_END_BYTES = 4
_EXPIRY_BYTES = 8
_ENTRY = np.dtype([("end", f">u{_END_BYTES}"), ("expires_at", f">u{_EXPIRY_BYTES}")])

HEADER_BYTES = len(MAGIC) + 1
"""Before the content of a single, and before the manifest of a large one."""

BUNDLE_HEADER_BYTES = HEADER_BYTES + _COUNT_BYTES
"""Before the entries of a bundle."""

ENTRY_BYTES = _END_BYTES + _EXPIRY_BYTES
"""What an item of a bundle takes beside its content."""

SINGLE_BYTES_MAX = PAYLOAD_BYTES_MAX - HEADER_BYTES
"""Longest content of a single."""


class InvalidBlob(Invalid):
    """Bytes that are not the canonical encoding of any payload, or an id that names nothing in it."""


class Kind(IntEnum):
    """What follows the magic."""

    SINGLE = 1
    BUNDLE = 2
    LARGE = 3


@dataclass(frozen=True, slots=True)
class BlobId:
    """The name of a content: the matrix's commitment and, for an item of a bundle, its number in it."""

    commitment: bytes
    number: int | None = None

    def __post_init__(self) -> None:
        if len(self.commitment) != HASH_BYTES:
            raise InvalidBlob(f"commitment has {len(self.commitment)} bytes, {HASH_BYTES} expected")
        if self.number is not None and not 0 <= self.number < ITEMS_MAX:
            raise InvalidBlob(f"item number {self.number} outside {ITEMS_MAX} items")

    def __str__(self) -> str:
        """The canonical text: 0x hex, and for an item a point and its number in decimal."""
        text = encode_hex(self.commitment)
        return text if self.number is None else f"{text}.{encode_decimal(self.number)}"


def parse_blob_id(text: str) -> BlobId:
    """Read canonical text.

    Raises:
        Invalid: another spelling, or a number that no item can have.
    """
    commitment, point, number = text.partition(".")
    return BlobId(decode_hex(commitment, HASH_BYTES), decode_decimal(number, _NUMBER_BITS) if point else None)


@dataclass(frozen=True, slots=True)
class Item:
    """One content of a bundle and the end of its term, in Unix seconds."""

    content: Bytes
    expires_at: int


@dataclass(frozen=True, slots=True)
class Single:
    """A payload with one content."""

    content: memoryview


@dataclass(frozen=True, slots=True)
class Bundle:
    """A payload with several contents, each read when it is asked for.

    Attributes:
        payload: the checked bytes; items are views of them.
        count: number of items.
    """

    payload: memoryview
    count: int

    def get_item(self, number: int) -> Item:
        """One item, without a copy.

        Raises:
            InvalidBlob: no item has this number.
        """
        place = locate_content(lambda start, end: self.payload[start:end], len(self.payload), number)
        assert place.expires_at is not None
        return Item(self.payload[place.start : place.end], place.expires_at)

    def iterate_items(self) -> Iterator[Item]:
        """All items in order."""
        return map(self.get_item, range(self.count))


@dataclass(frozen=True, slots=True)
class Large:
    """A payload that names the segments of a content too long for one matrix."""

    manifest: Manifest


Payload = Single | Bundle | Large


@dataclass(frozen=True, slots=True)
class Place:
    """Where a content lies in its payload, and when its term ends if the payload says so."""

    start: int
    end: int
    expires_at: int | None


def encode_single(content: Bytes) -> bytes:
    """The payload of one content of 1 byte to `SINGLE_BYTES_MAX`.

    Raises:
        InvalidBlob: a content of another size.
    """
    if not content:
        raise InvalidBlob("content of 0 bytes; at least 1 expected")
    return _seal(Kind.SINGLE, content)


def encode_bundle(items: Sequence[Item]) -> bytes:
    """The payload of several contents, numbered in this order.

    Raises:
        InvalidBlob: no items or too many, an empty one, a term that is no uint64, or too many bytes in all.
    """
    if not 1 <= len(items) <= ITEMS_MAX:
        raise InvalidBlob(f"bundle of {len(items)} items; 1 to {ITEMS_MAX} allowed")
    for number, item in enumerate(items):
        if not item.content:
            raise InvalidBlob(f"item {number} has 0 bytes; at least 1 expected")
        if not 0 <= item.expires_at < 1 << 8 * _EXPIRY_BYTES:
            raise InvalidBlob(f"item {number} expires at {item.expires_at}; uint64 expected")
    ends = list(accumulate(len(item.content) for item in items))
    _validate_size(BUNDLE_HEADER_BYTES + len(items) * ENTRY_BYTES + ends[-1])
    entries = np.empty(len(items), _ENTRY)
    entries["end"] = ends
    entries["expires_at"] = [item.expires_at for item in items]
    count = len(items).to_bytes(_COUNT_BYTES)
    return _seal(Kind.BUNDLE, count, entries.tobytes(), *(item.content for item in items))


def encode_large(manifest: Manifest) -> bytes:
    """The payload that names the segments of a long content.

    Raises:
        InvalidBlob: a manifest without segments.
    """
    if not manifest.segments:
        raise InvalidBlob("a large blob has 0 segments; at least 1 expected")
    return _seal(Kind.LARGE, manifest.encode())


def decode_payload(data: Bytes) -> Payload:
    """Read a payload without copying its contents.

    Raises:
        Invalid: bytes that none of the encoders wrote.
    """
    view = memoryview(data)
    _validate_size(len(view))

    def read(start: int, end: int) -> memoryview:
        return view[start:end]

    match _read_kind(read):
        case Kind.SINGLE:
            place = locate_content(read, len(view), None)
            return Single(view[place.start : place.end])
        case Kind.BUNDLE:
            count = _read_count(read, len(view))
            items_start = BUNDLE_HEADER_BYTES + count * ENTRY_BYTES
            ends = np.frombuffer(view[BUNDLE_HEADER_BYTES:items_start], _ENTRY)["end"].astype(np.int64)
            if np.diff(ends, prepend=0).min() < 1 or ends[-1] != len(view) - items_start:
                raise InvalidBlob(f"ends of {count} items do not rise to {len(view) - items_start}")
            return Bundle(view, count)
        case Kind.LARGE:
            manifest = decode_manifest(bytes(view[HEADER_BYTES:]))
            if not manifest.segments:
                raise InvalidBlob("a large blob has 0 segments; at least 1 expected")
            return Large(manifest)


def locate_content(read: Callable[[int, int], Bytes], length: int, number: int | None) -> Place:
    """Where a content lies in a payload of which not all bytes need be at hand.

    Args:
        read: gives the bytes between two offsets; what is read here is what proves the place.
        length: of the payload.
        number: of the item in a bundle; None for the content of a single.

    Raises:
        InvalidBlob: nothing has this number, or what is read is not canonical.
    """
    kind = _read_kind(read)
    if kind is not (Kind.SINGLE if number is None else Kind.BUNDLE):
        raise InvalidBlob(f"number {number} names nothing in a payload of kind {kind.name.lower()}")
    if number is None:
        if length <= HEADER_BYTES:
            raise InvalidBlob("content of 0 bytes; at least 1 expected")
        return Place(HEADER_BYTES, length, None)
    count = _read_count(read, length)
    if not 0 <= number < count:
        raise InvalidBlob(f"item number {number} outside {count} items")
    entry = BUNDLE_HEADER_BYTES + number * ENTRY_BYTES
    before = min(number, 1) * ENTRY_BYTES
    found = bytes(read(entry - before, entry + ENTRY_BYTES))
    start = int.from_bytes(found[:_END_BYTES]) if before else 0
    end = int.from_bytes(found[before : before + _END_BYTES])
    items_start = BUNDLE_HEADER_BYTES + count * ENTRY_BYTES
    items_bytes = length - items_start
    if not start < end <= items_bytes or (end < items_bytes) != (number < count - 1):
        raise InvalidBlob(f"item {number} of {count} from {start} to {end} in {items_bytes} bytes")
    return Place(items_start + start, items_start + end, int.from_bytes(found[before + _END_BYTES :]))


def _seal(kind: Kind, *parts: Bytes) -> bytes:
    _validate_size(HEADER_BYTES + sum(map(len, parts)))
    return b"".join((MAGIC, bytes([kind]), *parts))


def _validate_size(size_bytes: int) -> None:
    if not HEADER_BYTES < size_bytes <= PAYLOAD_BYTES_MAX:
        raise InvalidBlob(f"payload of {size_bytes} bytes; {HEADER_BYTES + 1} to {PAYLOAD_BYTES_MAX} allowed")


def _read_kind(read: Callable[[int, int], Bytes]) -> Kind:
    header = bytes(read(0, HEADER_BYTES))
    if header[:-1] != MAGIC:
        raise InvalidBlob(f"payload does not start as a {MAGIC.decode()}")
    try:
        return Kind(header[-1])
    except ValueError as error:
        raise InvalidBlob(f"payload of kind {header[-1]}; 1 to {max(Kind)} known") from error


def _read_count(read: Callable[[int, int], Bytes], length: int) -> int:
    if length <= BUNDLE_HEADER_BYTES:
        raise InvalidBlob(f"bundle of {length} bytes has no count and item")
    count = int.from_bytes(read(HEADER_BYTES, BUNDLE_HEADER_BYTES))
    if not 1 <= count <= ITEMS_MAX:
        raise InvalidBlob(f"bundle of {count} items; 1 to {ITEMS_MAX} allowed")
    bytes_min = BUNDLE_HEADER_BYTES + count * (ENTRY_BYTES + 1)
    if length < bytes_min:
        raise InvalidBlob(f"bundle of {length} bytes; at least {bytes_min} expected for {count} items")
    return count
