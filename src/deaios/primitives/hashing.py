"""The three hash functions and where each is used.

SHA-256 for whatever a contract may open; BLAKE3 for content ids; keccak-256 only where the EVM demands it.
"""

import hashlib

import blake3

try:
    import sha3 as _sha3

    def keccak256(data: bytes) -> bytes:
        """Keccak-256 as Ethereum uses it (not NIST SHA3-256)."""
        digest: bytes = _sha3.keccak_256(data).digest()
        return digest

except ImportError:  # no safe-pysha3 wheel on this platform
    from Crypto.Hash import keccak as _keccak

    def keccak256(data: bytes) -> bytes:
        """Keccak-256 as Ethereum uses it (not NIST SHA3-256)."""
        return bytes(_keccak.new(digest_bits=256, data=data).digest())


HASH_BYTES = 32
"""Of every hash here."""

ZERO32 = bytes(32)


def sha256(data: bytes) -> bytes:
    """SHA-256 digest, 32 bytes."""
    return hashlib.sha256(data).digest()


def blake3_256(data: bytes) -> bytes:
    """BLAKE3 digest, 32 bytes."""
    return blake3.blake3(data).digest()


def tagged_sha256(tag: str, *parts: bytes) -> bytes:
    """SHA-256 over a fixed-length tag digest and the parts; callers keep part lengths fixed or self-delimiting.

    Args:
        tag: versioned domain such as `deaios/seed/1`.
        parts: bytes, each of a length fixed by the tag, or one variable part last.
    """
    return sha256(sha256(tag.encode()) + b"".join(parts))
