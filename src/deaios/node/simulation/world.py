"""One seeded history: roles that live, die and live again, the faults that befall them, and who watches.

The world decides when processes die (at a time, or at any job on their disk or any message they send), what their
disks keep of it, and when the network and the clocks misbehave. It never changes what a role does.
"""

import asyncio
import contextvars
import shutil
import sqlite3
import tempfile
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Self

from aiohttp.web_app import _cached_build_middleware

from deaios.chain.service import ChainService
from deaios.gateway.store import KeyStore
from deaios.market.buyer.client import Buyer
from deaios.market.seller.service import Seller
from deaios.node.member import Member
from deaios.node.network import terms_of
from deaios.node.simulation.disk import Disk
from deaios.node.simulation.loop import Process, SimulatedClock, SimulatedDice, SimulatedLoop
from deaios.node.simulation.network import Network, Weather
from deaios.node.simulation.roles import Life, live_chain, live_gateway, live_provider, live_shelf
from deaios.node.simulation.town import CHAIN, GATEWAY, SHELF, Town, found_town
from deaios.primitives.errors import DeaiosError

RESTART_S_MIN, RESTART_S_MAX = 0.3, 4.0
"""How long a role stays down, as its supervisor brings it back."""
SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
"""Memory, where there is some: a simulated disk needs no real one."""


class Violation(Exception):
    """A promise that did not hold in this history."""


@dataclass(slots=True)
class Trigger:
    """When a role dies: within its `count`-th job on disk or at its `count`-th message, as `when` says."""

    when: str
    count: int


JOB_MOMENTS = ("before a write", "within a write", "after a write")
SEND_MOMENT = "before a message"


@dataclass(eq=False, slots=True)
class Role:
    """One role over all its lives."""

    name: str
    run: Callable[[Life], Awaitable[None]]
    disk: Disk
    process: Process
    skew_ms: int = 0
    triggers: list[Trigger] = field(default_factory=list)
    jobs: int = 0
    sends: int = 0
    lives: int = 0
    is_wanted: bool = True


