"""Who comes, goes, retries and reads slowly, and what is bought and charged meanwhile."""

import asyncio
import json
import socket
from dataclasses import replace
from urllib.parse import urlsplit

import aiohttp
import openai
import pytest

from deaios.gateway.answer import LAG_PIECES_MAX, Answer, Patience
from deaios.gateway.budgets import Budgets
from deaios.gateway.desk import Limits
from deaios.ledger.structs import FinishReason, State
from deaios.primitives.errors import Unavailable
from deaios.primitives.units import compute_fee

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
HELLO = BODY["messages"]
PROMPT_TOKENS = len(b"user:hello\n")
INPUT_PRICE, OUTPUT_PRICE = 1_000_000, 4_000_000
WAIT_S = 20


def fee(completion_tokens):
    return compute_fee(PROMPT_TOKENS, completion_tokens, INPUT_PRICE, OUTPUT_PRICE)


async def until(condition):
    """Wait for something that another task does."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # what changes is in a database or a counter, which wake nobody
            await asyncio.sleep(0.002)


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as opened:
        yield opened


async def ask(session, world, body=BODY, retry="0"):
    headers = world.headers | {"x-stainless-retry-count": retry}
    async with session.post(world.base_url + "/chat/completions", json=body, headers=headers) as response:
        return response.status, await response.json()


async def test_an_sdk_that_times_out_gets_its_answer_on_retry_and_pays_once(start_gateway):
    async with start_gateway() as world:
        gate = asyncio.Event()
        world.buyer.reply = lambda order: world.script([tuple(b"slow"), gate, (256,)])
        options = {"base_url": world.base_url, "api_key": world.key, "timeout": 0.3, "max_retries": 5}
        async with openai.AsyncOpenAI(**options) as client:
            call = asyncio.create_task(client.chat.completions.create(model="tiny", messages=HELLO))
            await until(lambda: b"joined_total 1.0" in metrics_of(world))
            gate.set()
            answer = await call
        assert answer.choices[0].message.content == "slow"
        assert len(world.buyer.orders) == 1
        assert world.spent == fee(5)


def metrics_of(world):
    from deaios.runtime.http import METRICS_KEY

    return world.application[METRICS_KEY].render()


async def test_a_retry_after_a_lost_answer_is_replayed_not_bought(world, session):
    first = await ask(session, world)
    again = await ask(session, world, retry="1")
    assert again == first
    assert len(world.buyer.orders) == 1
    assert world.spent == fee(15)


async def test_a_retry_after_the_gateway_died_is_answered_and_not_charged_again(start_gateway, session):
    """A crash after the charge and before the answer's last byte: the client can only send the request again."""
    async with start_gateway() as world:
        _, first = await ask(session, world)
        once, lost = world.spent, world
    async with start_gateway(buyer=lost.buyer) as world:
        retried = replace(world, key=lost.key, key_id=lost.key_id)
        status, body = await ask(session, retried, retry="1")
        assert (status, body["choices"][0]["message"]) == (200, first["choices"][0]["message"])
        assert retried.spent == once > 0
        status, _ = await ask(session, retried)
        assert (status, retried.spent) == (200, 2 * once)


async def test_a_retry_that_finds_no_provider_does_not_use_up_the_forgiveness(start_gateway, session):
    """After a crash of everything, the first retries come before any provider is back."""
    async with start_gateway() as world:
        await ask(session, world)
        once, lost = world.spent, world
    async with start_gateway(buyer=lost.buyer) as world:
        retried = replace(world, key=lost.key, key_id=lost.key_id)
        answers = iter([retried.script([Unavailable("away")]), retried.say("again")])
        retried.buyer.reply = lambda order: next(answers)
        assert (await ask(session, retried, retry="1"))[0] == 503
        status, body = await ask(session, retried, retry="2")
        assert (status, body["choices"][0]["message"]["content"]) == (200, "again")
        assert retried.spent == once


