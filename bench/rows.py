"""One measured row, and how two things are timed fairly: interleaved rounds in alternating order, medians."""

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.bars import BARS, Bar

Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """A figure beside its peer's; `ratio` is ours over theirs. One that could not be measured says why in `skipped`."""

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    rounds: int = 0
    spread: tuple[float, float] | None = None
    """Lowest and highest ratio of one round; without a peer, lowest and highest value."""
    note: str = ""
    skipped: str = ""

    @property
    def ratio(self) -> float | None:
        if self.value is None or not self.peer_value:
            return None
        return self.value / self.peer_value

    @property
    def bar(self) -> Bar | None:
        return BARS.get(self.name)

    @property
    def judged(self) -> float | None:
        """The figure that the bar is about."""
        if self.bar is None:
            return None
        return self.value if self.bar.on == "value" else self.ratio

    @property
    def is_met(self) -> bool | None:
        """None where there is no bar or no figure."""
        return None if self.bar is None or self.judged is None else self.bar.holds(self.judged)

    def to_json(self) -> dict[str, object]:
        bar = self.bar
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": self.peer_value,
            "ratio": self.ratio,
            "rounds": self.rounds,
            "spread": list(self.spread) if self.spread else None,
            "bar": None
            if bar is None
            else {"on": bar.on, "better": bar.better, "bar": bar.bar, "goal": bar.goal, "met": self.is_met},
            "note": self.note,
            "skipped": self.skipped or None,
        }


@dataclass
class Run:
    """What the command line asked for, and where progress goes."""

    say: Callable[[str], None]
    rounds: int | None = None
    names: frozenset[str] = field(default_factory=frozenset)
    """Rows or suites wanted; empty means all."""

    def rounds_of(self, usual: int) -> int:
        return usual if self.rounds is None else self.rounds

    def wants(self, *rows: str) -> bool:
        """Is one of these rows wanted, by its own name or its suite's?"""
        return not self.names or any(row in self.names or row.split(".")[0] in self.names for row in rows)

    async def interleave(self, label: str, works: Mapping[str, Callable[[], Awaitable[float]]], usual: int) -> Figures:
        """Each work's figure in every round; round i runs them in alternating order, after one unmeasured round."""
        rounds = self.rounds_of(usual)
        figures: Figures = {name: [] for name in works}
        for work in works.values():
            await work()
        for index in range(rounds):
            order = list(works.items())
            for name, work in order if index % 2 == 0 else reversed(order):
                figures[name].append(await work())
            last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in figures.items())
            self.say(f"{label}: round {index + 1} of {rounds}: {last}")
        return figures


def cpu_seconds(work: Callable[[], object]) -> Callable[[], Awaitable[float]]:
    """A work whose figure is the CPU time that it takes in this process, all threads together."""

    async def timed() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return timed


def compare(name: str, unit: str, ours: Sequence[float], peer: str, theirs: Sequence[float], note: str = "") -> Row:
    """A row from the figures of interleaved rounds."""
    ratios = [own / other for own, other in zip(ours, theirs, strict=True) if other]
    return Row(
        name=name,
        value=statistics.median(ours),
        unit=unit,
        peer=peer,
        peer_value=statistics.median(theirs),
        rounds=len(ours),
        spread=(min(ratios), max(ratios)) if ratios else None,
        note=note,
    )


def alone(name: str, unit: str, values: Sequence[float], note: str = "") -> Row:
    """A row without a peer: its bar is absolute."""
    return Row(name, statistics.median(values), unit, rounds=len(values), spread=(min(values), max(values)), note=note)


def skip(name: str, reason: str) -> Row:
    """A row that could not be measured here."""
    return Row(name, None, "", skipped=reason)
