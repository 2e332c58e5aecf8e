"""The operator of a network on a foreign chain: it hands out Credit and keeps the roles of this folder in gas money.

Its key is the deployer's. Strangers who ask get Credit and bring gas money of their own, which nobody can print here.
One process sends for this key, and this is it.
"""

from dataclasses import replace

from deaios.ledger.client.fees import GWEI
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.descriptor import encode_descriptor, sign_descriptor
from deaios.node.context import RoleContext
from deaios.node.folder import StateFolder
from deaios.node.foreign import OPERATOR, load_foreign
from deaios.node.member import build_fees
from deaios.node.office import Office
from deaios.node.ports import keep_port
from deaios.node.purse import GasPurse
from deaios.primitives.errors import ConfigError
from deaios.primitives.keys import PrivateKey
from deaios.runtime.http import build_application, serve

BODY_BYTES_MAX = 4096


async def run(context: RoleContext) -> None:
    """Serve descriptor and faucet, and top up gas money, until told to stop."""
    chain, config = load_foreign(context.folder), context.config.chain
    if chain is None:
        raise ConfigError(f"{context.folder.root} has no network on a foreign chain; use `deaios up --chain URL`")
    key, fees = context.open_key(), build_fees(config)
    application = build_application(OPERATOR, body_bytes_max=BODY_BYTES_MAX, metrics=context.metrics)
    async with Rpc(chain.url, confirmations=chain.confirmations, first_block=chain.first_block) as rpc:
        sender = Sender(rpc, key, chain.chain_id, fees=fees)
        purse = GasPurse(
            context.folder, context.keystore, chain, sender, fees, config.gas_budget_gwei * GWEI, context.clock
        )
        Office(context, key, rpc, sender=sender, purse=purse).add_routes(application)
        try:
            async with serve(
                application, context.host, keep_port(context.data, context.spec.port, context.host)
            ) as url:
                _announce(context.folder, key, url)
                context.report_ready(url)
                await context.work_until_stopped(purse.run())
        finally:
            await sender.close()


def _announce(folder: StateFolder, key: PrivateKey, office_url: str) -> None:
    """Sign the descriptor anew where the counter has moved: somebody took its port while it was away."""
    if not folder.descriptor_path.exists():
        return
    descriptor = folder.load_descriptor()
    sponsor_url = None if descriptor.sponsor_url is None else f"{office_url}/sponsor"
    moved = replace(descriptor, faucet_url=f"{office_url}/faucet", sponsor_url=sponsor_url)
    if moved != descriptor:
        folder.save_descriptor(encode_descriptor(moved, sign_descriptor(key, moved)))
