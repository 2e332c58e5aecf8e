"""Four networks behind one stake, as processes that are killed and stopped while Credit goes around between them.

The commands are those that a founder types: each further network is added by `deaios network add`, which is itself
killed in the middle and repeated. At the end every transfer has arrived once, and there is as much Credit as before.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deaios.ledger.client.bridge import Bridge
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.credit import Credit
from deaios.ledger.client.deployment import deploy_suite, fetch_network_id
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.descriptor import NetworkDescriptor, Token, encode_descriptor, sign_descriptor
from deaios.ledger.settings import LOCAL
from deaios.ledger.suite import CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION
from deaios.ledger.valset import build_root_id
from deaios.node.config import Config, SupervisorConfig
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.ground import OPERATOR
from deaios.node.keystore import open_keystore
from deaios.node.local import LocalNetwork
from deaios.primitives.errors import Unavailable
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import PrivateKey
from deaios.primitives.units import CREDIT, CREDIT_DECIMALS
from deaios.runtime.logs import configure_logs
from soak.searches import Budget, Finding

NAMES = ("a", "b", "c")
TRANSFERS = 1000
PEOPLE = 8
PURSE = 2000 * CREDIT
GAS_WEI = 1000 * 10**18
ARRIVE_S = 300.0
FAULT_S = (2.0, 6.0)
"""Between two faults."""
STOPPED_S = 4.0
"""How long a network stands still."""
SETTINGS = replace(LOCAL, network_epoch_s=5)


@dataclass
class Seen:
    """What happened, so that no fault is only believed to have happened."""

    faults: dict[str, int] = field(default_factory=dict)
    transfers: int = 0
    retried: int = 0

    def note(self, fault: str) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return f"{self.transfers} transfers, {self.retried} sent again; {faults}"


def search(budget: Budget) -> str:
    """All transfers under faults, once; the budget's time does not cut it short.

    Raises:
        Finding: Credit was lost, made or did not arrive.
    """
    with tempfile.TemporaryDirectory(prefix="networks-") as home:
        return asyncio.run(run(Path(home), budget.seed, TRANSFERS))


async def run(home: Path, seed: int, transfers: int) -> str:
    """Found, add, send under faults, count."""
    command = f"python -m soak networks --seed {seed} --rounds 1"
    start_s = time.monotonic()
    configure_logs("soak", home / "soak.log", "info")
    dice, seen = random.Random(seed), Seen()
    async with running(home) as network:
        for name in NAMES:
            await add(network, name, dice, seen)
        founded_s = time.monotonic() - start_s
        async with AsyncExitStack() as stack:
            world = await World.open(network, stack)
            total = await world.count()
            breaking = asyncio.create_task(break_things(network, dice, seen))
            try:
                await world.send_all(transfers, dice, seen)
            finally:
                breaking.cancel()
                await asyncio.gather(breaking, return_exceptions=True)
            sent_s = time.monotonic() - start_s - founded_s
            missing = await world.wait_until_arrived(ARRIVE_S)
            if missing:
                raise Finding(f"after {ARRIVE_S:.0f} s these balances are wrong: {missing}", command)
            if await world.count() != total:
                raise Finding(f"there were {total}, there are {await world.count()}", command)
            arrived_s = time.monotonic() - start_s - founded_s - sent_s
    return f"networks: {seen}; founded {founded_s:.0f} s, sent {sent_s:.0f} s, then arrived within {arrived_s:.0f} s"


class Network:
    """The folder's roles under their supervisor, without models."""

    def __init__(self, home: Path) -> None:
        self.folder = StateFolder(home)
        config = Config(supervisor=SupervisorConfig(restarts_max=60))
        self.local = LocalNetwork(self.folder, config, report=lambda _text: None)

    @property
    def descriptor(self) -> NetworkDescriptor:
        return self.folder.load_descriptor()

    async def command(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        line = [sys.executable, "-m", "deaios.cli.main", *arguments, "--dir", str(self.folder.root)]
        return await asyncio.create_subprocess_exec(
            *line, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )

    async def must(self, *arguments: str) -> str:
        """Run a command that has to end well."""
        process = await self.command(*arguments)
        said, _ = await process.communicate()
        if process.returncode:
            raise Finding(
                f"{' '.join(arguments)} ended with {process.returncode}: {said.decode()[-2000:]}", "see above"
            )
        return said.decode()

    async def found(self) -> None:
        """What `deaios up` does, less models and storage."""
        await self.local.supervisor.start(RoleSpec("chain", "chain"))
        self.folder.save_roles((RoleSpec("chain", "chain"),))
        url = (await self.local.supervisor.wait_ready("chain"))["chain"]
        key = open_keystore(self.folder).open_key(OPERATOR)
        async with Rpc(url) as rpc:
            network_id, chain_id = await fetch_network_id(rpc), await rpc.chain_id()
            sender = Sender(rpc, key, chain_id)
            addresses = await deploy_suite(sender, rpc, SETTINGS)
            contracts = Contracts(rpc, addresses)
            for person in people():
                await sender.send(person.address, value=GAS_WEI)
                await contracts.credit.transfer(sender, person.address, PURSE)
            await sender.close()
        descriptor = NetworkDescriptor(
            network_id=network_id,
            chain_id=chain_id,
            rpc_urls=(url,),
            operator=key.address,
            contracts=addresses,
            token=Token(addresses.credit, CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION, CREDIT_DECIMALS),
            windows=SETTINGS,
            default_model_record_id=bytes(32),
            faucet_url=f"{url}/faucet",
        )
        self.folder.save_descriptor(encode_descriptor(descriptor, sign_descriptor(key, descriptor)))


def people() -> list[PrivateKey]:
    return [PrivateKey(sha256(b"soak networks %d" % number)) for number in range(PEOPLE)]


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[Network]:
    """A root's chain and whatever roles commands add, until the block ends."""
    network = Network(home)
    with network.folder.lock():
        following = asyncio.create_task(asyncio.sleep(0))
        try:
            await network.found()
            following = asyncio.create_task(network.local.follow_roles())
            yield network
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await network.local.supervisor.stop()


async def add(network: Network, name: str, dice: random.Random, seen: Seen) -> None:
    """`deaios network add`, killed twice at random and then left to end."""
    for _ in range(2):
        process = await network.command("network", "add", name, "--json")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.uniform(1.0, 6.0)):
                await process.wait()
        if process.returncode is None:
            process.kill()
            seen.note("add killed")
        await process.communicate()
    await network.must("network", "add", name, "--json")


