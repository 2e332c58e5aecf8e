"""Data availability at length: a long file whose members die, many small blobs, and members that lie.

Usage: python -m soak.da stream [--gib 4] [--nodes 16] [--lose 10] [--seed N] [--dir FOLDER] [--keep]
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from soak.da_stream import GIB, Options, run_stream
from soak.searches import Finding


def stream(options: argparse.Namespace, home: Path) -> str:
    chosen = Options(int(options.gib * GIB), options.nodes, options.lose, options.seed, home)
    return asyncio.run(run_stream(chosen))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="soak.da", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("stream", help="put a file, kill members, get it")
    one.add_argument("--gib", type=float, default=4.0)
    one.add_argument("--nodes", type=int, default=16)
    one.add_argument("--lose", type=int, default=10)
    one.set_defaults(work=stream)
    for command in commands.choices.values():
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--dir", type=Path, help="where to work; a temporary folder otherwise")
        command.add_argument("--keep", action="store_true", help="keep the folder also when nothing was found")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="deaios-da-", dir=options.dir))
    try:
        print(options.work(options, home))
    except Finding as finding:
        print(f"FOUND: {finding}\nin {home}; repeat with: {finding.command}", file=sys.stderr)
        return 1
    if not options.keep:
        shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
