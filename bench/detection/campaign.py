"""The whole measurement: every cheat in windows and every honest pair, in turns, until targets or time are reached."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from bench.detection import honest
from bench.detection.bounds import compute_lower_bound
from bench.detection.calibration import Bench
from bench.detection.cheats import CHEATS, Cheat
from bench.detection.engines import open_forking
from bench.detection.honest import PROVIDERS, Provider
from bench.detection.store import Store
from bench.detection.windows import BRANCHES, WINDOWS_PER_BRANCH, OutOfTime, Round
from deaios.compute.expansion import expand_to_f16
from deaios.node.model_package import fetch_default_model

WINDOWS = 1024
HONEST_TOKENS = 10_000
SINGLE_ANSWERS = 4
"""Answers per turn of a provider that decodes one at a time."""
ROWS = (*(provider.pair(provider.checkers[0]) for provider in PROVIDERS), *(cheat.name for cheat in CHEATS))
"""What can be asked for by name; a provider's answers go past all its checkers."""
RESULTS = Path(__file__).parents[1] / "results"
Report = Callable[[str], None]


def report_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def default_model() -> Path:
    """The F16 expansion of the default model, made once in the user's cache."""
    cache = Path(platformdirs.user_cache_dir("deaios")) / "models"
    source = fetch_default_model(cache)
    served = cache / "SmolLM2-135M-Instruct.F16.gguf"
    if not served.exists():
        expand_to_f16(source, served)
    return served


@dataclass
class Campaign:
    """One run over a results file.

    Attributes:
        bench: model, tokenizer, template.
        store: what is finished.
        seed: decides every nonce and where in the questions the run begins.
        folder: for the cheats' model files.
        windows: wanted per cheat.
        tokens: honest tokens wanted per pair.
        seconds: budget.
        branches: branch points per round; fewer finish sooner.
    """

    bench: Bench
    store: Store
    seed: int
    folder: Path
    windows: int = WINDOWS
    tokens: int = HONEST_TOKENS
    seconds: float = float("inf")
    branches: int = BRANCHES
    report: Report = report_to_stderr
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds

    def is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    def run(self, rows: Sequence[str] = ROWS) -> bool:
        """Take turns, the row that is furthest from its target first. False when the time ended before the work."""
        while not self.is_late():
            shares = {row: self._share(row) for row in rows}
            row = min(shares, key=lambda name: shares[name])
            if shares[row] >= 1.0:
                return True
            start = time.monotonic()
            try:
                self._turn(row)
            except OutOfTime:
                return False
            self._tell(row, shares[row], time.monotonic() - start, rows)
        return all(self._share(row) >= 1.0 for row in rows)

    def _share(self, row: str) -> float:
        lines = self.store.read().get(row, [])
        if any(cheat.name == row for cheat in CHEATS):
            return len(lines) / self.windows
        return sum(int(str(line["tokens"])) for line in lines) / self.tokens

    def _turn(self, row: str) -> None:
        done = len(self.store.read().get(row, []))
        for cheat in CHEATS:
            if cheat.name == row:
                self._run_cheat(cheat, done)
        for provider in PROVIDERS:
            if provider.pair(provider.checkers[0]) == row:
                self._run_honest(provider, done)

    def _run_cheat(self, cheat: Cheat, first: int) -> None:
        branches = self.branches
        count = branches * WINDOWS_PER_BRANCH
        with (
            closing(open_forking("numpy", self.bench.served, count, self.bench.threads)) as checker,
            closing(open_forking(cheat.provider, self._weights(cheat), count, self.bench.threads)) as provider,
        ):
            outcomes = Round(self.bench, cheat, provider, checker, self.seed, self.is_late).run(first, branches)
        self.store.append(cheat.name, outcomes)

    def _weights(self, cheat: Cheat) -> Path:
        if cheat.rewrite is None:
            return self.bench.served
        path = self.folder / f"{cheat.name}.gguf"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            cheat.rewrite(self.bench.served, part)
            part.replace(path)
        return path

    def _run_honest(self, provider: Provider, first: int) -> None:
        answers = []
        turns = SINGLE_ANSWERS if provider.together == 1 else 1
        for turn in range(turns):
            start = first + turn * provider.together
            answers += honest.answer(self.bench, provider, start, provider.together, self.seed, self.is_late)
        found = []
        for kind in provider.checkers:
            with closing(honest.open_shipped(kind, self.bench.served, 1, self.bench.threads)) as checker:
                found.append((kind, list(honest.check(self.bench, checker, answers, first, self.is_late))))
        for kind, checked in reversed(found):  # the first pair counts the turns, so it is written last
            self.store.append(provider.pair(kind), checked)

    def _tell(self, row: str, before: float, seconds: float, rows: Sequence[str]) -> None:
        after = self._share(row)
        share, spent = self._spent.get(row, (0.0, 0.0))
        self._spent[row] = (share + after - before, spent + seconds)
        rates = {name: spent / share for name, (share, spent) in self._spent.items() if share > 0}
        left = [max(0.0, 1.0 - self._share(name)) * rates[name] for name in rows if name in rates]
        unknown = sum(name not in rates for name in rows)
        estimate = f"{sum(left) / 60:.0f} min left" + (f" and {unknown} rows not yet timed" if unknown else "")
        self.report(f"{time.strftime('%H:%M:%S')} {row}: {after:.1%} in {seconds:.0f} s; {self._say(row)}; {estimate}")

    def _say(self, row: str) -> str:
        lines = self.store.read().get(row, [])
        if "caught" not in lines[0]:
            return f"{sum(int(str(line['flagged'])) for line in lines)} flagged"
        caught = sum(line["caught"] is not None for line in lines)
        return f"{caught} of {len(lines)} caught, at least {compute_lower_bound(caught, len(lines)):.4f}"


def open_campaign(
    *, seconds: float, seed: int = 0, out: Path | None = None, folder: Path | None = None, served: Path | None = None
) -> Campaign:
    """A campaign of the usual size over the usual files, where nothing else is given."""
    bench = Bench.open(served or default_model(), 1)
    store = Store(out or RESULTS / "detection.jsonl", seed)
    return Campaign(bench, store, seed, folder or RESULTS / "cheats", seconds=seconds)
