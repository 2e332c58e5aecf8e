"""The `Range` header of RFC 9110 §14 for one range of bytes. Pure.

A unit other than bytes and a list of ranges are ignored, as the RFC requires of the first and allows for the second:
the reader then gets everything, and status 200 says so.
"""

import re

from deaios.runtime.errors import InvalidRange, RefusedRange

DIGITS_MAX = 19
"""More bytes than any disk has; a longer number is not worth reading."""

_RANGE = re.compile(rf"([0-9]{{0,{DIGITS_MAX}}})-([0-9]{{0,{DIGITS_MAX}}})")
_BLANKS = " \t"


def decode_range(header: str, size_bytes: int) -> range | None:
    """Which bytes a header asks for.

    Args:
        header: the field's value.
        size_bytes: of all there is.

    Returns:
        Their places, at least one; None for all of them.

    Raises:
        InvalidRange: not a range of bytes.
        RefusedRange: it begins behind the last byte.
    """
    unit, _, asked = header.partition("=")
    if unit.strip(_BLANKS).lower() != "bytes":
        return None
    ranges = [text.strip(_BLANKS) for text in asked.split(",")]
    if len(ranges) > 1:
        return None
    match = _RANGE.fullmatch(ranges[0])
    if match is None or ranges[0] == "-":
        raise InvalidRange(f"range {header[:100]!r} is not bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT")
    first_text, last_text = match.groups()
    if first_text:
        first, last = int(first_text), int(last_text) if last_text else size_bytes - 1
        if last_text and last < first:
            raise InvalidRange(f"range {header[:100]!r} ends before it begins")
    else:
        first, last = max(0, size_bytes - int(last_text)), size_bytes - 1
    if first >= size_bytes:
        raise RefusedRange(f"range {header[:100]!r} has none of the {size_bytes} bytes", size_bytes)
    return range(first, min(last + 1, size_bytes))
