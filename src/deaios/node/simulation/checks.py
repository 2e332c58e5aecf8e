"""What must hold after every event of a history, and what must have come true at its end.

Safety is checked at each block and at each write of a provider's journal: money is conserved, counters have no gaps
and never fork, what was acknowledged is kept, claims stay within receipts (within a window where the claimer cheats),
the honest are not slashed. Sources: docs/spec/protocol.md §§2, 4, 5; docs/contracts.md.
"""

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field

from deaios.chain.blocks import Block
from deaios.ledger.abi import Value
from deaios.ledger.artifacts import load_artifact
from deaios.ledger.phases import Decision
from deaios.ledger.structs import ChannelConfig
from deaios.ledger.suite import SuiteAddresses
from deaios.node.simulation.town import CHAIN, GATEWAY, NEIGHBOUR, PEOPLE, PROVIDERS, SETTINGS, key_of
from deaios.node.simulation.world import Role, Violation, World
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ZERO_ADDRESS, Address

_NAMES = {"credit": "Credit", "channels": "Channels", "staking": "SharedStaking", "disputes": "Disputes",
          "forks": "Forks", "receipts": "Receipts", "beacon": "Beacon"}  # fmt: skip
NAME_OF = {key_of(name).address: name for name in (CHAIN, *PEOPLE)}
SLOTS_SEARCHED = 32


@dataclass(frozen=True, slots=True)
class ChainEvent:
    """One event of a contract of the suite."""

    contract: str
    name: str
    values: dict[str, Value]


@dataclass(slots=True)
class Acknowledged:
    """What was told to a user, and so must never be lost: receipts by (provider, counter)."""

    receipts: dict[tuple[Address, int], bytes] = field(default_factory=dict)
    fees: Counter[Address] = field(default_factory=Counter)


