"""The machine of one answer: when it ends, what text it shows and when, and that ids alone decide both."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.generation import Generation, check_finish, read_output
from deaios.compute.sampling import InvalidParams, sample
from deaios.compute.tokenizer import InvalidText
from deaios.ledger.structs import FinishReason, Params

PIECES = [
    b"",
    b"",
    b"a",
    b"b",
    b"ab",
    b"abc",
    b"c",
    b" ",
    b"STOP",
    b"ST",
    b"OP",
    b"S",
    b"T",
    b"\xf0\x9f",
    b"\x98\x80",
    b"\xc3",
]
END = 0
CONTROL = 1


@dataclass(frozen=True)
class ToyTokenizer:
    """A vocabulary of a few byte strings; id 0 ends an answer, id 1 is another control token."""

    pieces: tuple[bytes, ...] = tuple(PIECES)
    end_ids: frozenset[int] = frozenset({END})
    vocabulary_size: int = field(default=len(PIECES))

    def get_bytes(self, token):
        if not 0 <= token < len(self.pieces):
            raise InvalidText("outside")
        return self.pieces[token]


TOY = ToyTokenizer()
A, B, AB, ABC, C, SPACE, STOP, ST, OP, S, T, F0, REST, C3 = range(2, 16)


def make_params(max_tokens=50, stop_ids=(), stop_strings=(), temperature=800):
    return Params(temperature, 0, 1000, max_tokens, tuple(stop_ids), tuple(stop_strings), bytes(32))


def run(ids, params):
    """Feed ids until the end; returns the machine and the deltas."""
    machine = Generation(3, params, bytes(32), TOY)
    deltas = []
    for token in ids:
        if machine.finish is not None:
            break
        deltas.append(machine.accept(token).text_delta)
    return machine, deltas


def test_end_id_stops_and_adds_no_text():
    machine, deltas = run([A, B, END, A], make_params())
    assert (machine.finish, machine.output_ids, deltas) == (FinishReason.STOP_TOKEN, (A, B, END), ["a", "b", ""])


def test_stop_id_of_the_ask_stops_like_an_end_id():
    machine, deltas = run([A, C], make_params(stop_ids=[C]))
    assert (machine.finish, deltas) == (FinishReason.STOP_TOKEN, ["a", ""])


def test_end_id_wins_over_length():
    machine, _ = run([A, END], make_params(max_tokens=2))
    assert machine.finish is FinishReason.STOP_TOKEN


def test_length_shows_what_was_held_back():
    machine, deltas = run([A, ST], make_params(max_tokens=2, stop_strings=["STOP"]))
    assert (machine.finish, deltas) == (FinishReason.LENGTH, ["a", "ST"])


def test_stop_string_inside_one_token_cuts_the_text():
    machine, deltas = run([ABC], make_params(stop_strings=["b"]))
    assert (machine.finish, machine.stop_index, deltas) == (FinishReason.STOP_STRING, 0, ["a"])


def test_stop_string_over_several_tokens_is_held_back_from_its_first_letter():
    machine, deltas = run([A, S, T, OP], make_params(stop_strings=["nope", "STOP"]))
    assert (machine.finish, machine.stop_index, deltas) == (FinishReason.STOP_STRING, 1, ["a", "", "", ""])


def test_text_that_only_looked_like_a_stop_string_is_shown():
    _, deltas = run([ST, A, ST, ST, OP], make_params(stop_strings=["STOP!"]))
    assert deltas == ["", "STa", "", "ST", ""]


def test_of_two_stop_strings_the_one_that_starts_first_wins_then_the_lower_index():
    assert run([ABC], make_params(stop_strings=["bc", "ab"]))[0].stop_index == 1
    assert run([ABC], make_params(stop_strings=["abc", "ab"]))[0].stop_index == 0
    assert run([ABC], make_params(stop_strings=["ab", "abc"]))[0].stop_index == 0


def test_stop_string_spans_a_control_token_because_it_has_no_text():
    machine, _ = run([ST, CONTROL, OP], make_params(stop_strings=["STOP"]))
    assert machine.finish is FinishReason.STOP_STRING


def test_half_a_character_is_held_back():
    _, deltas = run([F0, REST], make_params())
    assert deltas == ["", "😀"]
    assert run([F0, A], make_params())[1] == ["", "\ufffda"]
    assert run([F0], make_params(max_tokens=1))[1] == ["\ufffd"]


def test_stop_string_beyond_ascii_matches_its_bytes():
    machine, deltas = run([A, F0, REST], make_params(stop_strings=["😀"]))
    assert (machine.finish, deltas) == (FinishReason.STOP_STRING, ["a", "", ""])


def test_cut_off_answer_gives_up_its_held_text():
    machine, deltas = run([A, ST, F0], make_params(stop_strings=["STOP"]))
    assert deltas == ["a", "", "ST"]
    assert machine.close() == "\ufffd"


def test_offer_samples_at_the_absolute_position():
    params, seed = make_params(), bytes(range(32))
    dice = np.random.default_rng(1)
    machine = Generation(7, params, seed, TOY)
    for place in range(6):
        row = dice.standard_normal(len(PIECES)).astype(np.float32)
        row[[END]] = -50
        assert machine.position == 7 + place
        assert machine.offer(row).token == sample(row, params, seed, 7 + place)


def test_params_are_checked_first():
    with pytest.raises(InvalidParams):
        Generation(1, make_params(max_tokens=0), bytes(32), TOY)


STOPS = st.lists(st.sampled_from(["ab", "abc", "b", "STOP", "TO", " ", "😀", "aab", "cc"]), max_size=3)
IDS = st.lists(st.integers(0, len(PIECES) - 1), max_size=30)


def plain_text(ids, params):
    """The finish rules read off the document, without streaming."""
    text = b""
    for count, token in enumerate(ids, 1):
        if token == END or token in params.stop_ids:
            return text, count, FinishReason.STOP_TOKEN, 0
        text += PIECES[token]
        found = [
            (text.index(stop.encode()), index)
            for index, stop in enumerate(params.stop_strings)
            if stop.encode() in text
        ]
        if found:
            return text[: min(found)[0]], count, FinishReason.STOP_STRING, min(found)[1]
        if count == params.max_tokens:
            return text, count, FinishReason.LENGTH, 0
    return text, len(ids), None, 0


@settings(max_examples=500, deadline=None)
@given(IDS, STOPS, st.integers(1, 25), st.lists(st.integers(2, 6), max_size=2))
def test_streaming_equals_the_rules_read_at_once(ids, stops, max_tokens, stop_ids):
    params = make_params(max_tokens, stop_ids, stops)
    text, count, finish, stop_index = plain_text(ids, params)
    machine, deltas = run(ids, params)
    if machine.finish is None:
        deltas.append(machine.close())
    assert ("".join(deltas), len(machine.output_ids), machine.finish, machine.stop_index) == (
        text.decode("utf-8", "replace"),
        count,
        finish,
        stop_index,
    )
    assert read_output(ids, params, TOY) == "".join(deltas)


@settings(max_examples=300, deadline=None)
@given(IDS, STOPS, st.integers(1, 25))
def test_shown_text_is_never_taken_back(ids, stops, max_tokens):
    params = make_params(max_tokens, (), stops)
    machine = Generation(0, params, bytes(32), TOY)
    shown = ""
    for count, token in enumerate(ids, 1):
        shown += machine.accept(token).text_delta
        for rest in ([], [C, C, C]):
            assert read_output([*ids[:count], *rest], params, TOY).startswith(shown)
        if machine.finish is not None:
            break


@settings(max_examples=300, deadline=None)
@given(IDS, STOPS, st.integers(1, 25), st.sampled_from(list(FinishReason)), st.integers(0, 2))
def test_only_the_true_finish_passes(ids, stops, max_tokens, reason, stop_index):
    params = make_params(max_tokens, (), stops)
    _, count, finish, index = plain_text(ids, params)
    cut_off = reason in (FinishReason.CANCELLED, FinishReason.FAILED)
    right = count == len(ids) and ((cut_off and stop_index == 0) or (finish is reason and index == stop_index))
    assert (check_finish(ids, params, TOY, reason, stop_index) is None) == right


def test_finish_faults_are_named():
    params = make_params(max_tokens=3, stop_strings=["c", "STOP"])
    assert "ended at id 0 (STOP_TOKEN), yet 2 ids" in check_finish([END, A], params, TOY, FinishReason.LENGTH, 0)
    assert "LENGTH is claimed, but the ids have not ended" in check_finish([A], params, TOY, FinishReason.LENGTH, 0)
    assert "but stop string 1 ended" in check_finish([STOP], params, TOY, FinishReason.STOP_STRING, 0)
    assert "outside the vocabulary" in check_finish([99], params, TOY, FinishReason.LENGTH, 0)
    assert check_finish([], params, TOY, FinishReason.CANCELLED, 0) is None
    assert check_finish([], params, TOY, FinishReason.LENGTH, 0) is not None


def test_real_tokenizer_streams_what_it_decodes(tokenizer):
    text = "Numbers 12 and 345, naïve 👩‍👩‍👧 emoji… 世界\n"
    ids = tokenizer.encode_plain(text)
    machine = Generation(1, make_params(max_tokens=400), bytes(32), tokenizer)
    shown = [machine.accept(token).text_delta for token in ids]
    assert "".join(shown) == text
    assert all("\ufffd" not in delta for delta in shown)


@given(st.lists(st.integers(2, 15), max_size=30), st.lists(st.sampled_from(["STOP", "ab", "c "]), max_size=2))
def test_shown_bytes_count_exactly_what_the_text_stands_for(ids, stops):
    machine, texts, fed = Generation(0, make_params(stop_strings=stops), bytes(32), TOY), [], b""
    for token in ids:
        if machine.finish is not None:
            break
        fed += TOY.get_bytes(token)
        texts.append(machine.accept(token).text_delta)
        assert fed[: machine.shown_bytes].decode("utf-8", "replace") == "".join(texts)
    if machine.finish is None:
        texts.append(machine.close())
        assert machine.shown_bytes == len(fed)
        assert fed.decode("utf-8", "replace") == "".join(texts)
