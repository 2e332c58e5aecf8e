"""Embeddings end to end: stock SDK, the market's own buyer and provider, a real engine, and a stranger's check."""

import asyncio
import base64
import json
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import openai
import pytest
from soak.tiny_models import write_tiny_model
from tests.conftest import load_module

from deaios.alignment.answer import Answer, decode_answer, decode_part, encode_answer
from deaios.alignment.check import ChainView, NetworkTerms
from deaios.alignment.evidence import Evidence, InvalidEvidence, validate_evidence
from deaios.alignment.examination import examine
from deaios.alignment.facts import Outcome
from deaios.compute.embedding import EMBEDDING_PARAMS, decode_vector, encode_vector
from deaios.compute.embedding_check import compute_vector, verify_vector
from deaios.compute.engines import open_engine
from deaios.compute.service import EngineService
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.gateway.purchasing import ServedModel
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.structs import FinishReason, State
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.conduct import validate_conduct
from deaios.market.opening import Opening
from deaios.market.ports import Piece
from deaios.market.receipts import InvalidReceipt, commit_result, validate_receipt
from deaios.market.sealing.service import SealingKeys
from deaios.market.seller.service import Seller
from deaios.market.seller.service.privacy import Privacy
from deaios.market.wire import OfferAnswer
from deaios.node.asking import embed_by_gateway
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve

NETWORK = b"\x77" * 32
CONTEXT = 128
TEXTS = ["the quick brown fox", "when the rain came down", "ünïcode <|im_end|>"]


@pytest.fixture(scope="module")
def kit():
    return load_module(Path(__file__).parents[1] / "market" / "conftest.py")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for encoding in ("f16", "q8_0"):
        write_tiny_model(folder / f"{encoding}.gguf", encoding=encoding)
    return folder


@pytest.fixture(scope="module")
def language(weights):
    path = weights / "f16.gguf"
    return Tokenizer.from_gguf(path), ChatTemplate.from_gguf(path)


@pytest.fixture
def served(language, tiny_record):
    tokenizer, template = language
    hashes = {"tokenizer_hash": tokenizer.tokenizer_hash, "template_hash": template.template_hash}
    record = replace(tiny_record, context_tokens=CONTEXT, **hashes)
    prices = {"input_price": 1_000_000, "output_price": 4_000_000, "created_s": 0, "owned_by": "tests"}
    return ServedModel.build(record, tokenizer, template, **prices)


def generate_with(service):
    async def generate(wanted):
        words = encode_vector(await service.embed(wanted.prompt_ids))
        for place, word in enumerate(words, 1):
            yield Piece(word, FinishReason.LENGTH if place == len(words) else None)

    return generate


def breaking_once(generate, broken):
    """Fails the first purchase, after the first word of its vector."""

    async def generate_some(wanted):
        async with aclosing(generate(wanted)) as pieces:
            async for piece in pieces:
                yield piece
                if not broken:
                    broken.append(wanted)
                    raise OSError("the test breaks it")

    return generate_some


