"""`client.responses` of the unmodified OpenAI SDK against the real server."""

import asyncio
import json

import msgspec
import openai
import pytest

from deaios.gateway import records as records_rules
from deaios.gateway.records import RecordStore, ResponseRecord
from deaios.gateway.records_schema import MIGRATIONS
from deaios.ledger.structs import FinishReason
from deaios.market.opening import Opening
from deaios.market.question import Message
from deaios.primitives.errors import Unavailable
from deaios.runtime.journal import open_journal


def client_of(world, **options):
    return openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key, **options)


async def test_a_response_is_bought_kept_and_shown_again(world):
    async with client_of(world) as client:
        answer = await client.responses.create(
            model="tiny", input="hello", instructions="be brief", metadata={"job": "7"}, temperature=0.5, top_p=0.9
        )
        again = await client.responses.retrieve(answer.id)
        items = (await client.responses.input_items.list(answer.id)).data
    assert answer.output_text == "Hello, wörld!"
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "tiny-bytes")
    assert (answer.temperature, answer.top_p, answer.metadata) == (0.5, 0.9, {"job": "7"})
    assert bytes(world.buyer.orders[0].prompt_ids) == b"system:be brief\nuser:hello\n"
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (27, 15, 42)
    assert again == answer
    assert [(item.role, item.content[0].text) for item in items] == [("user", "hello")]
    proof = answer.model_extra["deaios"]
    assert proof["part"] == {"api": "responses", "index": 0, "history": []}
    assert Opening.decode_json(proof["opening"]) == world.buyer.purchases[0].opening
    assert world.spent == world.buyer.purchases[0].opening.receipt.fee


async def test_events_come_in_the_documented_order(world):
    async with client_of(world) as client:
        stream = await client.responses.create(model="tiny", input=[{"role": "user", "content": "x"}], stream=True)
        events = [event async for event in stream]
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in deltas) == events[-4].text == events[-1].response.output_text
    assert "deaios" in events[-1].response.model_extra
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1


async def test_the_streaming_helper_and_a_sync_client_agree(world):
    async with client_of(world) as client, client.responses.stream(model="tiny", input="x") as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()

    def talk():
        with openai.OpenAI(base_url=world.base_url, api_key=world.key) as client:
            with client.responses.create(model="tiny", input="x", stream=True, store=False) as events:
                streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            return client.responses.create(model="tiny", input="x").output_text, streamed

    assert await asyncio.to_thread(talk) == (final.output_text, "Hello, wörld!")


