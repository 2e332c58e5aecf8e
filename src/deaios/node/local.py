"""A network on one machine, and single roles in a joined folder: start, say what is ready, stop.

Restarting is idempotent: keys, ports, chain, rows and journals are in the folder, and every founding step looks first
whether it was done.
"""

import asyncio
import contextlib
import importlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from deaios.node.config import Config, load_config
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.keystore import Keystore, open_keystore
from deaios.node.status import Status, read_status
from deaios.node.supervisor import Supervisor, UnavailableRole
from deaios.primitives.errors import ConfigError, Unavailable
from deaios.runtime.clock import SystemClock
from deaios.runtime.logs import configure_logs

if TYPE_CHECKING:
    from deaios.node.foreign import ForeignChain, Wanted

CHEATER = "provider-cheat"
STOP_WAIT_S = 90.0
OFFICE_PORT = 8546
"""Preferred by the operator of a network on a foreign chain: a port that no outgoing connection is given by chance."""
ROLES_POLL_S = 1.0
"""Between looks for roles that a command added or took away."""
FURTHER_KINDS = ("further", "validator", "relayer")
"""Roles of further networks: `deaios network` adds and removes them, also while the network runs."""
Report = Callable[[str], None]


def plan_roles(config: Config, *, with_cheater: bool, is_abroad: bool = False) -> tuple[RoleSpec, ...]:
    """The roles of a network on one machine, in start order; abroad, on a foreign chain, none of them makes blocks."""
    wanted = config.network
    roles = [
        RoleSpec("operator", "operator", OFFICE_PORT) if is_abroad else RoleSpec("chain", "chain", config.chain.port)
    ]
    roles += [RoleSpec(f"storage-{n}", "storage") for n in range(1, wanted.storage_nodes + 1)]
    roles += [RoleSpec(f"da-{n}", "da") for n in range(1, wanted.da_nodes + 1)]
    roles += [RoleSpec(f"provider-{n}", "provider") for n in range(1, wanted.providers + 1)]
    if with_cheater:
        roles.append(RoleSpec(CHEATER, "provider", weights="q8_0"))
    roles += [RoleSpec(f"auditor-{n}", "auditor") for n in range(1, wanted.auditors + 1)]
    roles.append(RoleSpec("gateway", "gateway", config.gateway.port))
    return tuple(roles)


def choose_da_nodes(folder: StateFolder, config: Config, wanted: int | None) -> Config:
    """The configuration with as many members of data availability as are wanted, or as the folder has already."""
    kept = sum(role.kind == "da" for role in folder.load_roles())
    nodes = wanted or kept or config.network.da_nodes
    return msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, da_nodes=nodes))


