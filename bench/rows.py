"""One measured row, and how two things are timed fairly: interleaved rounds, CPU seconds, medians."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

ROUNDS = 7


@dataclass(frozen=True)
class Row:
    """A figure beside its peer's; `ratio` is ours over theirs."""

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float

    @property
    def ratio(self) -> float:
        return self.value / self.peer_value

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio}


def measure_pair(ours: Callable[[], object], peer: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Median CPU seconds of each, in rounds that alternate."""
    times: tuple[list[float], list[float]] = ([], [])
    ours()
    peer()
    for _ in range(rounds):
        for work, found in ((ours, times[0]), (peer, times[1])):
            start = time.process_time()
            work()
            found.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])
