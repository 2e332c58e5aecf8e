"""A provider: runs one model of the catalogue for whoever pays, or sells what a server of its operator runs.

With other `weights` than `f16` it is a cheat: the same seller, the same claims, another model behind them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

from deaios.alignment.defence.service import Defender
from deaios.alignment.ports import Recheck
from deaios.alignment.recheck.service import EngineRecheck
from deaios.compute.embedding import encode_vector, is_embedding
from deaios.compute.engine import Engine, HiddenEngine
from deaios.compute.masks.service import MaskService
from deaios.compute.records import ModelRecord, Thresholds
from deaios.compute.service import EngineService, Load
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.structs import FinishReason, Level
from deaios.ledger.suite import COMPUTE
from deaios.market.client import LedgerChain
from deaios.market.ports import Assignment, Generate, Piece
from deaios.market.pricing import PriceRange
from deaios.market.sealing.service import SealingKeys
from deaios.market.seller.service import Seller, SellerSettings
from deaios.market.seller.service.privacy import Privacy
from deaios.node.config import ProviderConfig
from deaios.node.context import RoleContext
from deaios.node.engines import count_engines, open_checked_engine, open_configured_engine, serving_engine
from deaios.node.folder import RoleSpec
from deaios.node.member import Member, RefusedUnfunded, build_fees, open_member
from deaios.node.models import ModelFiles, ensure_language, ensure_model, fetch_record, weaken_model
from deaios.node.network import BatchShelf, open_blobs, open_storage, terms_of
from deaios.node.ports import keep_port
from deaios.node.relaying import find_place, reached_at
from deaios.node.sponsoring import be_sponsored
from deaios.node.upstream import FetchFiles, sell, serving_upstream
from deaios.runtime.client import RefusedByPeer
from deaios.runtime.garbage import spare_collector
from deaios.runtime.http import serve
from deaios.runtime.logs import get_logger

UPSTREAM_STREAMS = 8
"""Answers asked of an operator's server at once, unless the configuration says how many it takes."""


