"""What is said of privacy: enforced only what the check has proven, promised only what the provider signed."""

from dataclasses import replace

import pytest
from alignment_purchases import CONDUCT, FINISHED_MS, NETWORK, PROVIDER, RIVAL, STATED
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from deaios.alignment.answer import decode_answer, encode_answer
from deaios.alignment.evidence import Evidence, encode_evidence
from deaios.alignment.facts import Head, Outcome
from deaios.market.conduct import (
    CONDUCT_LIFETIME_MS_MAX,
    RETAINS_MS_MAX,
    TIME_MS_MAX,
    Conduct,
    encode_conduct,
    list_privacy,
    read_conduct,
    recover_stater,
    sign_conduct,
)

STATED_NUMBER, SILENT_NUMBER = 3, 0


def kinds(points):
    return {point.fact: point.kind.value for point in points}


def restated(answer, conduct):
    return replace(answer, opening=replace(answer.opening, conduct=conduct))


async def test_a_verified_answer_says_what_was_promised_and_what_is_enforced(library):
    result = await library.chain.examine(decode_answer(encode_answer(library.answers[STATED_NUMBER])))
    assert result.outcome is Outcome.VERIFIED
    assert kinds(result.privacy) == {
        "public": "enforced",
        "sealed": "claimed",
        "retention": "promised",
        "training": "promised",
    }
    heads = {fact.rule: fact.head for fact in result.facts if fact.rule.startswith("privacy")}
    assert heads == {
        "privacy, public": Head.PROVEN,
        "privacy, sealed": Head.GATEWAY,
        "privacy, retention": Head.PROMISED,
        "privacy, training": Head.PROMISED,
    }
    retention = next(point for point in result.privacy if point.fact == "retention")
    assert retention.says == "prompt and answer are kept for 30 days at most; no stake answers for it"
    assert [point["kind"] for point in result.to_json()["privacy"]] == ["enforced", "claimed", "promised", "promised"]


async def test_a_file_without_a_statement_verifies_and_says_that_nothing_was_stated(library):
    result = await library.chain.examine(library.answers[SILENT_NUMBER])
    assert result.outcome is Outcome.VERIFIED
    assert kinds(result.privacy) == {"public": "enforced"} | dict.fromkeys(
        ("sealed", "retention", "training"), "not promised"
    )
    assert {point.says for point in result.privacy if point.fact != "public"} == {"not stated"}


@pytest.mark.parametrize(
    "conduct",
    [
        sign_conduct(RIVAL, NETWORK, CONDUCT),
        sign_conduct(PROVIDER, b"n" * 32, CONDUCT),
        structs.replace(STATED, trains=True),
        structs.replace(STATED, retains_ms=0),
        structs.replace(STATED, sealing_key=None),
    ],
)
async def test_words_that_the_provider_did_not_sign_break_the_file(library, conduct):
    result = await library.chain.examine(restated(library.answers[STATED_NUMBER], conduct))
    broken = [fact.rule for fact in result.facts if not fact.holds]
    assert (result.outcome, broken, result.privacy) == (Outcome.VIOLATED, ["conduct signature"], ())


async def test_a_statement_left_out_is_not_stated_and_one_put_in_is_its_provider_s(library):
    """No signature ties it to the answer: who holds the file can drop it, or take another that the provider signed."""
    dropped = await library.chain.examine(restated(library.answers[STATED_NUMBER], None))
    assert (dropped.outcome, kinds(dropped.privacy)["training"]) == (Outcome.VERIFIED, "not promised")
    put_in = await library.chain.examine(restated(library.answers[SILENT_NUMBER], STATED))
    assert (put_in.outcome, kinds(put_in.privacy)["training"]) == (Outcome.VERIFIED, "promised")


@pytest.mark.parametrize("until", [FINISHED_MS, FINISHED_MS + CONDUCT_LIFETIME_MS_MAX + 1])
async def test_a_statement_of_another_time_promises_nothing(library, until):
    other = sign_conduct(PROVIDER, NETWORK, replace(CONDUCT, valid_until=until))
    result = await library.chain.examine(restated(library.answers[STATED_NUMBER], other))
    assert result.outcome is Outcome.VERIFIED
    assert set(kinds(result.privacy).values()) == {"enforced", "not promised"}


def test_the_jury_s_evidence_holds_no_statement(library):
    answer, sale = library.answers[STATED_NUMBER], library.sales[STATED_NUMBER]
    bare = replace(answer.opening, conduct=None)
    assert encode_evidence(sale.evidence) == encode_evidence(Evidence(bare, sale.order.prompt_ids))


conducts = st.builds(
    Conduct,
    sealing_key=st.none() | st.binary(min_size=32, max_size=32),
    retains_ms=st.integers(0, RETAINS_MS_MAX),
    trains=st.booleans(),
    valid_until=st.integers(0, TIME_MS_MAX),
)


@given(conduct=conducts, at_ms=st.integers(0, TIME_MS_MAX))
def test_no_reader_of_papers_says_enforced_of_what_they_do_not_prove(conduct, at_ms):
    body = sign_conduct(PROVIDER, NETWORK, conduct)
    assert read_conduct(encode_conduct(body)) == body
    assert recover_stater(NETWORK, body) == PROVIDER.address
    for stated in (body, None):
        read = kinds(list_privacy(stated, at_ms, has_sealed=False))
        assert [fact for fact, kind in read.items() if kind == "enforced"] == ["public"]
        assert read["training"] != "promised" or not conduct.trains
    done = kinds(list_privacy(body, at_ms, has_sealed=True))
    assert done["sealed"] != "enforced" or conduct.sealing_key is not None
