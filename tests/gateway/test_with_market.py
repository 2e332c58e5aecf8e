"""The gateway in front of the market's own buyer and a real provider: receipts, cancels, proofs and money agree."""

import asyncio
import importlib.util
import json
import sys
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import openai
import pytest

from deaios.alignment.answer import Answer, decode_answer, decode_part, encode_answer
from deaios.alignment.check import NetworkTerms, check_binding, check_delivery, check_question, render_prompt
from deaios.compute.engine import Step, UnavailableEngine
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.engines.numpy_llama import NumpyEngine
from deaios.compute.generation import read_output
from deaios.compute.logprobs import rank_tokens
from deaios.compute.masking import compile_mask
from deaios.compute.masks.service import MaskService
from deaios.compute.records import DEFAULT_THRESHOLDS, Thresholds, encode_record
from deaios.compute.records import record_id as compute_record_id
from deaios.compute.sampling import seed_of
from deaios.compute.service import EngineService
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import verify_output
from deaios.gateway.purchasing import ServedModel
from deaios.ledger.structs import FinishReason, State
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.opening import Opening
from deaios.market.parts import read_part
from deaios.market.ports import Piece
from deaios.market.question import PLAIN_CHAT
from deaios.market.receipts import validate_opening
from deaios.market.seller.service import Seller
from deaios.market.tool_text import read_calls
from deaios.runtime.client import HttpClient
from deaios.runtime.http import serve

NATS_MAX = 0.02
"""How far two honest engines may be apart."""
HELLO = [{"role": "user", "content": "hello"}]
END = 256
NETWORK = b"\x77" * 32


@pytest.fixture(scope="session")
def kit():
    """The market's fakes: a chain in memory, a directory, a vault."""
    path = Path(__file__).parents[1] / "market" / "conftest.py"
    spec = importlib.util.spec_from_file_location("market_kit", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["market_kit"] = module
    spec.loader.exec_module(module)
    return module


class Speaker:
    """Says one text, byte by byte; `gate` holds it before the last token."""

    def __init__(self, text):
        self.text = text
        self.gate = None

    async def __call__(self, wanted):
        for byte in self.text.encode():
            yield Piece(byte, logprobs=self.rank(byte, wanted.logprobs))
            await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        yield Piece(END, FinishReason.STOP_TOKEN, logprobs=self.rank(END, wanted.logprobs))

    def rank(self, token, count):
        """Surer of a letter the later it is in the alphabet, and never of the end."""
        if count is None:
            return None
        row = np.arange(END + 1, dtype=np.float32) / 32
        row[END] = -5.0
        return rank_tokens(row, token, count)


@pytest.fixture
async def market(kit, tmp_path):
    """One provider, one buyer, a chain; everything ends with the test."""

    @asynccontextmanager
    async def start(generator, record_id, **settings):
        chain, directory, vault = kit.FakeChain(), kit.FakeDirectory(), kit.FakeVault()
        port = kit.free_port()
        url = f"http://127.0.0.1:{port}"
        terms = {"model_record_id": record_id, "vocabulary_size": END + 1}
        sold = kit.build_settings(url, **(terms | settings))
        async with AsyncExitStack() as stack:
            seller = Seller(kit.SELLER, kit.TERMS, sold, tmp_path / "seller.db", chain, generator, vault)
            await stack.enter_async_context(seller)
            await stack.enter_async_context(serve(seller.application, port=port))
            directory.urls[kit.SELLER.address] = url
            http = await stack.enter_async_context(HttpClient())
            buyer = Buyer(
                kit.BUYER,
                kit.TERMS,
                BuyerSettings(resolve_interval_s=0.05),
                tmp_path / "buyer.db",
                chain,
                directory,
                http,
            )
            yield await stack.enter_async_context(buyer)

    return start


@pytest.fixture
async def rivals(kit, tmp_path):
    """Several providers of one model, and a buyer; each generator's provider can be killed by its place."""

    @asynccontextmanager
    async def start(generators, record_id, **settings):
        chain, directory, vault = kit.FakeChain(), kit.FakeDirectory(), kit.FakeVault()
        terms = {"model_record_id": record_id, "vocabulary_size": END + 1}
        async with AsyncExitStack() as stack:
            for place, generator in enumerate(generators):
                key, url = kit.build_key(f"rival {place}"), f"http://127.0.0.1:{kit.free_port()}"
                sold = kit.build_settings(url, **(terms | settings))
                seller = Seller(key, kit.TERMS, sold, tmp_path / f"rival{place}.db", chain, generator, vault)
                await stack.enter_async_context(seller)
                await stack.enter_async_context(serve(seller.application, port=int(url.rsplit(":", 1)[1])))
                directory.urls[key.address] = url
            http = await stack.enter_async_context(HttpClient())
            limits = BuyerSettings(resolve_interval_s=0.05)
            buyer = Buyer(kit.BUYER, kit.TERMS, limits, tmp_path / "buyer.db", chain, directory, http)
            yield await stack.enter_async_context(buyer)

    return start


async def test_an_answer_is_bought_checked_charged_and_proven(kit, market, start_gateway, record_id):
    async with (
        market(Speaker("Hi there"), record_id, batch_interval_s=0.05) as buyer,
        start_gateway(buyer=buyer) as world,
        openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client,
        aiohttp.ClientSession() as session,
    ):
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, seed=1)
        assert answer.choices[0].message.content == "Hi there"
        assert answer.usage.completion_tokens == 9
        opening = Opening.decode_json(answer.model_extra["deaios"]["opening"])
        validate_opening(kit.TERMS.protocol, opening)
        assert world.spent == opening.receipt.fee == buyer.accounts[0].state.charged
        url = f"{world.base_url}/receipts/0x{kit.SELLER.address.hex()}/{opening.receipt.counter}/proof"
        async with session.get(url, headers=world.headers) as response:
            assert (response.status, (await response.json())["proof"]["firstCounter"]) == (200, 1)


