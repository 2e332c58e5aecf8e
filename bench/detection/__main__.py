"""Runs the measurement; see the package."""

import argparse
import json
import sys
from pathlib import Path

from bench.detection.calibration import Bench
from bench.detection.campaign import HONEST_TOKENS, RESULTS, ROWS, WINDOWS, Campaign, default_model
from bench.detection.store import Store
from bench.detection.summary import build_summary, print_summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.detection", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which rows: {', '.join(ROWS)}; default all")
    parser.add_argument("--served", type=Path, help="F16 expansion of the default model; found or made when left out")
    parser.add_argument("--out", type=Path, default=RESULTS / "detection.jsonl", help="file of finished results")
    parser.add_argument("--folder", type=Path, default=RESULTS / "cheats", help="where cheats' model files are kept")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="windows per cheat")
    parser.add_argument("--tokens", type=int, default=HONEST_TOKENS, help="honest tokens per engine pair")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; run again to go on")
    parser.add_argument("--seed", type=int, default=0, help="decides every nonce (default 0)")
    parser.add_argument("--branches", type=int, default=8, help="branch points per round; fewer finish sooner")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    unknown = sorted(set(options.rows) - set(ROWS))
    if unknown:
        parser.error(f"unknown rows {unknown}; known: {', '.join(ROWS)}")
    store = Store(options.out, options.seed)
    campaign = Campaign(
        bench=Bench.open(options.served or default_model(), options.threads),
        store=store,
        seed=options.seed,
        folder=options.folder,
        windows=options.windows,
        tokens=options.tokens,
        seconds=options.seconds,
        branches=options.branches,
    )
    campaign.run(options.rows or ROWS)
    summary = build_summary(store.read())
    print(json.dumps(summary, indent=1)) if options.json else print_summary(summary)
    return 0 if summary["honest_flagged"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
