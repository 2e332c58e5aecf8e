"""`make bench`: every row that exists by now, medians of interleaved rounds, beside its peer.

Rows are named in the design; a bar or goal is nowhere asserted. Usage: python -m bench [NAME ...]
"""

import datetime as dt
import json
import platform
import subprocess
import sys
from pathlib import Path

from bench import coding, compute, detection
from bench.rows import Row

RESULTS = Path(__file__).parent / "results" / "latest.json"
SUITES = {"coding": coding.measure, "compute": compute.measure, "detection": detection.measure}


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - SUITES.keys())
    if unknown:
        print(f"unknown suites {unknown}; known: {sorted(SUITES)}", file=sys.stderr)
        return 64
    rows: list[Row] = []
    for name in names or SUITES:
        for row in SUITES[name]():
            ours, peer = f"{row.value:10.4g} {row.unit:14}", f"{row.peer:28} {row.peer_value:10.4g}"
            print(f"{row.name:32} {ours} {peer} {row.ratio:9.3g}")
            rows.append(row)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    RESULTS.parent.mkdir(exist_ok=True)
    document = {
        "cpu": _cpu(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "rows": [row.to_json() for row in rows],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {RESULTS}")
    return 0


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
