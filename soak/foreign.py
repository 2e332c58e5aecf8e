"""The whole demo on a foreign chain (anvil) that is reorganised at random: answered, verified, caught, recounted.

Usage: python -m soak.foreign [--seed N] [--folder DIR] [--depth 3] [--confirmations 4] [--kill]
With --kill, roles are killed at random meanwhile; the supervisor brings them back.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from deaios.ledger.client.rpc import Rpc
from deaios.node.folder import StateFolder
from deaios.node.keyfile import encode_keyfile
from deaios.primitives.keys import PrivateKey
from soak.chain_fuzz.foreign import run_anvil
from soak.reorgs import DEPTH_MAX, Reorgs, describe
from soak.searches import Budget, Finding

PEERS = Path(__file__).resolve().parents[1] / "tests" / "peers" / "peers.py"
RICH = PrivateKey(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
"""anvil's first well-known account."""
PASSWORD = b"deployer"
CONFIRMATIONS = DEPTH_MAX + 1
BLOCK_S = 1
DEMO_S = 1500.0
KILL_PAUSE_S = (10.0, 25.0)
SPARED = ("gateway", "storage-1")
"""Whom the demo's own commands talk to while it runs; a user would ask again."""


class UnavailableDemo(Exception):
    """The demo ended with an error; its last words."""


def find_anvil() -> Path:
    """The foreign node, as the tests install it."""
    spec = importlib.util.spec_from_file_location("peers", PEERS)
    assert spec is not None
    assert spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = peers
    spec.loader.exec_module(peers)
    anvil: Path = peers.install_peers().anvil
    return anvil


@contextlib.asynccontextmanager
async def foreign_chain(seed: int, depth_max: int) -> AsyncIterator[tuple[str, Reorgs]]:
    """A foreign chain, and what can reorganise it; gives its URL."""
    with run_anvil(find_anvil(), ("--block-time", str(BLOCK_S))) as url:
        async with Rpc(url) as rpc:
            yield url, Reorgs(rpc, random.Random(seed), depth_max)


def write_deployer(folder: Path) -> list[str]:
    """A keystore of the rich account; gives the options that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    keystore, password = folder / "deployer.json", folder / "deployer.password"
    keystore.write_bytes(encode_keyfile(RICH, PASSWORD, os.urandom(48)))
    password.write_bytes(PASSWORD + b"\n")
    return ["--deployer", str(keystore), "--password-file", str(password)]


async def run_demo(folder: Path, url: str, confirmations: int) -> dict[str, Any]:  # Any: JSON
    """The demo as a user runs it; gives what it says at the end.

    Raises:
        UnavailableDemo: it ended with an error.
    """
    options = write_deployer(folder)
    (folder / "deaios.toml").write_text("[gateway]\nport = 0\n")
    command = [sys.executable, "-m", "deaios.cli.main", "demo", "--json", "--dir", str(folder), "--chain", url]
    process = await asyncio.create_subprocess_exec(
        *command, *options, "--confirmations", str(confirmations),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEMO_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if process.returncode:
        raise UnavailableDemo((out + err).decode(errors="replace")[-1500:])
    told: dict[str, Any] = json.loads(out)
    return told


async def kill_roles(folder: Path, dice: random.Random, killed: list[str]) -> None:
    """Kill a running role now and then, once all run, until cancelled."""
    state = StateFolder(folder)
    while True:
        await asyncio.sleep(dice.uniform(*KILL_PAUSE_S))
        gateway = state.load_run_state("gateway")
        if gateway is None or gateway.state != "running":
            continue
        running = [
            run
            for role in state.load_roles()
            if role.name not in SPARED and (run := state.load_run_state(role.name)) and run.state == "running"
        ]
        if running:
            victim = dice.choice(running)
            with contextlib.suppress(psutil.Error):
                psutil.Process(victim.pid).kill()
                killed.append(victim.name)


async def hunt(seed: int, folder: Path, depth_max: int, confirmations: int, *, with_kills: bool) -> str:
    """One demo; gives what was done in words.

    Raises:
        UnavailableDemo: a step did not happen, or a promise did not hold.
    """
    killed: list[str] = []
    async with foreign_chain(seed, depth_max) as (url, reorgs), asyncio.TaskGroup() as group:
        faults = [group.create_task(reorgs.run())]
        if with_kills:
            faults.append(group.create_task(kill_roles(folder, random.Random(seed + 1), killed)))
        told = await run_demo(folder, url, confirmations)
        for fault in faults:
            fault.cancel()
    done = describe(reorgs)
    _check(told, reorgs)
    kills = f"; killed {', '.join(killed)}" if with_kills else ""
    return f"demo passed, {told['conviction']['provider']} lost {told['conviction']['slashed']}; {done}{kills}"


def _check(told: dict[str, Any], reorgs: Reorgs) -> None:  # Any: JSON
    honest = [answer for answer in told["answers"] if answer["provider"] != "provider-cheat"]
    if not honest or any(answer["outcome"] != "verified" for answer in honest):
        raise UnavailableDemo(f"honest answers did not all verify: {told['answers']}")
    if told["conviction"]["provider"] != "provider-cheat":
        raise UnavailableDemo(f"somebody else was convicted: {told['conviction']}")
    if not sum(reorgs.depths.values()) or not reorgs.counts["transactions dropped"]:
        raise UnavailableDemo(f"no reorganisation took a transaction back: {describe(reorgs)}")


def search(budget: Budget) -> str:
    """Demos, each on a chain of its own, until the time is up."""
    end, seed, done = budget.deadline_s(), budget.seed, ""
    while True:
        folder = Path(tempfile.mkdtemp(prefix="deaios-foreign-"))
        try:
            done = asyncio.run(hunt(seed, folder, DEPTH_MAX, CONFIRMATIONS, with_kills=bool(seed % 2)))
        except ExceptionGroup as group:
            kill = " --kill" if seed % 2 else ""
            raise Finding(
                f"{group.exceptions[0]}; see {folder}", f"python -m soak.foreign --seed {seed}{kill}"
            ) from group
        shutil.rmtree(folder)
        seed += 1
        if asyncio.run(_now()) > end:
            return f"{seed - budget.seed} demos; the last one: {done}"


async def _now() -> float:
    return asyncio.get_running_loop().time()


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak.foreign", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--depth", type=int, default=DEPTH_MAX)
    parser.add_argument("--confirmations", type=int, default=CONFIRMATIONS)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="deaios-foreign-"))
    try:
        done = hunt(options.seed, folder, options.depth, options.confirmations, with_kills=options.kill)
        print(asyncio.run(done))
    except ExceptionGroup as group:
        print(f"FOUND: {group.exceptions[0]}\nits folder: {folder}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
