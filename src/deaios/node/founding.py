"""Founding a network: contracts, model, descriptor.

Every step looks first whether it was done, so it can be cut anywhere and started again.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deaios.compute.engines.llama import LlamaEngine
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import (
    deploy_suite,
    deploy_suite_by_workshop,
    fetch_network_id,
    has_create2_proxy,
)
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.descriptor import NetworkDescriptor, Token, encode_descriptor, sign_descriptor
from deaios.ledger.settings import LOCAL, NetworkSettings
from deaios.ledger.suite import CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION, SuiteAddresses
from deaios.node.folder import StateFolder, model_cache
from deaios.node.foreign import ForeignChain, fit_windows
from deaios.node.ground import Ground
from deaios.node.keystore import Keystore
from deaios.node.member import build_fees
from deaios.node.model_package import fetch_default_model
from deaios.node.models import Report, build_default_record, prepare_default_model
from deaios.primitives.encoding import decode_hex
from deaios.primitives.units import CREDIT_DECIMALS
from deaios.runtime.client import HttpClient
from deaios.storage.client import StorageClient


async def found_network(
    folder: StateFolder,
    keystore: Keystore,
    ground: Ground,
    storage_urls: Mapping[str, str],
    da_members: int,
    report: Report,
) -> None:
    """Deploy the contracts, store and publish the default model, sign the descriptor.

    Args:
        folder: of the network; has no descriptor yet, for to have one is to be founded.
        keystore: the operator's key is in it.
        ground: the chain.
        storage_urls: of its storage nodes, by name.
        da_members: how many members share the seats of data availability evenly at first.
        report: told each step.
    """
    key = keystore.open_key(ground.operator)
    async with ground.open_rpc() as rpc, HttpClient() as http:
        network_id = await fetch_network_id(rpc)
        package = asyncio.create_task(asyncio.to_thread(_prepare_model, folder, report))
        chain_id = await rpc.chain_id()
        sender = Sender(rpc, key, chain_id, fees=build_fees(ground.config))
        try:
            report("deploying the contracts")
            windows = LOCAL if ground.foreign is None else fit_windows(ground.foreign)
            settings = replace(windows, da_seats_size=_count_seats(da_members))
            addresses = await _deploy(sender, rpc, settings, ground.foreign)
            source, served = await package
            report("storing the model as coded rows")
            storage = StorageClient(http, list(storage_urls.values()), key, network_id)
            manifest = await storage.put_file(source)
            profile = await asyncio.to_thread(_read_replay_profile, served)
            record = await asyncio.to_thread(build_default_record, source, served, manifest, (profile,))
            outcome = await Contracts(rpc, addresses).catalogue.publish(sender, record)
        finally:
            package.cancel()
            await asyncio.gather(package, return_exceptions=True)
            await sender.close()
        descriptor = NetworkDescriptor(
            network_id=network_id,
            chain_id=chain_id,
            rpc_urls=(ground.url,),
            operator=key.address,
            contracts=addresses,
            token=Token(addresses.credit, CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION, CREDIT_DECIMALS),
            windows=settings,
            default_model_record_id=outcome.value,
            faucet_url=f"{ground.office_url}/faucet",
            sponsor_url=f"{ground.office_url}/sponsor" if ground.has_sponsor else None,
            storage_urls=tuple(storage_urls.values()),
            confirmations=rpc.confirmations,
            first_block=rpc.first_block,
        )
        folder.save_descriptor(encode_descriptor(descriptor, sign_descriptor(key, descriptor)))


async def _deploy(sender: Sender, rpc: Rpc, settings: NetworkSettings, foreign: ForeignChain | None) -> SuiteAddresses:
    if foreign is None:
        return await deploy_suite(sender, rpc, settings)
    if await has_create2_proxy(rpc):
        return await deploy_suite_by_workshop(sender, rpc, settings, decode_hex(foreign.salt, 32))
    return await deploy_suite(sender, rpc, settings, first_nonce=foreign.first_nonce)


def _count_seats(members: int) -> int:
    """As many for each of some members of equal stake, and enough for a code that survives the loss of a third."""
    return members * -(-LOCAL.da_seats_size // members) if members else LOCAL.da_seats_size


def _read_replay_profile(served: Path) -> bytes:
    engine = LlamaEngine(served)
    try:
        return engine.profile.digest()
    finally:
        engine.close()


def _prepare_model(folder: StateFolder, report: Report) -> tuple[Path, Path]:
    said: set[str] = set()

    def progress(text: str, _done: int, _total: int) -> None:
        if text not in said:
            said.add(text)
            report(text)

    return prepare_default_model(folder, fetch_default_model(model_cache(), progress))
