"""The roles of a simulated network: the same classes as live, given simulated clocks, disks, networks and a toy model.

Each function runs one life of a role until it is killed or fails. Cheats are roles with one habit changed; the habits
are in `cheats`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from deaios.alignment.auditor.service import AuditedModel, Auditor, AuditorSettings
from deaios.alignment.auditor.store import AuditorStore
from deaios.alignment.defence.service import Defender
from deaios.alignment.ports import Recheck
from deaios.alignment.recheck.service import EngineRecheck
from deaios.chain.service import ChainService
from deaios.chain.service import build_application as build_chain_application
from deaios.compute.service import EngineService
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deadlines import fetch_deadline
from deaios.ledger.client.sender import Sender
from deaios.ledger.descriptor import NetworkDescriptor
from deaios.ledger.structs import Level
from deaios.market.buyer.client import Buyer
from deaios.market.buyer.client.settings import BuyerSettings
from deaios.market.client import LedgerChain
from deaios.market.directory.client import Directory
from deaios.market.ports import Assignment, Generate, Piece, SellerChain
from deaios.market.question import Question, context_of
from deaios.market.seller.service import Seller, SellerSettings
from deaios.market.slashing.client import Slasher
from deaios.node.member import Member
from deaios.node.network import Trade, terms_of
from deaios.node.shop import Shop
from deaios.node.simulation import model
from deaios.node.simulation.loop import Process, SimulatedClock, SimulatedDice
from deaios.node.simulation.network import Network, SimulatedHttp, SimulatedRpc
from deaios.node.simulation.town import CHAIN, CHAIN_URL, EXECUTOR, LIMITS, SHELF_URL, key_of, url_of
from deaios.primitives.encoding import decode_hex
from deaios.primitives.hashing import sha256, tagged_sha256
from deaios.primitives.units import CREDIT
from deaios.runtime.errors import NotFound, RefusedTooLarge
from deaios.runtime.http import build_application, read_body
from deaios.runtime.metrics import Metrics

INPUT_PRICE = 300 * CREDIT
OUTPUT_PRICE = 1_500 * CREDIT
"""Per million tokens: some six answers fill a window, so that windows matter."""


@dataclass(frozen=True)
class Life:
    """What one life of a role is given."""

    name: str
    process: Process
    clock: SimulatedClock
    dice: SimulatedDice
    network: Network
    descriptor: NetworkDescriptor
    folder: Path

    def open_member(self, name: str | None = None) -> Member:
        """A key's connections; nothing of it has to be closed in a process that is killed."""
        http = SimulatedHttp(self.network)
        rpc = SimulatedRpc(self.network, CHAIN_URL, self.clock)
        sender = Sender(rpc, key_of(name or self.name), self.descriptor.chain_id)
        contracts = Contracts(rpc, self.descriptor.contracts)
        return Member(self.descriptor, key_of(name or self.name), http, rpc, contracts, sender)

    async def listen(self, application: web.Application) -> None:
        """Serve under this role's name."""
        application.freeze()
        await application.startup()
        self.network.listen(self.name, self.process, application)


class Shelf:
    """A client of the simulated storage: content under its SHA-256."""

    def __init__(self, network: Network) -> None:
        self._http = SimulatedHttp(network)

    async def put_bytes(self, data: bytes) -> bytes:
        """Store."""
        return await self._http.put_bytes(f"{SHELF_URL}/{sha256(data).hex()}", data)

    async def get_bytes(self, manifest_id: bytes, bytes_max: int) -> bytes:
        """Fetch, verified."""
        data = await self._http.get_bytes(f"{SHELF_URL}/{manifest_id.hex()}", 8 << 20)
        if len(data) > bytes_max:
            raise RefusedTooLarge(f"{len(data)} bytes are stored, at most {bytes_max} wanted")
        return data


