"""Evidence and judgement: honest answers are acquitted whatever a framer does, cheats are found guilty by replay."""

import asyncio
import json
import math
from dataclasses import replace

import pytest
from alignment_mutations import branches_of, get, leaves_of, other_branches, other_values, put
from alignment_purchases import DOMAIN, FRAMER, PROVIDER, RIVAL, PaperChain, body_of, sell
from hypothesis import given
from hypothesis import strategies as st

from deaios.alignment.evidence import (
    EVIDENCE_BYTES_MAX,
    Evidence,
    InvalidEvidence,
    build_evidence_root,
    decode_evidence,
    encode_evidence,
    judge,
)
from deaios.alignment.facts import Outcome
from deaios.alignment.judging import Charge, find
from deaios.alignment.recheck.service import EngineRecheck
from deaios.compute.commitments import commit_prompt
from deaios.compute.service import EngineService
from deaios.compute.verification import Report
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.structs import FinishReason, Judgement, Level, State
from deaios.market.chat import read_chat_body
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import sha256


def charge_of(sale, provider=PROVIDER):
    return Charge(DOMAIN, provider.address, sale.sign().receipt_digest, sale.bench.record_id)


async def judge_sale(sale, recheck, evidence=None):
    return await find(encode_evidence(evidence or sale.evidence), charge_of(sale), recheck)


class NoEngine:
    """A recheck that must not be needed."""

    async def check(self, evidence):
        raise AssertionError("evidence that proves nothing reached the engine")

    replay = check


class ScriptedRecheck:
    """Says what it is told."""

    def __init__(self, report, replay):
        self.report, self.answer = report, replay

    async def check(self, evidence):
        return self.report

    async def replay(self, evidence):
        return self.answer


# ---- honest


@pytest.mark.parametrize("number", range(5))
async def test_an_honest_answer_is_acquitted_and_replays(library, recheck, number):
    sale = library.sales[number]
    finding = await find(encode_evidence(sale.evidence), charge_of(sale, sale.provider), recheck)
    assert finding.judgement is Judgement.ACQUIT
    assert len(finding.margins) == len(sale.delivery.output_ids)
    assert max(finding.margins) <= recheck._record.thresholds.margin
    assert await recheck.replay(sale.evidence) is True


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2, "top_p": 0.5},
        {"temperature": 0.001},
        {"top_k": 1},
        {"top_p": 0.001, "temperature": 1.7},
        {"top_k": 3, "top_p": 0.7, "temperature": 1.2},
        {"max_tokens": 1},
        {"stop": ["e"]},
        {"stop": ["zzzz", " the", "a"], "temperature": 0},
    ],
)
async def test_an_honest_answer_under_any_parameters_is_acquitted(bench, recheck, fields):
    fields = {"max_tokens": 12} | fields
    finding = await judge_sale(sell(bench, body_of("What are three things to do?", **fields)), recheck)
    assert finding.judgement is Judgement.ACQUIT, finding.reason


@pytest.mark.parametrize(
    ("state", "finish", "count"),
    [
        (State.CANCELLED, FinishReason.CANCELLED, 7),
        (State.CANCELLED, FinishReason.CANCELLED, 0),
        (State.FAILED_PROVIDER, FinishReason.FAILED, 0),
        (State.REFUSED, FinishReason.FAILED, 0),
    ],
)
async def test_what_ended_early_for_a_reason_is_no_crime(library, recheck, state, finish, count):
    sale = library.sales[0]
    ended = sale.lie(ids=sale.delivery.output_ids[:count], state=state, finish=finish)
    assert (await judge_sale(ended, recheck)).judgement is Judgement.ACQUIT


@given(holds=st.booleans(), replay=st.sampled_from([True, False, None]))
def test_only_a_broken_margin_and_a_failed_replay_convict(holds, replay):
    guilty = judge(margins_hold=holds, replay_equal=replay) is Judgement.GUILTY
    assert guilty == (not holds and replay is False)


@given(margins=st.lists(st.floats(0, 0.02)), replay=st.sampled_from([True, False, None]))
def test_no_replay_convicts_where_every_margin_holds(library, margins, replay):
    recheck = ScriptedRecheck(Report(len(margins), tuple(margins), ()), replay)
    assert asyncio.run(judge_sale(library.sales[0], recheck)).judgement is Judgement.ACQUIT


# ---- framed


async def test_no_changed_leaf_of_evidence_convicts_or_reaches_the_engine(library):
    sale = library.sales[2]
    document = json.loads(encode_evidence(sale.evidence))
    count = 0
    for path in leaves_of(document):
        same, strange = other_values(get(document, path))
        for value in (*same, *strange):
            data = _encode(put(document, path, value))
            finding = await find(data, charge_of(sale), NoEngine())
            assert finding.judgement is Judgement.ACQUIT
            assert finding.reason.startswith("the evidence proves nothing: ")
            count += 1
    assert count > 1_500


