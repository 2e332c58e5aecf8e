"""Salted commitments to prompt, context, output and body: what a request and a receipt bind without showing it.

Invariant: nobody can guess a short answer from its hash, because every leaf starts with a salt only buyer and provider
hold; an opening (salt and ids) reproduces each commitment exactly. Frozen: docs/spec/sampling.md, "Commitments".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from deaios.primitives.encoding import InvalidEncoding, Json, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import sha256, tagged_sha256
from deaios.primitives.merkle import build_root

PROMPT_TAG = "deaios/prompt/1"
OUTPUT_TAG = "deaios/output/1"
EMBEDDING_TAG = "deaios/embedding/1"
SALT_TAG = "deaios/salt/1"
CONTEXT_TAG = "deaios/context/1"
CLIENT_TAG = "deaios/client/1"
PART_TAG = "deaios/client-part/1"
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
        label: `prompt`, `context`, `output` or `embedding`.
        index: of the leaf.
    """
    _validate_salt(salt)
    return tagged_sha256(SALT_TAG, salt, sha256(label.encode()), index.to_bytes(8))


def _validate_salt(salt: bytes) -> None:
    if len(salt) != SALT_SIZE:
        raise InvalidCommitment(f"salt has {len(salt)} bytes, {SALT_SIZE} expected")


def commit_prompt(ids: Sequence[int], salt: bytes) -> bytes:
    """Merkle root over salted chunks of the prompt's token ids."""
    return build_root(PROMPT_TAG, _salted_chunks(ids, salt, "prompt"))


def commit_output(ids: Sequence[int], salt: bytes) -> bytes:
    """Merkle root over salted chunks of the sampled token ids, the stopping one included."""
    return build_root(OUTPUT_TAG, _salted_chunks(ids, salt, "output"))


def commit_embedding(words: Sequence[int], salt: bytes) -> bytes:
    """The same over the words of a vector, under a tag and with salts of their own: no answer has the same root."""
    return build_root(EMBEDDING_TAG, _salted_chunks(words, salt, "embedding"))


def _salted_chunks(ids: Sequence[int], salt: bytes, label: str) -> list[bytes]:
    _validate_salt(salt)
    if ids and (bool in map(type, ids) or min(ids) < 0 or max(ids) >= 1 << 32):
        raise InvalidCommitment(f"{label} holds a token id outside 0 to 2**32 - 1")
    words = np.array(ids, "<u4")
    chunks = (words[start : start + CHUNK_IDS].tobytes() for start in range(0, len(ids), CHUNK_IDS))
    return [leaf_salt(salt, label, index) + chunk for index, chunk in enumerate(chunks)]


@dataclass(frozen=True, slots=True)
class Context:
    """What the template was given: enough to render the prompt's ids again.

    Messages are objects of role, content, and for tools also toolCalls or toolCallId; `tools` is JSON text, because the
    order of its keys reaches the prompt.
    """

    messages: tuple[Message, ...]
    now: str
    template_hash: bytes
    tools: str | None = None


def encode_context(context: Context) -> bytes:
    """The canonical bytes of a context."""
    if len(context.template_hash) != 32:
        raise InvalidCommitment(f"template hash has {len(context.template_hash)} bytes, 32 expected")
    value = {
        "messages": list(context.messages),
        "now": context.now,
        "template": encode_hex(context.template_hash),
        "tools": context.tools,
    }
    try:
        data = encode_canonical_json(value)
    except (InvalidEncoding, UnicodeEncodeError) as error:
        raise InvalidCommitment(f"context has no canonical spelling: {error}") from error
    if len(data) > CONTEXT_BYTES_MAX:
        raise InvalidCommitment(f"context of {len(data)} bytes exceeds {CONTEXT_BYTES_MAX}")
    return data


def decode_context(data: bytes) -> Context:
    """Read a context from its canonical bytes.

    Raises:
        InvalidCommitment: too long, another shape, or not the canonical spelling.
    """
    if len(data) > CONTEXT_BYTES_MAX:
        raise InvalidCommitment(f"context of {len(data)} bytes exceeds {CONTEXT_BYTES_MAX}")
    try:
        # Typed, so that nothing nests deeper than the format does, whatever the bytes say.
        value = msgspec.json.decode(data, type=_ContextJson)
        messages = tuple(msgspec.to_builtins(message) for message in value.messages)
        context = Context(messages, value.now, decode_hex(value.template, 32), value.tools)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidEncoding) as error:
        raise InvalidCommitment(f"context is not an object of messages, now, template and tools: {error}") from error
    if encode_context(context) != data:
        raise InvalidCommitment("context is not in its canonical spelling")
    return context


class _CallJson(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: str
    arguments: str


class _MessageJson(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    role: str
    content: str
    name: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[_CallJson] | msgspec.UnsetType = msgspec.UNSET
    tool_call_id: str | msgspec.UnsetType = msgspec.UNSET


class _ContextJson(msgspec.Struct, forbid_unknown_fields=True):
    """A context as JSON; nothing in it is deeper than a call of a message."""

    messages: list[_MessageJson]
    now: str
    template: str
    tools: str | None


@dataclass(frozen=True, slots=True)
class RawContext:
    """A prompt that no template rendered: text that was encoded plainly, or token ids."""

    prompt: str | tuple[int, ...]
    tokenizer_hash: bytes


def encode_raw_context(context: RawContext) -> bytes:
    """The canonical bytes of a raw prompt's context; no conversation has the same."""
    if len(context.tokenizer_hash) != 32:
        raise InvalidCommitment(f"tokenizer hash has {len(context.tokenizer_hash)} bytes, 32 expected")
    prompt = context.prompt if isinstance(context.prompt, str) else list(context.prompt)
    try:
        data = encode_canonical_json({"prompt": prompt, "tokenizer": encode_hex(context.tokenizer_hash)})
    except (InvalidEncoding, UnicodeEncodeError) as error:
        raise InvalidCommitment(f"context has no canonical spelling: {error}") from error
    if len(data) > CONTEXT_BYTES_MAX:
        raise InvalidCommitment(f"context of {len(data)} bytes exceeds {CONTEXT_BYTES_MAX}")
    return data


def hash_context(context: bytes, salt: bytes) -> bytes:
    """Salted hash of a context's canonical bytes."""
    return tagged_sha256(CONTEXT_TAG, leaf_salt(salt, "context", 0), context)


def hash_client(client_nonce: bytes, body: bytes) -> bytes:
    """Hash of the exact body received and the user's nonce: what was bought is what was asked."""
    _validate_nonce(client_nonce)
    return tagged_sha256(CLIENT_TAG, client_nonce, body)


def hash_part(client_nonce: bytes, body: bytes, api: str, index: int) -> bytes:
    """The same for one purchase of a request that makes several, or that came by another door than chat.

    Args:
        client_nonce: the user's 32 bytes.
        body: exact bytes received.
        api: by which door.
        index: of the purchase among the request's.
    """
    _validate_nonce(client_nonce)
    return tagged_sha256(PART_TAG, client_nonce, sha256(api.encode()), index.to_bytes(8), body)


def _validate_nonce(client_nonce: bytes) -> None:
    if len(client_nonce) != CLIENT_NONCE_SIZE:
        raise InvalidCommitment(f"client nonce has {len(client_nonce)} bytes, {CLIENT_NONCE_SIZE} expected")
