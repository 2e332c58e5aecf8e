"""A user with a file, the model and a chain URL notices whatever a gateway changed, but for what it drew itself."""

from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from cheating_gateway import CAUGHT, QUESTION, Honest, OwnNonce, Redrawing, build_front
from cheats_model import NAME, RECORD, RECORD_ID, TOKENIZER, ToyTemplate, render_messages

from deaios.alignment.check import BatchView, ChainView, NetworkTerms
from deaios.alignment.evidence import Evidence
from deaios.alignment.examination import examine
from deaios.alignment.facts import Head, Outcome
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.ledger.suite import COMPUTE
from deaios.node.asking import ask_gateway, complete_answer
from deaios.primitives.units import CREDIT
from deaios.runtime.client import InvalidResponse
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "temperature": 0.9}


@dataclass(frozen=True)
class Reader:
    """What a user's check reads: the catalogue's record, the model's files, the chain, an engine of its own."""

    world: object

    async def fetch_record(self, wanted):
        assert wanted == RECORD_ID
        return RECORD

    async def open_model(self, record):
        return TOKENIZER, ToyTemplate()

    async def read_chain(self, answer):
        c, opening = self.world.contracts, answer.opening
        provider = opening.request.provider
        found = await c.receipts.batch_at(provider, answer.batch_index)
        anchor = await self.world.rpc.get_block_by_hash(opening.request.anchor_block_hash)
        return ChainView(
            height=await self.world.rpc.block_number(),
            batch=BatchView(found.first_counter, found.last_counter, found.root, found.block_time),
            anchor_height=anchor.number,
            provider_is_registered=await c.identities.agent_of(provider) != 0,
            provider_stake=await c.staking.slice_of(COMPUTE, provider),
            provider_slashed=await c.staking.slashed_of(COMPUTE, provider),
            provider_is_paused=await c.disputes.is_paused(provider),
            receipt_is_convicted=await c.disputes.is_convicted(opening.receipt_digest),
        )

    async def recompute(self, answer, record, prompt_ids):
        return await self.world.machine.recheck.check(Evidence(answer.opening, prompt_ids))


@asynccontextmanager
async def behind(world, tmp_path, cheat):
    """A user's view: the front's URL and a key; beside it the provider and the gateway's own purse."""
    keys = KeyStore.open(tmp_path / "keys.db", b"p" * 32)
    key, record = keys.create(SystemDice(), 0, name="user", budget=None, models=None)
    served = ServedModel(
        record_id=RECORD_ID,
        record=RECORD,
        tokenizer=TOKENIZER,
        render=render_messages,
        input_price=CREDIT,
        output_price=4 * CREDIT,
        created_s=1,
        owned_by="tests",
    )
    async with world.selling("provider", world.machine.generate) as provider, world.buying("gateway") as purse:
        await world.contracts.identities.ensure_registered(provider.sender, provider.url, "provider")
        application = build_gateway_application(
            network_id=world.terms.network_id,
            buyer=purse.buyer,
            models=ServedModels((served,)),
            keys=keys,
            clock=world.clock,
            dice=SystemDice(),
        )
        async with serve(application) as url, serve(build_front(world, url, cheat)) as front:
            yield front, key, provider, purse, lambda: keys.get(record.key_id).spent
    keys.close()


async def ask_and_check(world, front, key, provider):
    """What `deaios ask` and `deaios verify` do."""
    told = await ask_gateway(world.http, front, key, BODY, SystemDice(), lambda _: None)
    await provider.seller.publisher.publish()
    answer = await complete_answer(world.http, front, key, told, world.clock)
    terms = NetworkTerms(world.terms.network_id, world.terms.protocol, RECORD_ID)
    return await examine(answer, terms, Reader(world), told.client_nonce)


async def test_an_honest_gateways_answer_verifies(world, tmp_path):
    async with behind(world, tmp_path, Honest()) as (front, key, provider, _, _):
        assert (await ask_and_check(world, front, key, provider)).outcome is Outcome.VERIFIED


@pytest.mark.parametrize(("cheat", "rule"), CAUGHT, ids=lambda item: getattr(item, "__name__", None))
async def test_what_a_gateway_changed_is_named_by_its_user(world, tmp_path, cheat, rule):
    async with behind(world, tmp_path, cheat()) as (front, key, provider, _, _):
        result = await ask_and_check(world, front, key, provider)
        assert result.outcome is Outcome.VIOLATED
        assert result.headline.startswith(f"violation: {rule}: ")


async def test_another_nonce_than_the_users_is_refused_at_once(world, tmp_path):
    async with behind(world, tmp_path, OwnNonce()) as (front, key, provider, _, _):
        with pytest.raises(InvalidResponse, match="used another nonce than the one that was sent"):
            await ask_and_check(world, front, key, provider)


async def test_a_gateway_that_draws_again_pays_for_every_draw_and_is_trusted_with_it(world, tmp_path):
    """Nothing shows it, so every check says it: under the head of what is the gateway's word."""
    async with behind(world, tmp_path, Redrawing()) as (front, key, provider, purse, _):
        rich = await world.wealth_of(purse)
        result = await ask_and_check(world, front, key, provider)
        assert result.outcome is Outcome.VERIFIED
        assert [fact.rule for fact in result.facts if fact.head is Head.GATEWAY] == ["seed"]
        await world.settle(provider)
        fees = [receipt.fee for receipt in await provider.seller._store.fetch_receipts(1, 10)]
        assert len(fees) == Redrawing.buys
        assert rich - await world.wealth_of(purse) == sum(fees)
