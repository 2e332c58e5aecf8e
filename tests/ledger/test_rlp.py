import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.ledger.rlp import InvalidRlp, decode_integer, decode_rlp, encode_integer, encode_rlp

# https://ethereum.org/en/developers/docs/data-structures-and-encoding/rlp/#examples
VECTORS = [
    (b"dog", "83646f67"),
    ([b"cat", b"dog"], "c88363617483646f67"),
    (b"", "80"),
    ([], "c0"),
    (b"\x00", "00"),
    (b"\x0f", "0f"),
    (b"\x04\x00", "820400"),
    ([[], [[]], [[], [[]]]], "c7c0c1c0c3c0c1c0"),
    (
        b"Lorem ipsum dolor sit amet, consectetur adipisicing elit",
        "b838" + b"Lorem ipsum dolor sit amet, consectetur adipisicing elit".hex(),
    ),
]

values = st.recursive(st.binary(max_size=80), lambda inner: st.lists(inner, max_size=4), max_leaves=12)


@pytest.mark.parametrize(("value", "encoded"), VECTORS)
def test_published_vectors(value, encoded):
    assert encode_rlp(value).hex() == encoded
    assert decode_rlp(bytes.fromhex(encoded)) == value


@pytest.mark.parametrize(
    ("encoded", "rule"),
    [
        ("", "value expected at byte 0"),
        ("8100", "its own encoding"),
        ("817f", "its own encoding"),
        ("b800", "not the shortest"),
        ("b83700", "not the shortest"),
        ("b90000", "not the shortest"),
        ("b8", "truncated"),
        ("bfffffffffffffffff", "needs 18446744073709551615 bytes"),
        ("83646f", "needs 3 bytes, 2 are left"),
        ("c183646f67", "needs 3 bytes, 0 are left"),
        ("8080", "1 bytes follow"),
        ("c0c0", "1 bytes follow"),
        ("c5c4c3c2c1c0", "nested deeper than 4"),
    ],
)
def test_hostile_bytes_are_refused(encoded, rule):
    data = bytes.fromhex(encoded)
    with pytest.raises(InvalidRlp, match=rule):
        decode_rlp(data)


@given(values)
def test_every_value_has_one_spelling(value):
    encoded = encode_rlp(value)
    try:
        assert decode_rlp(encoded) == value
    except InvalidRlp as error:
        assert "nested deeper" in str(error)  # noqa: PT017


@given(st.binary(max_size=64))
def test_any_bytes_decode_to_what_re_encodes_to_them_or_are_refused(data):
    try:
        value = decode_rlp(data)
    except InvalidRlp:
        return
    assert encode_rlp(value) == data


@given(st.integers(min_value=0, max_value=(1 << 256) - 1))
def test_integers(value):
    assert decode_integer(encode_integer(value), 256) == value


@pytest.mark.parametrize(("data", "bits"), [(b"\0", 8), (b"\0\1", 64), (b"\1\0", 8), (bytes([1] * 33), 256), ([], 8)])
def test_integers_out_of_range_or_padded_are_refused(data, bits):
    with pytest.raises(InvalidRlp):
        decode_integer(data, bits)
