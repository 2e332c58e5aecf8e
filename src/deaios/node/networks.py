"""Adding further networks to one that runs in this folder, listing them, and giving them up.

Every step of adding looks first whether it was done, so that it can be cut anywhere and repeated. What is known of a
network is on the root, in the signed descriptor, and in the folder's list of roles.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace

import msgspec

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import fetch_network_id
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.client.widening import (
    Entry,
    deploy_further,
    ensure_first_epoch,
    enter_network,
)
from deaios.ledger.descriptor import (
    NETWORK_NAME,
    NETWORKS_MAX,
    SERVICES,
    FurtherNetwork,
    NetworkDescriptor,
    encode_descriptor,
    sign_descriptor,
)
from deaios.node.folder import NETWORK, RoleSpec, StateFolder
from deaios.node.further import (
    fetch_epochs,
    join_as_validator,
    network_key_name,
    open_further,
    open_sender,
    root_of,
)
from deaios.node.ground import OPERATOR
from deaios.node.keystore import Keystore
from deaios.node.member import Member, open_member
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Invalid, Refused, Unavailable
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import format_credit
from deaios.runtime.clock import Clock

VALIDATORS = 3
"""On this machine: all three must sign, so that more than two thirds do."""
RELAYER = "relayer-1"
READY_S = 120.0
POLL_S = 0.1
GAS_SHARE = 10
"""A part of the deployer's native coin goes to the relayer where the network has no faucet."""

Report = Callable[[str], None]


class UnavailableFurther(Unavailable):
    """A further network's chain did not come up."""


class RefusedAbandoning(Refused):
    """Credit is still on a network that was to be given up."""


class NetworkStatus(msgspec.Struct, frozen=True):
    """What `deaios network list` tells; None where the network does not answer."""

    name: str
    id: str
    chain_id: int
    url: str
    services: list[str]
    confirmations: int
    validators: int
    root_epoch: int
    mirror_epoch: int | None
    trusted: bool | None
    outstanding: int
    supply: int | None
    height: int | None
    retired: bool


def chain_role(name: str) -> RoleSpec:
    """The chain of a further network on this machine."""
    return RoleSpec(f"chain-{name}", "further")


def shared_roles() -> tuple[RoleSpec, ...]:
    """Roles that serve all further networks."""
    validators = (RoleSpec(f"validator-{number}", "validator") for number in range(1, VALIDATORS + 1))
    return (*validators, RoleSpec(RELAYER, "relayer"))


