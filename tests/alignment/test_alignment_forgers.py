"""Forgers who hold keys: they re-sign, splice, replay elsewhere, or sign lies together. None of it verifies."""

from dataclasses import fields, replace
from itertools import permutations

import pytest
from alignment_purchases import (
    BUYER,
    DOMAIN,
    FRAMER,
    NETWORK,
    PROVIDER,
    RIVAL,
    PaperChain,
    body_of,
    sell,
)

from deaios.alignment.answer import Answer
from deaios.alignment.check import NetworkTerms
from deaios.alignment.facts import Outcome
from deaios.compute.records import encode_record, record_id
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.structs import FinishReason, Level, State, protocol_domain
from deaios.market.opening import Opening
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import Address
from deaios.primitives.units import CREDIT


async def broken_rule(chain, answer, **options):
    result = await chain.examine(answer, **options)
    assert result.outcome is Outcome.VIOLATED, result.headline
    (broken,) = [fact for fact in result.facts if not fact.holds]
    assert result.headline == f"violation: {broken.rule}: {broken.says}"
    return broken.rule


async def broken_rule_of_sale(bench, sale, **options):
    chain = PaperChain(bench)
    opening = sale.sign()
    index = chain.publish(opening.request.provider, [opening])
    return await broken_rule(chain, chain.answer(sale, opening, index, options.pop("text", None)), **options)


def with_opening(answer, **changes):
    return replace(answer, opening=replace(answer.opening, **changes))


# ---- re-signing


async def test_another_registered_key_signs_the_receipt(library):
    answer = library.answers[0]
    signature = sign_struct(RIVAL, DOMAIN, answer.opening.receipt)
    assert await broken_rule(library.chain, with_opening(answer, receipt_signature=signature)) == "receipt signature"


async def test_another_registered_key_takes_the_whole_order_over(library):
    opening = library.answers[0].opening
    offer = replace(opening.offer, provider=RIVAL.address)
    request = replace(opening.request, provider=RIVAL.address, offer_digest=hash_struct(offer))
    receipt = replace(opening.receipt, request_digest=hash_struct(request))
    forged = with_opening(
        library.answers[0],
        offer=offer,
        offer_signature=sign_struct(RIVAL, DOMAIN, offer),
        request=request,
        receipt=receipt,
        receipt_signature=sign_struct(RIVAL, DOMAIN, receipt),
    )
    assert await broken_rule(library.chain, forged) == "request signature"


async def test_another_buyer_signs_the_order(library):
    answer = library.answers[0]
    signature = sign_struct(FRAMER, DOMAIN, answer.opening.request)
    assert await broken_rule(library.chain, with_opening(answer, request_signature=signature)) == "request signature"
    ask = replace(answer.opening.ask, buyer=FRAMER.address)
    forged = with_opening(answer, ask=ask, request_signature=signature)
    assert await broken_rule(library.chain, forged) == "ask digest"


async def test_a_forger_with_both_roles_cannot_pass_old_tokens_for_a_new_purchase(library, bench):
    sale = replace(library.sales[0], buyer=FRAMER, provider=RIVAL)
    sale = replace(sale, offer=replace(sale.offer, provider=RIVAL.address))
    assert await broken_rule_of_sale(bench, sale) == "tokens"
    chain = PaperChain(bench)
    chain.publish(RIVAL.address, [library.answers[4].opening])
    forged = replace(library.answers[0], opening=sale.sign(), path=())
    assert await broken_rule(chain, forged) == "batch"


async def test_an_unregistered_key_is_named(bench):
    sale = sell(bench, body_of("Hello."), provider=FRAMER)
    assert await broken_rule_of_sale(bench, sale) == "provider"


# ---- splicing

_PARTS = (
    "body",
    "client_nonce",
    "text",
    "batch",
    *(f"opening.{field.name}" for field in fields(Opening) if field.name != "conduct"),
)
"""A statement about prompts is bound by its own signature, not to an answer: test_alignment_privacy.py."""


