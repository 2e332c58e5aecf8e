"""The answer file: one answer with everything a stranger needs to check it, and nothing that no signature binds.

    version      1, or 2 with `part`; 3 where the opening has the provider's statement about prompts
    network      genesis hash of the network
    body         the exact request body, as text
    clientNonce  the nonce that was sent with it
    opening      ask, salt, offer, request, output ids, receipt, with their signatures
    text         what the output ids say
    batch        where the receipt lies on chain: batch index and Merkle path
    part         which purchase of the request this is: the door that it came by, the choice, and the turns before the
                 body's; left out for the one answer of a chat completion

Pure. Form is checked here; what the parts claim is checked in `check`.
"""

import json
from dataclasses import dataclass

from deaios.alignment.documents import cut, read_document, read_hex
from deaios.compute.commitments import CLIENT_NONCE_SIZE
from deaios.compute.tools import CALLS_MAX, ToolCall
from deaios.market.fields import BODY_BYTES_MAX
from deaios.market.opening import Opening
from deaios.market.question import CHOICES_MAX, PLAIN_CHAT, Api, Message, Part
from deaios.primitives.encoding import Json, encode_hex
from deaios.primitives.errors import Invalid

VERSION = 1
PART_VERSION = 2
CONDUCT_VERSION = 3
TURNS_MAX = 4096
"""Of a history: more than any context holds."""
ANSWER_BYTES_MAX = 8 << 20
PATH_MAX = 16
"""A batch has at most 65,536 receipts."""
INDEX_BITS = 48
"""Batch indices are JSON numbers."""
_KEYS = frozenset({"version", "network", "body", "clientNonce", "opening", "text", "batch"})
_BATCH_KEYS = frozenset({"index", "path"})
_PART_KEYS = frozenset({"api", "index", "history"})
_ROLES = frozenset({"system", "user", "assistant", "tool"})
_TURN_KEYS = frozenset({"role", "content"})
_TOOL_KEYS = _TURN_KEYS | {"toolCallId"}
NAME_BYTES_MAX = 128
"""Of a call: its id, or its tool's name."""


class InvalidAnswer(Invalid):
    """A file that is not a well-formed answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One saved answer; see the module for what each part is."""

    network: bytes
    body: bytes
    client_nonce: bytes
    opening: Opening
    text: str
    batch_index: int
    path: tuple[bytes, ...]
    part: Part = PLAIN_CHAT


def encode_answer(answer: Answer) -> bytes:
    """The file's bytes: indented JSON, because people look at it too."""
    has_part = not answer.part.is_plain_chat
    version = PART_VERSION if has_part else VERSION
    value: dict[str, Json] = {
        "version": version if answer.opening.conduct is None else CONDUCT_VERSION,
        "network": encode_hex(answer.network),
        "body": answer.body.decode(),
        "clientNonce": encode_hex(answer.client_nonce),
        "opening": answer.opening.encode_json(),
        "text": answer.text,
        "batch": {"index": answer.batch_index, "path": [encode_hex(node) for node in answer.path]},
    }
    if has_part:
        value["part"] = answer.part.encode_json()
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def decode_answer(data: bytes) -> Answer:
    """Read an answer file strictly: every key known, none missing, none twice, one spelling per number and byte string.

    Raises:
        InvalidAnswer: what is wrong, and in which leaf.
    """
    try:
        return _read_answer(read_document(data, ANSWER_BYTES_MAX))
    except InvalidAnswer:
        raise
    except Invalid as error:
        raise InvalidAnswer(cut(f"answer file: {error}")) from error


def _read_answer(value: dict[str, object]) -> Answer:
    version = value.get("version")
    if type(version) is not int or not VERSION <= version <= CONDUCT_VERSION:
        raise InvalidAnswer(
            f"version: answer file says {version!r:.80}, this program reads {VERSION} to {CONDUCT_VERSION}"
        )
    has_part = version == PART_VERSION or (version == CONDUCT_VERSION and "part" in value)
    _expect_keys(f"answer file of version {version}", value, _KEYS | {"part"} if has_part else _KEYS)
    opening = Opening.decode_json(value["opening"])
    if (opening.conduct is not None) != (version == CONDUCT_VERSION):
        has = "no conduct" if opening.conduct is None else "a conduct"
        raise InvalidAnswer(f"version: a file of version {version} has {has} in its opening")
    batch = value["batch"]
    if not isinstance(batch, dict):
        raise InvalidAnswer("batch: expected an object")
    _expect_keys("batch", batch, _BATCH_KEYS)
    index, path = batch["index"], batch["path"]
    if type(index) is not int or not 0 <= index < 1 << INDEX_BITS:
        raise InvalidAnswer(f"batch.index: {index!r:.80} is not an unsigned integer below 2^{INDEX_BITS}")
    if not isinstance(path, list) or len(path) > PATH_MAX:
        raise InvalidAnswer(f"batch.path: expected a list of at most {PATH_MAX} nodes")
    return Answer(
        network=read_hex("network", value["network"], 32),
        body=_read_text("body", value["body"], BODY_BYTES_MAX),
        client_nonce=read_hex("clientNonce", value["clientNonce"], CLIENT_NONCE_SIZE),
        opening=opening,
        text=_read_text("text", value["text"], ANSWER_BYTES_MAX).decode(),
        batch_index=index,
        path=tuple(read_hex(f"batch.path[{place}]", node, 32) for place, node in enumerate(path)),
        part=decode_part(value["part"]) if has_part else PLAIN_CHAT,
    )


