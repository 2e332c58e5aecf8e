"""A real network under load while its processes are killed, then a recount to the unit; or traffic that must not leak.

Usage: python -m soak.live [--kills 200] [--seconds S] [--seed N] [--folder DIR] [--keep]
       python -m soak.live --traffic [--minutes 30]

Each kill picks roles (one, two, all, all with the supervisor, the supervisor alone) and an instant at random; often the
next one falls while the last is still coming up. The seed fixes the choices, not the interleaving of real processes. A
finding names the command that repeats it, and leaves the folder with every journal and log.
"""

import argparse
import asyncio
import collections
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deaios.primitives.errors import DeaiosError
from deaios.runtime.logs import configure_logs
from soak.live_load import Load, Record
from soak.live_network import LiveNetwork, Size, UnavailableNetwork
from soak.live_recount import Recount, Unsettled, Voucher, read_vouchers, recount, settle, thaw
from soak.live_traffic import run_traffic
from soak.searches import Budget, Finding

KILLS = 200
INSTANT_S = 2.5
"""A kill falls within this after the one before it has been taken note of."""
OVERLAP = 0.4
"""How often the next kill does not wait until the last victim serves again."""
WHAT = (("role", 81), ("pair", 10), ("all", 4), ("everything", 3), ("supervisor", 2))
"""What dies, with weights."""
RECOUNT_EVERY = 50
"""Kills between two recounts: a difference is told near its cause."""


@dataclass
class Killer:
    """Kills at random, and remembers what buyers' journals said just before."""

    network: LiveNetwork
    dice: random.Random
    vouchers: list[Voucher]
    killed: collections.Counter[str]
    pending: dict[str, int]

    async def kill_once(self) -> None:
        """Wait for the instant, kill, and mostly wait until the victims serve again."""
        await asyncio.sleep(self.dice.uniform(0.0, INSTANT_S))
        what = self.dice.choices([name for name, _ in WHAT], [weight for _, weight in WHAT])[0]
        roles = self.network.roles
        chosen = {"role": 1, "pair": 2, "all": len(roles)}.get(what, 0)
        names = self.dice.sample(roles, chosen)
        self.vouchers += read_vouchers(self.network)
        self.killed[names[0] if what == "role" else what] += 1
        if what in ("everything", "supervisor"):
            await self._kill_supervisor(what)
            return
        self.pending |= self.network.kill(*names)
        if self.dice.random() >= OVERLAP:
            await self.wait_ready()

    async def _kill_supervisor(self, what: str) -> None:
        if what == "everything":
            await self.network.kill_everything()
        else:
            await self.network.kill_supervisor()
        self.pending.clear()
        await self.network.start()

    async def wait_ready(self) -> None:
        """Until every role serves."""
        pending, self.pending = self.pending, {}
        await self.network.wait_ready({name: pending.get(name, 0) for name in self.network.roles})


@dataclass(frozen=True)
class Options:
    """What one run does."""

    kills: int
    seconds: float
    seed: int
    folder: Path
    chats: int = 4

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m soak.live --kills {self.kills} --seed {self.seed}"


async def run_kills(options: Options) -> str:
    """Kill under load and recount.

    Raises:
        Finding: something acknowledged was lost or doubled, a sum differs, or the network did not come back.
    """
    dice = random.Random(options.seed)
    network = LiveNetwork(options.folder, Size())
    killer = Killer(network, dice, [], collections.Counter(), {})
    record = Record()
    start_s = time.monotonic()
    done = 0
    configure_logs("soak", options.folder / "soak.log", "info")
    try:
        await network.start()
        await network.fill_purses()
        while done < options.kills and time.monotonic() - start_s < options.seconds:
            load = Load(network, record, seed=options.seed * 1000 + done, chats=options.chats)
            await load.start()
            for _ in range(min(RECOUNT_EVERY, options.kills - done)):
                await killer.kill_once()
                done += 1
                if time.monotonic() - start_s >= options.seconds:
                    break
            await killer.wait_ready()
            await load.stop()
            result = await _recount(network, record, killer.vouchers)
            _report(done, time.monotonic() - start_s, killer, record, result)
            if result.differences:
                shown = "\n  ".join(result.differences[:20])
                raise Finding(
                    f"{len(result.differences)} differences after {done} kills, in {options.folder}:\n  {shown}",
                    options.command,
                )
            thaw(network)
        await network.stop()
    except (UnavailableNetwork, Unsettled, DeaiosError) as error:
        raise Finding(f"after {done} kills, in {options.folder}: {error}", options.command) from error
    finally:
        await network.abort()
    return f"{done} kills in {time.monotonic() - start_s:.0f} s, nothing acknowledged was lost or doubled"


async def _recount(network: LiveNetwork, record: Record, vouchers: list[Voucher]) -> Recount:
    await settle(network)
    return await recount(network, record, vouchers)


def _report(done: int, seconds: float, killer: Killer, record: Record, result: Recount) -> None:
    pace = f"{seconds:.0f} s, {seconds / max(done, 1):.1f} s each"
    print(f"after {done} kills ({pace}): {len(result.differences)} differences")
    print("  killed:   " + ", ".join(f"{name} {count}" for name, count in sorted(killer.killed.items())))
    print("  recount:  " + ", ".join(f"{name} {count:,}" for name, count in result.figures.items()))
    print("  clients:  " + ", ".join(f"{name} {count}" for name, count in sorted(record.events.items())), flush=True)


def search(budget: Budget) -> str:
    """As many kills as the budget holds."""
    return _in_folder(None, keep=False, kills=10**6, seconds=budget.seconds, seed=budget.seed)


def _in_folder(folder: Path | None, *, keep: bool, kills: int, seconds: float, seed: int) -> str:
    home = folder or Path(tempfile.mkdtemp(prefix="deaios-live-"))
    told = asyncio.run(run_kills(Options(kills, seconds, seed, home)))
    if not keep:
        shutil.rmtree(home)
    return told


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="soak.live", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seconds", type=float, default=24 * 3600.0, help="stop killing after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the network lives; a temporary folder otherwise")
    parser.add_argument("--keep", action="store_true", help="keep the folder also when nothing was found")
    parser.add_argument("--traffic", action="store_true", help="no kills: watch memory, descriptors, tasks, channels")
    parser.add_argument("--minutes", type=float, default=30.0, help="of traffic")
    options = parser.parse_args()
    try:
        if options.traffic:
            print(run_traffic(options.folder, options.minutes, options.seed, keep=options.keep))
        else:
            print(
                _in_folder(
                    options.folder, keep=options.keep, kills=options.kills, seconds=options.seconds, seed=options.seed
                )
            )
    except Finding as finding:
        print(f"FOUND: {finding}\nrepeat with: {finding.command}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