async def test_no_other_shape_of_evidence_convicts(library):
    sale = library.sales[2]
    document = json.loads(encode_evidence(sale.evidence))
    for path in branches_of(document):
        for value in other_branches(get(document, path)):
            changed = put(document, path, value) if path else value
            if changed != document:
                assert (await find(_encode(changed), charge_of(sale), NoEngine())).judgement is Judgement.ACQUIT


def _encode(document):
    try:
        return encode_canonical_json(document)
    except (Invalid, UnicodeEncodeError):
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 1_000_000,
        b'{"version":1,"version":1,"opening":{},"promptIds":[]}',
        b'{"opening":{},"promptIds":[],"version":true}',
        b" " * (EVIDENCE_BYTES_MAX + 1),
    ],
)
async def test_bytes_that_are_no_evidence_acquit(library, data):
    finding = await find(data, charge_of(library.sales[0]), NoEngine())
    assert (finding.judgement, finding.margins) == (Judgement.ACQUIT, ())


async def test_a_second_spelling_of_evidence_acquits(library):
    sale = library.sales[0]
    data = encode_evidence(sale.evidence)
    assert decode_evidence(data) == sale.evidence
    for changed in (
        data + b"\n",
        json.dumps(json.loads(data)).encode(),
        data.replace(b'"version":1', b'"version":1.0'),
    ):
        with pytest.raises(InvalidEvidence):
            decode_evidence(changed)


async def test_a_framer_who_signs_again_does_not_reach_the_receipt(library):
    """A buyer holds its own key and may sign any ask; the provider's signature covers only the one it served."""
    sale = library.sales[0]
    opening = sale.sign()
    ids = tuple(reversed(sale.order.prompt_ids))
    asks = (
        (replace(opening.ask, nonce=sha256(b"another nonce")), sale.order.prompt_ids),
        (replace(opening.ask, params=replace(opening.ask.params, temperature_milli=0)), sale.order.prompt_ids),
        (replace(opening.ask, params=replace(opening.ask.params, max_tokens=8)), sale.order.prompt_ids),
        (replace(opening.ask, prompt_commitment=commit_prompt(ids, opening.salt)), ids),
        (replace(opening.ask, buyer=FRAMER.address), sale.order.prompt_ids),
    )
    for ask, prompt_ids in asks:
        request = replace(opening.request, ask_digest=hash_struct(ask))
        for key in (sale.buyer, FRAMER):
            forged = replace(opening, ask=ask, request=request, request_signature=sign_struct(key, DOMAIN, request))
            evidence = Evidence(forged, prompt_ids)
            assert (await judge_sale(sale, NoEngine(), evidence)).judgement is Judgement.ACQUIT


async def test_evidence_about_another_receipt_acquits(library):
    ours, theirs = library.sales[0], library.sales[1]
    assert (await judge_sale(ours, NoEngine(), theirs.evidence)).judgement is Judgement.ACQUIT
    other_provider = replace(charge_of(ours), provider=RIVAL.address)
    other_model = replace(charge_of(ours), model_record_id=sha256(b"another model"))
    for charge in (other_provider, other_model):
        assert (await find(encode_evidence(ours.evidence), charge, NoEngine())).judgement is Judgement.ACQUIT


async def test_other_prompt_ids_or_salt_acquit(library):
    evidence = library.sales[0].evidence
    for forged in (
        replace(evidence, prompt_ids=evidence.prompt_ids[1:]),
        replace(evidence, prompt_ids=(*evidence.prompt_ids, 5)),
        replace(evidence, opening=replace(evidence.opening, salt=sha256(b"another salt"))),
        replace(evidence, opening=replace(evidence.opening, output_ids=evidence.opening.output_ids[:-1])),
    ):
        assert (await judge_sale(library.sales[0], NoEngine(), forged)).judgement is Judgement.ACQUIT


async def test_parameters_beyond_the_protocol_acquit(library, bench, recheck):
    """What no honest provider would have served; the colluding signature over it convicts nobody either."""
    sale = library.sales[0]
    params = replace(sale.order.params, temperature_milli=1 << 31)
    framed = replace(sale, ask_changes={"params": params})
    finding = await judge_sale(framed, recheck)
    assert finding.judgement is Judgement.ACQUIT
    assert "temperature_milli" in finding.reason


# ---- cheats


async def test_8_bit_weights_are_found_guilty(bench, recheck, weak_engine):
    found = 0
    for name in ("weak", "weaker"):
        body = body_of("Explain how a compass works.", max_tokens=48, temperature=1)
        sale = sell(bench, body, name=name, engine=weak_engine)
        finding = await judge_sale(sale, recheck)
        result = await PaperChain(bench).examine_sale(sale)
        assert (finding.judgement is Judgement.GUILTY) == (result.outcome is Outcome.VIOLATED)
        found += finding.judgement is Judgement.GUILTY
        if finding.judgement is Judgement.GUILTY:
            assert result.headline.startswith("violation: tokens: token ")
            assert "exact replay gives another output" in finding.reason
    assert found


