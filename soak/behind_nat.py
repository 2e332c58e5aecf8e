"""A machine that can only dial out earns, and repays who lent it its first stake. Real processes, network namespaces.

Three namespaces: in A a network is founded whose faucet gives to its own keys only and whose office sponsors
newcomers; B can dial A, and nobody can dial B; C can dial A and nothing else. B joins by the descriptor's URL alone,
without money, and provides; C asks a gateway in A and checks an answer. What must hold: a connection into B fails while
B serves; B is registered under A's gateway; the first stake is lent; the answer verifies; the debt is repaid whole.

Needs root and iproute2; without them it says so and finds nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deaios.node.folder import StateFolder
from soak.searches import Budget, Finding

READY_S = 300.0
POLL_S = 0.5
ROUNDS_MAX = 30
"""So many times a few answers repay the debt at these prices, many times over."""
GATEWAY, CHAIN = "http://10.77.0.1:8000", "http://10.77.0.1:8545"
DOOR_PORT = 9000
"""Below the ports from which connections go out, all of which B refuses to be dialled at."""
PRICES = "input_price = 100_000_000\noutput_price = 5_000_000_000\n"
"""A short answer costs some tenths of a credit, so that a debt of a few is repaid while one watches."""
ANSWERS = 8
ASK_OFTEN = """
import json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
url, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
def post(path, body):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=240) as answer:
        return json.load(answer)
model = post("/v1/models", None)["data"][0]["id"]
def ask(number):
    question = [{"role": "user", "content": f"Tell a story of {number} sailors, as long as you can."}]
    post("/v1/chat/completions", {"model": model, "messages": question, "max_tokens": 44})
with ThreadPoolExecutor(4) as pool:
    list(pool.map(ask, range(count)))
