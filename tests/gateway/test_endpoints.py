"""`/v1/models/{name}/endpoints`: OpenRouter's fields, from what the buyer saw; and how wishes reach the buyer."""

import json
from dataclasses import replace

import aiohttp
import openai
import pytest

from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import Offer
from deaios.market.buyer.endpoints import Endpoint
from deaios.market.offers import SignedOffer
from deaios.market.preferences import Preferences
from deaios.market.routing import Breaker, Candidate, ProviderStats
from deaios.market.statistics import EndpointRecord
from deaios.primitives.hashing import ZERO32
from deaios.primitives.units import CREDIT

MINUTE = 30_000_000
HELLO = [{"role": "user", "content": "hello"}]


def build_endpoint(record_id, address, *, refused=None):
    offer = Offer(address, record_id, ZERO32, 2, CREDIT, 4 * CREDIT, 512, 8, 900, "http://p", 2**40)
    record = EndpointRecord()
    for number in range(20):
        record.note_attempt(MINUTE * 60_000, is_success=number < 17)
    record.note_served(MINUTE * 60_000, 250.0, 40.0)
    record.states["served"] += 17
    record.states["failed_provider"] += 3
    candidate = Candidate(address, SignedOffer(offer, bytes(65), hash_struct(offer)), 50, False, frozenset({"zdr"}))
    seen = record.compute(MINUTE * 60_000 + 1)
    return Endpoint(candidate, seen, ProviderStats(in_flight=3, waiting=2), Breaker.CLOSED, refused)


async def test_endpoints_are_shown_in_openrouters_form(world, record_id):
    first, second = build_endpoint(record_id, b"\x22" * 20), build_endpoint(record_id, b"\x33" * 20, refused="excluded")
    world.buyer.endpoints = [first, second, build_endpoint(bytes(32), b"\x44" * 20)]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{world.base_url}/models/tiny/endpoints", headers=world.headers) as response:
            assert response.status == 200
            data = (await response.json())["data"]
        async with session.get(f"{world.base_url}/models/other/endpoints", headers=world.headers) as response:
            assert response.status == 404
        async with session.get(f"{world.base_url}/models/tiny/endpoints") as response:
            assert response.status == 401
        async with session.get(f"{world.base_url}/models/tiny", headers=world.headers) as response:
            model = await response.json()
    percentiles = {"p50": 250.0, "p75": 250.0, "p90": 250.0, "p99": 250.0}
    assert (data["id"], len(data["endpoints"])) == ("tiny-bytes", 2)
    assert data["endpoints"][0] == {
        "name": "tiny-bytes | 0x" + "22" * 20,
        "model_id": "0x" + record_id.hex(),
        "model_name": "tiny-bytes",
        "provider_name": "0x" + "22" * 20,
        "tag": "0x" + "22" * 20,
        "context_length": 512,
        "max_completion_tokens": 512,
        "max_prompt_tokens": 512,
        "pricing": {"prompt": "0.000001", "completion": "0.000004"},
        "quantization": "fp16",
        "supported_parameters": model["supported_parameters"],
        "supports_implicit_caching": False,
        "status": 0,
        "uptime_last_5m": 100.0,
        "uptime_last_30m": 100.0,
        "uptime_last_1d": 100.0,
        "latency_last_30m": percentiles,
        "throughput_last_30m": dict.fromkeys(percentiles, 40.0),
        "deaios": {
            "provider": "0x" + "22" * 20,
            "level": 2,
            "breaker": "closed",
            "outcomes": {"failed_provider": 3, "served": 17},
            "promises": ["zdr"],
            "inFlight": 3,
            "waiting": 2,
            "refused": None,
        },
    }
    assert (data["endpoints"][1]["status"], data["endpoints"][1]["deaios"]["refused"]) == (-1, "excluded")
    assert model["pricing"]["prompt"] == "0.000001"
    assert "seed" in model["supported_parameters"]


async def test_what_a_user_prefers_reaches_the_buyer(world):
    address = "0x" + "22" * 20
    async with openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client:
        ask = {"model": "tiny", "messages": HELLO, "max_tokens": 30}
        extra = {"provider": {"only": [address], "sort": "price"}, "deaios": {"hedge": True}}
        await client.chat.completions.create(**ask, prompt_cache_key="app", extra_body=extra)
        await client.chat.completions.create(**ask, prompt_cache_key="app")
        await client.chat.completions.create(**ask, prompt_cache_key="other")
        await client.chat.completions.create(**ask)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**ask, extra_body={"provider": {"region": "eu"}})
    assert json.loads(refused.value.response.content)["error"]["param"] == "provider.region"
    first, second, third, fourth = world.buyer.orders
    assert (first.preferences, first.is_hedged) == (
        replace(Preferences(), only=frozenset({b"\x22" * 20}), sort="price"),
        True,
    )
    assert (second.preferences, second.is_hedged, first.quantisation) == (None, False, "F16")
    assert first.affinity == second.affinity != third.affinity
    assert fourth.affinity is None


async def test_long_prompts_that_begin_alike_have_one_affinity(start_gateway):
    async with start_gateway(context_tokens=2000) as world, aiohttp.ClientSession() as session:
        for text in ("a" * 400 + "x", "a" * 400 + "y", "b" * 400):
            body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": text}]}).encode()
            async with session.post(f"{world.base_url}/chat/completions", data=body, headers=world.headers) as response:
                assert response.status == 200, await response.text()
        one, two, three = (order.affinity for order in world.buyer.orders)
        assert one == two != three
        assert None not in (one, three)
