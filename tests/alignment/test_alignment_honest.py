"""What the check says of honest answers: verified, under the right heads, and no more than is true."""

from dataclasses import replace

import pytest
from alignment_purchases import PaperChain, body_of, sell

from deaios.alignment.answer import decode_answer, encode_answer
from deaios.alignment.facts import Head, Outcome
from deaios.compute.records import UNAUDITABLE
from deaios.ledger.structs import Level
from deaios.primitives.encoding import encode_hex
from deaios.primitives.units import CREDIT


def rules_under(result, head):
    return [fact.rule for fact in result.facts if fact.head is head]


async def test_every_honest_answer_verifies(library):
    for answer in library.answers:
        result = await library.chain.examine(answer)
        assert result.outcome is Outcome.VERIFIED, result.headline
        assert result.report.tokens_checked == len(answer.opening.output_ids)
        assert result.headline.startswith(f"verified: {len(answer.opening.output_ids)} tokens, largest margin ")
        assert all(fact.holds for fact in result.facts)


async def test_facts_stand_under_the_head_that_they_rest_on(library):
    answer = library.answers[0]
    result = await library.chain.examine(answer)
    assert rules_under(result, Head.OPERATOR) == ["model name", "batch", "anchor", "provider", "verdict", "stake"]
    assert rules_under(result, Head.GATEWAY) == ["client nonce", "seed"]
    assert {"request signature", "receipt signature", "prompt", "output", "fee", "text", "tokens"} <= set(
        rules_under(result, Head.PROVEN)
    )
    assert [head for head, _ in result.by_head()] == [Head.PROVEN, Head.OPERATOR, Head.GATEWAY, Head.PROMISED]
    assert sum(len(facts) for _, facts in result.by_head()) == len(result.facts)


async def test_the_users_own_nonce_turns_trust_into_proof(library):
    answer = library.answers[0]
    result = await library.chain.examine(answer, user_nonce=answer.client_nonce)
    assert result.outcome is Outcome.VERIFIED
    assert "client nonce" in rules_under(result, Head.PROVEN)
    assert rules_under(result, Head.GATEWAY) == ["seed"]
    wrong = await library.chain.examine(answer, user_nonce=bytes(32))
    assert wrong.outcome is Outcome.VIOLATED
    assert wrong.headline.startswith("violation: client nonce: not so")


async def test_a_name_means_a_record_only_by_somebodys_word(library, bench):
    by_id = await PaperChain(bench).examine_sale(sell(bench, body_of("Hi.", model=encode_hex(bench.record_id))))
    assert by_id.outcome is Outcome.VERIFIED
    assert "model name" in rules_under(by_id, Head.PROVEN)
    elsewhere = replace(bench.terms, default_record_id=bytes(32))
    by_name = await library.chain.examine(library.answers[0], terms=elsewhere)
    assert by_name.outcome is Outcome.VERIFIED
    assert "model name" in rules_under(by_name, Head.GATEWAY)


async def test_a_model_further_down_the_bodys_list_rests_on_the_gateways_word(bench):
    name = bench.record.name
    first = await PaperChain(bench).examine_sale(sell(bench, body_of("Hi.", models=[name, "a-large-model"])))
    assert first.outcome is Outcome.VERIFIED
    assert "model fallback" not in rules_under(first, Head.GATEWAY)
    later = await PaperChain(bench).examine_sale(sell(bench, body_of("Hi.", model="a-large-model", models=["b", name])))
    assert later.outcome is Outcome.VERIFIED
    fallback = next(fact for fact in later.facts if fact.rule == "model fallback")
    assert (fallback.head, fallback.says) == (
        Head.GATEWAY,
        f"none of the 2 models that the body names before {name!r} could answer",
    )


async def test_a_provider_that_lost_stake_is_named_and_its_true_answer_stays_true(library):
    chain = replace(library.chain, slashed=10 * CREDIT, paused=True)
    result = await chain.examine(library.answers[0])
    stake = next(fact for fact in result.facts if fact.rule == "stake")
    assert result.outcome is Outcome.VERIFIED
    assert stake.says == (
        "the provider has 40 credit at stake after block 99, 10 lost so far, an open dispute pauses its offer"
    )


async def test_a_convicted_receipt_never_verifies(library):
    chain = replace(library.chain, convicted={library.answers[0].opening.receipt_digest})
    result = await chain.examine(library.answers[0])
    assert result.outcome is Outcome.VIOLATED
    assert result.headline == "violation: verdict: a jury found receipt 1 guilty so far"
    assert (await chain.examine(library.answers[1])).outcome is Outcome.VERIFIED


@pytest.mark.parametrize("level", [Level.SIGNED, Level.GREEDY])
async def test_low_levels_are_named_as_what_they_are(bench, level):
    body = body_of("Tell me of the sea.", deaios={"min_level": int(level)})
    honest = await PaperChain(bench).examine_sale(sell(bench, body, level=level))
    assert honest.outcome is Outcome.VERIFIED
    other = bench.render(body_of("Tell me of the hills."))
    invented = await PaperChain(bench).examine_sale(sell(bench, body, level=level, served_prompt=other))
    assert invented.outcome is Outcome.UNCHECKED
    assert f"a receipt of level {level} does not promise" in invented.headline
    assert all(fact.holds for fact in invented.facts)
    assert "tokens" not in {fact.rule for fact in invented.facts}


async def test_a_greedy_receipt_promises_greedy_tokens(bench):
    body = body_of("Tell me of the sea.", temperature=0, deaios={"min_level": 1})
    other = bench.render(body_of("Tell me of the hills."))
    invented = await PaperChain(bench).examine_sale(sell(bench, body, level=Level.GREEDY, served_prompt=other))
    assert invented.outcome is Outcome.VIOLATED
    assert invented.headline.startswith("violation: tokens: token ")
    assert "rule greedy: margin " in invented.headline


async def test_an_unauditable_model_is_named_as_what_it_is_whatever_its_receipts_claim(bench):
    closed = replace(bench, record=replace(bench.record, serving=UNAUDITABLE))
    for level in (Level.SIGNED, Level.REPLAYABLE):
        body = body_of("Hi.", deaios={"min_level": int(level)})
        result = await PaperChain(closed).examine_sale(sell(closed, body, level=level))
        assert result.outcome is Outcome.UNCHECKED
        assert "nobody can fetch the weights" in result.headline
        assert {"receipt signature", "text", "batch"} <= {fact.rule for fact in result.facts}
        assert all(fact.holds for fact in result.facts)


def test_an_answer_survives_its_file(library):
    for answer in library.answers:
        assert decode_answer(encode_answer(answer)) == answer
