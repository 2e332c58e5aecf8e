"""Encrypted V3 keystores as every Ethereum wallet reads them: scrypt or PBKDF2, AES-128-CTR, a keccak-256 check.

Pure: salt, counter and id are arguments. Written here, because the library for it also loads BLS pairings for
validators' keys, which took a quarter of every role's start.

Source: the Web3 Secret Storage Definition, https://ethereum.org/developers/docs/data-structures-and-encoding/web3-secret-storage
"""

import hashlib
import hmac
import uuid
from typing import Annotated

import msgspec
from Crypto.Cipher import AES

from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256

VERSION = 3
CIPHER = "aes-128-ctr"
KEY_BYTES = 32
SECRET_BYTES = 32
SALT_BYTES = 16
SCRYPT_R = 8
MEMORY_BYTES_MAX = 512 << 20
"""Of the strongest scrypt that wallets write (n = 2^18, r = 8), twice over; a file cannot ask for more."""
_Factor = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
"""Rounds and costs: a wallet's 2^18, 64 times over."""


class InvalidKeyfile(Invalid):
    """Not a V3 keystore, or another password."""


class _Derivation(msgspec.Struct, omit_defaults=True):
    dklen: int
    salt: str
    n: _Factor = 0
    r: _Factor = 0
    p: _Factor = 0
    c: _Factor = 0
    prf: str = ""


class _CipherParams(msgspec.Struct):
    iv: str


class _Crypto(msgspec.Struct):
    cipher: str
    cipherparams: _CipherParams
    ciphertext: str
    kdf: str
    kdfparams: _Derivation
    mac: str


class _Keyfile(msgspec.Struct):
    address: str
    crypto: _Crypto
    id: str
    version: int


def encode_keyfile(secret: bytes, address: bytes, password: bytes, scrypt_n: int, salt: bytes, counter: bytes) -> bytes:
    """The JSON of a keystore.

    Args:
        secret: the private key, 32 bytes.
        address: its address, 20 bytes.
        password: what opens it again.
        scrypt_n: work factor, a power of two.
        salt: 16 fresh bytes.
        counter: 16 fresh bytes, where AES starts to count; they also make the file's id.
    """
    derivation = _Derivation(dklen=KEY_BYTES, salt=salt.hex(), n=scrypt_n, r=SCRYPT_R, p=1)
    key = _derive(password, "scrypt", derivation)
    hidden = _crypt(key, counter, secret)
    crypto = _Crypto(
        CIPHER, _CipherParams(counter.hex()), hidden.hex(), "scrypt", derivation, keccak256(key[16:] + hidden).hex()
    )
    return msgspec.json.encode(_Keyfile(address.hex(), crypto, str(uuid.UUID(bytes=counter, version=4)), VERSION))


def decode_keyfile(data: bytes, password: bytes) -> bytes:
    """The private key in a keystore.

    Raises:
        InvalidKeyfile: damaged, of another kind, or the password does not fit.
    """
    try:
        file = msgspec.json.decode(data, type=_Keyfile)
        crypto = file.crypto
        if (file.version, crypto.cipher) != (VERSION, CIPHER):
            raise InvalidKeyfile(f"version {file.version} with {crypto.cipher}; {VERSION} with {CIPHER} is read")
        key = _derive(password, crypto.kdf, crypto.kdfparams)
        hidden, counter = bytes.fromhex(crypto.ciphertext), bytes.fromhex(crypto.cipherparams.iv)
        if not hmac.compare_digest(keccak256(key[16:] + hidden), bytes.fromhex(crypto.mac)):
            raise InvalidKeyfile("the password does not fit, or the file was changed")
        if len(hidden) != SECRET_BYTES or len(counter) != AES.block_size:
            raise InvalidKeyfile(f"key of {len(hidden)} bytes under a counter of {len(counter)}; 32 and 16 expected")
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidKeyfile(f"not a V3 keystore: {error}") from error
    return _crypt(key, counter, hidden)


def _derive(password: bytes, kdf: str, given: _Derivation) -> bytes:
    """Raises ValueError where hashlib refuses the numbers."""
    salt = bytes.fromhex(given.salt)
    if given.dklen != KEY_BYTES:
        raise InvalidKeyfile(f"derived key of {given.dklen} bytes; {KEY_BYTES} expected")
    if kdf == "scrypt":
        return hashlib.scrypt(
            password, salt=salt, n=given.n, r=given.r, p=given.p, dklen=KEY_BYTES, maxmem=MEMORY_BYTES_MAX
        )
    if kdf == "pbkdf2" and given.prf == "hmac-sha256":
        return hashlib.pbkdf2_hmac("sha256", password, salt, given.c, KEY_BYTES)
    raise InvalidKeyfile(f"key derivation {kdf} {given.prf}: scrypt and pbkdf2 with hmac-sha256 are read")


def _crypt(key: bytes, counter: bytes, data: bytes) -> bytes:
    """AES-128 in counter mode; the same for both directions."""
    cipher = AES.new(key[:16], AES.MODE_CTR, nonce=b"", initial_value=counter)
    return cipher.encrypt(data)
