"""Answers by other doors than chat, and one of several answers: they verify, and what names them is bound."""

import json

import pytest
from alignment_mutations import dump, get, leaves_of, other_values, put
from alignment_purchases import PaperChain, body_of, sell

from deaios.alignment.answer import InvalidAnswer, decode_answer, encode_answer
from deaios.alignment.facts import Head, Outcome
from deaios.market.question import Api, Message, Part

MODEL = "smollm2-135m-instruct"


def body(**fields):
    return json.dumps({"model": MODEL, "temperature": 0.8} | fields).encode()


RAW_TEXT = body(prompt=["The sea is", "Once upon a <|im_end|> time"], n=2, max_tokens=12)
RAW_IDS = body(prompt=[504, 2000, 314], max_tokens=12)
HISTORY = (Message("user", "My name is Ada."), Message("assistant", "Hello, Ada!"))
PARTS = {
    "raw text": (RAW_TEXT, Part(Api.COMPLETIONS, 3)),
    "raw ids": (RAW_IDS, Part(Api.COMPLETIONS)),
    "second of two": (body_of("Say something.", n=2, max_tokens=12), Part(Api.CHAT, 1)),
    "response": (
        body(input="What is my name?", instructions="Be brief.", previous_response_id="resp_1", max_output_tokens=12),
        Part(Api.RESPONSES, 0, HISTORY),
    ),
    "message": (
        body(system="Be brief.", messages=[{"role": "user", "content": "Hi."}], max_tokens=12, stop_sequences=["zz"]),
        Part(Api.MESSAGES),
    ),
}


@pytest.fixture(scope="module")
def sold(bench):
    """An answer per part, on one chain."""
    chain = PaperChain(bench)
    answers = {}
    for name, (asked, part) in PARTS.items():
        sale = sell(bench, asked, name=name, part=part)
        opening = sale.sign()
        answers[name] = chain.answer(sale, opening, chain.publish(opening.request.provider, [opening]))
    return chain, answers


@pytest.mark.parametrize("name", PARTS)
async def test_an_honest_part_verifies_and_survives_its_file(sold, name):
    chain, answers = sold
    answer = decode_answer(encode_answer(answers[name]))
    assert answer == answers[name]
    result = await chain.examine(answer)
    assert result.outcome is Outcome.VERIFIED, result.headline
    by_gateway = [fact.rule for fact in result.facts if fact.head is Head.GATEWAY]
    assert ("history" in by_gateway) == bool(answer.part.history)
    context = next(fact.says for fact in result.facts if fact.rule == "context")
    assert ("raw prompt" in context) == name.startswith("raw")


@pytest.mark.parametrize("name", PARTS)
async def test_every_leaf_of_a_part_is_bound(sold, name):
    chain, answers = sold
    file = json.loads(encode_answer(answers[name]))
    before = chain.recomputed
    for path in leaves_of(file["part"]):
        same, strange = other_values(get(file["part"], path))
        for value in (*same, *strange):
            changed = dump(put(file, ("part", *path), value))
            try:
                answer = decode_answer(changed)
            except InvalidAnswer:
                continue
            result = await chain.examine(answer)
            assert result.outcome is Outcome.VIOLATED, (path, value)
            broken = next(fact.rule for fact in result.facts if not fact.holds)
            assert broken == ("context" if path[0] == "history" else "client digest")
    assert chain.recomputed == before


async def test_a_part_belongs_to_its_door_and_its_turns(sold):
    chain, answers = sold
    file = json.loads(encode_answer(answers["response"]))
    for part in ({"api": "chat", "index": 0, "history": []}, {"api": "responses", "index": 0}, "chat"):
        with pytest.raises(InvalidAnswer, match="part"):
            decode_answer(dump(file | {"part": part}))
    with pytest.raises(InvalidAnswer, match="part"):
        decode_answer(dump({name: value for name, value in file.items() if name != "part"}))
    forgotten = file | {"part": file["part"] | {"history": []}}
    result = await chain.examine(decode_answer(dump(forgotten)))
    assert result.outcome is Outcome.VIOLATED
    assert "context" in result.headline


async def test_a_chat_body_sold_as_a_message_is_not_what_was_bought(bench):
    asked = body(messages=[{"role": "user", "content": "Hi."}], max_tokens=12)
    chain = PaperChain(bench)
    sale = sell(bench, asked, part=Part(Api.MESSAGES))
    opening = sale.sign()
    answer = chain.answer(sale, opening, chain.publish(opening.request.provider, [opening]))
    file = json.loads(encode_answer(answer)) | {"version": 1}
    del file["part"]
    result = await chain.examine(decode_answer(dump(file)))
    assert "violation: client digest" in result.headline


async def test_text_in_a_raw_prompt_never_becomes_a_special_token(bench):
    ids = bench.render(RAW_TEXT, Part(Api.COMPLETIONS, 2))
    assert not set(ids) & set(bench.tokenizer.special_ids.values())
    assert bench.tokenizer.decode(ids) == "Once upon a <|im_end|> time"
