import pytest

from deaios.primitives.keys import InvalidSignature, PrivateKey
from deaios.runtime.authentication import SIGNATURE_HEADER, WINDOW_MS, NonceWindow, sign_request, verify_request
from deaios.runtime.errors import RefusedStale

KEY = PrivateKey(b"\x01" * 32)
NETWORK = b"n" * 32
NOW = 1_700_000_000_000


def signed(now_ms: int = NOW, nonce: bytes = b"0" * 16) -> dict[str, str]:
    return sign_request(KEY, NETWORK, "PUT", "/rows/1?x=2", b"body", now_ms, nonce)


def test_a_signed_request_names_its_signer_once() -> None:
    window = NonceWindow()
    headers = signed()
    assert verify_request(headers, NETWORK, "PUT", "/rows/1?x=2", b"body", NOW, window) == KEY.address
    with pytest.raises(RefusedStale, match="used before"):
        verify_request(headers, NETWORK, "PUT", "/rows/1?x=2", b"body", NOW, window)


@pytest.mark.parametrize(
    ("network", "method", "path", "body"),
    [
        (b"m" * 32, "PUT", "/rows/1?x=2", b"body"),
        (NETWORK, "GET", "/rows/1?x=2", b"body"),
        (NETWORK, "PUT", "/rows/1?x=3", b"body"),
        (NETWORK, "PUT", "/rows/1?x=2", b"Body"),
    ],
)
def test_everything_is_signed(network: bytes, method: str, path: str, body: bytes) -> None:
    assert verify_request(signed(), network, method, path, body, NOW, NonceWindow()) != KEY.address


def test_the_time_window_has_two_sides() -> None:
    for shift in (-WINDOW_MS - 1, WINDOW_MS + 1):
        with pytest.raises(RefusedStale, match="receiver's clock"):
            verify_request(signed(NOW + shift), NETWORK, "PUT", "/rows/1?x=2", b"body", NOW, NonceWindow())


def test_missing_or_malformed_headers_are_signature_faults() -> None:
    for headers in ({}, {**signed(), SIGNATURE_HEADER: "0x12"}, {**signed(), "X-DeAIOS-Time": "soon"}):
        with pytest.raises(InvalidSignature):
            verify_request(headers, NETWORK, "PUT", "/rows/1?x=2", b"body", NOW, NonceWindow())


def test_memory_of_nonces_is_bounded_and_forgets() -> None:
    window = NonceWindow(nonces_max=2)
    for index in range(2):
        window.admit(KEY.address, bytes([index]) * 16, NOW, NOW)
    with pytest.raises(RefusedStale, match="more than 2"):
        window.admit(KEY.address, b"2" * 16, NOW, NOW)
    later = NOW + 3 * WINDOW_MS
    window.admit(KEY.address, b"2" * 16, later, later)
