"""Tools and structured output through the unmodified Anthropic SDK: create and stream, sync and async."""

import asyncio
import json

import anthropic
import pytest
from pydantic import BaseModel

from deaios.ledger.structs import FinishReason
from deaios.market.tool_text import build_call_id

ASK = [{"role": "user", "content": "weather?"}]
INPUT = {"city": "Oslo", "days": [1, 2]}
ARGUMENTS = json.dumps(INPUT)
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"name": "get_weather", "description": "Now.", "input_schema": SCHEMA},
    {"name": "get_time", "input_schema": {"type": "object", "properties": {}}},
]
SAID = {"model": "tiny", "max_tokens": 200, "messages": ASK, "tools": TOOLS}
_USE = {"type": "tool_use", "id": "toolu_1", "name": "get_time", "input": {}}
_RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "12"}


class Person(BaseModel):
    name: str


def client_of(world):
    return anthropic.AsyncAnthropic(base_url=world.url, api_key=world.key)


def says(world, text, **options):
    world.buyer.reply = lambda order: world.say(text, **options)


async def test_a_whole_tool_loop(world):
    says(world, f"Let me see.\n{CALL}\n{OTHER}")
    async with client_of(world) as client:
        first = await client.messages.create(**SAID)
        says(world, "Rain at noon.")
        uses = first.content[1:]
        results = [
            {"type": "tool_result", "tool_use_id": uses[0].id, "content": [{"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": uses[1].id, "content": "no clock", "is_error": True},
            {"type": "text", "text": "Well?"},
        ]
        turns = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        second = await client.messages.create(**(SAID | {"messages": turns}))
        counted = await client.messages.count_tokens(model="tiny", messages=turns, tools=TOOLS)
    assert first.stop_reason == "tool_use"
    assert first.content[0].text == "Let me see."
    assert [(use.type, use.name, use.input) for use in uses] == [
        ("tool_use", "get_weather", INPUT),
        ("tool_use", "get_time", {}),
    ]
    digest = world.buyer.purchases[0].opening.ask.client_digest
    assert [use.id for use in uses] == [build_call_id(digest, index, "toolu_") for index in range(2)]
    assert (second.stop_reason, second.content[0].text) == ("end_turn", "Rain at noon.")
    prompt = bytes(world.buyer.orders[1].prompt_ids).decode()
    assert prompt == (
        "tools:get_weather,get_time\nuser:weather?\n"
        f"assistant:Let me see.(get_weather{ARGUMENTS})(get_time{{}})\n"
        f"tool({uses[0].id}):rain\ntool({uses[1].id}):Error: no clock\nuser:Well?\n"
    )
    assert counted.input_tokens == len(prompt.encode())


async def test_events_of_calls_come_in_the_documented_order(world):
    says(world, f"Let me see.\n{CALL}\n{OTHER}", size=5)
    async with client_of(world) as client:
        stream = await client.messages.create(**SAID, stream=True)
        events = [event async for event in stream]
        async with client.messages.stream(**SAID) as helper:
            async for _ in helper:
                pass
            final = await helper.get_final_message()
    kinds = [event.type for event in events]
    merged = [kind for place, kind in enumerate(kinds) if kinds[place - 1 : place] != [kind]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert merged == ["message_start", *block, *block, *block, "message_delta", "message_stop"]
    starts = [event for event in events if event.type == "content_block_start"]
    assert [(start.index, start.content_block.type) for start in starts] == [
        (0, "text"),
        (1, "tool_use"),
        (2, "tool_use"),
    ]
    grown = ["", "", ""]
    for event in events:
        if event.type == "content_block_delta":
            grown[event.index] += event.delta.text if event.index == 0 else event.delta.partial_json
    assert grown == ["Let me see.", ARGUMENTS, "{}"]
    assert events[-2].delta.stop_reason == final.stop_reason == "tool_use"
    assert [block.input for block in final.content[1:]] == [INPUT, {}]


async def test_a_sync_client_does_the_same(world):
    def talk():
        with anthropic.Anthropic(base_url=world.url, api_key=world.key) as client:
            says(world, CALL)
            whole = client.messages.create(**SAID)
            with client.messages.stream(**SAID) as stream:
                return whole, stream.get_final_message()

    whole, streamed = await asyncio.to_thread(talk)
    assert whole.content[0].input == streamed.content[0].input == INPUT
    assert (whole.stop_reason, streamed.stop_reason) == ("tool_use", "tool_use")


async def test_parse_and_stream_give_objects(world):
    says(world, '{"name": "Ada"}')
    plain = {"model": "tiny", "max_tokens": 50, "messages": ASK}
    async with client_of(world) as client:
        parsed = await client.messages.parse(**plain, output_format=Person)
        async with client.messages.stream(**plain, output_format=Person) as stream:
            grown = await stream.get_final_message()
    assert parsed.parsed_output == grown.parsed_output == Person(name="Ada")
    assert {json.loads(order.constraint)["kind"] for order in world.buyer.orders} == {"json_schema"}


@pytest.mark.parametrize(
    ("choice", "form"),
    [
        ({"type": "none"}, None),
        ({"type": "auto"}, (["get_weather", "get_time"], False, True)),
        ({"type": "any"}, (["get_weather", "get_time"], True, True)),
        ({"type": "any", "disable_parallel_tool_use": True}, (["get_weather", "get_time"], True, False)),
        ({"type": "tool", "name": "get_time"}, (["get_time"], True, True)),
    ],
)
async def test_every_choice_is_enforced(world, choice, form):
    async with client_of(world) as client:
        await client.messages.create(**SAID, tool_choice=choice)
    constraint = world.buyer.orders[0].constraint
    if form is None:
        assert constraint is None
    else:
        found = json.loads(constraint)
        assert ([tool["name"] for tool in found["tools"]], found["required"], found["parallel"]) == form


async def test_a_call_that_is_cut_off_keeps_its_whole_members(world):
    cut = CALL[: CALL.index("Oslo") + 20]
    says(world, cut, finish=FinishReason.LENGTH)
    async with client_of(world) as client:
        message = await client.messages.create(**(SAID | {"max_tokens": len(cut)}))
    assert (message.stop_reason, message.content[0].input) == ("max_tokens", {"city": "Oslo"})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"messages": [*ASK, {"role": "assistant", "content": [_USE]}, *ASK]}, "have no result"),
        ({"messages": [{"role": "user", "content": [_RESULT]}]}, "names no call"),
        ({"messages": [*ASK, {"role": "assistant", "content": [_USE, {"type": "text", "text": "x"}]}]}, "come last"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, _RESULT]}]}, "come first"),
        ({"messages": [{"role": "user", "content": [_USE]}]}, "only parts of type 'text'"),
        ({"messages": [{"role": "assistant", "content": [_USE | {"input": "{}"}]}]}, "input is a JSON string"),
        ({"tools": [{"name": "a"}]}, "input_schema is missing"),
        ({"tools": [{"name": "a", "input_schema": {"type": "object", "not": {}}}]}, "tools.0..input_schema.not"),
        ({"tools": [TOOLS[0] | {"cache_control": {"type": "ephemeral"}}]}, "cache_control"),
        ({"tool_choice": {"type": "tool", "name": "b"}}, "none of the tools"),
        ({"tool_choice": {"type": "tool"}}, "name is missing"),
        ({"tool_choice": {"type": "required"}}, "allowed are"),
        ({"output_config": {"effort": "low"}}, "effort"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "format.schema.not"),
    ],
)
async def test_what_is_wrong_with_tools_is_said_by_name(world, options, word):
    async with client_of(world) as client:
        with pytest.raises(anthropic.BadRequestError, match=word):
            await client.messages.create(**(SAID | options))
    assert world.buyer.orders == []