async def test_one_crash_forgives_one_purchase_only(start_gateway, session):
    async with start_gateway() as world:
        await ask(session, world)
        once, lost = world.spent, world
    async with start_gateway(buyer=lost.buyer) as world:
        retried = replace(world, key=lost.key, key_id=lost.key_id)
        await ask(session, retried, retry="1")
        answers = iter([retried.script([Unavailable("away")]), retried.say("again")])
        retried.buyer.reply = lambda order: next(answers)
        assert (await ask(session, retried))[0] == 503
        status, body = await ask(session, retried, retry="1")
        assert (status, body["choices"][0]["message"]["content"]) == (200, "again")
        assert retried.spent == once + fee(6)


async def leave_and_return(session, world, *, body=BODY):
    """A connection that breaks while the answer is made, longer than the grace; then the SDK asks again."""
    call = asyncio.create_task(ask(session, world, body))
    await until(lambda: world.buyer.purchases and world.buyer.purchases[0].ids)
    call.cancel()
    await until(lambda: world.spent)
    before = world.spent
    status, answer = await ask(session, world, body, retry="1")
    if status == 503:  # it came while the first answer was still ending; the SDK asks once more
        status, answer = await ask(session, world, body, retry="2")
    return before, status, answer


async def test_a_connection_that_breaks_midway_is_paid_once(start_gateway, session):
    async with start_gateway(limits=Limits(patience=Patience(grace_s=0.01))) as world:
        scripts = iter([world.script([tuple(b"abc"), asyncio.Event()]), world.say("abcde")])
        world.buyer.reply = lambda order: next(scripts)
        before, status, answer = await leave_and_return(session, world)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "abcde")
        assert (before, world.spent) == (fee(3), fee(6))
        first, second = sorted(world.keys.list_charges(world.key_id, 9), key=lambda charge: -charge.amount)
        assert (second.repeats, second.amount) == (first.answer_id, fee(6) - fee(3))


async def test_a_retry_that_is_turned_away_keeps_what_was_paid(start_gateway, session):
    limits = Limits(answers_per_key_max=1, patience=Patience(grace_s=0.01))
    async with start_gateway(limits=limits) as world:
        gate = asyncio.Event()
        scripts = iter(
            [
                world.script([tuple(b"abc"), asyncio.Event()]),
                world.script([gate, *world.say("other").steps]),
                world.script([Unavailable("away")]),
                world.say("abcde"),
            ]
        )
        world.buyer.reply = lambda order: next(scripts)
        call = asyncio.create_task(ask(session, world))
        await until(lambda: world.buyer.purchases and world.buyer.purchases[0].ids)
        call.cancel()
        await until(lambda: world.spent)
        other = asyncio.create_task(ask(session, world, BODY | {"seed": 1}))
        await until(lambda: len(world.buyer.purchases) == 2)
        assert (await ask(session, world, retry="1"))[0] == 429
        gate.set()
        await other
        assert (await ask(session, world, retry="2"))[0] == 503
        assert (await ask(session, world, retry="3"))[0] == 200
        assert world.spent == fee(6) + fee(6)


async def test_who_saw_some_of_a_stream_buys_the_rest_anew(start_gateway, session):
    """Else every answer could be had several times over for the price of one."""
    async with start_gateway(limits=Limits(patience=Patience(grace_s=0.01))) as world:
        scripts = iter([world.script([tuple(b"abc"), asyncio.Event()]), world.say("abcde")])
        world.buyer.reply = lambda order: next(scripts)
        body = BODY | {"stream": True}
        async with session.post(
            world.base_url + "/chat/completions", json=body, headers=world.headers | {"x-stainless-retry-count": "0"}
        ) as response:
            await response.content.readuntil(b"abc")
            response.close()
        await until(lambda: world.spent == fee(3))
        headers = world.headers | {"x-stainless-retry-count": "1"}
        async with session.post(world.base_url + "/chat/completions", json=body, headers=headers) as response:
            assert b"[DONE]" in await response.read()
        assert world.spent == fee(3) + fee(6)


