"""Stock x402 v2 clients, unmodified, buy completions: Python and npm, by channel and by transfer, streamed and not."""

import asyncio
import json

import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.clients import wrapHttpxWithPayment
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner, EthAccountSignerWithRPC

from deaios.primitives.encoding import encode_hex
from deaios.primitives.units import CREDIT, compute_fee

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
TEXT = "Hello, wörld!"
PROMPT_TOKENS = len("user:hello\n")
PRICES = (CREDIT, 4 * CREDIT)
QUOTE = compute_fee(PROMPT_TOKENS, 50, *PRICES)
FEE = compute_fee(PROMPT_TOKENS, len(TEXT.encode()) + 1, *PRICES)
PATH = "/v1/chat/completions"


@pytest.fixture
async def bank(x402_kit, tmp_path):
    async with x402_kit.open_bank(tmp_path) as opened:
        yield opened


def build_client(bank, key, kind, *, has_rpc=False):
    account = Account.from_key(key.secret)
    signer = EthAccountSignerWithRPC(account, bank.url) if has_rpc else EthAccountSigner(account)
    scheme = kind(signer)
    # Clients only pay with the stable coins that they know, unless their user says otherwise.
    return x402Client().register("eip155:*", scheme).set_spend_controls(False), scheme


def read_settled(response):
    return decode_payment_response_header(response.headers["PAYMENT-RESPONSE"])


async def ask(http, world, **extra):
    """One completion; what was said at its head, and its text."""
    async with http.stream("POST", world.url + PATH, json=HELLO | extra) as response:
        assert response.status_code == 200, await response.aread()
        settled = read_settled(response)
        if not extra.get("stream"):
            await response.aread()
            return settled, response.json()["choices"][0]["message"]["content"]
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "deaios" in chunks[-1]
    return settled, "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def apart(work):
    """Run a client on a thread and loop of its own: its calls to the chain block, and the chain is on this loop."""
    return asyncio.to_thread(lambda: asyncio.run(work()))


@pytest.mark.parametrize("has_rpc", [False, True])
async def test_python_buys_by_channel_and_takes_the_rest_back(bank, start_gateway, tmp_path, has_rpc):
    payer = await bank.open_payer("python")
    payments = bank.open_payments(tmp_path)
    async with start_gateway(payments=payments) as world:
        client, scheme = build_client(bank, payer, BatchSettlementEvmScheme, has_rpc=has_rpc)

        async def buy():
            async with wrapHttpxWithPayment(client, timeout=60) as http:
                # A stream's head is sent before its price is known; what it costs less pays for what comes next.
                return [await ask(http, world, stream=stream) for stream in (False, False, True, False)]

        found = await apart(buy)
        assert {text for _, text in found} == {TEXT}
        first = found[0][0]
        assert (first.amount, len(first.transaction)) == (str(10 * QUOTE), 66)
        assert [settled.transaction for settled, _ in found[1:]] == [""] * 3
        charged = [settled.extra["chargedAmount"] for settled, _ in found]
        assert charged == [str(FEE), str(FEE), str(QUOTE), str(max(0, 2 * FEE - QUOTE))]
        assert found[3][0].extra["channelState"]["earnedCumulativeAmount"] == str(4 * FEE)
        before = await bank.token.balance_of(payer.address)
        refunded = await asyncio.to_thread(scheme.refund, world.url + PATH)
        assert refunded.success
        assert await bank.token.balance_of(payer.address) - before == int(refunded.amount) == 10 * QUOTE - 4 * FEE
        assert await payments.chain.sweep() == 4 * FEE
        assert await bank.token.balance_of(bank.gateway.address) == 4 * FEE


async def test_python_that_lost_its_notes_is_corrected(bank, start_gateway, tmp_path):
    payer = await bank.open_payer("forgetful")
    async with start_gateway(payments=bank.open_payments(tmp_path)) as world:
        for turn in range(3):  # a client that keeps nothing from one process to the next
            client, _ = build_client(bank, payer, BatchSettlementEvmScheme, has_rpc=True)

            async def buy(client=client, turn=turn):
                async with wrapHttpxWithPayment(client, timeout=60) as http:
                    return await ask(http, world, stream=turn == 0)

            settled, text = await apart(buy)
            assert text == TEXT
        assert settled.extra["channelState"]["earnedCumulativeAmount"] == str(3 * FEE)


async def test_python_buys_by_transfer(bank, start_gateway, tmp_path):
    payer = await bank.open_payer("exact")
    async with start_gateway(payments=bank.open_payments(tmp_path)) as world:
        client, _ = build_client(bank, payer, ExactEvmScheme)
        async with wrapHttpxWithPayment(client, timeout=60) as http:
            for stream in (False, True):
                before = await bank.token.balance_of(payer.address)
                settled, text = await ask(http, world, stream=stream)
                assert (text, settled.amount) == (TEXT, str(QUOTE))
                assert len(settled.transaction) == 66
                assert before - await bank.token.balance_of(payer.address) == QUOTE


async def test_another_token_is_money_too(x402_kit, start_gateway, tmp_path):
    async with x402_kit.open_bank(tmp_path, "Euro Token", "7") as bank:
        payer = await bank.open_payer("euro")
        async with start_gateway(payments=bank.open_payments(tmp_path)) as world:
            for kind in (BatchSettlementEvmScheme, ExactEvmScheme):
                client, _ = build_client(bank, payer, kind)
                async with wrapHttpxWithPayment(client, timeout=60) as http:
                    assert (await ask(http, world))[1] == TEXT


@pytest.mark.parametrize("scheme", ["batch-settlement", "exact"])
async def test_npm_buys(bank, start_gateway, tmp_path, peers, scheme):
    payer = await bank.open_payer("npm")
    async with start_gateway(payments=bank.open_payments(tmp_path)) as world:
        found = json.loads(
            await asyncio.to_thread(peers.run_script, "x402.mjs", world.url, bank.url, encode_hex(payer.secret), scheme)
        )
    answers = found["answers"]
    assert [answer["status"] for answer in answers] == [200] * 4
    assert answers[0]["settled"]["success"]
    assert json.loads(answers[3]["text"])["choices"][0]["message"]["content"] == TEXT
    assert answers[2]["text"].endswith("data: [DONE]\n\n")
    if scheme == "exact":
        assert [answer["settled"]["amount"] for answer in answers] == [str(QUOTE)] * 4
    else:
        charged = [answer["settled"]["extra"]["chargedAmount"] for answer in answers]
        assert charged == [str(FEE), str(FEE), str(QUOTE), str(max(0, 2 * FEE - QUOTE))]
        assert found["refund"]["success"]
        assert int(found["refund"]["amount"]) == 10 * QUOTE - 4 * FEE
