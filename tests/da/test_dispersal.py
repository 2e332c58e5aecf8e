"""The order in which readers ask for rows."""

from hypothesis import given
from hypothesis import strategies as st

from deaios.da.dispersal import order_rows

SEATS = st.lists(st.integers(0, 12), max_size=20)


def assign_rows(seats):
    return {member: range(sum(seats[:member]), sum(seats[: member + 1])) for member in range(len(seats))}


def test_data_rows_first_then_turns_then_members_that_failed():
    rows = assign_rows([3, 2, 3, 1])
    assert order_rows(rows, 2, demoted={1}) == [
        (0, 0), (1, 0),
        (2, 0), (5, 2), (8, 3), (6, 2), (7, 2),
        (3, 1), (4, 1),
    ]  # fmt: skip
    assert order_rows(rows, 2, demoted={0})[-3:] == [(0, 0), (1, 0), (2, 0)]


@given(SEATS, st.integers(0, 80), st.sets(st.integers(0, 20)))
def test_every_row_is_asked_of_its_member_once(seats, data_rows, demoted):
    rows = assign_rows(seats)
    order = order_rows(rows, data_rows, demoted)
    assert sorted(row for row, _ in order) == list(range(sum(seats)))
    assert all(row in rows[member] for row, member in order)
    first = [row for row, member in order if member not in demoted]
    assert order[: len(first)] == [(row, member) for row, member in order if member not in demoted]
    data = [row for row in first if row < data_rows]
    assert first[: len(data)] == sorted(data)
