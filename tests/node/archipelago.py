"""A root and further networks with chains, validators and relayers of their own on real sockets, in one process.

`soak/networks.py` runs the same with processes that are killed. Time is the machine's.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.credit import Credit
from deaios.ledger.client.deployment import deploy_suite, fetch_network_id
from deaios.ledger.client.messages import Outbox, OutboxView
from deaios.ledger.client.mirror import EpochView
from deaios.ledger.client.networks import Networks
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.client.widening import (
    Entry,
    FurtherContracts,
    deploy_further,
    ensure_first_epoch,
    enter_network,
    join_network,
)
from deaios.ledger.eip712 import Domain
from deaios.ledger.further import Root
from deaios.ledger.service.relayer import EpochRules, Relayer, Side
from deaios.ledger.service.validator import SignedAnswer, ValidatorDoor, build_validator_application
from deaios.ledger.settings import LOCAL
from deaios.ledger.store import PromiseStore
from deaios.ledger.structs import networks_domain
from deaios.ledger.suite import CONSENSUS
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import Address, PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import build_application as build_door
from deaios.runtime.http import json_response, serve

PATIENCE = Patience(poll_min_s=0.02, poll_max_s=0.1)
LIMITS = Limits(block_ms=50, gather_ms=5)
SETTINGS = replace(LOCAL, network_epoch_s=1)
STAKE = 200 * CREDIT
CONFIRMATIONS = 1
"""These chains make a block only when there is work, and never take one back."""


def key_of(name: str) -> PrivateKey:
    return PrivateKey(sha256(b"archipelago " + name.encode()))


class Chain:
    """An embedded chain that can stand still and go on."""

    def __init__(self, folder: Path, name: str, rich: Sequence[Address]) -> None:
        self.name = name
        self.key = key_of(f"chain {name}")
        self.path = folder / f"{name}.db"
        self.url = ""
        self._rich = rich
        self._running: AsyncExitStack | None = None

    async def start(self) -> None:
        allocations = tuple(Allocation(address, 10**6 * ETHER) for address in (self.key.address, *self._rich))
        clock = SystemClock()
        fresh = not self.path.exists()
        genesis = Genesis(sha256(self.name.encode()), self.key.address, clock.now_ms() // 1000, allocations)
        stack = AsyncExitStack()
        executor = ThreadPoolExecutor(3)
        stack.callback(executor.shutdown)
        chain = await ChainService.start(
            self.path, self.key, genesis if fresh else None, executor=executor, clock=clock, limits=LIMITS
        )
        stack.push_async_callback(chain.close)
        making = asyncio.create_task(chain.run())

        async def end() -> None:
            making.cancel()
            await asyncio.wait({making})

        stack.push_async_callback(end)
        port = int(self.url.rsplit(":", 1)[1]) if self.url else 0
        self.url = await stack.enter_async_context(serve(build_application(chain), port=port))
        self.id = chain.chain_id
        self._running = stack

    async def stop(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            await running.aclose()


class Place:
    """A further network: its id and where its contracts are."""

    def __init__(self, chain: Chain, entry: Entry) -> None:
        self.chain = chain
        self.id = entry.id
        self.addresses = entry.addresses


class Archipelago:
    """Founded networks; validators and relayers are started by the test."""

    def __init__(self, folder: Path, operators: int, further: int) -> None:
        self.folder = folder
        self.operators = [key_of(f"operator {number}") for number in range(operators)]
        self.people = [key_of(f"person {number}") for number in range(4)]
        self.relayers = [key_of(f"relayer {number}") for number in range(2)]
        self.stranger = key_of("stranger")
        rich = [key.address for key in (*self.operators, *self.people, *self.relayers, self.stranger)]
        self.chains = [Chain(folder, name, rich) for name in ("root", "a", "b", "c")[: further + 1]]
        self.places: list[Place] = []
        self.stack = AsyncExitStack()
        self.urls: list[str] = []
        self.promises: list[PromiseStore] = []

    def network_key(self, operator: int, place: Place) -> PrivateKey:
        return key_of(f"operator {operator} on {place.chain.name}")

    async def rpc(self, chain: Chain) -> Rpc:
        return await self.stack.enter_async_context(Rpc(chain.url, attempts=1, total_s=3.0))

    def sender(self, rpc: Rpc, key: PrivateKey, chain: Chain) -> Sender:
        sender = Sender(rpc, key, chain.id, patience=PATIENCE)
        self.stack.push_async_callback(sender.close)
        return sender

    async def found(self) -> None:
        """Chains, the root's contracts, stakes, keys, and the further networks' contracts."""
        await asyncio.gather(*(chain.start() for chain in self.chains))
        root_chain = self.chains[0]
        self.root_rpc = await self.rpc(root_chain)
        self.founder = self.sender(self.root_rpc, root_chain.key, root_chain)
        addresses = await deploy_suite(self.founder, self.root_rpc, SETTINGS)
        self.contracts = Contracts(self.root_rpc, addresses)
        self.root = Root(root_chain.id, addresses, SETTINGS)
        self.registry = self.contracts.networks
        self.on_root = {
            key.address: self.sender(self.root_rpc, key, root_chain)
            for key in (*self.operators, *self.people, self.stranger)
        }
        for key in (*self.operators, *self.people):
            await self.contracts.credit.transfer(self.founder, key.address, 1000 * CREDIT)
        await asyncio.gather(*(self._stake(key) for key in self.operators))
        for chain in self.chains[1:]:
            await self._add(chain)

    async def _stake(self, key: PrivateKey) -> None:
        sender = self.on_root[key.address]
        await self.contracts.credit.approve(sender, self.contracts.staking.address, 10 * STAKE)
        await self.contracts.staking.stake(sender, STAKE)
        await self.contracts.staking.opt_in(sender, CONSENSUS, 10_000)

    async def _add(self, chain: Chain) -> None:
        rpc = await self.rpc(chain)
        entry = Entry(self.founder.address, await fetch_network_id(rpc), chain.id, chain.key.address)
        place = Place(chain, entry)
        await enter_network(self.contracts, self.founder, entry)
        await asyncio.gather(
            *(
                join_network(
                    self.contracts,
                    self.on_root[key.address],
                    self.root.chain_id,
                    entry.id,
                    self.network_key(number, place),
                )
                for number, key in enumerate(self.operators)
            )
        )
        epoch = await ensure_first_epoch(self.contracts, self.founder, entry.id)
        await deploy_further(self.sender(rpc, chain.key, chain), rpc, entry.id, self.root, (epoch,))
        self.places.append(place)

    @property
    def domain(self) -> Domain:
        return networks_domain(self.root.chain_id, self.contracts.addresses.networks)

    # Validators and relayers

    async def views(self, *, keeps_messages: bool) -> tuple[EpochView, OutboxView, dict[bytes, OutboxView]]:
        """Views of their own connections, as a process of its own would have."""
        root_rpc = await self.rpc(self.chains[0])
        epochs = EpochView(Networks(root_rpc, self.contracts.addresses.networks), CONFIRMATIONS)
        outbox = Outbox(root_rpc, self.contracts.addresses.outbox)
        root_view = OutboxView(outbox, self.root.id, CONFIRMATIONS, keeps_messages=keeps_messages)
        further = {}
        for place in self.places:
            outbox = Outbox(await self.rpc(place.chain), place.addresses.outbox)
            further[place.id] = OutboxView(outbox, place.id, CONFIRMATIONS, keeps_messages=keeps_messages)
        return epochs, root_view, further

    async def start_validator(self, number: int) -> None:
        epochs, root_view, further = await self.views(keeps_messages=False)
        promises = PromiseStore(self.folder / f"validator-{number}.db")
        self.promises.append(promises)
        self.stack.callback(promises.close)
        door = ValidatorDoor(
            root=self.root.id,
            domain=self.domain,
            keys={place.id: self.network_key(number, place) for place in self.places},
            epochs=epochs,
            outboxes={self.root.id: root_view, **further},
            promises=promises,
            clock=SystemClock(),
        )
        self.urls.append(await self.stack.enter_async_context(serve(build_validator_application(door, promises))))
        watching = asyncio.create_task(door.run())

        async def end() -> None:
            watching.cancel()
            await asyncio.wait({watching})

        self.stack.push_async_callback(end)

    async def start_liars(self) -> None:
        """Who says that it is a validator: one is not there, one answers for another with a signature that is none."""

        async def lie(_request: web.Request) -> web.Response:
            key = self.network_key(0, self.places[0])
            return json_response(SignedAnswer(encode_hex(key.address), encode_hex(b"\x11" * 65)))

        application = build_door("liar", body_bytes_max=1024)
        application.router.add_get("/{path:.*}", lie)
        self.urls += ["http://127.0.0.1:9", await self.stack.enter_async_context(serve(application))]

    async def find_validators(self) -> Sequence[str]:
        return self.urls

    @asynccontextmanager
    async def relaying(self, number: int = 0) -> AsyncIterator[None]:
        """A relayer that knows nothing yet; on leaving the block it is cut off wherever it is."""
        async with AsyncExitStack() as stack:
            outer, self.stack = self.stack, stack
            try:
                epochs, root_view, views = await self.views(keeps_messages=True)
                http = await stack.enter_async_context(HttpClient(total_s=5.0))
                key = self.relayers[number]
                rpc = root_view.outbox.contract.rpc
                root = Side(
                    self.root.id,
                    root_view,
                    Contracts(rpc, self.root.contracts).inbox,
                    self.sender(rpc, key, self.chains[0]),
                )
                further = []
                for place in self.places:
                    rpc = views[place.id].outbox.contract.rpc
                    contracts = FurtherContracts(rpc, place.addresses)
                    further.append(
                        Side(
                            place.id,
                            views[place.id],
                            contracts.inbox,
                            self.sender(rpc, key, place.chain),
                            contracts.mirror,
                        )
                    )
            finally:
                self.stack = outer
            relayer = Relayer(
                root=root,
                further=further,
                registry=Networks(root.view.outbox.contract.rpc, self.contracts.addresses.networks),
                epochs=epochs,
                rules=EpochRules(SETTINGS.network_epoch_s, SETTINGS.network_trust_s),
                domain=self.domain,
                http=http,
                find_validators=self.find_validators,
                clock=SystemClock(),
            )
            running = asyncio.create_task(relayer.run())
            try:
                yield
            finally:
                running.cancel()
                await asyncio.wait({running})
                assert running.cancelled(), running.exception()

    # Money

    async def further(self, place: Place) -> FurtherContracts:
        return FurtherContracts(await self.rpc(place.chain), place.addresses)

    async def supplies(self) -> list[int]:
        """Of the root and of every further network."""
        further = [await self.further(place) for place in self.places]
        tokens: list[Credit] = [self.contracts.credit, *(contracts.credit for contracts in further)]
        return list(await asyncio.gather(*(token.total_supply() for token in tokens)))

    async def close(self) -> None:
        await self.stack.aclose()
        await asyncio.gather(*(chain.stop() for chain in self.chains))


class Travellers:
    """People who send Credit around, and what they should have in the end."""

    def __init__(self, islands: Archipelago, seed: int) -> None:
        self.islands = islands
        self.dice = random.Random(seed)
        self.held: dict[tuple[int, Address], int] = {}
        self.sent = 0

    async def begin(self) -> None:
        """Connections and allowances everywhere."""
        islands = self.islands
        self.bridges, self.senders, self.credits = [], {}, []
        for number, chain in enumerate(islands.chains):
            rpc = await islands.rpc(chain)
            if number == 0:
                contracts = Contracts(rpc, islands.contracts.addresses)
            else:
                contracts = FurtherContracts(rpc, islands.places[number - 1].addresses)
            self.bridges.append(contracts.bridge)
            self.credits.append(contracts.credit)
            for person in islands.people:
                sender = islands.sender(rpc, person, chain)
                self.senders[number, person.address] = sender
                self.held[number, person.address] = await contracts.credit.balance_of(person.address)
                await contracts.credit.approve(sender, contracts.bridge.address, 2**255)

    def id_of(self, number: int) -> bytes:
        return self.islands.root.id if number == 0 else self.islands.places[number - 1].id

    async def send(self, source: int, destination: int, amount: int) -> None:
        """Somebody who has so much sends it to somebody."""
        people = self.islands.people
        owner = max(people, key=lambda key: self.held[source, key.address])
        receiver = self.dice.choice(people)
        assert self.held[source, owner.address] >= amount
        self.held[source, owner.address] -= amount
        await self.bridges[source].send(
            self.senders[source, owner.address], self.id_of(destination), receiver.address, amount
        )
        self.held[destination, receiver.address] = self.held.get((destination, receiver.address), 0) + amount
        self.sent += 1

    async def balances(self) -> dict[tuple[int, Address], int]:
        return {
            (number, key.address): await credit.balance_of(key.address)
            for number, credit in enumerate(self.credits)
            for key in self.islands.people
        }

    async def wait_until_arrived(self, timeout_s: float, besides: Sequence[int] = ()) -> None:
        """Everybody has what they should have, but on some networks."""
        async with asyncio.timeout(timeout_s):
            wanted = {place: amount for place, amount in self.held.items() if place[0] not in besides}
            while True:
                found = {}
                for number, credit in enumerate(self.credits):
                    if number not in besides:
                        for key in self.islands.people:
                            found[number, key.address] = await credit.balance_of(key.address)
                if found == wanted:
                    return
                await asyncio.sleep(0.1)
