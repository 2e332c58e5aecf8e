"""Decoders of the gateway's doors as targets. Not a test module."""

import numpy as np
from fuzz_target import Target, as_json

from deaios.alignment import answer
from deaios.compute import embedding as embedding_words
from deaios.gateway import batch_worker, multipart
from deaios.market import chat, completion, embedding, messages, parts, responses, tool_text, wire
from deaios.market.question import Api, Message, Part
from deaios.runtime.relay import framing

FIELDS = tuple(
    f"market.fields.read_{name}"
    for name in (
        "content",
        "fields",
        "flag",
        "model",
        "models",
        "object",
        "parameters",
        "route",
        "routing",
        "stop",
        "stream_options",
        "text",
    )
)
COMPLETION = (
    b'{"model":"m","prompt":["a",[1,2]],"n":2,"logprobs":1,"stream":true,"stream_options":{"include_usage":true},'
    b'"stop":["x"],"deaios":{"min_level":2}}'
)
MESSAGES = (
    b'{"model":"m","max_tokens":5,"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"a"}]}'
)
EMBEDDING = b'{"model":"m","input":["a",[1,2]],"encoding_format":"base64","deaios":{"hedge":true}}'
FALLBACKS = b'{"models":["m","n"],"route":"fallback","messages":[{"role":"user","content":"a"}]}'
COUNT = b'{"model":"m","messages":[{"role":"user","content":"a"}]}'
RESPONSE = (
    b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}],"metadata":{"a":"b"},'
    b'"instructions":"i","previous_response_id":"resp_1","store":false}'
)
SCHEMA = b'{"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false}'
CHAT_TOOLS = (
    b'{"model":"m","messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":[{"id":"c1",'
    b'"type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c1","content":"b"}],'
    b'"tools":[{"type":"function","function":{"name":"f","parameters":' + SCHEMA + b'}}],"tool_choice":"required",'
    b'"parallel_tool_calls":false,"prompt_cache_key":"k","provider":{"order":["0x1111111111111111111111111111111111111111"],"max_price":{"prompt":1}}}'
)
CHAT_FORMAT = (
    b'{"model":"m","messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema","json_schema":'
    b'{"name":"n","strict":true,"schema":' + SCHEMA + b"}}}"
)
RESPONSE_TOOLS = (
    b'{"model":"m","input":"a","tools":[{"type":"function","name":"f","parameters":' + SCHEMA + b',"strict":true}],'
    b'"tool_choice":{"type":"function","name":"f"}}'
)
RESPONSE_FORMAT = (
    b'{"model":"m","input":"a","text":{"format":{"type":"json_schema","name":"n","schema":' + SCHEMA + b"}}}"
)
MESSAGE_TOOLS = (
    b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"a"}],"tools":[{"name":"f","input_schema":'
    + SCHEMA
    + b'}],"tool_choice":{"type":"tool","name":"f"}}'
)
CALLS = b'Hi.<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'
CANCEL = b'{"tokens":3,"signature":"0x' + b"11" * 65 + b'"}'
CHAT_TOOL_READERS = ("name", "arguments", "call_id", "chat_choice", "chat_format")
FORM = (
    b'--mark\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--mark\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\r\n--mark--\r\n'
)


def _read_form(data: bytes) -> object:
    fields = multipart.read_form("multipart/form-data; boundary=mark", data)
    return [field.read_text(name) for name, field in fields.items() if field.filename is None]


def _read_frame(data: bytes) -> object:
    frame = framing.decode_frame(data)
    if frame.kind == framing.Kind.OPEN:
        return framing.decode_opening(frame)
    return framing.decode_head(frame) if frame.kind == framing.Kind.HEAD else frame


def _read_vector(data: bytes) -> object:
    return embedding_words.decode_vector(np.frombuffer(data[: len(data) // 4 * 4], "<u4").tolist())


def _vector() -> bytes:
    words = embedding_words.encode_vector(np.array([0.6, 0.0, -0.8]))
    return np.array(words, "<u4").tobytes()


def _frames() -> tuple[bytes, ...]:
    opening = framing.Opening(method="POST", path="/purchases", headers=[("content-type", "application/json")])
    head = framing.Head(status=200, headers=[("content-type", "application/json")])
    return (
        framing.encode_opening(1, opening),
        framing.encode_head(1, head),
        framing.encode_credit(1, 1 << 16),
        framing.encode_reset(1, "gone"),
    )


def gateway_targets() -> list[Target]:
    """Bodies of all doors but chat, forms, and parts of answer files."""
    history = (Message("user", "before"),)
    return [
        Target(
            "completion body",
            completion.read_completion_body,
            ("market.completion.read_completion_body", "market.completion.read_prompts", *FIELDS),
            (COMPLETION,),
        ),
        Target("fallbacks", chat.read_chat_body, FIELDS, (FALLBACKS,)),
        Target(
            "embedding body",
            embedding.read_embedding_body,
            ("market.embedding.read_embedding_body", "market.completion.read_prompts", *FIELDS),
            (EMBEDDING,),
        ),
        Target("vector", _read_vector, ("compute.embedding.decode_vector",), (_vector(),)),
        Target(
            "messages body", messages.read_messages_body, ("market.messages.read_messages_body", *FIELDS), (MESSAGES,)
        ),
        Target("count body", messages.read_count_body, ("market.messages.read_count_body",), (COUNT,)),
        Target(
            "response body",
            responses.read_response_body,
            ("market.responses.read_response_body", "market.responses.read_metadata"),
            (RESPONSE,),
        ),
        Target(
            "part of a request",
            lambda data: parts.read_part(Part(Api.RESPONSES, 0, history), data),
            ("market.parts.read_part",),
            (RESPONSE,),
        ),
        Target(
            "line of a batch",
            lambda data: batch_worker.read_line_body(Api.COMPLETIONS, data),
            ("gateway.batch_worker.read_line_body",),
            (COMPLETION.replace(b'"stream":true,"stream_options":{"include_usage":true},', b""),),
        ),
        Target(
            "chat tools",
            chat.read_chat_body,
            (
                *(f"market.tools.read_{name}" for name in CHAT_TOOL_READERS),
                "market.preferences.read_preferences",
                "market.preferences.read_cache_key",
            ),
            (CHAT_TOOLS, CHAT_FORMAT),
        ),
        Target(
            "response tools",
            responses.read_response_body,
            ("market.tools.read_response_choice", "market.tools.read_response_format"),
            (RESPONSE_TOOLS, RESPONSE_FORMAT),
        ),
        Target(
            "messages tools",
            messages.read_messages_body,
            ("market.tools.read_message_choice", "market.tools.read_message_format"),
            (MESSAGE_TOOLS,),
        ),
        Target(
            "calls of a text",
            lambda data: tool_text.read_calls(data.decode(errors="replace"), bytes(32)),
            ("market.tool_text.read_calls",),
            (CALLS,),
        ),
        Target("cancel", wire.decode_cancel, ("market.wire.decode_cancel",), (CANCEL,)),
        Target(
            "relay frame",
            _read_frame,
            tuple(f"runtime.relay.framing.decode_{name}" for name in ("frame", "opening", "head")),
            _frames(),
        ),
        Target("form", _read_form, ("gateway.multipart.read_form", "gateway.multipart.Field.read_text"), (FORM,)),
        Target(
            "part of an answer file",
            lambda data: answer.decode_part(as_json(data)),
            ("alignment.answer.decode_part",),
            (b'{"api":"responses","index":0,"history":[{"role":"user","content":"a"}]}',),
        ),
    ]
