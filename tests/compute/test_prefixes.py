"""Beginnings of prompts that were read before: whose they are, which one is found, what is forgotten first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.engine import Snapshot
from deaios.compute.prefixes import CACHED_TOKENS_MIN, OWNER_ENTRIES_MAX, PrefixCache, count_common

ALICE, BOB = b"alice", b"bob"
LONG = tuple(range(100))


def snapshot(ids, size_bytes=10):
    return Snapshot(len(ids), size_bytes, ids)


def keep(cache, owner, ids, size_bytes=10):
    cache.put(owner, ids, snapshot(ids, size_bytes))


def test_the_longest_beginning_is_found_and_one_id_is_left_to_read():
    cache = PrefixCache(1000)
    keep(cache, ALICE, LONG[:40])
    keep(cache, ALICE, (*LONG[:30], 7, 7))
    found = cache.find(ALICE, (*LONG[:60],))
    assert (found.tokens, found.snapshot.state) == (40, LONG[:40])
    assert cache.find(ALICE, LONG[:40]).tokens == 39
    assert cache.find(ALICE, (*LONG[:30], 7, 7, 8)).tokens == 32
    assert cache.find(ALICE, LONG[:CACHED_TOKENS_MIN]) is None
    assert cache.find(ALICE, LONG[: CACHED_TOKENS_MIN + 1]).tokens == CACHED_TOKENS_MIN


def test_nobody_finds_what_another_left():
    cache = PrefixCache(1000)
    keep(cache, ALICE, LONG)
    assert cache.find(BOB, (*LONG, 1)) is None
    assert cache.wants(BOB, LONG)
    assert not cache.wants(ALICE, LONG)


def test_a_longer_conversation_takes_the_place_of_its_beginning():
    cache = PrefixCache(1000)
    keep(cache, ALICE, LONG[:40])
    keep(cache, BOB, LONG[:40])
    assert not cache.wants(ALICE, LONG[:30])
    keep(cache, ALICE, LONG)
    assert (len(cache), cache.size_bytes) == (2, 20)
    assert cache.find(ALICE, (*LONG, 1)).tokens == 100
    assert cache.find(BOB, (*LONG, 1)).tokens == 40


def test_what_was_used_longest_ago_goes_first():
    cache = PrefixCache(30)
    for number in range(3):
        keep(cache, ALICE, (number,) * 20)
    assert cache.find(ALICE, (0,) * 21) is not None
    keep(cache, BOB, LONG)
    assert [cache.find(ALICE, (number,) * 21) is not None for number in range(3)] == [True, False, True]
    assert cache.size_bytes == 30
    keep(cache, BOB, (9,) * 20, size_bytes=31)
    assert cache.find(BOB, (9,) * 21) is None
    cache.clear()
    assert (len(cache), cache.size_bytes, cache.find(BOB, LONG)) == (0, 0, None)


def test_one_owner_keeps_a_bounded_number():
    cache = PrefixCache(1 << 20)
    keep(cache, BOB, LONG)
    for number in range(OWNER_ENTRIES_MAX + 5):
        keep(cache, ALICE, (number,) * 20)
    assert len(cache) == OWNER_ENTRIES_MAX + 1
    assert cache.find(ALICE, (4,) * 21) is None
    assert cache.find(BOB, LONG) is not None


def test_a_snapshot_of_other_ids_is_a_fault_of_ours():
    with pytest.raises(AssertionError):
        PrefixCache(1000).put(ALICE, LONG, snapshot(LONG[:5]))


few = st.lists(st.integers(0, 1), max_size=40).map(tuple)


@given(few, few)
def test_common_is_what_comparing_one_by_one_finds(left, right):
    wanted = next((place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    assert count_common(left, right) == (min(len(left), len(right)) if wanted is None else wanted)


entries = st.lists(st.tuples(st.sampled_from([ALICE, BOB]), few, st.integers(1, 60)), max_size=30)


@settings(deadline=None)
@given(entries, few)
def test_memory_is_bounded_and_found_beginnings_are_the_owners_own(puts, prompt):
    cache, left = PrefixCache(100), set()
    for owner, ids, size in puts:
        keep(cache, owner, ids, size)
        left.add((owner, ids))
        assert cache.size_bytes <= 100
    for owner in (ALICE, BOB):
        found = cache.find(owner, prompt)
        if found is not None:
            assert (owner, found.snapshot.state) in left
            assert CACHED_TOKENS_MIN <= found.tokens < len(prompt)
            assert found.snapshot.state[: found.tokens] == prompt[: found.tokens]
