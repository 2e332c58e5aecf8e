"""Tools and structured output through the unmodified OpenAI SDK: create, parse and stream, sync and async."""

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from deaios.ledger.structs import FinishReason
from deaios.market.tool_text import build_call_id

ASK = [{"role": "user", "content": "weather?"}]
ARGUMENTS = '{"city": "Oslo", "unit": "celsius"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "get_time"}},
]
FLAT = [{"type": "function", "strict": False, **{"parameters": None} | tool["function"]} for tool in TOOLS]


class GetWeather(BaseModel):
    """The weather now."""

    city: str
    unit: Literal["celsius", "fahrenheit"]


class Person(BaseModel):
    name: str
    friends: list["Person"]


def client_of(world, **options):
    return openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key, **options)


def sync_client_of(world):
    return openai.OpenAI(base_url=world.base_url, api_key=world.key)


def says(world, text, **options):
    world.buyer.reply = lambda order: world.say(text, **options)


def form_of(order):
    return json.loads(order.constraint)


def ids_of(world, count, order=-1):
    """What calls are named by: the client digest of the ask that was signed."""
    digest = world.buyer.purchases[order].opening.ask.client_digest
    return [build_call_id(digest, index) for index in range(count)]


async def test_a_whole_tool_loop(world):
    says(world, f"Let me see.\n{CALL}\n{OTHER}")
    async with client_of(world) as client:
        first = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)
        choice = first.choices[0]
        says(world, "Rain at noon.")
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} done"}
            for call in choice.message.tool_calls
        ]
        messages = [*ASK, choice.message, *results]
        second = await client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    assert (choice.finish_reason, choice.message.content, choice.message.refusal) == ("tool_calls", "Let me see.", None)
    calls = [(call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [("function", "get_weather", ARGUMENTS), ("function", "get_time", "{}")]
    assert (second.choices[0].finish_reason, second.choices[0].message.content) == ("stop", "Rain at noon.")
    assert second.choices[0].message.tool_calls is None
    weather, time = (call.id for call in choice.message.tool_calls)
    assert bytes(world.buyer.orders[1].prompt_ids).decode() == (
        "tools:get_weather,get_time\nuser:weather?\n"
        f"assistant:Let me see.(get_weather{ARGUMENTS})(get_time{{}})\n"
        f"tool({weather}):get_weather done\ntool({time}):get_time done\n"
    )
    form = form_of(world.buyer.orders[0])
    assert (form["kind"], form["required"], form["parallel"]) == ("tool_calls", False, True)
    assert json.loads(form["tools"][0]["parameters"]) == SCHEMA
    assert json.loads(form["tools"][1]["parameters"]) == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_stream_tells_names_at_once_and_arguments_as_they_grow(world, size):
    says(world, f"Let me see.\n{CALL}\n{OTHER}", size=size)
    async with client_of(world) as client:
        stream = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, stream=True)
        chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    begun = [call for call in calls if call.id is not None]
    assert [(call.index, call.type, call.function.name) for call in begun] == [
        (0, "function", "get_weather"),
        (1, "function", "get_time"),
    ]
    assert [call.id for call in begun] == ids_of(world, 2)
    arguments = ["", ""]
    for call in calls:
        arguments[call.index] += call.function.arguments
    assert arguments == [ARGUMENTS, "{}"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert "<tool" not in "".join(chunk.model_dump_json() for chunk in chunks[:-1])
    if size == 1:
        assert len(calls) > len(ARGUMENTS)


async def test_the_streaming_helper_gives_parsed_calls_that_can_be_sent_back(world):
    says(world, CALL)
    tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
    async with client_of(world) as client:
        async with client.chat.completions.stream(model="tiny", messages=ASK, tools=tools) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_completion()
        message = final.choices[0].message
        says(world, "done")
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
        again = await client.chat.completions.create(model="tiny", messages=[*ASK, message, result], tools=tools)
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, event.parsed_arguments) for event in done] == [
        ("get_weather", GetWeather(city="Oslo", unit="celsius"))
    ]
    assert message.tool_calls[0].function.parsed_arguments == GetWeather(city="Oslo", unit="celsius")
    assert again.choices[0].message.content == "done"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's own, of its generic message
