"""What several roles open over a membership: storage, market terms, the served model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deaios.coding.workers import ALONE, Workers
from deaios.da.blob import BlobId
from deaios.da.client.blobs import BlobClient
from deaios.ledger.descriptor import NetworkDescriptor
from deaios.ledger.settings import NetworkSettings
from deaios.market.buyer.client.buyer import Buyer
from deaios.market.buyer.client.settings import BuyerSettings
from deaios.market.client import LedgerChain
from deaios.market.directory.client import Directory
from deaios.market.slashing.client import Slasher
from deaios.market.terms import Terms
from deaios.node.config import BuyerConfig
from deaios.node.folder import StateFolder
from deaios.node.member import Member
from deaios.node.models import ModelFiles, Report, ensure_model, fetch_record
from deaios.primitives.errors import ConfigError
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.storage.client import StorageClient

BATCH_TERMS = 2
"""Receipt batches are kept this many times as long as openings: who looks late still finds them."""


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


async def open_storage(member: Member, clock: Clock, workers: Workers = ALONE) -> StorageClient:
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
    return StorageClient(
        member.http, list(urls), member.key, member.descriptor.network_id, clock=clock, workers=workers
    )


async def open_model(member: Member, folder: StateFolder, record_id: bytes, clock: Clock, report: Report) -> ModelFiles:
    """A model by its record, fetched where it is missing."""
    record = await fetch_record(member.contracts, record_id)
    return await ensure_model(folder, record, await open_storage(member, clock), report)


async def open_default_model(member: Member, folder: StateFolder, clock: Clock, report: Report) -> ModelFiles:
    """The network's default model."""
    return await open_model(member, folder, member.descriptor.default_model_record_id, clock, report)


def open_blobs(member: Member, clock: Clock, dice: Dice, workers: Workers = ALONE) -> BlobClient:
    """The network's data availability, paid by the member's key."""
    descriptor = member.descriptor
    return BlobClient(
        member.contracts,
        member.http,
        descriptor.network_id,
        descriptor.chain_id,
        key=member.key,
        sender=member.sender,
        clock=clock,
        dice=dice,
        workers=workers,
    )


class BatchShelf:
    """Receipt batches as blobs: who sells puts them, anyone gets them by what the chain names."""

    def __init__(self, blobs: BlobClient, windows: NetworkSettings) -> None:
        self._blobs = blobs
        self._term_s = min(windows.da_term_max_s, BATCH_TERMS * windows.opening_retention_s)

    async def put_bytes(self, data: bytes) -> bytes:
        """Make a batch available; gives its blob's commitment."""
        return (await self._blobs.put_bytes(data, self._term_s)).commitment

    async def get_bytes(self, commitment: bytes, bytes_max: int) -> bytes:
        """A batch by its blob's commitment."""
        return await self._blobs.get_bytes(BlobId(commitment), bytes_max)


@dataclass(frozen=True, slots=True)
class Trade:
    """Buying on a network: who sells, who buys, and who proves what sellers sign against each other."""

    buyer: Buyer
    directory: Directory
    slasher: Slasher


@asynccontextmanager
async def open_trade(
    member: Member, data: Path, patience: BuyerConfig, clock: Clock, dice: Dice
) -> AsyncIterator[Trade]:
    """Buy with the member's key; the journal of its channels lives in `data`."""
    windows, terms = member.descriptor.windows, terms_of(member.descriptor)
    settings = BuyerSettings(
        window=windows.voucher_window,
        fee_max=windows.voucher_window,
        deposit=windows.channel_deposit,
        withdraw_delay=windows.withdraw_delay_min_s,
        request_blocks=windows.request_blocks,
        first_token_s=patience.first_token_s,
        idle_s=patience.silence_s,
    )
    directory = Directory(member.contracts, terms, member.http, clock)
    chain = LedgerChain(member.contracts, member.sender)
    get_bytes = BatchShelf(open_blobs(member, clock, dice), windows).get_bytes
    buyer = Buyer(
        member.key,
        terms,
        settings,
        data / "buyer.db",
        chain,
        directory,
        member.http,
        get_bytes=get_bytes,
        clock=clock,
        dice=dice,
    )
    try:
        async with buyer:
            slasher = Slasher(
                buyer, terms, member.contracts, member.sender, chain, get_bytes, windows.claim_bond, clock
            )
            yield Trade(buyer, directory, slasher)
    finally:
        await directory.close()
