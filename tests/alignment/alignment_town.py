"""Four auditors over one chain in memory, with a shop, a shelf and rechecks that a test scripts.

Nobody's process is trusted: a test kills an auditor at any transaction or journal entry and starts it again from its
file.
"""

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, field
from types import SimpleNamespace

from alignment_chain import Chain, Killed
from alignment_purchases import BUYER, DOMAIN, PROVIDER, Sale, key_of

from deaios.alignment.auditor.service import AuditedModel, Auditor, AuditorSettings
from deaios.alignment.auditor.store import AuditorStore
from deaios.alignment.evidence import Evidence
from deaios.compute.sampling import Rule
from deaios.compute.verification import Report, Violation
from deaios.ledger.client.rpc import UnavailableChain
from deaios.ledger.phases import DisputePhase
from deaios.ledger.structs import FinishReason, Level, Offer, Params, State
from deaios.market.orders import Order
from deaios.market.receipts import FIRST_LINK, Delivery, Link
from deaios.primitives.errors import Unavailable
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.units import CREDIT
from deaios.runtime.errors import RefusedTooLarge
from deaios.runtime.metrics import Metrics

MODEL = sha256(b"model record")
TURNS_MAX = 400


def invent(name, provider=PROVIDER, counter=1, ids=(11, 12, 13), order=None, level=Level.REPLAYABLE):
    """A signed purchase whose tokens nobody sampled; a scripted recheck says what they are worth."""
    order = order or Order(
        model_record_id=MODEL,
        prompt_ids=(1, 2, 3),
        params=Params(800, 0, 1000, len(ids), (), (), ZERO32),
        context=b"context",
        body=b"body",
        client_nonce=sha256(b"client nonce" + name.encode()),
        nonce=sha256(b"nonce" + name.encode()),
        salt=sha256(b"salt" + name.encode()),
    )
    offer = Offer(provider.address, MODEL, sha256(b"profile"), level, CREDIT, CREDIT, 512, 4, 900, "http://p", 1 << 40)
    delivery = Delivery(State.SERVED, FinishReason.LENGTH, 0, ids, 1, 2, 3)
    link = Link(counter - 1, ZERO32, 0) if counter > 1 else FIRST_LINK
    return Sale(None, order, offer, delivery, link, BUYER, provider)


class UnavailableShelf(Unavailable):
    """The storage nodes are away."""


OTHER_MODEL = sha256(b"a user's own model")


@dataclass
class Drawn:
    """Further models to audit: always this one."""

    record_id: bytes = OTHER_MODEL

    async def draw(self, number):
        assert 0 <= number < 1 << 32
        return AuditedModel(self.record_id, "own-model", 512, lambda question: ((4, 5, 6), b"other context"))


@dataclass
class Shelf:
    """Storage that can lose what it holds."""

    kept: dict = field(default_factory=dict)
    is_away: bool = False
    lost: set = field(default_factory=set)
    gates: list = field(default_factory=list)
    fetched: int = 0

    async def put_bytes(self, data):
        for gate in list(self.gates):
            gate()
        if self.is_away:
            raise UnavailableShelf("no storage node answers")
        self.kept[sha256(data)] = data
        return sha256(data)

    async def get_bytes(self, manifest_id, bytes_max):
        self.fetched += 1
        await asyncio.sleep(0)
        if self.is_away or manifest_id in self.lost or manifest_id not in self.kept:
            raise UnavailableShelf("too few rows can be had")
        data = self.kept[manifest_id]
        if len(data) > bytes_max:
            raise RefusedTooLarge(f"file has {len(data)} bytes, at most {bytes_max} wanted")
        return data


@dataclass
class Recheck:
    """Says of a receipt what the test wrote down; everything else holds."""

    false: set = field(default_factory=set)
    noisy: set = field(default_factory=set)
    can_replay: bool = True
    is_away: bool = False
    checked: int = 0
    replayed: int = 0

    async def check(self, evidence):
        self.checked += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise Unavailable("the engine is away")
        count = len(evidence.opening.output_ids)
        if evidence.opening.receipt_digest in self.false | self.noisy:
            violation = Violation(1, 0.7, Rule.SEEDED, "margin 0.7 logits exceeds 0.02")
            return Report(count, (0.0, 0.7, 0.0), (violation,))
        return Report(count, (0.0,) * count, ())

    async def replay(self, evidence):
        self.replayed += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise Unavailable("the engine is away")
        return evidence.opening.receipt_digest not in self.false if self.can_replay else None


@dataclass
class Shop:
    """Sells purchases of the providers listed; a cheat's receipts are false, and who is mute never serves."""

    recheck: Recheck
    providers: list = field(default_factory=lambda: [PROVIDER])
    cheats: set = field(default_factory=set)
    mute: set = field(default_factory=set)
    level: int = Level.REPLAYABLE
    sold: int = Level.SEEDED
    counter: int = 0
    orders: list = field(default_factory=list)

    async def list_providers(self, record_id):
        assert record_id in (MODEL, OTHER_MODEL)
        return [provider.address for provider in self.providers]

    async def fetch_level(self, record_id, provider):
        return self.sold

    async def buy(self, order):
        self.orders.append(order)
        self.counter += 1
        provider = next(item for item in self.providers if item.address == order.provider)
        if provider in self.mute:
            raise Unavailable("no token within 60 s")
        sale = invent(f"sale {self.counter}", provider, self.counter, order=order, level=self.level)
        opening = sale.sign()
        if provider in self.cheats:
            self.recheck.false.add(opening.receipt_digest)
        return Evidence(opening, order.prompt_ids)


