"""`kill -9` of a process with gateway, buyer and provider in the middle of a batch: no line is paid for twice."""

import asyncio
import json
import sqlite3
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import openai

from deaios.gateway.store import KeyStore
from deaios.ledger.structs import State
from deaios.market.opening import Opening
from deaios.runtime.dice import SystemDice

PROCESS = Path(__file__).with_name("batch_process.py")
LINES = 24
KILLS = (3, 9)
"""After so many results."""


@asynccontextmanager
async def running(folder, key):
    """The process and an SDK client of it; on leaving it is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), str(folder), stdout=asyncio.subprocess.PIPE
    )
    try:
        url = ""
        while not url.startswith("http"):  # log lines come before the address
            line = await process.stdout.readline()
            assert line, "the process ended"
            url = line.decode().strip()
        drain = asyncio.create_task(process.stdout.read())
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
            yield client
    finally:
        process.kill()
        await process.wait()
        await drain


def query(path, text):
    with sqlite3.connect(path) as connection:
        rows = connection.execute(text).fetchall()
    connection.close()
    return rows


async def test_a_batch_outlives_kill_9_and_pays_for_each_line_once(tmp_path):
    keys = KeyStore.open(tmp_path / "keys.db", b"p" * 32)
    key, record = keys.create(SystemDice(), 0, name="test")
    keys.close()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 40}
    lines = [
        {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(LINES)
    ]
    batch_id = None
    for results in (*KILLS, LINES):
        async with running(tmp_path, key) as client, asyncio.timeout(60):
            if batch_id is None:
                content = "\n".join(map(json.dumps, lines)).encode()
                file = await client.files.create(file=("in.jsonl", content), purpose="batch")
                batch_id = (
                    await client.batches.create(
                        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                    )
                ).id
            batch = await client.batches.retrieve(batch_id)
            while batch.request_counts.completed < results or (results == LINES and batch.status != "completed"):
                await asyncio.sleep(0.03)
                batch = await client.batches.retrieve(batch_id)
            if results == LINES:
                output = (await client.files.content(batch.output_file_id)).text.splitlines()
    answers = [json.loads(text) for text in output]
    assert [answer["custom_id"] for answer in answers] == [f"line-{n}" for n in range(LINES)]
    shown = [Opening.decode_json(answer["response"]["body"]["deaios"]["opening"]) for answer in answers]
    for answer, opening in zip(answers, shown, strict=True):
        text = answer["response"]["body"]["choices"][0]["message"]["content"]
        assert text.encode() == bytes(opening.output_ids[:-1])

    kept = [
        Opening.decode_json(json.loads(row[0])) for row in query(tmp_path / "buyer.db", "SELECT opening FROM openings")
    ]
    paid = Counter(opening.request.ask_digest for opening in kept if opening.receipt.fee)
    assert len(paid) == LINES
    assert set(paid.values()) == {1}
    assert {opening.receipt_digest for opening in shown} == {
        opening.receipt_digest for opening in kept if opening.receipt.state == State.SERVED
    }
    keys = KeyStore.open(tmp_path / "keys.db", b"p" * 32)
    charges = keys.list_charges(record.key_id, 1000)
    fees = sum(opening.receipt.fee for opening in shown)
    assert keys.get(record.key_id).spent == fees == sum(charge.amount for charge in charges)
    keys.close()
    receipts = [json.loads(row[0]) for row in query(tmp_path / "seller.db", "SELECT receipt FROM receipts")]
    assert sum(int(receipt["fee"]) for receipt in receipts) == fees
    assert len(receipts) > LINES, "no kill cut a purchase off"
