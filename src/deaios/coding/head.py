"""What a reader needs beside a row: parameters, root and combinations, all bound by one 32-byte commitment.

commitment = SHA-256("deaios/code/1" || root || SHA-256(y) || parameters). Every size is derived from the parameters, so
a claimed size never causes an allocation. Knows no rows.
"""

from dataclasses import dataclass
from functools import cached_property

from deaios.coding.parameters import PARAMETERS_BYTES, Parameters, decode_parameters
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import HASH_BYTES, sha256

COMMITMENT_TAG = b"deaios/code/1"


class InvalidHead(Invalid):
    """A head with wrong sizes, or one that the commitment does not bind."""


def seal_commitment(root: bytes, combinations_hash: bytes, parameters: Parameters) -> bytes:
    """The 32 bytes that name a matrix, from its root and the hash of its combinations."""
    return sha256(COMMITMENT_TAG + root + combinations_hash + parameters.encode())


@dataclass(frozen=True)
class Head:
    """Parameters, Merkle root, and `y`: the combinations of the data rows, (k, tests) uint16 little-endian."""

    parameters: Parameters
    root: bytes
    y: bytes

    def __post_init__(self) -> None:
        if len(self.root) != HASH_BYTES:
            raise InvalidHead(f"root has {len(self.root)} bytes, {HASH_BYTES} expected")
        expected = self.parameters.profile.combination_bytes
        if len(self.y) != expected:
            raise InvalidHead(f"y has {len(self.y)} bytes, {expected} expected for {self.parameters.profile}")

    @cached_property
    def commitment(self) -> bytes:
        """The 32 bytes that name the matrix."""
        return seal_commitment(self.root, sha256(self.y), self.parameters)

    def encode(self) -> bytes:
        """Parameters, root and y in this order; no lengths, since they follow from the parameters."""
        return self.parameters.encode() + self.root + self.y


def decode_head(data: bytes | memoryview) -> tuple[Head, int]:
    """Read a head from the front of some bytes.

    Returns:
        The head and the number of bytes it took.

    Raises:
        Invalid: parameters out of range, or fewer bytes than they ask for.
    """
    parameters = decode_parameters(bytes(data[:PARAMETERS_BYTES]))
    start = PARAMETERS_BYTES + HASH_BYTES
    end = start + parameters.profile.combination_bytes
    if len(data) < end:
        raise InvalidHead(f"head has {len(data)} bytes, {end} expected for {parameters.profile}")
    return Head(parameters, bytes(data[PARAMETERS_BYTES:start]), bytes(data[start:end])), end
