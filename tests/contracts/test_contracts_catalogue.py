"""Catalogue: ids that the Python side computes too, and records that nobody can change."""

import boa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.primitives.hashing import tagged_sha256

ZERO = "0x" + "00" * 20


@pytest.fixture(scope="module")
def catalogue(deploy_contract):
    return deploy_contract("Catalogue")


def record_id(record):
    return tagged_sha256("deaios/model-record/1", record)


@given(record=st.binary(min_size=1, max_size=600) | st.integers(1, 8192).map(bytes))
@settings(max_examples=40, deadline=None)
def test_a_record_is_kept_under_the_hash_of_its_bytes(catalogue, record):
    with boa.env.anchor():
        assert bytes(catalogue.publish(record)) == record_id(record)
        assert bytes(catalogue.recordOf(record_id(record))) == record


def test_publishing_again_changes_nothing(world, catalogue):
    with boa.env.anchor():
        first = catalogue.publish(b"record", sender=world.provider.text)
        assert catalogue.publish(b"record", sender=world.stranger.text) == first
        assert catalogue.publisherOf(first) == world.provider.text
        assert catalogue.recordCount() == 1
        assert catalogue.recordAt(0) == first


def test_unknown_empty_and_too_long_records(catalogue):
    assert bytes(catalogue.recordOf(bytes(32))) == b""
    assert catalogue.publisherOf(bytes(32)) == ZERO
    with boa.reverts("catalogue: record is empty"):
        catalogue.publish(b"")
    with boa.reverts():
        catalogue.publish(bytes(8193))