class Dice:
    """Repeatable dice that differ per auditor and per life."""

    def __init__(self, name):
        self._name, self._count = name, 0

    def token_bytes(self, size):
        self._count += 1
        return hashlib.shake_256(f"{self._name} {self._count}".encode()).digest(size)


@dataclass
class TownClock:
    """The chain's time; sleeping lets others run and takes no time."""

    chain: Chain

    def now_ms(self):
        return self.chain.now * 1000

    def monotonic_s(self):
        return float(self.chain.now)

    async def sleep(self, seconds):
        await asyncio.sleep(0)


class FragileStore(AuditorStore):
    """A journal in front of which, or behind which, the process can be killed."""

    gate = None

    def _pass(self, when, what):
        if self.gate is not None:
            self.gate(when, what)

    def keep_beacon_secret(self, round_id, attempt, secret):
        self._pass("before", "secret")
        kept = super().keep_beacon_secret(round_id, attempt, secret)
        self._pass("after", "secret")
        return kept

    def keep_verdict(self, dispute, draw, verdict):
        self._pass("before", "verdict")
        kept = super().keep_verdict(dispute, draw, verdict)
        self._pass("after", "verdict")
        return kept

    def record_audit(self, audit, suspicion):
        self._pass("before", "suspected")
        super().record_audit(audit, suspicion)
        self._pass("after", "suspected")

    def advance_case(self, receipt_digest, state, dispute=None):
        self._pass("before", str(state))
        super().advance_case(receipt_digest, state, dispute)
        self._pass("after", str(state))


@dataclass
class Member:
    """One auditor: its key, its file, and the process that runs now."""

    key: object
    path: object
    town: object
    lives: int = 0
    store: object = None
    auditor: object = None
    is_down: bool = False
    recheck: object = None
    further: object = None
    vectors_every: int = 0

    def start(self):
        self.lives += 1
        self.store = FragileStore(self.path)
        town = self.town
        self.auditor = Auditor(
            contracts=town.chain.contracts(),
            sender=SimpleNamespace(address=self.key.address),
            domain=DOMAIN,
            store=self.store,
            shop=town.shop,
            shelf=town.shelf,
            recheck=self.recheck or town.recheck,
            model=AuditedModel(MODEL, "smollm2-135m-instruct", 512, lambda question: ((1, 2, 3), b"context")),
            clock=town.clock,
            dice=Dice(f"{self.key.address.hex()} {self.lives}"),
            metrics=Metrics("auditor"),
            settings=AuditorSettings(vectors_every=self.vectors_every),
            further=self.further,
        )

    def kill(self):
        """Nothing in memory survives."""
        self.store.close()

    async def tend(self):
        """One round of every loop."""
        auditor = self.auditor
        for part in (auditor.accuser, auditor.beacon, auditor.juror):
            with contextlib.suppress(UnavailableChain):  # the loop would wait and come again
                await part.tend()
        await auditor.juror.settle()


class Town:
    """The chain, what is around it, and the auditors."""

    def __init__(self, folder, count=4):
        self.chain = Chain()
        self.clock = TownClock(self.chain)
        self.recheck = Recheck()
        self.shelf = Shelf()
        self.shop = Shop(self.recheck)
        self.chain.providers[PROVIDER.address] = 50 * CREDIT
        self.chain.balances[PROVIDER.address] = 20 * CREDIT
        self.members = []
        for number in range(count):
            key = key_of(f"auditor {number}")
            self.chain.powers[key.address] = 20 * CREDIT
            self.chain.balances[key.address] = 40 * CREDIT
            self.members.append(Member(key, folder / f"auditor-{number}.db", self))
        for member in self.members:
            member.start()

    def close(self):
        for member in self.members:
            member.kill()

    async def turn(self):
        """All auditors that are up do at the same time what is due; a second passes."""
        await asyncio.gather(*(self._tend(member) for member in self.members if not member.is_down))
        self.chain.wait()

    async def _tend(self, member):
        """Whoever is killed starts again from its file."""
        try:
            await member.tend()
        except Killed:
            await member.auditor.juror.close()
            member.kill()
            member.start()

    async def run_until(self, condition, turns_max=TURNS_MAX):
        for turn in range(turns_max):
            if condition():
                return turn
            await self.turn()
        raise AssertionError(f"not within {turns_max} turns; sent {self.chain.sent}, refused {self.chain.refused[-5:]}")

    def is_closed(self, dispute_id=1):
        disputes = self.chain.contracts().disputes
        return len(self.chain.disputes) >= dispute_id and disputes.phase_now(dispute_id) == DisputePhase.CLOSED

    async def find_cheat(self, number=0):
        """One auditor buys a false answer."""
        self.shop.cheats = {PROVIDER}
        assert await self.members[number].auditor.audit_once() is False

    @property
    def revealed_secrets(self):
        return [state.revealed for state in self.chain.rounds]
