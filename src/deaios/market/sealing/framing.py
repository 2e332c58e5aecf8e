"""The encrypted HTTP body protocol (EHBP) as far as bytes go: chunks, and the keys of an answer. Pure.

A body is a sequence of chunks, each 4 bytes of length (big-endian) and so much ciphertext. A request's chunks are
sealed in order in one HPKE context (DHKEM X25519, HKDF-SHA256, AES-256-GCM; info "ehbp request"; no associated data),
whose encapsulated key is the header `Ehbp-Encapsulated-Key`. The answer's key and base nonce follow from the context's
exporter and 32 random bytes of the answerer, the header `Ehbp-Response-Nonce`, as in Oblivious HTTP (RFC 9458, 4.4):

    salt = encapsulated key ‖ response nonce        prk = HKDF-Extract(salt, exported secret)
    key = HKDF-Expand(prk, "key", 32)               base = HKDF-Expand(prk, "nonce", 12)

and chunk number i is sealed under base xor i. A body that somebody sends again is of no use to who sends it: the
answer's key needs the buyer's context, and the purchase in it happens once (its request digest).
Source: https://github.com/tinfoilsh/encrypted-http-body-protocol, SPEC.md
"""

import hashlib
import hmac

from deaios.primitives.errors import Invalid

ENCAPSULATED_KEY_HEADER = "Ehbp-Encapsulated-Key"
RESPONSE_NONCE_HEADER = "Ehbp-Response-Nonce"
REQUEST_INFO = b"ehbp request"
EXPORT_LABEL = b"ehbp response"
SECRET_SIZE = 32
KEY_SIZE = 32
NONCE_SIZE = 12
TAG_SIZE = 16
LENGTH_SIZE = 4
CHUNK_BYTES_MAX = 1 << 20
"""Of ciphertext: a line of an answer, or a piece of a request."""


class InvalidSealing(Invalid):
    """Bytes that are not what was sealed for their reader."""


def frame_chunk(ciphertext: bytes) -> bytes:
    """One chunk as it travels."""
    return len(ciphertext).to_bytes(LENGTH_SIZE) + ciphertext


def derive_answer_keys(exported_secret: bytes, encapsulated_key: bytes, response_nonce: bytes) -> tuple[bytes, bytes]:
    """Key (32 bytes) and base nonce (12 bytes) of an answer; every argument has 32 bytes."""
    salt = encapsulated_key + response_nonce
    extracted = hmac.digest(salt, exported_secret, hashlib.sha256)
    return _expand(extracted, b"key", KEY_SIZE), _expand(extracted, b"nonce", NONCE_SIZE)


def _expand(extracted: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand (RFC 5869) of at most one hash."""
    assert size <= hashlib.sha256().digest_size
    return hmac.digest(extracted, label + b"\x01", hashlib.sha256)[:size]


def compute_nonce(base: bytes, index: int) -> bytes:
    """Nonce of a chunk by its number."""
    return (int.from_bytes(base) ^ index).to_bytes(NONCE_SIZE)


class ChunkReader:
    """Chunks out of pieces that come in any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, piece: bytes) -> list[bytes]:
        """Whole chunks so far, in order; empty ones are left out, as the protocol says.

        Raises:
            InvalidSealing: one is longer than `CHUNK_BYTES_MAX`.
        """
        self._buffer += piece
        chunks, start = [], 0
        while len(self._buffer) - start >= LENGTH_SIZE:
            size = int.from_bytes(self._buffer[start : start + LENGTH_SIZE])
            if size > CHUNK_BYTES_MAX:
                raise InvalidSealing(f"chunk has {size} bytes, at most {CHUNK_BYTES_MAX} allowed")
            end = start + LENGTH_SIZE + size
            if end > len(self._buffer):
                break
            if size:
                chunks.append(bytes(self._buffer[start + LENGTH_SIZE : end]))
            start = end
        del self._buffer[:start]
        return chunks

    def finish(self) -> None:
        """Nothing more comes.

        Raises:
            InvalidSealing: in the middle of a chunk.
        """
        if self._buffer:
            raise InvalidSealing("the sealed body ends in the middle of a chunk")
