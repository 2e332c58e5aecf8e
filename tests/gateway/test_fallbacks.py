"""`models`: others that may answer when the first cannot, and keys whose policy no request loosens."""

import asyncio
import json
from dataclasses import replace

import openai
import pytest
from structlog.testing import capture_logs

from deaios.gateway.answer import Patience
from deaios.gateway.batch_worker import read_line_body
from deaios.gateway.desk import Limits
from deaios.gateway.errors import RefusedModel
from deaios.gateway.purchasing import ServedModels
from deaios.gateway.x402_quote import quote
from deaios.market.fields import MODELS_MAX, InvalidParameter
from deaios.market.preferences import NO_COLLECTION, ZERO_RETENTION, DataPolicy
from deaios.market.question import Api
from deaios.primitives.errors import Refused, Unavailable
from deaios.primitives.units import CREDIT, compute_fee

MESSAGES = [{"role": "user", "content": "hello"}]
PROMPT = len("user:hello\n")
FAILURES = {
    "nobody offers it": Refused("no provider fits this order"),
    "all providers failed": Unavailable("every provider tried has failed"),
}
NOBODY = FAILURES["nobody offers it"]


@pytest.fixture
def start(start_gateway, second_model, write_script):
    """Gateways with two models: what the first does is given, the second says Hi."""

    def open_gateway(first=None, **settings):
        def reply(order):
            if first is None or order.model_record_id == second_model.record_id:
                return write_script("Hi")
            return first

        return start_gateway(reply=reply, more=(second_model,), **settings)

    return open_gateway


@pytest.fixture
def break_off(write_script):
    """Makes purchases that do these steps and then break."""

    def build(*steps):
        script = write_script("")
        script.steps = [*steps, Unavailable("gone")]
        return script

    return build


def open_client(world):
    return openai.AsyncOpenAI(api_key=world.key, base_url=world.base_url, max_retries=0)


async def post(client, path, **body):
    return await client.post(path, body=body, cast_to=dict)


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_the_next_model_answers_is_named_and_is_what_is_paid(start, failure, record_id, second_model):
    async with start(failure) as world:
        async with open_client(world) as client:
            made = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=9, extra_body={"models": ["second"]}
            )
        assert (made.model, made.choices[0].message.content) == ("second", "Hi")
        assert made.system_fingerprint == "fp_" + second_model.record_id[:8].hex()
        assert [order.model_record_id for order in world.buyer.orders] == [record_id, second_model.record_id]
        assert world.spent == world.buyer.purchases[0].opening.receipt.fee
        assert len(world.keys.list_charges(world.key_id, 9)) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"messages": MESSAGES}),
        ("/completions", {"prompt": "hello"}),
        ("/responses", {"input": "hello"}),
        ("/messages", {"messages": MESSAGES, "max_tokens": 9}),
    ],
)
async def test_every_door_takes_models_without_model(start, path, body):
    async with start(NOBODY) as world, open_client(world) as client:
        made = await post(client, path, models=["tiny", "second"], route="fallback", **body)
        assert made["model"] == "second"
        assert json.dumps(made).count("Hi") >= 1


async def test_a_stream_names_no_model_before_it_is_known_which_answers(start, break_off):
    held = asyncio.Event()
    limits = Limits(hold_s=0.01, keep_alive_s=0.01)
    async with start(break_off(held), limits=limits) as world:
        async with open_client(world) as client:
            stream = await client.chat.completions.create(  # its head is there, and no event
                model="tiny", messages=MESSAGES, stream=True, extra_body={"models": ["second"]}
            )
            held.set()
            chunks = [chunk async for chunk in stream]
        assert {chunk.model for chunk in chunks} == {"second"}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hi"


async def test_an_answer_that_has_begun_is_not_given_by_another_model(start, break_off):
    async with start(break_off((72,))) as world, open_client(world) as client:
        with pytest.raises(openai.InternalServerError):
            await post(client, "/chat/completions", models=["tiny", "second"], messages=MESSAGES)
        assert len(world.buyer.orders) == 1
        assert world.spent == 0


async def test_money_is_set_aside_for_one_model_at_a_time(start):
    """The budget holds the dearer model once, and no more: what was set aside for the first came back."""
    most = compute_fee(PROMPT, 9, 2 * CREDIT, 8 * CREDIT)
    async with start(NOBODY, budget=most) as world, open_client(world) as client:
        made = await post(client, "/chat/completions", models=["tiny", "second"], messages=MESSAGES, max_tokens=9)
        assert made["model"] == "second"


async def test_a_model_that_the_budget_or_the_context_rules_out_is_passed_over(start, record_id):
    most = compute_fee(PROMPT, 9, CREDIT, 4 * CREDIT)
    async with start(budget=most) as world, open_client(world) as client:
        made = await post(client, "/chat/completions", models=["second", "tiny"], messages=MESSAGES, max_tokens=9)
        assert made["model"] == "tiny-bytes"
        assert [order.model_record_id for order in world.buyer.orders] == [record_id]


