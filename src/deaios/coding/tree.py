"""The SHA-256 tree over a coded matrix: 1 KiB leaves, one subtree per row, one tree over the rows.

    leaf = SHA-256(data || 0x00)      node = SHA-256(left || right || 0x01)
    row  = SHA-256(top of the row's leaves || 0x02)      root = SHA-256(top of the rows || 0x03)

The tags stand last, so that leaf data stays aligned to the hash's blocks. Missing leaves and rows up to the next power
of two are 32 zero bytes; an index outside the matrix is refused, so no padding can be proven. Counts come from the
parameters, never from a caller's path.
"""

import hashlib
from collections.abc import Sequence

from deaios.coding.parameters import LEAF_BYTES
from deaios.primitives.hashing import ZERO32, sha256

HASH_BYTES = 32
_LEAF = b"\x00"
_NODE = b"\x01"
_ROW = b"\x02"
_ROOT = b"\x03"

Path = tuple[bytes, ...]
Levels = list[list[bytes]]


def hash_leaf(data: bytes | memoryview) -> bytes:
    """Hash of one 1 KiB leaf."""
    state = hashlib.sha256(data)
    state.update(_LEAF)
    return state.digest()


def build_levels(hashes: Sequence[bytes]) -> Levels:
    """All levels of a tree over hashes, padded with zeros to a power of two, bottom first."""
    level = list(hashes)
    level += [ZERO32] * ((1 << (len(level) - 1).bit_length()) - len(level))
    levels = [level]
    sha, tag = hashlib.sha256, _NODE  # locals: this loop runs once per leaf
    while len(level) > 1:
        level = [sha(left + right + tag).digest() for left, right in zip(level[::2], level[1::2], strict=True)]
        levels.append(level)
    return levels


def climb(node: bytes, index: int, path: Sequence[bytes]) -> bytes:
    """The top that a node at `index` and its siblings lead to."""
    for depth, sibling in enumerate(path):
        pair = sibling + node if (index >> depth) & 1 else node + sibling
        node = sha256(pair + _NODE)
    return node


def read_path(levels: Levels, index: int) -> Path:
    """Sibling hashes from the bottom up."""
    return tuple(level[(index >> depth) ^ 1] for depth, level in enumerate(levels[:-1]))


def hash_leaves(row: memoryview) -> list[bytes]:
    """Hashes of a row's leaves in order."""
    sha, tag = hashlib.sha256, _LEAF
    hashes = []
    for start in range(0, len(row), LEAF_BYTES):
        state = sha(row[start : start + LEAF_BYTES])
        state.update(tag)
        hashes.append(state.digest())
    return hashes


def hash_row(row: memoryview) -> bytes:
    """Hash of a whole row from its leaves."""
    return seal_row(build_levels(hash_leaves(row))[-1][0])


def seal_row(top: bytes) -> bytes:
    """Hash of a row from the top of its leaves."""
    return sha256(top + _ROW)


def seal_root(top: bytes) -> bytes:
    """Root from the top of the rows."""
    return sha256(top + _ROOT)


def is_path(path: Sequence[bytes], depth: int) -> bool:
    """Has a path the depth that the parameters give, and hashes of the right size?"""
    return len(path) == depth and all(len(node) == HASH_BYTES for node in path)
