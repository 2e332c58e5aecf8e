"""`make bench`: every row of the design's budgets that exists by now, medians of interleaved rounds, beside its peer.

Bars and goals are shown and asserted nowhere. Rows that cannot be measured here are kept with the reason. Suites that
had ended before Ctrl-C, or before another one failed, are written.
"""

import argparse
import importlib
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator

from bench.bars import BARS
from bench.document import RESULTS, UnreadableResults, describe_machine, merge_rows, render_table
from bench.rows import Row, Run, skip

SUITES = ("coding", "chain", "gateway", "compute", "detection", "storage", "da", "node")
"""Modules with a `measure(run)` each, imported when run, so that a missing wheel of one stops no other."""
DETECTION = "compute.detection_128"
EXIT_INTERRUPTED = 130


def main() -> int:
    options = _read_options()
    if options.table:
        print(render_table())
        return 0
    run = Run(
        say=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
        rounds=options.rounds,
        names=frozenset(options.names),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, so that no server is left behind
    machine = describe_machine()
    rows: list[Row] = []
    status = 0
    try:
        for name in _choose_suites(run):
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                for row in _measure(name, run):
                    rows.append(row)
                    print(_render(row), file=sys.stderr, flush=True)
            except Exception:  # noqa: BLE001  # one suite's failure must not lose the others' rows
                traceback.print_exc()
                print(f"{name} failed; the other suites go on", file=sys.stderr)
                status = os.EX_SOFTWARE
    except KeyboardInterrupt:
        print("\ninterrupted; keeping what was measured", file=sys.stderr)
        status = EXIT_INTERRUPTED
    try:
        merge_rows(machine, rows)
    except UnreadableResults as error:
        print(error, file=sys.stderr)
        return os.EX_DATAERR
    if options.json:
        print(json.dumps({**machine, "rows": [row.to_json() for row in rows]}, indent=1))
    else:
        print(f"{len(rows)} rows written to {RESULTS}")
    return status


def _measure(suite: str, run: Run) -> Iterator[Row]:
    module = importlib.import_module(f"bench.{suite}")
    if suite == "detection" and not hasattr(module, "measure"):
        return iter([skip(DETECTION, "bench.detection offers no row yet; run it by itself")])
    arguments = [run] if inspect.signature(module.measure).parameters else []
    rows: Iterator[Row] = module.measure(*arguments)
    return rows


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows, or suites: {', '.join(SUITES)}; all otherwise")
    parser.add_argument("--rounds", type=int, help="rounds of every comparison, in place of each suite's own number")
    parser.add_argument("--json", action="store_true", help="print the rows of this run as JSON on standard output")
    parser.add_argument("--table", action="store_true", help="measure nothing; show the result file as Markdown")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(SUITES) - BARS.keys()):
        parser.error(f"no suite or row {', '.join(unknown)}; rows: {', '.join(BARS)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def _choose_suites(run: Run) -> list[str]:
    """Suites that are named, or have a row that is; all of them when nothing is named."""
    rows = {row: "detection" if row == DETECTION else row.split(".")[0] for row in BARS}
    chosen = {rows.get(name, name) for name in run.names}
    return [suite for suite in SUITES if not run.names or suite in chosen]


def _render(row: Row) -> str:
    if row.skipped:
        return f"{row.name:34} skipped: {row.skipped}"
    text = f"{row.name:34} {row.value:10.4g} {row.unit:14}"
    if row.peer:
        text += f" {row.peer:30} {row.peer_value:10.4g}  ratio {row.ratio:.3g}"
    if row.bar is not None:
        sign = "≥" if row.bar.better == "higher" else "≤"
        text += f"  {'ok' if row.is_met else 'BELOW'} (bar {sign} {row.bar.bar:g}, goal {sign} {row.bar.goal:g})"
    return text


if __name__ == "__main__":
    sys.exit(main())