def parts_of(answer):
    opening = {name: name.removeprefix("opening.") for name in _PARTS if name.startswith("opening.")}
    named = {name: getattr(answer.opening, field) for name, field in opening.items()}
    return named | {
        "body": answer.body,
        "client_nonce": answer.client_nonce,
        "text": answer.text,
        "batch": (answer.batch_index, answer.path),
    }


def assemble(parts):
    opening = Opening(**{name.removeprefix("opening."): part for name, part in parts.items() if "." in name})
    index, path = parts["batch"]
    return Answer(NETWORK, parts["body"], parts["client_nonce"], opening, parts["text"], index, path)


async def test_no_splice_of_two_honest_answers_verifies(library):
    before, count = library.chain.recomputed, 0
    for first, second in ((0, 2), (0, 3), (0, 4)):
        ours, theirs = parts_of(library.answers[first]), parts_of(library.answers[second])
        differing = [name for name in _PARTS if ours[name] != theirs[name]]
        for choice in range(1, (1 << len(differing)) - 1):
            taken = {name for place, name in enumerate(differing) if choice >> place & 1}
            mixed = assemble({name: (theirs if name in taken else ours)[name] for name in _PARTS})
            result = await library.chain.examine(mixed)
            assert result.outcome is Outcome.VIOLATED, taken
            count += 1
    assert count > 4_000
    assert library.chain.recomputed == before


async def test_batch_proofs_of_other_receipts_prove_nothing(library):
    for ours, theirs in permutations(library.answers, 2):
        swapped = replace(ours, batch_index=theirs.batch_index, path=theirs.path)
        if swapped != ours:
            assert await broken_rule(library.chain, swapped) == "batch"
    lengthened = replace(library.answers[0], path=(*library.answers[0].path, bytes(32)))
    assert await broken_rule(library.chain, lengthened) == "batch"
    assert await broken_rule(library.chain, replace(library.answers[0], batch_index=1 << 47)) == "batch"


# ---- replaying


@pytest.mark.parametrize("elsewhere", [protocol_domain(778, DOMAIN.contract), protocol_domain(777, Address(bytes(20)))])
async def test_an_answer_means_nothing_on_another_network(library, bench, elsewhere):
    other = NetworkTerms(sha256(b"another genesis"), elsewhere, bench.record_id)
    answer = library.answers[0]
    assert await broken_rule(library.chain, answer, terms=other) == "network"
    renamed = replace(answer, network=other.network_id)
    assert await broken_rule(library.chain, renamed, terms=other) == "request signature"


async def test_a_nonce_that_the_user_did_not_draw_is_named(library):
    assert await broken_rule(library.chain, library.answers[0], user_nonce=sha256(b"mine")) == "client nonce"


# ---- lies that buyer and provider, or a provider alone, sign


@pytest.mark.parametrize("counter", [1, 3, 5, 1 << 40])
async def test_a_provider_cannot_renumber_a_receipt(library, counter):
    answer = library.answers[1]
    receipt = replace(answer.opening.receipt, counter=counter)
    forged = with_opening(answer, receipt=receipt, receipt_signature=sign_struct(PROVIDER, DOMAIN, receipt))
    assert await broken_rule(library.chain, forged) == "batch"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"counter": 0}, "counter"),
        ({"state": State.CANCELLED}, "state"),
        ({"state": 9}, "state"),
        ({"level": Level.SIGNED}, "level"),
        ({"level": Level.SEEDED}, "level"),
        ({"level": Level.FINGERPRINTED}, "level"),
        ({"level": 9}, "level"),
        ({"engine_profile": sha256(b"another engine")}, "engine profile"),
        ({"fingerprint_root": sha256(b"a fingerprint")}, "fingerprint"),
        ({"channel_id": sha256(b"another channel")}, "channel"),
        ({"output_commitment": sha256(b"another output")}, "output"),
        ({"completion_tokens": 999}, "completion count"),
        ({"prompt_tokens": 999}, "prompt bill"),
        ({"cached_tokens": 999}, "prompt bill"),
        ({"fee": CREDIT // 4}, "fee"),
        ({"fee": 0}, "fee"),
        ({"charged_cumulative": 0}, "charged total"),
        ({"finish_reason": FinishReason.STOP_TOKEN}, "finish"),
        ({"finish_reason": FinishReason.CANCELLED}, "state"),
        ({"finish_reason": 9}, "finish"),
        ({"stop_index": 1}, "finish"),
    ],
)
async def test_a_receipt_that_lies_is_named(bench, library, changes, rule):
    if changes == {"finish_reason": FinishReason.CANCELLED}:
        changes = {"finish_reason": FinishReason.CANCELLED, "state": State.CANCELLED}
    assert await broken_rule_of_sale(bench, library.sales[0].lie(**changes)) == rule


