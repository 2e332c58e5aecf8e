"""What validators and relayers open over the networks of a descriptor, and how a key gets its place there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import msgspec

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.messages import OutboxView
from deaios.ledger.client.mirror import EpochView
from deaios.ledger.client.networks import Networks
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.client.widening import FurtherContracts, join_network, verify_further
from deaios.ledger.descriptor import FurtherNetwork, NetworkDescriptor
from deaios.ledger.eip712 import Domain
from deaios.ledger.further import Root
from deaios.ledger.structs import networks_domain
from deaios.ledger.suite import CONSENSUS
from deaios.ledger.valset import Epoch, build_root_id
from deaios.node.context import RoleContext
from deaios.node.keystore import Keystore
from deaios.node.member import Member
from deaios.primitives.encoding import encode_hex
from deaios.primitives.keys import PrivateKey
from deaios.runtime.client import HttpClient

ROOT_CONFIRMATIONS = 1
"""The embedded chain takes no block back."""
STAKE_FACTOR = 2
"""Times the least stake: a validator that was slashed once is still one."""
ROLE = "validator"
DESCRIPTOR_POLL_S = 1.0


class _Gift(msgspec.Struct):
    native: str
    credit: str


@dataclass(frozen=True, slots=True)
class Views:
    """Everything that is watched, by network."""

    epochs: EpochView
    outboxes: Mapping[bytes, OutboxView]
    registry: Networks


def root_of(descriptor: NetworkDescriptor) -> Root:
    """What further networks know of the root."""
    return Root(descriptor.chain_id, descriptor.contracts, descriptor.windows)


def domain_of(descriptor: NetworkDescriptor) -> Domain:
    """Domain of all that validators sign."""
    return networks_domain(descriptor.chain_id, descriptor.contracts.networks)


def network_key_name(validator: str, network: str) -> str:
    """Where a validator's key for one network lies: a key is never used for two."""
    return f"{validator}.{network}"


async def join_as_validator(member: Member, network: bytes, key: PrivateKey) -> None:
    """Stake for `consensus` and join a network with a key that is for it alone; safe to repeat."""
    stake = STAKE_FACTOR * member.descriptor.windows.consensus_stake_min
    await member.ensure_funded(stake)
    await member.ensure_staked(CONSENSUS, stake)
    await join_network(member.contracts, member.sender, member.descriptor.chain_id, network, key)


@asynccontextmanager
async def open_views(descriptor: NetworkDescriptor, *, keeps_messages: bool) -> AsyncIterator[Views]:
    """Watch the root and every further network through connections of their own."""
    async with AsyncExitStack() as stack:
        rpc = await stack.enter_async_context(Rpc(descriptor.rpc_urls[0]))
        contracts = Contracts(rpc, descriptor.contracts)
        root_id = build_root_id(descriptor.chain_id)
        outboxes = {root_id: OutboxView(contracts.outbox, root_id, ROOT_CONFIRMATIONS, keeps_messages=keeps_messages)}
        for network in descriptor.networks:
            further = await stack.enter_async_context(open_further(network))
            outboxes[network.id] = OutboxView(
                further.outbox, network.id, network.confirmations, keeps_messages=keeps_messages
            )
        yield Views(EpochView(contracts.networks, ROOT_CONFIRMATIONS), outboxes, contracts.networks)


@asynccontextmanager
async def open_further(network: FurtherNetwork) -> AsyncIterator[FurtherContracts]:
    """A further network's contracts through its first URL."""
    async with Rpc(network.rpc_urls[0]) as rpc:
        yield FurtherContracts(rpc, network.contracts)


@asynccontextmanager
async def open_sender(rpc: Rpc, key: PrivateKey, chain_id: int) -> AsyncIterator[Sender]:
    """A sender that ends with the block."""
    sender = Sender(rpc, key, chain_id)
    try:
        yield sender
    finally:
        await sender.close()


async def ensure_gas(http: HttpClient, network: FurtherNetwork, rpc: Rpc, key: PrivateKey) -> None:
    """Ask a network's faucet for native coin where a key has none there."""
    if network.faucet_url is not None and await rpc.get_balance(key.address) == 0:
        await http.post_json(network.faucet_url, {"address": encode_hex(key.address)}, _Gift)


async def work_per_descriptor(context: RoleContext, work: Callable[[NetworkDescriptor], Awaitable[None]]) -> None:
    """Run a role's work, anew each time the folder's descriptor changes, until the role shall stop."""
    while not context.stopping.is_set():
        data = await asyncio.to_thread(context.folder.descriptor_path.read_bytes)
        working = asyncio.ensure_future(work(context.folder.load_descriptor()))
        watching = asyncio.create_task(_wait_for_change(context, data))
        stopping = asyncio.create_task(context.stopping.wait())
        try:
            await asyncio.wait((working, watching, stopping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return
        finally:
            for task in (working, watching, stopping):
                task.cancel()
            await asyncio.gather(working, watching, stopping, return_exceptions=True)


async def _wait_for_change(context: RoleContext, data: bytes) -> None:
    while await asyncio.to_thread(context.folder.descriptor_path.read_bytes) == data:
        await context.clock.sleep(DESCRIPTOR_POLL_S)


def open_network_keys(
    keystore: Keystore, validator: str, networks: Sequence[FurtherNetwork]
) -> dict[bytes, PrivateKey]:
    """A validator's keys by network."""
    return {network.id: keystore.open_key(network_key_name(validator, network.name)) for network in networks}


async def fetch_epochs(registry: Networks, network: bytes) -> tuple[Epoch, ...]:
    """All epochs of a network that the root began, the newest last."""
    return tuple(begun.epoch for begun in await registry.fetch_epochs(network))


async def validate_further(descriptor: NetworkDescriptor, network: FurtherNetwork, registry: Networks) -> None:
    """Does a network of a descriptor hold the contracts that belong to this root?

    Raises:
        Invalid: it does not; says what is wrong.
        Unavailable: its chain does not answer.
    """
    async with open_further(network) as further:
        epochs = await fetch_epochs(registry, network.id)
        await verify_further(further.rpc, network.contracts, network.id, root_of(descriptor), epochs)
