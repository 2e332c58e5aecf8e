"""What members say beside rows: attestations and leaves. Pure.

A leaf comes with what a contract needs to check it against a commitment: parameters, root, hash of y, and its path.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from deaios.coding.head import seal_commitment
from deaios.coding.matrix import verify_leaf
from deaios.coding.parameters import LEAF_BYTES, decode_parameters
from deaios.coding.tree import build_levels, hash_leaves, read_path
from deaios.ledger.structs import RowAttestation
from deaios.primitives.encoding import decode_hex, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import HASH_BYTES, sha256
from deaios.primitives.keys import SIGNATURE_SIZE
from deaios.rows.message import RowMessage

_UINT64_MAX = (1 << 64) - 1


class InvalidAttestation(Invalid):
    """An attestation, or a request for one, that is malformed or signed by somebody else."""


class InvalidLeaves(Invalid):
    """Leaves that are not what was asked for, or that the commitment does not bind."""


class AttestationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Body of `POST /attestations`."""

    commitment: str
    epoch: int
    begins_at: int
    expires_at: int


class AttestationAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """Answer: the member's place in the epoch's committee, and its signature, 65 bytes."""

    place: int
    signature: str


def encode_attestation(attestation: RowAttestation) -> bytes:
    """The body that asks for an attestation."""
    body = AttestationBody(
        encode_hex(attestation.commitment), attestation.epoch, attestation.begins_at, attestation.expires_at
    )
    return msgspec.json.encode(body)


def read_attestation(body: AttestationBody) -> RowAttestation:
    """What is to be signed.

    Raises:
        Invalid: a commitment that is not 32 bytes of hex, or a number outside 64 bits.
    """
    for name, value in (("epoch", body.epoch), ("beginsAt", body.begins_at), ("expiresAt", body.expires_at)):
        if not 0 <= value <= _UINT64_MAX:
            raise InvalidAttestation(f"{name} is {value}; 0 to 2^64 - 1 expected")
    return RowAttestation(decode_hex(body.commitment, 32), body.epoch, body.begins_at, body.expires_at)


def read_signature(answer: AttestationAnswer) -> bytes:
    """The signature's bytes.

    Raises:
        Invalid: not 65 bytes of hex.
    """
    return decode_hex(answer.signature, SIGNATURE_SIZE)


class LeafAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """One leaf of a row: its 1 KiB and the hashes from it to the root."""

    leaf: int
    data: str
    path: list[str]


class LeavesAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """Leaves of one row, each of which proves itself."""

    row: int
    parameters: str
    root: str
    combinations_hash: str
    leaves: list[LeafAnswer]


def build_leaves(message: RowMessage, leaves: range) -> LeavesAnswer:
    """Leaves of a verified row; the range is within it."""
    head, row = message.head, message.row
    # One tree for all leaves: anybody may ask, and a row of many megabytes must not be hashed once for each.
    levels = build_levels(hash_leaves(np.frombuffer(row, np.uint8)))

    def build(leaf: int) -> LeafAnswer:
        path = read_path(levels, leaf) + message.proof
        data = bytes(row[leaf * LEAF_BYTES : (leaf + 1) * LEAF_BYTES])
        return LeafAnswer(leaf, encode_hex(data), [encode_hex(node) for node in path])

    return LeavesAnswer(
        message.index,
        encode_hex(head.parameters.encode()),
        encode_hex(head.root),
        encode_hex(sha256(head.y)),
        [build(leaf) for leaf in leaves],
    )


def read_leaves(commitment: bytes, row: int, leaves: Sequence[int], answer: LeavesAnswer) -> list[bytes]:
    """The leaves' bytes, checked against a commitment.

    Raises:
        Invalid: not these leaves of this row of that matrix.
    """
    parameters = decode_parameters(decode_hex(answer.parameters))
    root = decode_hex(answer.root, HASH_BYTES)
    found = seal_commitment(root, decode_hex(answer.combinations_hash, HASH_BYTES), parameters)
    if found != commitment or answer.row != row or [item.leaf for item in answer.leaves] != list(leaves):
        raise InvalidLeaves(f"answer is not leaves {list(leaves)} of row {row} of 0x{commitment.hex()}")
    result = []
    for item in answer.leaves:
        data = decode_hex(item.data, LEAF_BYTES)
        path = tuple(decode_hex(node, HASH_BYTES) for node in item.path)
        if not verify_leaf(root, parameters, row, item.leaf, data, path):
            raise InvalidLeaves(f"leaf {item.leaf} of row {row} does not lead to the root of 0x{commitment.hex()}")
        result.append(data)
    return result
