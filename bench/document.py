"""The result file: what the machine is, and every row with the date and commit of its own measurement.

A run of some rows replaces those and keeps the others, so the file is whole without a whole run.
"""

import datetime as dt
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.bars import BARS
from bench.rows import Row

RESULTS = Path(__file__).parent / "results" / "latest.json"


class UnreadableResults(Exception):
    """The result file is there and is not one."""


def describe_machine() -> dict[str, object]:
    """What the figures depend on, as it is now."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def merge_rows(machine: dict[str, object], rows: Sequence[Row], path: Path = RESULTS) -> None:
    """Write rows into the result file.

    Raises:
        UnreadableResults: what is there cannot be read; nothing is written.
    """
    stamp = {key: machine[key] for key in ("date", "commit", "load_average")}
    kept = {row["name"]: row for row in _load_rows(path)}
    kept.update({row.name: {**row.to_json(), **stamp} for row in rows})
    order = {name: place for place, name in enumerate(BARS)}
    merged = sorted(kept.values(), key=lambda row: (order.get(row["name"], len(order)), row["name"]))
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({**machine, "rows": merged}, indent=1) + "\n")
    temporary.replace(path)


def render_table(path: Path = RESULTS) -> str:
    """The result file as a Markdown table.

    Raises:
        UnreadableResults: what is there cannot be read.
    """
    lines = ["| row | ours | unit | peer | peer's | ratio | bar | |", "|---|---|---|---|---|---|---|---|"]
    for row in _load_rows(path):
        bar = row["bar"]
        wanted = f"{'≥' if bar['better'] == 'higher' else '≤'} {bar['bar']:g} {bar['on']}" if bar else ""
        verdict = (
            "skipped: " + row["skipped"]
            if row["skipped"]
            else {True: "met", False: "**not met**", None: ""}[bar and bar["met"]]
        )
        figures = (row["value"], row["unit"], row["peer"], row["peer_value"], row["ratio"], wanted, verdict)
        cells = ("" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in figures)
        lines.append(f"| `{row['name']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _load_rows(path: Path) -> list[dict[str, Any]]:  # Any: JSON that `Row.to_json` wrote
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())["rows"]
        if not all(isinstance(row["name"], str) for row in rows):
            raise TypeError("a row has no name")
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableResults(f"{path} is not a result file ({error}); move it away and run again") from error
    return list(rows)


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
