"""A file as ordered segments, each one coded matrix; the manifest's id names the file everywhere.

    "deaios/manifest/1" || k uint16 || n uint16 || size uint64 || content id || count uint32
    || count times (commitment || size uint32)

All integers big-endian. One manifest has one encoding: segment sizes sum to the file's size, and no byte may follow.
The content id (BLAKE3) and sizes are claims until the segments are decoded and checked.
"""

from dataclasses import dataclass
from functools import cached_property

from deaios.coding.parameters import Parameters, Profile
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256

SEGMENT_BYTES_MAX = 16 << 20
"""Largest payload of one segment: what a reader must hold in memory at once."""

SEGMENTS_MAX = 65_536
"""One tebibyte in full segments."""

_TAG = "deaios/manifest/1"
_MAGIC = _TAG.encode()
_HASH_BYTES = 32
_HEADER_BYTES = len(_MAGIC) + 2 + 2 + 8 + _HASH_BYTES + 4
_SEGMENT_BYTES = _HASH_BYTES + 4

MANIFEST_BYTES_MAX = _HEADER_BYTES + SEGMENTS_MAX * _SEGMENT_BYTES


class InvalidManifest(Invalid):
    """Bytes that are not the canonical encoding of any file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One coded matrix of a file: its commitment and payload size."""

    commitment: bytes
    size_bytes: int

    def __post_init__(self) -> None:
        if len(self.commitment) != _HASH_BYTES:
            raise InvalidManifest(f"commitment has {len(self.commitment)} bytes, {_HASH_BYTES} expected")
        if not 1 <= self.size_bytes <= SEGMENT_BYTES_MAX:
            raise InvalidManifest(f"segment of {self.size_bytes} bytes; 1 to {SEGMENT_BYTES_MAX} allowed")


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to fetch and check a file."""

    profile: Profile
    size_bytes: int
    content_id: bytes
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if len(self.segments) > SEGMENTS_MAX:
            raise InvalidManifest(f"{len(self.segments)} segments exceed {SEGMENTS_MAX}")
        if self.profile.is_sampled:
            raise InvalidManifest(f"rows of {self.profile} cannot be verified one by one, as readers of files do")
        if len(self.content_id) != _HASH_BYTES:
            raise InvalidManifest(f"content id has {len(self.content_id)} bytes, {_HASH_BYTES} expected")
        total = sum(segment.size_bytes for segment in self.segments)
        if total != self.size_bytes:
            raise InvalidManifest(f"segments hold {total} bytes, file size says {self.size_bytes}")

    @cached_property
    def manifest_id(self) -> bytes:
        """The 32 bytes that name the file."""
        return tagged_sha256(_TAG, self.encode())

    def encode(self) -> bytes:
        """The canonical bytes."""
        parts = [
            _MAGIC,
            self.profile.data_rows.to_bytes(2),
            self.profile.rows.to_bytes(2),
            self.size_bytes.to_bytes(8),
            self.content_id,
            len(self.segments).to_bytes(4),
        ]
        parts += [segment.commitment + segment.size_bytes.to_bytes(4) for segment in self.segments]
        return b"".join(parts)

    def get_parameters(self, index: int) -> Parameters:
        """Coding parameters of one segment."""
        return Parameters(self.profile, self.segments[index].size_bytes)


def decode_manifest(data: bytes) -> Manifest:
    """Read canonical bytes.

    Raises:
        Invalid: another magic, size or range; nothing is allocated for a claimed count.
    """
    if len(data) < _HEADER_BYTES or data[: len(_MAGIC)] != _MAGIC:
        raise InvalidManifest(f"{len(data)} bytes do not start as a {_TAG}")
    place = len(_MAGIC)
    profile = Profile(int.from_bytes(data[place : place + 2]), int.from_bytes(data[place + 2 : place + 4]))
    size_bytes = int.from_bytes(data[place + 4 : place + 12])
    content_id = data[place + 12 : place + 44]
    count = int.from_bytes(data[place + 44 : _HEADER_BYTES])
    expected = _HEADER_BYTES + count * _SEGMENT_BYTES
    if len(data) != expected:
        raise InvalidManifest(f"manifest has {len(data)} bytes, {expected} expected for {count} segments")
    segments = tuple(
        Segment(data[at : at + _HASH_BYTES], int.from_bytes(data[at + _HASH_BYTES : at + _SEGMENT_BYTES]))
        for at in range(_HEADER_BYTES, expected, _SEGMENT_BYTES)
    )
    return Manifest(profile, size_bytes, content_id, segments)


def open_manifest(manifest_id: bytes, data: bytes) -> Manifest:
    """Read a manifest that a stranger sent for an id.

    Raises:
        Invalid: not the manifest of that id.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise InvalidManifest(f"manifest of {len(data)} bytes exceeds {MANIFEST_BYTES_MAX}")
    found = tagged_sha256(_TAG, data)
    if found != manifest_id:
        raise InvalidManifest(f"bytes have manifest id {found.hex()}, {manifest_id.hex()} expected")
    return decode_manifest(data)
