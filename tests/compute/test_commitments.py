"""Commitments against frozen vectors, and what their decoders refuse."""

import json
from pathlib import Path

import pytest

from deaios.compute.commitments import (
    CONTEXT_BYTES_MAX,
    Context,
    InvalidCommitment,
    RawContext,
    commit_output,
    commit_prompt,
    decode_context,
    encode_context,
    encode_raw_context,
    hash_client,
    hash_context,
    hash_part,
    leaf_salt,
)

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "spec" / "sampling.json").read_text())["commitments"]
SALT = bytes.fromhex(VECTORS["salt"][2:])
CONTEXT = Context(({"role": "user", "content": "yes"},), "", bytes(32))


def test_commitments_equal_the_vectors():
    assert leaf_salt(SALT, "prompt", 3).hex() == VECTORS["leafSalt"][2:]
    for vector in VECTORS["lists"]:
        assert commit_prompt(vector["ids"], SALT).hex() == vector["prompt"][2:]
        assert commit_output(vector["ids"], SALT).hex() == vector["output"][2:]
    context = VECTORS["context"].encode()
    assert hash_context(context, SALT).hex() == VECTORS["contextHash"][2:]
    nonce = bytes.fromhex(VECTORS["clientNonce"][2:])
    assert hash_client(nonce, VECTORS["body"].encode()).hex() == VECTORS["clientDigest"][2:]


def test_parts_and_raw_contexts_equal_their_frozen_values():
    nonce, body = bytes(range(32)), b'{"model":"m"}'
    part = "1eeb048b7a17f1bfd7d90dc0a3e21583b99ed05fa7962fbda67229403c288f4f"
    assert hash_part(nonce, body, "completions", 3).hex() == part
    text = encode_raw_context(RawContext("é\n", b"\x01" * 32))
    assert text == '{"prompt":"é\\n","tokenizer":"0x'.encode() + b"01" * 32 + b'"}'
    ids = encode_raw_context(RawContext((1, 2, 3), b"\x01" * 32))
    assert ids == b'{"prompt":[1,2,3],"tokenizer":"0x' + b"01" * 32 + b'"}'
    assert hash_context(ids, bytes(32)).hex() == "03d4622250facb579811dd68c91b502802bb3bae3838d3e3b78b7df865d39370"


def test_what_names_a_part_changes_its_digest():
    nonce, body = bytes(range(32)), b"{}"
    digests = {
        hash_client(nonce, body),
        *(hash_part(nonce, body, api, index) for api in ("chat", "messages") for index in (0, 1)),
        hash_part(nonce, body + b" ", "chat", 0),
        hash_part(bytes(32), body, "chat", 0),
    }
    assert len(digests) == 7
    for short in (b"", bytes(31)):
        with pytest.raises(InvalidCommitment):
            hash_part(short, body, "chat", 0)
    with pytest.raises(InvalidCommitment):
        encode_raw_context(RawContext("x" * CONTEXT_BYTES_MAX, bytes(32)))


def test_every_input_changes_the_commitment():
    ids = list(range(600))
    roots = {
        commit_prompt(ids, SALT),
        commit_output(ids, SALT),
        commit_prompt(ids, bytes(32)),
        commit_prompt(ids[:-1], SALT),
        commit_prompt([*ids, 0], SALT),
        commit_prompt([*ids[1:], ids[0]], SALT),
    }
    assert len(roots) == 6


def test_short_answers_cannot_be_guessed_without_the_salt():
    assert len({commit_output([7], bytes([byte]) * 32) for byte in range(50)}) == 50


@pytest.mark.parametrize("ids", [[-1], [1 << 32], [True]])
def test_ids_that_do_not_fit_are_refused(ids):
    with pytest.raises(InvalidCommitment):
        commit_prompt(ids, SALT)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_salts_and_nonces_have_one_size(size):
    with pytest.raises(InvalidCommitment, match=f"{size} bytes, 32 expected"):
        commit_output([], bytes(size))
    with pytest.raises(InvalidCommitment, match=f"{size} bytes, 32 expected"):
        hash_client(bytes(size), b"")


def test_context_has_one_spelling():
    data = encode_context(CONTEXT)
    assert data == VECTORS["context"].encode()
    assert decode_context(data) == CONTEXT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b'{"messages":[],"now":"","template":"0x00","tools":null}',
        encode_context(CONTEXT) + b" ",
        encode_context(CONTEXT).replace(b'"now"', b'"Now"'),
        encode_context(CONTEXT).replace(b'"tools":null', b'"tools":[]'),
        encode_context(CONTEXT).replace(b'"now":""', b'"now":0'),
        encode_context(CONTEXT).replace(b'"now":""', b'"now":"\\u0061"'),
        encode_context(CONTEXT).replace(b'"yes"', b"1.5"),
        encode_context(CONTEXT).replace(b'"yes"', b'"\\ud800"'),
        encode_context(CONTEXT).replace(b'"0x', b'"0X'),
        encode_context(CONTEXT).replace(b'[{"content":"yes","role":"user"}]', b'["yes"]'),
        b'{"now":"","messages":[],"template":"0x' + b"00" * 32 + b'","tools":null}',
        b'{"messages":[],"messages":[],"now":"","template":"0x' + b"00" * 32 + b'","tools":null}',
        b"1" * (CONTEXT_BYTES_MAX + 1),
    ],
)
def test_other_spellings_of_a_context_are_refused(data):
    with pytest.raises(InvalidCommitment):
        decode_context(data)


@pytest.mark.parametrize(
    "context",
    [
        Context(({"content": "\ud800"},), "", bytes(32)),
        Context(({"content": 1.5},), "", bytes(32)),
        Context((), "", bytes(31)),
        Context(({"content": "a" * CONTEXT_BYTES_MAX},), "", bytes(32)),
    ],
)
def test_contexts_without_a_spelling_are_refused(context):
    with pytest.raises(InvalidCommitment):
        encode_context(context)
