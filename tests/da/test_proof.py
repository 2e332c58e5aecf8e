"""Proofs of contents: every content of a payload is proven by its leaves, and by nothing else."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.coding.combinations import Combiner
from deaios.coding.head import Head
from deaios.coding.matrix import CodedMatrix, RowVerifier, decode, encode, prove_leaf, prove_row, verify_leaf
from deaios.coding.parameters import LEAF_BYTES, PROFILE_SAMPLED, Parameters, Profile
from deaios.coding.tree import build_levels, hash_leaves, hash_rows, seal_root
from deaios.da.blob import (
    MAGIC,
    PAYLOAD_BYTES_MAX,
    SINGLE_BYTES_MAX,
    BlobId,
    InvalidBlob,
    Item,
    encode_bundle,
    encode_large,
    encode_single,
)
from deaios.da.multiproof import prove_leaves
from deaios.da.proof import (
    PROOF_BYTES_MAX,
    BlobProof,
    InvalidProof,
    ProvenItem,
    Prover,
    decode_proof,
    encode_proof,
    prove_item,
    verify_item,
)
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import sha256
from deaios.rows.manifest import Manifest, Segment

VECTORS = json.loads((Path(__file__).parents[2] / "docs/spec/da-vectors.json").read_text())
PROFILES = st.sampled_from([Profile(1, 3), Profile(2, 7), Profile(5, 16), Profile(7, 21)])
ITEMS = st.lists(
    st.builds(
        lambda seed, size, expires_at: Item(random.Random(seed).randbytes(size), expires_at),
        st.integers(0, 2**32),
        st.integers(1, 60) | st.integers(1, 4000),
        st.integers(0, 2**64 - 1),
    ),
    min_size=1,
    max_size=120,
)


def build_bundle(count=40, size=200):
    dice = random.Random(count)
    items = [Item(dice.randbytes(size), 2_000_000_000 + number) for number in range(count)]
    return items, encode(encode_bundle(items), Profile(5, 16))


@pytest.mark.parametrize("vector", VECTORS["payloads"], ids=lambda vector: vector["name"])
def test_proofs_equal_the_frozen_ones(vector):
    matrix = encode(bytes.fromhex(vector["payload"][2:]), Profile(*vector["profile"]))
    for found in vector["proofs"]:
        blob_id = BlobId(matrix.commitment, found["number"])
        proof = decode_proof(bytes.fromhex(found["proof"][2:]))
        assert prove_item(matrix, found["number"]) == proof
        assert encode_proof(proof).hex() == found["proof"][2:]
        proven = verify_item(blob_id, proof)
        item = vector["items"][found["number"]] if "items" in vector else vector
        assert "0x" + proven.content.hex() == item["content"]
        assert proven.expires_at == item.get("expiresAt")


@given(ITEMS, PROFILES)
@settings(deadline=None, max_examples=30)
def test_every_item_of_a_bundle_is_proven(items, profile):
    matrix = encode(encode_bundle(items), profile)
    prover = Prover(matrix)
    for number, item in enumerate(items):
        proof = prover.prove(number)
        assert decode_proof(encode_proof(proof)) == proof
        rows = tuple(dict.fromkeys(place // matrix.head.parameters.leaves_per_row for place in proof.places))
        proven = verify_item(BlobId(matrix.commitment, number), proof)
        assert proven == ProvenItem(item.content, item.expires_at, rows)
        other = (number + 1) % len(items)
        if other != number:
            found = verify_item(BlobId(matrix.commitment, other), proof)
            assert found is None or found.content == items[other].content, "only where both lie in the same leaves"


@given(st.integers(1, 30_000), PROFILES)
@settings(deadline=None, max_examples=30)
def test_every_single_is_proven(size, profile):
    content = random.Random(size).randbytes(size)
    matrix = encode(encode_single(content), profile)
    proof = prove_item(matrix, None)
    assert verify_item(BlobId(matrix.commitment), proof).content == content
    assert verify_item(BlobId(matrix.commitment, 0), proof) is None
    assert decode_proof(encode_proof(proof)) == proof


def test_hashes_are_those_of_the_single_leaf_proofs():
    _, matrix = build_bundle(400)
    parameters = matrix.head.parameters
    proof = prove_item(matrix, 200)
    singles = set()
    for place, leaf in zip(proof.places, proof.leaves, strict=True):
        row, index = divmod(place, parameters.leaves_per_row)
        path = prove_leaf(parameters, matrix.get_row(row), prove_row(matrix, row), index)
        assert verify_leaf(matrix.root, parameters, row, index, leaf, path)
        singles.update(path)
    assert set(proof.nodes) < singles


def test_shared_hashes_are_written_once():
    matrix = encode(encode_single(random.Random(1).randbytes(200_000)), Profile(5, 16))
    parameters = matrix.head.parameters
    nodes = len(prove_item(matrix, None).nodes)
    assert nodes < 30 < len(prove_item(matrix, None).places) * (parameters.leaf_depth + parameters.profile.depth)


def test_every_changed_byte_is_refused():
    _, matrix = build_bundle()
    blob_id = BlobId(matrix.commitment, 20)
    data = encode_proof(prove_item(matrix, 20))
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        try:
            proof = decode_proof(bytes(changed))
        except Invalid:
            continue
        assert verify_item(blob_id, proof) is None, position


@given(st.data())
@settings(deadline=None)
def test_changed_proofs_prove_nothing_else(data):
    items, matrix = build_bundle()
    number = data.draw(st.integers(0, len(items) - 1))
    encoded = bytearray(encode_proof(prove_item(matrix, number)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(encoded)))
        end = data.draw(st.integers(start, min(len(encoded), start + 40)))
        encoded[start:end] = data.draw(st.binary(max_size=40))
    asked = data.draw(st.integers(0, len(items) - 1))
    try:
        proof = decode_proof(bytes(encoded))
    except Invalid:
        return
    assert encode_proof(proof) == bytes(encoded)
    proven = verify_item(BlobId(matrix.commitment, asked), proof)
    assert proven is None or (proven.content, proven.expires_at) == (items[asked].content, items[asked].expires_at)


def test_other_commitments_are_refused():
    _, matrix = build_bundle()
    proof = prove_item(matrix, 3)
    for bit in range(256):
        changed = (int.from_bytes(matrix.commitment) ^ 1 << bit).to_bytes(32)
        assert verify_item(BlobId(changed, 3), proof) is None


def test_one_leaf_more_or_less_is_refused():
    _, matrix = build_bundle(400)
    blob_id = BlobId(matrix.commitment, 100)
    proof = prove_item(matrix, 100)
    assert len(proof.places) >= 3
    assert verify_item(blob_id, proof)
    wider = rebuild(matrix, (*proof.places, proof.places[-1] + 1))
    assert verify_item(blob_id, wider) is None
    for left_out in range(len(proof.places)):
        places = proof.places[:left_out] + proof.places[left_out + 1 :]
        assert verify_item(blob_id, rebuild(matrix, places)) is None


def rebuild(matrix, places):
    """A well-formed proof of any leaves of a matrix."""
    parameters = matrix.head.parameters
    data = matrix.rows[: parameters.profile.data_rows]
    levels = {row: build_levels(hash_leaves(data[row])) for row in range(len(data))}
    payload = data.tobytes()
    return BlobProof(
        parameters,
        matrix.root,
        sha256(matrix.y),
        tuple(places),
        tuple(payload[place * LEAF_BYTES : (place + 1) * LEAF_BYTES] for place in places),
        prove_leaves(parameters, levels, matrix.levels, places),
    )


@pytest.mark.parametrize(
    ("payload", "number"),
    [
        (MAGIC + b"\2" + (2).to_bytes(4) + (2).to_bytes(4) + bytes(8) + (1).to_bytes(4) + bytes(8) + b"xy", 1),
        (MAGIC + b"\2" + (1).to_bytes(4) + (1).to_bytes(4) + bytes(8) + b"xy", 0),
        (MAGIC + b"\2" + (2).to_bytes(4) + (2).to_bytes(4) + bytes(8) + (2).to_bytes(4) + bytes(8) + b"xy", 0),
        (MAGIC + b"\2" + (1).to_bytes(4) + (9).to_bytes(4) + bytes(8) + b"xy", 0),
        (MAGIC + b"\2" + (2**32 - 1).to_bytes(4) + bytes(3000), 0),
        (MAGIC + b"\2" + (0).to_bytes(4) + bytes(3000), 0),
        (MAGIC + b"\2", 0),
        (MAGIC + b"\1", None),
        (MAGIC + b"\1x", 0),
        (MAGIC + b"\7x", None),
        (b"x", None),
        (b"x" * 2000, 0),
    ],
)
def test_committed_payloads_that_are_not_canonical_prove_nothing(payload, number):
    matrix = encode(payload, Profile(2, 7))
    with pytest.raises(InvalidBlob):
        prove_item(matrix, number)
    everything = rebuild(matrix, range(-(-len(payload) // LEAF_BYTES)))
    assert verify_item(BlobId(matrix.commitment, number), everything) is None


def test_what_has_no_proof():
    _, matrix = build_bundle(3)
    for number in (None, 3, -1):
        with pytest.raises(InvalidBlob):
            prove_item(matrix, number)
    large = encode(encode_large(Manifest(Profile(2, 7), 1, bytes(32), (Segment(bytes(32), 1),))), Profile(2, 7))
    for number in (None, 0):
        with pytest.raises(InvalidBlob, match="large"):
            prove_item(large, number)
    with pytest.raises(InvalidProof, match="alone"):
        Prover(encode(encode_single(b"x"), PROFILE_SAMPLED))
    with pytest.raises(InvalidProof, match="exceeds"):
        Prover(encode(bytes(PAYLOAD_BYTES_MAX + 1), Profile(2, 3)))


def test_malformed_proofs_cannot_be_built_or_read():
    _, matrix = build_bundle(400)
    proof = prove_item(matrix, 100)
    for changes in (
        {"root": bytes(31)},
        {"combinations_hash": b""},
        {"places": ()},
        {"places": (-1, *proof.places[1:])},
        {"places": proof.places[::-1]},
        {"places": (*proof.places[:-1], 10**6)},
        {"leaves": proof.leaves[1:]},
        {"leaves": (b"", *proof.leaves[1:])},
        {"nodes": proof.nodes[1:]},
        {"nodes": (*proof.nodes, bytes(32))},
        {"nodes": (b"", *proof.nodes[1:])},
        {"parameters": Parameters(PROFILE_SAMPLED, 1000)},
        {"parameters": Parameters(Profile(5, 16), PAYLOAD_BYTES_MAX + 1)},
    ):
        with pytest.raises(InvalidProof):
            replace(proof, **changes)
    data = encode_proof(proof)
    start = len(b"deaios/blob-proof/1") + 12 + 64
    counts = [data[:start] + count.to_bytes(4) + data[start + 4 :] for count in (0, 1, 5, 2**31, 2**32 - 1)]
    for bad in (b"", data[:-1], data + b"\0", b"x" + data[1:], data[:60], bytes(PROOF_BYTES_MAX + 1), *counts):
        with pytest.raises(Invalid):
            decode_proof(bad)


@pytest.mark.parametrize("profile", [Profile(1, 3), Profile(5, 16), Profile(85, 256)], ids=str)
def test_the_largest_proof_is_below_the_bound(profile):
    matrix = encode(encode_single(bytes(SINGLE_BYTES_MAX)), profile)
    data = encode_proof(prove_item(matrix, None))
    assert len(data) <= PROOF_BYTES_MAX
    assert verify_item(BlobId(matrix.commitment), decode_proof(data)).content == bytes(SINGLE_BYTES_MAX)


def test_a_cheating_publisher_is_caught_by_the_check_of_the_row():
    """A proof says what was committed to; the row it lies in fails its own check when decoding gives something else."""
    shown_to_all, shown_to_one = encode_single(b"shown to all"), encode_single(b"shown to one")
    honest = encode(shown_to_all, Profile(2, 7))
    parameters = honest.head.parameters
    rows = honest.rows.copy()
    rows[0, : len(shown_to_one)] = np.frombuffer(shown_to_one, np.uint8)
    levels = build_levels(hash_rows(rows))
    root = seal_root(levels[-1].tobytes())
    y = Combiner(root, parameters).combine(honest.rows[:2]).tobytes()
    cheating = CodedMatrix(Head(parameters, root, y), rows, levels)
    proven = verify_item(BlobId(cheating.commitment), prove_item(cheating, None))
    assert proven == ProvenItem(b"shown to one", None, (0,))
    verifier = RowVerifier(cheating.commitment, cheating.head)
    proofs = [prove_row(cheating, row) for row in range(7)]
    passed = {row: rows[row].data for row in range(7) if verifier.verify(row, rows[row].data, proofs[row])}
    assert set(passed) == set(range(1, 7))
    assert bytes(decode(parameters, passed)) == shown_to_all