async def test_eight_streams_at_once_share_one_channel(market, start_gateway, record_id):
    async def talk(client, number):
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, seed=number)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with (
        market(Speaker("wörld " * 5), record_id) as buyer,
        start_gateway(buyer=buyer) as world,
        openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client,
    ):
        answers = await asyncio.gather(*(talk(client, number) for number in range(8)))
        assert answers == ["wörld " * 5] * 8
        assert len(buyer.accounts) == 1
        assert world.spent == buyer.accounts[0].state.charged


async def test_leaving_a_stream_costs_what_the_cancelled_receipt_says(market, start_gateway, record_id):
    speaker = Speaker("half of it")
    speaker.gate = asyncio.Event()
    async with (
        market(speaker, record_id) as buyer,
        start_gateway(buyer=buyer) as world,
        aiohttp.ClientSession() as session,
    ):
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        async with session.post(world.base_url + "/chat/completions", json=body, headers=world.headers) as response:
            await response.content.readuntil(b'"content":')
            await response.content.readuntil(b'"content":"')
            response.close()
        async with asyncio.timeout(20):
            while not world.spent:
                await asyncio.sleep(0.005)
        charge = world.keys.list_charges(world.key_id, 1)[0]
        opening = await buyer.fetch_opening(charge.provider, charge.counter)
        assert opening.receipt.state == State.CANCELLED
        assert world.spent == charge.amount == opening.receipt.fee == buyer.accounts[0].state.charged


async def test_what_nobody_offers_is_refused_with_the_reason(market, start_gateway, record_id):
    async with (
        market(Speaker("x"), record_id) as buyer,
        start_gateway(buyer=buyer) as world,
        openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"deaios": {"min_level": 4}})
        assert caught.value.code == "no_provider"
        assert "level 2 is below 4" in caught.value.message
        assert world.spent == 0


async def test_log_probabilities_come_through_the_market_streamed_and_whole(market, start_gateway, record_id):
    speaker = Speaker("Hi wörld")
    async with (
        market(speaker, record_id) as buyer,
        start_gateway(buyer=buyer) as world,
        openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client,
    ):
        ask = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2, "seed": 1}
        whole = (await client.chat.completions.create(**ask)).choices[0].logprobs.content
        stream = await client.chat.completions.create(**ask, stream=True)
        streamed = [entry async for chunk in stream for entry in getattr(chunk.choices[0].logprobs, "content", ())]
    assert whole == streamed
    expected = [speaker.rank(byte, 2) for byte in "Hi wörld".encode()]
    assert [[entry.logprob, *(top.logprob for top in entry.top_logprobs)] for entry in whole] == [
        [value / 1_000_000 for _, value in ranking] for ranking in expected
    ]
    assert b"".join(bytes(entry.bytes) for entry in whole) == "Hi wörld".encode()


@pytest.fixture(scope="session")
def language(model_files):
    return Tokenizer.from_gguf(model_files.served), ChatTemplate.from_gguf(model_files.served)


