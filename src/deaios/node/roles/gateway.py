"""The gateway of a local network: the OpenAI door in front of a buyer with its own key and channels, and blobs."""

import asyncio

from aiohttp import web

from deaios.gateway.keys import KEYS_FILE, derive_pepper
from deaios.gateway.publishing import BlobNetwork
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.records import RecordStore
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.ledger.suite import COMPUTE
from deaios.market.buyer.client import Buyer
from deaios.node.context import RoleContext
from deaios.node.member import Member, build_fees, open_member
from deaios.node.network import open_blobs, open_default_model, open_trade
from deaios.node.ports import keep_port
from deaios.node.status import API_KEY_NAME
from deaios.node.stock import Stock
from deaios.primitives.keys import Address
from deaios.primitives.units import CREDIT
from deaios.runtime.http import METRICS_KEY, serve
from deaios.runtime.logs import get_logger
from deaios.runtime.relay.server import Relay

WORKING_CREDIT = 20 * CREDIT
OWNED_BY = "network"


async def run(context: RoleContext) -> None:
    """Fund the buyer, read the default model's tokenizer, serve it and what is offered beside until told to stop."""
    descriptor = context.folder.load_descriptor()
    key = context.open_key()
    async with open_member(descriptor, key, fees=build_fees(context.config.chain)) as member:
        log = get_logger("gateway")
        files, _ = await asyncio.gather(
            open_default_model(member, context.folder, context.clock, log.info), member.ensure_funded(WORKING_CREDIT)
        )
        block = await member.rpc.get_block(0)
        default = ServedModel.build(
            files.record,
            files.open_tokenizer(),
            files.open_template(),
            input_price=context.config.provider.input_price,
            output_price=context.config.provider.output_price,
            created_s=block.timestamp if block else 0,
            owned_by=OWNED_BY,
        )
        models = ServedModels((default,))
        keys = KeyStore.open(context.data / KEYS_FILE, derive_pepper(key))
        records = RecordStore.open(context.data / "records.db")
        try:
            _ensure_user_key(context, keys)
            async with open_trade(member, context.data, context.config.buyer, context.clock, context.dice) as trade:
                application = build_gateway_application(
                    network_id=descriptor.network_id,
                    buyer=trade.buyer,
                    models=models,
                    keys=keys,
                    clock=context.clock,
                    dice=context.dice,
                    blobs=BlobNetwork(
                        open_blobs(member, context.clock, context.dice),
                        member.contracts.availability,
                        descriptor.windows.da_term_max_s,
                    ),
                    records=records,
                )
                _count_purchases(application, trade.buyer)
                stock = Stock(member, context.folder, trade.directory, models, default, context.clock)
                if context.config.gateway.relay:
                    _add_relay(application, context, member)
                await _serve(context, member, application, trade.buyer, stock)
        finally:
            records.close()
            keys.close()


def _add_relay(application: web.Application, context: RoleContext, member: Member) -> None:
    """Let roles that nobody can dial be reached through this gateway."""

    async def is_member(address: Address) -> bool:
        return await member.contracts.staking.power(COMPUTE, address) > 0

    relay = Relay(member.descriptor.network_id, context.clock, is_member=is_member, metrics=application[METRICS_KEY])
    relay.add_routes(application)


def _count_purchases(application: web.Application, buyer: Buyer) -> None:
    metrics = application[METRICS_KEY]
    metrics.gauge("buyer_channels", "Channels with providers").set_function(lambda: len(buyer.accounts))
    metrics.gauge("buyer_open_purchases", "Purchases that have no receipt yet").set_function(
        lambda: sum(len(row.state.reservations) for row in buyer.accounts)
    )


async def _serve(
    context: RoleContext, member: Member, application: web.Application, buyer: Buyer, stock: Stock
) -> None:
    host = context.config.gateway.host
    async with serve(application, host, keep_port(context.data, context.spec.port, host)) as url:
        await member.contracts.identities.ensure_registered(member.sender, url, "gateway")
        context.report_ready(url)
        await context.work_until_stopped(buyer.watch(), stock.watch())


def _ensure_user_key(context: RoleContext, keys: KeyStore) -> None:
    """The folder's owner gets a key once; only its hash is in the store."""
    text = context.folder.load_secret_text(API_KEY_NAME)
    if text is None or keys.find(text) is None:
        text, _record = keys.create(context.dice, context.clock.now_ms(), name="owner of this folder")
        context.folder.save_secret_text(API_KEY_NAME, text)
