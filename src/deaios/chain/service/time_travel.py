"""A clock that can be moved, for developers who test contracts that wait; never part of a network that means anything.

It only moves forward: a chain's time does. Off unless the operator asks for it (`[chain] time_travel` in deaios.toml),
and then said at every start.
"""

from deaios.runtime.clock import Clock

SHIFT_S_MAX = 100 * 365 * 86_400
"""A hundred years in all, far below where timestamps end."""


class MovedClock:
    """A clock ahead of another by a shift that grows; the pace of both is the same."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shift_ms = 0

    def now_ms(self) -> int:
        """Milliseconds since the epoch, moved."""
        return self._clock.now_ms() + self._shift_ms

    def monotonic_s(self) -> float:
        """Seconds of the other clock; pauses are never shortened."""
        return self._clock.monotonic_s()

    async def sleep(self, seconds: float) -> None:
        """Sleep for that long by the other clock."""
        await self._clock.sleep(seconds)

    @property
    def shift_s(self) -> int:
        """How far ahead it is."""
        return self._shift_ms // 1000

    def catch_up(self, timestamp: int) -> None:
        """Be no earlier than a block that was made before a restart."""
        self._shift_ms = max(self._shift_ms, timestamp * 1000 - self._clock.now_ms())

    def move(self, seconds: int) -> bool:
        """Move ahead; False when that would be beyond `SHIFT_S_MAX`."""
        if self._shift_ms + seconds * 1000 > SHIFT_S_MAX * 1000:
            return False
        self._shift_ms += seconds * 1000
        return True
