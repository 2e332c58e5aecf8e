"""Encode a payload to rows that prove themselves; verify, decode and rebuild them.

Invariant: all rows that verify under one commitment lie on one codeword (but for a chance of 2^-192 per hash), so any k
of them decode to the same payload, whoever encoded it. Knows no files, nodes or network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deaios.coding.combinations import Combiner
from deaios.coding.field import pack_symbols, unpack_symbols
from deaios.coding.head import Head, InvalidHead
from deaios.coding.parameters import LEAF_BYTES, InvalidParameters, Parameters, Profile
from deaios.coding.reed_solomon import ALIGNED_BYTES, encode_row, extend_rows, restore_rows
from deaios.coding.tree import (
    Levels,
    Path,
    build_levels,
    climb,
    hash_leaf,
    hash_leaves,
    hash_rows,
    is_path,
    read_path,
    seal_root,
    seal_row,
)
from deaios.coding.workers import ALONE, Workers
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import HASH_BYTES

Bytes = bytes | bytearray | memoryview


class InvalidRows(Invalid):
    """Rows that cannot be decoded: too few, wrong indices or sizes, or a payload with a dirty tail."""


@dataclass(frozen=True, slots=True)
class CodedMatrix:
    """A payload as n rows under one commitment.

    Attributes:
        head: parameters, root and y.
        front: (k or n, row_bytes) uint8, the first rows; the first k hold the payload and zeros. They may be the
            caller's own bytes, so nobody writes to them.
        levels: of the tree over the rows, for proofs.
        back: the other rows, if there are any.
    """

    head: Head
    front: NDArray[np.uint8] = field(repr=False)
    levels: Levels = field(repr=False)
    back: NDArray[np.uint8] = field(repr=False, default_factory=lambda: np.empty((0, 0), np.uint8))

    @property
    def commitment(self) -> bytes:
        """The 32 bytes that name the matrix."""
        return self.head.commitment

    @property
    def root(self) -> bytes:
        """Merkle root over all leaves."""
        return self.head.root

    @property
    def y(self) -> bytes:
        """Combinations of the data rows."""
        return self.head.y

    @property
    def rows(self) -> NDArray[np.uint8]:
        """All rows in one piece, (n, row_bytes) uint8: a copy, where they are not."""
        return np.concatenate((self.front, self.back)) if len(self.back) else self.front

    def get_row(self, index: int) -> memoryview:
        """Bytes of one row, without a copy."""
        split = len(self.front)
        return memoryview((self.front[index] if index < split else self.back[index - split]).data)


def encode(data: Bytes, profile: Profile, workers: Workers = ALONE) -> CodedMatrix:
    """Code a payload.

    Args:
        data: 1 byte to 64 MiB.
        profile: how many rows hold the data and how many there are.
        workers: who helps; the result does not depend on them.

    Raises:
        InvalidParameters: a payload out of range.
    """
    parameters = Parameters(profile, len(data))
    rows = _cut_rows(data, parameters)
    recovery = np.empty((profile.rows - profile.data_rows, parameters.row_bytes), np.uint8)
    hashes = np.empty((profile.rows, HASH_BYTES), np.uint8)

    def extend(start: int, end: int) -> None:
        extend_rows(rows[:, start:end], recovery[:, start:end], profile)

    def hash_data(start: int, end: int) -> None:
        hashes[start:end] = hash_rows(rows[start:end])

    def hash_recovery(start: int, end: int) -> None:
        hashes[profile.data_rows + start : profile.data_rows + end] = hash_rows(recovery[start:end])

    workers.run(extend, parameters.row_bytes, LEAF_BYTES)
    workers.run(hash_recovery, len(recovery))
    workers.run(hash_data, len(rows))
    levels = build_levels(hashes)
    root = seal_root(levels[-1].tobytes())
    sums = np.empty((profile.data_rows, profile.tests), "<u2")
    if not profile.is_sampled:
        combiner = Combiner(root, parameters)

        def combine(start: int, end: int) -> None:
            sums[start:end] = combiner.combine(rows[start:end])

        workers.run(combine, profile.data_rows)
    return CodedMatrix(Head(parameters, root, sums.tobytes()), rows, levels, recovery)


def _cut_rows(data: Bytes, parameters: Parameters) -> NDArray[np.uint8]:
    """The data rows: where nothing is missing to full rows, and nobody can change the payload, the payload itself."""
    shape = (parameters.profile.data_rows, parameters.row_bytes)
    payload = np.frombuffer(data, np.uint8)
    if isinstance(data, bytes) and len(data) == shape[0] * shape[1]:
        return payload.reshape(shape)
    rows = np.empty(shape, np.uint8)
    rows.reshape(-1)[: len(data)] = payload
    rows.reshape(-1)[len(data) :] = 0
    return rows


def prove_row(matrix: CodedMatrix, index: int) -> Path:
    """Sibling hashes from a row to the root."""
    rows = matrix.head.parameters.profile.rows
    if not 0 <= index < rows:
        raise InvalidRows(f"row {index} outside {rows} rows")
    return read_path(matrix.levels, index)


class RowVerifier:
    """One matrix, ready to check any number of its rows; set-up costs about half a millisecond."""

    __slots__ = ("_combiner", "_extended", "head")

    def __init__(self, commitment: bytes, head: Head) -> None:
        """Bind a head to the commitment it claims.

        Raises:
            InvalidHead: the commitment does not bind this head.
            InvalidParameters: the code is sampled, so a single row proves nothing.
        """
        if head.commitment != commitment:
            raise InvalidHead(f"head has commitment {head.commitment.hex()}, {commitment.hex()} expected")
        if head.parameters.profile.is_sampled:
            raise InvalidParameters(
                f"a row of {head.parameters.profile} proves nothing alone; check its place, decode, check the payload"
            )
        self.head = head
        self._extended = _extend_combinations(head)
        self._combiner = Combiner(head.root, head.parameters)

    def verify(self, index: int, row: Bytes, proof: Path) -> bool:
        """Is this the row at `index`, on the one codeword that the commitment names?"""
        if not verify_place(self.head.commitment, self.head, index, row, proof):
            return False
        found = self._combiner.combine(np.frombuffer(row, np.uint8).reshape(1, -1)).tobytes()
        expected: bytes = self._extended[index].tobytes()
        return found == expected


def verify_row(commitment: bytes, head: Head, index: int, row: Bytes, proof: Path) -> bool:
    """Check one row against the commitment; use `RowVerifier` for several rows of one matrix.

    Raises:
        InvalidParameters: the code is sampled, so a single row proves nothing.
    """
    return head.commitment == commitment and RowVerifier(commitment, head).verify(index, row, proof)


def verify_place(commitment: bytes, head: Head, index: int, row: Bytes, proof: Path) -> bool:
    """Is this the row that was committed to at `index`? Says nothing about whether the rows are a code."""
    parameters = head.parameters
    return (
        head.commitment == commitment
        and 0 <= index < parameters.profile.rows
        and len(row) == parameters.row_bytes
        and is_path(proof, parameters.profile.depth)
        and seal_root(climb(_hash_row(row), index, proof)) == head.root
    )


def verify_payload(commitment: bytes, head: Head, payload: Bytes) -> bool:
    """Is this the payload under the commitment? Codes it again: what settles it for a sampled code."""
    parameters = head.parameters
    return (
        head.commitment == commitment
        and len(payload) == parameters.length
        and encode(payload, parameters.profile).commitment == commitment
    )


def prove_leaf(parameters: Parameters, row: Bytes, row_proof: Path, leaf_index: int) -> Path:
    """Sibling hashes from a 1 KiB leaf through its row to the root, from the row and its own proof."""
    if len(row) != parameters.row_bytes or not 0 <= leaf_index < parameters.leaves_per_row:
        raise InvalidRows(
            f"leaf {leaf_index} of a row of {len(row)} bytes; "
            f"{parameters.leaves_per_row} leaves of {LEAF_BYTES} bytes expected"
        )
    return read_path(build_levels(hash_leaves(np.frombuffer(row, np.uint8))), leaf_index) + row_proof


def verify_leaf(root: bytes, parameters: Parameters, row_index: int, leaf_index: int, leaf: Bytes, path: Path) -> bool:
    """Is this the leaf at `leaf_index` of row `row_index`? Says nothing about the rest of the row."""
    if not 0 <= row_index < parameters.profile.rows or not 0 <= leaf_index < parameters.leaves_per_row:
        return False
    if len(leaf) != LEAF_BYTES or not is_path(path, parameters.leaf_depth + parameters.profile.depth):
        return False
    row_top = climb(hash_leaf(bytes(leaf)), leaf_index, path[: parameters.leaf_depth])
    return seal_root(climb(seal_row(row_top), row_index, path[parameters.leaf_depth :])) == root


def decode(parameters: Parameters, rows: Mapping[int, Bytes]) -> memoryview:
    """Payload from any k verified rows; data rows are used first, since they cost nothing.

    Args:
        parameters: of the matrix, bound by the commitment.
        rows: verified rows by index. Rows that were not verified give garbage.

    Raises:
        InvalidRows: fewer than k rows, indices or sizes that do not fit, or bytes behind the payload that are not zero.
    """
    payload = _decode_rows(parameters, rows).reshape(-1).data
    if np.frombuffer(payload[parameters.length :], np.uint8).any():
        raise InvalidRows(f"bytes behind the payload of {parameters.length} bytes are not zero")
    return payload[: parameters.length]


def rebuild_row(parameters: Parameters, index: int, rows: Mapping[int, Bytes]) -> bytes:
    """A lost row from any k verified rows; check the result against the commitment as any other row.

    Raises:
        InvalidRows: as `decode`, or an index outside the matrix.
    """
    if not 0 <= index < parameters.profile.rows:
        raise InvalidRows(f"row {index} outside {parameters.profile.rows} rows")
    data = _decode_rows(parameters, rows)
    if index < parameters.profile.data_rows:
        return bytes(data[index].data)
    return encode_row(data, index, parameters.profile)


def _hash_row(row: Bytes) -> bytes:
    return hash_rows(np.frombuffer(row, np.uint8).reshape(1, -1)).tobytes()


def _decode_rows(parameters: Parameters, rows: Mapping[int, Bytes]) -> NDArray[np.uint8]:
    profile = parameters.profile
    for index, row in rows.items():
        if not 0 <= index < profile.rows or len(row) != parameters.row_bytes:
            raise InvalidRows(
                f"row {index} of {len(row)} bytes; index below {profile.rows}, {parameters.row_bytes} bytes expected"
            )
    if len(rows) < profile.data_rows:
        raise InvalidRows(f"{len(rows)} rows given, {profile.data_rows} needed")
    known = {index: np.frombuffer(rows[index], np.uint8) for index in sorted(rows)[: profile.data_rows]}
    data = np.empty((profile.data_rows, parameters.row_bytes), np.uint8)
    for index in filter(lambda index: index < profile.data_rows, known):
        data[index] = known[index]
    missing = [index for index in range(profile.data_rows) if index not in known]
    if missing:
        restore_rows(data, known, missing, profile)
    return data


def _extend_combinations(head: Head) -> NDArray[np.uint16]:
    """Combinations of all n rows from those of the data rows: the code commutes with combining columns."""
    profile = head.parameters.profile
    width = -(-2 * profile.tests // ALIGNED_BYTES) * ALIGNED_BYTES // 2
    symbols = np.zeros((profile.data_rows, width), np.uint16)
    symbols[:, : profile.tests] = np.frombuffer(head.y, "<u2").reshape(profile.data_rows, profile.tests)
    packed = np.empty((profile.rows, 2 * width), np.uint8)
    packed[: profile.data_rows] = pack_symbols(symbols)
    extend_rows(packed[: profile.data_rows], packed[profile.data_rows :], profile)
    return unpack_symbols(packed)[:, : profile.tests]
