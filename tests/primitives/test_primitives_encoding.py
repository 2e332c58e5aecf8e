"""One spelling per value: every other text is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.primitives.encoding import (
    InvalidEncoding,
    decode_decimal,
    decode_hex,
    encode_canonical_json,
    encode_decimal,
    encode_hex,
    validate_json_depth,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


NOT_HEX = ["", "0", "12", "0X12", "0xAB", "0x1", "0x 1", "0x12\n", " 0x12", "0x\u0967\u0968", "0xgg", None, 12, b"0x12"]
NOT_DECIMAL = ["", "-1", "+1", "01", "1 ", " 1", "1_0", "1.0", "1e3", "0x1", "\u0661", "9" * 79, None, 1]


@given(st.binary(max_size=64))
def test_hex_round_trip(data):
    assert decode_hex(encode_hex(data)) == data
    assert decode_hex(encode_hex(data), len(data)) == data
    with pytest.raises(InvalidEncoding, match="expected"):
        decode_hex(encode_hex(data), len(data) + 1)


@pytest.mark.parametrize("text", NOT_HEX, ids=repr)
def test_other_hex_is_refused(text):
    with pytest.raises(InvalidEncoding):
        decode_hex(text)


@given(st.text(max_size=12))
def test_hex_has_one_spelling(text):
    try:
        data = decode_hex(text)
    except InvalidEncoding:
        return
    assert encode_hex(data) == text


@given(st.integers(0, 2**256 - 1))
def test_decimal_round_trip(value):
    assert decode_decimal(encode_decimal(value), 256) == value


@pytest.mark.parametrize("text", NOT_DECIMAL, ids=repr)
def test_other_decimals_are_refused(text):
    with pytest.raises(InvalidEncoding):
        decode_decimal(text, 256)


def test_decimals_have_a_range():
    assert decode_decimal("255", 8) == 255
    with pytest.raises(InvalidEncoding, match="exceeds 8 bits"):
        decode_decimal("256", 8)
    with pytest.raises(InvalidEncoding, match="negative"):
        encode_decimal(-1)


@given(JSON)
def test_canonical_json_is_a_fixed_point(value):
    encoded = encode_canonical_json(value)
    assert encode_canonical_json(json.loads(encoded)) == encoded


def test_canonical_json_is_frozen():
    value = {"b": [1, True, None, "é\n"], "a": {"z": 0, "A": -5}, "": 2**80}
    assert encode_canonical_json(value) == (
        b'{"":1208925819614629174706176,"a":{"A":-5,"z":0},"b":[1,true,null,"\xc3\xa9\\n"]}'
    )


def spell(value):
    """Canonical JSON by the standard library."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@given(JSON)
def test_canonical_json_equals_the_standard_library(value):
    assert encode_canonical_json(value) == spell(value)


def test_every_character_is_spelled_as_by_the_standard_library():
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    assert encode_canonical_json(list(map(chr, points))) == spell(list(map(chr, points)))
    keys = {chr(point): 0 for point in points[:: 0x110000 // 4096]} | {"": 1, "aa": 2, "a\U0010ffff": 3}
    assert encode_canonical_json(keys) == spell(keys)
    with pytest.raises(UnicodeEncodeError):
        encode_canonical_json(["\ud800"])


@pytest.mark.parametrize("value", [b"bytes", {"a": {1}}, [object()]])
def test_what_is_no_json_is_not_spelled_somehow(value):
    with pytest.raises(TypeError, match="is not JSON"):
        encode_canonical_json(value)


@pytest.mark.parametrize("value", [1.0, [0.5], {"a": {"b": (1, 2.0)}}, float("nan"), {1: 2}, {None: 1}])
def test_floats_and_odd_keys_are_refused(value):
    with pytest.raises(InvalidEncoding):
        encode_canonical_json(value)


def measure_depth(value):
    """Levels of lists and objects, counted on the parsed value."""
    if isinstance(value, dict):
        return 1 + max(map(measure_depth, value.values()), default=0)
    return 1 + max(map(measure_depth, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.integers(0, 6))
def test_json_depth_is_that_of_the_parsed_value(value, depth_max):
    data = json.dumps(value).encode()
    if measure_depth(value) <= depth_max:
        validate_json_depth(data, depth_max)
    else:
        with pytest.raises(InvalidEncoding, match="nested"):
            validate_json_depth(data, depth_max)


@given(st.text(alphabet='[]{}",\\:0', max_size=60))
def test_what_passes_the_depth_check_never_exceeds_it_in_a_parser(text):
    try:
        validate_json_depth(text.encode(), 3)
        value = json.loads(text)
    except (InvalidEncoding, json.JSONDecodeError):
        return
    assert measure_depth(value) <= 3


@pytest.mark.parametrize("data", [b"[" * 65, b"[" * 4 + b'"]]]]"' + b"[" * 61, b'{"a":' * 65, b"[" * 2_000_000])
def test_too_deep_json_is_refused_before_it_is_parsed(data):
    with pytest.raises(InvalidEncoding, match="64 deep"):
        validate_json_depth(data)
