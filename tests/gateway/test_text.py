"""Ids to visible text: whole characters, and nothing from a stop string on, however the ids arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.gateway.text import AnswerText
from deaios.primitives.errors import Invalid


def play(vocabulary, stops, portions):
    text = AnswerText(vocabulary, stops)
    return [*map(text.push, portions), text.close()]


def cut(text, stops):
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(places)] if places else text


@given(
    st.text("abé\U0001f600", max_size=30),
    st.lists(st.text("abé", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 5), max_size=60),
)
def test_pieces_join_to_the_text_before_the_first_stop(text, stops, sizes):
    from_bytes = FakeVocabulary()
    ids, portions = list(text.encode()), []
    for size in sizes:
        portions.append(ids[:size])
        ids = ids[size:]
    portions.append(ids)
    assert "".join(play(from_bytes, stops, portions)) == cut(text, stops)


class FakeVocabulary:
    def get_bytes(self, token):
        return bytes([token])


def test_text_that_may_begin_a_stop_is_held_and_released(byte_vocabulary):
    assert play(byte_vocabulary, ["END"], [b"a E", b"N", b"V", b"EN"]) == ["a ", "", "ENV", "", "EN"]


def test_a_character_in_two_portions_comes_out_once(byte_vocabulary):
    assert play(byte_vocabulary, [], [b"\xc3", b"\xb6!", b"\xf0\x9f"]) == ["", "ö!", "", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_have_no_text_and_unknown_ids_are_refused(byte_vocabulary):
    assert play(byte_vocabulary, [], [(72, 256)]) == ["H", ""]
    with pytest.raises(Invalid):
        AnswerText(byte_vocabulary, []).push((257,))