def decode_part(value: object) -> Part:
    """Read a part strictly.

    Raises:
        InvalidAnswer: what is wrong, and in which leaf.
    """
    if not isinstance(value, dict):
        raise InvalidAnswer("part: expected an object")
    _expect_keys("part", value, _PART_KEYS)
    api, index, history = value["api"], value["index"], value["history"]
    if not isinstance(api, str) or api not in set(Api):
        raise InvalidAnswer(f"part.api: {api!r:.80} is not one of {', '.join(Api)}")
    if type(index) is not int or not 0 <= index < CHOICES_MAX:
        raise InvalidAnswer(f"part.index: {index!r:.80} is not an unsigned integer below {CHOICES_MAX}")
    if not isinstance(history, list) or len(history) > TURNS_MAX:
        raise InvalidAnswer(f"part.history: expected a list of at most {TURNS_MAX} turns")
    part = Part(Api(api), index, tuple(_read_turn(f"part.history[{i}]", turn) for i, turn in enumerate(history)))
    if part.is_plain_chat:
        raise InvalidAnswer("part: the one answer of a chat completion has no part")
    return part


def _read_turn(where: str, value: object) -> Message:
    if not isinstance(value, dict):
        raise InvalidAnswer(f"{where}: expected an object")
    role = _read_text(f"{where}.role", value.get("role"), 16).decode()
    if role not in _ROLES:
        raise InvalidAnswer(f"{where}.role: {role!r} is not one of {', '.join(sorted(_ROLES))}")
    keys = (
        _TOOL_KEYS if role == "tool" else _TURN_KEYS | ({"toolCalls"} & value.keys() if role == "assistant" else set())
    )
    _expect_keys(where, value, keys)
    return Message(
        role,
        _read_text(f"{where}.content", value["content"], BODY_BYTES_MAX).decode(),
        _read_calls(f"{where}.toolCalls", value["toolCalls"]) if "toolCalls" in keys else (),
        _read_text(f"{where}.toolCallId", value["toolCallId"], NAME_BYTES_MAX).decode() if role == "tool" else None,
    )


def _read_calls(where: str, value: object) -> tuple[ToolCall, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= CALLS_MAX:
        raise InvalidAnswer(f"{where}: expected a list of 1 to {CALLS_MAX} calls")
    calls = []
    for index, item in enumerate(value):
        place = f"{where}[{index}]"
        if not isinstance(item, dict):
            raise InvalidAnswer(f"{place}: expected an object")
        _expect_keys(place, item, frozenset({"id", "name", "arguments"}))
        texts = [
            _read_text(f"{place}.{name}", item[name], bytes_max).decode()
            for name, bytes_max in (("id", NAME_BYTES_MAX), ("name", NAME_BYTES_MAX), ("arguments", BODY_BYTES_MAX))
        ]
        calls.append(ToolCall(*texts))
    return tuple(calls)


def _expect_keys(where: str, value: dict[str, object], keys: frozenset[str]) -> None:
    if value.keys() != keys:
        missing, unknown = sorted(keys - value.keys()), sorted(value.keys() - keys)
        raise InvalidAnswer(cut(f"{where}: missing keys {missing}, unknown keys {unknown}"))


def _read_text(name: str, value: object, bytes_max: int) -> bytes:
    if not isinstance(value, str):
        raise InvalidAnswer(f"{name}: expected text")
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise InvalidAnswer(f"{name}: not valid Unicode text") from error
    if len(data) > bytes_max:
        raise InvalidAnswer(f"{name}: {len(data)} bytes, at most {bytes_max} are read")
    return data
