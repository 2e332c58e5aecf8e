"""A storage node: verified rows on disk behind HTTP."""

import asyncio

from deaios.ledger.client.deployment import fetch_network_id
from deaios.ledger.client.rpc import Rpc
from deaios.node.context import RoleContext
from deaios.node.foreign import load_foreign
from deaios.node.member import build_fees, open_member
from deaios.node.ports import keep_port
from deaios.primitives.encoding import decode_hex
from deaios.primitives.errors import DeaiosError
from deaios.rows.store import RowStore
from deaios.runtime.http import serve
from deaios.runtime.logs import get_logger
from deaios.storage.service import build_storage_application

QUOTA_BYTES = 20 << 30
DESCRIPTOR_POLL_S = 1.0
CHAIN_WAIT_S = 60.0


async def run(context: RoleContext) -> None:
    """Serve rows; register on chain once the network has a descriptor."""
    network_id = await _find_network_id(context)
    store = RowStore(context.data / "rows", QUOTA_BYTES)
    try:
        application = build_storage_application(store, network_id=network_id, clock=context.clock)
        async with serve(application, context.host, keep_port(context.data, context.spec.port, context.host)) as url:
            context.report_ready(url)
            registration = asyncio.create_task(_register(context, url))
            await context.stopping.wait()
            registration.cancel()
            await asyncio.gather(registration, return_exceptions=True)
    finally:
        store.close()


async def _find_network_id(context: RoleContext) -> bytes:
    """The network's id: from the descriptor, or on a network that is being founded from its chain."""
    if context.folder.descriptor_path.exists():
        return context.folder.load_descriptor().network_id
    foreign = load_foreign(context.folder)
    if foreign is not None:
        return decode_hex(foreign.network_id, 32)
    deadline = context.clock.monotonic_s() + CHAIN_WAIT_S
    while True:
        chain = context.folder.load_run_state("chain")
        if chain is not None and chain.state == "running":
            async with Rpc(chain.url) as rpc:
                return await fetch_network_id(rpc)
        if context.clock.monotonic_s() > deadline:
            context.folder.load_descriptor()
        await context.clock.sleep(0.05)


async def _register(context: RoleContext, url: str) -> None:
    log = get_logger("storage")
    while True:
        try:
            if context.folder.descriptor_path.exists():
                async with open_member(
                    context.folder.load_descriptor(), context.open_key(), fees=build_fees(context.config.chain)
                ) as member:
                    await member.ensure_funded(0)
                    await member.contracts.identities.ensure_registered(member.sender, url, "storage")
                return
        except DeaiosError as error:
            log.warning("registration postponed", error=str(error))
        await context.clock.sleep(DESCRIPTOR_POLL_S)
