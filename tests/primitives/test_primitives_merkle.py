"""Merkle lists: frozen vectors of docs/spec/merkle.md, and nothing but leaves can be proven."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.merkle import (
    LEAVES_MAX,
    InvalidTree,
    build_root,
    hash_leaf,
    hash_node,
    prove_leaf,
    seal_root,
    tree_depth,
    verify_leaf,
)

VECTORS = json.loads((Path(__file__).parents[2] / "docs/spec/merkle-vectors.json").read_text())["vectors"]
TAG = "deaios/receipts/1"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['tag']}-{v['count']}")
def test_roots_and_paths_equal_the_frozen_vectors(vector):
    leaves = [f"leaf {i}".encode() for i in range(vector["count"])]
    root = build_root(vector["tag"], leaves)
    proofs = [
        {"index": proof["index"], "path": ["0x" + node.hex() for node in prove_leaf(leaves, proof["index"])]}
        for proof in vector["proofs"]
    ]
    assert {"tag": vector["tag"], "count": len(leaves), "root": "0x" + root.hex(), "proofs": proofs} == vector


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=40, unique=True), st.data())
def test_every_leaf_proves_itself_and_only_itself(leaves, data):
    root = build_root(TAG, leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = prove_leaf(leaves, index)
    count = len(leaves)
    assert len(path) == tree_depth(count)
    assert verify_leaf(TAG, root, count, index, leaves[index], path)
    assert not verify_leaf(TAG, root, count, index, leaves[index] + b"\0", path)
    assert not verify_leaf("deaios/output/1", root, count, index, leaves[index], path)
    assert not verify_leaf(TAG, root, count + 1, index, leaves[index], path)
    assert not verify_leaf(TAG, root, count, index, leaves[index], (*path, ZERO32))
    assert not verify_leaf(TAG, root, count, -1, leaves[index], path)
    assert not verify_leaf(TAG, root, count, count, leaves[index], path)
    other = data.draw(st.integers(0, count - 1))
    assert verify_leaf(TAG, root, count, other, leaves[index], path) == (other == index)
    if path:
        level = data.draw(st.integers(0, len(path) - 1))
        changed = [*path]
        changed[level] = sha256(changed[level])
        assert not verify_leaf(TAG, root, count, index, leaves[index], changed)
        changed[level] = path[level][:31]
        assert not verify_leaf(TAG, root, count, index, leaves[index], changed)


def test_inner_nodes_and_padding_are_no_leaves():
    leaves = [b"a", b"b", b"c"]
    root = build_root(TAG, leaves)
    left = hash_node(hash_leaf(b"a"), hash_leaf(b"b"))
    right = hash_node(hash_leaf(b"c"), ZERO32)
    assert root == seal_root(TAG, 3, hash_node(left, right))
    inner = hash_leaf(b"a") + hash_leaf(b"b")
    assert not verify_leaf(TAG, root, 2, 0, inner, (right,))
    assert not verify_leaf(TAG, root, 3, 0, inner, (right,))
    assert not verify_leaf(TAG, root, 4, 3, b"", (hash_leaf(b"c"), left))
    assert not verify_leaf(TAG, root, 3, 3, b"", (hash_leaf(b"c"), left))


def test_counts_are_bounded():
    assert [tree_depth(count) for count in (0, 1, 2, 3, 4, 5, LEAVES_MAX)] == [0, 0, 1, 2, 2, 3, 32]
    for count in (-1, LEAVES_MAX + 1):
        with pytest.raises(InvalidTree):
            tree_depth(count)
    for index in (-1, 2):
        with pytest.raises(InvalidTree):
            prove_leaf([b"a", b"b"], index)
    assert not verify_leaf(TAG, ZERO32, 0, 0, b"", ())


@given(st.lists(st.binary(max_size=4), max_size=9), st.lists(st.binary(max_size=4), max_size=9))
def test_different_lists_have_different_roots(left, right):
    assert (build_root(TAG, left) == build_root(TAG, right)) == (left == right)