def generate_with(service, tokenizer):
    masks = MaskService(tokenizer)

    async def generate(wanted):
        mask = await masks.open(wanted.constraint, wanted.params.mask_hash)
        how = {"prefix_ids": wanted.prefix, "thresholds": DEFAULT_THRESHOLDS}
        what = (wanted.prompt_ids, wanted.params, wanted.seed, tokenizer, wanted.logprobs, mask)
        async with aclosing(service.generate(*what, **how)) as stream:
            async for sampled in stream:
                yield Piece(sampled.token, sampled.finish, sampled.stop_index, sampled.logprobs)

    return generate


def recompute(model_files, opening, prompt_ids):
    """The log-softmax before each id of an answer, by the NumPy engine, `(ids, vocabulary) float64`."""
    engine = NumpyEngine(model_files.served, context_tokens=256, sequences_max=1)
    ids = opening.output_ids
    (rows,) = engine.decode([Step(0, 0, (*prompt_ids, *ids[:-1]), len(ids))])
    engine.close()
    shifted = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


async def test_what_the_sdk_shows_is_what_another_engine_computes(
    model_files, language, market, start_gateway, tiny_record
):
    tokenizer, template = language
    hashes = {"tokenizer_hash": tokenizer.tokenizer_hash, "template_hash": template.template_hash}
    record = replace(tiny_record, name="smol", **hashes)
    prices = {"input_price": 1_000_000, "output_price": 4_000_000, "created_s": 0, "owned_by": "tests"}
    served = ServedModel.build(record, tokenizer, template, **prices)
    service = EngineService(LlamaEngine(model_files.served, threads=2, context_tokens=256, sequences_max=2))
    terms = {"vocabulary_size": tokenizer.vocabulary_size, "context_tokens": 256}
    question = [{"role": "user", "content": "Name three colours and an emoji."}]
    try:
        async with (
            market(generate_with(service, tokenizer), compute_record_id(encode_record(record)), **terms) as buyer,
            start_gateway(buyer=buyer, served=served) as world,
            openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client,
        ):
            ask = {"model": "smol", "messages": question, "max_tokens": 24, "temperature": 0, "top_p": 0.9}
            answer = await client.chat.completions.create(**ask, logprobs=True, top_logprobs=4, seed=3)
    finally:
        await service.close()
    opening = Opening.decode_json(answer.model_extra["deaios"]["opening"])
    table = recompute(model_files, opening, served.render(question, ()))
    entries = answer.choices[0].logprobs.content
    places = [place for place, token in enumerate(opening.output_ids) if tokenizer.get_bytes(token)]
    assert (
        b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
        == answer.choices[0].message.content
    )
    assert len(entries) == len(places) > 5
    worst = 0.0
    for entry, place in zip(entries, places, strict=True):
        token = opening.output_ids[place]
        assert (entry.token, bytes(entry.bytes)) == (tokenizer.get_label(token), tokenizer.get_bytes(token))
        ours = np.sort(table[place])[::-1][:4]
        theirs = [top.logprob for top in entry.top_logprobs]
        worst = max(worst, abs(entry.logprob - table[place][token]), *np.abs(ours - theirs))
    assert 0.0 < worst <= NATS_MAX


def check_answer(kit, engine, language, served, body, extra, text):
    """What `deaios verify` does with a file, save for the chain: every fact must hold, every token be recomputed."""
    tokenizer, template = language
    opening = Opening.decode_json(extra["opening"])
    part = decode_part(extra["part"]) if "part" in extra else PLAIN_CHAT
    nonce = bytes.fromhex(extra["clientNonce"][2:])
    answer = decode_answer(encode_answer(Answer(NETWORK, body, nonce, opening, text, 0, (), part)))
    terms = NetworkTerms(NETWORK, kit.TERMS.protocol, served.record_id)
    facts = [
        *check_binding(answer, terms, nonce),
        *check_question(answer, terms, served.record, tokenizer, template),
        *check_delivery(answer, tokenizer),
    ]
    assert [fact for fact in facts if not fact.holds] == []
    prompt_ids = render_prompt(read_part(part, body), tokenizer, template)
    receipt = opening.receipt
    how = (seed_of(opening.ask), FinishReason(receipt.finish_reason), receipt.stop_index, Thresholds(20_000, 20_000))
    mask = compile_mask(opening.constraint, opening.ask.params.mask_hash, tokenizer)
    report = verify_output(engine, prompt_ids, opening.output_ids, opening.ask.params, *how, tokenizer, mask=mask)
    assert report.ok
    assert report.tokens_checked == len(opening.output_ids)
    return {fact.rule: fact.says for fact in facts}


