"""Keystores against the library that Ethereum's Python tools use, in both directions, and damaged ones."""

import json

import pytest
from eth_keyfile.keyfile import create_keyfile_json, decode_keyfile_json

from deaios.node.keyfile import InvalidKeyfile, decode_keyfile, encode_keyfile
from deaios.primitives.keys import PrivateKey

KEY = PrivateKey(bytes(range(1, 33)))
PASSWORD = b"correct horse"
SALT, COUNTER = bytes(range(16)), b"\xff" * 15 + b"\xfe"
WORK = 1024


def encode():
    return encode_keyfile(KEY.secret, KEY.address, PASSWORD, WORK, SALT, COUNTER)


def test_other_wallets_open_our_files():
    content = json.loads(encode())
    assert decode_keyfile_json(content, PASSWORD) == KEY.secret
    assert content["address"] == KEY.address.hex()
    assert content["crypto"]["kdfparams"] == {"dklen": 32, "salt": SALT.hex(), "n": WORK, "r": 8, "p": 1}


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_we_open_other_wallets_files(kdf):
    theirs = create_keyfile_json(KEY.secret, PASSWORD, kdf=kdf, iterations=WORK)
    assert decode_keyfile(json.dumps(theirs).encode(), PASSWORD) == KEY.secret


def test_another_password_opens_nothing():
    with pytest.raises(InvalidKeyfile, match="password"):
        decode_keyfile(encode(), b"wrong")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("version",), 4),
        (("crypto", "cipher"), "aes-256-ctr"),
        (("crypto", "kdf"), "argon2"),
        (("crypto", "kdfparams", "dklen"), 16),
        (("crypto", "kdfparams", "n"), 1 << 40),
        (("crypto", "kdfparams", "n"), 3),
        (("crypto", "kdfparams", "salt"), "00"),
        (("crypto", "ciphertext"), "00" * 32),
        (("crypto", "ciphertext"), "zz"),
        (("crypto", "mac"), "00" * 32),
        (("crypto",), None),
    ],
)
def test_what_is_damaged_or_unknown_is_refused(place, value):
    content = json.loads(encode())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(InvalidKeyfile):
        decode_keyfile(json.dumps(content).encode(), PASSWORD)


def test_a_counter_of_another_size_is_refused():
    content = json.loads(encode())
    content["crypto"]["cipherparams"]["iv"] = "00" * 8
    with pytest.raises(InvalidKeyfile, match="counter of 8"):
        decode_keyfile(json.dumps(content).encode(), PASSWORD)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"version":3}', b"\xff"])
def test_what_is_no_keystore_is_refused(data):
    with pytest.raises(InvalidKeyfile):
        decode_keyfile(data, PASSWORD)
