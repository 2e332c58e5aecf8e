"""A chain and members of data availability as processes, in a folder of their own: the live roles, and no others.

They are started through the node's supervisor, founded without a model, and may be killed: nothing starts them again.
Commands run beside them as a person would type them, each measured by itself. Knows no blobs.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import deploy_suite, fetch_network_id
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.descriptor import NetworkDescriptor, Token, encode_descriptor, sign_descriptor
from deaios.ledger.settings import LOCAL
from deaios.ledger.suite import CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION
from deaios.node.config import SupervisorConfig
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.ground import OPERATOR, Ground, begin_first_epoch
from deaios.node.joining import USER
from deaios.node.keystore import open_keystore
from deaios.node.supervisor import Supervisor
from deaios.primitives.units import CREDIT, CREDIT_DECIMALS
from deaios.runtime.clock import SystemClock

PURSE = 100_000 * CREDIT
"""What the user is given, so that no run ends for want of money."""
GAS_WEI = 1000 * 10**18
POLL_S = 0.05
"""Between two looks at a command: what it uses after the last one is not counted."""
FOREVER_S = 1 << 30


class FailedCommand(Exception):
    """A command ended with another status than 0; has its last words."""


@dataclass(frozen=True)
class Use:
    """What one process used so far: CPU seconds, user and system, and the most memory it ever held."""

    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Ran:
    """A command that ended well."""

    said: str
    wall_s: float
    use: Use


class DaNetwork:
    """Roles in one folder; `chain` and `da-1` to `da-N`."""

    def __init__(self, home: Path, members: int) -> None:
        self.folder = StateFolder(home)
        self.members = tuple(f"da-{number}" for number in range(1, members + 1))
        limits = SupervisorConfig(restarts_max=0, restart_window_s=FOREVER_S)
        self._supervisor = Supervisor(self.folder, SystemClock(), limits=limits)
        self._killed: dict[str, Use] = {}
        self.chain_url = ""

    async def start(self) -> None:
        """Found the network, start its members and seat them."""
        keystore = open_keystore(self.folder)
        await self._supervisor.start(RoleSpec("chain", "chain"))
        self.chain_url = (await self._supervisor.wait_ready("chain"))["chain"]
        await self._found()
        for name in self.members:
            await self._supervisor.start(RoleSpec(name, "da"))
        await self._supervisor.wait_ready(*self.members)
        await begin_first_epoch(self.folder, keystore, Ground(self.chain_url, self.chain_url))

    async def stop(self) -> None:
        """Stop what still runs."""
        await self._supervisor.stop()

    def kill(self, names: Iterable[str]) -> None:
        """`kill -9` of roles at one instant."""
        for name in names:
            self._killed[name] = self.use_of(name)
            os.kill(self._supervisor.pid_of(name), signal.SIGKILL)

    def use_of(self, name: str) -> Use:
        """What a role's process used, until its death if it was killed."""
        return self._killed[name] if name in self._killed else read_use(self._supervisor.pid_of(name))

    def uses(self) -> dict[str, Use]:
        """What all roles used."""
        return {name: self.use_of(name) for name in ("chain", *self.members)}

    async def fetch_signers(self) -> list[int]:
        """How many seats signed each certificate so far, the fewest first."""
        async with Rpc(self.chain_url) as rpc:
            contracts = Contracts(rpc, self.folder.load_descriptor().contracts)
            certificates = await contracts.availability.fetch_certified(0)
        return sorted(certificate.signers.bit_count() for certificate in certificates)

    async def run(self, *arguments: str | Path) -> Ran:
        """Run `deaios` with some arguments in this folder.

        Raises:
            FailedCommand: it did not end well.
        """
        command = [sys.executable, "-m", "deaios.cli.main", *map(str, arguments), "--dir", str(self.folder.root)]
        pipe = asyncio.subprocess.PIPE
        start_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        watching = asyncio.create_task(_watch(process.pid))
        said, errors = await process.communicate()
        wall_s = time.monotonic() - start_s
        use = await watching
        if process.returncode:
            words = (said + errors).decode(errors="replace")[-1500:]
            raise FailedCommand(f"{' '.join(command[2:])} ended with {process.returncode}: {words}")
        return Ran(said.decode(), wall_s, use)

    async def _found(self) -> None:
        """What `deaios up` does, less the model and storage: neither is needed here."""
        keystore = open_keystore(self.folder)
        key, user = keystore.open_key(OPERATOR), keystore.open_key(USER)
        settings = replace(LOCAL, da_seats_size=len(self.members))
        async with Rpc(self.chain_url) as rpc:
            network_id, chain_id = await fetch_network_id(rpc), await rpc.chain_id()
            sender = Sender(rpc, key, chain_id)
            try:
                addresses = await deploy_suite(sender, rpc, settings)
                await sender.send(user.address, value=GAS_WEI)
                await Contracts(rpc, addresses).credit.transfer(sender, user.address, PURSE)
            finally:
                await sender.close()
        descriptor = NetworkDescriptor(
            network_id=network_id,
            chain_id=chain_id,
            rpc_urls=(self.chain_url,),
            operator=key.address,
            contracts=addresses,
            token=Token(addresses.credit, CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION, CREDIT_DECIMALS),
            windows=settings,
            default_model_record_id=bytes(32),
            faucet_url=f"{self.chain_url}/faucet",
        )
        self.folder.save_descriptor(encode_descriptor(descriptor, sign_descriptor(key, descriptor)))


@asynccontextmanager
async def running(home: Path, members: int) -> AsyncIterator[DaNetwork]:
    """A network until the block ends."""
    network = DaNetwork(home, members)
    try:
        await network.start()
        yield network
    finally:
        await network.stop()


def read_use(pid: int) -> Use:
    """What a living process used.

    Raises:
        psutil.Error, OSError, StopIteration: it lives no more.
    """
    times = psutil.Process(pid).cpu_times()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return Use(times.user + times.system, peak_kib << 10)


async def _watch(pid: int) -> Use:
    """Look at a process until it is gone; both figures only grow."""
    use = Use(0.0, 0)
    while True:
        try:
            use = read_use(pid)
        except (psutil.Error, OSError, StopIteration):
            return use
        await asyncio.sleep(POLL_S)