async def test_a_retry_waits_for_the_end_of_what_was_left_and_does_not_join_it(start_gateway, session, monkeypatch):
    charged, waited, settle, wait_end = asyncio.Event(), asyncio.Event(), Budgets.settle, Answer.wait_end

    async def settle_late(budgets, reservation, charge):
        is_charged = await settle(budgets, reservation, charge)
        if not waited.is_set():
            charged.set()
            await waited.wait()
        return is_charged

    async def wait_seen(answer):
        waited.set()
        await wait_end(answer)

    monkeypatch.setattr(Budgets, "settle", settle_late)
    monkeypatch.setattr(Answer, "wait_end", wait_seen)
    async with start_gateway(limits=Limits(patience=Patience(grace_s=0.01))) as world:
        scripts = iter([world.script([tuple(b"abc"), asyncio.Event()]), world.say("abcde")])
        world.buyer.reply = lambda order: next(scripts)
        headers, body = world.headers | {"x-stainless-retry-count": "0"}, BODY | {"stream": True}
        async with session.post(world.base_url + "/chat/completions", json=body, headers=headers) as response:
            await response.content.readuntil(b"abc")
            response.close()
        await charged.wait()
        headers = world.headers | {"x-stainless-retry-count": "1"}
        async with session.post(world.base_url + "/chat/completions", json=body, headers=headers) as response:
            assert b"[DONE]" in await response.read()
        assert (len(world.buyer.orders), world.spent) == (2, fee(3) + fee(6))


async def test_asking_twice_on_purpose_buys_twice(world, session):
    first = await ask(session, world)
    second = await ask(session, world)
    assert first[1]["id"] != second[1]["id"]
    assert world.spent == 2 * fee(15)


async def test_a_retry_by_another_key_or_with_another_body_is_a_purchase(world, session):
    await ask(session, world)
    await ask(session, world, BODY | {"max_tokens": 20}, retry="1")
    other, _ = world.keys.create(FixedDice(), 0, name="other")
    async with session.post(
        world.base_url + "/chat/completions",
        json=BODY,
        headers={"Authorization": f"Bearer {other}", "x-stainless-retry-count": "1"},
    ) as response:
        assert response.status == 200
    assert len(world.buyer.orders) == 3


class FixedDice:
    def token_bytes(self, size):
        return b"\x05" * size


async def test_a_stream_is_replayed_from_its_beginning(world, session):
    async def read(retry):
        headers = world.headers | {"x-stainless-retry-count": retry}
        async with session.post(
            world.base_url + "/chat/completions", json=BODY | {"stream": True}, headers=headers
        ) as response:
            return [line for line in (await response.text()).split("\n\n") if line]

    first, again = await read("0"), await read("1")
    assert first == again
    assert first[-1] == "data: [DONE]"
    assert len(world.buyer.orders) == 1


async def test_a_client_that_leaves_a_stream_cancels_the_purchase_and_pays_for_what_came(start_gateway, session):
    async with start_gateway() as world:
        gate = asyncio.Event()
        world.buyer.reply = lambda order: world.script([tuple(b"abc"), gate, (256,)])
        headers = world.headers | {"x-stainless-retry-count": "0"}
        async with session.post(
            world.base_url + "/chat/completions", json=BODY | {"stream": True}, headers=headers
        ) as response:
            await response.content.readuntil(b"abc")
            response.close()
        async with asyncio.timeout(WAIT_S):
            await world.buyer.cancel_seen.wait()
        await until(lambda: world.spent)
        assert world.spent == fee(3)


@pytest.mark.parametrize("outcome", ["failed", "cheaper", "served", "never began"])
async def test_a_charge_without_a_receipt_is_set_right_by_the_receipt(start_gateway, session, outcome):
    """The provider is away when the client leaves; what it says later is what the key pays, after a restart too."""
    async with start_gateway() as world:
        world.buyer.reply = lambda order: world.script([tuple(b"abc"), asyncio.Event()])
        async with session.post(
            world.base_url + "/chat/completions", json=BODY | {"stream": True}, headers=world.headers
        ) as response:
            await response.content.readuntil(b"abc")
            response.close()
        await until(lambda: world.spent == fee(3))
        lost, purchase = world, world.buyer.purchases[0]
    async with start_gateway(buyer=lost.buyer, limits=Limits(reckon_s=0.01)) as world:
        late = replace(world, key=lost.key, key_id=lost.key_id)
        await until(lambda: late.buyer.outcomes_asked > 2)
        assert late.spent == fee(3), "as long as the purchase is open, the charge stands"
        if outcome == "failed":
            purchase.opening = purchase.build_opening(State.FAILED_PROVIDER, FinishReason.FAILED)
        elif outcome == "cheaper":
            purchase.script.fee = 20
            purchase.opening = purchase.build_opening(State.CANCELLED, FinishReason.CANCELLED)
        elif outcome == "served":
            purchase.script.fee = 40
            purchase.opening = purchase.build_opening(State.SERVED, FinishReason.STOP_TOKEN)
        purchase.is_open = False
        expected = {"cheaper": 20, "served": 40}.get(outcome, 0)
        await until(lambda: late.spent == expected)
        (charge,) = late.keys.list_charges(late.key_id, 9)
        counter = None if outcome == "never began" else purchase.counter
        assert (charge.amount, charge.counter, charge.purchase) == (expected, counter, None)


