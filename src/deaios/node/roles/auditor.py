"""An auditor: a buyer with an engine, a stake and a duty.

It buys with a key of its own that never staked nor registered, because the members of the audit service are public:
whoever bought with such a key would be served honestly and say nothing about how others are served.
"""

import asyncio

from aiohttp import web

from deaios.alignment.auditor.service import Auditor, AuditorSettings
from deaios.alignment.auditor.store import AuditorStore
from deaios.alignment.recheck.service import EngineRecheck
from deaios.ledger.suite import AUDIT
from deaios.market.buyer.client import Buyer
from deaios.node.context import RoleContext
from deaios.node.engines import count_engines, open_checked_engine, serving_engine
from deaios.node.member import Member, build_fees, open_member
from deaios.node.network import open_default_model, open_storage, open_trade
from deaios.node.ports import keep_port
from deaios.node.rechecks import Rechecks, describe_model
from deaios.node.shop import Shop
from deaios.primitives.encoding import encode_hex
from deaios.runtime.http import build_application, json_response, serve
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

STAKE_MULTIPLE = 2
"""Of the minimum, so that one penalty does not cost the seat."""


PURSE_CREDIT_MIN = 1
"""The faucet gives once; what it gave lies in channels later."""


async def run(context: RoleContext) -> None:
    """Fetch the model, stake, register, audit until told to stop."""
    descriptor = context.folder.load_descriptor()
    async with (
        open_member(descriptor, context.open_key(), fees=build_fees(context.config.chain)) as member,
        open_member(
            descriptor, context.keystore.open_key(f"{context.name}-purse"), fees=build_fees(context.config.chain)
        ) as purse,
    ):
        log = get_logger("auditor")
        files, _, _ = await asyncio.gather(
            open_default_model(member, context.folder, context.clock, log.info),
            _join_auditors(member),
            purse.ensure_funded(PURSE_CREDIT_MIN),
        )
        sharing = count_engines(context.folder)
        engine = await asyncio.to_thread(
            open_checked_engine, context.config.engine, files, sequences_max=1, sharing=sharing
        )
        tokenizer = files.open_tokenizer()
        store = AuditorStore(context.data / "auditor.db")
        try:
            async with (
                serving_engine(engine) as service,
                open_trade(purse, context.data, context.config.buyer, context.clock, context.dice) as trade,
            ):
                rechecks = Rechecks(
                    own_record_id=descriptor.default_model_record_id,
                    own=EngineRecheck(service, files.record, tokenizer),
                    member=member,
                    folder=context.folder,
                    directory=trade.directory,
                    config=context.config.engine,
                    clock=context.clock,
                    bytes_max=context.config.network.audit_model_bytes_max,
                    sharing=sharing,
                )
                auditor = Auditor(
                    contracts=member.contracts,
                    sender=member.sender,
                    domain=member.domain,
                    store=store,
                    shop=Shop(trade),
                    shelf=await open_storage(member, context.clock),
                    recheck=rechecks,
                    model=describe_model(descriptor.default_model_record_id, files, tokenizer),
                    clock=context.clock,
                    dice=context.dice,
                    metrics=context.metrics,
                    settings=AuditorSettings(float(context.config.network.audit_interval_s)),
                    further=rechecks,
                )
                try:
                    await _serve(context, member, auditor, store, trade.buyer)
                finally:
                    await rechecks.close()
        finally:
            store.close()


def build_auditor_application(store: AuditorStore, metrics: Metrics | None = None) -> web.Application:
    """The auditor's door: what it looked at so far."""

    async def audits(_request: web.Request) -> web.Response:
        rows = [
            {"provider": encode_hex(provider), "audits": count, "tokens": tokens, "violations": violations}
            for provider, count, tokens, violations in store.summary()
        ]
        return json_response(rows)

    application = build_application("auditor", body_bytes_max=1024, metrics=metrics)
    application.router.add_get("/audits", audits)
    return application


async def _serve(context: RoleContext, member: Member, auditor: Auditor, store: AuditorStore, buyer: Buyer) -> None:
    application = build_auditor_application(store, context.metrics)
    async with serve(application, context.host, keep_port(context.data, context.spec.port, context.host)) as url:
        await member.contracts.identities.ensure_registered(member.sender, url, "auditor")
        context.report_ready(url)
        await context.work_until_stopped(auditor.run(), buyer.watch())


async def _join_auditors(member: Member) -> None:
    stake = STAKE_MULTIPLE * member.descriptor.windows.audit_stake_min
    await member.ensure_funded(stake)
    await member.ensure_staked(AUDIT, stake)
