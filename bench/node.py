"""The node rows: from `deaios up` to the first verified answer, and the memory of the whole local network after it.

Through the commands that a person types, each a process of its own with all its imports. Warm: the network was founded
and the model expanded before; the clock starts with `deaios up` and ends when `deaios verify` has said yes. There is no
peer that does the same; the bars are absolute.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.processes import ROOT, running
from bench.rows import Row, Run, alone

ANSWER_S, MEMORY = "node.first_answer_s", "node.memory_mib"
ROUNDS = 3
COMMAND_S = 240
QUESTION = "Name three planets."
ANSWER_TOKENS = "32"
MIB = 1 << 20


class FailedCommand(Exception):
    """A `deaios` command ended badly; has its last words."""


def measure(run: Run) -> Iterator[Row]:
    if not run.wants(ANSWER_S, MEMORY):
        return
    program = shutil.which("deaios", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    assert program is not None, "the deaios command is not installed beside this Python"
    with tempfile.TemporaryDirectory() as name:
        node = _Node(program, Path(name))
        run.say("founding a network; its time does not count")
        with node.up():
            pass
        taken, memory, parts = [], [], []
        for index in range(run.rounds_of(ROUNDS)):
            start = time.perf_counter()
            with node.up() as pid:
                ready = time.perf_counter()
                node.ask()
                asked = time.perf_counter()
                node.verify()
                taken.append(time.perf_counter() - start)
                memory.append(_sum_pss(pid) / MIB)
            parts.append(f"up {ready - start:.1f}, ask {asked - ready:.1f}, verify {start + taken[-1] - asked:.1f}")
            run.say(f"{ANSWER_S}: round {index + 1}: {taken[-1]:.1f} s ({parts[-1]}), {memory[-1]:.0f} MiB")
    yield alone(ANSWER_S, "s", taken, f"last round: {parts[-1]} s")
    yield alone(MEMORY, "MiB", memory, "sum of PSS: 11 roles and their supervisor, model mapped once")


class _Node:
    """One state folder and the commands on it."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        (folder / "state").mkdir()
        # Ports of its own, so that a network that runs on this machine is left alone.
        (folder / "state" / "deaios.toml").write_text("[chain]\nport = 0\n[gateway]\nport = 0\n")

    @contextmanager
    def up(self) -> Iterator[int]:
        """The network; yields the supervisor's process id once `up` says that it is ready."""
        command = [self._program, "up", "--json", "--dir", self._folder / "state"]
        with running(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            text = ""
            while line := process.stdout.readline().decode():
                text += line
                if line == "}\n":
                    break
            try:
                json.loads(text)
            except json.JSONDecodeError as error:
                raise FailedCommand(f"deaios up did not come up: {text[-300:] or process.wait()}") from error
            yield process.pid

    def ask(self) -> None:
        self._run("ask", QUESTION, "--max-tokens", ANSWER_TOKENS, "--save", str(self._folder / "answer.json"))

    def verify(self) -> None:
        self._run("verify", str(self._folder / "answer.json"))

    def _run(self, *arguments: str) -> None:
        command = [self._program, *arguments, "--dir", str(self._folder / "state")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        if done.returncode:
            raise FailedCommand(f"deaios {arguments[0]}: {done.stdout[-300:]}{done.stderr[-300:]}")


def _sum_pss(pid: int) -> int:
    """Bytes of a process and all below it, shared pages divided among those who share them."""
    supervisor = psutil.Process(pid)
    return sum(
        each.memory_full_info().pss for each in (supervisor, *supervisor.children(recursive=True)) if each.is_running()
    )