"""
TOML_A = (
    '[network]\nhost = "10.77.0.1"\nfaucet = "own"\nproviders = 0\nauditors = 0\n'
    '[gateway]\nhost = "10.77.0.1"\n[sponsor]\nenabled = true\n[provider]\n' + PRICES
)
TOML_B = '[network]\nhost = "10.77.1.2"\n[provider]\nclaim_interval_s = 3\n' + PRICES


def why_not() -> str | None:
    """What this machine lacks; None where nothing is."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 (`ip`) is not installed"
    probe = subprocess.run(["ip", "netns", "add", _name("probe")], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"namespaces cannot be made here: {probe.stderr.strip()}"
    _ip("netns", "del", _name("probe"))
    return None


def _name(part: str) -> str:
    return f"deaios-{os.getpid()}-{part}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def namespaces() -> Iterator[dict[str, str]]:
    """A, B and C, joined as the module says; gone afterwards, with everything in them."""
    names = {part: _name(part) for part in "abc"}
    with ExitStack() as stack:
        for name in names.values():
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", names["a"], "addr", "add", "10.77.0.1/32", "dev", "lo")
        for place, part in ((1, "b"), (2, "c")):
            near, far = f"a{part}", f"{part}a"
            _ip("link", "add", near, "netns", names["a"], "type", "veth", "peer", "name", far, "netns", names[part])
            for name, device, host in ((names["a"], near, 1), (names[part], far, 2)):
                _ip("-n", name, "addr", "add", f"10.77.{place}.{host}/24", "dev", device)
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", names[part], "route", "add", "10.77.0.1", "via", f"10.77.{place}.1")
        # Whoever comes to B from outside, at any port but those from which B dials out, is dropped.
        _ip("-n", names["b"], "rule", "add", "pref", "100", "lookup", "local")
        _ip("-n", names["b"], "rule", "del", "pref", "0", "lookup", "local")
        ports = ("ipproto", "tcp", "dport", "1-32767")
        _ip("-n", names["b"], "rule", "add", "pref", "10", "iif", "ba", *ports, "blackhole")
        yield names


@dataclass
class Machine:
    """A namespace and a folder in it."""

    namespace: str
    home: Path

    def command(self, *arguments: str) -> list[str]:
        """One command of ours, in the namespace."""
        ours = [sys.executable, "-m", "deaios.cli.main", *arguments, "--dir", str(self.home)]
        return ["ip", "netns", "exec", self.namespace, *ours]

    def run(self, *arguments: str) -> Any:
        """One command to its end, as JSON.

        Raises:
            Finding: it failed.
        """
        done = subprocess.run(
            self.command(*arguments, "--json"), capture_output=True, text=True, timeout=READY_S, check=False
        )
        if done.returncode != 0:
            raise _finding(f"{' '.join(arguments)} in {self.namespace}: {done.stderr[-1500:]}{done.stdout[-500:]}")
        return json.loads(done.stdout)

    @contextmanager
    def running(self, *arguments: str, role: str) -> Iterator[None]:
        """A command that serves; the block begins when its role is ready.

        Raises:
            Finding: it ended, or was not ready in time.
        """
        log = self.home / "command.log"
        with log.open("a") as out:
            process = subprocess.Popen(self.command(*arguments), stdout=out, stderr=subprocess.STDOUT, text=True)
        try:
            self.wait(lambda: process.poll() is not None or self.is_ready(role), f"{role} is ready")
            if process.poll() is not None:
                raise _finding(f"{' '.join(arguments)} ended: {log.read_text()[-1500:]}")
            yield
        finally:
            process.terminate()
            process.wait(timeout=120)

    def is_ready(self, role: str) -> bool:
        """Does a role of this folder say that it serves?"""
        state = StateFolder(self.home).load_run_state(role)
        return state is not None and state.state == "running"

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until something holds.

        Raises:
            Finding: it does not, in time.
        """
        deadline = time.monotonic() + READY_S
        while not condition():
            if time.monotonic() > deadline:
                raise _finding(f"not within {READY_S:.0f} s: {what}")
            time.sleep(POLL_S)

    def ask_often(self, key: str) -> None:
        """Some questions to the gateway at once.

        Raises:
            Finding: one of them was not answered.
        """
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, sys.executable, "-c", ASK_OFTEN, GATEWAY, key, str(ANSWERS)],
            capture_output=True, text=True, timeout=READY_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise _finding(f"questions in {self.namespace}: {done.stderr[-1500:]}")

    def can_dial(self, host: str, port: int) -> bool:
        """Does a connection from here come about?"""
        script = f"import socket; socket.create_connection(({host!r}, {port}), 3)"
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-c", script]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _finding(what: str) -> Finding:
    return Finding(what, "python -m soak behind_nat --rounds 1")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise _finding(what)


def search(_budget: Budget) -> str:
    """Play it once; says what was seen."""
    missing = why_not()
    if missing is not None:
        return f"NOT RUN: {missing}"
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="deaios-nat-") as root, namespaces() as names:
        machines = {part: Machine(name, Path(root) / part) for part, name in names.items()}
        for machine in machines.values():
            machine.home.mkdir()
        (machines["a"].home / "deaios.toml").write_text(TOML_A)
        (machines["b"].home / "deaios.toml").write_text(TOML_B)
        said = play(machines["a"], machines["b"], machines["c"])
    return f"{said}; {time.monotonic() - began:.0f} s"


def play(a: Machine, b: Machine, c: Machine) -> str:
    """The story.

    Raises:
        Finding: something of it does not hold.
    """
    with a.running("up", role="gateway"):
        b.run("join", f"{CHAIN}/descriptor")
        _require(_entry(b.run("wallet"), "user")["credit"] == 0, "B has money from the start")
        began = time.monotonic()
        with b.running("provide", "--port", str(DOOR_PORT), role="provider-1"):
            earning_s = time.monotonic() - began
            state = StateFolder(b.home).load_run_state("provider-1")
            assert state is not None
            owed = _entry(b.run("wallet"), "provider-1")["debt"]
            _require(state.url.startswith(f"{GATEWAY}/relay/0x"), f"B is registered at {state.url}")
            _require(owed > 0, "B owes nobody anything")
            _require(b.can_dial("10.77.1.2", DOOR_PORT), "B does not reach its own door")
            _require(not a.can_dial("10.77.1.2", DOOR_PORT), "A dials B")
            _require(not c.can_dial("10.77.1.2", DOOR_PORT), "C dials B")
            c.run("join", f"{CHAIN}/descriptor")
            said = _buy(a, b, c, owed)
    return f"B earned after {earning_s:.0f} s behind {state.url[: len(GATEWAY) + 13]}…; owed {owed}; {said}"


def _buy(a: Machine, b: Machine, c: Machine, owed: int) -> str:
    """C asks until the debt is repaid, and checks its last answer."""
    key = StateFolder(a.home).load_secret_text("gateway-api-key")
    assert key is not None
    buyer = ("--gateway", GATEWAY, "--key", key)
    saved = str(c.home / "answer.json")
    rounds = 0
    while (left := _entry(b.run("wallet"), "provider-1")["debt"]) > 0:
        _require(rounds < ROUNDS_MAX, f"after {rounds} rounds {left} of {owed} are owed")
        c.ask_often(key)
        rounds += 1
    c.run("ask", "Why is the sky blue?", "--max-tokens", "24", "--save", saved, *buyer)
    verdict = c.run("verify", saved)
    after = _entry(b.run("wallet"), "provider-1")
    return f"repaid after {rounds * ANSWERS} answers; an answer verified ({verdict['outcome']}); B has {after}"


def _entry(wallet: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in wallet if entry["name"] == name)
