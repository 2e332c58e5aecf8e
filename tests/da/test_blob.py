"""Payloads and ids: one encoding each, everything else refused with a typed error."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.coding.matrix import encode
from deaios.coding.parameters import Profile
from deaios.da.blob import (
    ITEMS_MAX,
    MAGIC,
    PAYLOAD_BYTES_MAX,
    SINGLE_BYTES_MAX,
    BlobId,
    Bundle,
    InvalidBlob,
    Item,
    Large,
    Single,
    decode_payload,
    encode_bundle,
    encode_large,
    encode_single,
    parse_blob_id,
)
from deaios.primitives.errors import Invalid
from deaios.rows.manifest import Manifest, Segment

VECTORS = json.loads((Path(__file__).parents[2] / "docs/spec/da-vectors.json").read_text())
ITEMS = st.lists(
    st.builds(Item, st.binary(min_size=1, max_size=300), st.integers(0, 2**64 - 1)), min_size=1, max_size=40
)
MANIFEST = Manifest(Profile(5, 16), 7, b"\xcc" * 32, (Segment(b"\x01" * 32, 7),))


def encode_payload(payload):
    match payload:
        case Single(content):
            return encode_single(content)
        case Bundle():
            return encode_bundle(list(payload.iterate_items()))
        case Large(manifest):
            return encode_large(manifest)


@pytest.mark.parametrize("vector", VECTORS["payloads"], ids=lambda vector: vector["name"])
def test_payloads_equal_the_frozen_vectors(vector):
    payload = bytes.fromhex(vector["payload"][2:])
    items = [Item(bytes.fromhex(item["content"][2:]), item["expiresAt"]) for item in vector.get("items", ())]
    built = {
        "single": lambda: encode_single(bytes.fromhex(vector["content"][2:])),
        "bundle": lambda: encode_bundle(items),
        "large": lambda: encode_large(MANIFEST),
    }[vector["name"]]()
    assert built == payload == encode_payload(decode_payload(payload))
    matrix = encode(payload, Profile(*vector["profile"]))
    assert "0x" + matrix.commitment.hex() == vector["commitment"]


@given(st.binary(min_size=1, max_size=3000))
def test_singles_survive_encoding(content):
    assert decode_payload(encode_single(content)) == Single(memoryview(content))


@given(ITEMS)
def test_bundles_survive_encoding(items):
    payload = encode_bundle(items)
    bundle = decode_payload(payload)
    assert isinstance(bundle, Bundle)
    assert bundle.count == len(items)
    assert list(bundle.iterate_items()) == items
    assert bundle.get_item(len(items) - 1) == items[-1]
    for number in (-1, len(items)):
        with pytest.raises(InvalidBlob, match="outside"):
            bundle.get_item(number)


def test_items_are_views_of_the_payload():
    payload = encode_bundle([Item(b"one", 1), Item(b"two", 2)])
    assert decode_payload(payload).get_item(1).content.obj is payload


def test_a_manifest_survives_encoding():
    assert decode_payload(encode_large(MANIFEST)) == Large(MANIFEST)
    with pytest.raises(InvalidBlob, match="0 segments"):
        encode_large(Manifest(Profile(5, 16), 0, bytes(32), ()))
    with pytest.raises(InvalidBlob, match="0 segments"):
        decode_payload(MAGIC + b"\3" + Manifest(Profile(5, 16), 0, bytes(32), ()).encode())


def test_contents_at_their_bounds():
    assert len(encode_single(bytes(SINGLE_BYTES_MAX))) == PAYLOAD_BYTES_MAX
    full = encode_bundle([Item(b"x", 0)] * ITEMS_MAX)
    assert decode_payload(full).get_item(ITEMS_MAX - 1) == Item(b"x", 0)
    for build in (
        lambda: encode_single(b""),
        lambda: encode_single(bytes(SINGLE_BYTES_MAX + 1)),
        lambda: encode_bundle([]),
        lambda: encode_bundle([Item(b"", 0)]),
        lambda: encode_bundle([Item(b"x", -1)]),
        lambda: encode_bundle([Item(b"x", 1 << 64)]),
        lambda: encode_bundle([Item(b"x", 0)] * (ITEMS_MAX + 1)),
        lambda: encode_bundle([Item(bytes(PAYLOAD_BYTES_MAX), 0)]),
        lambda: decode_payload(bytes(PAYLOAD_BYTES_MAX + 1)),
    ):
        with pytest.raises(InvalidBlob):
            build()


def bundle_bytes(count, entries, items):
    return MAGIC + b"\2" + count.to_bytes(4) + b"".join(end.to_bytes(4) + bytes(8) for end in entries) + items


@pytest.mark.parametrize(
    "payload",
    [
        b"", MAGIC, MAGIC + b"\1", MAGIC + b"\0x", MAGIC + b"\4x", b"deaios/blob/2\1x",
        bundle_bytes(0, [], b""), bundle_bytes(0, [], b"x"), bundle_bytes(1, [], b"x"), bundle_bytes(2, [1], b"x"),
        bundle_bytes(1, [0], b""), bundle_bytes(1, [1], b"xy"), bundle_bytes(1, [2], b"x"),
        bundle_bytes(2, [1, 1], b"xy"), bundle_bytes(2, [0, 2], b"xy"), bundle_bytes(2, [2, 1], b"xy"),
        bundle_bytes(3, [2, 1, 3], b"xyz"), bundle_bytes(2, [2**32 - 1, 2], b"xy"),
        MAGIC + b"\3" + MANIFEST.encode() + b"x",
    ],
)  # fmt: skip
def test_other_bytes_are_refused(payload):
    with pytest.raises(Invalid):
        decode_payload(payload)


@pytest.mark.parametrize("count", [1, 3, ITEMS_MAX, ITEMS_MAX + 1, 2**31, 2**32 - 1])
def test_hostile_counts_cost_nothing(count):
    started = time.process_time()
    with pytest.raises(InvalidBlob):
        decode_payload(bundle_bytes(count, [], b"12345678901"))
    assert time.process_time() - started < 0.1


@given(ITEMS, st.data())
def test_changed_payloads_are_refused_or_canonical(items, data):
    payload = bytearray(encode_bundle(items))
    payload[data.draw(st.integers(0, min(len(payload), 200) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(payload)))
    for candidate in (bytes(payload), bytes(payload[:cut]), bytes(payload[:cut]) + b"\0" + bytes(payload[cut:])):
        try:
            decoded = decode_payload(candidate)
        except Invalid:
            continue
        assert encode_payload(decoded) == candidate


@given(st.binary(min_size=32, max_size=32), st.none() | st.integers(0, ITEMS_MAX - 1))
def test_ids_survive_their_text(commitment, number):
    blob_id = BlobId(commitment, number)
    assert str(blob_id) == "0x" + commitment.hex() + ("" if number is None else f".{number}")
    assert parse_blob_id(str(blob_id)) == blob_id


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "0x", "ab" * 32, "0x" + "ab" * 31, "0x" + "AB" * 32, "0X" + "ab" * 32, " 0x" + "ab" * 32,
        *("0x" + "ab" * 32 + end for end in (".", ".01", ".-1", ".+1", ".65536", ".1.1", ".1 ", "\n", ".\u0661")),
    ],
)  # fmt: skip
def test_other_spellings_of_ids_are_refused(text):
    with pytest.raises(Invalid):
        parse_blob_id(text)


def test_ids_out_of_range_are_refused():
    for commitment, number in ((bytes(31), None), (bytes(32), -1), (bytes(32), ITEMS_MAX)):
        with pytest.raises(InvalidBlob):
            BlobId(commitment, number)
