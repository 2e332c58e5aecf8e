"""Which node is a row's home, and in which order to ask for rows. Pure.

Homes rotate with the commitment, so that data rows, which readers want first, are spread over all nodes. A row may lie
elsewhere when its home was down, so every row can be asked of every node; homes come first.
"""

from collections.abc import Collection

from deaios.rows.attempts import Attempt


def compute_home(commitment: bytes, row: int, nodes: int) -> int:
    """Index of the node where a row belongs."""
    return (int.from_bytes(commitment[:8]) + row) % nodes


def order_nodes(commitment: bytes, row: int, nodes: int, demoted: Collection[int]) -> list[int]:
    """Nodes to offer a row to, its home first, those that failed lately last."""
    home = compute_home(commitment, row, nodes)
    order = [(home + step) % nodes for step in range(nodes)]
    return sorted(order, key=lambda node: node in demoted)


def order_attempts(commitment: bytes, rows: int, nodes: int, demoted: Collection[int]) -> list[Attempt]:
    """All ways to find the rows of a matrix: homes before others, low rows first, nodes that failed lately last."""
    attempts = [
        Attempt(row, (compute_home(commitment, row, nodes) + step) % nodes)
        for step in range(nodes)
        for row in range(rows)
    ]
    return sorted(attempts, key=lambda attempt: attempt.node in demoted)
