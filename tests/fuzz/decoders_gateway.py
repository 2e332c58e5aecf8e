"""Decoders of the gateway's doors as targets. Not a test module."""

from fuzz_target import Target, as_json

from deaios.alignment import answer
from deaios.gateway import batch_worker, multipart
from deaios.market import completion, messages, parts, responses
from deaios.market.question import Api, Message, Part

FIELDS = tuple(
    f"market.fields.read_{name}"
    for name in (
        "content",
        "fields",
        "flag",
        "model",
        "object",
        "parameters",
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
COUNT = b'{"model":"m","messages":[{"role":"user","content":"a"}]}'
RESPONSE = (
    b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}],"metadata":{"a":"b"},'
    b'"instructions":"i","previous_response_id":"resp_1","store":false}'
)
FORM = (
    b'--mark\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--mark\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\r\n--mark--\r\n'
)


def _read_form(data: bytes) -> object:
    fields = multipart.read_form("multipart/form-data; boundary=mark", data)
    return [field.read_text(name) for name, field in fields.items() if field.filename is None]


def gateway_targets() -> list[Target]:
    """Bodies of all doors but chat, forms, and parts of answer files."""
    history = (Message("user", "before"),)
    return [
        Target(
            "completion body",
            completion.read_completion_body,
            ("market.completion.read_completion_body", *FIELDS),
            (COMPLETION,),
        ),
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
        Target("form", _read_form, ("gateway.multipart.read_form", "gateway.multipart.Field.read_text"), (FORM,)),
        Target(
            "part of an answer file",
            lambda data: answer.decode_part(as_json(data)),
            ("alignment.answer.decode_part",),
            (b'{"api":"responses","index":0,"history":[{"role":"user","content":"a"}]}',),
        ),
    ]
