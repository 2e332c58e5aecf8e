"""What every search shares: a budget of time, a seed to repeat it, and how a finding is told."""

import time
from dataclasses import dataclass


class Finding(Exception):
    """A search found a fault.

    Attributes:
        command: the one command that repeats it.
    """

    def __init__(self, what: str, command: str) -> None:
        super().__init__(what)
        self.command = command


@dataclass(frozen=True)
class Budget:
    """How long one search may take, and where its choices begin."""

    seconds: float
    seed: int

    def deadline_s(self) -> float:
        """Monotonic time at which to stop."""
        return time.monotonic() + self.seconds
