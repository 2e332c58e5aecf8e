"""A network of strangers over the embedded chain with the real contracts; time is moved, never waited for.

Sellers, buyers, auditors, jurors and defenders are the real classes. Money is counted as whatever a key could have in
its hand at the end: balance, stake, what it deposited and nobody claimed, what it claimed and did not collect yet.
"""

import asyncio
import contextlib
import itertools
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cheats_model import CONTEXT_TOKENS, NAME, PROFILE, RECORD_ID, VOCABULARY, Machine, render_chat

from deaios.alignment.auditor.service import AuditedModel, Auditor, AuditorSettings
from deaios.alignment.auditor.store import AuditorStore
from deaios.alignment.defence.service import Defender
from deaios.alignment.evidence import Evidence
from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deadlines import fetch_deadline
from deaios.ledger.client.deployment import deploy_suite
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.phases import DisputePhase
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import Level, Params
from deaios.ledger.suite import AUDIT, COMPUTE, CREDIT_NAME, CREDIT_VERSION
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.client import LedgerChain
from deaios.market.offers import validate_offer
from deaios.market.orders import Order
from deaios.market.routing import Candidate
from deaios.market.seller.service import Seller, SellerSettings
from deaios.market.terms import Terms
from deaios.market.wire import OfferAnswer, read_offer
from deaios.primitives.errors import Unavailable
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.keys import PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.errors import RefusedTooLarge
from deaios.runtime.http import serve
from deaios.runtime.metrics import Metrics

PURSE = 20 * CREDIT
"""What each newcomer has beside its stake."""
AUDITORS = 4
TURNS_MAX = 400
TURN_S = 4
"""Shorter than any window here, so that whoever is willing is always in time."""
FAST = Patience(poll_min_s=0.005, poll_max_s=0.05)
_names = itertools.count()


def key_of(name):
    return PrivateKey(sha256(b"cheats " + name.encode()))


class ShiftedClock(SystemClock):
    """The machine's clock, moved forward in place of waiting; everybody here reads this one."""

    shift_s = 0

    def now_ms(self):
        return super().now_ms() + self.shift_s * 1000

    def monotonic_s(self):
        return super().monotonic_s() + self.shift_s


@dataclass
class DutyClock:
    """The same time for who only waits between two looks: its pauses are over at once."""

    clock: ShiftedClock

    def now_ms(self):
        return self.clock.now_ms()

    def monotonic_s(self):
        return self.clock.monotonic_s()

    async def sleep(self, seconds):
        await asyncio.sleep(0)


class UnavailableShelf(Unavailable):
    """Nobody stored this."""


@dataclass
class Shelf:
    """Storage of evidence and batches; what a cheat never stored cannot be had."""

    kept: dict = field(default_factory=dict)

    async def put_bytes(self, data):
        self.kept[sha256(data)] = data
        return sha256(data)

    async def get_bytes(self, manifest_id, bytes_max):
        if manifest_id not in self.kept:
            raise UnavailableShelf("too few rows can be had")
        if len(self.kept[manifest_id]) > bytes_max:
            raise RefusedTooLarge(f"file has {len(self.kept[manifest_id])} bytes, at most {bytes_max} wanted")
        return self.kept[manifest_id]


def build_params(max_tokens=24, temperature_milli=900):
    return Params(temperature_milli, 0, 1000, max_tokens, (), (), ZERO32)


def build_order(provider=None, *, prompt_ids=(5, 9, 2), max_tokens=24, **changes):
    """An order like nobody else's."""
    name = f"order {next(_names)}".encode()
    fields = {
        "model_record_id": RECORD_ID,
        "prompt_ids": tuple(prompt_ids),
        "params": build_params(max_tokens),
        "context": b"{}",
        "body": b"{}",
        "client_nonce": sha256(b"client" + name),
        "nonce": sha256(b"nonce" + name),
        "salt": sha256(b"salt" + name),
        "provider": provider,
    }
    return Order(**(fields | changes))


