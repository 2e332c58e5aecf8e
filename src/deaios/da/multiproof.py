"""Several leaves of one coded matrix under its root, with the hashes they share written once.

The tree is that of `coding.tree`. A place counts leaves over all rows: row * leaves per row + leaf. Hashes that the
leaves do not give are listed in the order a verifier uses them: row by row, then over the rows; in each tree from the
bottom up, in each level from left to right. Their number follows from parameters and places. Knows no payload.
"""

from collections.abc import Iterator, Mapping, Sequence

from deaios.coding.parameters import Parameters
from deaios.coding.tree import Levels, climb, hash_leaf, seal_root, seal_row


def count_nodes(parameters: Parameters, places: Sequence[int]) -> int:
    """How many hashes prove leaves at these places (rising, at least one)."""
    rows = _group(parameters, places)
    inside = sum(len(_list_missing(leaves, parameters.leaf_depth)) for leaves in rows.values())
    return inside + len(_list_missing(list(rows), parameters.profile.depth))


def prove_leaves(
    parameters: Parameters, leaf_levels: Mapping[int, Levels], row_levels: Levels, places: Sequence[int]
) -> tuple[bytes, ...]:
    """The hashes that lead from leaves at these places (rising, at least one) to the root.

    Args:
        parameters: of the matrix.
        leaf_levels: levels of the tree over each row's leaves, for the rows of the places.
        row_levels: levels of the tree over the rows.
        places: of the leaves.
    """
    rows = _group(parameters, places)
    nodes = [
        leaf_levels[row][level][index].tobytes()
        for row, leaves in rows.items()
        for level, index in _list_missing(leaves, parameters.leaf_depth)
    ]
    missing = _list_missing(list(rows), parameters.profile.depth)
    return (*nodes, *(row_levels[level][index].tobytes() for level, index in missing))


def compute_root(
    parameters: Parameters, places: Sequence[int], leaves: Sequence[bytes], nodes: Sequence[bytes]
) -> bytes:
    """The root that leaves and hashes lead to; as many hashes as `count_nodes` says."""
    contents = dict(zip(places, leaves, strict=True))
    supply = iter(nodes)
    rows = {}
    for row, indices in _group(parameters, places).items():
        first = row * parameters.leaves_per_row
        hashes = {index: hash_leaf(contents[first + index]) for index in indices}
        rows[row] = seal_row(_climb(hashes, parameters.leaf_depth, supply))
    return seal_root(_climb(rows, parameters.profile.depth, supply))


def _group(parameters: Parameters, places: Sequence[int]) -> dict[int, list[int]]:
    """Leaf indices by row, both rising."""
    rows: dict[int, list[int]] = {}
    for place in places:
        row, leaf = divmod(place, parameters.leaves_per_row)
        rows.setdefault(row, []).append(leaf)
    return rows


def _list_missing(indices: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """Level and index of each hash that nodes at the bottom do not give."""
    missing = []
    known = dict.fromkeys(indices)
    for level in range(depth):
        missing += [(level, index ^ 1) for index in known if index ^ 1 not in known]
        known = dict.fromkeys(index >> 1 for index in known)
    return missing


def _climb(hashes: Mapping[int, bytes], depth: int, supply: Iterator[bytes]) -> bytes:
    """The top over nodes by rising index; siblings that are not among them come from the supply."""
    for _ in range(depth):
        above: dict[int, bytes] = {}
        for index, node in hashes.items():
            if index >> 1 not in above:
                sibling = hashes[index ^ 1] if index ^ 1 in hashes else next(supply)
                above[index >> 1] = climb(node, index & 1, (sibling,))
        hashes = above
    (top,) = hashes.values()
    return top
