"""Tools, choices and forms as the three doors spell them: the same meaning, the same grammar, the same refusals."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.constraint import JsonObject, JsonSchema, ToolCalls
from deaios.compute.tools import Tool, ToolCall
from deaios.market.chat import read_chat_body
from deaios.market.fields import InvalidParameter
from deaios.market.messages import read_count_body, read_messages_body
from deaios.market.question import Message, Question
from deaios.market.responses import read_response_body
from deaios.market.tools import may_call
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.errors import Invalid

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}, "required": ["b"]}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
SHOWN = Tool("f", "Does it.", TEXT)
BARE = Tool("g", "", '{"type":"object","properties":{},"additionalProperties":false}')


def chat(**fields):
    functions = [{"name": "f", "description": "Does it.", "parameters": SCHEMA, "strict": True}, {"name": "g"}]
    tools = [{"type": "function", "function": function} for function in functions]
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools} | fields
    return read_chat_body(json.dumps(body).encode())


def responses(history=(), **fields):
    tools = [
        {"type": "function", "name": "f", "description": "Does it.", "parameters": SCHEMA, "strict": True},
        {"type": "function", "name": "g", "parameters": None, "strict": None},
    ]
    body = {"model": "m", "input": "x", "tools": tools} | fields
    return read_response_body(json.dumps(body).encode()).continue_from(history)


def messages(**fields):
    tools = [
        {"name": "f", "description": "Does it.", "input_schema": SCHEMA, "strict": True},
        {"type": "custom", "name": "g", "input_schema": json.loads(BARE.parameters)},
    ]
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "tools": tools} | fields
    return read_messages_body(json.dumps(body).encode())


def test_three_doors_read_the_same_tools_into_the_same_constraint():
    questions = [chat(), responses(), messages()]
    assert [question.tools for question in questions] == [(SHOWN, BARE)] * 3
    assert len({question.constraint for question in questions}) == 1
    form = questions[0].constraint.form
    assert isinstance(form, ToolCalls)
    assert ([tool.name for tool in form.tools], form.is_required, form.is_parallel, form.content) == (
        ["f", "g"],
        False,
        True,
        None,
    )
    assert all(map(may_call, questions))


@pytest.mark.parametrize(
    ("one", "two", "three", "form"),
    [
        ("none", "none", {"type": "none"}, None),
        ("auto", "auto", {"type": "auto"}, (["f", "g"], False)),
        ("required", "required", {"type": "any"}, (["f", "g"], True)),
        (
            {"type": "function", "function": {"name": "g"}},
            {"type": "function", "name": "g"},
            {"type": "tool", "name": "g"},
            (["g"], True),
        ),
    ],
)
def test_three_doors_spell_the_same_choices(one, two, three, form):
    questions = [chat(tool_choice=one), responses(tool_choice=two), messages(tool_choice=three)]
    assert [question.tools for question in questions] == [(SHOWN, BARE)] * 3
    for question in questions:
        found = question.constraint
        assert may_call(question) == (form is not None)
        assert (found and ([tool.name for tool in found.form.tools], found.form.is_required)) == form


def test_allowed_tools_are_a_subset_of_what_is_shown():
    nested = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    flat = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    for question in (
        chat(tool_choice={"type": "allowed_tools", "allowed_tools": nested}),
        responses(tool_choice=flat),
    ):
        assert question.tools == (SHOWN, BARE)
        assert [tool.name for tool in question.constraint.form.tools] == ["g"]
        assert question.constraint.form.is_required


def test_one_call_at_most_is_said_in_two_ways():
    assert not chat(parallel_tool_calls=False).constraint.form.is_parallel
    assert not responses(parallel_tool_calls=False).constraint.form.is_parallel
    assert not messages(tool_choice={"type": "auto", "disable_parallel_tool_use": True}).constraint.form.is_parallel


def test_forms_of_text_keep_the_order_of_their_schema():
    named = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True, "description": "d"}
    wrapped = {"type": "json_schema", "json_schema": {key: named[key] for key in named if key != "type"}}
    for question in (
        chat(tools=[], response_format=wrapped),
        responses(tools=[], text={"format": named, "verbosity": "medium"}),
        messages(tools=[], output_config={"format": {"type": "json_schema", "schema": SCHEMA}}),
    ):
        assert question.constraint.form == JsonSchema(TEXT)
        assert not may_call(question)
    for plain in (chat(tools=[], response_format={"type": "text"}), responses(tools=[], text={}), messages(tools=[])):
        assert plain.constraint is None
    assert chat(tools=[], response_format={"type": "json_object"}).constraint.form == JsonObject()
    both = chat(response_format=wrapped).constraint.form
    assert isinstance(both, ToolCalls)
    assert both.content == JsonSchema(TEXT)


def test_three_doors_read_the_same_turns():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": "ü"}'}}
    one = chat(
        messages=[
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "Hm.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "done"}]},
        ]
    )
    two = responses(
        input=[
            {"role": "user", "content": "x"},
            {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": "Hm."},
            {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": '{"b": "ü"}'},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "done"}]},
        ]
    )
    three = messages(
        messages=[
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Hm."},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"b": "ü"}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "done"}]},
        ]
    )
    expected = (
        Message("user", "x"),
        Message("assistant", "Hm.", (ToolCall("c1", "f", '{"b": "ü"}'),)),
        Message("tool", "done", (), "c1"),
    )
    assert one.messages == two.messages == three.messages == expected


def test_a_continued_response_answers_the_calls_of_its_history():
    history = (Message("user", "x"), Message("assistant", "", (ToolCall("c1", "f", "{}"),)))
    result = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    assert responses(history, input=[result]).messages == (*history, Message("tool", "done", (), "c1"))
    for items in ([], [{"role": "user", "content": "y"}], [result, result], [result | {"call_id": "c2"}]):
        with pytest.raises(InvalidParameter):
            responses(history, input=items or "y")


def test_consecutive_calls_of_a_response_are_one_turn():
    calls = [{"type": "function_call", "call_id": f"c{n}", "name": "g", "arguments": "{}"} for n in range(3)]
    results = [{"type": "function_call_output", "call_id": f"c{n}", "output": str(n)} for n in (2, 0, 1)]
    question = responses(input=[*calls, *results])
    assert [len(turn.tool_calls) for turn in question.messages] == [3, 0, 0, 0]
    assert [turn.tool_call_id for turn in question.messages[1:]] == ["c2", "c0", "c1"]


def test_tokens_are_counted_with_tools_and_without_a_bound():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{"name": "g", "input_schema": {}}]}
    assert read_count_body(json.dumps(body).encode()).tools == (Tool("g", "", "{}"),)


def test_schemas_that_fit_one_by_one_may_be_too_much_together():
    large = {"type": "object", "properties": {f"property_{n}": {"type": "string"} for n in range(700)}}
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": large}} for n in range(4)]
    with pytest.raises(InvalidParameter, match="exceeds") as caught:
        chat(tools=tools)
    assert caught.value.param == "tools"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["object", "string", "f", "auto", "function"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "function", "name", "parameters", "properties", "input_schema", "tools", "format"]),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip
_FIELDS = st.dictionaries(
    st.sampled_from(["tools", "tool_choice", "response_format", "text", "output_config", "parallel_tool_calls"]),
    _JSON,
    min_size=1,
    max_size=3,
)


@settings(max_examples=100, deadline=None)
@given(_FIELDS, st.sampled_from([chat, responses, messages]))
def test_any_tools_are_read_or_refused_and_what_is_read_has_a_name(fields, door):
    try:
        question = door(**fields)
    except Invalid:
        return
    assert isinstance(question, Question)
    assert door(**fields) == question
    if question.constraint is not None:
        assert encode_canonical_json(json.loads(question.constraint.encode())) == question.constraint.encode()
