"""Raw prompts and several answers at once, with the unmodified OpenAI SDK against the real server."""

import asyncio

import openai
import pytest

from deaios.gateway.budgets import Budgets
from deaios.ledger.structs import FinishReason
from deaios.market.opening import Opening
from deaios.primitives.errors import Unavailable

HELLO = [{"role": "user", "content": "hello"}]


def client_of(world, **options):
    return openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key, **options)


def talkative(world):
    """Every purchase says another text."""
    texts = {}

    def reply(order):
        texts[order.part.index] = f"answer {order.part.index} to {bytes(order.prompt_ids).decode()}"
        return world.say(texts[order.part.index], size=4)

    world.buyer.reply = reply
    return texts


async def test_a_raw_prompt_is_bought_without_a_template(world):
    async with client_of(world) as client:
        answer = await client.completions.create(model="tiny", prompt="Once upon", seed=4, stop="zzz")
    order = world.buyer.orders[0]
    assert bytes(order.prompt_ids) == b"Once upon"
    assert order.params.max_tokens == 16
    assert order.context == b'{"prompt":"Once upon","tokenizer":"0x' + b"00" * 32 + b'"}'
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion",
        "Hello, wörld!",
        "stop",
    )
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 15)
    proof = answer.model_extra["deaios"]
    assert proof["part"] == {"api": "completions", "index": 0, "history": []}
    assert Opening.decode_json(proof["opening"]) == world.buyer.purchases[0].opening
    assert world.spent == world.buyer.purchases[0].opening.receipt.fee > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_texts_and_ids_each_get_their_choices_in_order(world, stream):
    texts = talkative(world)
    prompts = [list(b"ab"), list(b"cde")]
    async with client_of(world) as client:
        said = {"model": "tiny", "prompt": prompts, "n": 2, "max_tokens": 40}
        if stream:
            events = await client.completions.create(**said, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in events]
            usage, extra = chunks[-1].usage, chunks[-1].model_extra
            assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
            choices = [choice for chunk in chunks for choice in chunk.choices]
            heard = ["".join(choice.text for choice in choices if choice.index == index) for index in range(4)]
            assert sorted(choice.index for choice in choices if choice.finish_reason == "stop") == [0, 1, 2, 3]
        else:
            answer = await client.completions.create(**said)
            usage, extra = answer.usage, answer.model_extra
            heard = [choice.text for choice in answer.choices]
    assert heard == [texts[index] for index in range(4)]
    assert [text.rpartition(" ")[2] for text in heard] == ["ab", "ab", "cde", "cde"]
    receipts = [purchase.opening.receipt for purchase in world.buyer.purchases]
    assert usage.prompt_tokens == 2 + 2 + 3 + 3 == sum(receipt.prompt_tokens for receipt in receipts)
    assert usage.completion_tokens == sum(receipt.completion_tokens for receipt in receipts)
    assert [bought["part"]["index"] for bought in extra["deaios"]["purchases"]] == [0, 1, 2, 3]
    assert len({(order.nonce, order.salt) for order in world.buyer.orders}) == 4
    assert len({order.client_nonce for order in world.buyer.orders}) == 1
    assert world.spent == sum(receipt.fee for receipt in receipts)


async def test_log_probabilities_come_in_the_four_lists_streamed_and_whole(world):
    async with client_of(world) as client:
        whole = await client.completions.create(model="tiny", prompt="x", logprobs=2)
        stream = await client.completions.create(model="tiny", prompt="x", logprobs=2, stream=True)
        parts = [chunk.choices[0].logprobs async for chunk in stream if chunk.choices[0].logprobs]
    logprobs = whole.choices[0].logprobs
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for part in parts for entry in getattr(part, name)] == getattr(logprobs, name)
    assert logprobs.tokens[:3] == ["H", "e", "l"]
    assert logprobs.text_offset[:3] == [0, 1, 2]
    assert set(logprobs.top_logprobs[0]) == {"H", "<end>"}


