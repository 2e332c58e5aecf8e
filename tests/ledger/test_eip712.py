"""EIP-712 structs against frozen vectors made by eth_account, against eth_account live, and against hostile JSON."""

import copy
import json
import string
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.ledger import structs
from deaios.ledger.eip712 import (
    ARRAY_ITEMS_MAX,
    TEXT_BYTES_MAX,
    Domain,
    InvalidStruct,
    decode_json,
    encode_json,
    encode_type,
    hash_struct,
    hash_typed_data,
    recover_signer,
    sign_struct,
    type_hash,
)
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address, InvalidSignature, PrivateKey

SPEC = Path(__file__).parents[2] / "docs" / "spec"
DOCUMENT = json.loads((SPEC / "structs.json").read_text())
VECTORS: list[dict[str, Any]] = DOCUMENT["vectors"]
KEY = PrivateKey(bytes.fromhex(DOCUMENT["secret"][2:]))
STRUCTS = {
    cls.__name__: cls
    for cls in (
        structs.Params,
        structs.Ask,
        structs.Request,
        structs.Receipt,
        structs.Cancel,
        structs.Batch,
        structs.Offer,
        structs.Verdict,
        structs.RowAttestation,
        structs.Header,
        structs.KeyAssignment,
        structs.ValsetUpdate,
        structs.Checkpoint,
        structs.Message,
        structs.ChannelConfig,
        structs.Voucher,
        structs.Refund,
        structs.ReceiveWithAuthorization,
    )
}


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def domain_of(vector: dict[str, Any]) -> Domain:
    domain = vector["domain"]
    contract = Address(unhex(domain["verifyingContract"])) if "verifyingContract" in domain else None
    return Domain(domain["name"], domain["version"], domain["chainId"], contract)


def ids(vector: dict[str, Any]) -> str:
    return f"{vector['name']}-{vector['variant']}"


def plain(name: str) -> dict[str, Any]:
    return copy.deepcopy(next(v["message"] for v in VECTORS if v["name"] == name and v["variant"] == "plain"))


def test_every_struct_has_vectors() -> None:
    of_module = {
        name for name, value in vars(structs).items() if isinstance(value, type) and hasattr(value, "__post_init__")
    }
    assert of_module == set(STRUCTS)
    assert {(v["name"], v["variant"]) for v in VECTORS} == {(n, w) for n in STRUCTS for w in ("low", "plain", "high")}


def test_type_strings_of_the_document() -> None:
    text = (SPEC / "structs.md").read_text()
    block = text.split("```")[1].strip().splitlines()
    assert block == [encode_type(cls) for cls in STRUCTS.values()]


@pytest.mark.parametrize("vector", VECTORS, ids=ids)
def test_frozen_vector(vector: dict[str, Any]) -> None:
    cls, domain = STRUCTS[vector["name"]], domain_of(vector)
    struct = decode_json(cls, vector["message"])
    signature = sign_struct(KEY, domain, struct)
    found = {
        "type": encode_type(cls),
        "typeHash": type_hash(cls),
        "structHash": hash_struct(struct),
        "domainSeparator": domain.separator(),
        "digest": hash_typed_data(domain, struct),
        "signature": signature,
    }
    assert found == {k: vector[k] if k == "type" else unhex(vector[k]) for k in found}
    assert recover_signer(domain, struct, signature) == unhex(DOCUMENT["signer"])
    assert encode_json(struct) == vector["message"]


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        (structs.protocol_domain(20261123, Address(b"\xd1" * 20)), "Ask"),
        (structs.availability_domain(20261123, Address(b"\xda" * 20)), "RowAttestation"),
        (structs.header_domain(20261123), "Header"),
        (structs.networks_domain(20261123, Address(b"\x4e" * 20)), "ValsetUpdate"),
        (structs.channels_domain(20261123, Address(b"\xc4" * 20)), "Voucher"),
        (structs.token_domain("DeAIOS Credit", "1", 20261123, Address(b"\x70" * 20)), "ReceiveWithAuthorization"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_domains(domain: Domain, name: str) -> None:
    vector = next(v for v in VECTORS if v["name"] == name)
    assert domain.separator() == unhex(vector["domainSeparator"])


def typed_data_types(cls: type) -> dict[str, list[dict[str, str]]]:
    """The type string, parsed back for eth_account."""
    types = {}
    for part in encode_type(cls).split(")")[:-1]:
        name, _, body = part.partition("(")
        types[name] = [{"type": f.split(" ")[0], "name": f.split(" ")[1]} for f in body.split(",")]
    return types


WORDS = st.binary(min_size=32, max_size=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple),
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), max_size=4).map(tuple),
    st.integers(0, 2**32 - 1),
    WORDS,
    st.integers(1, 2**62),
)
def test_ask_equals_eth_account(
    stop_ids: tuple[int, ...], stop_strings: tuple[str, ...], number: int, word: bytes, chain_id: int
) -> None:
    params = structs.Params(number, number, number, number, stop_ids, stop_strings, word)
    ask = structs.Ask(Address(word[:20]), word, word, number, word, params, word, 2, 1, word)
    domain = structs.protocol_domain(chain_id, Address(word[12:]))
    message = encode_json(ask)
    data = {"name": "DeAIOS", "version": "1", "chainId": chain_id, "verifyingContract": "0x" + word[12:].hex()}
    signable = encode_typed_data(data, typed_data_types(structs.Ask), message)
    assert hash_struct(ask) == signable.body
    assert hash_typed_data(domain, ask) == keccak256(b"\x19\x01" + signable.header + signable.body)
    assert decode_json(structs.Ask, json.loads(json.dumps(message))) == ask


