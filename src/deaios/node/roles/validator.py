"""A validator of further networks: a stake on the root, a key for each network, and a door that signs what it sees."""

from deaios.ledger.descriptor import NetworkDescriptor
from deaios.ledger.service.validator import ValidatorDoor, build_validator_application
from deaios.ledger.store import PromiseStore
from deaios.ledger.valset import build_root_id
from deaios.node.context import RoleContext
from deaios.node.further import ROLE, domain_of, join_as_validator, open_network_keys, open_views, work_per_descriptor
from deaios.node.member import Member, open_member
from deaios.node.ports import keep_port
from deaios.primitives.errors import Refused
from deaios.primitives.keys import PrivateKey
from deaios.runtime.http import serve
from deaios.runtime.logs import get_logger


async def run(context: RoleContext) -> None:
    """Join every network of the descriptor, watch the chains, and sign until told to stop."""
    promises = PromiseStore(context.data / "promises.db")
    try:
        await work_per_descriptor(context, lambda descriptor: _work(context, descriptor, promises))
    finally:
        promises.close()


async def _work(context: RoleContext, descriptor: NetworkDescriptor, promises: PromiseStore) -> None:
    keys = open_network_keys(context.keystore, context.name, descriptor.networks)
    async with (
        open_member(descriptor, context.open_key()) as member,
        open_views(descriptor, keeps_messages=False) as views,
    ):
        for network in descriptor.networks:
            await _join(member, network.id, keys)
        door = ValidatorDoor(
            root=build_root_id(descriptor.chain_id),
            domain=domain_of(descriptor),
            keys=keys,
            epochs=views.epochs,
            outboxes=views.outboxes,
            promises=promises,
            clock=context.clock,
        )
        application = build_validator_application(door, promises)
        async with serve(application, context.host, keep_port(context.data, context.spec.port, context.host)) as url:
            await member.contracts.identities.ensure_registered(member.sender, url, ROLE)
            context.report_ready(url)
            await context.work_until_stopped(door.run())


async def _join(member: Member, network: bytes, keys: dict[bytes, PrivateKey]) -> None:
    try:
        await join_as_validator(member, network, keys[network])
    except Refused as error:
        # Whoever was slashed, or comes to a network that was given up, still answers for what it signed.
        get_logger("validator").warning("network not joined", network=network.hex(), error=str(error))
