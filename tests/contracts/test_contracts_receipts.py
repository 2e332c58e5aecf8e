"""Receipts: batches without gaps, and leaf checks equal to primitives.merkle."""

import boa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.primitives.hashing import sha256
from deaios.primitives.merkle import build_root, prove_leaf

TAG = "deaios/receipts/1"
ROOT = b"\x11" * 32


def publish(world, first, last, previous, root=ROOT, provider=None):
    sender = (provider or world.provider).text
    return world.receipts.publish(first, last, previous, root, b"\x22" * 32, sender=sender)


def test_batches_follow_each_other_without_gaps(world):
    assert publish(world, 1, 3, bytes(32)) == 0
    assert publish(world, 4, 4, ROOT, b"\x33" * 32) == 1
    assert world.receipts.lastCounter(world.provider.text) == 4
    assert world.receipts.batchCount(world.provider.text) == 2
    expected = (4, 4, ROOT, b"\x33" * 32, b"\x22" * 32, world.now)
    assert world.receipts.batchAt(world.provider.text, 1) == expected
    assert world.receipts.batchAt(world.provider.text, 2) == (0, 0, bytes(32), bytes(32), bytes(32), 0)
    assert publish(world, 1, 1, bytes(32), provider=world.stranger) == 0


@pytest.mark.parametrize(
    ("first", "last", "previous", "root", "message"),
    [
        (5, 6, ROOT, ROOT, "receipts: first counter does not follow"),
        (3, 6, ROOT, ROOT, "receipts: first counter does not follow"),
        (4, 3, ROOT, ROOT, "receipts: batch is empty"),
        (4, 4 + 65536, ROOT, ROOT, "receipts: batch is too long"),
        (4, 5, bytes(32), ROOT, "receipts: previous root does not match"),
        (4, 5, ROOT, bytes(32), "receipts: root is zero"),
    ],
)
def test_a_batch_that_breaks_the_chain_is_refused(world, first, last, previous, root, message):
    publish(world, 1, 3, bytes(32))
    with boa.reverts(message):
        publish(world, first, last, previous, root)


def test_the_longest_batch_is_accepted(world):
    publish(world, 1, 65536, bytes(32))
    assert world.receipts.lastCounter(world.provider.text) == 65536


@given(count=st.integers(1, 70), data=st.data())
@settings(max_examples=60, deadline=None)
def test_exactly_the_published_leaves_verify(deployed, count, data):
    world = deployed
    leaves = [sha256(n.to_bytes(4)) for n in range(count)]
    index = data.draw(st.integers(0, count - 1))
    path = prove_leaf(leaves, index)
    with boa.env.anchor():
        publish(world, 1, count, bytes(32), build_root(TAG, leaves))

        def verify(counter, leaf, path):
            return world.receipts.verifyReceipt(world.provider.text, 0, counter, leaf, list(path))

        assert verify(1 + index, leaves[index], path)
        assert not verify(1 + index, sha256(b"other"), path)
        assert not verify(1 + (index + 1) % count if count > 1 else 2, leaves[index], path)
        assert not verify(0, leaves[index], path)
        assert not verify(count + 1, leaves[index], path)
        if len(path) < 16:
            assert not verify(1 + index, leaves[index], [*path, bytes(32)])
        if path:
            assert not verify(1 + index, leaves[index], path[:-1])
            assert not verify(1 + index, leaves[index], [sha256(path[0]), *path[1:]])


def test_padding_and_other_roots_do_not_verify(world):
    leaves = [sha256(n.to_bytes(4)) for n in range(3)]
    publish(world, 1, 3, bytes(32), build_root(TAG, leaves))
    path = [sha256(b"\x00" + leaves[2]), prove_leaf(leaves, 2)[1]]
    assert not world.receipts.verifyReceipt(world.provider.text, 0, 4, bytes(32), path)
    publish(world, 4, 6, build_root(TAG, leaves), build_root("other/tag/1", leaves))
    assert not world.receipts.verifyReceipt(world.provider.text, 1, 4, leaves[0], list(prove_leaf(leaves, 0)))


def test_the_deepest_path(world):
    """65,536 leaves of one value: every level has one hash, so that the path is cheap to make."""
    node = sha256(b"\x00" + bytes(32))
    path = []
    for _ in range(16):
        path.append(node)
        node = sha256(b"\x01" + node + node)
    root = sha256(b"\x02" + sha256(TAG.encode()) + (65536).to_bytes(8) + node)
    publish(world, 1, 65536, bytes(32), root)
    for counter in (1, 40000, 65536):
        assert world.receipts.verifyReceipt(world.provider.text, 0, counter, bytes(32), path)
