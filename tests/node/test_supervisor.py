"""The supervisor with real processes: roles that end at once, and a supervisor that is killed."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from deaios.chain.store import ChainStore
from deaios.node.config import SupervisorConfig
from deaios.node.folder import RefusedRunning, RoleSpec, StateFolder
from deaios.node.fork import Nursery, Role
from deaios.node.supervisor import BACKOFF_S, Supervisor, UnavailableRole
from deaios.runtime.clock import SystemClock


async def until(condition, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def test_a_role_that_cannot_start_fails_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "network.json").write_text("{}")
    supervisor = Supervisor(StateFolder(tmp_path), SystemClock())
    try:
        await supervisor.start(RoleSpec("gateway", "gateway"))
        with pytest.raises(UnavailableRole, match="gateway failed"):
            await supervisor.wait_ready("gateway")
        assert "gateway" in supervisor.failures
        state = StateFolder(tmp_path).load_run_state("gateway")
        assert state is not None
        assert state.state == "failed"
        assert state.reason
    finally:
        await supervisor.stop()


async def test_a_role_that_is_ready_before_anybody_knows_of_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the supervisor hears of a fork after the role has said that it serves."""
    folder, fork = StateFolder(tmp_path), Nursery.fork

    async def fork_and_be_late(*arguments: Any) -> Role:
        role = await fork(*arguments)
        await until(lambda: (s := folder.load_run_state("chain")) and s.state == "running")
        return role

    monkeypatch.setattr(Nursery, "fork", fork_and_be_late)
    supervisor = Supervisor(folder, SystemClock())
    try:
        async with asyncio.timeout(30):
            await supervisor.start(RoleSpec("chain", "chain"))
            assert await supervisor.wait_ready("chain")
    finally:
        await supervisor.stop()


async def test_a_killed_role_comes_back(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    supervisor = Supervisor(folder, SystemClock())
    try:
        await supervisor.start(RoleSpec("chain", "chain"))
        await supervisor.wait_ready("chain")
        first = supervisor.pid_of("chain")
        os.kill(first, signal.SIGKILL)
        await until(lambda: (s := folder.load_run_state("chain")) and s.state == "running" and s.pid != first)
        assert supervisor.pid_of("chain") != first
        assert not supervisor.failures
    finally:
        await supervisor.stop()
    state = folder.load_run_state("chain")
    assert state is not None
    assert state.state == "stopped"


async def test_a_role_that_waits_for_the_world_is_never_given_up(tmp_path: Path) -> None:
    """Its exit code says that the disk, not the role, is at fault: it is started until the disk works again."""
    folder = StateFolder(tmp_path)
    blocked = folder.role("chain") / "chain.db"
    blocked.mkdir(parents=True)
    supervisor = Supervisor(folder, SystemClock(), limits=SupervisorConfig(restarts_max=1))
    try:
        await supervisor.start(RoleSpec("chain", "chain"))
        pids = {supervisor.pid_of("chain")}
        await until(lambda: len(pids) > 2 or pids.add(supervisor.pid_of("chain")))
        assert not supervisor.failures
        blocked.rmdir()
        await supervisor.wait_ready("chain")
    finally:
        await supervisor.stop()


async def test_a_role_that_keeps_ending_by_its_own_fault_is_given_up(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    supervisor = Supervisor(folder, SystemClock(), limits=SupervisorConfig(restarts_max=1))
    try:
        await supervisor.start(RoleSpec("chain", "chain"))
        await supervisor.wait_ready("chain")
        first = supervisor.pid_of("chain")
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pid_of("chain") != first)
        assert not supervisor.failures
        os.kill(supervisor.pid_of("chain"), signal.SIGKILL)
        await until(lambda: supervisor.failures == {"chain": "exit code -9"})
    finally:
        await supervisor.stop()


class LongAgo(SystemClock):
    """A clock on which a jump can be made."""

    jump_s = 0.0
    pauses: list[float]

    def __init__(self) -> None:
        self.pauses = []

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.jump_s

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await super().sleep(seconds)


async def test_a_role_that_ran_for_long_comes_back_at_once(tmp_path: Path) -> None:
    clock = LongAgo()
    supervisor = Supervisor(StateFolder(tmp_path), clock)
    try:
        await supervisor.start(RoleSpec("chain", "chain"))
        await supervisor.wait_ready("chain")
        first = supervisor.pid_of("chain")
        clock.jump_s = 1000.0
        clock.pauses.clear()
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pid_of("chain") != first)
        assert clock.pauses == [BACKOFF_S[0]]
    finally:
        await supervisor.stop()


