"""secp256k1 keys and Ethereum addresses.

Signatures are 65 bytes `r || s || v` with v in {27, 28} and low s (EIP-2); anything else is refused, so a signature
cannot be restated as another valid one.
"""

from typing import NewType

import coincurve
from coincurve._libsecp256k1 import ffi, lib
from coincurve.context import GLOBAL_CONTEXT

from deaios.primitives.encoding import InvalidEncoding, decode_hex, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import HASH_BYTES, keccak256

Address = NewType("Address", bytes)
"""20 bytes."""

ADDRESS_SIZE = 20
SIGNATURE_SIZE = 65
ZERO_ADDRESS = Address(bytes(ADDRESS_SIZE))
_POINT_BYTES = 65
"""An uncompressed point (SEC 1)."""
_CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_LOW_S_MAX = _CURVE_ORDER // 2
_SIGNATURE_TYPE, _KEY_TYPE, _POINT_TYPE, _SIZE_TYPE = map(
    ffi.typeof, ("secp256k1_ecdsa_recoverable_signature *", "secp256k1_pubkey *", "unsigned char[]", "size_t *")
)


class InvalidSignature(Invalid):
    """Bytes that are not a canonical signature, or recover to no key."""


def parse_address(text: str) -> Address:
    """Read an address in canonical lower-case hex."""
    return Address(decode_hex(text, ADDRESS_SIZE))


def read_address(text: str) -> Address:
    """Read an address a person typed: any case, checksum verified when the case is mixed (EIP-55)."""
    lowered = text.lower()
    address = parse_address(lowered)
    if text not in (lowered, lowered[:2] + text[2:].upper()) and text != checksum_address(address):
        raise InvalidEncoding(f"address checksum is wrong: {text}, expected {checksum_address(address)}")
    return address


def checksum_address(address: Address) -> str:
    """An address for people, in EIP-55 mixed case."""
    text = address.hex()
    digest = keccak256(text.encode()).hex()
    return "0x" + "".join(c.upper() if int(d, 16) >= 8 else c for c, d in zip(text, digest, strict=False))


class PrivateKey:
    """A secp256k1 private key. Its text form never shows the secret."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32 or not 0 < int.from_bytes(secret) < _CURVE_ORDER:
            raise Invalid("private key is not a 32-byte number below the curve order")
        self._key = coincurve.PrivateKey(secret)
        self.address = _address_of(self._key.public_key)

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for keystores only."""
        return bytes(self._key.secret)

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign a 32-byte digest (RFC 6979, low s).

        Returns:
            65 bytes `r || s || v`, v in {27, 28}.
        """
        signature = self._key.sign_recoverable(digest, hasher=None)
        return bytes(signature[:64]) + bytes([27 + signature[64]])

    def __repr__(self) -> str:
        return f"PrivateKey({encode_hex(self.address)})"


def recover_address(digest: bytes, signature: bytes) -> Address:
    """The address whose key signed a 32-byte digest.

    Raises:
        InvalidSignature: wrong size, v not 27 or 28, high s, or no such point.
    """
    if len(signature) != SIGNATURE_SIZE:
        raise InvalidSignature(f"signature has {len(signature)} bytes, {SIGNATURE_SIZE} expected")
    if signature[64] not in (27, 28):
        raise InvalidSignature(f"signature v is {signature[64]}, 27 or 28 expected")
    if int.from_bytes(signature[32:64]) > _LOW_S_MAX:
        raise InvalidSignature("signature s is in the upper half of the curve order (EIP-2)")
    assert len(digest) == HASH_BYTES, "the library reads so many bytes whatever is there"
    # The C functions themselves: coincurve's objects around them cost a fifth of the recovery. The interpreter lock is
    # free while they run, and nothing is kept between calls, so that threads recover at the same time.
    parsed = ffi.new(_SIGNATURE_TYPE)
    key = ffi.new(_KEY_TYPE)
    context = GLOBAL_CONTEXT.ctx
    if not lib.secp256k1_ecdsa_recoverable_signature_parse_compact(
        context, parsed, signature, signature[64] - 27
    ) or not lib.secp256k1_ecdsa_recover(context, key, parsed, digest):
        raise InvalidSignature("signature recovers to no key")
    point = ffi.new(_POINT_TYPE, _POINT_BYTES)
    lib.secp256k1_ec_pubkey_serialize(
        context, point, ffi.new(_SIZE_TYPE, _POINT_BYTES), key, lib.SECP256K1_EC_UNCOMPRESSED
    )
    return Address(keccak256(ffi.buffer(point)[1:])[-ADDRESS_SIZE:])


def _address_of(key: coincurve.PublicKey) -> Address:
    return Address(keccak256(key.format(compressed=False)[1:])[-ADDRESS_SIZE:])
