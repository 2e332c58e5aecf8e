"""Answers held to a schema or to tools verify like any other; one changed byte of it, or another mask, is named."""

import functools
import json
from dataclasses import replace

import jsonschema
import pytest
from alignment_purchases import DOMAIN, PROVIDER, PaperChain, body_of, sell

from deaios.alignment.answer import InvalidAnswer, decode_answer, encode_answer
from deaios.alignment.evidence import Evidence, InvalidEvidence, decode_evidence, encode_evidence, validate_evidence
from deaios.alignment.facts import Outcome
from deaios.alignment.judging import Charge, find
from deaios.compute.constraint import Constraint, JsonSchema, decode_constraint, json_object
from deaios.compute.masking import UnavailableMasker
from deaios.compute.sampling import Rule
from deaios.ledger.structs import FinishReason, Judgement
from deaios.market.receipts import validate_opening
from deaios.primitives.hashing import ZERO32

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["colour", "count", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
QUESTION = "Describe one ball."


def schema_body(**fields):
    return body_of(QUESTION, response_format=FORMAT, max_tokens=80, **fields)


def tool_body(**fields):
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60} | fields
    return body_of("What is the weather in Oslo?", **fields)


MAKERS = {
    "schema": lambda bench: sell(bench, schema_body()),
    "greedy": lambda bench: sell(bench, schema_body(temperature=0)),
    "call": lambda bench: sell(bench, tool_body()),
    "unmasked": lambda bench: sell(bench, schema_body(), served_constraint=b""),
}


@pytest.fixture(scope="module")
def sold(bench):
    """Sales by name, each made once for all tests."""
    return functools.cache(lambda name: MAKERS[name](bench))


def charge_of(sale):
    return Charge(DOMAIN, PROVIDER.address, sale.sign().receipt_digest, sale.bench.record_id)


def saved(chain, sale):
    opening = sale.sign()
    return chain.answer(sale, opening, chain.publish(PROVIDER.address, [opening]))


@pytest.mark.parametrize("kind", ["schema", "call", "greedy"])
async def test_a_constrained_answer_verifies_from_its_file(bench, sold, kind):
    sale = sold(kind)
    chain = PaperChain(bench)
    answer = decode_answer(encode_answer(saved(chain, sale)))
    assert sale.delivery.finish_reason is FinishReason.STOP_TOKEN
    result = await chain.examine(answer)
    assert result.outcome is Outcome.VERIFIED, result.headline
    assert result.report.margin_max <= 0.02
    validate_opening(DOMAIN, answer.opening)
    text = answer.text
    if kind != "call":
        jsonschema.validate(json.loads(text), SCHEMA)
        assert list(json.loads(text)) == ["colour", "count", "tags"]
    else:
        assert text.startswith('<tool_call>\n{"name": "get_weather", "arguments": ')


async def test_a_changed_byte_of_the_schema_is_named_wherever_it_is(bench, sold):
    sale = sold("schema")
    chain = PaperChain(bench)
    answer = saved(chain, sale)
    file = json.loads(encode_answer(answer))
    in_body = {**file, "body": file["body"].replace('"maximum": 99', '"maximum": 98').replace(":99", ":98")}
    assert in_body["body"] != file["body"]
    result = await chain.examine(decode_answer(json.dumps(in_body).encode()))
    assert (result.outcome, result.facts[-1].rule) == (Outcome.VIOLATED, "client digest")
    for constraint in (file["opening"]["constraint"].replace(":99", ":98"), json_object().encode().decode()):
        changed = {**file, "opening": {**file["opening"], "constraint": constraint}}
        result = await chain.examine(decode_answer(json.dumps(changed).encode()))
        assert (result.outcome, result.facts[-1].rule) == (Outcome.VIOLATED, "constraint")
    without = {**file, "opening": {key: value for key, value in file["opening"].items() if key != "constraint"}}
    result = await chain.examine(decode_answer(json.dumps(without).encode()))
    assert (result.outcome, result.facts[-1].rule) == (Outcome.VIOLATED, "constraint")
    for wrong in (7, None, "x" * (1 << 17)):
        with pytest.raises(InvalidAnswer, match="constraint"):
            decode_answer(json.dumps({**file, "opening": {**file["opening"], "constraint": wrong}}).encode())