@pytest.fixture
async def shop(kit, weights, served, start_gateway, tmp_path):
    """Providers of one model file, a buyer and a gateway; everything ends with the test."""

    @asynccontextmanager
    async def start(encoding="f16", providers=1, wrap=lambda generate: generate, has_statement=False):
        chain, directory, vault = kit.FakeChain(), kit.FakeDirectory(), kit.FakeVault()
        clock, dice = SystemClock(), SystemDice()
        async with AsyncExitStack() as stack:
            service = EngineService(open_engine("llama", weights / f"{encoding}.gguf", context_tokens=CONTEXT))
            stack.push_async_callback(service.close)
            for place in range(providers):
                key, port = kit.build_key(f"provider {place}"), kit.free_port()
                url = f"http://127.0.0.1:{port}"
                size = served.tokenizer.vocabulary_size
                named = {"model_record_id": served.record_id, "vocabulary_size": size, "context_tokens": CONTEXT}
                sold, path = kit.build_settings(url, **named), tmp_path / f"seller{place}.db"
                sealing = SealingKeys(tmp_path / f"sealing{place}.json", clock, dice)
                privacy = Privacy(key, NETWORK, sealing, clock, retains_ms=86_400_000, trains=False)
                stated = {"privacy": privacy} if has_statement else {}
                seller = Seller(key, kit.TERMS, sold, path, chain, wrap(generate_with(service)), vault, **stated)
                await stack.enter_async_context(seller)
                await stack.enter_async_context(serve(seller.application, port=port))
                directory.urls[key.address] = url
            http = await stack.enter_async_context(HttpClient())
            limits = BuyerSettings(resolve_interval_s=0.05)
            found = StatingDirectory(directory, http) if has_statement else directory
            buyer = Buyer(kit.BUYER, kit.TERMS, limits, tmp_path / "buyer.db", chain, found, http)
            await stack.enter_async_context(buyer)
            yield await stack.enter_async_context(start_gateway(buyer=buyer, served=served))

    return start


class StatingDirectory:
    """The same with what each provider states beside its offer, as the market's own directory finds it."""

    def __init__(self, directory, http):
        self._directory, self._http = directory, http

    async def fetch_candidates(self):
        found = []
        for candidate in await self._directory.fetch_candidates():
            signed = candidate.signed_offer
            body = (await self._http.get_json(f"{signed.offer.url}/offer", OfferAnswer)).conduct
            conduct = validate_conduct(NETWORK, body, candidate.provider, SystemClock().now_ms())
            signed = replace(signed, sealing_key=conduct.sealing_key, conduct=body)
            found.append(replace(candidate, signed_offer=signed))
        return tuple(found)

    async def refresh(self):
        await self._directory.refresh()


@pytest.fixture
def judge(weights):
    """Another engine than the provider's."""
    engine = open_engine("numpy", weights / "f16.gguf", context_tokens=CONTEXT)
    yield engine
    engine.close()


class StrangersWorld:
    """What a check asks the world for; the receipt's place on chain is not what these tests are about."""

    def __init__(self, judge, language, record, opening, sink):
        self.judge, self.language, self.record, self.opening, self.sink = judge, language, record, opening, sink

    async def fetch_record(self, _record_id):
        return self.record

    async def open_model(self, _record):
        return self.language

    async def read_chain(self, answer):
        return self.sink(answer)

    async def recompute(self, answer, record, prompt_ids):
        return verify_vector(self.judge, prompt_ids, answer.opening.output_ids, record.noise_class)


def see_chain(answer):
    """A chain on which the receipt is the only leaf of its batch."""
    module = load_module(Path(__file__).parents[1] / "alignment" / "alignment_purchases.py")
    batch = module.BatchView(
        answer.opening.receipt.counter,
        answer.opening.receipt.counter,
        module.build_root(module.RECEIPTS_TAG, [answer.opening.receipt_digest]),
        module.BLOCK_TIME,
    )
    return ChainView(50, batch, 40, True, 10**6, 0, False, False)


def read_answer(body, bought):
    """A saved answer of one purchase, through its file's bytes."""
    opening, part = Opening.decode_json(bought["opening"]), decode_part(bought["part"])
    nonce = bytes.fromhex(bought["clientNonce"][2:])
    return decode_answer(encode_answer(Answer(NETWORK, body, nonce, opening, "", 0, (), part)))


async def check(kit, judge, language, served, answer):
    terms = NetworkTerms(NETWORK, kit.TERMS.protocol, served.record_id)
    world = StrangersWorld(judge, language, served.record, answer.opening, see_chain)
    return await examine(answer, terms, world, None)


async def post(world, body):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{world.base_url}/embeddings", data=body, headers=world.headers) as response,
    ):
        return response.status, await response.json()


