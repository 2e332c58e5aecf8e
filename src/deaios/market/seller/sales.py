"""What a provider sold, read from its journal while it runs. Rows in, sums out; the file is opened by the store."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sales:
    """Sums over receipts.

    Attributes:
        receipts: how many.
        tokens: sampled.
        fees: smallest units.
        seen_ms: from the first purchase that counts until now; 0 when there is none.
    """

    receipts: int
    tokens: int
    fees: int
    seen_ms: int


DAY_MS = 24 * 3600 * 1000
FORECAST_RECEIPTS_MIN = 5
"""Fewer say nothing about a day."""
FORECAST_SEEN_MS_MIN = 30_000


def forecast_day(recent: Sales) -> int | None:
    """Fees of a day at the pace of recent sales, smallest units; None where that would be a guess."""
    if recent.receipts < FORECAST_RECEIPTS_MIN or recent.seen_ms < FORECAST_SEEN_MS_MIN:
        return None
    return recent.fees * DAY_MS // recent.seen_ms
