"""Every way to cheat with a voucher, a deposit or a transfer is refused, and no side loses more than what is stated.

The names are those of the tables in docs/payments.md.
"""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import pytest

from deaios.gateway.desk import Limits
from deaios.gateway.x402 import DOOR_KEY, VOUCHERS_PATH, PaymentDoor
from deaios.gateway.x402_store import PaymentState
from deaios.gateway.x402_till import channel_key_id
from deaios.ledger.structs import State
from deaios.market.x402_window import Payer as WindowPayer
from deaios.primitives.errors import Unavailable
from deaios.primitives.units import CREDIT, compute_fee

PATH = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
TEXT = "Hello, wörld!"
PROMPT_TOKENS = len("user:hello\n")
PRICES = (CREDIT, 4 * CREDIT)
QUOTE = compute_fee(PROMPT_TOKENS, 50, *PRICES)
FEE = compute_fee(PROMPT_TOKENS, len(TEXT.encode()) + 1, *PRICES)
DEPOSIT = 100 * QUOTE
PREFIX = "invalid_batch_settlement_evm_"


@dataclass
class Said:
    status: int
    body: object
    required: dict | None
    settled: dict | None

    @property
    def error(self):
        return self.required and self.required.get("error", "").removeprefix(PREFIX)

    @property
    def extra(self):
        return self.required["accepts"][0]["extra"]


