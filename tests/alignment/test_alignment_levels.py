"""Levels 3 and 4 as they are checked: fingerprints and exact replay, and the cheats that lose to them."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
from alignment_purchases import PaperChain, body_of, sell
from test_alignment_jury import judge_sale

from deaios.alignment.answer import InvalidAnswer, decode_answer, encode_answer
from deaios.alignment.facts import Outcome
from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.expansion import requantise_q8_0
from deaios.compute.fingerprints import LEAF_BYTES
from deaios.compute.verification import Replay
from deaios.ledger.structs import Judgement, Level
from deaios.market.receipts import InvalidReceipt, validate_receipt
from deaios.primitives.hashing import ZERO32, sha256

QUESTION = "Name three rivers."


def ordered(level, **fields):
    return body_of(QUESTION, **{"max_tokens": 6, "deaios": {"min_level": int(level)}} | fields)


@pytest.fixture(scope="module")
def printed(bench):
    return sell(bench, ordered(3))


@pytest.fixture(scope="module")
def exact(bench):
    return sell(bench, ordered(4))


def rules(result):
    return {fact.rule for fact in result.facts}


async def test_level_3_is_sold_by_engines_that_no_record_lists(bench, printed):
    for sale in (printed, sell(bench, ordered(3), level=Level.FINGERPRINTED, profile=sha256(b"unlisted"))):
        result = await PaperChain(bench).examine_sale(sale)
        assert result.outcome is Outcome.VERIFIED, result.headline
        assert "fingerprints" in rules(result)
        assert "replay" not in rules(result)
        assert "largest fingerprint distance" in result.headline


async def test_level_4_is_replayed_where_the_engine_is_the_receipts(bench, exact):
    result = await PaperChain(bench).examine_sale(exact)
    assert result.headline.endswith("replayed exactly"), result.headline
    assert {"fingerprints", "replay"} <= rules(result)
    profiles = (*bench.record.replay_profiles, sha256(b"another listed engine"))
    elsewhere = replace(bench, record=replace(bench.record, replay_profiles=profiles))
    other = sell(elsewhere, ordered(4), profile=sha256(b"another listed engine"))
    result = await PaperChain(elsewhere).examine_sale(other)
    assert result.outcome is Outcome.VERIFIED
    assert "not replayed" in result.headline
    assert "replay" not in rules(result)


async def test_an_answer_with_fingerprints_survives_its_file_and_no_byte_of_them_changes(bench, printed):
    chain = PaperChain(bench)
    opening = printed.sign()
    answer = chain.answer(printed, opening, chain.publish(opening.request.provider, [opening]))
    data = encode_answer(answer)
    assert decode_answer(data) == answer
    document = json.loads(data)
    honest = document["opening"]["fingerprints"]
    for said in (honest[:-2], honest + "00", "0x", "", None, honest.upper(), "0x" + "00" * (len(honest) // 2 - 1)):
        document["opening"]["fingerprints"] = said
        with pytest.raises(InvalidAnswer):
            decode_answer(json.dumps(document).encode())
    document["opening"]["fingerprints"] = honest[:10] + ("11" if honest[10:12] != "11" else "12") + honest[12:]
    result = await chain.examine(decode_answer(json.dumps(document).encode()))
    assert result.headline.startswith("violation: fingerprint: not so")
    del document["opening"]["fingerprints"]
    result = await chain.examine(decode_answer(json.dumps(document).encode()))
    assert result.outcome is Outcome.VIOLATED
    assert "0 bytes of fingerprints" in result.headline
    assert chain.recomputed == 0


def test_a_buyer_pays_for_no_receipt_without_what_it_ordered(bench, printed):
    domain = bench.terms.domain
    validate_receipt(domain, printed.sign())
    for lie in (printed.lie(fingerprint_root=ZERO32), printed.lie(fingerprint_root=sha256(b"another"))):
        with pytest.raises(InvalidReceipt, match="fingerprint root"):
            validate_receipt(domain, lie.sign())
    for data in (b"", printed.delivery.fingerprints[:-LEAF_BYTES]):
        with pytest.raises(InvalidReceipt, match="bytes of fingerprints"):
            validate_receipt(domain, replace(printed.sign(), fingerprints=data))
    plain = sell(bench, ordered(2))
    with pytest.raises(InvalidReceipt, match="for an ask of level 2"):
        validate_receipt(domain, replace(plain.sign(), fingerprints=printed.delivery.fingerprints))


# ---- cheats


async def test_8_bit_weights_lose_at_temperature_0_with_every_token_right(bench, recheck, model_files, tmp_path):
    path = tmp_path / "q8.gguf"
    requantise_q8_0(model_files.served, path)
    profile = bench.engine.profile.digest()
    with closing(LlamaEngine(path, context_tokens=256)) as engine:
        sales = [
            sell(bench, ordered(level, temperature=0, max_tokens=1), engine=engine, profile=profile) for level in (2, 3)
        ]
    unseen, seen = [await PaperChain(bench).examine_sale(sale) for sale in sales]
    assert unseen.outcome is Outcome.VERIFIED
    assert seen.headline.startswith("violation: fingerprints: token 0, rule fingerprint: distance ")
    assert (await judge_sale(sales[0], recheck)).judgement is Judgement.ACQUIT
    finding = await judge_sale(sales[1], recheck)
    assert finding.judgement is Judgement.GUILTY, finding.reason
    assert "rule fingerprint" in finding.reason


async def test_honest_fingerprints_are_acquitted(printed, exact, recheck):
    for sale in (printed, exact):
        assert (await judge_sale(sale, recheck)).judgement is Judgement.ACQUIT
        assert await recheck.replay(sale.evidence) is True


async def test_evidence_without_the_leaves_is_judged_by_its_tokens(bench, printed, recheck):
    """A provider that signs a root and hides the leaves shields no wrong token, and loses nothing by hiding alone."""
    other = sell(bench, ordered(3), served_prompt=bench.render(body_of("Tell me of the hills.")))
    for sale, judgement in ((printed, Judgement.ACQUIT), (other, Judgement.GUILTY)):
        hidden = replace(sale.evidence, opening=replace(sale.evidence.opening, fingerprints=b""))
        assert (await judge_sale(sale, recheck, hidden)).judgement is judgement


async def test_a_changed_token_at_level_4_is_named_by_margin_and_replay(bench, exact):
    ids = list(exact.delivery.output_ids)
    ids[-1] = (ids[-1] + 1) % bench.tokenizer.vocabulary_size
    result = await PaperChain(bench).examine_sale(exact.lie(ids=tuple(ids)))
    assert result.outcome is Outcome.VIOLATED
    assert result.headline.endswith(f"exact replay gives something else at token {len(ids) - 1}")


async def test_a_replay_that_differs_within_every_margin_accuses_nobody(bench, exact):
    """What level 4 was ordered for is not shown, and another processor may be why."""

    class Otherwise(PaperChain):
        async def recompute(self, answer, record, prompt_ids):
            return replace(await super().recompute(answer, record, prompt_ids), replay=Replay(False, 5))

    result = await Otherwise(bench).examine_sale(exact)
    assert result.outcome is Outcome.UNCHECKED
    assert result.headline.startswith("not replayable: exact replay on the engine that the receipt names")
    assert "something else at token 5" in result.headline
    assert "replay" not in rules(result)