async def test_an_order_under_another_schema_than_the_bodys_is_named(bench, sold):
    sale = sold("schema")
    other = replace(sale.order, constraint=json_object().encode())
    params = replace(sale.order.params, mask_hash=json_object().mask_hash())
    opened = replace(sale, order=other, ask_changes={"params": params})
    result = await PaperChain(bench).examine_sale(opened)
    assert result.outcome is Outcome.VIOLATED
    assert "parameters ordered are the body's; not so: mask_hash is " in result.headline


async def test_who_ignores_the_mask_is_caught_and_convicted(bench, recheck, sold):
    sale = sold("unmasked")
    report = await recheck.check(sale.evidence)
    assert report.violations[0].rule is Rule.MASK
    assert "the constraint forbids id" in report.violations[0].detail
    finding = await find(encode_evidence(sale.evidence), charge_of(sale), recheck)
    assert finding.judgement is Judgement.GUILTY
    result = await PaperChain(bench).examine_sale(sale)
    assert (result.outcome, result.facts[-1].rule) == (Outcome.VIOLATED, "tokens")


async def test_who_masks_harder_than_ordered_is_caught_and_convicted(bench, recheck):
    narrower = {**SCHEMA, "properties": {**SCHEMA["properties"], "count": {"const": 0}, "colour": {"const": "blue"}}}
    constraint = Constraint(JsonSchema(json.dumps(narrower, separators=(",", ":")))).encode()
    for number in range(4):  # one that would have said the same anyway is no cheat's
        sale = sell(bench, schema_body(), name=f"harder {number}", served_constraint=constraint)
        report = await recheck.check(sale.evidence)
        if not report.ok:
            break
    assert {item.rule for item in report.violations} == {Rule.SEEDED}
    finding = await find(encode_evidence(sale.evidence), charge_of(sale), recheck)
    assert finding.judgement is Judgement.GUILTY


@pytest.mark.parametrize("kind", ["schema", "call"])
async def test_a_jury_acquits_an_honest_constrained_answer(recheck, sold, kind):
    sale = sold(kind)
    finding = await find(encode_evidence(sale.evidence), charge_of(sale), recheck)
    assert finding.judgement is Judgement.ACQUIT
    assert "tokens hold" in finding.reason
    assert await recheck.replay(sale.evidence) is True


async def test_evidence_with_another_constraint_proves_nothing(bench, recheck, sold):
    sale = sold("unmasked")
    opening = sale.sign()
    for constraint in (None, json_object().encode()):
        evidence = Evidence(replace(opening, constraint=constraint), sale.order.prompt_ids)
        assert decode_evidence(encode_evidence(evidence)) == evidence
        with pytest.raises(InvalidEvidence, match="mask hash"):
            validate_evidence(evidence, DOMAIN, PROVIDER.address, opening.receipt_digest, bench.record_id)
        finding = await find(encode_evidence(evidence), charge_of(sale), recheck)
        assert finding.judgement is Judgement.ACQUIT


async def test_an_answer_of_another_masker_is_not_judged(bench, recheck, sold):
    sale = sold("schema")
    older = replace(decode_constraint(sale.order.constraint), masker="llguidance 1.0.0")
    params = replace(sale.order.params, mask_hash=older.mask_hash())
    foreign = replace(sale, order=replace(sale.order, constraint=older.encode()), ask_changes={"params": params})
    with pytest.raises(UnavailableMasker, match=r"needs llguidance 1\.0\.0"):
        await recheck.check(foreign.evidence)
    with pytest.raises(UnavailableMasker):
        await find(encode_evidence(foreign.evidence), charge_of(foreign), recheck)
    with pytest.raises(UnavailableMasker):
        await PaperChain(bench).examine_sale(foreign)


async def test_a_mask_hash_without_a_constraint_is_named(bench):
    sale = sell(bench, body_of("Hi.", max_tokens=4))
    params = replace(sale.order.params, mask_hash=json_object().mask_hash())
    result = await PaperChain(bench).examine_sale(replace(sale, ask_changes={"params": params}))
    assert (result.outcome, result.facts[-1].rule) == (Outcome.VIOLATED, "constraint")
    assert sale.order.params.mask_hash == ZERO32
