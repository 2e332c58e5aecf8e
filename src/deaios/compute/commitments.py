"""Salted commitments to prompt, context, output and body: what a request and a receipt bind without showing it.

Invariant: nobody can guess a short answer from its hash, because every leaf starts with a salt only buyer and provider
hold; an opening (salt and ids) reproduces each commitment exactly. Frozen: docs/spec/sampling.md, "Commitments".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deaios.primitives.encoding import InvalidEncoding, Json, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import sha256, tagged_sha256
from deaios.primitives.merkle import build_root

PROMPT_TAG = "deaios/prompt/1"
OUTPUT_TAG = "deaios/output/1"
SALT_TAG = "deaios/salt/1"
CONTEXT_TAG = "deaios/context/1"
CLIENT_TAG = "deaios/client/1"
CHUNK_IDS = 256
"""Token ids per Merkle leaf: 1 KiB with four bytes each."""
SALT_SIZE = 32
CLIENT_NONCE_SIZE = 32
CONTEXT_BYTES_MAX = 1 << 20
"""Longest canonical context; the same bound as a chat body."""

Message = Mapping[str, Json]


class InvalidCommitment(Invalid):
    """A salt, nonce, id list or context that no commitment can be made of."""


def leaf_salt(salt: bytes, label: str, index: int) -> bytes:
    """The 32-byte salt of one leaf.

    Args:
        salt: the buyer's 32 bytes for this ask.
        label: `prompt`, `context` or `output`.
        index: of the leaf.
    """
    if len(salt) != SALT_SIZE:
        raise InvalidCommitment(f"salt has {len(salt)} bytes, {SALT_SIZE} expected")
    return tagged_sha256(SALT_TAG, salt, sha256(label.encode()), index.to_bytes(8))


def commit_prompt(ids: Sequence[int], salt: bytes) -> bytes:
    """Merkle root over salted chunks of the prompt's token ids."""
    return build_root(PROMPT_TAG, _salted_chunks(ids, salt, "prompt"))


def commit_output(ids: Sequence[int], salt: bytes) -> bytes:
    """Merkle root over salted chunks of the sampled token ids, the stopping one included."""
    return build_root(OUTPUT_TAG, _salted_chunks(ids, salt, "output"))


def _salted_chunks(ids: Sequence[int], salt: bytes, label: str) -> list[bytes]:
    if any(isinstance(item, bool) or not 0 <= item < 1 << 32 for item in ids):
        raise InvalidCommitment(f"{label} holds a token id outside 0 to 2**32 - 1")
    words = np.array(ids, "<u4")
    chunks = (words[start : start + CHUNK_IDS].tobytes() for start in range(0, len(ids), CHUNK_IDS))
    return [leaf_salt(salt, label, index) + chunk for index, chunk in enumerate(chunks)]


@dataclass(frozen=True, slots=True)
class Context:
    """What the template was given: enough to render the prompt's ids again."""

    messages: tuple[Message, ...]
    now: str
    template_hash: bytes


def encode_context(context: Context) -> bytes:
    """The canonical bytes of a context."""
    if len(context.template_hash) != 32:
        raise InvalidCommitment(f"template hash has {len(context.template_hash)} bytes, 32 expected")
    data = encode_canonical_json(
        {
            "messages": list(context.messages),
            "now": context.now,
            "template": encode_hex(context.template_hash),
            "tools": None,
        }
    )
    if len(data) > CONTEXT_BYTES_MAX:
        raise InvalidCommitment(f"context of {len(data)} bytes exceeds {CONTEXT_BYTES_MAX}")
    return data


def decode_context(data: bytes) -> Context:
    """Read a context from its canonical bytes.

    Raises:
        InvalidCommitment: too long, not JSON, another shape, or not the canonical spelling.
    """
    if len(data) > CONTEXT_BYTES_MAX:
        raise InvalidCommitment(f"context of {len(data)} bytes exceeds {CONTEXT_BYTES_MAX}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidCommitment(f"context is not JSON: {error}") from error
    if not isinstance(value, dict) or value.keys() != {"messages", "now", "template", "tools"}:
        raise InvalidCommitment("context is not an object of messages, now, template and tools")
    messages, now = value["messages"], value["now"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InvalidCommitment("context messages are not a list of objects")
    if not isinstance(now, str) or value["tools"] is not None:
        raise InvalidCommitment("context now is not text, or tools is not null")
    try:
        context = Context(tuple(messages), now, decode_hex(value["template"], 32))
        if encode_context(context) != data:
            raise InvalidCommitment("context is not in its canonical spelling")
    except (InvalidEncoding, UnicodeEncodeError, RecursionError) as error:
        raise InvalidCommitment(f"context: {error}") from error
    return context


def hash_context(context: bytes, salt: bytes) -> bytes:
    """Salted hash of a context's canonical bytes."""
    return tagged_sha256(CONTEXT_TAG, leaf_salt(salt, "context", 0), context)


def hash_client(client_nonce: bytes, body: bytes) -> bytes:
    """Hash of the exact body received and the user's nonce: what was bought is what was asked."""
    if len(client_nonce) != CLIENT_NONCE_SIZE:
        raise InvalidCommitment(f"client nonce has {len(client_nonce)} bytes, {CLIENT_NONCE_SIZE} expected")
    return tagged_sha256(CLIENT_TAG, client_nonce, body)