async def test_the_sdk_gets_the_vectors_that_receipts_commit_to(shop, weights, language):
    tokenizer, _ = language
    ids = list(tokenizer.encode_prompt("it depends"))
    async with (
        shop() as world,
        openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client,
    ):
        packed = await client.embeddings.create(model="tiny-bytes", input=[*TEXTS[:2]])
        plain = await client.embeddings.create(model="tiny-bytes", input=TEXTS[:2], encoding_format="float")
        mixed = await client.embeddings.create(model="tiny-bytes", input=[TEXTS[0], ids])
        lone = await client.embeddings.create(model="tiny-bytes", input=ids)

        def ask_sync():
            with openai.OpenAI(base_url=world.base_url, api_key=world.key) as plain_client:
                return plain_client.embeddings.create(model="tiny-bytes", input=TEXTS[0])

        sync = await asyncio.to_thread(ask_sync)
        spent = world.spent
    engine = open_engine("llama", weights / "f16.gguf", context_tokens=CONTEXT)
    expected = [decode_vector(encode_vector(compute_vector(engine, tokenizer.encode_prompt(text)))) for text in TEXTS]
    engine.close()
    assert [item.index for item in packed.data] == [0, 1]
    for answer in (packed, plain):
        for item, vector, bought in zip(answer.data, expected, answer.model_extra["deaios"]["purchases"], strict=False):
            words = Opening.decode_json(bought["opening"]).output_ids
            assert np.array_equal(np.array(item.embedding, np.float32), decode_vector(words))
            assert np.abs(decode_vector(words) - vector).max() < 1e-3
    assert sync.data[0].embedding == plain.data[0].embedding == mixed.data[0].embedding
    assert lone.data[0].embedding == mixed.data[1].embedding
    counts = [len(tokenizer.encode_prompt(text)) for text in TEXTS[:2]]
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (sum(counts), sum(counts))
    # one smallest unit per token of input, and nothing for what comes out
    assert spent == 2 * sum(counts) + 2 * counts[0] + 2 * len(ids)


async def test_each_vector_verifies_and_no_change_of_the_file_does(kit, shop, judge, language, served):
    body = json.dumps({"model": "tiny-bytes", "input": TEXTS}).encode()
    async with shop() as world:
        status, said = await post(world, body)
    assert status == 200
    answers = [read_answer(body, bought) for bought in said["deaios"]["purchases"]]
    for answer, shown in zip(answers, said["data"], strict=True):
        result = await check(kit, judge, language, served, answer)
        assert result.outcome == Outcome.VERIFIED, result.headline
        assert np.array_equal(np.array(shown["embedding"], np.float32), decode_vector(answer.opening.output_ids))
        receipt = answer.opening.receipt
        assert (receipt.state, receipt.completion_tokens) == (State.SERVED, 0)
        assert receipt.prompt_tokens == answer.opening.ask.prompt_count == receipt.fee
    first, second, _ = answers
    swapped = replace(first, opening=replace(first.opening, output_ids=second.opening.output_ids))
    words = list(first.opening.output_ids)
    words[1] ^= 1
    one_bit = replace(first, opening=replace(first.opening, output_ids=tuple(words)))
    asked = replace(first, body=body.replace(b"quick", b"quiet"))
    other_part = replace(first, part=second.part)
    as_answer = replace(EMBEDDING_PARAMS, max_tokens=len(words))
    crossed = replace(first, opening=replace(first.opening, ask=replace(first.opening.ask, params=as_answer)))
    with_text = replace(first, text="words")
    for changed, rule in (
        (swapped, "output"),
        (one_bit, "output"),
        (asked, "client digest"),
        (other_part, "client digest"),
        (crossed, "ask digest"),
        (with_text, "text"),
    ):
        result = await check(kit, judge, language, served, changed)
        assert result.outcome == Outcome.VIOLATED
        assert f"violation: {rule}:" in result.headline, result.headline


