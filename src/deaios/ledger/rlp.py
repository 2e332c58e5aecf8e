"""Recursive Length Prefix: how Ethereum writes transactions and headers down.

Decoding is strict: every value has exactly one spelling, so a hash over the bytes names the value. Depth and size are
bounded before anything is built. Source: https://ethereum.org/en/developers/docs/data-structures-and-encoding/rlp/
"""

from collections.abc import Sequence

from deaios.primitives.errors import Invalid

DEPTH_MAX = 4
"""A 2930 access list inside a transaction is the deepest thing we read: list, entries, entry, keys."""

Rlp = bytes | Sequence["Rlp"]
Decoded = bytes | list["Decoded"]


class InvalidRlp(Invalid):
    """Bytes that are not the canonical RLP of any value."""


_HEADS = tuple(bytes((first,)) for first in range(256))


def encode_integer(value: int) -> bytes:
    """An unsigned integer as its shortest big-endian bytes; zero is the empty string."""
    return value.to_bytes((value.bit_length() + 7) // 8)


def decode_integer(data: Decoded, bits: int) -> int:
    """Read an unsigned integer below `2**bits`.

    Raises:
        InvalidRlp: a list, leading zero bytes, or out of range.
    """
    if not isinstance(data, bytes):
        raise InvalidRlp("a list stands where an integer belongs")
    if not data:
        return 0
    if data[0] == 0:
        raise InvalidRlp(f"integer has leading zero bytes: 0x{data[:33].hex()}")
    if len(data) * 8 > bits + 7 or (value := int.from_bytes(data)) >> bits:
        raise InvalidRlp(f"integer of {len(data)} bytes exceeds {bits} bits")
    return value


def encode_rlp(value: Rlp) -> bytes:
    """Encode bytes or nested sequences of bytes."""
    if isinstance(value, bytes):
        if len(value) == 1 and value[0] < 0x80:
            return value
        return _head(0x80, len(value)) + value
    return wrap_list([encode_rlp(item) for item in value])


def wrap_list(encoded_items: Sequence[bytes]) -> bytes:
    """The list of items that are encoded already."""
    body = b"".join(encoded_items)
    return _head(0xC0, len(body)) + body


def _head(offset: int, size: int) -> bytes:
    if size < 56:
        return _HEADS[offset + size]
    length = encode_integer(size)
    return bytes((offset + 55 + len(length),)) + length


def decode_rlp(data: bytes) -> Decoded:
    """Decode exactly one value.

    Raises:
        InvalidRlp: truncated, trailing bytes, a second spelling, or nested deeper than `DEPTH_MAX`.
    """
    value, end = _decode(data, 0, len(data), 0)
    if end != len(data):
        raise InvalidRlp(f"{len(data) - end} bytes follow the value")
    return value


def _decode(data: bytes, start: int, end: int, depth: int) -> tuple[Decoded, int]:
    if start >= end:
        raise InvalidRlp(f"value expected at byte {start}, data ends there")
    first = data[start]
    if first < 0x80:
        return data[start : start + 1], start + 1
    if first < 0xC0:
        begin, stop = _span(data, start, end, 0x80)
        if stop - begin == 1 and data[begin] < 0x80:
            raise InvalidRlp(f"byte 0x{data[begin]:02x} is its own encoding, a prefix was added")
        return data[begin:stop], stop
    if depth >= DEPTH_MAX:
        raise InvalidRlp(f"lists nested deeper than {DEPTH_MAX}")
    begin, stop = _span(data, start, end, 0xC0)
    items: list[Decoded] = []
    while begin < stop:
        # Short strings, which is nearly all there is, without a call each.
        first = data[begin]
        if first < 0x80:
            items.append(_HEADS[first])
            begin += 1
        elif first < 0xB8 and (follows := begin + first - 0x7F) <= stop and (first != 0x81 or data[begin + 1] >= 0x80):
            items.append(data[begin + 1 : follows])
            begin = follows
        else:
            item, begin = _decode(data, begin, stop, depth + 1)
            items.append(item)
    return items, stop


def _span(data: bytes, start: int, end: int, offset: int) -> tuple[int, int]:
    """Where the payload of the string or list at `start` begins and stops."""
    size = data[start] - offset
    begin = start + 1
    if size > 55:
        width = size - 55
        length = data[begin : begin + width]
        begin += width
        if begin > end or length[0] == 0 or (size := int.from_bytes(length)) < 56:
            raise InvalidRlp(f"length prefix at byte {start} is truncated or not the shortest")
    if size > end - begin:
        raise InvalidRlp(f"value at byte {start} needs {size} bytes, {end - begin} are left")
    return begin, begin + size
