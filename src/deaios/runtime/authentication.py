"""Signed requests between roles: who asks is a key, not an address or a session.

Headers `X-DeAIOS-Time` (ms), `X-DeAIOS-Request-Nonce` (16 bytes) and `X-DeAIOS-Signature` sign
tagged_sha256("deaios/request/1", network id, nonce, uint64 time, sha256(method), sha256(path and query), sha256(body)).
A request is accepted once, within `WINDOW_MS` of the receiver's clock.
"""

from collections import OrderedDict
from collections.abc import Mapping

from deaios.primitives.encoding import decode_hex, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import sha256, tagged_sha256
from deaios.primitives.keys import SIGNATURE_SIZE, Address, InvalidSignature, PrivateKey, recover_address
from deaios.runtime.errors import RefusedStale

TIME_HEADER = "X-DeAIOS-Time"
NONCE_HEADER = "X-DeAIOS-Request-Nonce"
SIGNATURE_HEADER = "X-DeAIOS-Signature"
NONCE_SIZE = 16
WINDOW_MS = 60_000
NONCES_MAX = 65_536
"""Nonces remembered; when full, the oldest are still inside the window only under a flood, which is refused as busy."""


def _digest(network_id: bytes, method: str, path: str, body: bytes, time_ms: int, nonce: bytes) -> bytes:
    return tagged_sha256(
        "deaios/request/1",
        network_id,
        nonce,
        time_ms.to_bytes(8),
        sha256(method.upper().encode()),
        sha256(path.encode()),
        sha256(body),
    )


def sign_request(
    key: PrivateKey, network_id: bytes, method: str, path: str, body: bytes, now_ms: int, nonce: bytes
) -> dict[str, str]:
    """Headers that sign one request.

    Args:
        key: the caller's key.
        network_id: genesis hash, so that nothing replays on another network.
        method: HTTP method.
        path: path with query, as sent.
        body: exact body bytes.
        now_ms: the caller's wall time.
        nonce: 16 random bytes.
    """
    if len(nonce) != NONCE_SIZE:
        raise Invalid(f"request nonce has {len(nonce)} bytes, {NONCE_SIZE} expected")
    return {
        TIME_HEADER: str(now_ms),
        NONCE_HEADER: encode_hex(nonce),
        SIGNATURE_HEADER: encode_hex(key.sign_digest(_digest(network_id, method, path, body, now_ms, nonce))),
    }


class NonceWindow:
    """Remembers the nonces of the last window, so that a captured request cannot be sent again."""

    def __init__(self, nonces_max: int = NONCES_MAX) -> None:
        self._seen: OrderedDict[tuple[Address, bytes], int] = OrderedDict()
        self._max = nonces_max

    def admit(self, signer: Address, nonce: bytes, time_ms: int, now_ms: int) -> None:
        """Record a nonce.

        Raises:
            RefusedStale: seen before, or too many requests to remember.
        """
        while self._seen:
            oldest = next(iter(self._seen))
            if self._seen[oldest] + 2 * WINDOW_MS >= now_ms:
                break
            del self._seen[oldest]
        if (signer, nonce) in self._seen:
            raise RefusedStale("this signed request was used before; sign a new one with a fresh nonce")
        if len(self._seen) >= self._max:
            raise RefusedStale(f"more than {self._max} signed requests within {2 * WINDOW_MS // 1000} s")
        self._seen[signer, nonce] = time_ms


def verify_request(  # one argument per thing that is signed
    headers: Mapping[str, str], network_id: bytes, method: str, path: str, body: bytes, now_ms: int, window: NonceWindow
) -> Address:
    """Who signed a request.

    Raises:
        InvalidSignature: headers missing or malformed.
        RefusedStale: outside the time window, or replayed.
    """
    try:
        time_ms = int(headers[TIME_HEADER])
        nonce = decode_hex(headers[NONCE_HEADER], NONCE_SIZE)
        signature = decode_hex(headers[SIGNATURE_HEADER], SIGNATURE_SIZE)
    except (KeyError, ValueError, Invalid) as error:
        raise InvalidSignature(f"signed request needs {TIME_HEADER}, {NONCE_HEADER}, {SIGNATURE_HEADER}") from error
    if not 0 <= time_ms < 1 << 63 or abs(now_ms - time_ms) > WINDOW_MS:
        raise RefusedStale(f"request signed at {time_ms} ms, receiver's clock says {now_ms} ms; allowed ±{WINDOW_MS}")
    signer = recover_address(_digest(network_id, method, path, body, time_ms, nonce), signature)
    window.admit(signer, nonce, time_ms, now_ms)
    return signer
