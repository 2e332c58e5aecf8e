"""Bodies of `multipart/form-data` (RFC 7578), read strictly from memory.

Pure. Invariant: a form is a bounded number of parts, each with one name, no name twice; what is not such a form is
refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from deaios.market.fields import InvalidParameter
from deaios.runtime.errors import InvalidBody

PARTS_MAX = 16
HEAD_BYTES_MAX = 4096
BOUNDARY_CHARS_MAX = 70
"""RFC 2046, section 5.1.1."""
TEXT_BYTES_MAX = 1024
_BOUNDARY = re.compile(r'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(name|filename)="((?:[^"\\\r\n]|\\.)*)"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Field:
    """One part of a form; `filename` is None where it is plain text."""

    content: bytes
    filename: str | None = None

    def read_text(self, name: str) -> str:
        """The content of a short text.

        Raises:
            InvalidParameter: it is a file, too long or not UTF-8.
        """
        if self.filename is not None or len(self.content) > TEXT_BYTES_MAX:
            raise InvalidParameter(name, f"{name} is a file or longer than {TEXT_BYTES_MAX} bytes; text is expected")
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            raise InvalidParameter(name, f"{name} is not UTF-8") from error


def read_form(content_type: str, body: bytes) -> Mapping[str, Field]:
    """The parts of a form by their names.

    Raises:
        InvalidBody: it is not such a form.
        InvalidParameter: a name comes twice.
    """
    match = _BOUNDARY.match(content_type[:1024])
    boundary = (match[1] or match[2]) if match else ""
    if not 0 < len(boundary) <= BOUNDARY_CHARS_MAX:
        raise InvalidBody("the body is not multipart/form-data with a boundary")
    mark = b"\r\n--" + boundary.encode()
    first, *pieces = (b"\r\n" + body).split(mark, PARTS_MAX + 2)
    if first.strip() or not pieces or not pieces[-1].startswith(b"--"):
        raise InvalidBody(f"the form does not end with its boundary, or has more than {PARTS_MAX} parts")
    fields: dict[str, Field] = {}
    for piece in pieces[:-1]:
        name, field = _read_part(piece)
        if name in fields:
            raise InvalidParameter(name[:80], f"{name[:80]!r} comes twice in the form")
        fields[name] = field
    return fields


def _read_part(piece: bytes) -> tuple[str, Field]:
    head, separator, content = piece.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"\r\n") or len(head) > HEAD_BYTES_MAX:
        raise InvalidBody("a part of the form has no head, or too long a one")
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidBody("the head of a part is not UTF-8") from error
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition" and value.strip().lower().startswith("form-data"):
            found = {name.lower(): re.sub(r"\\(.)", r"\1", text) for name, text in _PARAMETER.findall(value)}
            if "name" in found:
                return found["name"], Field(content, found.get("filename"))
    raise InvalidBody("a part of the form has no name")