class World:
    """See the module; use as a context manager.

    Attributes:
        counts: what happened: faults, exits, branches.
        chain: the chain's present life.
        buyer: the gateway's present buyer.
        buyers: those of all its lives.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.town: Town = found_town()
        self.loop = SimulatedLoop(Random(self.random.random()), self.town.start_s)
        self.network = Network(self.loop, Random(self.random.random()))
        self.network.on_send = self._note_send
        self.counts: Counter[str] = Counter()
        self.roles: dict[str, Role] = {}
        self.chain: ChainService | None = None
        self.buyer: Buyer | None = None
        self.buyers: list[Buyer] = []
        self.keys: KeyStore | None = None
        self.api_key = ""
        self.key_id = ""
        self.sellers: dict[str, Seller] = {}
        self.shelf: dict[bytes, bytes] = {}
        self.terms = terms_of(self.town.descriptor)
        self.log: list[str] = []
        self.violation: BaseException | None = None
        self.on_job: Callable[[Role], None] | None = None
        self.on_step: Callable[[], None] | None = None
        self.on_gateway: Callable[[Buyer], None] | None = None
        self._root = Path(tempfile.mkdtemp(prefix="deaios-sim-", dir=SCRATCH))
        self._dead: list[Process] = []
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over = True
        # aiohttp remembers what it built for each route of an application, and with it all of a role's life.
        _cached_build_middleware.cache_clear()
        with warnings.catch_warnings():
            # What a dead process was about to start when it died is never awaited.
            warnings.simplefilter("ignore", RuntimeWarning)
            for process in [*self._dead, *(role.process for role in self.roles.values())]:
                process.is_alive = False
                self.loop.bury(process)
            self.loop.bury()
        self.loop.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def note(self, text: str) -> None:
        """A line of this history."""
        self.log.append(f"{self.loop.time():10.3f} {text}")

    def fail(self, error: BaseException) -> None:
        """End the history with what went wrong; the first such thing counts."""
        if self.violation is None and not self._is_over:
            self.violation = error
            self.note(f"VIOLATION {error!r}")

    # Roles

    def add(self, name: str, run: Callable[[Life], Awaitable[None]]) -> Role:
        """Put a role into the world and start it."""
        role = Role(name, run, Disk(self._root, name, self.random), Process(name))
        if name == CHAIN:
            (role.disk.folder / "chain.db").write_bytes(self.town.chain_file)
        self.roles[name] = role
        self._begin(role)
        return role

    def add_infrastructure(self) -> None:
        """Chain and storage."""
        self.add(CHAIN, lambda life: live_chain(life, self._meet_chain))
        self.add(SHELF, lambda life: live_shelf(life, self.shelf))

    def add_gateway(self) -> None:
        """The gateway with its buyer."""
        self.add(GATEWAY, lambda life: live_gateway(life, self._meet_gateway))

    def add_provider(self, name: str, *, with_defender: bool = False) -> None:
        """An honest provider."""

        def meet(seller: Seller, _member: Member) -> None:
            self.sellers[name] = seller

        self.add(name, lambda life: live_provider(life, on_start=meet, with_defender=with_defender))

    def _meet_chain(self, chain: ChainService) -> None:
        self.chain = chain

    def _meet_gateway(self, buyer: Buyer, keys: KeyStore, api_key: str) -> None:
        self.buyer, self.keys, self.api_key = buyer, keys, api_key
        self.buyers.append(buyer)
        record = keys.find(api_key)
        assert record is not None, "the gateway made this key"
        self.key_id = record.key_id
        if self.on_gateway is not None:
            self.on_gateway(buyer)

    def make_life(self, role: Role) -> Life:
        """What the role's present life is given."""
        process = role.process
        return Life(
            role.name,
            process,
            SimulatedClock(self.loop, process),
            SimulatedDice(Random(self.random.random())),
            self.network,
            self.town.descriptor,
            role.disk.folder,
        )

    def _begin(self, role: Role) -> None:
        if not role.is_wanted:
            return
        role.lives += 1
        role.process = Process(role.name, skew_ms=role.skew_ms, on_thread=self._note_job)
        _ = self.loop.run_in(role.process, self._live(role), role.name)

    async def _live(self, role: Role) -> None:
        """One life, to its end by a fault that a restart may mend, or by one that is a bug."""
        process = role.process
        try:
            await role.run(self.make_life(role))
            self.fail(Violation(f"{role.name} ended by itself"))
        except (DeaiosError, sqlite3.Error, ExceptionGroup) as error:
            bug = _find_bug(error)
            if bug is not None:
                self.fail(bug)
            self.counts[f"exit of {role.name.split('-')[0]}: {type(error).__name__}"] += 1
            self.note(f"{role.name} exits: {error!r}")
        except Exception as error:  # noqa: BLE001 # any other error is what this simulation looks for
            self.fail(error)
        if process is role.process and process.is_alive:
            self.kill(role.name, is_torn=False)

    def kill(self, name: str, *, is_torn: bool) -> None:
        """`kill -9`, and the next life a while later."""
        role = self.roles[name]
        if not role.process.is_alive:
            return
        self.note(f"{name} dies" + (" within a write" if is_torn else ""))
        host = self.network.hosts.get(name)
        if host is not None:
            host.application = None
        role.disk.survive(is_torn=is_torn)
        dead = role.process
        self._dead.append(dead)
        self.loop.kill(dead)
        self.loop.later(self.random.uniform(RESTART_S_MIN, RESTART_S_MAX), self._begin, role)

    # Faults

    def _note_job(self, process: Process, when: str) -> None:
        role = self.roles[process.name]
        if when == "before":
            role.jobs += 1
            if self._is_due(role, JOB_MOMENTS[0], role.jobs):
                self.kill(role.name, is_torn=False)
                return
            role.disk.begin_job(may_tear=bool(role.triggers))
            return
        role.disk.end_job()
        if self._is_due(role, JOB_MOMENTS[1], role.jobs):
            self.kill(role.name, is_torn=True)
        elif self._is_due(role, JOB_MOMENTS[2], role.jobs):
            self.kill(role.name, is_torn=False)
        if self.on_job is not None and process.is_alive:
            self.on_job(role)

    def _note_send(self, process: Process, _what: str) -> None:
        role = self.roles.get(process.name)
        if role is not None and role.process is process:
            role.sends += 1
            if self._is_due(role, SEND_MOMENT, role.sends):
                self.kill(role.name, is_torn=False)

    def _is_due(self, role: Role, when: str, count: int) -> bool:
        for trigger in role.triggers:
            if trigger.when == when and trigger.count <= count:
                role.triggers.remove(trigger)
                self.counts[f"crash {when}"] += 1
                return True
        return False

    def at(self, delay_s: float, fault: Callable[[], None]) -> None:
        """Let something happen after a while."""
        self.loop.later(delay_s, fault)

    def heal(self) -> None:
        """Good weather, whole networks, room on disks, true clocks, nobody dies any more."""
        self.note("healed")
        self.network.weather = Weather()
        for role in self.roles.values():
            self.network.join(role.name)
            role.triggers.clear()
            role.disk.is_full = False
            role.process.stall_s = 0.0

    # Running

    def run(self, story: Awaitable[None]) -> None:
        """Tell the story to its end.

        Raises:
            Violation: or whatever else went wrong first.
        """

        async def told() -> None:
            await story

        self.loop.after_step = self._look
        task = self.loop.create_task(told())
        contextvars.copy_context().run(self.loop.run_until_complete, task)
        self._look()

    def _look(self) -> None:
        if self.loop.faults:
            self.fail(self.loop.faults[0])
        if self.violation is not None:
            raise self.violation
        if self.on_step is not None:
            self.on_step()


def _find_bug(error: BaseException) -> BaseException | None:
    """The first error in a group that is no typed one of ours."""
    if isinstance(error, ExceptionGroup):
        return next((bug for item in error.exceptions if (bug := _find_bug(item)) is not None), None)
    return None if isinstance(error, DeaiosError | sqlite3.Error) else error


async def until(world: World, condition: Callable[[], Awaitable[bool]], limit_s: float, what: str) -> None:
    """Wait in virtual time until something holds.

    Raises:
        Violation: it does not within the limit.
    """
    deadline_s = world.loop.time() + limit_s
    while not await condition():
        if world.loop.time() > deadline_s:
            raise Violation(f"not within {limit_s} s after healing: {what}")
        await asyncio.sleep(1.0)