async def live_shelf(life: Life, contents: dict[bytes, bytes]) -> None:
    """Storage as one host that keeps what it acknowledged."""

    async def put(request: web.Request) -> web.Response:
        data = await read_body(request)
        contents[sha256(data)] = data
        return web.Response(body=sha256(data))

    async def get(request: web.Request) -> web.Response:
        data = contents.get(decode_hex("0x" + request.match_info["id"], 32))
        if data is None:
            raise NotFound("nothing is stored under this id")
        return web.Response(body=data)

    application = build_application("shelf", body_bytes_max=8 << 20)
    application.router.add_put("/{id}", put)
    application.router.add_get("/{id}", get)
    await life.listen(application)
    await asyncio.Event().wait()


async def live_chain(life: Life, on_start: Callable[[ChainService], None]) -> None:
    """The chain, blocks and all."""
    contracts = life.open_member().contracts

    async def deadline() -> int:
        return await fetch_deadline(contracts)

    chain = await ChainService.start(
        life.folder / "chain.db",
        key_of(CHAIN),
        None,
        executor=EXECUTOR,
        clock=life.clock,
        deadline=deadline,
        limits=LIMITS,
    )
    on_start(chain)
    await life.listen(build_chain_application(chain))
    await chain.run()


def seller_settings(name: str) -> SellerSettings:
    """Terms of a simulated provider."""
    return SellerSettings(
        url=url_of(name),
        model_record_id=model.RECORD_ID,
        engine_profile=model.PROFILE,
        vocabulary_size=model.VOCABULARY,
        context_tokens=model.CONTEXT_TOKENS,
        streams_max=4,
        queue_max=4,
        input_price=INPUT_PRICE,
        output_price=OUTPUT_PRICE,
        level=Level.REPLAYABLE,
        withdraw_delay_min=30,
        purchase_s_max=60.0,
        batch_interval_s=3.0,
        claim_interval_s=10.0,
        watch_interval_s=4.0,
    )


def open_recheck() -> Recheck:
    """The real recheck over the toy engine."""
    service: EngineService = model.ToyService()  # type: ignore[assignment] # has what a recheck asks of it
    return EngineRecheck(service, model.RECORD, model.TOKENIZER)


async def live_provider(
    life: Life,
    *,
    generate: Generate | None = None,
    with_defender: bool = False,
    on_start: Callable[[Seller, Member], None] | None = None,
    chain_of: Callable[[LedgerChain, Member], SellerChain] | None = None,
) -> None:
    """A provider: seller, publisher, collector, defender."""
    member = life.open_member()
    chain: SellerChain = LedgerChain(member.contracts, member.sender)
    if chain_of is not None:
        chain = chain_of(LedgerChain(member.contracts, member.sender), member)
    seller = Seller(
        member.key,
        terms_of(life.descriptor),
        seller_settings(life.name),
        life.folder / "seller.db",
        chain,
        generate or generate_with(model.RIGHT),
        Shelf(life.network).put_bytes,
        clock=life.clock,
        metrics=Metrics("provider"),
    )
    if on_start is not None:
        on_start(seller, member)
    async with seller:
        await life.listen(seller.application)
        work: list[asyncio.Task[None]] = [asyncio.create_task(seller.watch())]
        if with_defender:
            work.append(asyncio.create_task(_build_defender(life, member).run()))
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def _build_defender(life: Life, member: Member) -> Defender:
    return Defender(
        contracts=member.contracts,
        sender=member.sender,
        domain=member.domain,
        model_record_id=model.RECORD_ID,
        shelf=Shelf(life.network),
        recheck=open_recheck(),
        clock=life.clock,
    )


def generate_with(weights: model.Weights, token_s: float = model.TOKEN_S) -> Generate:
    """A generator over some weights."""

    def generate(wanted: Assignment) -> AsyncIterator[Piece]:
        assert (wanted.logprobs, wanted.constraint) == (None, None), "nobody asks a toy for more than tokens"
        return model.generate(
            wanted.prompt_ids,
            wanted.params,
            wanted.seed,
            weights=weights,
            token_s=token_s,
            prefix=wanted.prefix,
            is_printed=wanted.is_printed,
        )

    return generate


