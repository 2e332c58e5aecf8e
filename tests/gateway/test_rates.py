"""Rates and usage of keys, with the unmodified SDK and with a clock that the test moves."""

import openai
import pytest

from deaios.gateway.errors import RefusedRate
from deaios.gateway.keys import KeyRecord
from deaios.gateway.rates import Rates
from deaios.gateway.store import InvalidKeyTerms
from deaios.primitives.units import format_credit

HELLO = [{"role": "user", "content": "hello"}]


class Hand:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def monotonic_s(self):
        return self.now


def key_with(requests=None, tokens=None):
    return KeyRecord("key_1", "test", None, 0, None, 0, None, None, requests, tokens)


def test_requests_come_back_evenly():
    clock = Hand()
    rates, key = Rates(clock), key_with(requests=6)
    for _ in range(6):
        rates.admit(key)
    with pytest.raises(RefusedRate) as caught:
        rates.admit(key)
    assert caught.value.retry_s == 10
    assert rates.describe(key) == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60.000s",
    }
    clock.now = 10.0
    rates.admit(key)
    with pytest.raises(RefusedRate):
        rates.admit(key)
    clock.now = 1000.0
    for _ in range(6):
        rates.admit(key)
    with pytest.raises(RefusedRate):
        rates.admit(key)


def test_tokens_that_ran_over_are_owed():
    clock = Hand()
    rates, key = Rates(clock), key_with(tokens=60)
    rates.admit(key)
    rates.count("key_1", 90)
    rates.count("key_2", 90)
    with pytest.raises(RefusedRate) as caught:
        rates.admit(key)
    assert caught.value.retry_s == 31
    clock.now = 31.0
    rates.admit(key)
    assert rates.describe(key)["x-ratelimit-remaining-tokens"] == "1"
    assert Rates(clock).describe(key_with()) == {}


async def test_a_key_over_its_rate_is_told_when_to_come_back(world):
    world.keys.set_rates(world.key_id, 2, 1000)
    async with openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key, max_retries=0) as client:
        first = await client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO)
        stream = await client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO, stream=True)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(1000 - 26)
    assert stream.headers["x-ratelimit-remaining-requests"] == "0"
    headers = caught.value.response.headers
    assert (caught.value.code, headers["retry-after"]) == ("rate_limit_exceeded", "30")
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert len(world.buyer.orders) == 2


async def test_a_key_without_rates_gets_no_headers(world):
    async with openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client:
        answer = await client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO)
    assert [name for name in answer.headers if name.startswith("x-ratelimit")] == []


@pytest.mark.parametrize("rate", [0, -1, 10**10])
def test_rates_out_of_bounds_are_refused(world, rate):
    with pytest.raises(InvalidKeyTerms):
        world.keys.set_rates(world.key_id, rate, None)


async def test_usage_adds_up_to_what_was_spent(start_gateway):
    async with (
        start_gateway(budget=10_000) as world,
        openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key) as client,
    ):
        await client.chat.completions.create(model="tiny", messages=HELLO, n=2, max_tokens=90)
        usage = await client.get("/usage", cast_to=object, options={"params": {"bucket_width": "1m"}})
        with pytest.raises(openai.BadRequestError):
            await client.get("/usage", cast_to=object, options={"params": {"bucket_width": "1y"}})
        with pytest.raises(openai.BadRequestError):
            await client.get("/usage", cast_to=object, options={"params": {"group_by": "model"}})
        receipts = [purchase.opening.receipt for purchase in world.buyer.purchases]
        assert usage["purchases"] == 2 == sum(bucket["purchases"] for bucket in usage["data"])
        assert usage["prompt_tokens"] == sum(receipt.prompt_tokens for receipt in receipts)
        assert usage["completion_tokens"] == sum(receipt.completion_tokens for receipt in receipts)
        assert usage["cost"] == usage["key"]["spent"] == format_credit(world.spent)
        assert usage["key"]["remaining"] == format_credit(10_000 - world.spent)
