"""The simulated world: every promise holds in hundreds of seeded histories, and every fault and cheat was among them.

A history that fails prints the one command that repeats it. The long search is `make soak` (soak/simulation.py).
"""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from random import Random

import pytest
import structlog

from deaios.node.simulation import runs, stories
from deaios.node.simulation.loop import Process, SimulatedLoop
from deaios.node.simulation.runs import Tally, find_missing, run_histories, silence_logs
from deaios.node.simulation.stories import COURTS, tell
from deaios.node.simulation.world import Violation, World, until

TRADES = range(1, 478)
"""With the courts below at least 500 histories."""
KEPT = (
    (10, "trade"),  # a full disk left a buyer with a journal that took nothing any more, and nobody restarted it
    (27, "trade"),  # a full disk: the provider claimed charges whose receipts were lost when it restarted
    (134, "trade"),  # the same without a cheat in it
    (35, "trade"),  # the same, with a withdrawal waiting
    (164, "trade"),  # a connection broke while its answer was made, and the retry was charged as if nothing had been
)
"""Histories that failed once; their seeds are replayed as long as they stand for what they found."""


@pytest.fixture(autouse=True)
def heard_again():
    """Simulations silence the logs of their process; the tests after these want to hear them."""
    yield
    structlog.reset_defaults()


def run_part(seeds, kind):
    silence_logs()
    return run_histories(seeds, kind)


@pytest.fixture(scope="module")
def tally():
    """All histories of this module, on two processes."""
    total = Tally()
    parts = [(list(TRADES)[start::10], "trade") for start in range(10)]
    parts += [([number], f"court-{number}") for number in range(len(COURTS))]
    # An appeal needs two bribed jurors among the first three, which one draw in two brings.
    bribed = COURTS.index(("false accusation", "bribed jurors"))
    parts += [([seed], f"court-{bribed}") for seed in range(100, 107)]
    with ProcessPoolExecutor(2) as pool:
        for part in pool.map(run_part, *zip(*parts, strict=True)):
            total.add(part)
    return total


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_promise_holds_in_every_history(tally):
    assert tally.histories >= 500
    assert [f"{failure.error[:300]} | repeat with: {failure.command}" for failure in tally.failures] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_fault_cheat_and_branch_happened(tally):
    assert find_missing(tally.happened) == []


@pytest.mark.parametrize(("seed", "kind"), KEPT)
def test_histories_that_failed_once_hold(seed, kind):
    silence_logs()
    tell(seed, kind)


def test_one_seed_is_one_history():
    """Also across processes, whose hashes of text differ."""
    command = [sys.executable, "-m", "deaios.node.simulation", "--seed", "45"]
    told = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(told) == 1
    assert "all held" in told.pop()


def test_the_command_line_counts_what_happened():
    command = [sys.executable, "-m", "deaios.node.simulation", "--seeds", "1", "4", "--workers", "1", "--json"]
    document = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (document["histories"], document["failures"]) == (3, [])
    command += ["--least", "4"]
    rare = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rare.returncode == 2
    assert "torn write" in rare.stdout


def test_a_broken_promise_is_found_and_told(monkeypatch):
    """A provider that forgets receipts after a crash: the search would find it."""
    silence_logs()
    checks_of = stories.Checks.check_kept

    def forgetful(checks):
        if checks.acknowledged.receipts:
            place = next(iter(checks.acknowledged.receipts))
            checks.acknowledged.receipts[place] = bytes(32)
        checks_of(checks)

    monkeypatch.setattr(stories.Checks, "check_kept", forgetful)
    found = runs.run_histories(range(1, 6), "trade")
    assert found.failures
    assert "was acknowledged and is not in its journal" in found.failures[0].error
    assert found.failures[0].command.startswith("python -m deaios.node.simulation --seed")


def test_nothing_of_a_dead_process_runs():
    loop, process, seen = SimulatedLoop(Random(1)), Process("mortal"), []

    async def mortal():
        try:
            await asyncio.sleep(2)
            seen.append("woke")
        finally:
            seen.append("cleaned up")

    async def world():
        task = loop.run_in(process, mortal())
        await asyncio.sleep(1)
        loop.kill(process)
        await asyncio.sleep(5)
        return task.done()

    try:
        assert loop.run_until_complete(world()) is False
        assert seen == []
        assert loop.time() == 6
    finally:
        loop.bury(process)
        loop.close()


async def never():
    return False


def test_a_stuck_history_ends():
    silence_logs()
    with World(1) as world, pytest.raises(Violation, match="not within"):
        world.run(until(world, never, 10, "never"))
