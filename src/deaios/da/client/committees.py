"""Committees of the network with the URLs of their members, as one client sees them."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.committee import Committee
from deaios.primitives.errors import Unavailable
from deaios.primitives.keys import Address, PrivateKey
from deaios.rows.attempts import Attempt
from deaios.rows.client import Nodes, Timings
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice

ROLE = "da"
FRESH_S = 15.0
"""How long URLs and the number of the current epoch are believed."""
UPLOADS_MAX = 64
"""Rows on their way at once: a member that hangs must not keep the others waiting."""
ROSTERS_MAX = 16
"""Epochs remembered: terms are longer than epochs, so readers meet several."""


class UnavailableCommittee(Unavailable):
    """No epoch has begun, or none of a committee's members has registered a URL."""


@dataclass(frozen=True, slots=True)
class Roster:
    """One epoch's committee.

    Attributes:
        nodes: members that have a URL, in the order of their places.
        places: of these nodes in the committee.
    """

    committee: Committee
    nodes: Nodes
    urls: tuple[str, ...]
    places: tuple[int, ...]

    def order_attempts(self, rows: Sequence[tuple[int, int]]) -> list[Attempt]:
        """Attempts from (row, place of the member), without members that have no URL."""
        node_of = {place: node for node, place in enumerate(self.places)}
        return [Attempt(row, node_of[place]) for row, place in rows if place in node_of]

    @property
    def demoted(self) -> frozenset[int]:
        """Places of members whose last answer failed."""
        return frozenset(self.places[node] for node in self.nodes.demoted)


@dataclass(frozen=True, slots=True)
class _Known:
    roster: Roster
    at_s: float


class Committees:
    """Looks committees up on chain and remembers them for a while."""

    def __init__(
        self,
        contracts: Contracts,
        http: HttpClient,
        key: PrivateKey | None,
        network_id: bytes,
        *,
        clock: Clock,
        dice: Dice,
        executor: Executor | None = None,
        timings: Timings | None = None,
    ) -> None:
        """A client's view.

        Args:
            contracts: of the network.
            http: an entered `HttpClient`.
            key: signs writes; None for who only reads.
            network_id: genesis hash that writes name.
            clock: wall time for signatures; how old a memory is.
            dice: nonces of signatures.
            executor: threads for hashing; the loop's own by default.
            timings: how long to wait for a member.
        """
        self._contracts = contracts
        self._http = http
        self._key = key
        self._network_id = network_id
        self._clock = clock
        self._dice = dice
        self._executor = executor
        self._timings = timings or Timings()
        self._rosters: dict[int, _Known] = {}
        self._current: tuple[int, float] | None = None

    async def fetch_current(self) -> Roster:
        """The committee that takes rows now.

        Raises:
            UnavailableCommittee: there is none, or nobody of it can be reached.
        """
        now = self._clock.monotonic_s()
        if self._current is None or now - self._current[1] > FRESH_S:
            self._current = await self._contracts.settled.availability.current_epoch(), now
        if self._current[0] == 0:
            self._current = None
            raise UnavailableCommittee("no epoch of data availability has begun; start members with `deaios attest`")
        return await self.fetch(self._current[0])

    async def fetch(self, epoch: int) -> Roster:
        """An epoch's committee.

        Raises:
            UnavailableCommittee: nobody of it can be reached.
        """
        now = self._clock.monotonic_s()
        known = self._rosters.get(epoch)
        if known is not None and now - known.at_s <= FRESH_S:
            return known.roster
        committee = known.roster.committee if known else await self._contracts.settled.availability.committee(epoch)
        urls: dict[Address, str] = {}
        for agent in reversed(await self._contracts.identities.list_role(ROLE)):
            urls[agent.owner] = agent.url
        places = tuple(place for place, member in enumerate(committee.members) if member.address in urls)
        if not places:
            raise UnavailableCommittee(f"none of the {len(committee.members)} members of epoch {epoch} has a URL")
        found = tuple(urls[committee.members[place].address] for place in places)
        if known is not None and known.roster.urls == found:
            roster = known.roster
        else:
            roster = Roster(committee, self._build_nodes(found), found, places)
        self._rosters.pop(epoch, None)
        self._rosters[epoch] = _Known(roster, now)
        while len(self._rosters) > ROSTERS_MAX:
            del self._rosters[next(iter(self._rosters))]
        return roster

    def forget_current(self) -> None:
        """Ask the chain again which epoch it is."""
        self._current = None

    def _build_nodes(self, urls: Sequence[str]) -> Nodes:
        return Nodes(
            self._http,
            urls,
            self._key,
            self._network_id,
            clock=self._clock,
            dice=self._dice,
            executor=self._executor,
            timings=self._timings,
            uploads_max=UPLOADS_MAX,
        )