async def test_parse_gives_objects_and_its_message_can_be_sent_back(world):
    person = '{"name": "Ada", "friends": [{"name": "Bob", "friends": []}]}'
    says(world, person)
    async with client_of(world) as client:
        parsed = await client.chat.completions.parse(model="tiny", messages=ASK, response_format=Person)
        message = parsed.choices[0].message
        more = [*ASK, message, {"role": "user", "content": "and?"}]
        again = await client.chat.completions.parse(model="tiny", messages=more, response_format=Person)
        says(world, CALL)
        tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
        called = await client.chat.completions.parse(
            model="tiny", messages=ASK, tools=tools, tool_choice="required", parallel_tool_calls=False
        )
        call = called.choices[0].message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        told = await client.chat.completions.parse(
            model="tiny", messages=[*ASK, called.choices[0].message, result], tools=tools
        )
    assert message.parsed == again.choices[0].message.parsed == Person.model_validate_json(person)
    assert call.function.parsed_arguments == GetWeather(city="Oslo", unit="celsius")
    assert told.choices[0].finish_reason == "tool_calls"
    forms = [form_of(order) for order in world.buyer.orders]
    assert [form["kind"] for form in forms] == ["json_schema", "json_schema", "tool_calls", "tool_calls"]
    assert "$defs" in json.loads(forms[0]["schema"])
    assert (forms[2]["required"], forms[2]["parallel"]) == (True, False)
    assert len({order.params.mask_hash for order in world.buyer.orders}) == 3


async def test_a_sync_client_does_the_same(world):
    def talk():
        with sync_client_of(world) as client:
            says(world, CALL)
            whole = client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, n=2)
            with client.chat.completions.stream(model="tiny", messages=ASK, tools=TOOLS) as stream:
                streamed = stream.until_done().get_final_completion()
            says(world, '{"name": "Ada", "friends": []}')
            parsed = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Person)
            with client.chat.completions.stream(model="tiny", messages=ASK, response_format=Person) as stream:
                grown = stream.get_final_completion()
            return whole, streamed, parsed, grown

    whole, streamed, parsed, grown = await asyncio.to_thread(talk)
    calls = [choice.message.tool_calls[0] for choice in (*whole.choices, *streamed.choices)]
    assert {call.function.arguments for call in calls} == {ARGUMENTS}
    assert len({call.id for call in calls}) == 3
    assert parsed.choices[0].message.parsed == grown.choices[0].message.parsed == Person(name="Ada", friends=[])


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"tool_choice": "none"}, None),
        ({"tool_choice": "none", "response_format": {"type": "json_object"}}, "json_object"),
        ({"tool_choice": "auto"}, (["get_weather", "get_time"], False, True)),
        ({"tool_choice": "required"}, (["get_weather", "get_time"], True, True)),
        ({"tool_choice": "required", "parallel_tool_calls": False}, (["get_weather", "get_time"], True, False)),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, (["get_time"], True, True)),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "get_time"}}],
                    },
                }
            },
            (["get_time"], False, True),
        ),
    ],
)
async def test_every_choice_is_enforced_and_all_tools_are_shown(world, options, form):
    async with client_of(world) as client:
        answer = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, **options)
    order = world.buyer.orders[0]
    assert answer.choices[0].message.content == "Hello, wörld!"
    assert bytes(order.prompt_ids).startswith(b"tools:get_weather,get_time\n")
    if form is None:
        assert order.constraint is None
    elif isinstance(form, str):
        assert form_of(order)["kind"] == form
    else:
        found = form_of(order)
        assert ([tool["name"] for tool in found["tools"]], found["required"], found["parallel"]) == form