def test_every_field_changes_the_digest() -> None:
    for name, cls in STRUCTS.items():
        low = decode_json(cls, next(v["message"] for v in VECTORS if v["name"] == name and v["variant"] == "low"))
        high = decode_json(cls, next(v["message"] for v in VECTORS if v["name"] == name and v["variant"] == "high"))
        digests = {hash_struct(low)}
        for field in fields(cls):
            values = {f.name: getattr(low, f.name) for f in fields(cls)} | {field.name: getattr(high, field.name)}
            digests.add(hash_struct(cls(**values)))
        assert len(digests) == len(fields(cls)) + 1


def test_signature_does_not_cross_domains() -> None:
    voucher = decode_json(structs.Voucher, plain("Voucher"))
    here = structs.channels_domain(1, Address(b"\x01" * 20))
    signature = sign_struct(KEY, here, voucher)
    for other in (
        structs.channels_domain(2, Address(b"\x01" * 20)),
        structs.channels_domain(1, Address(b"\x02" * 20)),
        structs.protocol_domain(1, Address(b"\x01" * 20)),
        structs.header_domain(1),
    ):
        assert recover_signer(other, voucher, signature) != KEY.address


def test_malleable_signature_is_refused() -> None:
    vector = VECTORS[0]
    struct, domain = decode_json(STRUCTS[vector["name"]], vector["message"]), domain_of(vector)
    signature = unhex(vector["signature"])
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    flipped = (order - int.from_bytes(signature[32:64])).to_bytes(32)
    for bad in (
        signature[:32] + flipped + bytes([55 - signature[64]]),
        signature[:64] + bytes([signature[64] - 27]),
        signature[:64],
        signature + b"\0",
        bytes(65),
    ):
        with pytest.raises(InvalidSignature):
            recover_signer(domain, struct, bad)


HOSTILE: list[tuple[str, Any, str]] = [
    ("counter", 1, "is not text"),
    ("counter", "01", "canonical decimal"),
    ("counter", "+1", "canonical decimal"),
    ("counter", "1 ", "canonical decimal"),
    ("counter", "\u0661", "canonical decimal"),
    ("counter", "-1", "canonical decimal"),
    ("counter", "1e3", "canonical decimal"),
    ("counter", str(2**64), "exceeds 64 bits"),
    ("counter", "9" * 5000, "canonical decimal"),
    ("counter", None, "is not text"),
    ("counter", [], "is not text"),
    ("promptTokens", "1", "not a uint32"),
    ("promptTokens", 1.0, "not a uint32"),
    ("promptTokens", True, "not a uint32"),
    ("promptTokens", -1, "not a uint32"),
    ("promptTokens", 2**32, "not a uint32"),
    ("promptTokens", None, "not a uint32"),
    ("state", 256, "not a uint8"),
    ("requestDigest", "0X" + "00" * 32, "lower-case 0x hex"),
    ("requestDigest", "0x" + "AA" * 32, "lower-case 0x hex"),
    ("requestDigest", "00" * 32, "lower-case 0x hex"),
    ("requestDigest", "0x" + "00" * 31, "is not bytes32"),
    ("requestDigest", "0x" + "00" * 33, "is not bytes32"),
    ("requestDigest", "0x" + "0" * 63, "lower-case 0x hex"),
    ("requestDigest", 0, "is not text"),
    ("requestDigest", {"0x": 1}, "is not text"),
]


@pytest.mark.parametrize(("field", "value", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_value(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidStruct, match=message):
        decode_json(structs.Receipt, plain("Receipt") | {field: value})


@pytest.mark.parametrize("value", [None, [], "x", 1, {}, [("counter", 1)]])
def test_not_an_object(value: Any) -> None:
    with pytest.raises(InvalidStruct):
        decode_json(structs.Receipt, value)


def test_keys_are_exact() -> None:
    whole = plain("Ask")
    for name in whole:
        with pytest.raises(InvalidStruct, match=rf"missing keys \['{name}'\]"):
            decode_json(structs.Ask, {k: v for k, v in whole.items() if k != name})
    with pytest.raises(InvalidStruct, match=r"unknown keys \['prompt_count'\]"):
        decode_json(structs.Ask, whole | {"prompt_count": 1})
    with pytest.raises(InvalidStruct, match="Params"):
        decode_json(structs.Ask, whole | {"params": whole["params"] | {"seed": 1}})
    with pytest.raises(InvalidStruct, match="not a JSON object"):
        decode_json(structs.Ask, whole | {"params": None})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stopIds", [2**32]),
        ("stopIds", [True]),
        ("stopIds", "12"),
        ("stopIds", {"0": 1}),
        ("stopIds", [0] * (ARRAY_ITEMS_MAX + 1)),
        ("stopStrings", [1]),
        ("stopStrings", [None]),
        ("stopStrings", ["\ud800"]),
        ("stopStrings", ["x" * (TEXT_BYTES_MAX + 1)]),
        ("stopStrings", "stop"),
    ],
)
def test_hostile_arrays(field: str, value: Any) -> None:
    with pytest.raises(InvalidStruct):
        decode_json(structs.Params, plain("Params") | {field: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(STRUCTS)), st.data(), JSON)
def test_any_json_is_refused_or_round_trips(name: str, data: st.DataObject, value: Any) -> None:
    message = plain(name)
    message[data.draw(st.sampled_from(sorted(message)))] = value
    try:
        struct = decode_json(STRUCTS[name], message)
    except InvalidStruct:
        return
    assert encode_json(struct) == message


@pytest.mark.parametrize("value", ["text", -1, 2**64, True, None, 1.5])
def test_constructor_refuses_out_of_range(value: Any) -> None:
    with pytest.raises(InvalidStruct):
        structs.Batch(KEY.address, value, 2, bytes(32), bytes(32), bytes(32))
