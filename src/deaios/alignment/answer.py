"""The answer file: one answer with everything a stranger needs to check it, and nothing that no signature binds.

    version      1
    network      genesis hash of the network
    body         the exact request body, as text
    clientNonce  the nonce that was sent with it
    opening      ask, salt, offer, request, output ids, receipt, with their signatures
    text         what the output ids say
    batch        where the receipt lies on chain: batch index and Merkle path

Pure. Form is checked here; what the parts claim is checked in `check`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from deaios.market.chat import BODY_BYTES_MAX
from deaios.market.opening import Opening
from deaios.primitives.encoding import decode_hex, encode_hex
from deaios.primitives.errors import Invalid

VERSION = 1
ANSWER_BYTES_MAX = 8 << 20
PATH_MAX = 16
"""A batch has at most 65,536 receipts."""
_KEYS = frozenset({"version", "network", "body", "clientNonce", "opening", "text", "batch"})


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


def encode_answer(answer: Answer) -> bytes:
    """The file's bytes: indented JSON, because people look at it too."""
    value = {
        "version": VERSION,
        "network": encode_hex(answer.network),
        "body": answer.body.decode(),
        "clientNonce": encode_hex(answer.client_nonce),
        "opening": answer.opening.encode_json(),
        "text": answer.text,
        "batch": {"index": answer.batch_index, "path": [encode_hex(node) for node in answer.path]},
    }
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def decode_answer(data: bytes) -> Answer:
    """Read an answer file strictly: every key known, none missing, one spelling per value.

    Raises:
        InvalidAnswer: what is wrong, and where.
    """
    if len(data) > ANSWER_BYTES_MAX:
        raise InvalidAnswer(f"answer file has {len(data)} bytes, at most {ANSWER_BYTES_MAX} are read")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswer(f"answer file is not JSON: {error}") from error
    if not isinstance(value, Mapping) or value.get("version") is True or value.get("version") != VERSION:
        found = value.get("version") if isinstance(value, Mapping) else type(value).__name__
        raise InvalidAnswer(f"version: answer file says {found!r:.80}, this program reads {VERSION}")
    if value.keys() != _KEYS:
        raise InvalidAnswer(f"answer file has keys {sorted(value)}, expected {sorted(_KEYS)}")
    batch = value["batch"]
    if not isinstance(batch, Mapping) or batch.keys() != {"index", "path"} or not isinstance(batch["path"], list):
        raise InvalidAnswer("batch: expected an object with an index and a list of path nodes")
    index = batch["index"]
    if type(index) is not int or not 0 <= index < 1 << 48 or len(batch["path"]) > PATH_MAX:
        raise InvalidAnswer(f"batch: index must be below 2^48 and the path at most {PATH_MAX} long")
    try:
        return Answer(
            network=decode_hex(value["network"], 32),
            body=_text("body", value["body"], BODY_BYTES_MAX),
            client_nonce=decode_hex(value["clientNonce"], 32),
            opening=Opening.decode_json(value["opening"]),
            text=_text("text", value["text"], ANSWER_BYTES_MAX).decode(),
            batch_index=index,
            path=tuple(decode_hex(node, 32) for node in batch["path"]),
        )
    except InvalidAnswer:
        raise
    except Invalid as error:
        raise InvalidAnswer(str(error)) from error


def _text(name: str, value: object, bytes_max: int) -> bytes:
    if not isinstance(value, str):
        raise InvalidAnswer(f"{name}: expected text")
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise InvalidAnswer(f"{name}: not valid Unicode text") from error
    if len(data) > bytes_max:
        raise InvalidAnswer(f"{name}: {len(data)} bytes, at most {bytes_max} are read")
    return data


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidAnswer("a name occurs twice in one JSON object")
    return value
