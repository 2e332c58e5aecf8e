"""Model records: one spelling, bounds and caps, hostile bytes."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.records import (
    RECORD_BYTES_MAX,
    THRESHOLD_CAPS,
    Calibration,
    InvalidRecord,
    ModelRecord,
    NoiseClass,
    RecordFile,
    Thresholds,
    decode_record,
    encode_record,
    record_id,
)
from deaios.primitives.hashing import sha256

RECORD = ModelRecord(
    name="smollm2-135m-instruct",
    files=(RecordFile("model.gguf", b"\1" * 32, 98_362_432, b"\2" * 32),),
    model_root=b"\3" * 32,
    tensors_root=b"\4" * 32,
    serving="f16-expansion/1",
    tokenizer_hash=b"\5" * 32,
    template_hash=b"\6" * 32,
    quantisation="Q4_1",
    licence="Apache-2.0",
    parents=(),
    noise_class=NoiseClass.FLOAT,
    thresholds=Thresholds(20_000, 20_000),
    calibration=Calibration(2000, 6_500, b"\7" * 32),
    context_tokens=2048,
    replay_profiles=(b"\1" * 32, b"\2" * 32),
)
CAPS = THRESHOLD_CAPS[NoiseClass.FLOAT]


def respell(**changes):
    """Canonical JSON of the record with top-level keys changed; None removes one."""
    value = json.loads(encode_record(RECORD)) | changes
    value = {key: item for key, item in value.items() if item is not None}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_encoding_is_frozen():
    data = encode_record(RECORD)
    assert decode_record(data) == RECORD
    assert record_id(data) == sha256(sha256(b"deaios/model-record/1") + data)
    assert record_id(data).hex() == "1c2b2bf601f20d8b092b1c04e431fb5949997769129aa977f7458a69a97c48d0"
    assert len(data) < RECORD_BYTES_MAX // 4


def test_decoding_refuses_every_other_spelling():
    data = encode_record(RECORD)
    for changed in (
        data + b"\n",
        data.replace(b'"name"', b' "name"', 1),
        data.replace(b"0x01", b"0X01", 1),
        data.replace(b'"version":1', b'"version":1.0'),
        data.replace(b'"version":1', b'"version":1,"version":1'),
        data.replace(b"smollm2", b"\\u0073mollm2"),
        json.dumps(json.loads(data), indent=1).encode(),
    ):
        assert changed != data
        with pytest.raises(InvalidRecord):
            decode_record(changed)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"version": 2}, "version is 2"),
        ({"version": True}, "version"),
        ({"name": None}, "missing keys"),
        ({"extra": 1}, "unknown keys"),
        ({"noiseClass": "B"}, "noise class 'B'"),
        ({"files": []}, "0 files"),
        ({"files": [[]]}, "not an object"),
        ({"files": {}}, "not a list"),
        ({"parents": ["0x00"]}, "32 expected"),
        ({"modelRoot": 5}, "modelRoot"),
        ({"contextTokens": "2048"}, "not an integer"),
        ({"contextTokens": 10**30}, "context_tokens"),
        ({"thresholds": {"epsilonMicro": 1}}, "missing keys"),
        ({"replayProfiles": ["0x" + "02" * 32, "0x" + "01" * 32]}, "in order"),
    ],
)
def test_other_content_is_refused(changes, word):
    with pytest.raises(InvalidRecord, match=word):
        decode_record(respell(**changes))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"\xff", b"[" * 8000, b"9" * 5000, b" " * 8193, b"NaN"])
def test_hostile_bytes_are_refused(data):
    with pytest.raises(InvalidRecord):
        decode_record(data)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"thresholds": Thresholds(CAPS.margin_micro + 1, 0)}, "margin_micro is 50001"),
        ({"thresholds": Thresholds(20_000, CAPS.epsilon_micro + 1)}, "epsilon_micro is 50001"),
        ({"thresholds": Thresholds(0, 0)}, "margin_micro is 0"),
        ({"calibration": Calibration(10, 20_001, bytes(32))}, "margin_max_micro"),
        ({"calibration": Calibration(10, 0, bytes(31))}, "evidence"),
        ({"name": "UPPER"}, "name"),
        ({"name": ""}, "name"),
        ({"licence": "a\nb"}, "licence"),
        ({"licence": "x" * 257}, "licence"),
        ({"serving": "\ud800"}, "serving"),
        ({"files": RECORD.files * 2}, "without repeats"),
        ({"files": (replace(RECORD.files[0], name="../evil"),)}, "file name"),
        ({"files": (replace(RECORD.files[0], size_bytes=0),)}, "size_bytes"),
        ({"parents": tuple(bytes([byte]) * 32 for byte in range(17))}, "parents"),
        ({"replay_profiles": (b"\1" * 32,) * 2}, "replay_profiles"),
        ({"context_tokens": 1}, "context_tokens"),
        ({"tensors_root": b""}, "tensors_root"),
    ],
)
def test_bounds_and_caps(changes, word):
    with pytest.raises(InvalidRecord, match=word):
        encode_record(replace(RECORD, **changes))


def test_records_on_the_bounds_fit_the_catalogue():
    biggest = replace(
        RECORD,
        parents=tuple(bytes([byte]) * 32 for byte in range(16)),
        replay_profiles=tuple(bytes([byte]) * 32 for byte in range(32)),
        thresholds=CAPS,
    )
    assert decode_record(encode_record(biggest)) == biggest


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_never_decode_to_the_same_record(data):
    encoded = bytearray(encode_record(RECORD))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_record(bytes(encoded))
    except InvalidRecord:
        return
    assert decoded != RECORD
    assert encode_record(decoded) == bytes(encoded)
