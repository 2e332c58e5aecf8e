"""A real chain with a real committee on real sockets, in one process; some members are bad, named by what they do.

Founding is done once for each shape of village; every test starts from a copy of its chain file. Time is the
machine's, moved on by tests.
"""

import asyncio
import functools
import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.da.client.blobs import BlobClient
from deaios.da.client.challenger import Challenger
from deaios.da.client.healing import Healer
from deaios.da.service.door import MemberDoor, build_member_application
from deaios.da.service.duties import Duties, DutySettings
from deaios.da.store import PledgeStore
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import deploy_suite, fetch_network_id
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.phases import BeaconPhase
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import availability_domain
from deaios.ledger.suite import AUDIT, DATA_AVAILABILITY
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import PrivateKey
from deaios.primitives.units import CREDIT
from deaios.rows.client import Timings
from deaios.rows.store import RowStore
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve

TIMINGS = Timings(transfer_s=5.0, hedge_s=0.3, rounds=1, pause_s=0.01)
PATIENCE = Patience(poll_min_s=0.02, poll_max_s=0.1)
LIMITS = Limits(block_ms=60, gather_ms=5)
AUDITORS = 2
QUOTA = 1 << 30


def key_of(name):
    return PrivateKey(sha256(b"village " + name.encode()))


def settings_of(members, seats):
    # Long enough to open a dozen challenges on a busy machine; rounds end as soon as everybody spoke.
    return replace(LOCAL, da_seats_size=seats, beacon_commit_s=60, beacon_reveal_s=60, da_answer_s=20)


class MovableClock(SystemClock):
    """The machine's clock, ahead by what tests say."""

    def __init__(self):
        self.ahead_ms = 0

    def now_ms(self):
        return super().now_ms() + self.ahead_ms


class ForgettingStore(RowStore):
    """Signs without storing: says that rows are there and keeps nothing."""

    def __init__(self, folder, quota_bytes):
        super().__init__(folder, quota_bytes)
        self.sizes = {}

    def put_row(self, commitment, index, data):
        self.sizes[commitment, index] = len(data)
        return True

    def get_row_size(self, commitment, index):
        return self.sizes.get((commitment, index))


class CorruptingStore(RowStore):
    """Serves rows with one bit changed."""

    def get_row(self, commitment, index):
        data = super().get_row(commitment, index)
        return None if data is None else data[:-1] + bytes([data[-1] ^ 1])


class StallingStore(RowStore):
    """Takes rows and does not answer reads until the test is over."""

    def __init__(self, folder, quota_bytes):
        super().__init__(folder, quota_bytes)
        self.over = threading.Event()

    def get_row(self, commitment, index):
        self.over.wait(60)


class StallingWriter(StallingStore):
    """Does not answer writes until the test is over."""

    def put_row(self, commitment, index, data):
        self.over.wait(60)
        return False


class FullStore(RowStore):
    """Has no room."""

    def __init__(self, folder, quota_bytes):
        super().__init__(folder, 100)


class EquivocatingDoor(MemberDoor):
    """Attests to another term than the one it was asked for."""

    def _sign(self, attestation):
        return super()._sign(replace(attestation, expires_at=attestation.expires_at - 1))


class RefusingDoor(MemberDoor):
    """Takes rows and never attests."""

    def _sign(self, attestation):
        raise PermissionError("not today")


class Member:
    """One member: its folder outlives its runs."""

    def __init__(self, village, number):
        self.village = village
        self.number = number
        self.key = key_of(f"member-{number}")
        self.folder = village.path / f"member-{number}"
        self.port = 0
        self.running = None

    @property
    def address(self):
        return self.key.address

    async def start(self, store_kind=RowStore, door_kind=MemberDoor):
        village, self.running = self.village, AsyncExitStack()
        self.store = store_kind(self.folder / "rows", QUOTA)
        self.pledges = PledgeStore(self.folder / "pledges.db")
        pool = ThreadPoolExecutor(4)
        for close in (self.pledges.close, self.store.close, pool.shutdown):
            self.running.callback(close)
        if isinstance(self.store, StallingStore):
            self.running.callback(self.store.over.set)
        self.door = door_kind(
            self.key,
            village.domain,
            self.store,
            self.pledges,
            network_id=village.network_id,
            clock=village.clock,
            executor=pool,
        )
        application = build_member_application(self.door, self.store, self.pledges)
        url = await self.running.enter_async_context(serve(application, port=self.port))
        self.port = int(url.rsplit(":", 1)[1])
        self.sender = Sender(village.rpc, self.key, village.chain_id, patience=PATIENCE)
        self.running.push_async_callback(self.sender.close)
        await village.contracts.identities.ensure_registered(self.sender, url, "da")
        windows = village.settings
        self.duties = Duties(
            contracts=village.contracts,
            sender=self.sender,
            door=self.door,
            store=self.store,
            pledges=self.pledges,
            healer=Healer(village.reader()),
            settings=DutySettings(windows.da_epoch_s, windows.da_term_max_s, windows.da_challenge_s_max),
            clock=village.clock,
        )
        await self.duties.tend_epoch()

    async def do_duties(self):
        for duty in (
            self.duties.tend_epoch,
            self.duties.scan,
            self.duties.answer_challenges,
            self.duties.heal,
            self.duties.let_go,
            self.duties.collect,
        ):
            await duty()

    async def stop(self):
        running, self.running = self.running, None
        if running is not None:
            if isinstance(self.store, StallingStore):
                self.store.over.set()
            await running.aclose()