class LocalNetwork:
    """All roles of one folder as supervised processes."""

    def __init__(self, folder: StateFolder, config: Config, report: Report, wanted: "Wanted | None" = None) -> None:
        """Plan a network.

        Args:
            folder: of the network.
            config: how many roles, where.
            report: told each step.
            wanted: the foreign chain to found it on, or a new URL of the one it is on.
        """
        self.folder = folder
        self.config = config
        self._wanted = wanted
        self.chain_url = ""
        self.gateway_url = ""
        self._report = report
        self._clock = SystemClock()
        self._stop = asyncio.Event()
        self._is_whole = False
        """Is this the folder's network, and not a single role of it?"""
        self.supervisor = Supervisor(folder, self._clock, limits=config.supervisor)

    @asynccontextmanager
    async def running(self, *, with_cheater: bool = False) -> AsyncIterator[None]:
        """Start everything; on leaving the block, stop everything.

        Raises:
            RefusedRunning: this folder's network runs already.
            UnavailableRole: a role did not become ready.
        """
        with self.folder.lock(), _stop_on_signals(self._stop):
            configure_logs("supervisor", self.folder.log("supervisor"), self.config.log_level)
            try:
                await self.unless_stopped(self._start(with_cheater=with_cheater))
                self._is_whole = True
                yield
            finally:
                await self.supervisor.stop()

    async def wait_until_stopped(self) -> None:
        """Return on SIGINT, SIGTERM or `deaios down`; a role that fails for good is reported, the others go on."""
        told: set[str] = set()
        # One task for the whole time: what it starts must not be cut short by news of another role.
        work: Coroutine[Any, Any, object] = self.follow_roles() if self._is_whole else self._stop.wait()
        following = asyncio.create_task(work)
        try:
            while not self._stop.is_set():
                await self._wait_for_news(following)
                self._report_failures(told)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _wait_for_news(self, following: "asyncio.Task[object]") -> None:
        tasks = [asyncio.create_task(self._stop.wait()), asyncio.create_task(self.supervisor.failure.wait())]
        try:
            await asyncio.wait([following, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _report_failures(self, told: set[str]) -> None:
        self.supervisor.failure.clear()
        for name in self.supervisor.failures.keys() - told:
            told.add(name)
            self._report(self._explain_failure(name))

    async def follow_roles(self) -> None:
        """Start and stop roles of further networks as the folder's list of roles says."""
        while True:
            try:
                await self._fit_roles()
            except (Unavailable, ConfigError) as error:
                self._report(f"roles of further networks are as they were: {error}")
            await self._clock.sleep(ROLES_POLL_S)

    async def _fit_roles(self) -> None:
        wanted = {role.name: role for role in self.folder.load_roles() if role.kind in FURTHER_KINDS}
        running = {name for name, kind in self.supervisor.kinds.items() if kind in FURTHER_KINDS}
        for name, role in wanted.items():
            if name not in running:
                self._report(f"starting {name}")
                await self.supervisor.start(role)
        gone = sorted(running - wanted.keys())
        if gone:
            self._report(f"stopping {', '.join(gone)}")
            await self.supervisor.stop(*gone)

    def _explain_failure(self, name: str) -> str:
        return f"{name} failed: {self.supervisor.failures[name]}; see {self.folder.log(name)}"

    async def status(self) -> Status:
        """What runs now."""
        return await read_status(self.folder)

    async def unless_stopped(
        self, work: Coroutine[Any, Any, object]
    ) -> None:  # Any: what a coroutine yields and is sent
        """Do work to its end.

        Raises:
            UnavailableRole: a role failed for good meanwhile.
            KeyboardInterrupt: someone asked to stop meanwhile.
        """
        tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(work),
            asyncio.create_task(self._stop.wait()),
            asyncio.create_task(self.supervisor.failure.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
            elif tasks[2].done():
                raise UnavailableRole(self._explain_failure(next(iter(self.supervisor.failures))))
            else:
                raise KeyboardInterrupt
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self, *, with_cheater: bool) -> None:
        keystore = open_keystore(self.folder)
        foreign = await self._find_foreign(keystore)
        roles = plan_roles(self.config, with_cheater=with_cheater, is_abroad=foreign is not None)
        further = tuple(role for role in self.folder.load_roles() if role.kind in FURTHER_KINDS)
        self.folder.save_roles((*roles, *further))
        kinds = ("storage", "da", "provider", "auditor")
        by_kind = {kind: [role for role in roles if role.kind == kind] for kind in kinds}
        self._report(f"starting the {roles[0].name} and the storage nodes")
        is_founded = self.folder.descriptor_path.exists()
        # A second of modules, loaded while the roles' nursery loads its own on another core.
        module = "deaios.node.ground" if is_founded else "deaios.node.founding"
        loading = asyncio.create_task(asyncio.to_thread(importlib.import_module, module))
        self.supervisor.expect(*roles)
        for role in (roles[0], *by_kind["storage"]):
            await self.supervisor.start(role)
        urls = await self.supervisor.wait_ready(roles[0].name, *(role.name for role in by_kind["storage"]))
        office_url, members = urls.pop(roles[0].name), by_kind["da"]
        self.chain_url = office_url if foreign is None else foreign.url
        await loading
        from deaios.node.ground import Ground, begin_first_epoch, validate_chain  # noqa: PLC0415 - loaded just above

        ground = Ground(self.chain_url, office_url, foreign, self.config.chain, self.config.sponsor.enabled)
        if is_founded:
            async with ground.open_rpc() as rpc:
                await validate_chain(self.folder, rpc)
        else:
            from deaios.node.founding import found_network  # noqa: PLC0415 - loaded just above

            await found_network(self.folder, keystore, ground, urls, len(members), self._report)
        self._report("starting data availability, providers, auditors and the gateway")
        rest = (*members, *by_kind["provider"], *by_kind["auditor"], roles[-1], *further)
        for role in rest:
            await self.supervisor.start(role)
        if members:
            await self.supervisor.wait_ready(*(role.name for role in members))
            await begin_first_epoch(self.folder, keystore, ground)
        urls = await self.supervisor.wait_ready(*(role.name for role in rest))
        self.gateway_url = urls["gateway"]

    async def _find_foreign(self, keystore: Keystore) -> "ForeignChain | None":
        """The chain, if it is not ours: looked at before anything is started, so that what is wrong is said first."""
        if self._wanted is None and not self.folder.chain_path.exists():
            return None
        from deaios.node.foreign import Wanted, choose_foreign, load_foreign  # noqa: PLC0415 - few networks need it

        known = load_foreign(self.folder)
        wanted = self._wanted or Wanted("" if known is None else known.url)
        self._report(f"looking at the chain behind {wanted.url}")
        found = await choose_foreign(self.folder, keystore, wanted, self.config.chain)
        self._report(
            f"chain {found.chain_id}: {found.block_s} s between blocks, settled after {found.confirmations} of them"
        )
        return found


class _stop_on_signals:  # noqa: N801 - used as a context manager
    """SIGINT and SIGTERM set an event while the block runs."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._event.set)

    def __exit__(self, *_error: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@dataclass(frozen=True, slots=True)
class SingleRole:
    """A role that runs in the foreground of a command."""

    url: str
    _network: LocalNetwork

    async def wait_until_stopped(self) -> None:
        """Return on Ctrl-C or `deaios down`."""
        await self._network.wait_until_stopped()


@asynccontextmanager
async def run_single_role(folder: StateFolder, spec: RoleSpec, report: Report) -> AsyncIterator[SingleRole]:
    """Run one role of a joined folder, supervised.

    Raises:
        ConfigError: the folder belongs to no network.
    """
    folder.load_descriptor()
    network = LocalNetwork(folder, load_config(folder.root), report)
    with folder.lock(spec.name), _stop_on_signals(network._stop):
        configure_logs("supervisor", folder.log("supervisor"), network.config.log_level)
        try:
            others = tuple(role for role in folder.load_roles() if role.name != spec.name)
            folder.save_roles((*others, spec))
            report(f"starting {spec.name}")
            await network.unless_stopped(_start_one(network, spec))
            yield SingleRole(network.gateway_url, network)
        finally:
            await network.supervisor.stop()


async def _start_one(network: LocalNetwork, spec: RoleSpec) -> None:
    await network.supervisor.start(spec)
    network.gateway_url = (await network.supervisor.wait_ready(spec.name))[spec.name]


async def stop_network(folder: StateFolder) -> bool:
    """Ask everything that runs in a folder to stop and wait until it has; False when nothing runs.

    Raises:
        UnavailableRole: something did not end within `STOP_WAIT_S`.
    """
    running = {name: pid for name, pid in folder.supervisors().items() if pid}
    for pid in running.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    clock = SystemClock()
    deadline = clock.monotonic_s() + STOP_WAIT_S
    while left := folder.supervisors().items() & running.items():
        if clock.monotonic_s() > deadline:
            name, pid = next(iter(left))
            raise UnavailableRole(f"{name} did not stop within {STOP_WAIT_S:.0f} s; end it with `kill -9 {pid}`")
        await clock.sleep(0.1)
    return bool(running)