async def test_a_stream_whose_head_was_lost_is_had_again_by_the_retry(start_gateway, session):
    """The client cannot tell a lost head from a request that never came, so it asks again at once."""
    async with start_gateway(limits=Limits(patience=Patience(grace_s=WAIT_S))) as world:
        gate = asyncio.Event()
        world.buyer.reply = lambda order: world.script([tuple(b"abc"), gate, (256,)])
        url, body = world.base_url + "/chat/completions", BODY | {"stream": True}
        async with session.post(url, json=body, headers=world.headers | {"x-stainless-retry-count": "0"}) as response:
            response.close()
        async with session.post(url, json=body, headers=world.headers | {"x-stainless-retry-count": "1"}) as response:
            gate.set()
            assert b'"content":"abc"' in await response.read()
        assert len(world.buyer.orders) == 1
        assert world.spent == fee(4)


async def test_a_cancel_that_the_provider_receipts_costs_what_the_receipt_says(start_gateway, session):
    async with start_gateway() as world:
        script = world.script([tuple(b"abc"), asyncio.Event()], fee=17, receipt_on_cancel=True)
        world.buyer.reply = lambda order: script
        async with session.post(
            world.base_url + "/chat/completions", json=BODY | {"stream": True}, headers=world.headers
        ) as response:
            await response.content.readuntil(b"abc")
            response.close()
        await until(lambda: world.spent)
        assert world.spent == 17


async def test_a_plain_client_that_leaves_ends_the_purchase_at_once(start_gateway, session):
    async with start_gateway(limits=Limits(patience=Patience(grace_s=1000))) as world:
        world.buyer.reply = lambda order: world.script([asyncio.Event()])
        call = asyncio.create_task(session.post(world.base_url + "/chat/completions", json=BODY, headers=world.headers))
        await until(lambda: world.buyer.purchases)
        call.cancel()
        async with asyncio.timeout(WAIT_S):
            await world.buyer.cancel_seen.wait()
        assert world.spent == 0


async def test_an_sdk_that_does_not_return_within_the_grace_ends_the_purchase(start_gateway, session):
    async with start_gateway(limits=Limits(patience=Patience(grace_s=0.05))) as world:
        world.buyer.reply = lambda order: world.script([asyncio.Event()])
        call = asyncio.create_task(ask(session, world))
        await until(lambda: world.buyer.purchases)
        call.cancel()
        async with asyncio.timeout(WAIT_S):
            await world.buyer.cancel_seen.wait()


async def test_a_purchase_without_end_is_cancelled_at_its_deadline(start_gateway, session):
    async with start_gateway(limits=Limits(patience=Patience(answer_s=0.05))) as world:
        world.buyer.reply = lambda order: world.script([asyncio.Event()])
        status, answer = await ask(session, world)
        assert (status, answer["error"]["code"]) == (503, "service_unavailable")
        assert world.buyer.purchases[0].cancelled


async def test_stopping_the_gateway_settles_running_answers(start_gateway, session):
    async with start_gateway() as world:
        world.buyer.reply = lambda order: world.script([tuple(b"abc"), asyncio.Event()], fee=9, receipt_on_cancel=True)
        call = asyncio.create_task(ask(session, world))
        await until(lambda: world.buyer.purchases and world.buyer.purchases[0].ids)
        await world.application.shutdown()
        status, _ = await call
        assert status == 503
        assert world.spent == 9


