"""The SHA-256 tree over a coded matrix: 1 KiB leaves, one subtree per row, one tree over the rows.

    leaf = SHA-256(data || 0x00)      node = SHA-256(left || right || 0x01)
    row  = SHA-256(top of the row's leaves || 0x02)      root = SHA-256(top of the rows || 0x03)

The tags stand last, so that leaf data stays aligned to the hash's blocks. Missing leaves and rows up to the next power
of two are 32 zero bytes; an index outside the matrix is refused, so no padding can be proven. Counts come from the
parameters, never from a caller's path.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.sha256 import Hasher
from deaios.coding.parameters import LEAF_BYTES
from deaios.primitives.hashing import HASH_BYTES, sha256

_LEAF = b"\x00"
_NODE = b"\x01"
_ROW = b"\x02"
_ROOT = b"\x03"
_LEAVES = Hasher(LEAF_BYTES, _LEAF[0])
_NODES = Hasher(2 * HASH_BYTES, _NODE[0])

Path = tuple[bytes, ...]
Hashes = NDArray[np.uint8]
"""(count, 32) uint8."""
Levels = list[Hashes]


def hash_leaf(data: bytes | memoryview) -> bytes:
    """Hash of one 1 KiB leaf."""
    return sha256(bytes(data) + _LEAF)


def hash_leaves(row: NDArray[np.uint8]) -> Hashes:
    """Hashes of a row's leaves in order."""
    return _LEAVES.hash(row)


def build_levels(hashes: Hashes) -> Levels:
    """All levels of a tree over hashes, padded with zeros to a power of two, bottom first."""
    levels = _climb_all(hashes[None])
    return [level[0] for level in levels]


def climb(node: bytes, index: int, path: Sequence[bytes]) -> bytes:
    """The top that a node at `index` and its siblings lead to."""
    for depth, sibling in enumerate(path):
        pair = sibling + node if (index >> depth) & 1 else node + sibling
        node = sha256(pair + _NODE)
    return node


def read_path(levels: Levels, index: int) -> Path:
    """Sibling hashes from the bottom up."""
    return tuple(level[(index >> depth) ^ 1].tobytes() for depth, level in enumerate(levels[:-1]))


def hash_rows(rows: NDArray[np.uint8]) -> Hashes:
    """Hashes of whole rows from their leaves.

    Args:
        rows: (count, row_bytes), C order.
    """
    count = len(rows)
    leaves = _LEAVES.hash(rows).reshape(count, -1, HASH_BYTES)
    tops = _climb_all(leaves)[-1]
    return np.frombuffer(b"".join(seal_row(top.tobytes()) for top in tops), np.uint8).reshape(count, HASH_BYTES)


def seal_row(top: bytes) -> bytes:
    """Hash of a row from the top of its leaves."""
    return sha256(top + _ROW)


def seal_root(top: bytes) -> bytes:
    """Root from the top of the rows."""
    return sha256(top + _ROOT)


def is_path(path: Sequence[bytes], depth: int) -> bool:
    """Has a path the depth that the parameters give, and hashes of the right size?"""
    return len(path) == depth and all(len(node) == HASH_BYTES for node in path)


def _climb_all(hashes: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Levels of several trees of one size: (trees, count, 32) each."""
    trees, count, _ = hashes.shape
    width = 1 << (count - 1).bit_length()
    if width == count and hashes.flags.c_contiguous:
        return _NODES.climb(hashes)
    level = np.zeros((trees, width, HASH_BYTES), np.uint8)
    level[:, :count] = hashes
    return _NODES.climb(level)
