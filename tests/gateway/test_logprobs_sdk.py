"""Log probabilities as the unmodified OpenAI SDK reads them: one entry for every token that the text shows."""

import math

import openai
import pytest

from deaios.ledger.structs import FinishReason

HELLO = [{"role": "user", "content": "hello"}]
TEXT = "Hello, wörld!"
LOGPROB = -0.818147


def client_of(world, **options):
    return openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key, **options)


async def ask(client, **options):
    return await client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, **options)


async def stream(client, **options):
    return [chunk async for chunk in await ask(client, stream=True, **options)]


def bytes_of(logprobs):
    return b"".join(bytes(entry.bytes) for entry in logprobs.content)


@pytest.mark.parametrize("count", [0, 2, 20])
async def test_a_whole_answer_has_an_entry_for_every_token_of_its_text(world, count):
    async with client_of(world) as client:
        answer = await ask(client, top_logprobs=count)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].message.content == TEXT
    assert bytes_of(logprobs) == TEXT.encode()
    assert answer.usage.completion_tokens == len(logprobs.content) + 1
    assert {entry.logprob for entry in logprobs.content} == {LOGPROB}
    assert "".join(entry.token for entry in logprobs.content) == TEXT.replace("ö", "\ufffd\ufffd")
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == count
        shown = [(top.token, top.bytes, top.logprob) for top in entry.top_logprobs[:2]]
        assert shown == [(entry.token, entry.bytes, LOGPROB), ("<end>", None, -6.907755)][:count]
        assert math.fsum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1
    assert logprobs.refusal is None
    assert world.buyer.orders[0].logprobs == count
    assert "logprob" not in str(answer.model_extra["deaios"])


@pytest.mark.parametrize("size", [1, 3, 50])
async def test_every_chunk_of_a_stream_has_the_entries_of_its_own_text(world, size):
    world.buyer.reply = lambda order: world.say(TEXT, size=size)
    async with client_of(world) as client:
        chunks = await stream(client, top_logprobs=1)
        async with client.chat.completions.stream(
            model="tiny", messages=HELLO, logprobs=True, top_logprobs=1
        ) as helper:
            whole = await helper.get_final_completion()
    first, *texts, last = (chunk.choices[0] for chunk in chunks)
    assert (first.logprobs, last.logprobs, last.finish_reason) == (None, None, "stop")
    assert [bytes_of(choice.logprobs).decode() for choice in texts] == [choice.delta.content for choice in texts]
    assert "".join(choice.delta.content for choice in texts) == TEXT
    assert bytes_of(whole.choices[0].logprobs) == TEXT.encode()


@pytest.mark.parametrize("options", [{}, {"logprobs": False}, {"logprobs": None}, {"top_logprobs": 0}])
async def test_who_does_not_ask_gets_null(world, options):
    async with client_of(world) as client:
        options = {"model": "tiny", "messages": HELLO, "extra_body": options}
        answer = await client.chat.completions.create(**options)
        chunks = [chunk async for chunk in await client.chat.completions.create(**options, stream=True)]
    assert "logprobs" in answer.choices[0].model_fields_set
    assert {answer.choices[0].logprobs, *(chunk.choices[0].logprobs for chunk in chunks)} == {None}
    assert [order.logprobs for order in world.buyer.orders] == [None, None]


@pytest.mark.parametrize("size", [1, 4, 50])
@pytest.mark.parametrize(("said", "shown"), [("one two STOP", "one two "), ("STOP", ""), ("a STO b STOP", "a STO b ")])
async def test_what_a_stop_string_cuts_off_is_not_listed(world, said, shown, size):
    world.buyer.reply = lambda order: world.say(said, size=size, finish=FinishReason.STOP_STRING)
    async with client_of(world) as client:
        whole = await ask(client, stop=["STOP"])
        chunks = await stream(client, stop=["STOP"])
    assert whole.choices[0].message.content == shown
    assert bytes_of(whole.choices[0].logprobs) == shown.encode()
    texts = [chunk.choices[0] for chunk in chunks if chunk.choices[0].logprobs]
    assert [bytes_of(choice.logprobs).decode() for choice in texts] == [choice.delta.content for choice in texts]
    assert "".join(choice.delta.content for choice in texts) == shown


async def test_a_broken_character_is_shown_and_listed(world):
    world.buyer.reply = lambda order: world.script([(65, 0xC3), (256,)])
    async with client_of(world) as client:
        answer = await ask(client)
    assert answer.choices[0].message.content == "A\ufffd"
    assert bytes_of(answer.choices[0].logprobs) == b"A\xc3"


async def test_an_answer_without_text_has_an_empty_list(world):
    world.buyer.reply = lambda order: world.script([(256,)])
    async with client_of(world) as client:
        answer = await ask(client, top_logprobs=3)
    assert (answer.choices[0].message.content, answer.choices[0].logprobs.content) == ("", [])


async def test_lost_log_probabilities_are_a_503_that_costs_nothing_and_a_retry_buys_anew(world):
    broken = world.script([tuple(b"He"), world.delta(tuple(b"llo"), None), (256,)])
    world.buyer.reply = lambda order: broken
    async with client_of(world, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client)
        assert (caught.value.status_code, caught.value.code) == (503, "logprobs_lost")
        with pytest.raises(openai.APIError) as caught:
            await stream(client)
        assert caught.value.code == "logprobs_lost"
    assert (world.spent, len(world.buyer.cancelled)) == (0, 2)
    replies = [broken, world.say(TEXT)]
    world.buyer.reply = lambda order: replies.pop(0)
    async with client_of(world, max_retries=1) as client:
        assert bytes_of((await ask(client, seed=5)).choices[0].logprobs) == TEXT.encode()
    assert world.spent > 0


async def test_ids_that_the_model_does_not_have_break_the_protocol(world):
    ranking = ((65, -1_000_000), (257, -1_000_000))
    world.buyer.reply = lambda order: world.script([world.delta((65,), (ranking,)), (256,)])
    async with client_of(world, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="ranks token 257"):
            await ask(client, top_logprobs=1)
    assert world.spent == 0