class Checks:
    """Watches one world.

    Attributes:
        events: every contract event so far, by name.
        honest: providers that keep to the protocol.
        whole_requests: identities of questions whose answers were wanted in one piece.
    """

    def __init__(self, world: World, honest: frozenset[str]) -> None:
        self.world = world
        self.honest = honest
        self.events: Counter[str] = Counter()
        self.history: list[ChainEvent] = []
        self.claimed: dict[bytes, int] = {}
        self.config_of: dict[bytes, ChannelConfig] = {}
        self.balance_of: Counter[bytes] = Counter()
        self.published: Counter[str] = Counter()
        self.acknowledged = Acknowledged()
        self.whole_requests: set[bytes] = set()
        addresses = world.town.descriptor.contracts
        self._contract_of = {getattr(addresses, field): name for field, name in _NAMES.items()}
        self._abis = {name: load_artifact(name).abi for name in _NAMES.values()}
        self._height = -1
        self._hashes: dict[int, bytes] = {}
        self._counters: Counter[str] = Counter()
        self._readers: dict[str, tuple[object, sqlite3.Connection]] = {}
        self._balance_slots, self._supply_slot = _find_slots(world, addresses)
        world.on_job = self.look_at_job
        world.on_step = self.look_at_chain

    # The chain

    def look_at_chain(self) -> None:
        """Check every block that came since the last look."""
        chain = self.world.chain
        if chain is None or not chain.recent or chain.head.number == self._height:
            return
        head = chain.head.number
        if self._height < 0:
            self._height = head
            return
        if head < self._height:
            raise Violation(f"the chain went back from block {self._height} to {head}")
        for number in range(self._height + 1, head + 1):
            block = chain.recent.get(number)
            if block is not None:
                self._take_block(block)
        self._height = head
        self._check_money()

    def _take_block(self, block: Block) -> None:
        for receipt in block.receipts:
            for log in receipt.logs:
                contract = self._contract_of.get(log.address)
                if contract is None or contract == "Credit":
                    continue
                event = self._abis[contract].by_topic.get(log.topics[0])
                if event is not None:
                    self._take_event(ChainEvent(contract, event.name, event.decode(log.topics, log.data)))

    def _take_event(self, event: ChainEvent) -> None:
        self.events[f"{event.contract}.{event.name}"] += 1
        self.history.append(event)
        self.world.note(f"{event.contract}.{event.name} {_show(event.values)}")
        match (event.contract, event.name):
            case ("Channels", "ChannelCreated"):
                self.config_of[event.values["channelId"]] = ChannelConfig(*event.values["config"])
            case ("Channels", "Deposited"):
                self.balance_of[event.values["channelId"]] = event.values["newBalance"]
            case ("Channels", "WithdrawFinalized"):
                self.balance_of[event.values["channelId"]] -= event.values["amount"]
            case ("Receipts", "BatchPublished"):
                self._take_batch(NAME_OF.get(event.values["provider"], "?"), event.values)
            case ("Channels", "Claimed"):
                self.claimed[event.values["channelId"]] = event.values["newTotalClaimed"]
                self._check_claim(event.values["channelId"])
            case ("SharedStaking", "Slashed"):
                self._check_slash(event)
            case ("Disputes", "Tallied"):
                self.events[f"verdict {Decision(event.values['verdict']).name.lower()}"] += 1
            case _:
                pass

    def _check_money(self) -> None:
        """All Credit is somewhere: balances of everybody add up to the supply."""
        chain = self.world.chain
        assert chain is not None, "a block came from it"
        slots = chain.state.slots[self.world.town.descriptor.contracts.credit]
        total = sum(slots.get(slot, 0) for slot in self._balance_slots)
        supply = slots.get(self._supply_slot, 0)
        if total != supply:
            raise Violation(f"balances add up to {total}, the supply is {supply}")

    def _check_slash(self, event: ChainEvent) -> None:
        name = NAME_OF.get(event.values["operator"], "?")
        if name in self.honest and name in PROVIDERS:
            raise Violation(f"honest {name} was slashed by {self._contract_of.get(event.values['judge'])}")
        judge = self._contract_of.get(event.values["judge"], "?")
        self.events[f"slash of {name.split('-')[0]} by {judge}"] += 1

    def _check_claim(self, channel_id: bytes) -> None:
        """A claim of an honest provider has receipts behind it; of any other, at most a window has none."""
        name = self._receiver_of(channel_id)
        claimed = self.claimed[channel_id]
        charged = self._charged(name, channel_id)
        if name in self.honest and charged is not None and claimed > charged:
            raise Violation(f"{name} claimed {claimed}, its receipts charge {charged}")
        settled = self._settled(channel_id)
        if settled is not None and claimed - settled > SETTINGS.voucher_window:
            raise Violation(f"{name} took {claimed - settled} beyond accepted receipts, more than a window")

    def _take_batch(self, name: str, values: dict[str, Value]) -> None:
        """Batches follow each other without a gap."""
        if values["firstCounter"] != self.published[name] + 1 or values["lastCounter"] < values["firstCounter"]:
            first, last = values["firstCounter"], values["lastCounter"]
            raise Violation(f"{name} published counters {first} to {last} after {self.published[name]}")
        self.published[name] = values["lastCounter"]

    def _receiver_of(self, channel_id: bytes) -> str:
        config = self.config_of.get(channel_id)
        return "?" if config is None else NAME_OF.get(config.receiver, "?")

    def claimed_by(self, name: str) -> int:
        """All that a provider has claimed on chain."""
        return sum(total for channel_id, total in self.claimed.items() if self._receiver_of(channel_id) == name)

    def was_bought_from(self, name: str) -> bool:
        """Whether any of its receipts was shown to a user."""
        return any(NAME_OF[provider] == name for provider, _ in self.acknowledged.receipts)

    def check_books(self, honest: tuple[str, ...]) -> None:
        """At rest: fees of receipts, charges, claims, the buyer's books and what users were told are one sum.

        Raises:
            Violation: they are not.
        """
        for name in honest:
            fees, count = self.sum_receipts(name)
            claimed = self.claimed_by(name)
            settled = self._sum_settled(name)
            if not fees == claimed == settled:
                raise Violation(f"{name}: receipts {fees}, claimed {claimed}, accepted {settled} (of {count} receipts)")
            told = self.acknowledged.fees[key_of(name).address]
            if told > fees:
                raise Violation(f"{name}: users were shown fees of {told}, its receipts have {fees}")
        self._check_keys()

    def _sum_settled(self, name: str) -> int:
        buyer = self.world.buyer
        if buyer is None:
            return 0
        return sum(row.state.settled for row in buyer.accounts if row.provider == key_of(name).address)

    def _check_keys(self) -> None:
        """What the gateway charged its users is what it accepted, receipt by receipt, and none twice."""
        role = self.world.roles[GATEWAY]
        connection = sqlite3.connect(role.disk.folder / "keys.db")
        try:
            rows = connection.execute(
                "SELECT provider, counter, amount FROM charges WHERE provider NOT NULL"
            ).fetchall()
            (spent,) = connection.execute("SELECT sum(spent) FROM keys").fetchone()
            (charged,) = connection.execute("SELECT coalesce(sum(amount), 0) FROM charges").fetchone()
            by_request = connection.execute(
                "SELECT request, sum(amount), max(cost), count(*) FROM charges GROUP BY request"
            ).fetchall()
        finally:
            connection.close()
        if spent != charged:
            raise Violation(f"the gateway's keys spent {spent}, its charges are {charged}")
        seen = Counter((bytes(provider), counter) for provider, counter, _ in rows)
        if seen and max(seen.values()) > 1:
            raise Violation(f"a receipt was charged to users more than once: {seen.most_common(1)}")
        for request, paid, dearest, attempts in by_request:
            if attempts > 1:
                self.events["repetition charged"] += 1
            if request in self.whole_requests and paid > dearest:
                raise Violation(f"a question was charged {paid} over {attempts} attempts, the dearest cost {dearest}")

    def _charged(self, name: str, channel_id: bytes) -> int | None:
        role = self.world.roles.get(name)
        if role is None:
            return None
        row = self._reader(role).execute("SELECT charged FROM channels WHERE channel_id = ?", (channel_id,)).fetchone()
        return int(row[0]) if row else 0

    def _settled(self, channel_id: bytes) -> int | None:
        """What the buyer has accepted on a channel, where the buyer lives and is the gateway's."""
        role = self.world.roles.get(GATEWAY)
        if role is None or not role.process.is_alive or self.world.buyer is None:
            return None
        for row in self.world.buyer.accounts:
            if row.channel_id == channel_id:
                return row.state.settled
        return None

    # Providers' journals

    def look_at_job(self, role: Role) -> None:
        """Check a provider's counters after each write."""
        seller = self.world.sellers.get(role.name)
        if role.name not in self.honest or seller is None or seller.desk.last_counter == self._counters[role.name]:
            return
        count, last = self._reader(role).execute("SELECT count(*), coalesce(max(counter), 0) FROM receipts").fetchone()
        if count != last:
            raise Violation(f"{role.name} has {count} receipts, the last counter is {last}")
        if last < self._counters[role.name]:
            raise Violation(f"{role.name} lost receipts: the last counter was {self._counters[role.name]}, now {last}")
        self._counters[role.name] = last

    def _reader(self, role: Role) -> sqlite3.Connection:
        kept = self._readers.get(role.name)
        if kept is not None and kept[0] is role.process:
            return kept[1]
        connection = sqlite3.connect(role.disk.folder / "seller.db", isolation_level=None)
        self._readers[role.name] = (role.process, connection)
        return connection

    def acknowledge(self, provider: Address, counter: int, digest: bytes, fee: int) -> None:
        """A user was shown this receipt."""
        known = self.acknowledged.receipts.setdefault((provider, counter), digest)
        if known != digest:
            name = NAME_OF.get(provider, "?")
            if name in self.honest:
                raise Violation(f"{name} showed two receipts with counter {counter}")
            self.events["fork seen"] += 1
        else:
            self.acknowledged.fees[provider] += fee

    def check_kept(self) -> None:
        """Every receipt that a user was shown is in its provider's journal, and nobody was shown more than there is."""
        for (provider, counter), digest in self.acknowledged.receipts.items():
            name = NAME_OF[provider]
            if name not in self.honest:
                continue
            row = (
                self._reader(self.world.roles[name])
                .execute("SELECT digest FROM receipts WHERE counter = ?", (counter,))
                .fetchone()
            )
            if row is None or row[0] != digest:
                raise Violation(f"receipt {counter} of {name} was acknowledged and is not in its journal")

    def close(self) -> None:
        """Close the readers."""
        for _, connection in self._readers.values():
            connection.close()

    def sum_receipts(self, name: str) -> tuple[int, int]:
        """(fees, receipts) of a provider's journal, recounted from its receipts."""
        rows = self._reader(self.world.roles[name]).execute("SELECT receipt FROM receipts").fetchall()
        return sum(int(json.loads(row[0])["fee"]) for row in rows), len(rows)