async def test_what_a_provider_states_comes_with_the_receipt_and_is_told_by_a_check(kit, shop, judge, language, served):
    body = json.dumps({"model": "tiny-bytes", "input": TEXTS[0]}).encode()
    async with shop(has_statement=True) as world:
        status, said = await post(world, body)
        again = await post(world, body)
    assert (status, again[0]) == (200, 200)
    told = {"public": "enforced", "sealed": "enforced", "retention": "promised", "training": "promised"}
    assert said["deaios"]["privacy"] == told
    answer = read_answer(body, said["deaios"])
    assert json.loads(encode_answer(answer))["version"] == 3
    result = await check(kit, judge, language, served, answer)
    assert result.outcome == Outcome.VERIFIED, result.headline
    assert {point.fact: point.kind.value for point in result.privacy} == told | {"sealed": "claimed"}


async def test_where_nothing_is_stated_nothing_is_promised(shop):
    async with shop() as world:
        _, said = await post(world, json.dumps({"model": "tiny-bytes", "input": TEXTS[0]}).encode())
    nothing = dict.fromkeys(("sealed", "retention", "training"), "not promised")
    assert said["deaios"]["privacy"] == {"public": "enforced"} | nothing


async def test_cheaper_weights_and_a_foreign_vector_are_named_by_the_vectors_rule(kit, shop, judge, language, served):
    body = json.dumps({"model": "tiny-bytes", "input": TEXTS[0]}).encode()
    async with shop(encoding="q8_0") as world:
        status, said = await post(world, body)
    assert status == 200
    cheat = read_answer(body, said["deaios"])
    opening = cheat.opening
    # a provider that signs whatever it likes: the vector of other ids
    lie = encode_vector(compute_vector(judge, [1, 2, 3]))
    receipt = replace(opening.receipt, output_commitment=commit_result(opening.ask.params, lie, opening.salt))
    key = kit.build_key("provider 0")
    signed = replace(
        opening, output_ids=lie, receipt=receipt, receipt_signature=sign_struct(key, kit.TERMS.protocol, receipt)
    )
    for answer in (cheat, replace(cheat, opening=signed)):
        result = await check(kit, judge, language, served, answer)
        assert result.outcome == Outcome.VIOLATED
        assert "violation: vector: 1 - cosine is" in result.headline


async def test_the_buyer_takes_no_receipt_that_is_no_vectors(kit, shop, served):
    body = json.dumps({"model": "tiny-bytes", "input": TEXTS[0]}).encode()
    async with shop() as world:
        _, said = await post(world, body)
    opening, key = Opening.decode_json(said["deaios"]["opening"]), kit.build_key("provider 0")
    validate_receipt(kit.TERMS.protocol, opening)
    words, params = opening.output_ids, opening.ask.params
    as_output = commit_result(replace(params, max_tokens=len(words)), words, opening.salt)
    cut = words[:-1]
    for changes, ids, says in (
        ({"output_commitment": as_output}, words, "output commitment"),
        ({"completion_tokens": len(words)}, words, "completion tokens"),
        ({"finish_reason": FinishReason.STOP_TOKEN}, words, "finish reason"),
        ({"fee": opening.receipt.fee + 1}, words, "fee"),
        ({"output_commitment": commit_result(params, cut, opening.salt)}, cut, "no vector"),
        ({"state": State.FAILED_PROVIDER, "finish_reason": FinishReason.FAILED, "fee": 0}, words, "not served"),
    ):
        receipt = replace(opening.receipt, **changes)
        signature = sign_struct(key, kit.TERMS.protocol, receipt)
        forged = replace(opening, output_ids=ids, receipt=receipt, receipt_signature=signature)
        with pytest.raises(InvalidReceipt, match=says):
            validate_receipt(kit.TERMS.protocol, forged)
    assert opening.receipt.request_digest == hash_struct(opening.request)
    # A jury reads the vector by its own commitment.
    evidence = Evidence(opening, served.tokenizer.encode_prompt(TEXTS[0]))
    charge = (kit.TERMS.protocol, key.address, opening.receipt_digest, served.record_id)
    validate_evidence(evidence, *charge)
    with pytest.raises(InvalidEvidence, match="output commitment"):
        validate_evidence(replace(evidence, opening=replace(opening, output_ids=words[:-1])), *charge)