class Founder:
    """The operator of the folder's network at work on its further networks."""

    def __init__(self, folder: StateFolder, keystore: Keystore, clock: Clock, report: Report) -> None:
        """A founder.

        Raises:
            ConfigError: the folder belongs to no network, or to somebody else's.
        """
        self._folder = folder
        self._keystore = keystore
        self._clock = clock
        self._report = report
        descriptor = folder.load_descriptor()
        if OPERATOR not in keystore.names() or keystore.open_key(OPERATOR).address != descriptor.operator:
            raise ConfigError(f"{folder.root} does not hold the operator's key; only the founder adds networks")

    async def add(
        self, name: str, *, chain_url: str | None, services: tuple[str, ...], confirmations: int
    ) -> FurtherNetwork:
        """Add a network, or go on where adding it stopped.

        Args:
            name: for people; also names its key, and its chain's data on this machine.
            chain_url: a chain that runs elsewhere; None starts one here.
            services: what is to be bound to it.
            confirmations: blocks that must hold something before validators believe it.

        Raises:
            ConfigError: a name, service or chain that cannot be.
            Unavailable: a chain does not answer; repeat the command.
        """
        descriptor = self._folder.load_descriptor()
        known = descriptor.get_network(name)
        if known is not None:
            self._report(f"{name} is a network of this folder already")
            await self._start_roles(known)
            return known
        self._validate(descriptor, name, services)
        if chain_url is None:
            url = await self._start_chain(name)
        else:
            url = chain_url.rstrip("/")
        async with AsyncExitStack() as stack:
            rpc = await stack.enter_async_context(Rpc(url))
            operator = await stack.enter_async_context(self._open(descriptor, OPERATOR))
            deployer = self._keystore.open_key(f"chain-{name}")
            chain_id = await rpc.chain_id()
            sender = await stack.enter_async_context(open_sender(rpc, deployer, chain_id))
            entry = Entry(
                descriptor.operator,
                await fetch_network_id(rpc),
                chain_id,
                deployer.address,
                tuple(keccak256(service.encode()) for service in services),
            )
            self._report("entering the network on the root")
            await enter_network(operator.contracts, operator.sender, entry)
            self._report("joining it with this machine's validators")
            await asyncio.gather(*(self._join(descriptor, role.name, name, entry.id) for role in shared_roles()[:-1]))
            await ensure_first_epoch(operator.contracts, operator.sender, entry.id)
            self._report("deploying its contracts")
            epochs = await fetch_epochs(operator.contracts.networks, entry.id)
            contracts = await deploy_further(sender, rpc, entry.id, root_of(descriptor), epochs)
            network = FurtherNetwork(
                name=name,
                id=entry.id,
                chain_id=chain_id,
                rpc_urls=(url,),
                contracts=contracts,
                services=services,
                confirmations=confirmations,
                faucet_url=f"{url}/faucet" if chain_url is None else None,
            )
            if chain_url is not None:
                await self._give_gas(rpc, sender)
        self._save(replace(descriptor, networks=(*descriptor.networks, network)))
        await self._start_roles(network)
        return network

    async def remove(self, name: str, *, abandon: bool) -> None:
        """Give a network up: no more epochs on the root, and its roles here end.

        Raises:
            ConfigError: there is no such network.
            RefusedAbandoning: Credit is still on it, and would stay there.
        """
        descriptor = self._folder.load_descriptor()
        network = self._require(descriptor, name)
        async with self._open(descriptor, OPERATOR) as operator:
            outstanding = await operator.contracts.bridge.outstanding(network.id)
            if outstanding and not abandon:
                raise RefusedAbandoning(
                    f"{format_credit(outstanding)} credit went to {name} and has not come back; bring it home with "
                    f"`deaios network send`, or say --abandon"
                )
            record = await operator.contracts.networks.network_of(network.id)
            if record is not None and not record.retired_at:
                await operator.contracts.networks.retire(operator.sender, network.id)
        left = tuple(item for item in descriptor.networks if item.name != name)
        self._save(replace(descriptor, networks=left))
        ending = {chain_role(name).name, *(() if left else (role.name for role in shared_roles()))}
        self._folder.save_roles(tuple(role for role in self._folder.load_roles() if role.name not in ending))

    async def reclaim(self) -> int:
        """Take back the bonds of networks that were given up long enough ago; how much it was."""
        descriptor = self._folder.load_descriptor()
        taken = 0
        async with self._open(descriptor, OPERATOR) as operator:
            registry = operator.contracts.networks
            for network in await registry.network_ids():
                record = await registry.network_of(network)
                if record is None or record.founder != descriptor.operator or not record.retired_at or not record.bond:
                    continue
                try:
                    await registry.reclaim(operator.sender, network)
                except Refused as error:
                    self._report(f"{encode_hex(network)}: {error}")
                else:
                    taken += record.bond
        return taken

    def _validate(self, descriptor: NetworkDescriptor, name: str, services: tuple[str, ...]) -> None:
        if not NETWORK_NAME.fullmatch(name):
            raise ConfigError(f"network name {name!r} is not {NETWORK_NAME.pattern}")
        if len(descriptor.networks) >= NETWORKS_MAX:
            raise ConfigError(f"this network has {NETWORKS_MAX} further networks, which is as many as there can be")
        for service in services:
            holder = next((item.name for item in descriptor.networks if service in item.services), None)
            if service not in SERVICES:
                raise ConfigError(f"service {service!r} is not one of {', '.join(SERVICES)}")
            if holder is not None:
                raise ConfigError(f"service {service} is bound to network {holder} already")

    def _require(self, descriptor: NetworkDescriptor, name: str) -> FurtherNetwork:
        network = descriptor.get_network(name)
        if network is None:
            known = ", ".join(item.name for item in descriptor.networks) or "none"
            raise ConfigError(f"no further network {name}; there are: {known}")
        return network

    def _open(self, descriptor: NetworkDescriptor, key_name: str) -> AbstractAsyncContextManager[Member]:
        return open_member(descriptor, self._keystore.open_key(key_name))

    async def _join(self, descriptor: NetworkDescriptor, validator: str, name: str, network: bytes) -> None:
        key = self._keystore.open_key(network_key_name(validator, name))
        async with self._open(descriptor, validator) as member:
            await join_as_validator(member, network, key)

    async def _give_gas(self, rpc: Rpc, sender: Sender) -> None:
        relayer = self._keystore.open_key(RELAYER).address
        if await rpc.get_balance(relayer) == 0:
            await sender.send(relayer, value=await rpc.get_balance(sender.address) // GAS_SHARE)

    def _save(self, descriptor: NetworkDescriptor) -> None:
        signature = sign_descriptor(self._keystore.open_key(OPERATOR), descriptor)
        self._folder.save_descriptor(encode_descriptor(descriptor, signature))

    # Roles

    async def _start_chain(self, name: str) -> str:
        self._report(f"starting the chain of {name}")
        self._add_roles(chain_role(name))
        return await self._wait_ready(chain_role(name).name)

    async def _start_roles(self, network: FurtherNetwork) -> None:
        self._add_roles(*shared_roles())
        if NETWORK not in self._folder.supervisors():
            self._report("this folder's network does not run; its validators and relayer start with `deaios up`")
            return
        self._report(f"starting the validators and the relayer of {network.name}")
        await asyncio.gather(*(self._wait_ready(role.name) for role in shared_roles()))

    def _add_roles(self, *roles: RoleSpec) -> None:
        known = self._folder.load_roles()
        names = {role.name for role in known}
        missing = tuple(role for role in roles if role.name not in names)
        if missing:
            self._folder.save_roles((*known, *missing))

    async def _wait_ready(self, name: str) -> str:
        if NETWORK not in self._folder.supervisors():
            raise ConfigError(f"no network runs in {self._folder.root}; start it with `deaios up`, then repeat this")
        deadline = self._clock.monotonic_s() + READY_S
        while True:
            state = self._folder.load_run_state(name)
            if state is not None and state.state == "running" and state.is_alive:
                return state.url
            if state is not None and state.state == "failed":
                raise UnavailableFurther(f"{name} failed: {state.reason}; see {self._folder.log(name)}")
            if self._clock.monotonic_s() > deadline:
                raise UnavailableFurther(f"{name} was not ready within {READY_S:.0f} s; see {self._folder.log(name)}")
            await self._clock.sleep(POLL_S)


async def list_networks(descriptor: NetworkDescriptor) -> list[NetworkStatus]:
    """What the root and the networks themselves say now."""
    async with Rpc(descriptor.rpc_urls[0]) as rpc:
        contracts = Contracts(rpc, descriptor.contracts)
        return list(await asyncio.gather(*(_fetch_status(contracts, item) for item in descriptor.networks)))


async def _fetch_status(contracts: Contracts, network: FurtherNetwork) -> NetworkStatus:
    registry = contracts.networks
    record, epoch = await registry.network_of(network.id), await registry.epoch_of(network.id)
    told = _Told()
    try:
        async with open_further(network) as further:
            told.height = await further.rpc.block_number()
            told.mirror_epoch = (await further.mirror.epoch_of(network.id)).number
            told.trusted = await further.mirror.is_trusted()
            told.supply = await further.credit.total_supply()
    except (Unavailable, Invalid, Refused):
        told = _Told()
    return NetworkStatus(
        name=network.name,
        id=encode_hex(network.id),
        chain_id=network.chain_id,
        url=network.rpc_urls[0],
        services=list(network.services),
        confirmations=network.confirmations,
        validators=len(await registry.validators_of(network.id)),
        root_epoch=epoch.number,
        mirror_epoch=told.mirror_epoch,
        trusted=told.trusted,
        outstanding=await contracts.bridge.outstanding(network.id),
        supply=told.supply,
        height=told.height,
        retired=record is None or record.retired_at > 0,
    )


class _Told(msgspec.Struct):
    height: int | None = None
    mirror_epoch: int | None = None
    trusted: bool | None = None
    supply: int | None = None