async def test_a_conversation_continues_without_its_old_instructions(world):
    async with client_of(world) as client:
        first = await client.responses.create(model="tiny", input="one", instructions="shout")
        said = [*first.output, {"role": "user", "content": [{"type": "input_text", "text": "two"}]}]
        second = await client.responses.create(model="tiny", input="two", previous_response_id=first.id)
        by_hand = await client.responses.create(model="tiny", input=[{"role": "user", "content": "one"}, *said])
        await client.responses.delete(first.id)
        third = await client.responses.create(
            model="tiny", input="three", instructions="whisper", previous_response_id=second.id, store=False
        )
        items = (await client.responses.input_items.list(second.id, order="asc")).data
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(third.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="tiny", input="x", previous_response_id=third.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")
    prompts = [bytes(order.prompt_ids).decode() for order in world.buyer.orders]
    assert prompts[1] == prompts[2] == "user:one\nassistant:Hello, wörld!\nuser:two\n"
    assert prompts[3] == f"system:whisper\n{prompts[1]}assistant:Hello, wörld!\nuser:three\n"
    assert [item.content[0].text for item in items] == ["one", "Hello, wörld!", "two"]
    history = second.model_extra["deaios"]["part"]["history"]
    assert [turn["content"] for turn in history] == ["one", "Hello, wörld!"]
    assert by_hand.model_extra["deaios"]["part"]["history"] == []


async def test_an_answer_cut_by_its_length_is_incomplete(world):
    world.buyer.reply = lambda order: world.say("x" * order.params.max_tokens, finish=FinishReason.LENGTH)
    async with client_of(world) as client:
        answer = await client.responses.create(model="tiny", input="x", max_output_tokens=4)
        stream = await client.responses.create(model="tiny", input="x", max_output_tokens=4, stream=True)
        last = [event async for event in stream][-1]
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (last.type, last.response.output_text) == ("response.incomplete", "xxxx")


async def test_a_failure_inside_a_stream_is_its_last_event(world):
    world.buyer.reply = lambda order: world.script([tuple(b"He"), Unavailable("provider vanished")])
    async with client_of(world) as client:
        stream = await client.responses.create(model="tiny", input="x", stream=True)
        last = [event async for event in stream][-1]
    assert (last.type, last.response.status, last.response.error.code) == (
        "response.failed",
        "failed",
        "server_error",
    )
    assert world.spent == 0


async def test_tokens_are_counted_for_nothing(world):
    async with client_of(world) as client:
        counted = await client.responses.input_tokens.count(model="tiny", input="hello")
    assert counted.input_tokens == len(b"user:hello\n")
    assert world.buyer.orders == []


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "invalid_value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "unsupported_parameter"),
        ({"input": [{"type": "computer_call", "output": "x"}]}, "input[0].type", "unsupported_parameter"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c1", "output": "x"}]},
            "input.call_id",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
            "invalid_value",
        ),
        ({"metadata": {"a": "b" * 513}}, "metadata", "invalid_value"),
        ({"max_output_tokens": 999}, "max_output_tokens", "context_length_exceeded"),
        ({"input": "x" * 1000}, "input", "context_length_exceeded"),
        ({"extra_body": {"made_up": 1}}, "made_up", "unknown_parameter"),
    ],
)
async def test_what_is_not_offered_is_refused_by_name(world, options, param, code):
    async with client_of(world) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**({"model": "tiny", "input": "x"} | options))
    assert (caught.value.param, caught.value.code) == (param, code)
    assert world.buyer.orders == []


async def test_another_key_sees_nothing(world, counting_dice):
    other, _record = world.keys.create(counting_dice, 0, name="other")
    async with client_of(world) as client, openai.AsyncOpenAI(base_url=world.base_url, api_key=other) as stranger:
        mine = await client.responses.create(model="tiny", input="x")
        for call in (stranger.responses.retrieve, stranger.responses.delete):
            with pytest.raises(openai.NotFoundError):
                await call(mine.id)
        assert (await client.responses.retrieve(mine.id)).id == mine.id


def test_a_keys_responses_are_bounded_in_number_bytes_and_age(tmp_path, monkeypatch):
    monkeypatch.setattr(records_rules, "RESPONSES_MAX", 3)
    monkeypatch.setattr(records_rules, "RESPONSE_BYTES_MAX", 100)
    store = RecordStore.open(tmp_path / "records.sqlite")

    def kept():
        return [number for number in range(9) if store.find_response("key", f"resp_{number}")]

    for number in range(5):
        store.keep_response(ResponseRecord(f"resp_{number}", "key", number, b"d", b"t"))
        store.keep_response(ResponseRecord(f"theirs_{number}", "other", number, b"d", b"t"))
    assert kept() == [2, 3, 4]
    store.keep_response(ResponseRecord("resp_5", "key", 5, b"d" * 96, b"t" * 2))
    assert kept() == [4, 5]
    store.keep_response(ResponseRecord("resp_6", "key", 6 + records_rules.RETENTION_MS, b"d", b"t"))
    assert kept() == [6]
    assert store.find_response("other", "theirs_4")
    store.close()


def test_turns_of_older_versions_are_read(tmp_path):
    path = tmp_path / "records.sqlite"
    turns = [("user", 'wörld \u0001 "x"'), ("assistant", "")]
    journal = open_journal(path, MIGRATIONS[:1])
    journal.execute("INSERT INTO responses VALUES ('resp_1', 'key', 0, ?, ?, 9)", (b"{}", json.dumps(turns).encode()))
    journal.commit()
    journal.close()
    store = RecordStore.open(path)
    record = store.find_response("key", "resp_1")
    store.close()
    assert msgspec.json.decode(record.turns, type=list[Message]) == [Message(*turn) for turn in turns]