@dataclass
class Shop:
    world: object
    chain: object
    payments: object
    payer: object
    session: aiohttp.ClientSession
    kit: object

    @property
    def door(self) -> PaymentDoor:
        return self.world.application[DOOR_KEY]

    async def ask(self, headers=None, body=HELLO, path=PATH, method="POST"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.request(method, self.world.url + path, data=data, headers=headers) as response:
            read = {
                name: self.kit.decode(response.headers[name]) if name in response.headers else None
                for name in ("PAYMENT-REQUIRED", "PAYMENT-RESPONSE")
            }
            text = await response.read()
            body = json.loads(text) if response.content_type == "application/json" else text
            return Said(response.status, body, read["PAYMENT-REQUIRED"], read["PAYMENT-RESPONSE"])

    async def open(self, **parts):
        """The channel's first request, with its deposit."""
        said = await self.ask(self.payer.deposit(QUOTE, QUOTE, DEPOSIT, **parts))
        assert said.status == 200, said.body
        return said

    @property
    def earned(self):
        return self.world.keys.get(channel_key_id(self.payer.channel_id)).spent


@pytest.fixture
def start_shop(start_gateway, x402_money, tmp_path):
    @asynccontextmanager
    async def start(name="payer", chain=None, **settings):
        chain = chain or x402_money.FakeSettlement()
        payments = x402_money.open_payments(tmp_path, chain)
        try:
            async with start_gateway(payments=payments, **settings) as world, aiohttp.ClientSession() as session:
                yield Shop(world, chain, payments, x402_money.Payer(name, chain), session, x402_money)
        finally:
            payments.store.close()

    return start


@pytest.fixture
async def shop(start_shop):
    async with start_shop() as running:
        yield running


# What is asked for


async def test_a_request_without_anything_is_told_what_it_costs(shop):
    said = await shop.ask()
    assert (said.status, said.body["error"]["code"]) == (402, "payment_required")
    channel, exact = said.required["accepts"]
    assert (channel["scheme"], exact["scheme"]) == ("batch-settlement", "exact")
    assert channel["amount"] == exact["amount"] == str(QUOTE)
    assert channel["network"] == f"eip155:{shop.chain.terms.chain_id}"
    assert channel["extra"]["minDeposit"] == str(10 * QUOTE)
    assert shop.world.buyer.orders == []


async def test_what_cannot_be_bought_is_refused_before_it_is_paid_for(shop):
    assert (await shop.ask(body=HELLO | {"model": "other"})).status == 404
    assert (await shop.ask(body=HELLO | {"wishes": 3})).status == 400
    assert (await shop.ask(shop.payer.deposit(QUOTE, QUOTE, DEPOSIT), HELLO | {"max_tokens": 5000})).status == 400
    assert shop.chain.deposits == 0


async def test_a_key_still_serves(shop):
    said = await shop.ask(shop.world.headers)
    assert (said.status, said.settled) == (200, None)
    assert (await shop.ask({"Authorization": "Bearer sk-deaios-none"})).status == 401


@pytest.mark.parametrize("text", ["", "!", "e30=", "bm8=", "W1tbW1tbW1tbW10="])
async def test_garbage_is_no_payment(shop, text):
    said = await shop.ask({"PAYMENT-SIGNATURE": text})
    assert said.status == 400
    assert shop.world.buyer.orders == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
async def test_the_other_doors_are_paid_too(shop, path):
    body = {"model": "tiny", "max_tokens": 50, "prompt": "hello"}
    if path == "/v1/messages":
        body = {"model": "tiny", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
    asked = await shop.ask(body=body, path=path)
    amount = int(asked.required["accepts"][0]["amount"])
    said = await shop.ask(shop.payer.deposit(amount, amount, DEPOSIT), body, path)
    assert (said.status, said.settled["success"]) == (200, True)


# Vouchers


async def test_vouchers_one_after_the_other(shop):
    first = await shop.open()
    assert first.settled["extra"]["chargedAmount"] == str(FEE)
    second = await shop.ask(shop.payer.pay(FEE + QUOTE, QUOTE))
    assert second.settled["extra"]["channelState"]["chargedCumulativeAmount"] == str(2 * FEE)
    assert shop.earned == 2 * FEE


async def test_a_replayed_voucher(shop):
    await shop.open()
    headers = shop.payer.pay(FEE + QUOTE, QUOTE)
    assert (await shop.ask(headers)).status == 200
    said = await shop.ask(headers)
    assert (said.status, said.error) == (402, "cumulative_amount_mismatch")
    state, voucher = said.extra["channelState"], said.extra["voucherState"]
    assert (state["chargedCumulativeAmount"], voucher["signedMaxClaimable"]) == (str(2 * FEE), str(FEE + QUOTE))
    assert voucher["signature"] == shop.payer.voucher(FEE + QUOTE)["signature"]
    assert shop.earned == 2 * FEE


async def test_a_lowered_voucher(shop):
    await shop.open()
    for maximum in (FEE + QUOTE - 1, QUOTE, FEE, 0):
        assert (await shop.ask(shop.payer.pay(maximum, QUOTE))).error == "cumulative_amount_mismatch"
    said = await shop.ask(shop.payer.pay(0, 0), path=VOUCHERS_PATH)
    assert said.error == "cumulative_amount_mismatch"
    assert shop.earned == FEE


async def test_a_foreign_voucher(shop):
    await shop.open()
    stranger = shop.kit.Payer("stranger", shop.chain)
    forged = shop.payer.voucher(FEE + QUOTE, key=stranger.key)
    assert (await shop.ask(shop.payer.pay(0, QUOTE, voucher=forged))).error == "voucher_signature"
    theirs = stranger.voucher(QUOTE)
    assert (await shop.ask(shop.payer.pay(0, QUOTE, voucher=theirs))).error == "channel_id_mismatch"
    assert (await shop.ask(stranger.pay(QUOTE, QUOTE))).error == "channel_not_found"
    assert shop.earned == FEE
    assert len(shop.world.buyer.orders) == 1


async def test_a_voucher_for_somebody_else(shop):
    """Another receiver, authorizer, token, delay, network or price."""
    other = "0x" + "99" * 20
    config = shop.payer.pay(QUOTE, QUOTE)
    payload = shop.kit.decode(config["PAYMENT-SIGNATURE"])["payload"]
    changes = {
        "receiver": "receiver_mismatch",
        "receiverAuthorizer": "receiver_authorizer_mismatch",
        "token": "token_mismatch",
    }
    for name, reason in changes.items():
        changed = payload["channelConfig"] | {name: other}
        assert (await shop.ask(shop.payer.pay(QUOTE, QUOTE, channelConfig=changed))).error == reason
    changed = payload["channelConfig"] | {"withdrawDelay": 901}
    assert (await shop.ask(shop.payer.pay(QUOTE, QUOTE, channelConfig=changed))).error == "withdraw_delay_mismatch"
    for accepted in ({"network": "eip155:1"}, {"asset": other}, {"payTo": other}, {"amount": str(QUOTE - 1)}):
        text = {"accepted": shop.payer.accept("batch-settlement", QUOTE) | accepted, "payload": payload}
        assert (await shop.ask(shop.kit.encode(text))).error == "no_matching_payment_requirements"
    assert shop.world.buyer.orders == []


async def test_an_oversized_voucher(shop):
    await shop.open()
    for maximum in (FEE + QUOTE + 1, DEPOSIT + 1, 1 << 127):
        assert (await shop.ask(shop.payer.pay(maximum, QUOTE))).error == "cumulative_amount_mismatch"
    window = shop.payer.window(1, json.dumps(HELLO).encode())
    for maximum in (DEPOSIT + 1, 1 << 127):
        said = await shop.ask(shop.payer.pay(maximum, QUOTE, window=window))
        assert said.error == "cumulative_exceeds_balance"
    assert shop.earned == FEE


async def test_concurrent_vouchers(start_shop, x402_money):
    gate = asyncio.Event()

    def reply(order):
        return script([gate, tuple(b"x"), (256,)])

    async with start_shop(reply=reply) as shop:
        script = shop.world.script
        opening = asyncio.create_task(shop.open())
        while not shop.world.buyer.purchases:
            await asyncio.sleep(0.01)
        for maximum in (QUOTE, 2 * QUOTE):
            assert (await shop.ask(shop.payer.pay(maximum, QUOTE))).error == "channel_busy"
        assert (await shop.ask(shop.payer.refund(0), method="GET", body=b"")).error == "channel_busy"
        gate.set()
        await opening
        assert len(shop.world.buyer.orders) == 1


async def test_a_voucher_after_the_withdrawal_began(shop):
    await shop.open()
    shop.chain.begin_withdrawal(shop.payer.channel_id)
    await shop.door.keeper.make_round(is_claim_due=False)
    assert shop.payer.state.total_claimed == FEE  # at once, although no claim was due
    said = await shop.ask(shop.payer.pay(FEE + QUOTE, QUOTE))
    assert said.error == "withdrawal_pending"
    assert shop.chain.end_withdrawal(shop.payer.channel_id) == DEPOSIT - FEE
    await shop.door.keeper.make_round(is_claim_due=False)
    assert (await shop.ask(shop.payer.pay(FEE + QUOTE, QUOTE))).error == "cumulative_exceeds_balance"
    assert shop.earned == FEE == shop.payer.state.total_claimed


# Deposits


async def test_deposits_that_are_not_what_they_say(shop):
    good = shop.kit.decode(shop.payer.deposit(QUOTE, QUOTE, DEPOSIT)["PAYMENT-SIGNATURE"])["payload"]["deposit"]
    terms = good["authorization"]["erc3009Authorization"]

    def change(amount=DEPOSIT, **parts):
        return {"amount": str(amount), "authorization": {"erc3009Authorization": terms | parts}}

    cases = (
        (change(DEPOSIT + 1), "receive_authorization_signature"),
        (change(salt="0x" + "77" * 32), "receive_authorization_signature"),
        (change(validBefore="1"), "payload_authorization_valid_before"),
        (change(999), "deposit_below_min_deposit"),
        (change(1 << 100), "deposit_payload"),
    )
    for deposit, reason in cases:
        said = await shop.ask(shop.payer.pay(QUOTE, QUOTE, type="deposit", deposit=deposit))
        assert said.error == reason
    assert shop.chain.deposits == 0
    assert [record.key_id for record in shop.world.keys.list_keys()] == [shop.world.key_id]  # strangers leave nothing


async def test_a_deposit_is_taken_once(shop):
    headers = shop.payer.deposit(QUOTE, QUOTE, DEPOSIT)
    assert (await shop.ask(headers)).status == 200
    assert (await shop.ask(headers)).error == "cumulative_amount_mismatch"
    assert (shop.chain.deposits, shop.payer.state.balance) == (1, DEPOSIT)


async def test_a_deposit_whose_answer_was_lost(shop):
    shop.chain.loses_answers = True
    said = await shop.ask(shop.payer.deposit(QUOTE, QUOTE, DEPOSIT))
    assert said.status == 503
    shop.chain.loses_answers = False
    assert (await shop.ask(shop.payer.pay(QUOTE, QUOTE))).status == 200  # the money is in the channel all the same
    assert shop.payer.state.balance == DEPOSIT


# What fails is not charged


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_fails_is_not_charged(start_shop, stream):
    failing = True

    def reply(order):
        if failing:
            return Unavailable("provider broke")
        return shop.world.say(TEXT)

    async with start_shop(reply=reply) as shop:
        body = HELLO | {"stream": stream}
        said = await shop.ask(shop.payer.deposit(QUOTE, QUOTE, DEPOSIT), body)
        assert said.status == 503
        assert said.settled["extra"]["chargedAmount"] == "0"
        failing = False
        said = await shop.ask(shop.payer.pay(QUOTE, QUOTE), body)  # the same voucher again
        assert said.status == 200
        assert shop.earned == FEE


async def test_a_stream_that_breaks_leaves_the_quote_as_credit(start_shop):
    def reply(order):
        if len(shop.world.buyer.orders) == 1:
            return shop.world.script([tuple(b"Hel"), (256,)], state=State.FAILED_PROVIDER)
        return shop.world.say(TEXT)

    async with start_shop(reply=reply) as shop:
        said = await shop.ask(shop.payer.deposit(QUOTE, QUOTE, DEPOSIT), HELLO | {"stream": True})
        assert b"error" in said.body
        assert (said.settled["extra"]["chargedAmount"], shop.earned) == (str(QUOTE), 0)
        said = await shop.ask(shop.payer.pay(2 * QUOTE, QUOTE))
        assert (said.settled["extra"]["chargedAmount"], shop.earned) == ("0", FEE)
        await shop.door.keeper.make_round(is_claim_due=True)
        assert shop.payer.state.total_claimed == FEE  # credit is never claimed


# Refunds and claims


async def test_a_refund_gives_back_all_but_what_was_earned(shop):
    await shop.open()
    said = await shop.ask(shop.payer.refund(FEE, amount=str(QUOTE)), method="GET", body=b"")
    assert (said.status, said.settled["amount"]) == (200, str(QUOTE))
    assert shop.payer.state.balance == DEPOSIT - QUOTE
    said = await shop.ask(shop.payer.refund(FEE), method="GET", body=b"")
    assert (said.settled["success"], said.settled["amount"]) == (True, str(DEPOSIT - QUOTE - FEE))
    assert shop.payer.state == replace(shop.payer.state, balance=FEE, total_claimed=FEE)
    assert (await shop.ask(shop.payer.refund(FEE), method="GET", body=b"")).error == "refund_no_balance"
    # Old vouchers buy nothing from what is gone.
    window = shop.payer.window(1, json.dumps(HELLO).encode())
    assert (await shop.ask(shop.payer.pay(FEE, QUOTE, window=window))).error == "voucher_needed"


async def test_a_refund_needs_the_payer(shop):
    await shop.open()
    stranger = shop.kit.Payer("stranger", shop.chain)
    forged = shop.payer.voucher(FEE, key=stranger.key)
    said = await shop.ask(shop.payer.refund(0, voucher=forged), method="GET", body=b"")
    assert (said.error, said.settled["success"]) == ("voucher_signature", False)
    assert shop.payer.state.balance == DEPOSIT


async def test_claims_come_in_batches(shop, monkeypatch):
    monkeypatch.setattr("deaios.gateway.x402_keeper.CLAIMS_MAX", 4)
    for number in range(6):
        payer = shop.kit.Payer(f"payer {number}", shop.chain)
        assert (await shop.ask(payer.deposit(QUOTE, QUOTE, DEPOSIT))).status == 200
    for _ in range(2):
        await shop.door.keeper.make_round(is_claim_due=True)
        assert shop.chain.batches == [4, 2]
    assert shop.chain.swept == 6 * FEE


# Transfers


async def test_a_transfer_pays_what_was_asked(shop):
    headers, _ = shop.payer.transfer(QUOTE)
    said = await shop.ask(headers)
    assert (said.status, said.settled["amount"]) == (200, str(QUOTE))
    assert shop.chain.balances[shop.kit.GATEWAY.address] == QUOTE
    assert (await shop.ask(headers)).required["error"] == "invalid_exact_evm_nonce_already_used"
    assert len(shop.world.buyer.orders) == 1


async def test_transfers_that_are_not_what_was_asked(shop):
    stranger = shop.kit.Payer("stranger", shop.chain)
    cases = (
        ({"to": stranger.key.address}, "invalid_exact_evm_payload_recipient_mismatch"),
        ({"value": QUOTE - 1}, "invalid_exact_evm_payload_authorization_value"),
        ({"value": QUOTE + 1}, "invalid_exact_evm_payload_authorization_value"),
        ({"valid_before": 1}, "invalid_exact_evm_payload_authorization_valid_before"),
        ({"valid_after": 1 << 39}, "invalid_exact_evm_payload_authorization_valid_after"),
        ({"key": stranger.key}, "invalid_exact_evm_payload_signature"),
    )
    for change, reason in cases:
        headers, _ = shop.payer.transfer(QUOTE, **change)
        assert (await shop.ask(headers)).required["error"] == reason
    assert shop.world.buyer.orders == []
    assert shop.chain.used == {}


async def test_a_transfer_for_an_answer_that_failed_comes_back(start_shop):
    async with start_shop(reply=lambda order: Unavailable("provider broke")) as shop:
        before = shop.chain.balances[shop.payer.key.address]
        headers, authorization = shop.payer.transfer(QUOTE)
        said = await shop.ask(headers)
        assert (said.status, said.settled["extra"]["state"]) == (503, "owed")
        for _ in range(2):
            await shop.door.counter.tidy()
        assert shop.chain.balances[shop.payer.key.address] == before
        row = shop.payments.store.find_payment(authorization.from_, authorization.nonce)
        assert row.state == PaymentState.RETURNED


async def test_a_transfer_for_a_stream_that_broke_comes_back(start_shop):
    def reply(order):
        return shop.world.script([tuple(b"Hel"), (256,)], state=State.FAILED_PROVIDER)

    async with start_shop(reply=reply) as shop:
        before = shop.chain.balances[shop.payer.key.address]
        headers, _ = shop.payer.transfer(QUOTE)
        said = await shop.ask(headers, HELLO | {"stream": True})
        assert (said.status, said.settled["success"]) == (200, True)
        assert b"error" in said.body
        await shop.door.counter.tidy()
        assert shop.chain.balances[shop.payer.key.address] == before


async def test_a_transfer_whose_answer_was_lost_comes_back(shop):
    before = shop.chain.balances[shop.payer.key.address]
    shop.chain.loses_answers = True
    headers, _ = shop.payer.transfer(QUOTE)
    assert (await shop.ask(headers)).status == 503
    shop.chain.loses_answers = False
    await shop.door.counter.tidy()
    assert shop.chain.balances[shop.payer.key.address] == before
    assert shop.world.buyer.orders == []


async def test_a_transfer_that_was_cancelled_brings_nothing_back(shop):
    """Its nonce is used, but no money came: whoever cancels in time is not paid for it."""
    headers, authorization = shop.payer.transfer(QUOTE)
    shop.chain.used[authorization.from_, authorization.nonce] = None
    before = dict(shop.chain.balances)
    assert (await shop.ask(headers)).required["error"] == "invalid_exact_evm_transaction_failed"
    await shop.door.counter.tidy()
    assert shop.chain.balances == before
    row = shop.payments.store.find_payment(authorization.from_, authorization.nonce)
    assert row.state == PaymentState.DROPPED


# Window mode


async def test_256_streams_on_one_channel(start_shop):
    gate, count = asyncio.Event(), 256
    limits = Limits(answers_max=count + 8, answers_per_key_max=count + 8)

    def reply(order):
        return shop.world.script([tuple(b"Hello, "), gate, tuple("wörld!".encode()), (256,)])

    async with start_shop(reply=reply, limits=limits) as shop:
        payer = WindowPayer(window=(count + 1) * QUOTE, deposit=2 * count * QUOTE)
        body = json.dumps(HELLO | {"stream": True}).encode()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as shop.session:
            headers = []
            for _ in range(count):
                payer = payer.open(QUOTE)
                window = shop.payer.window(payer.sequence, body)
                headers.append(shop.payer.pay(payer.signed, QUOTE, window=window))
            top_up = shop.payer.deposit(payer.signed, 0, payer.deposit)
            assert (await shop.ask(top_up, path=VOUCHERS_PATH, body=b"")).status == 200
            tasks = [asyncio.create_task(shop.ask(header, body)) for header in headers]
            while len(shop.world.buyer.purchases) < count:
                await asyncio.sleep(0.01)
            assert len({task for task in tasks if not task.done()}) == count
            # One more than was signed for, and one that was seen before.
            extra = shop.payer.pay(payer.signed, QUOTE, window=shop.payer.window(count + 1, body))
            one_more = asyncio.create_task(shop.ask(extra, body))
            refused = await shop.ask(shop.payer.pay(payer.signed, QUOTE, window=shop.payer.window(9, body)), body)
            assert refused.error in {"request_replayed", "voucher_needed"}
            gate.set()
            said = await asyncio.gather(*tasks)
            await one_more
        assert {item.status for item in said} == {200}
        assert shop.earned <= payer.signed


async def test_a_request_in_window_mode_is_served_once(shop):
    await shop.open()
    body = json.dumps(HELLO).encode()
    headers = shop.payer.pay(10 * QUOTE, QUOTE, window=shop.payer.window(5, body))
    assert (await shop.ask(headers)).status == 200
    assert (await shop.ask(headers)).error == "request_replayed"
    other = json.dumps(HELLO | {"seed": 7}).encode()
    stolen = shop.payer.pay(10 * QUOTE, QUOTE, window=shop.payer.window(6, body))
    assert (await shop.ask(stolen, other)).error == "request_signature"
    late = shop.payer.pay(10 * QUOTE, QUOTE, window=shop.payer.window(3, body))
    assert (await shop.ask(late)).status == 200
    assert shop.earned == 3 * FEE


async def test_a_window_is_a_bound(shop):
    await shop.open()
    body = json.dumps(HELLO).encode()
    said = await shop.ask(shop.payer.pay(FEE + QUOTE - 1, QUOTE, window=shop.payer.window(1, body)))
    assert (said.error, said.extra["needed"]) == ("voucher_needed", str(FEE + QUOTE))
    said = await shop.ask(shop.payer.pay(FEE + QUOTE, QUOTE, window=shop.payer.window(1, body)))
    assert said.status == 200


async def test_kept_after_a_restart(start_shop, x402_money):
    chain = x402_money.FakeSettlement()
    body = json.dumps(HELLO).encode()
    async with start_shop(chain=chain) as shop:
        await shop.open()
        window = shop.payer.window(1, body)
        assert (await shop.ask(shop.payer.pay(FEE + QUOTE, QUOTE, window=window))).status == 200
    async with start_shop(chain=chain, buyer=shop.world.buyer) as shop:
        said = await shop.ask(shop.payer.pay(10 * QUOTE, QUOTE, window=window))
        assert said.error == "request_replayed"
        sequence = int(said.extra["channelState"]["nextSequence"])
        again = shop.payer.window(sequence, body)
        assert (await shop.ask(shop.payer.pay(10 * QUOTE, QUOTE, window=again))).status == 200
        assert shop.earned == 3 * FEE
        await shop.door.keeper.make_round(is_claim_due=True)
        assert shop.payer.state.total_claimed == 3 * FEE


async def test_a_gateway_that_lost_its_journal_loses_what_it_had_not_claimed(start_shop, x402_money, tmp_path):
    chain = x402_money.FakeSettlement()
    async with start_shop(chain=chain) as shop:
        await shop.open()
        await shop.door.keeper.make_round(is_claim_due=True)
        assert (await shop.ask(shop.payer.pay(FEE + QUOTE, QUOTE))).status == 200
    for path in (*tmp_path.glob("x402.db*"), *tmp_path.glob("keys.sqlite*")):
        path.unlink()
    async with start_shop(chain=chain) as shop:
        said = await shop.ask(shop.payer.pay(2 * FEE + QUOTE, QUOTE))
        assert (said.error, said.extra["channelState"]["chargedCumulativeAmount"]) == (
            "cumulative_amount_mismatch",
            str(FEE),
        )
        assert (await shop.ask(shop.payer.pay(FEE + QUOTE, QUOTE))).status == 200


def test_markup_never_lets_more_be_paid_than_is_paid_for(x402_money):
    for markup in (0, 1, 999, 10_000):
        terms = replace(x402_money.TERMS, markup_bps=markup)
        for cost in (0, 1, 7, 10**6):
            assert terms.cover(terms.price(cost)) >= cost
            assert terms.price(terms.cover(cost)) <= cost or markup == 0


async def test_nothing_is_lost_while_the_chain_stands_still(shop):
    await shop.open()
    shop.chain.is_down = True
    assert (await shop.ask(shop.payer.pay(FEE + QUOTE, QUOTE))).status == 200  # what was seen a moment ago is enough
    before = dict(shop.chain.balances)
    stranger = shop.kit.Payer("stranger", shop.chain)
    assert (await shop.ask(stranger.deposit(QUOTE, QUOTE, DEPOSIT))).status == 503
    headers, authorization = shop.payer.transfer(QUOTE)
    assert (await shop.ask(headers)).status == 503
    shop.chain.is_down = False
    await shop.door.keeper.make_round(is_claim_due=True)
    assert shop.payer.state.total_claimed == shop.earned == 2 * FEE
    assert shop.chain.balances == before | {stranger.key.address: 10**9}
    row = shop.payments.store.find_payment(authorization.from_, authorization.nonce)
    assert row.state == PaymentState.PAYING  # until its time is over: it could still be taken
