"""A provider: runs the network's default model for whoever pays.

With other `weights` than `f16` it is a cheat: the same seller, the same claims, another model behind them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from deaios.alignment.defence.service import Defender
from deaios.alignment.recheck.service import EngineRecheck
from deaios.compute.engine import Engine
from deaios.compute.records import Thresholds
from deaios.compute.service import EngineService
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.structs import Level, Params
from deaios.ledger.suite import COMPUTE
from deaios.market.client import LedgerChain
from deaios.market.ports import Generate, Piece
from deaios.market.sealing.service import SealingKeys
from deaios.market.seller.service import Seller, SellerSettings
from deaios.market.seller.service.privacy import Privacy
from deaios.node.context import RoleContext
from deaios.node.engines import count_engines, open_checked_engine, open_configured_engine, serving_engine
from deaios.node.member import Member, RefusedUnfunded, build_fees, open_member
from deaios.node.models import ModelFiles, weaken_model
from deaios.node.network import BatchShelf, open_blobs, open_default_model, open_storage, terms_of
from deaios.node.ports import keep_port
from deaios.node.relaying import find_place, reached_at
from deaios.node.sponsoring import be_sponsored
from deaios.runtime.client import RefusedByPeer
from deaios.runtime.http import serve
from deaios.runtime.logs import get_logger


async def run(context: RoleContext) -> None:
    """Fetch the model, stake, register, sell until told to stop."""
    descriptor = context.folder.load_descriptor()
    async with open_member(descriptor, context.open_key(), fees=build_fees(context.config.chain)) as member:
        port = keep_port(context.data, context.spec.port, context.host)
        place = await find_place(member, context.host, port, context.spec.relay or context.config.provider.relay)
        log = get_logger("provider")
        files, has_joined = await asyncio.gather(
            open_default_model(member, context.folder, context.clock, log.info), _join_providers(member)
        )
        shelf = await open_storage(member, context.clock)
        tokenizer = files.open_tokenizer()
        async with _open_service(context, files) as (service, profile):
            settings = SellerSettings(
                url=place.url,
                model_record_id=descriptor.default_model_record_id,
                engine_profile=profile,
                vocabulary_size=service.engine.vocabulary_size,
                context_tokens=min(service.engine.context_tokens, files.record.context_tokens),
                input_price=context.config.provider.input_price,
                output_price=context.config.provider.output_price,
                streams_max=service.engine.sequences_max,
                level=Level.REPLAYABLE if profile in files.record.replay_profiles else Level.SEEDED,
                withdraw_delay_min=descriptor.windows.withdraw_delay_min_s,
                claim_interval_s=context.config.provider.claim_interval_s,
                batch_deadline_blocks=descriptor.windows.batch_blocks,
            )
            seller = Seller(
                member.key,
                terms_of(descriptor),
                settings,
                context.data / "seller.db",
                LedgerChain(member.contracts, member.sender),
                _generate_with(service, tokenizer, files.record.thresholds),
                BatchShelf(open_blobs(member, context.clock, context.dice), descriptor.windows).put_bytes,
                clock=context.clock,
                metrics=context.metrics,
                privacy=_open_privacy(context, member, settings),
            )
            desk = seller.desk
            context.metrics.gauge("seller_channels", "Channels that ever paid").set_function(lambda: len(desk.channels))
            context.metrics.gauge("seller_open_purchases", "Purchases without a receipt").set_function(
                lambda: desk.open_count
            )
            defender = Defender(
                contracts=member.contracts,
                sender=member.sender,
                domain=member.domain,
                model_record_id=descriptor.default_model_record_id,
                shelf=shelf,
                recheck=EngineRecheck(service, files.record, tokenizer),
                clock=context.clock,
            )
            async with (
                seller,
                serve(seller.application, context.host, port) as bound,
                reached_at(place, bound, context, member) as relay,
            ):
                if not has_joined:
                    await be_sponsored(member, COMPUTE, descriptor.windows.compute_stake_min, place.url)
                await member.contracts.identities.ensure_registered(member.sender, place.url, "provider")
                context.report_ready(place.url)
                work = [seller.watch(), defender.run()]
                await context.work_until_stopped(*work, *(() if relay is None else (relay.watch(),)))


def _open_privacy(context: RoleContext, member: Member, settings: SellerSettings) -> Privacy:
    """What is stated about prompts here: sealed on the way, kept for disputes, used for nothing else."""
    return Privacy(
        member.key,
        member.descriptor.network_id,
        SealingKeys(context.data / "sealing.json", context.clock, context.dice),
        context.clock,
        retains_ms=settings.retention_ms,
        trains=False,
    )


async def _join_providers(member: Member) -> bool:
    """Stand behind compute with money of one's own; False where a sponsor has to be asked, which looks at the door."""
    stake = member.descriptor.windows.compute_stake_min
    try:
        await member.ensure_funded(stake)
    except (RefusedUnfunded, RefusedByPeer):
        if member.descriptor.sponsor_url is None:
            raise
        return False
    await member.ensure_staked(COMPUTE, stake)
    return True


@contextlib.asynccontextmanager
async def _open_service(context: RoleContext, files: ModelFiles) -> AsyncIterator[tuple[EngineService, bytes]]:
    """The engine behind the offers, and the profile that the offers claim."""
    config = context.config.engine
    sharing = count_engines(context.folder)
    streams = config.sequences_max
    honest: Engine = await asyncio.to_thread(open_checked_engine, config, files, sequences_max=streams, sharing=sharing)
    engine, profile = honest, honest.profile.digest()
    if context.spec.weights != "f16":
        honest.close()
        path = context.data / f"{context.spec.weights}.gguf"
        await asyncio.to_thread(weaken_model, files.served, path, context.spec.weights)
        engine = await asyncio.to_thread(open_configured_engine, config, path, sequences_max=streams, sharing=sharing)
    async with serving_engine(engine) as service:
        yield service, profile


def _generate_with(service: EngineService, tokenizer: Tokenizer, thresholds: Thresholds) -> Generate:
    async def generate(
        prompt_ids: tuple[int, ...],
        params: Params,
        seed: bytes,
        logprobs: int | None,
        prefix: tuple[int, ...] = (),
    ) -> AsyncIterator[Piece]:
        stream = service.generate(
            prompt_ids, params, seed, tokenizer, logprobs, prefix_ids=prefix, thresholds=thresholds
        )
        async with contextlib.aclosing(stream):
            async for sampled in stream:
                yield Piece(sampled.token, sampled.finish, sampled.stop_index, sampled.logprobs)

    return generate
