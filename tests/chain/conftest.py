import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
START_S = 30


def load_module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


load_module(HERE / "chain_values.py")
load_module(HERE / "rpc_world.py")
load_module(HERE.parent / "doors" / "frames.py")
load_module(HERE / "follower_values.py")
if str(REPOSITORY) not in sys.path:
    # The fuzzer is shared with `soak`, which is no part of the installed package.
    sys.path.append(str(REPOSITORY))


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen
    url: str

    def rpc(self, method, *params):
        answer = self.exchange({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        if "error" in answer:
            raise RuntimeError(json.dumps(answer["error"]))
        return answer["result"]

    def exchange(self, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
        return json.loads(text) if text else None

    def wait_receipt(self, transaction_hash, timeout_s=20):
        end = time.monotonic() + timeout_s
        while (receipt := self.rpc("eth_getTransactionReceipt", transaction_hash)) is None:
            assert time.monotonic() < end, f"{transaction_hash} was not included within {timeout_s} s"
        return receipt

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=20)


def start_chain(folder: Path, **environment) -> Running:
    """The embedded chain over `folder/chain.db` in a real process."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "chain_process.py"), str(folder / "chain.db"), json.dumps(environment)],
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline().strip()
    assert line.startswith("http://"), f"the chain did not start: {line!r}, exit {process.poll()}"
    return Running(process, line)


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """One chain at the product's pace for tests of clients; each test uses a user key of its own."""
    running = start_chain(tmp_path_factory.mktemp("chain"), block_ms=500, gather_ms=260)
    yield running
    running.process.stdout.close()
    running.stop()


@pytest.fixture
def spawn_chain():
    """Starts chains that the test may kill."""
    started = []

    def spawn(folder, **environment):
        started.append(start_chain(folder, **environment))
        return started[-1]

    yield spawn
    for running in started:
        running.process.stdout.close()
        if running.process.poll() is None:
            running.stop()


@pytest.fixture
def anvil(anvil_process):
    """The foreign node as it was when it started."""
    snapshot = anvil_process.rpc("evm_snapshot")
    yield anvil_process
    assert anvil_process.rpc("evm_revert", snapshot)


@pytest.fixture(scope="session")
def anvil_process(peers, tmp_path_factory):
    """A foreign node under Cancun rules that mines when told."""
    output = tmp_path_factory.mktemp("anvil") / "output"
    command = [
        str(peers.anvil),
        *("--port", "0", "--no-mining", "--hardfork", "cancun", "--order", "fifo", "--accounts", "4"),
        *("--gas-limit", "30000000", "--chain-id", "1337", "--block-base-fee-per-gas", "1000000000"),
    ]
    # It prints every request; a pipe that nobody reads would stop it.
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file)
    end = time.monotonic() + START_S
    while not (found := re.search(r"Listening on (\S+)", output.read_text())):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < end, f"anvil is not ready after {START_S} s"
        time.sleep(0.02)
    yield Running(process, "http://" + found[1])
    process.terminate()
    process.wait(timeout=20)
