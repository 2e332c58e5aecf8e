"""A proof that given bytes are the content of a blob id, for who has nothing but the id.

Data rows hold the payload as it is, so the proof is the 1 KiB leaves over the bytes that say where the content lies
and over the content itself, with the hashes that lead them to the root that the commitment binds. Which leaves these
are follows from what they say; one leaf more or less is refused.

Proven is what was committed to at that place. It is also what decoding gives if the data rows that hold the content
passed their own check (`coding.matrix.RowVerifier`): `ProvenItem.rows` names them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from deaios.coding.head import seal_commitment
from deaios.coding.matrix import CodedMatrix
from deaios.coding.parameters import LEAF_BYTES, PARAMETERS_BYTES, Parameters, decode_parameters
from deaios.coding.tree import build_levels, hash_leaves
from deaios.da.blob import PAYLOAD_BYTES_MAX, BlobId, Bytes, InvalidBlob, locate_content
from deaios.da.multiproof import compute_root, count_nodes, prove_leaves
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import HASH_BYTES, sha256

_MAGIC = b"deaios/blob-proof/1"
_PARAMETERS_END = len(_MAGIC) + PARAMETERS_BYTES
_ROOT_END = _PARAMETERS_END + HASH_BYTES
_COMBINATIONS_END = _ROOT_END + HASH_BYTES
_COUNT_BYTES = 4
_START = _COMBINATIONS_END + _COUNT_BYTES
_PLACE_BYTES = 4

LEAVES_MAX = PAYLOAD_BYTES_MAX // LEAF_BYTES
"""Leaves that hold the largest payload."""

PROOF_BYTES_MAX = _START + LEAVES_MAX * (_PLACE_BYTES + LEAF_BYTES + HASH_BYTES) + (64 << 10)
"""More than any proof takes: leaves next to each other, so a hash for each is plenty, and some for the rows."""


class InvalidProof(Invalid):
    """Bytes that are not the canonical encoding of a proof, whatever it proves."""


@dataclass(frozen=True, slots=True)
class BlobProof:
    """Leaves of a matrix's data rows with what binds them to its commitment; well formed, but not checked.

    Attributes:
        parameters: of the matrix.
        root: of its tree.
        combinations_hash: SHA-256 of y.
        places: of the leaves in the payload, rising.
        leaves: 1 KiB each.
        nodes: the other hashes on the way to the root, in the order of `multiproof`.
    """

    parameters: Parameters
    root: bytes
    combinations_hash: bytes
    places: tuple[int, ...]
    leaves: tuple[bytes, ...]
    nodes: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _validate_parameters(self.parameters)
        _validate_places(self.parameters, self.places)
        if len(self.leaves) != len(self.places) or any(len(leaf) != LEAF_BYTES for leaf in self.leaves):
            raise InvalidProof(f"{len(self.leaves)} leaves; {len(self.places)} of {LEAF_BYTES} bytes expected")
        if any(len(item) != HASH_BYTES for item in (self.root, self.combinations_hash, *self.nodes)):
            raise InvalidProof(f"a hash that has not {HASH_BYTES} bytes")
        expected = count_nodes(self.parameters, self.places)
        if len(self.nodes) != expected:
            raise InvalidProof(f"{len(self.nodes)} hashes, {expected} expected for {len(self.places)} leaves")

    @property
    def commitment(self) -> bytes:
        """The commitment that binds root and parameters."""
        return seal_commitment(self.root, self.combinations_hash, self.parameters)


@dataclass(frozen=True, slots=True)
class ProvenItem:
    """What a proof proves.

    Attributes:
        content: of the blob id.
        expires_at: end of its term in Unix seconds, for an item of a bundle.
        rows: data rows that the leaves lie in.
    """

    content: bytes
    expires_at: int | None
    rows: tuple[int, ...]


class Prover:
    """A published matrix, ready to prove its contents; set-up hashes the payload once."""

    __slots__ = ("_leaf_levels", "_matrix", "_payload")

    def __init__(self, matrix: CodedMatrix) -> None:
        """Take a matrix. Who has only rows decodes them and codes the payload again.

        Raises:
            InvalidProof: the code is sampled, or the payload too long.
        """
        parameters = matrix.head.parameters
        _validate_parameters(parameters)
        data = matrix.front[: parameters.profile.data_rows]
        self._matrix = matrix
        self._payload = data.reshape(-1).data
        self._leaf_levels = {index: build_levels(hash_leaves(row)) for index, row in enumerate(data)}

    def prove(self, number: int | None) -> BlobProof:
        """The proof of one item, or of a single's content when `number` is None.

        Raises:
            InvalidBlob: nothing in the payload has this number.
        """
        head = self._matrix.head
        reader = _Reader(head.parameters.length, lambda start, end: self._payload[start:end])
        place = locate_content(reader.read, head.parameters.length, number)
        reader.mark(place.start, place.end)
        places = tuple(sorted(reader.places))
        return BlobProof(
            head.parameters,
            head.root,
            sha256(head.y),
            places,
            tuple(bytes(self._payload[at * LEAF_BYTES : (at + 1) * LEAF_BYTES]) for at in places),
            prove_leaves(head.parameters, self._leaf_levels, self._matrix.levels, places),
        )


def prove_item(matrix: CodedMatrix, number: int | None) -> BlobProof:
    """The proof of one item, or of a single's content; use `Prover` for several items of one matrix.

    Raises:
        Invalid: as `Prover` and its `prove`.
    """
    return Prover(matrix).prove(number)


def verify_item(blob_id: BlobId, proof: BlobProof) -> ProvenItem | None:
    """The content of a blob id, or None if the proof does not prove it."""
    if proof.commitment != blob_id.commitment:
        return None
    parameters = proof.parameters
    leaves = dict(zip(proof.places, proof.leaves, strict=True))
    reader = _Reader(parameters.length, lambda start, end: _join_leaves(leaves, start, end))
    try:
        place = locate_content(reader.read, parameters.length, blob_id.number)
        content = bytes(reader.read(place.start, place.end))
    except (InvalidBlob, InvalidProof):
        return None
    if tuple(sorted(reader.places)) != proof.places:
        return None
    if compute_root(parameters, proof.places, proof.leaves, proof.nodes) != proof.root:
        return None
    return ProvenItem(content, place.expires_at, _list_rows(parameters, proof.places))


def encode_proof(proof: BlobProof) -> bytes:
    """The canonical bytes."""
    return b"".join(
        (
            _MAGIC,
            proof.parameters.encode(),
            proof.root,
            proof.combinations_hash,
            len(proof.places).to_bytes(_COUNT_BYTES),
            *(place.to_bytes(_PLACE_BYTES) for place in proof.places),
            *proof.leaves,
            *proof.nodes,
        )
    )


def decode_proof(data: Bytes) -> BlobProof:
    """Read canonical bytes; says nothing about what they prove.

    Raises:
        Invalid: another magic, values out of range, or another size than these give.
    """
    view = memoryview(data)
    if not _START <= len(view) <= PROOF_BYTES_MAX or view[: len(_MAGIC)] != _MAGIC:
        raise InvalidProof(f"{len(view)} bytes do not start as a {_MAGIC.decode()} of {PROOF_BYTES_MAX} bytes at most")
    parameters = decode_parameters(bytes(view[len(_MAGIC) : _PARAMETERS_END]))
    _validate_parameters(parameters)
    count = int.from_bytes(view[_COMBINATIONS_END:_START])
    leaves_start = _START + count * _PLACE_BYTES
    nodes_start = leaves_start + count * LEAF_BYTES
    if len(view) < nodes_start:
        raise InvalidProof(f"proof has {len(view)} bytes, at least {nodes_start} expected for {count} leaves")
    places = tuple(int.from_bytes(view[at : at + _PLACE_BYTES]) for at in range(_START, leaves_start, _PLACE_BYTES))
    _validate_places(parameters, places)
    expected = nodes_start + count_nodes(parameters, places) * HASH_BYTES
    if len(view) != expected:
        raise InvalidProof(f"proof has {len(view)} bytes, {expected} expected")
    return BlobProof(
        parameters,
        bytes(view[_PARAMETERS_END:_ROOT_END]),
        bytes(view[_ROOT_END:_COMBINATIONS_END]),
        places,
        tuple(bytes(view[at : at + LEAF_BYTES]) for at in range(leaves_start, nodes_start, LEAF_BYTES)),
        tuple(bytes(view[at : at + HASH_BYTES]) for at in range(nodes_start, expected, HASH_BYTES)),
    )


class _Reader:
    """Reads a payload and notes which leaves that takes."""

    __slots__ = ("_length", "_source", "places")

    def __init__(self, length: int, source: Callable[[int, int], Bytes]) -> None:
        self._length = length
        self._source = source
        self.places: set[int] = set()

    def read(self, start: int, end: int) -> Bytes:
        self.mark(start, end)
        return self._source(start, end)

    def mark(self, start: int, end: int) -> None:
        if end > self._length:
            raise InvalidBlob(f"payload of {self._length} bytes ends before {end}")
        self.places.update(_cover(start, end))


def _cover(start: int, end: int) -> range:
    """Places of the leaves over some bytes of the payload."""
    return range(start // LEAF_BYTES, -(-end // LEAF_BYTES))


def _join_leaves(leaves: dict[int, bytes], start: int, end: int) -> bytes:
    cover = _cover(start, end)
    missing = next((place for place in cover if place not in leaves), None)
    if missing is not None:
        raise InvalidProof(f"leaf {missing} is missing")
    joined = b"".join(leaves[place] for place in cover)
    first = cover.start * LEAF_BYTES
    return joined[start - first : end - first]


def _list_rows(parameters: Parameters, places: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(place // parameters.leaves_per_row for place in places))


def _validate_parameters(parameters: Parameters) -> None:
    if parameters.profile.is_sampled:
        raise InvalidProof(f"a leaf of {parameters.profile} proves nothing: no row of it can be checked alone")
    if parameters.length > PAYLOAD_BYTES_MAX:
        raise InvalidProof(f"payload of {parameters.length} bytes exceeds {PAYLOAD_BYTES_MAX}")


def _validate_places(parameters: Parameters, places: tuple[int, ...]) -> None:
    count = -(-parameters.length // LEAF_BYTES)
    if not places or places[0] < 0 or places[-1] >= count:
        raise InvalidProof(f"{len(places)} leaves; 1 to {count} expected, at places below {count}")
    if any(left >= right for left, right in pairwise(places)):
        raise InvalidProof("places of the leaves do not rise")
