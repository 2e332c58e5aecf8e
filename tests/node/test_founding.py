"""Founding a network, cut by `kill -9` in the middle, goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deaios.node.folder import StateFolder

pytestmark = [pytest.mark.timeout(600)]
WAIT_S = 240.0


def start(home: Path) -> subprocess.Popen[str]:
    with (home / "up.log").open("a") as log:
        command = [sys.executable, "-m", "deaios.cli.main", "up", "--dir", str(home)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)


def wait_for_words(home: Path, process: subprocess.Popen[str], words: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while words not in (said := (home / "up.log").read_text()):
        assert process.poll() is None, said[-2000:]
        assert time.monotonic() < deadline, said[-2000:]
        time.sleep(0.1)


def kill_all(process: subprocess.Popen[str]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for child in children:
        if child.is_running():
            child.kill()
    psutil.wait_procs(children, timeout=10)


def test_founding_survives_kill_9_at_each_of_its_steps(tmp_path: Path) -> None:
    quiet = "[chain]\nport = 0\n[gateway]\nport = 0\n[network]\nproviders = 1\nauditors = 1\naudit_interval_s = 600\n"
    (tmp_path / "deaios.toml").write_text(quiet)
    for step in ("deploying the contracts", "storing the model", "starting providers"):
        process = start(tmp_path)
        wait_for_words(tmp_path, process, step)
        kill_all(process)
        (tmp_path / "up.log").write_text("")
    process = start(tmp_path)
    try:
        wait_for_words(tmp_path, process, "the network is up")
        descriptor = StateFolder(tmp_path).load_descriptor()
        assert len(set(descriptor.contracts.by_field().values())) == 9
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
