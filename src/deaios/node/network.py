"""What several roles open over a membership: storage, market terms, the served model."""

from deaios.ledger.descriptor import NetworkDescriptor
from deaios.market.terms import Terms
from deaios.node.folder import StateFolder
from deaios.node.member import Member
from deaios.node.models import ModelFiles, Report, ensure_model, fetch_record
from deaios.primitives.errors import ConfigError
from deaios.runtime.clock import Clock
from deaios.storage.client import StorageClient


def terms_of(descriptor: NetworkDescriptor) -> Terms:
    """The network as the market sees it."""
    return Terms(
        chain_id=descriptor.chain_id,
        network_id=descriptor.network_id,
        disputes=descriptor.contracts.disputes,
        channels=descriptor.contracts.channels,
        token=descriptor.token.address,
        token_name=descriptor.token.name,
        token_version=descriptor.token.version,
    )


async def open_storage(member: Member, clock: Clock) -> StorageClient:
    """Storage nodes of the network: those of the descriptor first, then those that registered.

    Raises:
        ConfigError: there are none.
    """
    urls = dict.fromkeys(member.descriptor.storage_urls)
    for agent in reversed(await member.contracts.identities.list_agents()):
        if await member.contracts.identities.get_role(agent.agent_id) == "storage":
            urls[agent.url] = None
    if not urls:
        raise ConfigError("this network has no storage nodes; start one with `deaios store`")
    return StorageClient(member.http, list(urls), member.key, member.descriptor.network_id, clock=clock)


async def open_default_model(member: Member, folder: StateFolder, clock: Clock, report: Report) -> ModelFiles:
    """The network's default model, fetched where it is missing."""
    record = await fetch_record(member.contracts, member.descriptor.default_model_record_id)
    return await ensure_model(folder, record, await open_storage(member, clock), report)
