"""A network that is cut by `kill -9`, while it is founded or while it runs, goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


def run(*arguments: str, home: Path) -> Any:
    command = [sys.executable, "-m", "deaios.cli.main", *arguments, "--json", "--dir", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def ask_and_verify(home: Path, file: Path) -> int:
    """Ask, save, verify; gives the receipt's number at the one provider."""
    told = run("ask", "Name two seas.", "--max-tokens", "16", "--save", str(file), home=home)
    assert run("verify", str(file), home=home)["outcome"] == "verified"
    return int(told["receipt"])


def test_a_network_survives_kill_9_while_it_is_founded_and_afterwards(tmp_path: Path) -> None:
    quiet = "[chain]\nport = 0\n[gateway]\nport = 0\n[network]\nproviders = 1\nauditors = 1\naudit_interval_s = 600\n"
    (tmp_path / "deaios.toml").write_text(quiet)
    for step in ("deploying the contracts", "storing the model"):
        process = start(tmp_path)
        wait_for_words(tmp_path, process, step)
        kill_all(process)
        (tmp_path / "up.log").write_text("")
    process = start(tmp_path)
    wait_for_words(tmp_path, process, "the network is up")
    first = ask_and_verify(tmp_path, tmp_path / "first.json")
    kill_all(process)
    (tmp_path / "up.log").write_text("")
    process = start(tmp_path)
    try:
        wait_for_words(tmp_path, process, "the network is up")
        second = ask_and_verify(tmp_path, tmp_path / "second.json")
        assert second > first, "receipts are numbered on after the crash"
        assert run("verify", str(tmp_path / "first.json"), home=tmp_path)["outcome"] == "verified"
        descriptor = StateFolder(tmp_path).load_descriptor()
        addresses = descriptor.contracts.by_field().values()
        assert len(set(addresses)) == len(addresses)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
