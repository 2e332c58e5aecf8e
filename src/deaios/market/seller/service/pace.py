"""How often purchases end while every stream is taken: when somebody who was refused should come back."""

SMOOTHING = 0.2
"""Weight of the newest end; about the last five count."""
RETRY_S_MAX = 600
"""Nobody is told to stay away for longer, whatever was measured."""


class EndPace:
    """A running mean of the time between two ends. Times with free streams say nothing about it and do not enter."""

    def __init__(self) -> None:
        self._gap_ms: float | None = None
        self._last_full_ms: int | None = None

    def observe_end(self, now_ms: int, *, is_full: bool) -> None:
        """A purchase ended.

        Args:
            now_ms: when.
            is_full: whether every stream was taken until now.
        """
        if is_full and self._last_full_ms is not None:
            gap_ms = max(0, now_ms - self._last_full_ms)
            self._gap_ms = gap_ms if self._gap_ms is None else self._gap_ms + SMOOTHING * (gap_ms - self._gap_ms)
        self._last_full_ms = now_ms if is_full else None

    def estimate_next_s(self) -> int | None:
        """Whole seconds until the next end, at least one; None before two ends were seen."""
        return None if self._gap_ms is None else min(RETRY_S_MAX, max(1, -int(-self._gap_ms // 1000)))
