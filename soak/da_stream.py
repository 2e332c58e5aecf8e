"""A long file through many members, most of which then die: its bytes, and what every process used.

A certificate of 11 of 16 seats promises that its blob outlives five liars and silence of whoever did not sign: with
honest members, the loss of six of those who signed. Where all are honest and quick all sign, and eleven may be lost; so
how many signed is printed, and losing ten is a test of that too.
"""

import asyncio
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deaios.runtime.logs import configure_logs
from soak.da_network import DaNetwork, FailedCommand, Ran, Use, running
from soak.searches import Finding

GIB, MIB = 1 << 30, 1 << 20
PIECE_BYTES = 16 * MIB
PEAK_BYTES_MAX = GIB
"""What no process may reach."""
DISK_SLACK_BYTES = 2 * GIB


@dataclass(frozen=True)
class Options:
    """One run."""

    size_bytes: int
    members: int
    lost: int
    seed: int
    home: Path

    @property
    def command(self) -> str:
        gib = self.size_bytes / GIB
        return f"python -m soak.da stream --gib {gib:g} --nodes {self.members} --lose {self.lost} --seed {self.seed}"

    @property
    def disk_bytes(self) -> int:
        """The file, its copy, and its rows."""
        rows_share = self.members / (self.members // 3)
        return int(self.size_bytes * (2 + rows_share)) + DISK_SLACK_BYTES


async def run_stream(options: Options) -> str:
    """Put, kill, get, compare.

    Raises:
        Finding: other bytes, a command that failed, or a process that held too much.
    """
    free = shutil.disk_usage(options.home).free
    if free < options.disk_bytes:
        raise SystemExit(f"{options.home} has {free / GIB:.1f} GiB free, {options.disk_bytes / GIB:.1f} are needed")
    configure_logs("soak", options.home / "soak.log", "info")
    source, target = options.home / "source", options.home / "target"
    await asyncio.to_thread(_write, source, options)
    dice = random.Random(options.seed)
    async with running(options.home / "network", options.members) as network:
        try:
            before = network.uses()
            put = await network.run("blob", "put", source, "--json")
            between = network.uses()
            source.unlink()
            print(_describe("put", options, put, before, between))
            signers = await network.fetch_signers()
            print(f"  {len(signers)} certificates, of {signers[0]} to {signers[-1]} seats", flush=True)
            dead = dice.sample(network.members, options.lost)
            network.kill(dead)
            before = network.uses()
            got = await network.run("blob", "get", json.loads(put.said)["id"], "-o", target, "--json")
            after = network.uses()
            print(_describe("get", options, got, before, after), flush=True)
        except FailedCommand as error:
            raise Finding(str(error), options.command) from error
        await asyncio.to_thread(_compare, target, options)
        return _judge(options, network, {"publisher": put.use, "reader": got.use, **after})


def iterate_content(options: Options) -> Iterator[bytes]:
    """The file's bytes, a piece at a time, from the seed alone."""
    generator = np.random.Generator(np.random.PCG64(options.seed))
    for start in range(0, options.size_bytes, PIECE_BYTES):
        yield generator.bytes(min(PIECE_BYTES, options.size_bytes - start))


def _write(path: Path, options: Options) -> None:
    with path.open("wb") as file:
        for piece in iterate_content(options):
            file.write(piece)


def _compare(path: Path, options: Options) -> None:
    if path.stat().st_size != options.size_bytes:
        raise Finding(f"{path.stat().st_size} bytes came back of {options.size_bytes}", options.command)
    with path.open("rb") as file:
        for number, piece in enumerate(iterate_content(options)):
            if file.read(len(piece)) != piece:
                raise Finding(f"other bytes came back from {number * PIECE_BYTES} on", options.command)


def _describe(what: str, options: Options, ran: Ran, before: dict[str, Use], after: dict[str, Use]) -> str:
    spent = {name: after[name].cpu_s - before[name].cpu_s for name in after}
    members = sum(used for name, used in spent.items() if name != "chain")
    total = ran.use.cpu_s + members + spent["chain"]
    mib = options.size_bytes / MIB
    return (
        f"{what}: {mib:.0f} MiB in {ran.wall_s:.1f} s ({mib / ran.wall_s:.1f} MiB/s); CPU {total:.1f} s "
        f"({mib / total:.1f} MiB/CPU-s): client {ran.use.cpu_s:.1f}, members {members:.1f}, chain {spent['chain']:.1f}"
    )


def _judge(options: Options, network: DaNetwork, uses: dict[str, Use]) -> str:
    for name, use in uses.items():
        print(f"  {name:10} peak {use.peak_bytes / MIB:7.1f} MiB, CPU {use.cpu_s:7.1f} s")
    worst = max(uses, key=lambda name: uses[name].peak_bytes)
    peak = uses[worst].peak_bytes
    if peak >= PEAK_BYTES_MAX:
        raise Finding(f"{worst} held {peak / MIB:.0f} MiB, below {PEAK_BYTES_MAX / MIB:.0f} allowed", options.command)
    return (
        f"{options.size_bytes / GIB:g} GiB put on {len(network.members)} members, {options.lost} killed, "
        f"the same bytes got; most memory: {worst} with {peak / MIB:.0f} MiB"
    )
