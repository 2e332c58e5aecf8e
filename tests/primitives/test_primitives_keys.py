"""Keys, addresses and signatures against published vectors; one signature per message and key."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.primitives.encoding import InvalidEncoding
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import blake3_256, keccak256, sha256, tagged_sha256
from deaios.primitives.keys import (
    ZERO_ADDRESS,
    InvalidSignature,
    PrivateKey,
    checksum_address,
    parse_address,
    read_address,
    recover_address,
)

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
# EIP-55's own examples.
CHECKSUMMED = [
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]


def test_hashes_equal_published_values():
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert blake3_256(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert tagged_sha256("deaios/seed/1", b"ab", b"c") == sha256(sha256(b"deaios/seed/1") + b"abc")


def test_the_first_development_account_has_its_known_address():
    key = PrivateKey(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
    assert checksum_address(key.address) == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    assert repr(key) == "PrivateKey(0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266)"


@pytest.mark.parametrize("text", CHECKSUMMED)
def test_checksums(text):
    address = read_address(text)
    assert checksum_address(address) == text
    assert read_address(text.lower()) == read_address("0x" + text[2:].upper()) == parse_address(text.lower())
    swapped = text[:5] + text[5:].swapcase()
    with pytest.raises(InvalidEncoding, match="checksum"):
        read_address(swapped)
    with pytest.raises(InvalidEncoding):
        parse_address(text)


@pytest.mark.parametrize("secret", [b"", bytes(32), ORDER.to_bytes(32), b"\xff" * 32, bytes(31) + b"\1" + b"\0"])
def test_numbers_that_are_no_keys_are_refused(secret):
    with pytest.raises(Invalid):
        PrivateKey(secret)


@settings(max_examples=50)
@given(st.integers(1, ORDER - 1), st.binary(min_size=32, max_size=32))
def test_signatures_recover_and_cannot_be_restated(number, digest):
    key = PrivateKey(number.to_bytes(32))
    signature = key.sign_digest(digest)
    assert signature == key.sign_digest(digest)
    assert recover_address(digest, signature) == key.address != ZERO_ADDRESS
    high_s = ORDER - int.from_bytes(signature[32:64])
    restated = signature[:32] + high_s.to_bytes(32) + bytes([55 - signature[64]])
    with pytest.raises(InvalidSignature, match="upper half"):
        recover_address(digest, restated)


def test_malformed_signatures_are_refused():
    signature = PrivateKey(b"\1" * 32).sign_digest(bytes(32))
    for bad in (b"", signature[:64], signature + b"\0", signature[:64] + b"\0", signature[:64] + b"\x1d"):
        with pytest.raises(InvalidSignature):
            recover_address(bytes(32), bad)
    for r, s in ((0, 1), (1, 0), (ORDER, 1), (5, 1), (0, 0)):
        with pytest.raises(InvalidSignature):
            recover_address(bytes(32), r.to_bytes(32) + s.to_bytes(32) + b"\x1b")


@given(st.binary(min_size=65, max_size=65))
def test_hostile_signatures_give_typed_errors(signature):
    try:
        address = recover_address(bytes(32), signature)
    except InvalidSignature:
        return
    assert len(address) == 20
