"""Servers of a bench as processes of their own, so that the CPU time of each can be read by itself.

Ours print their URL when they serve and end when their standard input does. Foreign ones are ended by the bench, on
Ctrl-C and SIGTERM too; only a bench killed with SIGKILL leaves them behind.
"""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
START_S = 300.0
"""LiteLLM alone takes half a minute of CPU time."""
STOP_S = 15.0


class AbsentServer(Exception):
    """A server did not come up; says which, and its last words."""


class Server:
    """One running server and what it started."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str) -> None:
        self.process = process
        self.url = url

    def cpu_s(self) -> float:
        """CPU seconds so far, user and system, of the process and its living children."""
        return cpu_of(self.process.pid)


def cpu_of(pid: int) -> float:
    """CPU seconds so far of a process and its living children."""
    process = psutil.Process(pid)
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def serving(
    *arguments: str | Path, module: str = "bench.servers", environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run one of our server modules until the block ends.

    Raises:
        AbsentServer: it ended, or printed no URL in time.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with running(command, environment=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Server(process, _read_line(process, " ".join(command[2:])))


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = subprocess.DEVNULL,
    cwd: Path = ROOT,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program until the block ends; asked politely first."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=stdin,
        stdout=stdout,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # Ctrl-C is for the bench, which then stops what it started
    )
    try:
        yield process
    finally:
        family = _family(process.pid)
        try:
            if process.stdin:
                process.stdin.close()  # ours end by themselves when it ends
            else:
                process.terminate()
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family:
            if child.is_running():
                child.kill()
        if process.stdout:
            process.stdout.close()


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _read_line(process: "subprocess.Popen[bytes]", what: str) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_S):
            raise AbsentServer(f"{what} said nothing within {START_S:.0f} s")
    line = process.stdout.readline().decode().strip()
    if not line:
        raise AbsentServer(f"{what} ended with status {process.wait()} before it served; see its error above")
    return line


def wait_until(is_ready: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Poll a condition of a foreign program, which has no other way to say that it is ready."""
    end = time.monotonic() + timeout_s
    while not is_ready():
        if time.monotonic() > end:
            raise AbsentServer(f"{what} was not ready within {timeout_s:.0f} s")
        time.sleep(0.05)
