"""Run simulated histories: `python -m deaios.node.simulation --help`."""

import argparse
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deaios.node.simulation.runs import Failure, Tally, find_missing, run_histories, silence_logs
from deaios.node.simulation.stories import COURTS, tell
from deaios.runtime.disk import write_atomic

CHUNK = 20
"""Histories per task of a worker."""
TASKS_PER_WORKER = 50
"""After so many tasks a worker is replaced, so that whatever dead processes leave behind cannot pile up."""
FAILURES_MAX = 20

_console = Console(stderr=True)


def main() -> int:
    """Parse, run, report; 1 where a history broke a promise, 2 where something never happened."""
    parser = argparse.ArgumentParser(prog="python -m deaios.node.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="tell one history, event by event")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FROM", "TO"), help="run histories FROM to TO - 1")
    kinds = ", ".join(f"court-{number} = {cheat}, {jury}" for number, (cheat, jury) in enumerate(COURTS))
    parser.add_argument("--kind", help=f"trade, or {kinds}; what the seed says by default")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--least", type=int, default=0, help="every fault and cheat must happen in so many histories")
    parser.add_argument("--out", type=Path, help="keep counts in this file; a run that was interrupted goes on from it")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    silence_logs()
    if options.seed is not None:
        return _tell_one(options.seed, options.kind)
    if options.seeds is None:
        parser.error("give --seed N or --seeds FROM TO")
    tally = _load(options.out)
    _run_many(tally, range(*options.seeds), options.kind, options.workers, options.out)
    missing = find_missing(tally.happened, options.least) if options.least else []
    _report(tally, missing, as_json=options.json)
    return 1 if tally.failures else 2 if missing else 0


def _tell_one(seed: int, kind: str | None) -> int:
    try:
        outcome = tell(seed, kind)
    except Exception as error:  # a failing history tells its last events before its traceback
        for note in getattr(error, "__notes__", ()):
            sys.stdout.write(note + "\n")
        error.__notes__ = []
        raise
    sys.stdout.write(
        "\n".join([*outcome.log, f"{outcome.kind}: {outcome.seconds:.0f} simulated seconds, all held"]) + "\n"
    )
    for name, count in sorted(outcome.counts.items()):
        sys.stdout.write(f"{count:8} {name}\n")
    return 0


def _run_many(tally: Tally, seeds: range, kind: str | None, workers: int, out: Path | None) -> None:
    """Run what is left of the seeds in order, so that one number says how far a run came; Ctrl-C ends with a report."""
    columns = (TextColumn("histories"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = ProcessPoolExecutor(workers, initializer=silence_logs, max_tasks_per_child=TASKS_PER_WORKER)
    with Progress(*columns, console=_console) as progress:
        task = progress.add_task("histories", total=len(seeds), completed=tally.histories)
        waiting: deque[Future[Tally]] = deque()
        chunks = _cut(seeds[tally.histories :])
        try:
            while len(tally.failures) < FAILURES_MAX:
                while len(waiting) < 2 * workers and (chunk := next(chunks, None)) is not None:
                    waiting.append(pool.submit(run_histories, list(chunk), kind))
                if not waiting:
                    break
                part = waiting.popleft().result()
                tally.add(part)
                progress.update(task, completed=tally.histories)
                for failure in part.failures:
                    _show(failure)
                _save(out, tally)
        except KeyboardInterrupt:
            _console.print(f"stopped after {tally.histories} of {len(seeds)} histories")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _load(out: Path | None) -> Tally:
    if out is None or not out.exists():
        return Tally()
    document = json.loads(out.read_text())
    failures = [Failure(item["seed"], None, item["error"]) for item in document["failures"]]
    return Tally(document["histories"], Counter(document["happened"]), failures)


def _save(out: Path | None, tally: Tally) -> None:
    if out is not None:
        write_atomic(out, json.dumps(_describe(tally), indent=1).encode())


def _describe(tally: Tally) -> dict[str, object]:
    return {
        "histories": tally.histories,
        "failures": [{"seed": failure.seed, "error": failure.error} for failure in tally.failures],
        "happened": dict(sorted(tally.happened.items())),
    }


def _cut(seeds: range) -> Iterator[range]:
    for start in range(0, len(seeds), CHUNK):
        yield seeds[start : start + CHUNK]


def _show(failure: Failure) -> None:
    _console.print(f"seed {failure.seed}: {failure.error[:500]}\n  repeat with: {failure.command}", markup=False)


def _report(tally: Tally, missing: list[str], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({**_describe(tally), "missing": missing}, indent=1) + "\n")
        return
    for name, count in sorted(tally.happened.items()):
        sys.stdout.write(f"{count:8} {name}\n")
    sys.stdout.write(f"{tally.histories} histories, {len(tally.failures)} failed\n")
    for item in missing:
        sys.stdout.write(f"too rare: {item}\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
