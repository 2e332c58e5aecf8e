"""Files, uploads and batches of the unmodified OpenAI SDK against the real server."""

import asyncio
import hashlib
import json

import openai
import pytest

from deaios.gateway import batch_records, file_records
from deaios.market.opening import Opening
from deaios.primitives.errors import Unavailable

URL = "/v1/chat/completions"


def client_of(world, **options):
    return openai.AsyncOpenAI(base_url=world.base_url, api_key=world.key, **options)


def line(number, url=URL, **fields):
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"q{number}"}]} | fields
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}


def pack(lines):
    return "\n".join(json.dumps(item) for item in lines).encode() + b"\n"


async def put(client, lines):
    return (await client.files.create(file=("in.jsonl", pack(lines)), purpose="batch")).id


async def begin(client, lines, endpoint=URL, **options):
    file_id = await put(client, lines)
    return await client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h", **options)


async def finished(client, batch):
    async with asyncio.timeout(20):
        while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
            await asyncio.sleep(0.02)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def read_lines(client, file_id):
    return [json.loads(text) for text in (await client.files.content(file_id)).text.splitlines()]


async def test_files_are_kept_listed_read_and_deleted(world, counting_dice):
    other, _record = world.keys.create(counting_dice, 0, name="other")
    content = b'quote " and \r\n--line\r\n\x00\xff'
    async with client_of(world) as client, openai.AsyncOpenAI(base_url=world.base_url, api_key=other) as stranger:
        expiry = {"anchor": "created_at", "seconds": 3600}
        first = await client.files.create(file=("a b.jsonl", content), purpose="batch", expires_after=expiry)
        second = await client.files.create(file=b"", purpose="batch")
        assert (first.bytes, first.filename, first.purpose, first.status) == (
            len(content),
            "a b.jsonl",
            "batch",
            "processed",
        )
        assert first.expires_at == first.created_at + 3600
        assert await client.files.retrieve(first.id) == first
        assert (await client.files.content(first.id)).content == content
        assert (await client.files.content(second.id)).content == b""
        listed = [file.id async for file in client.files.list(order="asc", limit=1)]
        assert sorted(listed) == sorted([first.id, second.id])
        assert [file.id async for file in client.files.list(purpose="batch_output")] == []
        for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(first.id)
        assert (await client.files.delete(first.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.content(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.files.create(file=b"x", purpose="vision")
        assert caught.value.param == "purpose"


async def test_what_a_key_keeps_is_bounded(world, monkeypatch):
    monkeypatch.setattr(file_records, "FILES_MAX", 2)
    monkeypatch.setattr(file_records, "FILES_BYTES_MAX", 10)
    monkeypatch.setattr(batch_records, "OPEN_MAX", 0)
    async with client_of(world, max_retries=0) as client:
        await client.files.create(file=b"12345678", purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            await client.files.create(file=b"123", purpose="batch")
        assert (caught.value.status_code, caught.value.code) == (413, "storage_limit_exceeded")
        await client.files.create(file=b"1", purpose="batch")
        with pytest.raises(openai.APIStatusError):
            await client.files.create(file=b"1", purpose="batch")
        monkeypatch.setattr(file_records, "FILES_MAX", 9)
        monkeypatch.setattr(file_records, "FILES_BYTES_MAX", 10_000)
        with pytest.raises(openai.APIStatusError, match="open batches"):
            await begin(client, [line(0)])
    assert world.buyer.orders == []


async def test_an_upload_in_parts_becomes_a_file(world):
    async with client_of(world) as client:
        about = {"bytes": 6, "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
        upload = await client.uploads.create(**about)
        parts = [await client.uploads.parts.create(upload.id, data=data) for data in (b"def", b"abc")]
        with pytest.raises(openai.APIStatusError):
            await client.uploads.parts.create(upload.id, data=b"g")
        ids = [parts[1].id, parts[0].id]
        with pytest.raises(openai.BadRequestError, match="hash"):
            await client.uploads.complete(upload.id, part_ids=ids, md5="00" * 16)
        with pytest.raises(openai.BadRequestError, match="3 bytes"):
            await client.uploads.complete(upload.id, part_ids=ids[:1])
        done = await client.uploads.complete(upload.id, part_ids=ids, md5=hashlib.md5(b"abcdef").hexdigest())
        assert (upload.status, done.status, done.file.bytes) == ("pending", "completed", 6)
        assert (await client.files.content(done.file.id)).content == b"abcdef"
        with pytest.raises(openai.BadRequestError, match="completed"):
            await client.uploads.cancel(upload.id)
        second = await client.uploads.create(**about)
        assert (await client.uploads.cancel(second.id)).status == "cancelled"


async def test_a_batch_is_bought_line_by_line_and_answered_in_files(world):
    lines = [line(0), line(1, n=2), line(2, tools=[{"type": "function"}]), line(3, stream=True), line(4, seed=3)]
    async with client_of(world) as client:
        batch = await begin(client, lines, metadata={"job": "7"})
        assert (batch.status, batch.endpoint, batch.metadata) == ("in_progress", URL, {"job": "7"})
        batch = await finished(client, batch)
        assert batch.status == "completed"
        assert batch.request_counts.model_dump() == {"total": 5, "completed": 3, "failed": 2}
        good, bad = await read_lines(client, batch.output_file_id), await read_lines(client, batch.error_file_id)
        live = await client.chat.completions.create(**lines[4]["body"])
        assert [listed.id async for listed in client.batches.list()] == [batch.id]
    assert [item["custom_id"] for item in good] == ["line-0", "line-1", "line-4"]
    for item in good:
        assert (item["error"], item["response"]["status_code"]) == (None, 200)
        assert item["response"]["body"]["choices"][0]["message"]["content"] == "Hello, wörld!"
    assert len(good[1]["response"]["body"]["choices"]) == 2
    assert [(item["custom_id"], item["response"]["body"]["error"]["param"]) for item in bad] == [
        ("line-2", "tools[0].function"),
        ("line-3", "stream"),
    ]
    bought = [purchase.order.body for purchase in world.buyer.purchases]
    assert sorted(bought[:4]) == sorted(json.dumps(lines[n]["body"]).encode() for n in (0, 1, 1, 4))
    opening = Opening.decode_json(good[0]["response"]["body"]["deaios"]["opening"])
    assert opening in [purchase.opening for purchase in world.buyer.purchases]
    # The same seed and body give the same order, in a batch or not; what is sent is spelled otherwise by the SDK.
    assert live.choices[0].message.content == "Hello, wörld!"
    receipts = [purchase.opening.receipt for purchase in world.buyer.purchases]
    assert world.spent == sum(receipt.fee for receipt in receipts)


async def test_completions_and_passing_failures_in_a_batch(world, monkeypatch):
    monkeypatch.setattr("deaios.gateway.batch_worker.PAUSE_S", 0.01)
    failures = [Unavailable("provider down"), Unavailable("provider down")]
    world.buyer.reply = lambda order: failures.pop() if failures else world.say("fine")
    lines = [{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "x"}}]
    async with client_of(world) as client:
        batch = await finished(client, await begin(client, lines, endpoint="/v1/completions"))
        (good,) = await read_lines(client, batch.output_file_id)
    assert good["response"]["body"]["choices"][0]["text"] == "fine"
    assert batch.error_file_id is None
    assert len(world.keys.list_charges(world.key_id, 9)) == 1


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", "invalid_line_count", None),
        (b"not json\n", "invalid_json_line", 1),
        (pack([line(0), line(0)]), "invalid_value", 2),
        (pack([line(0), line(1, url="/v1/completions")]), "mismatched_url", 2),
        (pack([line(0) | {"method": "GET"}]), "invalid_value", 1),
        (pack([line(0) | {"extra": 1}]), "invalid_json_line", 1),
    ],
)
async def test_a_file_that_cannot_be_read_fails_the_batch_at_once(world, content, code, number):
    async with client_of(world) as client:
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, number)
    assert world.buyer.orders == []


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"extra_body": {"output_expires_after": {"anchor": "created_at", "seconds": 3600}}}, "output_expires_after"),
    ],
)
async def test_what_batches_do_not_offer_is_refused_by_name(world, options, param):
    async with client_of(world) as client:
        said = {"input_file_id": await put(client, [line(0)]), "endpoint": URL, "completion_window": "24h"}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.batches.create(**(said | options))
    assert caught.value.param == param


