"""A row as it travels and lies on disk: with everything that a stranger needs to check it.

    "deaios/row/1" || index uint16 || parameters || root || y || proof || row

No lengths are written: all follow from the parameters, and another total is refused. Knows no transport and no disk.
"""

from dataclasses import dataclass

from deaios.coding.head import Head, decode_head
from deaios.coding.matrix import CodedMatrix, RowVerifier, prove_row, verify_row
from deaios.coding.parameters import PARAMETERS_BYTES, Parameters
from deaios.coding.tree import Path
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import HASH_BYTES
from deaios.rows.manifest import SEGMENT_BYTES_MAX

_MAGIC = b"deaios/row/1"
_START = len(_MAGIC) + 2

MESSAGE_BYTES_MAX = SEGMENT_BYTES_MAX + (64 << 10)
"""Largest row message a node takes: a whole segment in one row (k = 1), with head and proof to spare."""


class InvalidRow(Invalid):
    """Bytes that are not a row message, or a row that the commitment does not name."""


@dataclass(frozen=True, slots=True)
class RowMessage:
    """One row with its head and proof."""

    index: int
    head: Head
    proof: Path
    row: memoryview

    def encode(self) -> bytes:
        """The canonical bytes."""
        return b"".join((_MAGIC, self.index.to_bytes(2), self.head.encode(), *self.proof, self.row))


def build_message(matrix: CodedMatrix, index: int) -> RowMessage:
    """The message of one row of a matrix."""
    return RowMessage(index, matrix.head, prove_row(matrix, index), matrix.get_row(index))


def compute_message_bytes(parameters: Parameters) -> int:
    """Exact size of each row message of a matrix."""
    profile = parameters.profile
    head_bytes = PARAMETERS_BYTES + HASH_BYTES + profile.combination_bytes
    return _START + head_bytes + profile.depth * HASH_BYTES + parameters.row_bytes


def decode_message(data: bytes) -> RowMessage:
    """Read a message without copying the row; says nothing about whether the row is right.

    Raises:
        Invalid: another magic, parameters out of range, or a total size other than the parameters give.
    """
    view = memoryview(data)
    if len(view) < _START or view[: len(_MAGIC)] != _MAGIC:
        raise InvalidRow(f"{len(view)} bytes do not start as a {_MAGIC.decode()}")
    head, head_bytes = decode_head(view[_START:])
    expected = compute_message_bytes(head.parameters)
    if len(view) != expected:
        raise InvalidRow(f"row message has {len(view)} bytes, {expected} expected")
    index = int.from_bytes(view[len(_MAGIC) : _START])
    if index >= head.parameters.profile.rows:
        raise InvalidRow(f"row {index} outside {head.parameters.profile.rows} rows")
    place = _START + head_bytes
    end = place + head.parameters.profile.depth * HASH_BYTES
    proof = tuple(bytes(view[at : at + HASH_BYTES]) for at in range(place, end, HASH_BYTES))
    return RowMessage(index, head, proof, view[end:])


def validate_message(commitment: bytes, index: int, data: bytes) -> RowMessage:
    """Read a message and check its row against the commitment: what every node does before it stores one.

    Raises:
        Invalid: malformed, or not row `index` of that matrix.
    """
    message = decode_message(data)
    if message.index != index:
        raise InvalidRow(f"message holds row {message.index}, {index} expected")
    if not verify_row(commitment, message.head, index, message.row, message.proof):
        raise InvalidRow(f"row {index} does not verify against commitment {commitment.hex()}")
    return message


class RowChecker:
    """Checks rows of one matrix as they come from strangers; what all rows share is set up once.

    May be used from several threads: at worst the set-up is done twice.
    """

    __slots__ = ("_commitment", "_parameters", "_verifier")

    def __init__(self, commitment: bytes, parameters: Parameters) -> None:
        self._commitment = commitment
        self._parameters = parameters
        self._verifier: RowVerifier | None = None

    def check(self, index: int, data: bytes) -> RowMessage:
        """Read a message that was asked for as row `index`.

        Raises:
            Invalid: malformed, or not that row of that matrix.
        """
        message = decode_message(data)
        if message.head.parameters != self._parameters or message.index != index:
            raise InvalidRow(
                f"row {message.index} of {message.head.parameters}; {index} of {self._parameters} expected"
            )
        verifier = self._verifier
        if verifier is None or verifier.head != message.head:
            self._verifier = verifier = RowVerifier(self._commitment, message.head)
        if not verifier.verify(index, message.row, message.proof):
            raise InvalidRow(f"row {index} does not verify against commitment {encode_hex(self._commitment)}")
        return message