async def test_an_engine_that_the_record_does_not_list_is_no_replayable_one(bench):
    body, profile = body_of("Hello."), sha256(b"unlisted")
    assert await broken_rule_of_sale(bench, sell(bench, body, profile=profile)) == "replay profile"
    seeded = await PaperChain(bench).examine_sale(sell(bench, body, profile=profile, level=Level.SEEDED))
    assert seeded.outcome is Outcome.VERIFIED


async def test_a_fee_above_the_orders_limit_is_named(bench, library):
    sale = replace(library.sales[0], request_changes={"max_fee": 1})
    assert await broken_rule_of_sale(bench, sale) == "fee"


async def test_an_order_anchored_nowhere_or_in_its_own_future_is_named(bench, library):
    unknown = replace(library.sales[0], request_changes={"anchor_block_hash": sha256(b"elsewhere")})
    assert await broken_rule_of_sale(bench, unknown) == "anchor"
    late = replace(library.sales[0], request_changes={"deadline_block": 40})
    assert await broken_rule_of_sale(bench, late) == "anchor"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"prompt_count": 999}, "prompt count"),
        ({"prompt_commitment": sha256(b"another prompt")}, "prompt"),
        ({"context_hash": sha256(b"another context")}, "context"),
        ({"client_digest": sha256(b"another body")}, "client digest"),
        ({"min_level": 1}, "minimum level"),
        ({"audit_policy": 1}, "audit policy"),
    ],
)
async def test_an_order_that_is_not_what_the_body_asks_is_named(bench, library, changes, rule):
    sale = replace(library.sales[0], ask_changes=changes)
    assert await broken_rule_of_sale(bench, sale) == rule


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature_milli": 0},
        {"top_k": 1},
        {"top_p_milli": 1},
        {"max_tokens": 8},
        {"stop_ids": (5,)},
        {"stop_strings": ("x",)},
    ],
)
async def test_other_parameters_than_the_bodys_are_named(bench, library, changes):
    ask = library.answers[0].opening.ask
    sale = replace(library.sales[0], ask_changes={"params": replace(ask.params, **changes)})
    chain = PaperChain(bench)
    opening = sale.sign()
    index = chain.publish(PROVIDER.address, [opening])
    result = await chain.examine(chain.answer(sale, opening, index, "any text"))
    assert result.outcome is Outcome.VIOLATED
    (name,) = changes
    assert f"parameters ordered are the body's; not so: {name} is " in result.headline


async def test_a_body_that_names_another_model_or_provider_is_named(bench):
    assert await broken_rule_of_sale(bench, sell(bench, body_of("Hi.", model="a-large-model"))) == "model name"
    others = body_of("Hi.", model="a-large-model", models=["another"])
    assert await broken_rule_of_sale(bench, sell(bench, others)) == "model name"
    choice = {"provider": "0x" + RIVAL.address.hex()}
    assert await broken_rule_of_sale(bench, sell(bench, body_of("Hi.", deaios=choice))) == "provider choice"
    choice = {"provider": "0x" + PROVIDER.address.hex()}
    good = await PaperChain(bench).examine_sale(sell(bench, body_of("Hi.", deaios=choice)))
    assert good.outcome is Outcome.VERIFIED


