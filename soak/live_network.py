"""A real local network as a child process, in a folder of its own, with roles that can be killed and stopped.

Everything goes through `deaios up`: the supervisor, its roles, real sockets, the real model. Knows no load and no sums.
"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.descriptor import NetworkDescriptor
from deaios.node.folder import RunState, StateFolder
from deaios.node.keystore import Keystore
from deaios.node.status import API_KEY_NAME
from deaios.primitives.keys import PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.dice import SystemDice

READY_S = 240.0
"""A busy machine starts a whole network within this."""
STOP_S = 120.0
POLL_S = 0.05
PURSE = 2_000 * CREDIT
"""What each buying key is given, so that no run ends for want of money."""
INPUT_PRICE = 250_000_000
OUTPUT_PRICE = 1_000_000_000
"""High enough that channels need new deposits within minutes; a short answer still fits the voucher window."""


class UnavailableNetwork(Exception):
    """The network did not come to a state in time; the message has its last words."""


@dataclass(frozen=True)
class Size:
    """How much of a network is run, and how patient its supervisor is."""

    providers: int = 2
    auditors: int = 1
    audit_interval_s: int = 20
    restarts_max: int = 64
    restart_window_s: int = 15
    claim_interval_s: int = 10
    first_token_s: int = 20
    silence_s: int = 15

    def toml(self) -> str:
        """The configuration file."""
        return (
            "[chain]\nport = 0\n[gateway]\nport = 0\n"
            f"[network]\nproviders = {self.providers}\nauditors = {self.auditors}\n"
            f"audit_interval_s = {self.audit_interval_s}\n"
            f"[provider]\ninput_price = {INPUT_PRICE}\noutput_price = {OUTPUT_PRICE}\n"
            f"claim_interval_s = {self.claim_interval_s}\n"
            f"[buyer]\nfirst_token_s = {self.first_token_s}\nsilence_s = {self.silence_s}\n"
            f"[supervisor]\nrestarts_max = {self.restarts_max}\nrestart_window_s = {self.restart_window_s}\n"
        )


class LiveNetwork:
    """`deaios up` in one folder."""

    def __init__(self, home: Path, size: Size) -> None:
        self.home = home
        self.folder = StateFolder(home)
        self._size = size
        self._process: subprocess.Popen[bytes] | None = None
        self._urls: dict[str, str] = {}

    # Start and stop

    async def start(self) -> None:
        """Start the supervisor and wait until every role serves."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "deaios.toml").write_text(self._size.toml())
        before = {name: self.pid(name) for name in self.roles}
        command = [sys.executable, "-m", "deaios.cli.main", "up", "--dir", str(self.home)]
        with (self.home / "up.log").open("ab") as log:
            self._process = await asyncio.to_thread(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        await self.until(lambda: bool(self.roles), READY_S, "roles are not chosen")
        await self.wait_ready({name: before.get(name, 0) for name in self.roles})
        for name in self.roles:
            self.url(name)

    async def stop(self) -> None:
        """Ctrl-C, and wait for the end."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        code = await asyncio.to_thread(self._process.wait, STOP_S)
        self._process = None
        if code:
            raise UnavailableNetwork(f"`deaios up` ended with {code}: {self.words()}")

    async def abort(self) -> None:
        """Kill everything that is left; for the end of a run that has failed."""
        if self._process is not None and self._process.poll() is None:
            await self.kill_everything()

    def words(self) -> str:
        """The last words of the command."""
        return (self.home / "up.log").read_text(errors="replace")[-1500:]

    # Roles

    @property
    def roles(self) -> tuple[str, ...]:
        """Names in start order; empty before they are chosen."""
        return tuple(spec.name for spec in self.folder.load_roles())

    def kind_of(self, name: str) -> str:
        """What a role is."""
        return next(spec.kind for spec in self.folder.load_roles() if spec.name == name)

    def names_of(self, kind: str) -> tuple[str, ...]:
        """Roles of a kind."""
        return tuple(spec.name for spec in self.folder.load_roles() if spec.kind == kind)

    def state(self, name: str) -> RunState | None:
        """What a role's run file says."""
        return self.folder.load_run_state(name)

    def pid(self, name: str) -> int:
        """A role's process, 0 where it has none."""
        state = self.state(name)
        return state.pid if state is not None else 0

    def url(self, name: str) -> str:
        """Where a role serves; roles keep their ports, so what was said last holds while a role starts again."""
        state = self.state(name)
        if state is not None and state.url:
            self._urls[name] = state.url
        return self._urls.get(name, "")

    def is_ready(self, name: str, killed: int = 0) -> bool:
        """Does a role serve, in another process than the one that was killed?"""
        state = self.state(name)
        return state is not None and state.state == "running" and state.pid != killed and state.is_alive

    async def wait_ready(self, killed: dict[str, int], seconds: float = READY_S) -> None:
        """Until roles serve again.

        Args:
            killed: roles, and the process of each that does not count.
            seconds: how long it may take.
        """
        for name, pid in killed.items():
            await self.until(lambda name=name, pid=pid: self.is_ready(name, pid), seconds, f"{name} is not ready")

    async def until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Poll a condition.

        Raises:
            UnavailableNetwork: it did not come true, or the supervisor or a role ended for good.
        """
        deadline = time.monotonic() + seconds
        while not holds():
            if self._process is not None and self._process.poll() is not None:
                raise UnavailableNetwork(f"{what}; `deaios up` ended with {self._process.returncode}: {self.words()}")
            failed = [name for name in self.roles if (s := self.state(name)) is not None and s.state == "failed"]
            if failed:
                raise UnavailableNetwork(f"{what}; {failed[0]} failed for good: {self.words()}")
            if time.monotonic() > deadline:
                raise UnavailableNetwork(f"{what} after {seconds:.0f} s: {self.words()}")
            await asyncio.sleep(POLL_S)

    # Faults

    def signal(self, name: str, number: int) -> int:
        """Send a signal to a role; gives the process it went to, 0 where there was none."""
        state = self.state(name)
        if state is None or not state.is_alive:
            return 0
        try:
            os.kill(state.pid, number)
        except ProcessLookupError:
            return 0
        return state.pid

    def kill(self, *names: str) -> dict[str, int]:
        """`kill -9` of roles at one instant; gives the processes that died."""
        return {name: pid for name in names if (pid := self.signal(name, signal.SIGKILL))}

    async def kill_supervisor(self) -> None:
        """`kill -9` of the supervisor alone: its children must end by themselves."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._process = None
        _, left = await asyncio.to_thread(psutil.wait_procs, children, timeout=STOP_S)
        if left:
            raise UnavailableNetwork(f"{len(left)} processes outlived the supervisor by {STOP_S:.0f} s: {left}")

    async def kill_everything(self) -> None:
        """`kill -9` of the supervisor and every role at one instant, as when power fails."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        for process in children:
            process.suspend()  # so that the first to die is not noticed by the last
        self._process.kill()
        for process in children:
            process.kill()
        await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(psutil.wait_procs, children, timeout=STOP_S)
        self._process = None

    # What others need to talk to it

    @property
    def descriptor(self) -> NetworkDescriptor:
        """The network."""
        return self.folder.load_descriptor()

    @property
    def api_key(self) -> str:
        """The owner's key at the gateway."""
        return self.folder.load_secret_text(API_KEY_NAME) or ""

    def open_key(self, name: str) -> PrivateKey:
        """A role's key."""
        return Keystore(self.folder.keys, SystemDice()).open_key(name)

    def database(self, role: str, name: str) -> Path:
        """A role's journal."""
        return self.folder.role(role) / name

    async def fill_purses(self) -> None:
        """Give every key that buys more than it can spend, out of the operator's stock."""
        buyers = [self.open_key(name) for name in self.names_of("gateway")]
        buyers += [self.open_key(f"{name}-purse") for name in self.names_of("auditor")]
        async with Rpc(self.url("chain")) as rpc:
            sender = Sender(rpc, self.open_key("chain"), self.descriptor.chain_id)
            contracts = Contracts(rpc, self.descriptor.contracts)
            try:
                for buyer in buyers:
                    await contracts.credit.transfer(sender, buyer.address, PURSE)
            finally:
                await sender.close()


@contextmanager
def read_journal(path: Path) -> Iterator[sqlite3.Connection]:
    """Look into a journal while its owner may be writing."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as connection:
        yield connection
