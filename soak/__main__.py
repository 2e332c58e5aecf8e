"""`make soak`: every search in turn, round after round, until Ctrl-C or a finding.

Usage: python -m soak [NAME ...] [--seconds S] [--seed N] [--rounds R]
A finding prints the one command that repeats it and exits with 1.
"""

import argparse
import importlib
import sys

from soak.searches import Budget, Finding

SEARCHES = (
    "simulation",
    "chain",
    "chain_kill9",
    "contracts",
    "doors",
    "fuzz",
    "detection",
    "da",
    "networks",
    "live",
    "providers",
    "foreign",
    "behind_nat",
)
"""Modules of this folder, each with `search(budget) -> str`: what was tried, in words."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which searches: {', '.join(SEARCHES)}; default all")
    parser.add_argument("--seconds", type=float, default=300.0, help="budget of one search (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="first seed; rounds count on from it (default 0)")
    parser.add_argument("--rounds", type=int, default=0, help="stop after so many rounds (default: never)")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(SEARCHES))
    if unknown:
        parser.error(f"unknown searches {unknown}; known: {', '.join(SEARCHES)}")
    number = 0
    while not options.rounds or number < options.rounds:
        for name in options.names or SEARCHES:
            print(f"round {number + 1}, {name}, seed {options.seed + number}", flush=True)
            try:
                done = importlib.import_module(f"soak.{name}").search(Budget(options.seconds, options.seed + number))
            except Finding as finding:
                print(f"FOUND: {finding}\nrepeat with: {finding.command}", file=sys.stderr)
                return 1
            print(f"  {done}", flush=True)
        number += 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
