"""One private key as Web3 Secret Storage, version 3: what wallets and geth read and write.

https://ethereum.org/en/developers/docs/data-structures-and-encoding/web3-secret-storage: a key derived from the
password (scrypt, or PBKDF2 in files of others) encrypts the secret by AES-128 in counter mode and seals it by
keccak-256. The primitives are libraries'; the usual library for the format loads a pairing curve for another one,
which costs every process a second. Does no I/O.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import cast
from uuid import UUID

from Crypto.Cipher import AES

from deaios.primitives.encoding import validate_json_depth
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import PrivateKey

VERSION = 3
SECRET_BYTES = 32
SALT_BYTES = IV_BYTES = UUID_BYTES = 16
KEYFILE_BYTES_MAX = 4096
SCRYPT_N = 8192
"""Work factor of what is written here; the password of a folder has 256 bits of its own."""
SCRYPT_R, SCRYPT_P = 8, 1
SCRYPT_MEMORY_MAX = 512 << 20
"""Twice what geth's strongest setting takes (N = 2^18, r = 8)."""
PBKDF2_ROUNDS_MAX = 1 << 22
_DERIVED_BYTES = 32


class InvalidKeyfile(Invalid):
    """Bytes that are not a keystore of version 3, or a password that does not open it."""


def encode_keyfile(key: PrivateKey, password: bytes, randomness: bytes) -> bytes:
    """A key, encrypted.

    Args:
        key: the key.
        password: opens it.
        randomness: 48 fresh random bytes for salt, counter and id.
    """
    assert len(randomness) == SALT_BYTES + IV_BYTES + UUID_BYTES, "salt, counter and id have 16 bytes each"
    salt, counter, name = randomness[:16], randomness[16:32], randomness[32:]
    derived = _derive_scrypt(password, salt, SCRYPT_N, SCRYPT_R, SCRYPT_P)
    cipher_text = _encrypt(derived, counter, key.secret)
    document = {
        "address": key.address.hex(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": counter.hex()},
            "ciphertext": cipher_text.hex(),
            "kdf": "scrypt",
            "kdfparams": {
                "dklen": _DERIVED_BYTES,
                "n": SCRYPT_N,
                "p": SCRYPT_P,
                "r": SCRYPT_R,
                "salt": salt.hex(),
            },
            "mac": keccak256(derived[16:] + cipher_text).hex(),
        },
        "id": str(UUID(bytes=name, version=4)),
        "version": VERSION,
    }
    return json.dumps(document).encode()


def decode_keyfile(data: bytes, password: bytes) -> PrivateKey:
    """Open a key.

    Raises:
        InvalidKeyfile: another format, parameters that would take too much, or a wrong password.
        Invalid: JSON that is too deep, or a secret that is no key.
    """
    if len(data) > KEYFILE_BYTES_MAX:
        raise InvalidKeyfile(f"a keystore has at most {KEYFILE_BYTES_MAX} bytes")
    validate_json_depth(data)
    try:
        document = json.loads(data)
    except ValueError as error:
        raise InvalidKeyfile(f"a keystore is JSON: {error}") from error
    document = _read_object(document, "keystore")
    if document.get("version") != VERSION:
        raise InvalidKeyfile(f"keystore has version {document.get('version')!r}, {VERSION} expected")
    crypto = _read_object(document.get("crypto"), "crypto")
    if crypto.get("cipher") != "aes-128-ctr":
        raise InvalidKeyfile(f"cipher is {crypto.get('cipher')!r}, aes-128-ctr expected")
    counter = _read_hex(_read_object(crypto.get("cipherparams"), "cipherparams"), "iv", IV_BYTES)
    cipher_text = _read_hex(crypto, "ciphertext", SECRET_BYTES)
    derived = _derive(crypto, password)
    if not hmac.compare_digest(keccak256(derived[16:] + cipher_text), _read_hex(crypto, "mac", 32)):
        raise InvalidKeyfile("the password does not open this keystore")
    return PrivateKey(_encrypt(derived, counter, cipher_text))


def _derive(crypto: Mapping[str, object], password: bytes) -> bytes:
    parameters = _read_object(crypto.get("kdfparams"), "kdfparams")
    salt = _read_hex(parameters, "salt", None)
    if _read_int(parameters, "dklen", 1 << 16) != _DERIVED_BYTES:
        raise InvalidKeyfile(f"dklen is {parameters['dklen']}, {_DERIVED_BYTES} expected")
    if crypto.get("kdf") == "scrypt":
        n, r, p = (_read_int(parameters, name, 1 << 30) for name in ("n", "r", "p"))
        return _derive_scrypt(password, salt, n, r, p)
    if crypto.get("kdf") == "pbkdf2" and parameters.get("prf") == "hmac-sha256":
        rounds = _read_int(parameters, "c", PBKDF2_ROUNDS_MAX)
        return hashlib.pbkdf2_hmac("sha256", password, salt, rounds, _DERIVED_BYTES)
    raise InvalidKeyfile(f"key derivation is {crypto.get('kdf')!r}, scrypt or pbkdf2 with hmac-sha256 expected")


def _derive_scrypt(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    if 128 * n * r * max(1, p) > SCRYPT_MEMORY_MAX:
        raise InvalidKeyfile(f"scrypt with n = {n}, r = {r}, p = {p} takes more than {SCRYPT_MEMORY_MAX} bytes")
    try:
        return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=SCRYPT_MEMORY_MAX + (1 << 20), dklen=32)
    except ValueError as error:
        raise InvalidKeyfile(f"scrypt with n = {n}, r = {r}, p = {p}: {error}") from error


def _encrypt(derived: bytes, counter: bytes, data: bytes) -> bytes:
    """AES-128-CTR, which is its own inverse."""
    cipher = AES.new(derived[:16], AES.MODE_CTR, nonce=b"", initial_value=counter)
    return bytes(cipher.encrypt(data))


def _read_object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise InvalidKeyfile(f"{where} is not a JSON object")
    return cast("Mapping[str, object]", value)  # JSON objects have text keys


def _read_hex(holder: Mapping[str, object], name: str, size_bytes: int | None) -> bytes:
    value = holder.get(name)
    try:
        data = bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        data = None
    if data is None or (size_bytes is not None and len(data) != size_bytes):
        raise InvalidKeyfile(f"{name} is not {size_bytes if size_bytes is not None else 'some'} bytes of hex")
    return data


def _read_int(holder: Mapping[str, object], name: str, limit: int) -> int:
    value = holder.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
        raise InvalidKeyfile(f"{name} is {value!r}, 1 to {limit} expected")
    return value
