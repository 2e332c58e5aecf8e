"""In which order a reader asks a committee for rows. Pure.

One seat is one row, and each row is asked of the member that has its seat and of nobody else, since no other has
promised to keep it. Which rows are whose is `ledger.committee`'s to say.
"""

from collections.abc import Collection, Mapping


def order_rows(rows_of_members: Mapping[int, range], data_rows: int, demoted: Collection[int]) -> list[tuple[int, int]]:
    """All rows with their members, in the order to ask for them.

    Data rows come first, because they need no decoding. Recovery rows follow in turns of the members, so that one who
    is down does not fill all the next tries. What members that failed lately hold comes last, in the same order.

    Returns:
        (row, member) pairs.
    """
    ordered = []
    for member, rows in rows_of_members.items():
        for row in rows:
            turn = max(0, row - max(rows.start, data_rows) + 1)
            ordered.append((member in demoted, turn, row, member))
    return [(row, member) for _, _, row, member in sorted(ordered)]