def find_port():
    """A free port; an offer names its door before the door is open."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Person:
    """A key with money."""

    key: PrivateKey
    sender: Sender

    @property
    def address(self):
        return self.key.address


@dataclass
class Provider(Person):
    """A person who sells, with what it runs."""

    seller: Seller
    chain: LedgerChain
    url: str
    journal: Path


@dataclass
class Customer(Person):
    """A person who buys."""

    buyer: Buyer
    chain: LedgerChain

    async def buy(self, order):
        """One answer to its end; gives the purchase, served or not."""
        purchase = await self.buyer.purchase(order)
        async for _ in purchase:
            pass
        return purchase

    def channel_with(self, provider):
        return next(row for row in self.buyer.accounts if row.provider == provider)


@dataclass
class Watcher(Person):
    """An auditor: it buys with a purse that nobody can link to its stake."""

    auditor: Auditor
    purse: Customer
    store: AuditorStore

    async def tend(self):
        for part in (self.auditor.accuser, self.auditor.beacon, self.auditor.juror):
            with contextlib.suppress(Unavailable):
                await part.tend()
        await self.auditor.juror.settle()


@dataclass
class Market:
    """Who sells here, as discovery finds them: real offers, stake and disputes, looked up for every purchase."""

    world: "World"
    urls: dict = field(default_factory=dict)

    async def fetch_candidates(self):
        c, found = self.world.contracts, []
        for provider, url in self.urls.items():
            offer, signature = read_offer(await self.world.http.get_json(f"{url}/offer", OfferAnswer))
            signed = validate_offer(self.world.terms.protocol, offer, signature, provider, self.world.clock.now_ms())
            power = await c.staking.power(COMPUTE, provider)
            found.append(Candidate(provider, signed, power, await c.disputes.is_paused(provider)))
        return tuple(found)

    async def refresh(self):
        """Every look is a fresh one."""


@dataclass
class Shop:
    """A purse as an auditor uses it."""

    customer: Customer
    market: Market

    async def list_providers(self, model_record_id):
        return [item.provider for item in await self.market.fetch_candidates() if not item.paused]

    async def fetch_level(self, model_record_id, provider):
        offers = [item.signed_offer.offer for item in await self.market.fetch_candidates()]
        return max(item.level for item in offers if item.provider == provider)

    async def buy(self, order):
        purchase = await self.customer.buy(order)
        return Evidence(purchase.opening, order.prompt_ids)


class World:
    """The chain and everybody on it; use through `open_world`."""

    def __init__(self, folder, stack, rpc, contracts, operator, terms, clock, http, machine):
        self.folder, self.stack, self.rpc, self.contracts = folder, stack, rpc, contracts
        self.operator, self.terms, self.clock, self.http = operator, terms, clock, http
        self.machine = machine
        self.shelf = Shelf()
        self.market = Market(self)
        self.watchers = []

    def start_machine(self, **weights):
        """Another machine, with other weights than the published ones; it is there to the end of the world."""
        machine = Machine.start(**weights)
        self.stack.push_async_callback(machine.close)
        return machine

    async def join(self, name, credit=PURSE, kind=Person, **parts):
        """A new key with gas and Credit."""
        key = key_of(f"{name} {next(_names)}")
        await self.operator.send(key.address, value=ETHER)
        await self.contracts.credit.transfer(self.operator, key.address, credit)
        sender = Sender(self.rpc, key, self.terms.chain_id, patience=FAST)
        self.stack.push_async_callback(sender.close)
        return kind(key=key, sender=sender, **parts)

    async def stake(self, person, service, amount):
        c = self.contracts
        await c.credit.ensure_allowance(person.sender, c.staking.address, amount)
        await c.staking.stake(person.sender, amount)
        await c.staking.opt_in(person.sender, service, 10_000)

    @asynccontextmanager
    async def selling(self, name, generate, *, front=None, **settings):
        """A provider with the least stake that counts, who sells until the block ends.

        A cheat may put a `front` of its own before the real seller's door: (key, url of the real door) to application.
        """
        person = await self.join(name, PURSE + LOCAL.compute_stake_min)
        await self.stake(person, COMPUTE, LOCAL.compute_stake_min)
        journal = self.folder / f"{person.address.hex()}.db"
        own = LedgerChain(self.contracts, person.sender)
        port = find_port()
        async with AsyncExitStack() as stack:
            fields = {
                "url": f"http://127.0.0.1:{port}",
                "model_record_id": RECORD_ID,
                "engine_profile": PROFILE.digest(),
                "vocabulary_size": VOCABULARY,
                "context_tokens": CONTEXT_TOKENS,
                "level": Level.REPLAYABLE,
                "drain_s": 0.0,
                "batch_interval_s": 3600.0,
                "watch_interval_s": 3600.0,
                "claim_interval_s": 3600.0,
            }
            seller = Seller(
                person.key,
                self.terms,
                SellerSettings(**(fields | settings)),
                journal,
                own,
                generate,
                self.shelf.put_bytes,
                clock=self.clock,
            )
            await stack.enter_async_context(seller)
            door = await stack.enter_async_context(serve(seller.application, port=0 if front else port))
            if front:
                await stack.enter_async_context(serve(front(person.key, door), port=port))
            self.market.urls[person.address] = fields["url"]
            stack.callback(self.market.urls.pop, person.address)
            yield Provider(person.key, person.sender, seller, own, fields["url"], journal)

    @asynccontextmanager
    async def buying(self, name, credit=PURSE, **settings):
        """A buyer with money."""
        person = await self.join(name, credit)
        chain = LedgerChain(self.contracts, person.sender)
        buyer = Buyer(
            person.key,
            self.terms,
            BuyerSettings(**({"resolve_interval_s": 3600.0} | settings)),
            self.folder / f"{person.address.hex()}.db",
            chain,
            self.market,
            self.http,
            get_bytes=self.shelf.get_bytes,
            clock=self.clock,
        )
        async with buyer:
            yield Customer(person.key, person.sender, buyer, chain)

    async def add_watcher(self, machine=None):
        """A staked auditor, who is there to the end of the world."""
        person = await self.join("auditor", PURSE + 2 * LOCAL.audit_stake_min)
        await self.stake(person, AUDIT, 2 * LOCAL.audit_stake_min)
        purse = await self.stack.enter_async_context(self.buying("purse", 20 * PURSE))
        store = AuditorStore(self.folder / f"auditor-{person.address.hex()}.db")
        self.stack.callback(store.close)
        auditor = Auditor(
            contracts=self.contracts,
            sender=person.sender,
            domain=self.terms.protocol,
            store=store,
            shop=Shop(purse, self.market),
            shelf=self.shelf,
            recheck=(machine or self.machine).recheck,
            model=AuditedModel(RECORD_ID, NAME, CONTEXT_TOKENS, render_chat),
            clock=DutyClock(self.clock),
            dice=SystemDice(),
            metrics=Metrics("auditor"),
            settings=AuditorSettings(vectors_every=0),
        )
        self.stack.push_async_callback(auditor.juror.close)
        watcher = Watcher(person.key, person.sender, auditor, purse, store)
        self.watchers.append(watcher)
        return watcher

    def defend(self, provider, machine=None):
        """The defender that an honest provider runs beside its seller."""
        return Defender(
            contracts=self.contracts,
            sender=provider.sender,
            domain=self.terms.protocol,
            model_record_id=RECORD_ID,
            shelf=self.shelf,
            recheck=(machine or self.machine).recheck,
            clock=DutyClock(self.clock),
        )

    async def pass_time(self, seconds):
        """Move the clock and make a block that shows it."""
        self.clock.shift_s += seconds
        await self.operator.send(self.operator.address)

    async def turn(self, *others):
        """Whoever has a duty does it; then `TURN_S` pass."""
        await asyncio.gather(*(person.tend() for person in (*self.watchers, *others)))
        await self.pass_time(TURN_S)

    async def run_until_closed(self, dispute_id, *others):
        """Let the dispute run to its end."""
        for _ in range(TURNS_MAX):
            if await self.contracts.disputes.phase_of(dispute_id) == DisputePhase.CLOSED:
                return await self.contracts.disputes.dispute_of(dispute_id)
            await self.turn(*others)
        raise AssertionError(f"dispute {dispute_id} did not end within {TURNS_MAX} turns")

    async def settle(self, *providers):
        """Providers claim and collect what they charged."""
        for provider in providers:
            await provider.seller.collector.claim()

    async def wealth(self, person, *channels):
        """What a key could have in its hand: balance, stake, and what is unclaimed in channels that it paid into."""
        c = self.contracts
        totals = await c.channels.receiver_totals(person.address, self.terms.token)
        unbonding = await c.staking.unbonding_of(person.address)
        sum_ = await c.credit.balance_of(person.address) + await c.staking.stake_of(person.address)
        sum_ += unbonding.amount + totals.total_claimed - totals.total_settled
        for row in channels:
            money = await c.channels.balance_of(row.channel_id)
            sum_ += money.balance - money.total_claimed
        return sum_

    async def wealth_of(self, customer):
        """The same of a buyer, with every channel that it opened."""
        return await self.wealth(customer, *customer.buyer.accounts)


@asynccontextmanager
async def open_world(folder, executor):
    """A fresh chain with the contracts, and the machine that honest people share."""
    operator, clock = key_of("operator"), ShiftedClock()
    holder = []

    async def deadline():
        return await fetch_deadline(holder[0]) if holder else 0

    genesis = Genesis(
        sha256(b"cheats"), operator.address, clock.now_ms() // 1000, (Allocation(operator.address, 10**6 * ETHER),)
    )
    async with AsyncExitStack() as stack:
        chain = await ChainService.start(
            folder / "chain.db",
            operator,
            genesis,
            executor=executor,
            clock=clock,
            deadline=deadline,
            limits=Limits(block_ms=5, gather_ms=1),
        )
        stack.push_async_callback(chain.close)
        running = asyncio.create_task(chain.run())
        stack.callback(running.cancel)
        url = await stack.enter_async_context(serve(build_application(chain)))
        rpc = await stack.enter_async_context(Rpc(url))
        http = await stack.enter_async_context(HttpClient())
        sender = Sender(rpc, operator, chain.chain_id, patience=FAST)
        stack.push_async_callback(sender.close)
        contracts = Contracts(rpc, await deploy_suite(sender, rpc, LOCAL))
        holder.append(contracts)
        first = await rpc.get_block(0)
        terms = Terms(
            chain_id=chain.chain_id,
            network_id=first.hash,
            disputes=contracts.addresses.disputes,
            channels=contracts.addresses.channels,
            token=contracts.addresses.credit,
            token_name=CREDIT_NAME,
            token_version=CREDIT_VERSION,
        )
        machine = Machine.start()
        stack.push_async_callback(machine.close)
        yield World(folder, stack, rpc, contracts, sender, terms, clock, http, machine)
