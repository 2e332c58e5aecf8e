"""Data availability at length: a long file whose members die, many small blobs, and members that lie.

Usage: python -m soak.da stream [--gib 4] [--nodes 16] [--lose 10]
       python -m soak.da small [--blobs 10000] [--bytes 200] [--nodes 16]
       python -m soak.da byzantine [--rounds 20]
Each takes --seed N, --dir FOLDER (to work in; a temporary one otherwise) and --keep (the folder also when all is well).
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from soak import da_small, da_stream
from soak.da_byzantine import Tally, run_rounds
from soak.searches import Budget, Finding

ROUNDS = 20
ROUNDS_PER_SEED = 1_000_000
FOREVER_S = float("inf")


def search(budget: Budget) -> str:
    """Rounds with liars until the budget is spent; the other two are measurements, and run by themselves."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="deaios-da-") as home:
        done = run_rounds(Path(home), ROUNDS_PER_SEED, budget.seed * ROUNDS_PER_SEED, budget.seconds, tally)
    return f"{done} rounds of sixteen members with five liars: {tally}"


def stream(options: argparse.Namespace, home: Path) -> str:
    size = int(options.gib * da_stream.GIB)
    chosen = da_stream.Options(size, options.nodes, options.lose, options.seed, home)
    return asyncio.run(da_stream.run_stream(chosen))


def small(options: argparse.Namespace, home: Path) -> str:
    chosen = da_small.Options(options.blobs, options.bytes, options.nodes, options.seed, home)
    return asyncio.run(da_small.run_small(chosen))


def byzantine(options: argparse.Namespace, home: Path) -> str:
    tally = Tally()
    return f"{run_rounds(home, options.rounds, options.seed, FOREVER_S, tally)} rounds: {tally}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="soak.da", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("stream", help="put a file, kill members, get it; what every process used")
    one.add_argument("--gib", type=float, default=4.0)
    one.add_argument("--nodes", type=int, default=16)
    one.add_argument("--lose", type=int, default=10, help="members that are killed in between")
    one.set_defaults(work=stream)
    one = commands.add_parser("small", help="put small blobs in bundles, prove each; what one of them costs")
    one.add_argument("--blobs", type=int, default=10_000)
    one.add_argument("--bytes", type=int, default=200)
    one.add_argument("--nodes", type=int, default=16)
    one.set_defaults(work=small)
    one = commands.add_parser("byzantine", help="rounds of sixteen members with five liars")
    one.add_argument("--rounds", type=int, default=ROUNDS)
    one.set_defaults(work=byzantine)
    for command in commands.choices.values():
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--dir", type=Path, help="where to work; a temporary folder otherwise")
        command.add_argument("--keep", action="store_true", help="keep the folder also when nothing was found")
    return parser


def main() -> int:
    options = build_parser().parse_args()
    home = Path(tempfile.mkdtemp(prefix="deaios-da-", dir=options.dir))
    try:
        print(options.work(options, home))
    except Finding as finding:
        print(f"FOUND: {finding}\nin {home}; repeat with: {finding.command}", file=sys.stderr)
        return 1
    except BaseException:
        shutil.rmtree(home)
        raise
    if not options.keep:
        shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
