"""Further networks in a descriptor: one form, bounds, and every service on one network."""

from dataclasses import replace

import pytest

from deaios.ledger.descriptor import (
    FurtherNetwork,
    InvalidDescriptor,
    NetworkDescriptor,
    Token,
    decode_descriptor,
    encode_descriptor,
    sign_descriptor,
)
from deaios.ledger.further import FurtherAddresses, plan_addresses
from deaios.ledger.settings import LOCAL
from deaios.ledger.suite import SuiteAddresses
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address, PrivateKey

ADDRESSES = FurtherAddresses(*(Address(bytes([number]) * 20) for number in range(1, 7)))


def make_network(**changes):
    values = {
        "name": "fast-lane",
        "id": b"\x11" * 32,
        "chain_id": 5,
        "rpc_urls": ("http://127.0.0.1:8546",),
        "contracts": ADDRESSES,
        "services": ("payments", "da"),
        "confirmations": 12,
        "faucet_url": None,
    }
    return FurtherNetwork(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "Fast"},
        {"name": "fast lane"},
        {"name": "a" * 32},
        {"id": b"\x11" * 31},
        {"chain_id": 0},
        {"chain_id": 1 << 53},
        {"rpc_urls": ()},
        {"rpc_urls": ("ftp://there",)},
        {"services": ("payments", "payments")},
        {"services": ("gossip",)},
        {"confirmations": 0},
        {"confirmations": 10_001},
        {"faucet_url": "http://"},
    ],
)
def test_what_a_descriptor_refuses(changes):
    make_network()
    with pytest.raises(InvalidDescriptor):
        make_network(**changes)


def test_addresses_follow_from_the_deployer_s_nonces():
    first = plan_addresses(Address(b"\5" * 20), 0)
    later = plan_addresses(Address(b"\5" * 20), 2)
    assert list(first.by_field().values())[2:] == list(later.by_field().values())[:4]
    assert len(set(first.by_field().values())) == 6


def make_descriptor(*networks):
    suite = SuiteAddresses(*(Address(bytes([number]) * 20) for number in range(1, 17)))
    return NetworkDescriptor(
        network_id=b"\x99" * 32,
        chain_id=7,
        rpc_urls=("http://127.0.0.1:8545",),
        operator=KEY.address,
        contracts=suite,
        token=Token(suite.credit, "DeAIOS Credit", "CREDIT", "1", 6),
        windows=LOCAL,
        default_model_record_id=bytes(32),
        networks=networks,
    )


KEY = PrivateKey(keccak256(b"founder"))


def test_a_descriptor_with_networks_has_one_form():
    second = make_network(name="archive", id=b"\x22" * 32, services=("storage",), faucet_url="http://there/faucet")
    descriptor = make_descriptor(make_network(), second)
    data = encode_descriptor(descriptor, sign_descriptor(KEY, descriptor))
    assert decode_descriptor(data) == descriptor
    assert descriptor.get_network("archive") == second
    assert descriptor.get_network("root") is None
    for old, new in ((b'"confirmations":12', b'"confirmations":13'), (b'"storage"', b'"audit"'), (b"2222", b"2223")):
        with pytest.raises(InvalidDescriptor):
            decode_descriptor(data.replace(old, new))


@pytest.mark.parametrize(
    "changes", [{"name": "other", "id": b"\x22" * 32}, {"services": ()}, {"name": "other", "services": ()}]
)
def test_names_ids_and_services_belong_to_one_network(changes):
    with pytest.raises(InvalidDescriptor, match="belongs to two"):
        make_descriptor(make_network(), replace(make_network(), **changes))
    make_descriptor(make_network(), make_network(name="other", id=b"\x22" * 32, services=()))
