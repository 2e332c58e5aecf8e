"""The network descriptor: one form, signed, hostile bytes refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.ledger.descriptor import (
    DESCRIPTOR_BYTES_MAX,
    InvalidDescriptor,
    NetworkDescriptor,
    Token,
    compute_descriptor_digest,
    decode_descriptor,
    encode_descriptor,
    encode_fields,
    sign_descriptor,
    verify_descriptor,
)
from deaios.ledger.settings import DEFAULT, LOCAL
from deaios.ledger.suite import InvalidSuite, SuiteAddresses
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.keys import Address, PrivateKey

KEY = PrivateKey(b"\x11" * 32)
OTHER = PrivateKey(b"\x12" * 32)
ADDRESSES = SuiteAddresses(*(Address(bytes([i + 1]) * 20) for i in range(16)))
DESCRIPTOR = NetworkDescriptor(
    network_id=b"\x99" * 32,
    chain_id=20261123,
    rpc_urls=("http://127.0.0.1:8545",),
    operator=KEY.address,
    contracts=ADDRESSES,
    token=Token(ADDRESSES.credit, "DeAIOS Credit", "CREDIT", "1", 6),
    windows=LOCAL,
    default_model_record_id=b"\x77" * 32,
    faucet_url="http://127.0.0.1:8546/faucet",
    gateways=("http://127.0.0.1:8080",),
    storage_urls=("http://127.0.0.1:9001", "http://127.0.0.1:9002"),
)
FILE = encode_descriptor(DESCRIPTOR, sign_descriptor(KEY, DESCRIPTOR))


def sign_anyway(document: dict[str, Any], key: PrivateKey = KEY) -> bytes:
    """A file whose signature fits whatever the document holds."""
    from deaios.primitives.hashing import tagged_sha256

    signature = key.sign_digest(tagged_sha256("deaios/descriptor/1", encode_canonical_json(document)))
    return encode_canonical_json({"descriptor": document, "signature": "0x" + signature.hex()}) + b"\n"


def test_frozen_digest() -> None:
    digest = compute_descriptor_digest(DESCRIPTOR)
    assert digest.hex() == "5f90c2dd0d58a75b3f05188ddfdd09c4311c0c09781806ea45f7f7a9d1e8d757"


def test_round_trip() -> None:
    assert decode_descriptor(FILE) == DESCRIPTOR
    bare = replace(DESCRIPTOR, faucet_url=None, gateways=(), storage_urls=(), windows=DEFAULT)
    assert decode_descriptor(encode_descriptor(bare, sign_descriptor(KEY, bare))) == bare


def test_a_chain_that_takes_blocks_back_is_described_and_one_that_does_not_keeps_its_bytes() -> None:
    deep = replace(DESCRIPTOR, confirmations=12, first_block=20_000_000)
    document = dict(encode_fields(deep))
    assert (document["confirmations"], document["firstBlock"]) == (12, 20_000_000)
    assert decode_descriptor(encode_descriptor(deep, sign_descriptor(KEY, deep))) == deep
    assert {"confirmations", "firstBlock"}.isdisjoint(encode_fields(DESCRIPTOR))
    spelled_out = {**encode_fields(DESCRIPTOR), "confirmations": 1}
    with pytest.raises(InvalidDescriptor, match="canonical form"):
        decode_descriptor(sign_anyway(spelled_out))
    for wrong in ({"confirmations": 0}, {"confirmations": 1025}, {"firstBlock": -1}, {"confirmations": "4"}):
        with pytest.raises(InvalidDescriptor):
            decode_descriptor(sign_anyway({**encode_fields(deep), **wrong}))


def test_helper_signs_as_the_module_does() -> None:
    assert sign_anyway(dict(encode_fields(DESCRIPTOR))) == FILE


def test_signature_is_the_operators() -> None:
    signature = sign_descriptor(KEY, DESCRIPTOR)
    assert verify_descriptor(DESCRIPTOR, signature)
    assert not verify_descriptor(replace(DESCRIPTOR, chain_id=1), signature)
    assert not verify_descriptor(replace(DESCRIPTOR, operator=OTHER.address), signature)
    assert not verify_descriptor(DESCRIPTOR, bytes(65))
    with pytest.raises(InvalidDescriptor, match="names operator"):
        sign_descriptor(OTHER, DESCRIPTOR)
    with pytest.raises(InvalidDescriptor, match="not signed by its operator"):
        decode_descriptor(sign_anyway(dict(encode_fields(DESCRIPTOR)), OTHER))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    return [path] if items is None else [leaf for key, item in items for leaf in leaves(item, (*path, key))]


def changed(value: Any) -> Any:
    if isinstance(value, int):
        return value + 1
    return value[:-1] + ("1" if value[-1] != "1" else "2")


@pytest.mark.parametrize("path", leaves(json.loads(FILE)), ids=lambda path: ".".join(map(str, path)))
def test_any_changed_leaf_breaks_the_file(path: tuple[Any, ...]) -> None:
    document = json.loads(FILE)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = changed(place[path[-1]])
    with pytest.raises(InvalidDescriptor):
        decode_descriptor(encode_canonical_json(document) + b"\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"descriptor":{},"signature":"0x"}',
        b"[" * 5000 + b"]" * 5000,
        b"9" * 5000,
        b" " * (DESCRIPTOR_BYTES_MAX + 1),
        FILE.replace(b'"chainId":', b'"chainId": '),
        FILE.replace(b'{"descriptor"', b'{"signature":"0x00","descriptor"'),
        FILE[:-10],
        FILE + b"x",
    ],
    ids=range(13),
)
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(InvalidDescriptor):
        decode_descriptor(data)


HOSTILE: list[tuple[str, Any]] = [
    ("version", 2),
    ("version", True),
    ("networkId", "0x" + "00" * 31),
    ("chainId", 0),
    ("chainId", 2**53),
    ("chainId", "1"),
    ("rpcUrls", []),
    ("rpcUrls", "http://x"),
    ("rpcUrls", ["http://x"] * 33),
    ("rpcUrls", ["file:///etc/passwd"]),
    ("rpcUrls", ["http://"]),
    ("rpcUrls", ["http://user@host"]),
    ("rpcUrls", ["http://host:99999"]),
    ("rpcUrls", ["http://[::1"]),
    ("rpcUrls", ["http://ho st"]),
    ("rpcUrls", ["http://host\n"]),
    ("rpcUrls", ["http://" + "h" * 600]),
    ("rpcUrls", [None]),
    ("operator", "0x" + "AA" * 20),
    ("contracts", {}),
    ("token", None),
    ("windows", None),
    ("faucetUrl", ""),
    ("faucetUrl", "javascript:alert(1)"),
    ("gateways", None),
    ("storageUrls", {"0": "http://x"}),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_field_with_a_valid_signature(key: str, value: Any) -> None:
    with pytest.raises(InvalidDescriptor):
        decode_descriptor(sign_anyway({**encode_fields(DESCRIPTOR), key: value}))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(FILE) - 2), st.integers(0, 255))
def test_any_changed_byte_breaks_the_file(index: int, value: int) -> None:
    data = FILE[:index] + bytes([value]) + FILE[index + 1 :]
    if data == FILE:
        return
    with pytest.raises(InvalidDescriptor):
        decode_descriptor(data)


def test_addresses_are_one_contract_each() -> None:
    with pytest.raises(InvalidSuite, match="two contracts"):
        replace(ADDRESSES, forks=ADDRESSES.credit)
    with pytest.raises(InvalidSuite, match="no address"):
        replace(ADDRESSES, forks=Address(bytes(20)))