async def test_a_sync_client_completes_and_streams(world):
    def talk():
        with openai.OpenAI(base_url=world.base_url, api_key=world.key) as client:
            whole = client.completions.create(model="tiny", prompt=["x"]).choices[0].text
            with client.completions.create(model="tiny", prompt="x", stream=True) as stream:
                return whole, "".join(chunk.choices[0].text for chunk in stream)

    whole, streamed = await asyncio.to_thread(talk)
    assert whole == streamed == "Hello, wörld!"


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[1], []]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt[0]", "invalid_type"),
        ({"prompt": [257]}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 5, "n": 7}, "n", "invalid_value"),
        ({"prompt": "x" * 1000}, "prompt", "context_length_exceeded"),
        ({"max_tokens": 1000}, "max_tokens", "context_length_exceeded"),
    ],
)
async def test_what_is_not_offered_is_refused_by_name(world, options, param, code):
    async with client_of(world) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(**({"model": "tiny", "prompt": "x"} | options))
    assert (caught.value.param, caught.value.code) == (param, code)
    assert world.buyer.orders == []


@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_of_a_chat_are_several_purchases(world, stream):
    texts = talkative(world)
    async with client_of(world) as client:
        if stream:
            async with client.chat.completions.stream(model="tiny", messages=HELLO, n=3) as events:
                answer = await events.get_final_completion()
        else:
            answer = await client.chat.completions.create(model="tiny", messages=HELLO, n=3)
    assert [choice.message.content for choice in answer.choices] == [texts[index] for index in range(3)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(world.keys.list_charges(world.key_id, 9)) == 3
    assert world.spent == sum(purchase.opening.receipt.fee for purchase in world.buyer.purchases)


async def test_equal_seeds_give_equal_purchases_and_choices_differ(world):
    async with client_of(world) as client:
        for _ in range(2):
            await client.chat.completions.create(model="tiny", messages=HELLO, n=2, seed=7)
    draws = [(order.client_nonce, order.nonce, order.salt) for order in world.buyer.orders]
    assert draws[:2] == draws[2:]
    assert len(set(draws[:2])) == 2


async def test_the_budget_covers_all_answers_or_none_is_bought(start_gateway):
    async with start_gateway(budget=1000) as world, client_of(world) as client:
        one = {"model": "tiny", "messages": HELLO, "max_tokens": 90}
        await client.chat.completions.create(**one, n=2)
        bought = len(world.buyer.orders)
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**one, n=3)
        assert (caught.value.status_code, caught.value.code) == (402, "insufficient_quota")
        assert len(world.buyer.orders) == bought == 2
        await client.chat.completions.create(**one, n=2)  # nothing was left set aside


async def test_a_retry_buys_only_the_answer_that_failed(world):
    failures = [Unavailable("provider down")]

    def reply(order):
        return failures.pop() if order.part.index == 1 and failures else world.say(f"choice {order.part.index}")

    world.buyer.reply = reply
    async with client_of(world) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, n=3)
    assert [choice.message.content for choice in answer.choices] == ["choice 0", "choice 1", "choice 2"]
    assert sorted(order.part.index for order in world.buyer.orders) == [0, 1, 1, 2]
    charges = world.keys.list_charges(world.key_id, 9)
    assert len(charges) == 3
    assert world.spent == sum(charge.amount for charge in charges)


async def test_one_failure_ends_a_stream_of_several_with_an_error(world):
    def reply(order):
        if order.part.index == 1:
            return world.script([tuple(b"He"), Unavailable("provider vanished")])
        return world.say("fine", finish=FinishReason.LENGTH)

    world.buyer.reply = reply
    async with client_of(world) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, n=2, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
    assert Budgets(world.keys).reserved(world.key_id) == 0
    assert world.spent == sum(charge.amount for charge in world.keys.list_charges(world.key_id, 9))
