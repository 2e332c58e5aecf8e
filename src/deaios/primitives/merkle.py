"""One SHA-256 Merkle tree for lists of byte strings, in a form that a contract can open.

    leaf = SHA-256(0x00 || data)          node = SHA-256(0x01 || left || right)
    root = SHA-256(0x02 || SHA-256(tag) || uint64 big-endian leaf count || top)

Missing leaves up to the next power of two are 32 zero bytes, which is no leaf's hash, and an index at or above the
count is refused; the count is inside the root, so depth never comes from a caller. Frozen: docs/spec/merkle.md.
"""

from collections.abc import Sequence

from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32, sha256

LEAVES_MAX = 1 << 32
"""More leaves than this is refused; depth stays at or below 32."""


class InvalidTree(Invalid):
    """A leaf count or index outside the tree."""


def tree_depth(count: int) -> int:
    """Length of every path in a tree of `count` leaves."""
    if not 0 <= count <= LEAVES_MAX:
        raise InvalidTree(f"{count} leaves; 0 to {LEAVES_MAX} allowed")
    return max(count - 1, 0).bit_length()


def hash_leaf(data: bytes) -> bytes:
    """Hash of one leaf."""
    return sha256(b"\x00" + data)


def hash_node(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node from its two 32-byte children."""
    return sha256(b"\x01" + left + right)


def seal_root(tag: str, count: int, top: bytes) -> bytes:
    """Bind tag and leaf count to the topmost node."""
    return sha256(b"\x02" + sha256(tag.encode()) + count.to_bytes(8) + top)


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    level = [hash_leaf(leaf) for leaf in leaves]
    level += [ZERO32] * ((1 << tree_depth(len(leaves))) - len(level))
    levels = [level]
    while len(level) > 1:
        level = [hash_node(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        levels.append(level)
    return levels


def build_root(tag: str, leaves: Sequence[bytes]) -> bytes:
    """Root over leaves in order. An empty list has a root too: its top is 32 zero bytes."""
    return seal_root(tag, len(leaves), _levels(leaves)[-1][0])


def prove_leaf(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Sibling hashes from the leaf up."""
    if not 0 <= index < len(leaves):
        raise InvalidTree(f"index {index} outside {len(leaves)} leaves")
    return tuple(level[(index >> depth) ^ 1] for depth, level in enumerate(_levels(leaves)[:-1]))


def verify_leaf(tag: str, root: bytes, count: int, index: int, leaf: bytes, path: Sequence[bytes]) -> bool:
    """Is `leaf` the leaf at `index` of the tree of `count` leaves under `root`?"""
    if not 0 <= index < count <= LEAVES_MAX or len(path) != tree_depth(count) or any(len(p) != 32 for p in path):
        return False
    node = hash_leaf(leaf)
    for depth, sibling in enumerate(path):
        node = hash_node(sibling, node) if (index >> depth) & 1 else hash_node(node, sibling)
    return seal_root(tag, count, node) == root
