"""The supervisor with real processes: roles that end at once, and a supervisor that is killed."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deaios.node.folder import RefusedRunning, RoleSpec, StateFolder
from deaios.node.supervisor import Supervisor, UnavailableRole
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
        assert psutil.pid_exists(pid)
        process.kill()
        await asyncio.to_thread(process.wait)

        def is_gone() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            return True

        await until(is_gone)
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
