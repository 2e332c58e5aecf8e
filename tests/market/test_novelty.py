"""What is called new was never seen: no earlier process could, and this one remembers."""

from hypothesis import given
from hypothesis import strategies as st

from deaios.market.novelty import Novelty

DIGEST = b"\x01" * 32


def start(head=100, seen_max=8):
    novelty = Novelty(seen_max)
    novelty.note_head(head)
    return novelty


def test_nothing_is_new_before_a_head_is_known():
    assert not Novelty(8).is_new(DIGEST, 10**9, 10**9, 1)


def test_a_request_that_names_a_block_from_before_the_start_may_be_old():
    novelty = start(100)
    assert not novelty.is_new(DIGEST, 100, 200, 101)
    assert novelty.is_new(DIGEST, 101, 200, 101)


def test_the_first_head_stays_the_start():
    novelty = start(100)
    novelty.note_head(150)
    assert novelty.is_new(DIGEST, 101, 200, 150)


def test_what_was_seen_is_not_new_until_nobody_takes_it_any_more():
    novelty = start(100)
    novelty.note_seen(DIGEST, 120)
    assert not novelty.is_new(DIGEST, 110, 120, 110)
    novelty.note_head(120)
    assert not novelty.is_new(DIGEST, 110, 120, 120)
    novelty.note_head(121)
    assert not novelty.is_new(DIGEST, 110, 120, 121), "past its deadline only the journal knows"


def test_a_crowd_of_requests_is_asked_about():
    novelty = start(100, seen_max=2)
    for number in range(3):
        novelty.note_seen(bytes([number]) * 32, 500)
    assert not novelty.is_new(DIGEST, 101, 500, 101)
    novelty.note_head(501)
    assert novelty.is_new(DIGEST, 502, 600, 501)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 3)), max_size=60), st.integers(0, 30))
def test_no_history_calls_a_request_new_that_was_seen(steps, restart):
    """Requests (number, life in blocks) at heads that grow; after a restart another novelty, one journal for both."""
    head, novelty, journal = 0, Novelty(4), set()
    for place, (number, life, passed) in enumerate(steps):
        if place == restart:
            novelty = Novelty(4)
        head += passed
        novelty.note_head(head)
        anchor = max(0, head - number % 3)
        request = (number, anchor, anchor + life)
        digest = repr(request).encode()
        if head <= anchor + life:
            assert not (novelty.is_new(digest, anchor, anchor + life, head) and digest in journal)
            journal.add(digest)
            novelty.note_seen(digest, anchor + life)