async def test_when_all_fail_the_last_error_is_told_and_nothing_is_paid(start_gateway, second_model):
    async with start_gateway(reply=lambda _order: NOBODY, more=(second_model,)) as world:
        async with open_client(world) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await post(client, "/chat/completions", models=["tiny", "second"], messages=MESSAGES)
        assert caught.value.body["code"] == "no_provider"
        assert len(world.buyer.orders) == 2
        assert world.spent == 0


async def test_all_models_share_one_time(start, break_off):
    """Who waited its time out for the first model does not wait as long again for the second."""
    limits = Limits(patience=Patience(answer_s=0.05))
    async with start(break_off(asyncio.Event()), limits=limits) as world, open_client(world) as client:
        with pytest.raises(openai.InternalServerError):
            await post(client, "/chat/completions", models=["tiny", "second"], messages=MESSAGES)
        assert len(world.buyer.orders) == 1


async def test_a_key_may_use_each_model_or_the_request_is_refused(start):
    async with start(models=("tiny",)) as world, open_client(world) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await post(client, "/chat/completions", models=["tiny", "second"], messages=MESSAGES)
        assert caught.value.body["code"] == "model_not_found"
        assert not world.buyer.orders


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"models": []}, "models"),
        ({"models": ["tiny"] * (MODELS_MAX + 1)}, "models"),
        ({"models": "tiny"}, "models"),
        ({"models": ["tiny", 1]}, "models[1]"),
        ({"models": ["tiny", "second"], "n": 2}, "models"),
        ({"models": ["tiny"], "route": "other"}, "route"),
        ({}, "model"),
    ],
)
async def test_wrong_models_are_refused_by_name(start, fields, param):
    async with start() as world, open_client(world) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await post(client, "/chat/completions", messages=MESSAGES, **fields)
        assert caught.value.body["param"] == param
        assert not world.buyer.orders


async def test_a_request_that_pays_for_itself_is_quoted_the_dearest_model(second_model):
    cheap = replace(second_model, name="cheap", record_id=b"\x01" * 32, input_price=CREDIT, output_price=CREDIT)
    short = replace(
        second_model, name="short", record_id=b"\x02" * 32, record=replace(second_model.record, context_tokens=9)
    )
    models = ServedModels((cheap, second_model, short))
    most = compute_fee(PROMPT, 9, 2 * CREDIT, 8 * CREDIT)
    for names in (["cheap", "second"], ["second", "cheap"], ["short", "second"]):
        assert await quote("/v1/chat/completions", _body(models=names), models) == most
    with pytest.raises(InvalidParameter, match="context"):
        await quote("/v1/chat/completions", _body(models=["short"]), models)
    with pytest.raises(RefusedModel, match="none"):
        await quote("/v1/chat/completions", _body(models=["second", "none"]), models)


async def test_a_line_of_a_batch_has_one_model():
    with pytest.raises(InvalidParameter, match="one model"):
        read_line_body(Api.CHAT, _body(models=["tiny", "second"]))


def _body(**fields):
    return json.dumps({"messages": MESSAGES, "max_tokens": 9, **fields}).encode()


@pytest.mark.parametrize(
    ("policy", "wish", "expected"),
    [
        (DataPolicy.ANY, None, None),
        (DataPolicy.DENY, None, {NO_COLLECTION}),
        (DataPolicy.DENY, {"data_collection": "allow", "zdr": False}, {NO_COLLECTION}),
        (DataPolicy.DENY, {"zdr": True}, {NO_COLLECTION, ZERO_RETENTION}),
        (DataPolicy.ZDR, {"data_collection": "allow"}, {NO_COLLECTION, ZERO_RETENTION}),
    ],
)
async def test_no_request_loosens_its_keys_data_policy(start, policy, wish, expected):
    async with start(data_policy=policy) as world, open_client(world) as client:
        await post(client, "/chat/completions", model="tiny", messages=MESSAGES, provider=wish)
        wanted = world.buyer.orders[0].preferences
        assert (wanted and wanted.promises) == expected
        assert world.keys.get(world.key_id).data_policy == policy


async def test_a_fault_of_ours_is_told_tried_with_no_other_model_and_leaves_nothing_set_aside(start):
    async with start(RuntimeError("a bug")) as world, open_client(world) as client:
        with capture_logs() as logs, pytest.raises(openai.InternalServerError, match="an internal fault was logged"):
            await client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=9, extra_body={"models": ["second"]}
            )
        assert [line["log_level"] for line in logs if line["event"] == "internal fault"] == ["error"]
        assert (len(world.buyer.orders), world.spent) == (1, 0)