async def send(session, url, headers, body):
    async with session.post(url, data=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def test_what_every_door_sells_verifies_with_the_default_model(
    kit, model_files, language, market, start_gateway, tiny_record
):
    tokenizer, template = language
    hashes = {"tokenizer_hash": tokenizer.tokenizer_hash, "template_hash": template.template_hash}
    record = replace(tiny_record, name="smol", **hashes)
    prices = {"input_price": 1_000_000, "output_price": 4_000_000, "created_s": 0, "owned_by": "tests"}
    served = ServedModel.build(record, tokenizer, template, **prices)
    service = EngineService(LlamaEngine(model_files.served, threads=2, context_tokens=256, sequences_max=4))
    terms = {"vocabulary_size": tokenizer.vocabulary_size, "context_tokens": 256}
    common = {"model": "smol", "temperature": 0.7}
    question = [{"role": "user", "content": "Name two colours."}]
    engine = NumpyEngine(model_files.served, context_tokens=256, sequences_max=1)
    checked = 0
    try:
        async with (
            market(generate_with(service, tokenizer), served.record_id, **terms) as buyer,
            start_gateway(buyer=buyer, served=served) as world,
            aiohttp.ClientSession() as session,
        ):

            async def buy(path, **fields):
                body = json.dumps(common | fields).encode()
                return body, await send(session, world.base_url + path, world.headers, body)

            def check(body, extra, text):
                nonlocal checked
                check_answer(kit, engine, language, served, body, extra, text)
                checked += 1

            body, said = await buy("/completions", prompt=["The sea is", [504, 2000]], n=2, max_tokens=8)
            for bought, choice in zip(said["deaios"]["purchases"], said["choices"], strict=True):
                check(body, bought, choice["text"])
            assert len({choice["text"] for choice in said["choices"]}) > 2
            body, said = await buy("/chat/completions", messages=question, n=2, max_tokens=8, seed=5)
            for bought, choice in zip(said["deaios"]["purchases"], said["choices"], strict=True):
                check(body, bought, choice["message"]["content"])
            body, said = await buy("/messages", messages=question, system="Be brief.", max_tokens=8)
            check(body, said["deaios"], said["content"][0]["text"])
            body, first = await buy("/responses", input="My name is Ada.", max_output_tokens=8)
            check(body, first["deaios"], first["output"][0]["content"][0]["text"])
            body, said = await buy(
                "/responses", input="What is it?", previous_response_id=first["id"], max_output_tokens=8
            )
            check(body, said["deaios"], said["output"][0]["content"][0]["text"])
            assert world.spent == sum(row.state.charged for row in buyer.accounts)
    finally:
        await service.close()
        engine.close()
    assert checked == 9


def failing_once(generate, after, failed):
    """A provider whose engine breaks after so many tokens, if nobody's has: `failed` is set as it does."""

    async def generate_some(wanted):
        place = 0
        async with aclosing(generate(wanted)) as pieces:
            async for piece in pieces:
                if place == after and not failed.is_set():
                    failed.set()
                    raise UnavailableEngine("the test breaks it")
                yield piece
                place += 1

    return generate_some


@pytest.mark.parametrize("temperature", [0, 0.8])
async def test_a_stream_that_breaks_ends_elsewhere_as_it_would_have_and_verifies(
    kit, model_files, language, rivals, start_gateway, tiny_record, temperature
):
    """Greedy or seeded: what the SDK reads is what one provider alone would have said."""
    tokenizer, template = language
    hashes = {"tokenizer_hash": tokenizer.tokenizer_hash, "template_hash": template.template_hash}
    record = replace(tiny_record, name="smol", **hashes)
    prices = {"input_price": 1_000_000, "output_price": 4_000_000, "created_s": 0, "owned_by": "tests"}
    served = ServedModel.build(record, tokenizer, template, **prices)
    services = [
        EngineService(LlamaEngine(model_files.served, threads=1, context_tokens=256, sequences_max=2)) for _ in range(2)
    ]
    failed = asyncio.Event()
    generators = [failing_once(generate_with(service, tokenizer), 9, failed) for service in services]
    terms = {"vocabulary_size": tokenizer.vocabulary_size, "context_tokens": 256}
    body = {
        "model": "smol",
        "messages": HELLO,
        "max_tokens": 24,
        "temperature": temperature,
        "seed": 11,
        "stream": True,
    }
    engine = NumpyEngine(model_files.served, context_tokens=256, sequences_max=1)
    try:
        async with (
            rivals(generators, served.record_id, **terms) as buyer,
            start_gateway(buyer=buyer, served=served) as world,
            aiohttp.ClientSession() as session,
        ):

            async def ask():
                """The text and the last chunk's papers of one stream."""
                text, extra = "", None
                async with session.post(
                    world.base_url + "/chat/completions", data=json.dumps(body).encode(), headers=world.headers
                ) as response:
                    assert response.status == 200
                    async for line in response.content:
                        if line.startswith(b"data: {"):
                            chunk = json.loads(line[6:])
                            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                            extra = chunk.get("deaios", extra)
                return text, extra

            text, extra = await ask()
            assert failed.is_set()
            opening = Opening.decode_json(extra["opening"])
            check_answer(kit, engine, language, served, json.dumps(body).encode(), extra, text)
            assert len(opening.output_ids) > 9
            # Undisturbed, the same seed gives the same ids, in whoever's engine.
            again, extra = await ask()
            assert again == text
            assert Opening.decode_json(extra["opening"]).output_ids == opening.output_ids
            # The user has paid twice for two answers; the provider that broke has nothing of the first.
            assert world.spent == 2 * opening.receipt.fee == sum(row.state.charged for row in buyer.accounts)
    finally:
        engine.close()
        for service in services:
            await service.close()


async def test_calls_of_every_door_are_those_that_a_verifier_reads(
    kit, model_files, language, market, start_gateway, tiny_record
):
    tokenizer, template = language
    hashes = {"tokenizer_hash": tokenizer.tokenizer_hash, "template_hash": template.template_hash}
    record = replace(tiny_record, name="smol", **hashes)
    prices = {"input_price": 1_000_000, "output_price": 4_000_000, "created_s": 0, "owned_by": "tests"}
    served = ServedModel.build(record, tokenizer, template, **prices)
    service = EngineService(LlamaEngine(model_files.served, threads=2, context_tokens=512, sequences_max=2))
    engine = NumpyEngine(model_files.served, context_tokens=512, sequences_max=1)
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function = {"name": "get_weather", "description": "Weather of a city.", "parameters": schema}
    turns = [{"role": "user", "content": "What is the weather in Rome?"}]
    common = {"model": "smol", "temperature": 0}
    terms = {"vocabulary_size": tokenizer.vocabulary_size, "context_tokens": 512}
    try:
        async with (
            market(generate_with(service, tokenizer), served.record_id, **terms) as buyer,
            start_gateway(buyer=buyer, served=served) as world,
            aiohttp.ClientSession() as session,
        ):

            async def buy(path, **fields):
                body = json.dumps(common | fields).encode()
                said = await send(session, world.base_url + path, world.headers, body)
                opening = Opening.decode_json(said["deaios"]["opening"])
                text = read_output(opening.output_ids, opening.ask.params, tokenizer)
                told = check_answer(kit, engine, language, served, body, said["deaios"], text)
                (call,) = read_calls(text, opening.ask.client_digest).calls
                assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
                assert call.id in told["calls"]
                return said, call

            tools = [{"type": "function", "function": function}]
            required = {"tool_choice": "required", "parallel_tool_calls": False}
            said, call = await buy("/chat/completions", messages=turns, tools=tools, max_tokens=60, **required)
            (shown,) = said["choices"][0]["message"]["tool_calls"]
            assert shown["id"] == call.id
            assert shown["function"] == {"name": "get_weather", "arguments": call.arguments}
            flat = [{"type": "function", **function}]
            said, call = await buy("/responses", input=turns, tools=flat, max_output_tokens=60, **required)
            assert [(item["call_id"], item["arguments"]) for item in said["output"]] == [(call.id, call.arguments)]
            uses = [{"name": "get_weather", "description": "Weather of a city.", "input_schema": schema}]
            choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
            said, call = await buy("/messages", messages=turns, tools=uses, tool_choice=choice, max_tokens=60)
            (block,) = said["content"]
            assert (block["id"].split("_")[1], block["input"]) == (call.id.split("_")[1], json.loads(call.arguments))
    finally:
        await service.close()
        engine.close()