async def test_a_vector_asked_for_by_command_is_saved_with_its_part_and_verifies(kit, shop, judge, language, served):
    async with shop() as world, HttpClient() as http:
        url = world.base_url.removesuffix("/v1")
        key = world.headers["Authorization"].removeprefix("Bearer ")
        body = {"model": "tiny-bytes", "input": TEXTS[2]}
        told, vector = await embed_by_gateway(http, url, key, body, SystemDice())
    parts = (told.network, told.body, told.client_nonce, told.opening, told.text, 0, (), told.part)
    answer = decode_answer(encode_answer(Answer(*parts)))
    result = await check(kit, judge, language, served, answer)
    assert result.outcome == Outcome.VERIFIED, result.headline
    assert vector == tuple(decode_vector(answer.opening.output_ids).tolist())


async def test_a_vector_that_breaks_off_costs_nothing_and_the_next_one_is_whole(shop):
    broken: list[object] = []
    body = json.dumps({"model": "tiny-bytes", "input": TEXTS[0]}).encode()
    async with shop(wrap=lambda generate: breaking_once(generate, broken)) as world:
        assert (await post(world, body))[0] == 503
        assert (len(broken), world.spent) == (1, 0)
        assert (await post(world, body))[0] == 200
        paid = world.spent
        row = world.keys.list_charges(world.key_id, 2)
        assert [charge.amount for charge in row] == [paid]
        # The buyer's own account agrees, and what was bought is there after a restart, word for word.
        opening = await world.buyer.fetch_opening(row[0].provider, row[0].counter)
        assert sum(account.state.charged for account in world.buyer.accounts) == paid == opening.receipt.fee
    async with shop() as again:
        kept = await again.buyer.fetch_opening(row[0].provider, row[0].counter)
        assert kept == opening


async def test_base64_is_little_endian_float32(shop):
    async with (
        shop() as world,
        openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client,
    ):
        whole = await client.embeddings.create(model="tiny-bytes", input=TEXTS, encoding_format="base64")
        numbers = [np.frombuffer(base64.b64decode(str(item.embedding)), "<f4") for item in whole.data]
        assert [len(vector) for vector in numbers] == [64] * 3


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": 7}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a"] * 33}, "input"),
        ({"input": [[1, -1]]}, "input[0][1]"),
        ({"input": [1, True]}, "input[1]"),
        ({"input": [1 << 31]}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": "word " * 900}, "input"),
        ({"dimensions": 64}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"user": "ada"}, "user"),
        ({"stream": True}, "stream"),
        ({"truncate": True}, "truncate"),
        ({"model": None}, "model"),
    ],
)
async def test_what_is_not_understood_is_refused_by_name_and_buys_nothing(world, changes, param):
    body = {"model": "tiny", "input": "hello"} | changes
    status, said = await post(world, json.dumps(body).encode())
    assert (status, said["error"]["param"]) == (400, param), said
    assert world.spent == 0
    assert world.buyer.orders == []


async def test_a_batch_takes_lines_of_embeddings(world):
    world.buyer.reply = world.point
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": [name, "a"]}}
        for name in ("e", "ea")
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    async with openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client:
        file = await client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        async with asyncio.timeout(20):
            while batch.status != "completed":
                await asyncio.sleep(0.02)
                batch = await client.batches.retrieve(batch.id)
        said = (await client.files.content(batch.output_file_id)).text.splitlines()
    bodies = {item["custom_id"]: item["response"]["body"] for item in map(json.loads, said)}
    first = {name: body["data"][0]["embedding"] for name, body in bodies.items()}
    assert first == {"e": [1.0, 0.0], "ea": [0.5, float(np.float16(0.75**0.5))]}
    assert world.spent == sum(body["usage"]["prompt_tokens"] for body in bodies.values())