class Village:
    """A chain, its members, and whoever tests need."""

    def __init__(self, path, members, seats, stack):
        self.path = path
        self.settings = settings_of(members, seats)
        self.clock = MovableClock()
        self.members = [Member(self, number) for number in range(members)]
        self.stack = stack

    async def open(self, chain_file):
        executor = ThreadPoolExecutor(4)
        self.stack.callback(executor.shutdown)
        shutil.copy(chain_file, self.path / "chain.db")
        operator = key_of("operator")
        chain = await ChainService.start(
            self.path / "chain.db", operator, None, executor=executor, clock=self.clock, limits=LIMITS
        )
        self.stack.push_async_callback(chain.close)
        making = asyncio.create_task(chain.run())
        self.stack.callback(making.cancel)
        url = await self.stack.enter_async_context(serve(build_application(chain)))
        self.rpc = await self.stack.enter_async_context(Rpc(url))
        self.http = await self.stack.enter_async_context(HttpClient())
        self.chain_id = chain.chain_id
        self.network_id = await fetch_network_id(self.rpc)
        self.contracts = Contracts(self.rpc, plan_addresses(self.settings))
        self.domain = availability_domain(self.chain_id, self.contracts.addresses.availability)
        self.user = self.sender_of("user")

    def sender_of(self, name):
        sender = Sender(self.rpc, key_of(name), self.chain_id, patience=PATIENCE)
        self.stack.push_async_callback(sender.close)
        return sender

    async def start_members(self, stores=None, doors=None):
        """Start all; some with another kind of store or door, by number."""
        stores, doors = stores or {}, doors or {}
        await asyncio.gather(
            *(
                member.start(stores.get(member.number, RowStore), doors.get(member.number, MemberDoor))
                for member in self.members
            )
        )

    async def begin_epoch(self):
        await self.contracts.availability.begin_epoch(self.user)
        await asyncio.gather(*(member.duties.tend_epoch() for member in self.members if member.running))

    def client(self, **options):
        return BlobClient(
            self.contracts,
            self.http,
            self.network_id,
            self.chain_id,
            **{
                "key": key_of("user"),
                "sender": self.user,
                "clock": self.clock,
                "timings": TIMINGS,
                **options,
            },
        )

    def reader(self):
        return self.client(key=None, sender=None).reader

    def challenger(self):
        return Challenger(self.contracts, self.user, self.settings.da_challenge_bond, self.clock)

    async def speak(self):
        """The auditors give the beacon's open round a value."""
        beacon, dice = self.contracts.beacon, SystemDice()
        auditors = [self.sender_of(f"auditor-{number}") for number in range(AUDITORS)]
        while (round_id := await beacon.open_round()) is not None:
            secrets = [dice.token_bytes(32) for _ in auditors]
            assert await beacon.phase(round_id) == BeaconPhase.COMMIT
            pairs = list(zip(auditors, secrets, strict=True))
            await asyncio.gather(*(beacon.commit(sender, round_id, secret) for sender, secret in pairs))
            await asyncio.gather(*(beacon.reveal(sender, round_id, secret) for sender, secret in pairs))

    async def pass_time(self, seconds):
        """Move the clock on, and let a block be made of the new time."""
        self.clock.ahead_ms += seconds * 1000
        await self.user.send(key_of("operator").address)

    async def close(self):
        await asyncio.gather(*(member.stop() for member in self.members))


def plan_addresses(settings):
    from deaios.ledger.suite import plan_suite

    return plan_suite(key_of("operator").address, 0, settings, key_of("operator").address).addresses


@functools.cache
def found_village(members, seats):
    """A chain file: contracts deployed, everybody funded and staked; no epoch has begun."""
    folder = Path(tempfile.mkdtemp(prefix=f"village-{os.getpid()}-"))
    asyncio.run(_found(folder / "chain.db", members, seats))
    return folder / "chain.db"


async def _found(path, members, seats):
    settings, operator = settings_of(members, seats), key_of("operator")
    clock = SystemClock()
    genesis = Genesis(
        sha256(b"village"), operator.address, clock.now_ms() // 1000, (Allocation(operator.address, 10**6 * ETHER),)
    )
    async with AsyncExitStack() as stack:
        executor = ThreadPoolExecutor(4)
        stack.callback(executor.shutdown)
        chain = await ChainService.start(path, operator, genesis, executor=executor, clock=clock, limits=LIMITS)
        making = asyncio.create_task(chain.run())
        url = await stack.enter_async_context(serve(build_application(chain)))
        rpc = await stack.enter_async_context(Rpc(url))
        sender = Sender(rpc, operator, chain.chain_id, patience=PATIENCE)
        addresses = await deploy_suite(sender, rpc, settings)
        contracts = Contracts(rpc, addresses)

        async def join(name, service, stake):
            own = Sender(rpc, key_of(name), chain.chain_id, patience=PATIENCE)
            await asyncio.gather(
                sender.send(own.address, value=5 * ETHER), contracts.credit.transfer(sender, own.address, 200 * CREDIT)
            )
            if stake:
                await contracts.credit.approve(own, addresses.staking, stake)
                await contracts.staking.stake(own, stake)
                await contracts.staking.opt_in(own, service, 10_000)
            await own.close()

        await asyncio.gather(
            join("user", b"", 0),
            *(join(f"auditor-{number}", AUDIT, 2 * settings.audit_stake_min) for number in range(AUDITORS)),
        )
        for number in range(members):  # one after another: the roster's order decides who has which seats
            await join(f"member-{number}", DATA_AVAILABILITY, settings.da_stake_min)
        await sender.close()
        making.cancel()
        await asyncio.wait({making})
        await chain.close()


@asynccontextmanager
async def open_village(path, members=16, seats=16):
    """A village of equal members, started and seated by the test."""
    chain_file = await asyncio.to_thread(found_village, members, seats)
    async with AsyncExitStack() as stack:
        village = Village(path, members, seats, stack)
        await village.open(chain_file)
        try:
            yield village
        finally:
            await village.close()
