"""Manifests and row messages: one encoding each, everything else refused with a typed error."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.coding.matrix import encode
from deaios.coding.parameters import PROFILE_HOT, PROFILE_LOCAL, Parameters
from deaios.primitives.errors import Invalid
from deaios.rows.manifest import (
    SEGMENT_BYTES_MAX,
    InvalidManifest,
    Manifest,
    Segment,
    decode_manifest,
    open_manifest,
)
from deaios.rows.message import (
    MESSAGE_BYTES_MAX,
    InvalidRow,
    build_message,
    compute_message_bytes,
    decode_message,
    validate_message,
)

MANIFEST_ID = "6ef1a4022007e34ef6b726d3875c44e51ddc51070cd312a200f6a629daa1e402"


def build_manifest(sizes=(SEGMENT_BYTES_MAX, 5), profile=PROFILE_LOCAL):
    segments = tuple(Segment(bytes([i + 1]) * 32, size) for i, size in enumerate(sizes))
    return Manifest(profile, sum(sizes), b"\xcc" * 32, segments)


def test_manifest_bytes_and_id_are_frozen():
    manifest = build_manifest()
    assert manifest.encode().hex() == (
        "646561696f732f6d616e69666573742f31"
        "00020003"
        "0000000001000005" + "cc" * 32 + "00000002" + "01" * 32 + "01000000" + "02" * 32 + "00000005"
    )
    assert manifest.manifest_id.hex() == MANIFEST_ID
    assert open_manifest(manifest.manifest_id, manifest.encode()) == manifest


@given(st.lists(st.integers(1, SEGMENT_BYTES_MAX), max_size=20), st.sampled_from([PROFILE_LOCAL, PROFILE_HOT]))
def test_manifests_survive_encoding(sizes, profile):
    manifest = build_manifest(sizes, profile) if sizes else Manifest(profile, 0, bytes(32), ())
    assert decode_manifest(manifest.encode()) == manifest
    assert [manifest.get_parameters(i) for i in range(len(sizes))] == [Parameters(profile, size) for size in sizes]


def test_other_bytes_are_refused():
    manifest = build_manifest()
    data = manifest.encode()
    for bad in (b"", data[:-1], data + b"\0", b"x" + data[1:], data[:61] + b"\xff" * 4 + data[65:]):
        with pytest.raises(Invalid):
            decode_manifest(bad)
        with pytest.raises(InvalidManifest, match="expected"):
            open_manifest(manifest.manifest_id, bad)
    with pytest.raises(InvalidManifest, match="segments hold"):
        replace(manifest, size_bytes=manifest.size_bytes + 1)
    for size in (0, SEGMENT_BYTES_MAX + 1):
        with pytest.raises(InvalidManifest, match="allowed"):
            Segment(bytes(32), size)
    with pytest.raises(InvalidManifest):
        Segment(bytes(31), 1)
    with pytest.raises(InvalidManifest):
        replace(manifest, content_id=b"")


@given(st.binary(max_size=300), st.integers(0, 140), st.integers(0, 255))
def test_hostile_manifests_give_typed_errors(tail, position, value):
    data = bytearray(build_manifest().encode())
    data[position % len(data)] = value
    for candidate in (bytes(data), bytes(data[: position % len(data)]) + tail):
        try:
            manifest = decode_manifest(candidate)
        except Invalid:
            continue
        assert manifest.encode() == candidate


@pytest.mark.parametrize("profile", [PROFILE_LOCAL, PROFILE_HOT], ids=str)
def test_messages_carry_all_that_a_check_needs(profile):
    matrix = encode(random.Random(1).randbytes(5_000), profile)
    for index in (0, profile.rows - 1):
        message = build_message(matrix, index)
        data = message.encode()
        assert len(data) == compute_message_bytes(matrix.head.parameters) <= MESSAGE_BYTES_MAX
        assert decode_message(data) == message
        assert validate_message(matrix.commitment, index, data) == message
        with pytest.raises(InvalidRow, match="expected"):
            validate_message(matrix.commitment, (index + 1) % profile.rows, data)
        with pytest.raises(InvalidRow, match="does not verify"):
            validate_message(bytes(32), index, data)


def test_every_changed_byte_of_a_message_is_refused():
    matrix = encode(random.Random(2).randbytes(1_500), PROFILE_LOCAL)
    data = build_message(matrix, 2).encode()
    positions = [*range(200), *range(200, len(data), 61), len(data) - 1]
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(Invalid):
            validate_message(matrix.commitment, 2, bytes(changed))
    for bad in (b"", data[:-1], data + b"\0", data[:30]):
        with pytest.raises(Invalid):
            validate_message(matrix.commitment, 2, bad)


@given(st.binary(max_size=500))
def test_hostile_messages_give_typed_errors(tail):
    with pytest.raises(Invalid):
        decode_message(b"deaios/row/1" + tail)