def find_nurseries() -> list[psutil.Process]:
    """Nurseries of this process; their roles have the same command line, but not the same parent."""
    found = psutil.Process().children()
    return [process for process in found if "deaios.node.nursery" in process.cmdline()]


async def test_roles_of_a_lost_nursery_come_back_from_a_new_one(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    supervisor = Supervisor(folder, SystemClock())
    try:
        await supervisor.start(RoleSpec("chain", "chain"))
        await supervisor.wait_ready("chain")
        first = supervisor.pid_of("chain")
        (nursery,) = find_nurseries()
        assert nursery.num_threads() == 1  # a fork takes one thread along
        assert [child.pid for child in nursery.children()] == [first]
        nursery.kill()
        await until(lambda: (s := folder.load_run_state("chain")) and s.state == "running" and s.pid != first)
        assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
        (second,) = find_nurseries()
        assert second.pid != nursery.pid
        assert not supervisor.failures
    finally:
        await supervisor.stop()
    assert find_nurseries() == []


async def test_a_fork_that_nobody_waits_for_any_more_ends(tmp_path: Path) -> None:
    nursery = Nursery(dict(os.environ))
    folder = StateFolder(tmp_path)
    arguments = [str(folder.root), '{"name": "chain", "kind": "chain"}']
    try:
        asked = asyncio.create_task(nursery.fork("chain", arguments))
        await until(lambda: bool(find_nurseries()))
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        role = await nursery.fork("chain", arguments)
        (process,) = find_nurseries()
        await until(lambda: [child.pid for child in process.children()] == [role.pid])
        role.send_signal(signal.SIGTERM)
        assert await role.wait() == 0
    finally:
        await nursery.close()
    assert find_nurseries() == []


async def test_a_role_that_ends_badly_has_its_code_and_its_words(tmp_path: Path) -> None:
    nursery = Nursery(dict(os.environ))
    try:
        role = await nursery.fork("nothing", [str(tmp_path), "no specification"])
        assert await role.wait() == 70
        assert b"DecodeError" in await role.stderr.read()
        killed = await nursery.fork("chain", [str(tmp_path), '{"name": "chain", "kind": "chain"}'])
        killed.kill()
        assert await killed.wait() == -signal.SIGKILL
    finally:
        await nursery.close()


_SCRIPT = """
import asyncio, sys
from pathlib import Path
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.supervisor import Supervisor
from deaios.runtime.clock import SystemClock

async def main():
    supervisor = Supervisor(StateFolder(Path(sys.argv[1])), SystemClock())
    await supervisor.start(RoleSpec("chain", "chain"))
    await supervisor.wait_ready("chain")
    print(supervisor.pid_of("chain"), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    process = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", _SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        pid = int(await asyncio.to_thread(process.stdout.readline))
        family = psutil.Process(process.pid).children(recursive=True)
        assert pid in [child.pid for child in family]
        process.kill()
        await asyncio.to_thread(process.wait)

        def is_gone(child: psutil.Process) -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                return child.status() == psutil.STATUS_ZOMBIE
            return True

        await until(lambda: all(map(is_gone, family)))
    finally:
        process.kill()
        process.stdout.close()
        await asyncio.to_thread(process.wait)


def test_one_supervisor_per_folder(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with folder.lock(), pytest.raises(RefusedRunning, match="deaios down"), StateFolder(tmp_path).lock():
        pass
    with folder.lock():
        assert folder.supervisors() == {"network": os.getpid()}
    assert folder.supervisors() == {}


def test_single_roles_run_beside_each_other_but_not_beside_a_network(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with folder.lock("provider-1"), folder.lock("storage-1"):
        assert set(folder.supervisors()) == {"provider-1", "storage-1"}
        for name in ("provider-1", "network"):
            with pytest.raises(RefusedRunning, match="already runs"), StateFolder(tmp_path).lock(name):
                pass
    with folder.lock(), pytest.raises(RefusedRunning, match="network already runs"), folder.lock("auditor-1"):
        pass
    assert folder.supervisors() == {}


async def test_a_chain_that_was_cut_before_its_first_block_begins(tmp_path: Path) -> None:
    """The file is there, and nothing in it: no reason to never start again."""
    folder = StateFolder(tmp_path)
    folder.role("chain").mkdir(parents=True)
    ChainStore(folder.role("chain") / "chain.db").close()
    supervisor = Supervisor(folder, SystemClock())
    try:
        await supervisor.start(RoleSpec("chain", "chain"))
        await supervisor.wait_ready("chain")
    finally:
        await supervisor.stop()