async def test_a_body_that_cannot_be_asked_is_named(bench, library):
    sale = library.sales[0]
    for body in (b"{}", b"[" * 100, body_of("Hi.", unknown=1), body_of("Hi.", max_tokens=4096)):
        assert await broken_rule_of_sale(bench, replace(sale, order=replace(sale.order, body=body))) == "body"


async def test_a_catalogue_that_tells_another_record_is_caught(bench, library):
    answer = library.answers[0]
    looser = replace(bench.record, thresholds=replace(bench.record.thresholds, margin_micro=50_000))
    assert record_id(encode_record(looser)) != bench.record_id
    chain = replace(library.chain, records={bench.record_id: looser})
    assert await broken_rule(chain, answer) == "model record"


@pytest.mark.parametrize("part", ["tokenizer_hash", "template_hash"])
async def test_files_that_are_not_the_records_are_caught(bench, part):
    record = replace(bench.record, **{part: sha256(b"another file")})
    foreign = replace(bench, record=record)
    sale = sell(foreign, body_of("Hi."))
    assert await broken_rule_of_sale(foreign, sale) == part.removesuffix("_hash")


# ---- outputs


async def test_an_empty_answer_is_no_answer(bench, library):
    assert await broken_rule_of_sale(bench, library.sales[0].lie(ids=())) == "finish"


async def test_a_truncated_answer_is_named(bench, library):
    sale = library.sales[0]
    assert sale.delivery.finish_reason is FinishReason.LENGTH
    ids = sale.delivery.output_ids[:20]
    assert await broken_rule_of_sale(bench, sale.lie(ids=ids)) == "finish"
    assert await broken_rule_of_sale(bench, sale.lie(ids=ids, finish=FinishReason.STOP_TOKEN)) == "finish"


async def test_an_answer_that_goes_on_after_its_end_is_named(bench, library):
    sale, end = library.sales[0], min(bench.tokenizer.end_ids)
    ids = (*sale.delivery.output_ids[:10], end, *sale.delivery.output_ids[11:])
    assert await broken_rule_of_sale(bench, sale.lie(ids=ids)) == "finish"
    assert await broken_rule_of_sale(bench, sale.lie(ids=ids[:10] + ids[11:])) == "finish"


async def test_a_token_that_does_not_exist_is_named(bench, library):
    ids = (*library.sales[0].delivery.output_ids[:39], 0xFFFFFFFF)
    assert await broken_rule_of_sale(bench, library.sales[0].lie(ids=ids), text="x") == "finish"


async def test_a_token_that_the_model_did_not_give_is_named_with_position_and_margin(bench, library):
    ids = list(library.sales[0].delivery.output_ids)
    ids[17] = ids[17] + 1 if ids[17] + 1 not in bench.tokenizer.end_ids else ids[17] + 2
    chain = PaperChain(bench)
    result = await chain.examine_sale(library.sales[0].lie(ids=tuple(ids)))
    assert result.outcome is Outcome.VIOLATED
    assert result.headline.startswith("violation: tokens: token 17, rule seeded: margin ")
    assert result.report.violations[0].margin > 0.02


async def test_a_text_that_the_tokens_do_not_say_is_named(library):
    answer = library.answers[0]
    forged = replace(answer, text=answer.text[:5] + "not " + answer.text[5:])
    result = await library.chain.examine(forged)
    assert result.headline == "violation: text: the text is not what the output ids say, from character 5 on"


async def test_who_is_named_signed(library):
    """The statement about the order says whose key it was."""
    result = await library.chain.examine(library.answers[0])
    (order,) = [fact for fact in result.facts if fact.rule == "request signature"]
    assert BUYER.address.hex() in order.says.lower()
