"""The demo as a user runs it, and as a user interrupts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "deaios.cli.main", "demo"]


def test_the_demo_catches_the_cheat_and_conserves_money(tmp_path: Path) -> None:
    (tmp_path / "deaios.toml").write_text("[chain]\nport = 0\n[gateway]\nport = 0\n")
    done = subprocess.run(
        [*COMMAND, "--json", "--dir", str(tmp_path)], capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    honest = [answer for answer in told["answers"] if answer["provider"] != "provider-cheat"]
    assert honest
    assert all(answer["outcome"] == "verified" for answer in honest)
    assert any(payment["provider"].startswith("provider-") for payment in told["payments"])
    assert told["evidence"]["violations"] > 0
    assert told["conviction"]["provider"] == "provider-cheat"
    assert float(told["conviction"]["slashed"]) == 10
    assert told["money"]["founded"] == "1,000,000,000"


def test_ctrl_c_ends_the_demo_and_everything_it_started(tmp_path: Path) -> None:
    (tmp_path / "deaios.toml").write_text("[chain]\nport = 0\n[gateway]\nport = 0\n")
    process = subprocess.Popen([*COMMAND, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children(recursive=True)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        _gone, alive = psutil.wait_procs(children, timeout=10)
        assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    finally:
        process.kill()
        process.wait()
