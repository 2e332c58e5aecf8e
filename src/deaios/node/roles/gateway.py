"""The gateway of a local network: the OpenAI door in front of a buyer with its own key and channels, and blobs.

Requests with a key are the folder owner's; requests without one pay for themselves by x402 to the same key's address.
"""

import asyncio
from functools import partial

from aiohttp import web

from deaios.gateway.keys import KEYS_FILE, derive_pepper
from deaios.gateway.publishing import BlobNetwork
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.records import RecordStore
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.gateway.x402 import Payments
from deaios.gateway.x402_chain import SettlementChain
from deaios.gateway.x402_store import PaymentStore
from deaios.gateway.x402_terms import TillTerms
from deaios.ledger.suite import COMPUTE
from deaios.market.buyer.client import Buyer
from deaios.market.slashing.client import Slasher
from deaios.node.context import RoleContext
from deaios.node.member import Member, build_fees, open_member
from deaios.node.network import Trade, open_blobs, open_default_model, open_trade
from deaios.node.ports import keep_port
from deaios.node.status import API_KEY_NAME
from deaios.node.stock import Stock
from deaios.primitives.keys import Address
from deaios.primitives.units import CREDIT
from deaios.runtime.garbage import spare_collector
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
        block, prices = await member.rpc.get_block(0), context.config.provider
        default = ServedModel.build(
            files.record,
            files.open_tokenizer(),
            files.open_template(),
            input_price=max(prices.input_price, prices.input_price_max),
            output_price=max(prices.output_price, prices.output_price_max),
            created_s=block.timestamp if block else 0,
            owned_by=OWNED_BY,
        )
        models = ServedModels((default,))
        keys = KeyStore.open(context.data / KEYS_FILE, derive_pepper(key))
        records = RecordStore.open(context.data / "records.db")
        paid = PaymentStore.open(context.data / "x402.db")
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
                    payments=await _open_payments(context, member, paid),
                )
                _count_purchases(application, trade.buyer)
                _count_slashing(application, trade.slasher)
                stock = Stock(member, context.folder, trade.directory, models, default, context.clock)
                if context.config.gateway.relay:
                    _add_relay(application, context, member)
                await _serve(context, member, application, trade, stock)
        finally:
            paid.close()
            records.close()
            keys.close()


async def _open_payments(context: RoleContext, member: Member, store: PaymentStore) -> Payments:
    """How requests without a key pay: to the gateway's own address, in the network's token."""
    token, config = member.descriptor.token, context.config.gateway
    terms = TillTerms(
        chain_id=member.descriptor.chain_id,
        receiver=member.address,
        token=token.address,
        token_name=token.name,
        token_version=token.version,
        markup_bps=config.markup_bps,
    )
    chain = SettlementChain(member.rpc, member.sender, member.key, token.address, terms.money)
    return Payments(terms, store, chain, has_channels=await chain.is_there(), claim_s=max(1, config.claim_interval_s))


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


def _count_slashing(application: web.Application, slasher: Slasher) -> None:
    metrics, counts = application[METRICS_KEY], slasher.counts
    for name, text in (
        ("proven", "Offences of providers proven on chain since the start"),
        ("challenged", "Claims that no receipt or open purchase explains, challenged since the start"),
        ("finalized", "Challenges that nobody answered, ended since the start"),
        ("refused", "Proofs and challenges that the contract refused since the start"),
        ("batches_unread", "Batches that could not be compared with receipts since the start"),
    ):
        metrics.gauge(f"slasher_{name}", text).set_function(partial(getattr, counts, name))


async def _serve(
    context: RoleContext, member: Member, application: web.Application, trade: Trade, stock: Stock
) -> None:
    host = context.config.gateway.host
    async with serve(application, host, keep_port(context.data, context.spec.port, host)) as url:
        await member.contracts.identities.ensure_registered(member.sender, url, "gateway")
        spare_collector()
        context.report_ready(url)
        await context.work_until_stopped(trade.buyer.watch(), stock.watch(), trade.slasher.run())


def _ensure_user_key(context: RoleContext, keys: KeyStore) -> None:
    """The folder's owner gets a key once; only its hash is in the store."""
    text = context.folder.load_secret_text(API_KEY_NAME)
    if text is None or keys.find(text) is None:
        text, _record = keys.create(context.dice, context.clock.now_ms(), name="owner of this folder")
        context.folder.save_secret_text(API_KEY_NAME, text)
