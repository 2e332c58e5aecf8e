"""`kill -9` of a gateway with payers in the middle: nobody is billed twice, and what was not served comes back."""

import asyncio
import contextlib
import sqlite3
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
from eth_account import Account
from x402 import x402Client
from x402.http.clients import wrapHttpxWithPayment
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner

from deaios.gateway.x402_store import PaymentState
from deaios.primitives.encoding import encode_hex

PROCESS = Path(__file__).with_name("x402_process.py")
PATH = "/v1/chat/completions"
PATIENCE_S = 60


def build_body(text):
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 50, "stream": True}


@asynccontextmanager
async def running(folder, bank, run):
    """The process; on leaving it is killed."""
    arguments = (str(folder), bank.url, encode_hex(bank.token.address), str(run))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), *arguments, stdout=asyncio.subprocess.PIPE
    )
    drain = None
    try:
        url = ""
        while not url.startswith("http"):
            line = await process.stdout.readline()
            assert line, "the process ended"
            url = line.decode().strip()
        drain = asyncio.create_task(process.stdout.read())
        yield url
    finally:
        process.kill()
        await process.wait()
        if drain is not None:
            await drain


def build_client(key, kind):
    signer = EthAccountSigner(Account.from_key(key.secret))
    return x402Client().register("eip155:*", kind(signer)).set_spend_controls(False)


async def ask(http, url, text):
    """A whole stream."""
    async with http.stream("POST", url + PATH, json=build_body(text)) as response:
        assert response.status_code == 200, await response.aread()
        return [line async for line in response.aiter_lines()]


async def begin(http, url):
    """A stream that has begun and does not end: as long as what this gives is kept, the client has not left."""
    request = http.build_request("POST", url + PATH, json=build_body("hang"))
    response = await http.send(request, stream=True)
    assert response.status_code == 200
    lines = response.aiter_lines()
    while "Hello" not in await anext(lines):
        pass
    return lines


def query(folder, text):
    with sqlite3.connect(folder / "x402.db") as connection:
        rows = connection.execute(text).fetchall()
    connection.close()
    return rows


async def test_a_killed_gateway_bills_nobody_twice_and_gives_back_what_it_owes(x402_kit, tmp_path):
    async with x402_kit.open_bank(tmp_path) as bank, asyncio.timeout(PATIENCE_S):
        steady, once = await bank.open_payer("steady"), await bank.open_payer("once")
        before = await bank.token.balance_of(once.address)
        channel = build_client(steady, BatchSettlementEvmScheme)
        async with AsyncExitStack() as clients, running(tmp_path, bank, 0) as url:  # who leaves first counts as served
            http = await clients.enter_async_context(wrapHttpxWithPayment(channel, timeout=PATIENCE_S))
            assert (await ask(http, url, "hello"))[-2] == "data: [DONE]"
            streams = [await begin(http, url)]
            other = build_client(once, ExactEvmScheme)
            http = await clients.enter_async_context(wrapHttpxWithPayment(other, timeout=PATIENCE_S))
            streams.append(await begin(http, url))
            assert await bank.token.balance_of(once.address) < before
        for lines in streams:
            with contextlib.suppress(httpx.HTTPError):  # its connection is gone with the process
                await lines.aclose()
        async with running(tmp_path, bank, 1) as url:
            while query(tmp_path, "SELECT state FROM payments") != [(PaymentState.RETURNED,)]:
                await asyncio.sleep(0.05)
            assert await bank.token.balance_of(once.address) == before
            # What was set aside for the cut answer at its head is credit; what it was charged is provisional.
            async with wrapHttpxWithPayment(channel, timeout=PATIENCE_S) as http:
                assert (await ask(http, url, "hello"))[-2] == "data: [DONE]"
            ((channel_id,),) = query(tmp_path, "SELECT channel_id FROM channels")
            with sqlite3.connect(tmp_path / "keys.db") as connection:
                sums = "SELECT sum(amount), sum(amount) FILTER (WHERE purchase IS NULL) FROM charges WHERE key_id = ?"
                key_id = ("x402_" + channel_id.hex(),)
                ((charged, proven),) = connection.execute(sums, key_id).fetchall()
                ((spent,),) = connection.execute("SELECT spent FROM keys WHERE key_id = ?", key_id).fetchall()
            connection.close()
            assert spent == charged >= proven > 0
            while (await bank.settlement.fetch_channels([channel_id]))[0].total_claimed < proven:
                await asyncio.sleep(0.05)
        (state,) = await bank.settlement.fetch_channels([channel_id])
        assert state.total_claimed == proven  # only what receipts prove
