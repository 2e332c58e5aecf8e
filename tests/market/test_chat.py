"""The strict reader of chat bodies: what it understands, and that everything else is refused by name."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.ledger.structs import AuditPolicy, Level, Params
from deaios.market.chat import read_chat_body
from deaios.market.fields import BODY_BYTES_MAX, InvalidParameter
from deaios.market.question import Message, Question, context_of
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import Address
from deaios.runtime.errors import InvalidBody

HELLO = [{"role": "user", "content": "hello"}]


def encode(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": HELLO} | fields).encode()


def test_a_minimal_body_has_the_documented_defaults():
    chat = read_chat_body(encode())
    assert chat == Question(model="m", messages=(Message("user", "hello"),))
    assert chat.params(context_tokens=2048, prompt_tokens=10) == Params(
        temperature_milli=1000,
        top_k=0,
        top_p_milli=1000,
        max_tokens=256,
        stop_ids=(),
        stop_strings=(),
        mask_hash=ZERO32,
    )
    assert (chat.min_level, chat.audit_policy) == (Level.SEEDED, AuditPolicy.BUYER_ONLY)


def test_a_full_body_is_understood_completely():
    chat = read_chat_body(
        encode(
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
            ],
            temperature=0.7,
            top_p=0.1 + 0.2,
            top_k=40,
            max_completion_tokens=9,
            stop=["\n", "END"],
            seed=-7,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=3,
            n=1,
            user=None,
            frequency_penalty=0.0,
            response_format={"type": "text"},
            deaios={"min_level": 4, "audit_policy": "open", "provider": "0x" + "11" * 20},
        )
    )
    assert chat == Question(
        model="m",
        messages=(Message("system", "be brief"), Message("user", "a\nb"), Message("assistant", "c")),
        temperature_milli=700,
        top_p_milli=300,
        top_k=40,
        max_tokens=9,
        stop=("\n", "END"),
        seed=-7,
        stream=True,
        include_usage=True,
        top_logprobs=3,
        min_level=4,
        audit_policy=AuditPolicy.OPEN,
        provider=Address(b"\x11" * 20),
    )


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": ""}, "model", "invalid_value"),
        ({"model": 3}, "model", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": ["hello"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "unknown_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"temperature": 2.001}, "temperature", "invalid_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": 0.33333}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"top_k": -1}, "top_k", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**100}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.0}, "max_tokens", "invalid_type"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"stop": ""}, "stop[0]", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop": 7}, "stop", "invalid_type"),
        ({"seed": 1 << 63}, "seed", "invalid_value"),
        ({"seed": True}, "seed", "invalid_type"),
        ({"n": 33}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"user": "bob"}, "user", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"tempreature": None}, "tempreature", "unknown_parameter"),
        ({"deaios": {"min_level": 5}}, "deaios.min_level", "invalid_value"),
        ({"deaios": {"provider": "0xAA"}}, "deaios.provider", "invalid_value"),
        ({"deaios": {"audit_policy": "shut"}}, "deaios.audit_policy", "invalid_value"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(fields, param, code):
    with pytest.raises(InvalidParameter) as caught:
        read_chat_body(encode(**fields))
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'"' + b"\xff" + b'"',
        b'{"model": NaN}',
        b'{"model": "a", "model": "b"}',
        b'{"messages": [{"role": "user", "role": "system"}]}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"seed":' + b"[" * 120 + b"]" * 120 + b"}",
        b'{"a": "[}',
        b"\xef\xbb\xbf{}",
        b'{"seed": ' + b"9" * 5000 + b"}",
        b" " * (BODY_BYTES_MAX + 1),
    ],
)
def test_bytes_that_are_not_one_plain_object_are_refused(body):
    with pytest.raises(InvalidBody):
        read_chat_body(body)


def test_a_million_names_with_the_last_twice_is_refused_in_linear_time():
    body = "{" + ",".join(f'"{i}":0' for i in range(80_000)) + ',"79999":0}'
    with pytest.raises(InvalidBody, match="79999"):
        read_chat_body(body.encode())


def test_a_megabyte_of_unfinished_escapes_is_refused_in_linear_time():
    with pytest.raises(InvalidBody):
        read_chat_body(b'"\\' * (BODY_BYTES_MAX // 2))


def test_the_output_takes_the_room_the_prompt_leaves_and_no_more():
    assert read_chat_body(encode()).params(context_tokens=100, prompt_tokens=90).max_tokens == 10
    assert read_chat_body(encode(max_tokens=10)).params(context_tokens=100, prompt_tokens=90).max_tokens == 10
    for chat, prompt in ((read_chat_body(encode(max_tokens=11)), 90), (read_chat_body(encode()), 100)):
        with pytest.raises(InvalidParameter) as caught:
            chat.params(context_tokens=100, prompt_tokens=prompt)
        assert caught.value.code == "context_length_exceeded"


def test_the_context_is_canonical_and_binds_messages_and_template():
    context = context_of(read_chat_body(encode()), b"\x02" * 32)
    assert context == (
        b'{"messages":[{"content":"hello","role":"user"}],"now":"","template":"0x' + b"02" * 32 + b'","tools":null}'
    )


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(body):
    with contextlib.suppress(Invalid):
        read_chat_body(body)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "temperature",
        "top_p",
        "top_k",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "n",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "user",
        "deaios",
        "metadata",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_NAMES, _VALUES, max_size=5))
def test_any_value_of_any_parameter_is_read_or_refused(fields):
    try:
        chat = read_chat_body(json.dumps({"model": "m", "messages": HELLO} | fields).encode())
    except Invalid:
        return
    params = chat.params(context_tokens=1 << 20, prompt_tokens=1)
    assert read_chat_body(json.dumps({"model": "m", "messages": HELLO} | fields).encode()) == chat
    assert params.max_tokens >= 1
