"""HPKE as EHBP uses it, over pyhpke and cryptography; importing this loads both."""

from typing import Protocol, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey, PyHPKEError

from deaios.market.sealing.framing import InvalidSealing

_SUITE = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)


class Context(Protocol):
    """One HPKE context; each side uses its half."""

    def seal(self, pt: bytes, aad: bytes = b"") -> bytes:
        """The next chunk, sealed."""

    def open(self, ct: bytes, aad: bytes = b"") -> bytes:
        """The next chunk, opened."""

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret that both sides share."""


def open_sender(public_key: bytes, info: bytes) -> tuple[bytes, Context]:
    """Encapsulated key and context of a body sealed to an X25519 key.

    Raises:
        InvalidSealing: not such a key.
    """
    try:
        key = KEMKey.from_pyca_cryptography_key(X25519PublicKey.from_public_bytes(public_key))
        encapsulated, context = _SUITE.create_sender_context(key, info)
    except (PyHPKEError, ValueError) as error:
        raise InvalidSealing(f"the provider's sealing key cannot be used: {error}") from error
    return encapsulated, cast("Context", context)  # pyhpke types it wider


def open_recipient(secret_key: bytes, encapsulated_key: bytes, info: bytes) -> Context:
    """The context of a body that was sealed to a key.

    Raises:
        InvalidSealing: no such body.
    """
    try:
        key = KEMKey.from_pyca_cryptography_key(X25519PrivateKey.from_private_bytes(secret_key))
        context = _SUITE.create_recipient_context(encapsulated_key, key, info)
    except (PyHPKEError, ValueError) as error:
        raise InvalidSealing(f"the encapsulated key cannot be used: {error}") from error
    return cast("Context", context)  # likewise


def open_body_chunk(context: Context, chunk: bytes) -> bytes:
    """The next chunk of a request.

    Raises:
        InvalidSealing: not sealed in this context, or not the next.
    """
    try:
        return context.open(chunk)
    except PyHPKEError as error:
        raise InvalidSealing("the body is not sealed to this key") from error


def seal_chunk(key: bytes, nonce: bytes, plain: bytes) -> bytes:
    """One chunk of an answer."""
    return AESGCM(key).encrypt(nonce, plain, b"")


def open_chunk(key: bytes, nonce: bytes, chunk: bytes) -> bytes:
    """One chunk of an answer.

    Raises:
        InvalidSealing: changed, out of order, or another answer's.
    """
    try:
        return AESGCM(key).decrypt(nonce, chunk, b"")
    except InvalidTag as error:
        raise InvalidSealing("a chunk of the answer is not the provider's, or out of order") from error


def derive_public(secret_key: bytes) -> bytes:
    """The public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(secret_key).public_key().public_bytes_raw()
