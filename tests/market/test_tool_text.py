"""Calls in a text: found wherever they are, the same however the text is cut, and never where there are none."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deaios.compute.tools import ToolCall
from deaios.market.tool_text import (
    SPACE_CHARS_MAX,
    CallBegan,
    CallEnded,
    CallGrew,
    Spoken,
    TextGrew,
    ToolText,
    build_call_id,
    cut_to_members,
    read_calls,
)

DIGEST = b"\x05" * 32
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}{<tool_call>\\"", {}]}}\n</tool_call>'
GIVEN = '{"a": [1, "}{<tool_call>\\"", {}]}'


def call(index, name, arguments):
    return ToolCall(build_call_id(DIGEST, index), name, arguments)


def read(text):
    return read_calls(text, DIGEST)


def test_words_stand_before_calls_and_markup_is_no_part_of_either():
    assert read("plain <b>text</b> \n") == Spoken(("plain <b>text</b> \n",))
    assert read(CALL) == Spoken((call(0, "f", GIVEN),))
    assert read(f"Let me see.\n\n{CALL}\n{CALL}\n") == Spoken(("Let me see.", call(0, "f", GIVEN), call(1, "f", GIVEN)))
    assert read(f"{CALL} and then") == Spoken((call(0, "f", GIVEN), "and then"))
    assert read("") == Spoken(())


@pytest.mark.parametrize("space", ["", " ", "\n\t \r"])
def test_white_space_is_free_where_json_has_it(space):
    inner = space.join(["", "{", '"name"', ":", '"get-it_1"', ",", '"arguments"', ":", "{}", "}", ""])
    assert read(f"<tool_call>{inner}</tool_call>") == Spoken((call(0, "get-it_1", "{}"),))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\n",
        '<tool_call>{"name": "f", "arguments": ',
        '<tool_call>{"name": "f", "arguments": 5}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}, "name": "f"}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\x", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "' + "f" * 600 + '", "arguments": {}}</tool_call>',
        "<tool_call>" + " " * 600 + '{"name": "f", "arguments": {}}</tool_call>',
        "<tool_cal",
        "</tool_call>",
    ],
)
def test_what_only_looks_like_a_call_is_text(text):
    assert read(text) == Spoken((text,))


def test_a_call_that_is_cut_off_is_said_to_be():
    cut = read('<tool_call>\n{"name": "f", "arguments": {"a": "x')
    assert cut == Spoken((call(0, "f", '{"a": "x'),), is_whole=False)
    assert cut.whole_calls == ()
    for end in ("", "}", "}\n</tool", "}\n</tool_call>"):
        whole = read('<tool_call>\n{"name": "f", "arguments": {}' + end)
        assert whole == Spoken((call(0, "f", "{}"),))
        assert whole.whole_calls == whole.calls


def test_a_call_that_does_not_end_as_calls_do_leaves_its_rest_as_text():
    assert read('<tool_call>{"name": "f", "arguments": {}, "x": 1}</tool_call>') == Spoken(
        (call(0, "f", "{}"), ', "x": 1}</tool_call>')
    )


def test_a_name_comes_at_once_and_arguments_as_they_grow():
    reader = ToolText()
    pieces = ("Hi <", "tool_call>\n", '{"name": "f", "argu', 'ments": {"a"', ': "b', '"}', "}\n</tool_call>")
    assert [reader.push(piece) for piece in pieces] == [
        [TextGrew("Hi")],
        [],
        [],
        [CallBegan(0, "f"), CallGrew(0, '{"a"')],
        [CallGrew(0, ': "b')],
        [CallGrew(0, '"}'), CallEnded(0)],
        [],
    ]
    assert reader.close() == []


def test_white_space_that_is_held_back_is_bounded():
    reader = ToolText()
    reader.push("x")
    sizes = [sum(len(event.text) for event in reader.push(" " * 64)) for _ in range(64)]
    assert sum(sizes) == 64 * 64 - SPACE_CHARS_MAX


_PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "\n", " ", "{", "}", '"', "\\", '"name"', ":", ",", '"arguments"', '"f"', "{}",
     "word", "<", "tool_call>", CALL, CALL[:40], " " * 200, "é"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@example(f"a {CALL}\n{CALL} b", [3, 7])
@example('<tool_call>{"name": "<tool_call>", "arguments": {}}</tool_call>', [26])
@given(st.lists(_PIECES, max_size=16).map("".join), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_the_same_is_heard_however_the_text_is_cut(text, sizes):
    reader, parts, calls, place, turn = ToolText(), [], [], 0, 0
    events = []
    while place < len(text):
        size = sizes[turn % len(sizes)]
        events += reader.push(text[place : place + size])
        place, turn = place + size, turn + 1
    for event in (*events, *reader.close()):
        if isinstance(event, TextGrew):
            if parts and isinstance(parts[-1], str):
                parts[-1] += event.text
            else:
                parts.append(event.text)
        elif isinstance(event, CallBegan):
            calls.append([event.name, ""])
            parts.append(calls[-1])
        elif isinstance(event, CallGrew):
            calls[event.index][1] += event.text
    whole = read(text)
    assert [part if isinstance(part, str) else [part.name, part.arguments] for part in whole.parts] == parts
    assert reader.is_whole == whole.is_whole


_VALUES = st.none() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=4), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8), _VALUES, max_size=4), st.data())
def test_any_arguments_come_out_as_they_went_in(arguments, data):
    written = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()))
    text = f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'
    assert read(text) == Spoken((call(0, "f", written),))
    cut = written[: data.draw(st.integers(0, len(written)))]
    assert json.loads(cut_to_members(cut)).items() <= arguments.items()


def test_cut_arguments_keep_their_whole_members():
    assert cut_to_members('{"a": 1, "b": [1, {"c": 2}], "d": "x,') == '{"a": 1, "b": [1, {"c": 2}]}'
    assert cut_to_members('{"a": NaN}') == cut_to_members('{"a": tr') == cut_to_members("") == "{}"


def test_ids_follow_from_the_purchase_and_the_place():
    assert [build_call_id(DIGEST, index) for index in range(2)] == [
        "call_e1e7ebc3e12116b7921b014e",
        "call_c057897d4d06a70e69e51ad5",
    ]
    assert build_call_id(b"\x06" * 32, 0) != build_call_id(DIGEST, 0)
    assert build_call_id(DIGEST, 0, "toolu_") == "toolu_" + build_call_id(DIGEST, 0).removeprefix("call_")
