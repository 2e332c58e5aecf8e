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
    bottom = _fill(hashes[None])
    nodes = _NODES.climb(bottom)
    levels = [bottom[0]]
    start, width = 0, len(bottom[0])
    while width > 1:
        width //= 2
        levels.append(nodes[start : start + width])
        start += width
    return levels


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
    leaves = _fill(_LEAVES.hash(rows).reshape(count, -1, HASH_BYTES))
    nodes = _NODES.climb(leaves) if leaves.shape[1] > 1 else leaves.reshape(count, HASH_BYTES)
    tops = nodes[len(nodes) - count :].tobytes()
    hashes = [seal_row(tops[start : start + HASH_BYTES]) for start in range(0, len(tops), HASH_BYTES)]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(count, HASH_BYTES)


def seal_row(top: bytes) -> bytes:
    """Hash of a row from the top of its leaves."""
    return sha256(top + _ROW)


def seal_root(top: bytes) -> bytes:
    """Root from the top of the rows."""
    return sha256(top + _ROOT)


def is_path(path: Sequence[bytes], depth: int) -> bool:
    """Has a path the depth that the parameters give, and hashes of the right size?"""
    return len(path) == depth and all(len(node) == HASH_BYTES for node in path)


def _fill(hashes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lowest levels of several trees of one size, (trees, count, 32), with zeros up to a power of two, C order."""
    trees, count, _ = hashes.shape
    width = 1 << (count - 1).bit_length()
    if width == count:
        return np.ascontiguousarray(hashes)
    level = np.zeros((trees, width, HASH_BYTES), np.uint8)
    level[:, :count] = hashes
    return level