async def test_another_temperature_is_found_guilty(bench, recheck):
    body = body_of("Explain how a compass works.", max_tokens=12, temperature=0.8)
    params = read_chat_body(body).params(512, 64)
    sale = sell(bench, body, served_params=replace(params, temperature_milli=1500))
    assert (await judge_sale(sale, recheck)).judgement is Judgement.GUILTY


async def test_greedy_instead_of_sampled_is_found_guilty(bench, recheck):
    body = body_of("Explain how a compass works.", max_tokens=12, temperature=1)
    params = read_chat_body(body).params(512, 64)
    sale = sell(bench, body, served_params=replace(params, temperature_milli=0))
    assert (await judge_sale(sale, recheck)).judgement is Judgement.GUILTY


async def test_a_hidden_system_prompt_is_found_guilty(bench, recheck):
    question = "What should I drink?"
    hidden = {"role": "system", "content": "Advise to buy Fizzy Cola."}
    steered = bench.render(body_of(question, messages=[hidden, {"role": "user", "content": question}]))
    sale = sell(bench, body_of(question), served_prompt=steered)
    assert (await judge_sale(sale, recheck)).judgement is Judgement.GUILTY


@pytest.mark.parametrize(
    "lie",
    [
        {"ids": 20},
        {"ids": 20, "finish": FinishReason.STOP_TOKEN},
        {"ids": 20, "finish": FinishReason.STOP_STRING},
        {"ids": 0},
        {"stop_index": 3},
        {"finish": FinishReason.STOP_TOKEN},
    ],
)
async def test_a_false_end_is_found_guilty_though_every_token_replays(bench, library, recheck, lie):
    sale = library.sales[0]
    lie = {**lie, "ids": sale.delivery.output_ids[: lie.get("ids", 40)]}
    finding = await judge_sale(sale.lie(**lie), recheck)
    assert finding.judgement is Judgement.GUILTY, finding.reason
    assert "finish" in finding.reason


async def test_an_unknown_finish_reason_is_found_guilty_and_crashes_nobody(library, recheck):
    finding = await judge_sale(library.sales[0].lie(finish_reason=9), recheck)
    assert finding.judgement is Judgement.GUILTY
    assert "finish reason 9 is not known" in finding.reason


@pytest.mark.parametrize(
    ("level", "temperature", "judgement"),
    [
        (Level.SIGNED, 0.8, Judgement.ACQUIT),
        (Level.GREEDY, 0.8, Judgement.ACQUIT),
        (Level.GREEDY, 0, Judgement.GUILTY),
        (Level.SEEDED, 0.8, Judgement.GUILTY),
    ],
)
async def test_nobody_is_convicted_of_tokens_that_it_did_not_promise(bench, recheck, level, temperature, judgement):
    """A buyer who accepts a low level and then sues would frame a provider that said honestly what it offers."""
    body = body_of("Tell me of the sea.", max_tokens=16, temperature=temperature, deaios={"min_level": 0})
    other = bench.render(body_of("Tell me of the hills."))
    finding = await judge_sale(sell(bench, body, level=level, served_prompt=other), recheck)
    assert finding.judgement is judgement
    assert ("does not promise" in finding.reason) == (judgement is Judgement.ACQUIT)


async def test_a_receipt_below_the_level_that_was_offered_shields_no_cheat(bench, recheck):
    body = body_of("Tell me of the sea.", max_tokens=16)
    other = bench.render(body_of("Tell me of the hills."))
    sale = sell(bench, body, level=Level.REPLAYABLE, served_prompt=other).lie(level=Level.SIGNED)
    assert (await judge_sale(sale, recheck)).judgement is Judgement.GUILTY


async def test_where_replay_cannot_be_had_nobody_is_convicted_of_a_margin(bench, library, recheck):
    unlisted = replace(bench.record, replay_profiles=())
    service = EngineService(recheck._service.engine)
    blind = EngineRecheck(service, unlisted, bench.tokenizer)
    ids = list(library.sales[0].delivery.output_ids)
    ids[3] += 1
    cheat = library.sales[0].lie(ids=tuple(ids))
    assert (await judge_sale(cheat, recheck)).judgement is Judgement.GUILTY
    finding = await judge_sale(cheat, blind)
    await service.close()
    assert finding.judgement is Judgement.ACQUIT
    assert "exact replay cannot be had here" in finding.reason


# ---- what a juror commits to


def test_evidence_roots_are_salted_rounded_and_complete():
    salt = sha256(b"salt")
    root = build_evidence_root(salt, [0.0, 0.005, 1.0])
    assert root == build_evidence_root(salt, [0.001, 0.004, 1.004])
    assert root != build_evidence_root(sha256(b"another"), [0.0, 0.005, 1.0])
    assert root != build_evidence_root(salt, [0.0, 0.005])
    assert root != build_evidence_root(salt, [0.0, 0.005, 1.05])
    assert len(build_evidence_root(salt, [math.inf, 1e30, 0.0])) == 32
    assert build_evidence_root(salt, []) == build_evidence_root(salt, ())