async def run(context: RoleContext) -> None:
    """Fetch the model, stake, register, sell until told to stop."""
    descriptor = context.folder.load_descriptor()
    async with open_member(descriptor, context.open_key(), fees=build_fees(context.config.chain)) as member:
        port = keep_port(context.data, context.spec.port, context.host)
        place = await find_place(member, context.host, port, context.spec.relay or context.config.provider.relay)
        log = get_logger("provider")
        record_id = context.spec.record_id(descriptor.default_model_record_id)
        shelf = await open_storage(member, context.clock)
        record = await fetch_record(member.contracts, record_id)
        fetch_files = partial(ensure_model, context.folder, record, shelf, log.info)
        if context.spec.upstream is None:
            # the weights of an engine of ours are on their way while the stake is
            _, has_joined = await asyncio.gather(fetch_files(), _join_providers(member))
        else:
            has_joined = await _join_providers(member)
        tokenizer, _ = await ensure_language(context.folder, record, shelf, log.info)
        async with _open_kitchen(context, record, tokenizer, fetch_files) as kitchen:
            settings = SellerSettings(
                url=place.url,
                model_record_id=record_id,
                engine_profile=kitchen.profile,
                vocabulary_size=tokenizer.vocabulary_size,
                context_tokens=min(kitchen.context_tokens, record.context_tokens),
                input_price=_choose(context.spec.input_price, context.config.provider.input_price),
                output_price=_choose(context.spec.output_price, context.config.provider.output_price),
                moving=_read_range(context.spec, context.config.provider),
                streams_max=kitchen.streams_max,
                level=kitchen.level,
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
                kitchen.generate,
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
                model_record_id=record_id,
                shelf=shelf,
                recheck=kitchen.recheck,
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
                spare_collector()
                context.report_ready(place.url)
                work = [seller.watch(), defender.run()]
                await context.work_until_stopped(*work, *(() if relay is None else (relay.watch(),)))


def _choose(of_role: int | None, configured: int) -> int:
    return configured if of_role is None else of_role


def _read_range(spec: RoleSpec, config: ProviderConfig) -> PriceRange | None:
    """Between which prices a provider's own follows load; None for one that stays.

    Raises:
        ConfigError: the highest is below the lowest.
    """
    input_price = _choose(spec.input_price, config.input_price)
    output_price = _choose(spec.output_price, config.output_price)
    input_max = _choose(spec.input_price_max, config.input_price_max)
    output_max = _choose(spec.output_price_max, config.output_price_max)
    if not input_max and not output_max:
        return None
    return PriceRange(input_price, output_price, input_max or input_price, output_max or output_price)


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


@dataclass(frozen=True, slots=True)
class _Kitchen:
    """Where the answers come from, and what may be said of them.

    Attributes:
        profile: digest that the offers claim.
        level: what the receipts promise.
        recheck: re-execution with the record's weights, to appeal with.
    """

    generate: Generate
    profile: bytes
    level: Level
    context_tokens: int
    streams_max: int
    recheck: Recheck


@contextlib.asynccontextmanager
async def _open_kitchen(
    context: RoleContext, record: ModelRecord, tokenizer: Tokenizer, fetch_files: FetchFiles
) -> AsyncIterator[_Kitchen]:
    """An engine of this process, or the operator's server."""
    spec, config = context.spec.upstream, context.config.engine
    if spec is None:
        files = await fetch_files()
        async with _open_service(context, files) as (service, profile):
            yield _Kitchen(
                generate=_generate_with(service, tokenizer, record.thresholds),
                profile=profile,
                level=find_level(service.engine, profile, record),
                context_tokens=service.engine.context_tokens,
                streams_max=service.engine.sequences_max,
                recheck=EngineRecheck(service, record, tokenizer),
            )
        return
    async with serving_upstream(spec, record, tokenizer, fetch_files, config) as (upstream, recheck):
        get_logger("provider").info(
            "selling a server's answers", promises=int(upstream.level), server=str(upstream.dialect)
        )
        yield _Kitchen(
            generate=sell(upstream),
            profile=upstream.profile.digest(),
            level=upstream.level,
            context_tokens=upstream.context_tokens or record.context_tokens,
            streams_max=config.sequences_max or UPSTREAM_STREAMS,
            recheck=recheck,
        )


def find_level(engine: Engine, profile: bytes, record: ModelRecord) -> Level:
    """The most that receipts of an engine of ours can promise: from level 3 on it has to show its hidden states."""
    if not isinstance(engine, HiddenEngine):
        return Level.SEEDED
    return Level.REPLAYABLE if profile in record.replay_profiles else Level.FINGERPRINTED


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
    async with serving_engine(engine, cache_bytes_max=config.prefix_cache_mib << 20) as service:
        _measure_load(context, service)
        yield service, profile


def _measure_load(context: RoleContext, service: EngineService) -> None:
    """What the engine does, as gauges: the operator's view of `Load`."""
    gauges: dict[str, tuple[str, Callable[[Load], float]]] = {
        "engine_running": ("Jobs that hold a sequence", lambda load: load.running),
        "engine_waiting": ("Jobs that do not yet", lambda load: load.waiting),
        "engine_wait_seconds": ("Expected wait of a further answer", lambda load: load.wait_s),
        "engine_prompt_tokens": ("Prompt ids read since the start", lambda load: load.prompt_tokens),
        "engine_cached_tokens": ("Prompt ids taken up from the prefix cache", lambda load: load.cached_tokens),
        "engine_sampled_tokens": ("Ids sampled since the start", lambda load: load.sampled_tokens),
        "engine_prefix_cache_bytes": ("Memory of the prefix cache", lambda load: load.cache_bytes),
    }

    def read_later(read: Callable[[Load], float]) -> Callable[[], float]:
        return lambda: read(service.get_load())

    for name, (help_text, read) in gauges.items():
        context.metrics.gauge(name, help_text).set_function(read_later(read))


def _generate_with(service: EngineService, tokenizer: Tokenizer, thresholds: Thresholds) -> Generate:
    masks = MaskService(tokenizer)

    async def generate(wanted: Assignment) -> AsyncIterator[Piece]:
        if is_embedding(wanted.params):
            words = encode_vector(await service.embed(wanted.prompt_ids))
            for place, word in enumerate(words, 1):
                yield Piece(word, FinishReason.LENGTH if place == len(words) else None)
            return
        mask = await masks.open(wanted.constraint, wanted.params.mask_hash)
        stream = service.generate(
            wanted.prompt_ids,
            wanted.params,
            wanted.seed,
            tokenizer,
            wanted.logprobs,
            mask,
            owner=wanted.owner,
            prefix_ids=wanted.prefix,
            thresholds=thresholds,
            is_printed=wanted.is_printed,
            is_exact=wanted.is_exact,
        )
        async with contextlib.aclosing(stream):
            async for sampled in stream:
                yield Piece(
                    token=sampled.token,
                    finish=sampled.finish,
                    stop_index=sampled.stop_index,
                    logprobs=sampled.logprobs,
                    cached_tokens=stream.cached_tokens,
                    leaf=sampled.leaf,
                )

    return generate