async def test_a_silent_stream_is_kept_alive(start_gateway, session):
    async with start_gateway(limits=Limits(hold_s=0.02, keep_alive_s=0.02)) as world:
        gate = asyncio.Event()
        world.buyer.reply = lambda order: world.script([gate, tuple(b"x"), (256,)])
        async with session.post(
            world.base_url + "/chat/completions", json=BODY | {"stream": True}, headers=world.headers
        ) as response:
            await response.content.readuntil(b": keep-alive\n\n: keep-alive\n\n")
            gate.set()
            rest = await response.text()
        assert rest.endswith("data: [DONE]\n\n")
        assert '"content":"x"' in rest


async def test_a_late_failure_of_a_held_stream_is_an_event(start_gateway, session):
    async with start_gateway(limits=Limits(hold_s=0.02)) as world:
        gate = asyncio.Event()
        world.buyer.reply = lambda order: world.script([gate, Unavailable("gone")])
        async with session.post(
            world.base_url + "/chat/completions", json=BODY | {"stream": True}, headers=world.headers
        ) as response:
            assert response.status == 200
            gate.set()
            events = (await response.text()).split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["error"]["message"] == "gone"
        assert events[-2:] == ["data: [DONE]", ""]


async def test_a_reader_that_stops_holds_the_purchase_back_and_is_dropped(start_gateway):
    total = 32_768
    async with start_gateway(limits=Limits(write_s=0.3), context_tokens=100_000) as world:
        world.buyer.reply = lambda order: world.script([tuple(b"y")] * total, receipt_on_cancel=True)
        url = urlsplit(world.url)
        body = json.dumps(BODY | {"stream": True, "max_tokens": total}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (url.hostname, url.port))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\n"
            await loop.sock_sendall(client, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            async with asyncio.timeout(WAIT_S):
                await world.buyer.cancel_seen.wait()
        bought = len(world.buyer.purchases[0].ids)
        assert LAG_PIECES_MAX < bought < total


async def test_too_many_answers_at_once_are_refused_and_the_retry_is_served(start_gateway, session):
    async with start_gateway(limits=Limits(answers_per_key_max=1)) as world:
        gate = asyncio.Event()
        world.buyer.reply = lambda order: world.script([gate, tuple(b"ok"), (256,)])
        first = asyncio.create_task(ask(session, world))
        await until(lambda: world.buyer.purchases)
        status, answer = await ask(session, world)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        gate.set()
        assert (await first)[0] == 200
        status, answer = await ask(session, world, retry="1")
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "ok")
        assert answer["id"] != (await first)[1]["id"]


async def test_parallel_answers_never_overdraw_a_budget(start_gateway, session):
    most = fee(256)
    async with start_gateway(budget=3 * most + 5) as world:
        gate = asyncio.Event()
        world.buyer.reply = lambda order: world.script([gate, *[(121,)] * 255, (256,)])
        calls = [asyncio.create_task(ask(session, world)) for _ in range(8)]
        await until(lambda: len(world.buyer.purchases) == 3 and sum(call.done() for call in calls) == 5)
        gate.set()
        statuses = sorted([status for status, _ in await asyncio.gather(*calls)])
        assert statuses == [200] * 3 + [402] * 5
        assert world.spent == 3 * most


async def test_what_an_answer_did_not_use_is_free_again(start_gateway, session):
    async with start_gateway(budget=fee(256) + fee(15)) as world:
        assert [(await ask(session, world))[0] for _ in range(2)] == [200, 200]
        assert world.spent == 2 * fee(15)


async def test_a_fee_above_the_listed_price_is_not_passed_on(start_gateway, session):
    async with start_gateway(budget=10**6) as world:
        world.buyer.reply = lambda order: world.script([(256,)], fee=10**9)
        assert (await ask(session, world))[0] == 200
        assert world.spent == fee(256)


@pytest.mark.parametrize("state", [State.REFUSED, State.FAILED_PROVIDER, State.FAILED_CLIENT, State.CANCELLED])
async def test_only_served_answers_are_charged(world, session, state):
    world.buyer.reply = lambda order: world.script([tuple(b"abc")], state=state)
    assert (await ask(session, world))[0] == 503
    assert world.spent == 0


async def test_two_answers_under_one_receipt_are_charged_once(world, session):
    await ask(session, world, BODY | {"seed": 1})
    world.buyer.orders.clear()
    assert (await ask(session, world, BODY | {"seed": 1}))[0] == 200
    assert world.spent == fee(15)
