"""The unmodified Anthropic SDK against the real server: messages, events, errors, keys, counting."""

import asyncio
import json

import aiohttp
import anthropic
import pytest

from deaios.ledger.structs import FinishReason
from deaios.market.opening import Opening
from deaios.primitives.errors import Refused, Unavailable

HELLO = [{"role": "user", "content": "hello"}]
SAID = {"model": "tiny", "max_tokens": 50, "messages": HELLO}


def client_of(world, **options):
    options = {"api_key": world.key} | options
    return anthropic.AsyncAnthropic(base_url=world.url, **options)


async def test_a_message_is_bought_once_with_its_proof(world):
    blocks = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    async with client_of(world) as client:
        message = await client.messages.create(
            **(SAID | {"messages": [{"role": "user", "content": blocks}]}),
            system="be brief",
            extra_body={"temperature": 0.5, "top_k": 7},
        )
    order = world.buyer.orders[0]
    assert bytes(order.prompt_ids) == b"system:be brief\nuser:hel\nlo\n"
    assert (order.params.temperature_milli, order.params.top_k, order.params.max_tokens) == (500, 7, 50)
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == ("Hello, wörld!", "end_turn", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (28, 15)
    assert message.usage.cache_read_input_tokens == 0
    proof = message.model_extra["deaios"]
    assert proof["part"] == {"api": "messages", "index": 0, "history": []}
    assert Opening.decode_json(proof["opening"]) == world.buyer.purchases[0].opening
    assert world.spent == world.buyer.purchases[0].opening.receipt.fee > 0


async def test_events_come_in_the_documented_order(world):
    async with client_of(world) as client:
        stream = await client.messages.create(**SAID, stream=True)
        events = [event async for event in stream]
    kinds = [event.type for event in events]
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(deltas) == "Hello, wörld!"
    assert events[0].message.usage.input_tokens == len(b"user:hello\n")
    assert events[-2].delta.stop_reason == "end_turn"
    assert events[-2].usage.output_tokens == 15
    assert "opening" in events[-2].model_extra["deaios"]


async def test_the_streaming_helper_and_a_sync_client_agree(world):
    async with client_of(world) as client, client.messages.stream(**SAID) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()

    def talk():
        with anthropic.Anthropic(base_url=world.url, api_key=world.key) as client:
            whole = client.messages.create(**SAID).content[0].text
            with client.messages.stream(**SAID) as events:
                return whole, "".join(events.text_stream)

    assert await asyncio.to_thread(talk) == (text, final.content[0].text) == ("Hello, wörld!", "Hello, wörld!")
    assert final.usage.output_tokens == 15


async def test_stops_are_named(world):
    async with client_of(world) as client:
        world.buyer.reply = lambda order: world.say("one two STOP", size=1, finish=FinishReason.STOP_STRING)
        stopped = await client.messages.create(**SAID, stop_sequences=["STOP", "never"])
        world.buyer.reply = lambda order: world.say("x" * order.params.max_tokens, finish=FinishReason.LENGTH)
        cut = await client.messages.create(**SAID)
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == (
        "one two ",
        "stop_sequence",
        "STOP",
    )
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)


async def test_tokens_are_counted_for_nothing(world):
    async with client_of(world) as client:
        counted = await client.messages.count_tokens(model="tiny", messages=HELLO, system="x")
    assert counted.input_tokens == len(b"system:x\nuser:hello\n")
    assert world.buyer.orders == []


async def test_either_header_holds_the_key(world):
    async with client_of(world, api_key=None, auth_token=world.key) as client:
        assert (await client.messages.create(**SAID)).stop_reason == "end_turn"
    async with client_of(world, api_key="sk-deaios-nonsense") as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(**SAID)
    assert caught.value.body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, anthropic.BadRequestError, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, anthropic.BadRequestError, "thinking"),
        ({"metadata": {"user_id": "7"}}, anthropic.BadRequestError, "metadata"),
        ({"extra_body": {"made_up": 1}}, anthropic.BadRequestError, "made_up"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "He"}]}, anthropic.BadRequestError, "prefilled"),
        ({"messages": [{"role": "system", "content": "x"}]}, anthropic.BadRequestError, "role"),
        ({"max_tokens": 1000}, anthropic.BadRequestError, "context holds"),
        ({"model": "other"}, anthropic.NotFoundError, "other"),
        ({"extra_headers": {"anthropic-version": "2024-01-01"}}, anthropic.BadRequestError, "anthropic-version"),
    ],
)
async def test_refusals_have_this_apis_shape(world, options, kind, word, stream):
    async with client_of(world) as client:
        with pytest.raises(kind, match=word) as caught:
            await client.messages.create(**(SAID | options), stream=stream)
    assert caught.value.body["type"] == "error"
    assert set(caught.value.body["error"]) == {"type", "message"}
    assert world.buyer.orders == []


async def test_failures_are_retried_or_said(world):
    replies = [Unavailable("provider down"), world.say("fine"), Refused("no provider has level 4")]
    world.buyer.reply = lambda order: replies.pop(0)
    async with client_of(world) as client:
        assert (await client.messages.create(**SAID)).content[0].text == "fine"
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**SAID)
        assert caught.value.status_code == 503
        world.buyer.reply = lambda order: world.script([tuple(b"He"), Unavailable("vanished")])
        stream = await client.messages.create(**SAID, stream=True)
        with pytest.raises(anthropic.APIStatusError):
            async for _ in stream:
                pass
    assert len(world.keys.list_charges(world.key_id, 9)) == 1


async def test_an_unknown_path_below_has_the_same_shape(world):
    async with (
        aiohttp.ClientSession() as session,
        session.post(world.url + "/v1/messages/batches", json={}, headers=world.headers) as response,
    ):
        assert response.status == 404
        assert json.loads(await response.read())["error"]["type"] == "not_found_error"
