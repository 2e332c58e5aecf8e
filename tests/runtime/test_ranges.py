"""One range of bytes, as RFC 9110 §14 has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.runtime.errors import InvalidRange, RefusedRange, http_status
from deaios.runtime.ranges import decode_range

SIZE = 10_000


@pytest.mark.parametrize(
    ("header", "expected"),
    [  # the RFC's own examples, §14.1.2, for a representation of 10000 bytes
        ("bytes=0-499", range(500)),
        ("bytes=500-999", range(500, 1000)),
        ("bytes=-500", range(9500, 10_000)),
        ("bytes=9500-", range(9500, 10_000)),
        ("bytes=0-0", range(1)),
        ("bytes=9999-20000", range(9999, 10_000)),
        ("bytes=-20000", range(10_000)),
        ("Bytes = 1-2 ", range(1, 3)),
        ("bytes=0-0,-1", None),
        ("bytes= 0-999, 4500-5499, -1000", None),
        ("rows=0-1", None),
        ("", None),
    ],
)
def test_what_is_asked_for_is_given(header, expected):
    assert decode_range(header, SIZE) == expected


@pytest.mark.parametrize("header", ["bytes=10000-", "bytes=10000-10001", "bytes=-0", f"bytes={'9' * 19}-"])
def test_what_is_not_there_is_refused_with_the_size(header):
    with pytest.raises(RefusedRange, match="none of the 10000 bytes") as caught:
        decode_range(header, SIZE)
    assert (caught.value.size_bytes, http_status(caught.value)) == (SIZE, 416)
    with pytest.raises(RefusedRange):
        decode_range("bytes=0-", 0)


@pytest.mark.parametrize(
    "header", ["bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "bytes=1", "bytes=+1-2", "bytes=1--2", "bytes=1 -2",
               "bytes=٣-", f"bytes={'9' * 20}-", "bytes=0x1-2"]
)  # fmt: skip
def test_what_is_no_range_is_invalid(header):
    with pytest.raises(InvalidRange) as caught:
        decode_range(header, SIZE)
    assert http_status(caught.value) == 400


@given(st.integers(0, 40), st.integers(0, 50), st.integers(0, 50))
def test_ranges_are_slices(size, first, length):
    data = bytes(range(size))
    for header, expected in (
        (f"bytes={first}-{first + length}", data[first : first + length + 1]),
        (f"bytes={first}-", data[first:]),
        (f"bytes=-{first}", data[-first:] if first else b""),
    ):
        if expected:
            asked = decode_range(header, size)
            assert data[asked.start : asked.stop] == expected
        else:
            with pytest.raises(RefusedRange):
                decode_range(header, size)