def _find_slots(world: World, addresses: SuiteAddresses) -> tuple[list[int], int]:
    """Where Credit keeps balances and supply: found by their founding values."""
    slots = _load_slots(world, addresses.credit)
    # The greatest supply has the same value and comes before it.
    supply_slot = max(place for place in range(SLOTS_SEARCHED) if slots.get(place) == SETTINGS.credit_supply)
    holders = [*NAME_OF, *addresses.by_field().values(), ZERO_ADDRESS]
    neighbour = key_of(NEIGHBOUR).address
    for place in range(SLOTS_SEARCHED):
        if slots.get(_slot_of(place, neighbour)) == SETTINGS.faucet_credit:
            return [_slot_of(place, holder) for holder in holders], supply_slot
    raise AssertionError("Credit keeps balances in one mapping")


def _slot_of(place: int, holder: Address) -> int:
    # Vyper hashes the mapping's place before the key.
    return int.from_bytes(keccak256(place.to_bytes(32) + bytes(12) + holder))


def _load_slots(world: World, credit: Address) -> dict[int, int]:
    path = world.roles[CHAIN].disk.folder / "chain.db"
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT slot, value FROM slots WHERE address = ?", (credit,)).fetchall()
    finally:
        connection.close()
    return {int.from_bytes(slot): int.from_bytes(value) for slot, value in rows}


def _show(values: dict[str, Value]) -> str:
    parts = []
    for name, value in values.items():
        shown = NAME_OF.get(Address(value), value.hex()[:8]) if isinstance(value, bytes) else value
        parts.append(f"{name}={shown}")
    return " ".join(parts)