async def test_markup_without_tools_is_text(world):
    says(world, CALL)
    async with client_of(world) as client:
        plain = await client.chat.completions.create(model="tiny", messages=ASK)
        none = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice="none")
    assert [answer.choices[0].message.content for answer in (plain, none)] == [CALL, CALL]
    assert [answer.choices[0].finish_reason for answer in (plain, none)] == ["stop", "stop"]


async def test_a_call_that_is_cut_off_ends_by_its_length(world):
    cut = CALL[:60]
    says(world, cut, finish=FinishReason.LENGTH)
    async with client_of(world) as client:
        options = {"model": "tiny", "messages": ASK, "tools": TOOLS, "max_tokens": len(cut)}
        whole = await client.chat.completions.create(**options)
        stream = await client.chat.completions.create(**options, stream=True)
        last = [chunk async for chunk in stream][-1]
    assert whole.choices[0].finish_reason == last.choices[0].finish_reason == "length"
    assert ARGUMENTS.startswith(whole.choices[0].message.tool_calls[0].function.arguments)


async def test_log_probabilities_are_those_of_all_tokens_streamed_or_not(world):
    says(world, f"Hi {CALL}", size=7)
    async with client_of(world) as client:
        options = {"model": "tiny", "messages": ASK, "tools": TOOLS, "logprobs": True}
        whole = await client.chat.completions.create(**options)
        stream = await client.chat.completions.create(**options, stream=True)
        chunks = [chunk async for chunk in stream]
    entries = whole.choices[0].logprobs.content
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert "".join(entry.token for entry in entries) == f"Hi {CALL}"
    assert streamed == entries


async def test_a_seed_gives_the_same_ids_and_a_retry_the_same_call(world):
    says(world, CALL)
    async with client_of(world) as client:
        options = {"model": "tiny", "messages": ASK, "tools": TOOLS}
        twice = [await client.chat.completions.create(**options, seed=7) for _ in range(2)]
        other = await client.chat.completions.create(**options, seed=8)
        kept = await client.chat.completions.create(**options, extra_headers={"x-stainless-retry-count": "1"}, seed=8)
    ids = [answer.choices[0].message.tool_calls[0].id for answer in (*twice, other, kept)]
    assert ids[0] == ids[1] != ids[2] == ids[3]


_CALL = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
_CALLING = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "tool_call_id": "c1", "content": "12"}


