"""Who is asked for which row, and what came of it. Pure; knows neither transport nor where a row belongs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

REASONS_MAX = 8
"""Failures kept of one row, and rows or failures named in an error message."""

REASON_CHARACTERS_MAX = 200
"""Of one failure: what a stranger says of itself does not fill our memory or logs."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Ask one node for one row."""

    row: int
    node: int


@dataclass(frozen=True, slots=True)
class Failure:
    """What a node last said, or did, instead of giving a row."""

    url: str
    reason: str


@dataclass(frozen=True, slots=True)
class MissingRow:
    """A row that no node gave.

    Attributes:
        row: its index.
        asked: different nodes that were asked.
        failures: one for each of them in the order asked, at most `REASONS_MAX`.
    """

    row: int
    asked: int
    failures: tuple[Failure, ...]


@dataclass(slots=True)
class Findings:
    """Failures of one race, by row and node; the last word of a node counts."""

    urls: Sequence[str]
    _asked: dict[int, set[int]] = field(default_factory=dict)
    _reasons: dict[int, dict[int, str]] = field(default_factory=dict)

    def note(self, attempt: Attempt, reason: str) -> None:
        """An attempt failed."""
        self._asked.setdefault(attempt.row, set()).add(attempt.node)
        reasons = self._reasons.setdefault(attempt.row, {})
        if attempt.node in reasons or len(reasons) < REASONS_MAX:
            reasons[attempt.node] = reason[:REASON_CHARACTERS_MAX]

    def list_missing(self, found: Collection[int]) -> tuple[MissingRow, ...]:
        """Every row that was asked for and is not among those found, ascending."""
        return tuple(
            MissingRow(
                row,
                len(self._asked[row]),
                tuple(Failure(self.urls[node], reason) for node, reason in self._reasons[row].items()),
            )
            for row in sorted(self._asked)
            if row not in found
        )


def describe_race(found: Collection[int], missing: Sequence[MissingRow], needed: int, nodes: int) -> str:
    """A lost race for people: rows found, and of the first missing ones what every node said."""
    named = f" (rows {describe_rows(sorted(found))})" if found else ""
    message = f"{len(found)} of {needed} rows found on {nodes} nodes{named}"
    if missing:
        message += f"; missing: {'; '.join(map(_describe, missing[:REASONS_MAX]))}"
    if len(missing) > REASONS_MAX:
        message += f"; and rows {describe_rows([row.row for row in missing[REASONS_MAX:]])}"
    return message


def describe_rows(rows: Sequence[int]) -> str:
    """Ascending row numbers for people: runs of them as a range, at most `REASONS_MAX` runs."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][1] + 1 == row:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    named = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs[:REASONS_MAX])
    left = sum(last - first + 1 for first, last in runs[REASONS_MAX:])
    return f"{named} and {left} more" if left else named


def join_reasons(reasons: Sequence[str]) -> str:
    """Different reasons once each, at most `REASONS_MAX`."""
    shown = list(dict.fromkeys(reasons))
    more = f" and {len(shown) - REASONS_MAX} more" if len(shown) > REASONS_MAX else ""
    return "; ".join(shown[:REASONS_MAX]) + more


def _describe(missing: MissingRow) -> str:
    said = ", ".join(f"{failure.url} {failure.reason}" for failure in missing.failures)
    left = missing.asked - len(missing.failures)
    return f"row {missing.row}: {said} and {left} more nodes" if left else f"row {missing.row}: {said}"