async def break_things(network: Network, dice: random.Random, seen: Seen) -> None:
    """Relayer, validators and chains die or stand still until cancelled; the supervisor starts what died again."""
    while True:
        await asyncio.sleep(dice.uniform(*FAULT_S))
        what = dice.choice(
            ("relayer-1", "relayer-1", "validator-1", "validator-2", "chain-b", "chain-c", "stop chain-a")
        )
        name = what.removeprefix("stop ")
        with contextlib.suppress(ProcessLookupError, KeyError, AssertionError):
            pid = network.local.supervisor.pid_of(name)
            if what != name:
                os.kill(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(STOPPED_S)
                finally:
                    os.kill(pid, signal.SIGCONT)
                seen.note(f"{name} stood still")
            else:
                os.kill(pid, signal.SIGKILL)
                seen.note(f"{name} killed")


class World:
    """Everybody's money on the root and the further networks."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self.bridges: list[Any] = []
        self.credits: list[Credit] = []
        self.senders: dict[tuple[int, int], Sender] = {}
        self.held: dict[tuple[int, int], int] = {}

    @classmethod
    async def open(cls, network: Network, stack: AsyncExitStack) -> "World":
        world, descriptor = cls(), network.descriptor
        await world._add(
            stack, build_root_id(descriptor.chain_id), descriptor.rpc_urls[0], descriptor.chain_id, descriptor.contracts
        )
        for further in descriptor.networks:
            await world._add(stack, further.id, further.rpc_urls[0], further.chain_id, further.contracts)
        keystore = open_keystore(network.folder)
        for place, further in enumerate(descriptor.networks, 1):
            operator = Sender(
                world.credits[place].contract.rpc, keystore.open_key(f"chain-{further.name}"), further.chain_id
            )
            for person in people():
                await operator.send(person.address, value=GAS_WEI)
            await operator.close()
        for place, bridge in enumerate(world.bridges):
            for number in range(PEOPLE):
                await world.credits[place].approve(world.senders[place, number], bridge.address, 2**255)
        return world

    async def _add(self, stack: AsyncExitStack, network: bytes, url: str, chain_id: int, contracts: Any) -> None:
        rpc = await stack.enter_async_context(Rpc(url))
        place = len(self.ids)
        self.ids.append(network)
        self.bridges.append(Bridge(rpc, contracts.bridge))
        self.credits.append(Credit(rpc, contracts.credit))
        for number, person in enumerate(people()):
            sender = Sender(rpc, person, chain_id, patience=Patience(poll_min_s=0.1, poll_max_s=0.5))
            stack.push_async_callback(sender.close)
            self.senders[place, number] = sender
            self.held[place, number] = await self.credits[place].balance_of(person.address)

    async def count(self) -> int:
        """All supplies; what is on its way is in none of them."""
        return sum([await self._insist(credit.total_supply) for credit in self.credits])

    async def send_all(self, transfers: int, dice: random.Random, seen: Seen) -> None:
        """Each person sends one transfer after another; all people at once."""
        keys = people()

        async def keep_sending(number: int) -> None:
            own = random.Random(dice.random())
            for _ in range(transfers // PEOPLE):
                source = await self._find_money(number, own)
                destination = own.choice([place for place in range(len(self.ids)) if place != source])
                receiver, amount = own.randrange(PEOPLE), own.randint(1, CREDIT)
                await self._send_once(source, number, destination, keys[receiver], amount, seen)
                self.held[source, number] -= amount
                self.held[destination, receiver] += amount
                seen.note(f"{source}->{destination}")
                seen.transfers += 1

        await asyncio.gather(*(keep_sending(number) for number in range(PEOPLE)))

    async def _find_money(self, number: int, own: random.Random) -> int:
        """A place where somebody has enough now; nobody else spends it."""
        places = list(range(len(self.ids)))
        own.shuffle(places)
        for place in places:
            if await self._balance(place, people()[number]) >= CREDIT:
                return place
        raise AssertionError("the purse on the root is larger than all that anybody sends")

    async def _send_once(
        self, source: int, number: int, destination: int, receiver: PrivateKey, amount: int, seen: Seen
    ) -> None:
        """Until it is in a block; where the answer was lost, the key's nonce tells whether it is."""
        sender, rpc = self.senders[source, number], self.credits[source].contract.rpc
        nonce = await self._insist(lambda: rpc.get_nonce(sender.address))
        while True:
            try:
                await self.bridges[source].send(sender, self.ids[destination], receiver.address, amount)
            except Unavailable:
                seen.retried += 1
                if await self._insist(lambda: rpc.get_nonce(sender.address)) > nonce:
                    return
            else:
                return

    async def _balance(self, place: int, key: PrivateKey) -> int:
        return await self._insist(lambda: self.credits[place].balance_of(key.address))

    async def _insist(self, question: Callable[[], Awaitable[int]]) -> int:
        """Ask a chain that may be dead or stand still until it answers."""
        while True:
            try:
                return await question()
            except Unavailable:
                await asyncio.sleep(0.5)

    async def wait_until_arrived(self, timeout_s: float) -> dict[str, tuple[int, int]]:
        """What is wrong at the end: nothing, or (found, expected) by person and place."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            wrong = {}
            for (place, number), held in self.held.items():
                found = await self._balance(place, people()[number])
                if found != held:
                    wrong[f"person {number} on {place}"] = (found, held)
            if not wrong or time.monotonic() > deadline_s:
                return wrong
            await asyncio.sleep(0.5)