@asynccontextmanager
async def open_trade(life: Life, member: Member) -> AsyncIterator[Trade]:
    """Buy with a member's key."""
    windows = life.descriptor.windows
    settings = BuyerSettings(
        window=windows.voucher_window,
        fee_max=windows.voucher_window,
        deposit=windows.channel_deposit,
        withdraw_delay=windows.withdraw_delay_min_s,
        request_blocks=windows.request_blocks,
        first_token_s=8.0,
        idle_s=6.0,
        window_wait_s=10.0,
    )
    directory = Directory(member.contracts, terms_of(life.descriptor), member.http, life.clock)
    buyer = Buyer(
        member.key,
        terms_of(life.descriptor),
        settings,
        life.folder / "buyer.db",
        LedgerChain(member.contracts, member.sender),
        directory,
        member.http,
        get_bytes=Shelf(life.network).get_bytes,
        clock=life.clock,
        dice=life.dice,
    )
    async with buyer:
        slasher = Slasher(
            buyer,
            terms_of(life.descriptor),
            member.contracts,
            member.sender,
            LedgerChain(member.contracts, member.sender),
            Shelf(life.network).get_bytes,
            windows.claim_bond,
            life.clock,
        )
        yield Trade(buyer, directory, slasher)


async def live_gateway(life: Life, on_start: Callable[[Buyer, KeyStore, str], None]) -> None:
    """The gateway: buyer, keys, the OpenAI door."""
    member = life.open_member()
    served = ServedModel(
        record_id=model.RECORD_ID,
        record=model.RECORD,
        tokenizer=model.TOKENIZER,
        render=model.render,
        input_price=INPUT_PRICE,
        output_price=OUTPUT_PRICE,
        created_s=0,
        owned_by="simulation",
    )
    keys = KeyStore.open(life.folder / "keys.db", tagged_sha256("deaios/gateway-pepper/1", member.key.secret))
    text_path = life.folder / "key.txt"
    if not text_path.exists():
        text, _record = keys.create(life.dice, life.clock.now_ms(), name="user")
        text_path.write_text(text)
    async with open_trade(life, member) as trade:
        application = build_gateway_application(
            network_id=life.descriptor.network_id,
            buyer=trade.buyer,
            models=ServedModels((served,)),
            keys=keys,
            clock=life.clock,
            dice=life.dice,
        )
        on_start(trade.buyer, keys, text_path.read_text())
        await life.listen(application)
        work = [asyncio.create_task(trade.buyer.watch()), asyncio.create_task(trade.slasher.run())]
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def render_chat(chat: Question) -> tuple[tuple[int, ...], bytes]:
    """A chat as prompt ids and context."""
    return model.render(chat.message_objects(), chat.tools), context_of(chat, model.RECORD.template_hash)


async def live_auditor(
    life: Life,
    *,
    interval_s: float,
    recheck: Recheck | None = None,
    alter: Callable[[Auditor], None] | None = None,
) -> None:
    """An auditor: buys, re-executes, accuses, judges, keeps the beacon."""
    member, purse = life.open_member(), life.open_member(f"{life.name}-purse")
    store = AuditorStore(life.folder / "auditor.db")
    async with open_trade(life, purse) as trade:
        auditor = Auditor(
            contracts=member.contracts,
            sender=member.sender,
            domain=member.domain,
            store=store,
            shop=Shop(trade),
            shelf=Shelf(life.network),
            recheck=recheck or open_recheck(),
            model=AuditedModel(model.RECORD_ID, model.RECORD.name, model.CONTEXT_TOKENS, render_chat),
            clock=life.clock,
            dice=life.dice,
            metrics=Metrics("auditor"),
            settings=AuditorSettings(interval_s, vectors_every=0),
        )
        if alter is not None:
            alter(auditor)
        async with asyncio.TaskGroup() as group:
            group.create_task(auditor.run())
            group.create_task(trade.buyer.watch())
