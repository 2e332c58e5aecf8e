"""The unmodified OpenAI SDK against the real server: completing, streaming, usage, errors, models."""

import asyncio

import openai
import pytest

from deaios.ledger.structs import FinishReason
from deaios.market.opening import Opening
from deaios.primitives.errors import Refused, Unavailable

HELLO = [{"role": "user", "content": "hello"}]
PROMPT_TOKENS = len(b"user:hello\n")


async def hear(stream, heard):
    async for chunk in stream:
        heard.append(chunk.choices[0].delta.content or "")


def client_of(world, **options):
    return openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key, **options)


async def test_async_client_completes(world):
    async with client_of(world) as client:
        answer = await client.chat.completions.create(model="tiny-bytes", messages=HELLO, max_tokens=50)
    assert answer.choices[0].message.content == "Hello, wörld!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "tiny-bytes"
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 15,
        "total_tokens": PROMPT_TOKENS + 15,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    proof = answer.model_extra["deaios"]
    opening = Opening.decode_json(proof["opening"])
    assert opening == world.buyer.purchases[0].opening
    assert proof["network"] == "0x" + "77" * 32
    assert proof["provider"] == "0x" + "22" * 20
    assert proof["clientNonce"] == "0x" + world.buyer.orders[0].client_nonce.hex()
    assert world.spent == opening.receipt.fee > 0


async def test_sync_client_completes_and_streams(world):
    def talk():
        with openai.OpenAI(base_url=world.base_url, api_key=world.key) as client:
            whole = client.chat.completions.create(model="tiny", messages=HELLO)
            with client.chat.completions.create(model="tiny", messages=HELLO, stream=True) as stream:
                return whole.choices[0].message.content, list(stream)

    whole, chunks = await asyncio.to_thread(talk)
    assert whole == "Hello, wörld!"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)
    assert ["deaios" in (chunk.model_extra or {}) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_stream_with_usage_puts_the_proof_on_the_usage_chunk(world):
    async with client_of(world) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 15
    assert Opening.decode_json(chunks[-1].model_extra["deaios"]["opening"]) == world.buyer.purchases[0].opening
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_streaming_helper_of_the_sdk_assembles_the_answer(world):
    async with client_of(world) as client, client.chat.completions.stream(model="tiny", messages=HELLO) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "Hello, wörld!"


async def test_a_length_finish_and_parameters_reach_the_order(start_gateway):
    async with start_gateway() as world, client_of(world) as client:
        world.buyer.reply = lambda order: world.say("x" * order.params.max_tokens, finish=FinishReason.LENGTH)
        answer = await client.chat.completions.create(
            model="tiny", messages=HELLO, max_completion_tokens=7, temperature=0.5, top_p=0.9, extra_body={"top_k": 5}
        )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("x" * 7, "length")
    params = world.buyer.orders[0].params
    assert (params.temperature_milli, params.top_p_milli, params.top_k, params.max_tokens) == (500, 900, 5, 7)


async def test_a_stop_string_never_shows(start_gateway):
    async with start_gateway() as world, client_of(world) as client:
        world.buyer.reply = lambda order: world.say("one two STOP", size=1, finish=FinishReason.STOP_STRING)
        whole = await client.chat.completions.create(model="tiny", messages=HELLO, stop=["STOP"])
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stop=["STOP"], stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert whole.choices[0].message.content == streamed == "one two "
    assert whole.choices[0].finish_reason == "stop"


async def test_models_are_listed_with_context_prices_and_record(world):
    async with client_of(world) as client:
        models = (await client.models.list()).data
        one = await client.models.retrieve("tiny")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("gpt-9")
    assert [model.id for model in models] == ["tiny-bytes"]
    assert one == models[0]
    listed = one.model_dump(exclude_none=True)
    assert {"tools", "response_format", "seed", "top_k"} <= set(listed.pop("supported_parameters"))
    assert listed == {
        "id": "tiny-bytes",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "tests",
        "context_length": 1000,
        "pricing": {"prompt": "0.000001", "completion": "0.000004"},
        "record_id": "0x" + "55" * 32,
    }
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("options", "kind", "code", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", None),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"n": 33}, openai.BadRequestError, "invalid_value", "n"),
        ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 1}, openai.BadRequestError, "invalid_value", "top_logprobs"),
        ({"tools": [{"type": "custom"}]}, openai.BadRequestError, "unsupported_parameter", "tools[0].type"),
        ({"extra_body": {"made_up": 1}}, openai.BadRequestError, "unknown_parameter", "made_up"),
        ({"max_tokens": 990}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        ({"extra_headers": {"X-DeAIOS-Nonce": "0x12"}}, openai.BadRequestError, "invalid_value", "X-DeAIOS-Nonce"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_are_openai_errors(world, options, kind, code, param, stream):
    async with client_of(world) as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(**({"model": "tiny", "messages": HELLO, "stream": stream} | options))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"
    assert world.buyer.orders == []
    assert world.spent == 0


async def test_a_wrong_key_is_an_authentication_error(world):
    async with openai.AsyncOpenAI(base_url=world.base_url, api_key="sk-deaios-nonsense") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    assert caught.value.code == "invalid_api_key"


async def test_a_failure_before_the_first_token_is_retried_and_bought_once(world):
    replies = [Unavailable("provider down"), world.say("fine")]
    world.buyer.reply = lambda order: replies.pop(0)
    async with client_of(world) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.choices[0].message.content == "fine"
    assert len(world.buyer.orders) == 2
    assert world.spent == Opening.decode_json(answer.model_extra["deaios"]["opening"]).receipt.fee


async def test_what_no_provider_offers_is_not_retried(world):
    world.buyer.reply = lambda order: Refused("no provider has level 4")
    async with client_of(world) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (503, "no_provider")
    assert len(world.buyer.orders) == 1


@pytest.mark.parametrize("error", [Unavailable("provider vanished"), ValueError("a fault of ours")])
async def test_a_failure_inside_a_stream_raises_in_the_sdk_and_costs_nothing(world, error):
    world.buyer.reply = lambda order: world.script([tuple(b"Hel"), error])
    async with client_of(world) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        heard = []
        with pytest.raises(openai.APIError) as caught:
            await hear(stream, heard)
    assert "".join(heard) == "Hel"
    assert "ours" not in caught.value.message
    assert world.spent == 0


async def test_an_exhausted_budget_is_refused_before_buying(start_gateway):
    async with start_gateway(budget=100) as world, client_of(world) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=50)
    assert (caught.value.status_code, caught.value.code) == (402, "insufficient_quota")
    assert world.buyer.orders == []