@pytest.mark.parametrize(
    ("options", "param", "word"),
    [
        ({"messages": [*ASK, _CALLING]}, "messages[1]", "c1"),
        ({"messages": [*ASK, _CALLING, *ASK]}, "messages[2]", "no result"),
        ({"messages": [*ASK, _RESULT]}, "messages[1].tool_call_id", "c1"),
        ({"messages": [*ASK, _CALLING, _RESULT, _RESULT]}, "messages[3].tool_call_id", "waits"),
        ({"messages": [*ASK, _CALLING, _RESULT | {"tool_call_id": None}]}, "messages[2].tool_call_id", "missing"),
        ({"messages": [*ASK, _CALLING | {"tool_calls": [_CALL, _CALL]}]}, "messages[1]", "two calls"),
        (
            {"messages": [*ASK, _CALLING | {"tool_calls": [_CALL | {"type": "custom"}]}]},
            "messages[1].tool_calls[0].type",
            "function",
        ),
        (
            {"messages": [_CALLING | {"tool_calls": [_CALL | {"function": {"name": "x", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "JSON object",
        ),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls", "unrecognized"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "must match"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1]", "two tools"),
        ({"tools": TOOLS[:1] * 129}, "tools", "128"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
            "object",
        ),
        (
            {
                "tools": [
                    TOOLS[0],
                    {
                        "type": "function",
                        "function": {"name": "a", "parameters": {"type": "object", "properties": {"b": {"not": {}}}}},
                    },
                ]
            },
            "tools[1].function.parameters.properties.b.not",
            "not",
        ),
        ({"tools": [TOOLS[0] | {"mood": 1}]}, "tools[0].mood", "unrecognized"),
        ({"tool_choice": "any"}, "tool_choice", "required"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice", "none of the tools"),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "no tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "missing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
            "response_format.json_schema.schema.not",
            "not",
        ),
    ],
)
async def test_what_is_wrong_with_tools_is_said_by_name(world, options, param, word):
    async with client_of(world) as client:
        with pytest.raises(openai.BadRequestError, match=word) as caught:
            await client.chat.completions.create(**({"model": "tiny", "messages": ASK, "tools": TOOLS} | options))
    assert caught.value.param == param
    assert world.buyer.orders == []


async def test_a_batch_line_calls_tools(world):
    says(world, CALL)
    body = {"model": "tiny", "messages": ASK, "tools": TOOLS, "tool_choice": "required"}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    async with client_of(world) as client:
        file = await client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        async with asyncio.timeout(20):
            while batch.output_file_id is None:
                await asyncio.sleep(0.02)
                batch = await client.batches.retrieve(batch.id)
        output = json.loads((await client.files.content(batch.output_file_id)).content)
    choice = output["response"]["body"]["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ARGUMENTS}


async def test_a_response_calls_and_is_continued_with_results(world):
    says(world, f"Let me see. {CALL}\n{OTHER}")
    async with client_of(world) as client:
        first = await client.responses.create(model="tiny", input="weather?", tools=FLAT)
        calls = [item for item in first.output if item.type == "function_call"]
        says(world, "Rain at noon.")
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": call.name} for call in calls]
        kept = await client.responses.create(model="tiny", input=results, previous_response_id=first.id, tools=FLAT)
        said = [{"role": "user", "content": "weather?"}, *first.output, *results]
        by_hand = await client.responses.create(model="tiny", input=said, tools=FLAT, store=False)
        items = (await client.responses.input_items.list(kept.id, order="asc")).data
        again = await client.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError, match="have no result") as caught:
            await client.responses.create(model="tiny", input=results[:1], previous_response_id=first.id)
    assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
    assert first.output_text == "Let me see."
    assert [(call.name, call.arguments, call.status) for call in calls] == [
        ("get_weather", ARGUMENTS, "completed"),
        ("get_time", "{}", "completed"),
    ]
    assert [call.call_id for call in calls] == ids_of(world, 2, order=0)
    assert [tool.name for tool in first.tools] == ["get_weather", "get_time"]
    assert (first.tool_choice, first.parallel_tool_calls) == ("auto", True)
    assert kept.output_text == by_hand.output_text == "Rain at noon."
    prompts = [bytes(order.prompt_ids).decode() for order in world.buyer.orders]
    assert prompts[1] == prompts[2]
    weather, time = (call.call_id for call in calls)
    assert prompts[1].endswith(
        f"assistant:Let me see.(get_weather{ARGUMENTS})(get_time{{}})\n"
        f"tool({weather}):get_weather\ntool({time}):get_time\n"
    )
    assert [item.type for item in items] == [
        *("message", "message", "function_call", "function_call"),
        *("function_call_output", "function_call_output"),
    ]
    assert again == first
    assert caught.value.param == "input"


async def test_response_events_of_calls_come_in_the_documented_order(world):
    says(world, f"Hm. {CALL}", size=8)
    async with client_of(world) as client:
        stream = await client.responses.create(model="tiny", input="x", tools=FLAT, stream=True)
        events = [event async for event in stream]
        async with client.responses.stream(model="tiny", input="x", tools=FLAT) as helper:
            async for _ in helper:
                pass
            final = await helper.get_final_response()
    kinds = [event.type.removeprefix("response.") for event in events]
    merged = [kind for place, kind in enumerate(kinds) if kinds[place - 1 : place] != [kind]]
    assert merged == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    places = [event.output_index for event in events if hasattr(event, "output_index")]
    assert places == sorted(places)
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 2
    assert "".join(event.delta for event in deltas) == events[-3].arguments == ARGUMENTS
    assert {event.item_id for event in deltas} == {events[-1].response.output[1].id}
    assert events[-2].item == events[-1].response.output[1]
    assert final.output[1].arguments == ARGUMENTS


async def test_responses_parse_and_stream_structured_output(world):
    says(world, '{"name": "Ada", "friends": []}')
    async with client_of(world) as client:
        parsed = await client.responses.parse(model="tiny", input="who?", text_format=Person)
        async with client.responses.stream(model="tiny", input="who?", text_format=Person) as stream:
            grown = await (await stream.until_done()).get_final_response()
        again = await client.responses.parse(
            model="tiny", input=[{"role": "user", "content": "x"}, *parsed.output], text_format=Person
        )
        says(world, CALL)
        tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
        flat = [{"type": "function", **tool["function"]} for tool in tools]
        called = await client.responses.parse(model="tiny", input="x", tools=flat, tool_choice="required")
        result = {"type": "function_call_output", "call_id": called.output[0].call_id, "output": "rain"}
        back = await client.responses.parse(
            model="tiny", input=[{"role": "user", "content": "x"}, *called.output, result], tools=flat
        )
    ada = Person(name="Ada", friends=[])
    assert parsed.output_parsed == grown.output_parsed == again.output_parsed == ada
    assert parsed.text.format.type == "json_schema"
    assert called.output[0].name == back.output[0].name == "get_weather"
    assert form_of(world.buyer.orders[0])["kind"] == "json_schema"


async def test_a_sync_response_is_the_same(world):
    def talk():
        with sync_client_of(world) as client:
            says(world, CALL)
            named = {"type": "function", "name": "get_weather"}
            whole = client.responses.create(
                model="tiny", input="x", tools=FLAT, parallel_tool_calls=False, tool_choice=named
            )
            with client.responses.stream(model="tiny", input="x", tools=FLAT) as stream:
                final = stream.until_done().get_final_response()
            says(world, "{}")
            return (
                whole,
                final,
                client.responses.create(model="tiny", input="x", text={"format": {"type": "json_object"}}),
            )

    whole, final, plain = await asyncio.to_thread(talk)
    assert whole.output[0].arguments == final.output[0].arguments == ARGUMENTS
    assert (whole.tool_choice.name, whole.parallel_tool_calls) == ("get_weather", False)
    assert (plain.output_text, plain.text.format.type) == ("{}", "json_object")
    form = form_of(world.buyer.orders[0])
    assert ([tool["name"] for tool in form["tools"]], form["required"], form["parallel"]) == (
        ["get_weather"],
        True,
        False,
    )


async def test_a_response_that_is_cut_inside_a_call_is_incomplete_and_the_call_is_not_kept(world):
    cut = f"Hm. {CALL[:60]}"
    says(world, cut, finish=FinishReason.LENGTH)
    async with client_of(world) as client:
        options = {"model": "tiny", "input": "x", "tools": FLAT, "max_output_tokens": len(cut)}
        whole = await client.responses.create(**options)
        stream = await client.responses.create(**options, stream=True)
        last = [event async for event in stream][-1]
        says(world, "on")
        await client.responses.create(model="tiny", input="go on", previous_response_id=whole.id)
    assert (whole.status, [item.status for item in whole.output]) == ("incomplete", ["completed", "incomplete"])
    assert (last.type, last.response.output[1].status) == ("response.incomplete", "incomplete")
    assert ARGUMENTS.startswith(whole.output[1].arguments)
    assert bytes(world.buyer.orders[-1].prompt_ids).decode() == "user:x\nassistant:Hm.\nuser:go on\n"
