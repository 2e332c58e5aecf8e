"""Which answer a retry finds, and that the book stays within its bounds."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from deaios.gateway.retries import AnswerBook, identify

ONE, TWO = identify("key", None, b"one"), identify("key", None, b"two")


@dataclass(eq=False)
class FakeAnswer:
    weight: int = 1
    error: object = None
    is_orphan: bool = False
    counts_for: str | None = None


def test_key_nonce_and_body_all_belong_to_the_identity():
    found = {
        identify(key, nonce, body)
        for key in ("a", "b")
        for nonce in (None, bytes(32), b"\x01" * 32)
        for body in (b"", b"{}")
    }
    assert len(found) == 12


def test_the_answer_everybody_left_comes_first():
    book = AnswerBook()
    orphan, followed = FakeAnswer(is_orphan=True), FakeAnswer()
    book.add(ONE, orphan)
    book.add(ONE, followed)
    assert book.find(ONE, 0) == (orphan, None)
    assert book.find(TWO, 0) == (None, None)


def test_a_failure_is_served_anew_before_anothers_answer_is_shared():
    book = AnswerBook()
    failed, other = FakeAnswer(), FakeAnswer()
    serial = book.add(ONE, failed)
    book.add(ONE, other)
    failed.error = "provider down"
    book.end(serial, 1)
    assert book.find(ONE, 2) == (None, None)
    assert book.find(ONE, 2) == (other, None)


def test_the_charge_for_a_failure_counts_for_one_repetition():
    book = AnswerBook()
    failed = FakeAnswer(counts_for="a", error="abandoned")
    book.end(book.add(ONE, failed), 1)
    assert book.find(TWO, 2) == (None, None)
    assert [book.find(ONE, 2), book.find(ONE, 2)] == [(None, "a"), (None, None)]
    book.fail(ONE, 2, "b")
    assert [book.find(ONE, 3), book.find(ONE, 3)] == [(None, "b"), (None, None)]


def test_a_request_that_was_turned_away_counts_as_a_failure():
    book = AnswerBook()
    book.add(ONE, other := FakeAnswer())
    book.fail(ONE, 1)
    assert [book.find(ONE, 2), book.find(ONE, 2)] == [(None, None), (other, None)]


def test_a_running_answer_that_is_failing_is_not_joined():
    book = AnswerBook()
    book.add(ONE, FakeAnswer(error="abandoned"))
    assert book.find(ONE, 0) == (None, None)


def test_ended_answers_are_forgotten_after_the_window():
    book = AnswerBook(window_s=10)
    serial = book.add(ONE, answer := FakeAnswer())
    assert book.find(ONE, 1000) == (answer, None)
    book.end(serial, 1000)
    assert book.find(ONE, 1010) == (answer, None)
    assert book.find(ONE, 1010.1) == (None, None)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=60))
def test_the_book_is_bounded_and_never_mixes_identities(steps):
    book = AnswerBook(window_s=20, answers_max=4, weight_max=6)
    made, running, now = {}, [], 0.0
    for kind, which, fails in steps:
        now += 3
        identity = identify("key", None, bytes([which]))
        if kind == 0:
            answer = FakeAnswer(weight=which)
            made[id(answer)] = (identity, answer)
            running.append((book.add(identity, answer), answer))
        elif kind == 1 and running:
            serial, answer = running.pop(0)
            answer.error = "failed" if fails else None
            book.end(serial, now)
        elif kind == 2:
            book.fail(identity, now)
        else:
            found, _ = book.find(identity, now)
            assert found is None or (made[id(found)][0] == identity and found.error is None)
        assert book.running == len(running)
        assert len(book._ended) <= 4
        assert book._weight == sum(entry.answer.weight for entry in book._ended.values() if entry.answer) <= 6
        assert set(book._entries) == {serial for serials in book._by_identity.values() for serial in serials}