async def test_a_cancelled_batch_keeps_what_was_paid_for(world):
    gate = asyncio.Event()

    def reply(order):
        script = world.say("fine")
        script.steps.insert(1, gate)
        return script

    world.buyer.reply = reply
    async with client_of(world) as client:
        batch = await begin(client, [line(number) for number in range(20)])
        async with asyncio.timeout(10):
            while len(world.buyer.orders) < 8:
                await asyncio.sleep(0.01)
        cancelled = await client.batches.cancel(batch.id)
        assert cancelled.status == "cancelling"
        gate.set()
        batch = await finished(client, cancelled)
        assert batch.status == "cancelled"
        good = await read_lines(client, batch.output_file_id)
        with pytest.raises(openai.BadRequestError):
            await client.batches.cancel((await finished(client, await begin(client, [line(0)]))).id)
    assert len(good) == batch.request_counts.completed == 8
    assert world.spent == sum(charge.amount for charge in world.keys.list_charges(world.key_id, 99))


async def test_lines_left_over_expire(world, monkeypatch):
    monkeypatch.setattr("deaios.gateway.batches.WINDOW_S", 0)
    async with client_of(world) as client:
        batch = await finished(client, await begin(client, [line(number) for number in range(3)]))
        errors = await read_lines(client, batch.error_file_id)
    assert (batch.status, batch.output_file_id) == ("expired", None)
    assert [item["error"]["code"] for item in errors] == ["batch_expired"] * 3
    assert world.buyer.orders == []
