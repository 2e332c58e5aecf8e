"""The provider over HTTP: admission, streams, retries, cancels, crashes, batches, claims."""

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from deaios.compute.logprobs import LOGPROB_MICRO_MIN
from deaios.ledger.eip712 import decode_json, hash_struct, sign_struct
from deaios.ledger.structs import Cancel, FinishReason, Offer, Receipt, State
from deaios.market.batches import validate_batch, verify_receipt
from deaios.market.offers import validate_offer
from deaios.market.opening import Opening
from deaios.market.receipts import validate_opening
from deaios.market.seller.service import Seller
from deaios.market.seller.service.pace import EndPace
from deaios.market.seller.service.runs import PORTION_TOKENS_MAX
from deaios.market.seller.service.settlement import UnavailableSettlement
from deaios.market.store import Journal, UnavailableJournal
from deaios.market.wire import (
    Admitted,
    BatchAnswer,
    CancelBody,
    Finished,
    OfferAnswer,
    OutcomeAnswer,
    ProofAnswer,
    Tokens,
    build_tokens,
    decode_line,
    encode_line,
    encode_papers,
    read_batch,
    read_needed,
    read_offer,
    read_outcome,
    read_proof,
    read_receipt,
)
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Refused, Unavailable
from deaios.primitives.hashing import ZERO32
from deaios.primitives.units import CREDIT
from deaios.runtime.client import LINE_BYTES_MAX, HttpClient, RefusedByPeer, UnavailablePeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve


class FixedClock(SystemClock):
    """Wall time that tests set."""

    def __init__(self, now_ms):
        self.value_ms = now_ms

    def now_ms(self):
        return self.value_ms


class Shop:
    """A running provider and a client that speaks its protocol by hand."""

    def __init__(self, kit, seller, url, http, chain, generator, vault):
        self.kit, self.seller, self.url, self.http = kit, seller, url, http
        self.chain, self.generator, self.vault = chain, generator, vault

    async def offer(self):
        offer, signature = read_offer(await self.http.get_json(f"{self.url}/offer", OfferAnswer))
        return validate_offer(self.kit.TERMS.protocol, offer, signature, self.kit.SELLER.address, self.kit.NOW_MS)

    async def papers(self, name="order", **changes):
        order = changes.pop("order", None) or self.kit.build_order(name)
        return self.kit.build_papers(await self.offer(), order, **changes)

    async def lines(self, papers):
        stream = self.http.stream_lines(f"{self.url}/purchases", encode_papers(papers))
        return [decode_line(line) async for line in stream]

    async def buy(self, papers):
        lines = await self.lines(papers)
        assert isinstance(lines[0], Admitted)
        assert lines[0].prefix == len(papers.prefix)
        ids = tuple(token for line in lines if isinstance(line, Tokens) for token in line.ids)
        assert isinstance(lines[-1], Finished)
        return self.opening(papers, ids, read_receipt(lines[-1].receipt, lines[-1].signature), await self.offer())

    def opening(self, papers, ids, entry, offer):
        return Opening(
            ask=papers.ask,
            salt=papers.salt,
            offer=offer.offer,
            offer_signature=offer.signature,
            request=papers.request,
            request_signature=papers.request_signature,
            output_ids=ids[: entry.receipt.completion_tokens],
            receipt=entry.receipt,
            receipt_signature=entry.signature,
        )

    async def cancel(self, papers, tokens, key=None):
        digest = papers.request_digest
        signed = Cancel(request_digest=digest, tokens=tokens)
        signature = sign_struct(key or self.kit.BUYER, self.kit.TERMS.protocol, signed)
        body = CancelBody(tokens=tokens, signature=encode_hex(signature))
        url = f"{self.url}/purchases/{encode_hex(digest)}/cancel"
        return read_outcome(await self.http.post_json(url, body, OutcomeAnswer))


@pytest.fixture
def open_shop(kit, journal):
    @asynccontextmanager
    async def open_it(*, chain=None, generator=None, vault=None, key=None, clock=None, **settings):
        chain = chain or kit.FakeChain()
        if not chain.channels:
            chain.put(kit.build_config(), 5 * CREDIT)
        generator, vault = generator or kit.FakeGenerator(), vault or kit.FakeVault()
        seller = Seller(
            key or kit.SELLER,
            kit.TERMS,
            kit.build_settings(**settings),
            journal,
            chain,
            generator,
            vault,
            clock=clock or FixedClock(kit.NOW_MS),
        )
        async with seller, serve(seller.application) as url, HttpClient() as http:
            yield Shop(kit, seller, url, http, chain, generator, vault)

    return open_it


async def test_purchase_streams_and_ends_with_a_true_receipt(kit, open_shop):
    async with open_shop() as shop:
        opening = await shop.buy(await shop.papers())
    validate_opening(kit.TERMS.protocol, opening)
    receipt = opening.receipt
    assert opening.output_ids == await kit.expected_ids(kit.build_order(), kit.BUYER.address, 16)
    assert (receipt.counter, receipt.prev_receipt, receipt.state) == (1, ZERO32, State.SERVED)
    assert receipt.fee == receipt.charged_cumulative == 3 + 4 * 16
    assert receipt.batch_deadline_block == 100 + 1200


async def test_many_streams_on_one_channel(kit, open_shop):
    async with open_shop() as shop:
        many = [await shop.papers(f"order {n}") for n in range(48)]
        openings = await asyncio.gather(*(shop.buy(papers) for papers in many))
        state = shop.seller.desk.channels[channel_of(kit)].state
    by_counter = sorted((opening.receipt for opening in openings), key=lambda receipt: receipt.counter)
    assert [receipt.counter for receipt in by_counter] == list(range(1, 49))
    total, before = 0, ZERO32
    for receipt in by_counter:
        total += receipt.fee
        assert (receipt.charged_cumulative, receipt.prev_receipt) == (total, before)
        before = hash_struct(receipt)
    assert (state.charged, state.reserved) == (total, 0)


def channel_of(kit):
    return kit.TERMS.channel_id(kit.build_config())


async def test_same_request_is_never_billed_twice(kit, open_shop):
    async with open_shop() as shop:
        papers = await shop.papers()
        first = await shop.buy(papers)
        again = await shop.buy(papers)
        assert first == again
    assert shop.generator.started == 1
    async with open_shop(chain=shop.chain, generator=shop.generator) as shop:
        assert await shop.buy(papers) == first
        assert shop.seller.desk.last_counter == 1
    assert shop.generator.started == 1


async def test_lost_connection_resumes_the_running_purchase(kit, open_shop):
    gate = asyncio.Semaphore(3)
    async with open_shop(generator=kit.FakeGenerator(gate=gate)) as shop:
        papers = await shop.papers()
        seen = []
        stream = shop.http.stream_lines(f"{shop.url}/purchases", encode_papers(papers))
        async for line in stream:
            seen.append(decode_line(line))
            if sum(len(line.ids) for line in seen if isinstance(line, Tokens)) == 3:
                break
        await stream.aclose()
        for _ in range(100):
            gate.release()
        opening = await shop.buy(papers)
    validate_opening(kit.TERMS.protocol, opening)
    assert (shop.generator.started, opening.receipt.completion_tokens) == (1, 16)


async def test_voucher_refusal_names_the_amount(kit, open_shop):
    async with open_shop() as shop:
        with pytest.raises(RefusedByPeer) as refusal:
            await shop.lines(await shop.papers(signed=66))
        assert (refusal.value.status, refusal.value.title) == (402, "RefusedVoucher")
        assert read_needed(refusal.value.body) == 67
        await shop.buy(await shop.papers(signed=67))


async def test_deposit_refusal_names_the_amount_and_sees_a_new_deposit(kit, open_shop):
    chain = kit.FakeChain()
    chain.put(kit.build_config(), 66)
    async with open_shop(chain=chain) as shop:
        papers = await shop.papers()
        with pytest.raises(RefusedByPeer) as refusal:
            await shop.lines(papers)
        assert (refusal.value.title, read_needed(refusal.value.body)) == ("RefusedDeposit", 67)
        chain.put(kit.build_config(), 1)
        await shop.buy(papers)


async def test_money_being_withdrawn_is_not_lent(kit, open_shop):
    chain = kit.FakeChain()
    chain.put(kit.build_config(), 100)
    await chain.initiate_withdraw(kit.build_config(), 40)
    async with open_shop(chain=chain) as shop:
        with pytest.raises(RefusedByPeer, match="RefusedDeposit"):
            await shop.lines(await shop.papers())


@pytest.mark.parametrize(
    ("change", "status", "title"),
    [
        ({"request": {"offer_digest": ZERO32}}, 403, "RefusedPurchase"),
        ({"request": {"anchor_block_hash": ZERO32}}, 403, "RefusedPurchase"),
        ({"request": {"provider": bytes(20)}}, 400, "InvalidPurchase"),
    ],
    ids=["offer", "anchor", "provider"],
)
async def test_refusals_cost_nothing_and_leave_no_counter(kit, open_shop, change, status, title):
    async with open_shop() as shop:
        with pytest.raises(RefusedByPeer) as refusal:
            await shop.lines(await shop.papers(**change))
        assert (refusal.value.status, refusal.value.title) == (status, title)
        assert (shop.seller.desk.last_counter, shop.seller.desk.open_count, shop.generator.started) == (0, 0, 0)


async def test_full_house_is_busy_and_says_when(kit, open_shop):
    gate = asyncio.Semaphore(0)
    async with open_shop(generator=kit.FakeGenerator(gate=gate), streams_max=1, queue_max=1) as shop:
        tasks = [asyncio.create_task(shop.buy(await shop.papers(name))) for name in ("a", "b")]
        await kit.wait_for(lambda: shop.seller.desk.open_count == 2)
        with pytest.raises(RefusedByPeer) as refusal:
            await shop.lines(await shop.papers("c"))
        assert refusal.value.status == 429
        for _ in range(32):
            gate.release()
        assert [opening.receipt.state for opening in await asyncio.gather(*tasks)] == [State.SERVED] * 2


class RefusedByEngine(Refused):
    """The engine declines."""


@pytest.mark.parametrize(
    ("error", "state"),
    [(RefusedByEngine("no"), State.REFUSED), (RuntimeError("bug"), State.FAILED_PROVIDER)],
    ids=["refused", "bug"],
)
async def test_engine_failure_is_a_free_signed_receipt(kit, open_shop, error, state):
    async with open_shop(generator=kit.FakeGenerator(fail_after=2, error=error)) as shop:
        papers = await shop.papers()
        opening = await shop.buy(papers)
        validate_opening(kit.TERMS.protocol, opening)
        assert (opening.receipt.state, opening.receipt.fee, opening.output_ids) == (state, 0, ())
        assert shop.seller.desk.channels[channel_of(kit)].state.reserved == 0
        again = await shop.buy(papers)
    assert (again.receipt, shop.generator.started) == (opening.receipt, 1)


async def test_generator_without_an_end_fails_instead_of_running_on(kit, open_shop):
    class Endless(kit.FakeGenerator):
        async def __call__(self, wanted):
            while True:
                yield kit.Piece(5)

    async with open_shop(generator=Endless()) as shop:
        opening = await shop.buy(await shop.papers())
    assert (opening.receipt.state, opening.receipt.fee) == (State.FAILED_PROVIDER, 0)


async def test_stuck_purchase_fails_after_its_time(kit, open_shop):
    async with open_shop(generator=kit.FakeGenerator(gate=asyncio.Semaphore(1)), purchase_s_max=0.05) as shop:
        opening = await shop.buy(await shop.papers())
    assert (opening.receipt.state, shop.generator.closed) == (State.FAILED_PROVIDER, 1)


async def test_cancel_is_paid_up_to_the_acknowledged_tokens(kit, open_shop):
    gate = asyncio.Semaphore(5)
    async with open_shop(generator=kit.FakeGenerator(gate=gate)) as shop:
        papers = await shop.papers()
        buying = asyncio.create_task(shop.buy(papers))
        digest = papers.request_digest
        await kit.wait_for(lambda: (run := shop.seller.desk._runs.get(digest)) is not None and len(run.ids) == 5)
        with pytest.raises(RefusedByPeer, match="InvalidCancel"):
            await shop.cancel(papers, 3, kit.SELLER)
        with pytest.raises(RefusedByPeer, match="5 were sampled"):
            await shop.cancel(papers, 6)
        ids, entry = await shop.cancel(papers, 3)
        opening = await buying
        assert (ids, entry.receipt) == (opening.output_ids, opening.receipt)
        validate_opening(kit.TERMS.protocol, opening, acknowledged=3)
        assert (opening.receipt.state, opening.receipt.fee) == (State.CANCELLED, 3 + 12)
        assert shop.generator.closed == 1
        assert await shop.cancel(papers, 0) == (ids, entry)


async def test_who_reads_all_and_acknowledges_nothing_pays_in_full_beyond_a_bound(kit, open_shop):
    """A buyer is free to cancel and to acknowledge less than came; a bound makes it no way to read for nothing."""
    gate = asyncio.Semaphore(0)
    async with open_shop(generator=kit.FakeGenerator(gate=gate), unpaid_max=100) as shop:

        async def read_and_deny(name):
            papers = await shop.papers(name)
            buying = asyncio.create_task(shop.buy(papers))
            for _ in range(15):
                gate.release()
            desk = shop.seller.desk
            await kit.wait_for(lambda: (run := desk._runs.get(papers.request_digest)) and len(run.ids) == 15)
            return papers, buying

        papers, buying = await read_and_deny("first")
        _, entry = await shop.cancel(papers, 0)
        assert (entry.receipt.state, entry.receipt.fee) == (State.CANCELLED, 0)
        await buying
        papers, buying = await read_and_deny("second")
        with pytest.raises(RefusedByPeer, match=r"RefusedCancel: .*63 unpaid.*126.*100") as refusal:
            await shop.cancel(papers, 0)
        assert refusal.value.status == 403
        gate.release()
        opening = await buying
        assert (opening.receipt.state, opening.receipt.fee) == (State.SERVED, 3 + 64)
        # Whoever acknowledges what came may still cancel.
        papers, buying = await read_and_deny("third")
        _, entry = await shop.cancel(papers, 15)
        assert (entry.receipt.state, entry.receipt.fee) == (State.CANCELLED, 3 + 60)
        await buying


async def test_cancel_of_the_unknown_is_not_found(kit, open_shop):
    async with open_shop() as shop:
        with pytest.raises(RefusedByPeer) as refusal:
            await shop.cancel(await shop.papers(), 0)
        assert refusal.value.status == 404


async def test_cancel_after_the_end_returns_what_was_served(kit, open_shop):
    async with open_shop() as shop:
        papers = await shop.papers()
        opening = await shop.buy(papers)
        ids, entry = await shop.cancel(papers, 0)
        assert (ids, entry.receipt) == (opening.output_ids, opening.receipt)


def cut_off(journal):
    """Bring a journal to where `kill -9` after admission leaves it: admitted, without receipt."""
    with sqlite3.connect(journal) as connection:
        connection.execute("UPDATE purchases SET counter = NULL, output_ids = NULL")
        connection.execute("DELETE FROM receipts")
        connection.execute("DELETE FROM batches")
        connection.execute("UPDATE channels SET charged = '0'")
    connection.close()


async def test_restart_fails_what_a_crash_cut_off(kit, open_shop, journal):
    chain = kit.FakeChain()
    async with open_shop(chain=chain) as shop:
        papers = await shop.papers()
        await shop.buy(papers)
        chain.down = True
    cut_off(journal)
    chain.down = False
    async with open_shop(chain=chain) as shop:
        assert shop.seller.desk.last_counter == 1
        opening = await shop.buy(papers)
        validate_opening(kit.TERMS.protocol, opening)
        assert (opening.receipt.state, opening.receipt.fee) == (State.FAILED_PROVIDER, 0)
        assert shop.generator.started == 0
        following = await shop.buy(await shop.papers("next"))
    assert (following.receipt.counter, following.receipt.prev_receipt) == (2, hash_struct(opening.receipt))


async def test_stop_gives_open_purchases_their_receipts(kit, open_shop):
    gate = asyncio.Semaphore(2)
    chain = kit.FakeChain()
    async with open_shop(chain=chain, generator=kit.FakeGenerator(gate=gate)) as shop:
        papers = await shop.papers()
        buying = asyncio.create_task(shop.buy(papers))
        digest = papers.request_digest
        await kit.wait_for(lambda: (run := shop.seller.desk._runs.get(digest)) is not None and len(run.ids) == 2)
        await shop.seller.desk.close()
        opening = await buying
    assert opening.receipt.state == State.FAILED_PROVIDER
    assert chain.batches[kit.SELLER.address][-1].last_counter == 1


async def test_batches_are_gap_free_stored_and_provable(kit, open_shop):
    async with open_shop() as shop:
        openings = [await shop.buy(await shop.papers(f"order {n}")) for n in range(3)]
        with pytest.raises(UnavailablePeer, match="not in a published batch"):
            await shop.http.get_bytes(f"{shop.url}/receipts/1/proof", 1000)
        assert (await shop.seller.publisher.publish()).chain_index == 0
        assert await shop.seller.publisher.publish() is None
        openings.append(await shop.buy(await shop.papers("last")))
        await shop.seller.publisher.publish()
        for opening in openings:
            counter = opening.receipt.counter
            answer = await shop.http.get_json(f"{shop.url}/receipts/{counter}/proof", ProofAnswer)
            digest, proof = read_proof(answer)
            assert digest == hash_struct(opening.receipt)
            assert verify_receipt(proof, counter, digest)
            assert proof.root == shop.chain.batches[kit.SELLER.address][proof.index].root
        for index, batch in enumerate(shop.chain.batches[kit.SELLER.address]):
            answer = await shop.http.get_json(f"{shop.url}/batches/{index}", BatchAnswer)
            assert read_batch(answer)[0] == batch
            entries = validate_batch(kit.TERMS.protocol, batch, shop.vault.blobs[batch.da_commitment])
            assert len(entries) == batch.last_counter - batch.first_counter + 1
        for path in ("receipts/5/proof", "receipts/0/proof", "batches/2"):
            with pytest.raises(RefusedByPeer) as refusal:
                await shop.http.get_bytes(f"{shop.url}/{path}", 1000)
            assert refusal.value.status == 404
        with pytest.raises(RefusedByPeer) as refusal:
            await shop.http.get_bytes(f"{shop.url}/receipts/x/proof", 1000)
        assert refusal.value.status == 400


async def test_batch_whose_answer_was_lost_is_not_published_twice(kit, open_shop):
    chain = kit.FakeChain()
    async with open_shop(chain=chain) as shop:
        await shop.buy(await shop.papers())
        chain.lose_answer = True
        with pytest.raises(kit.UnavailableFakeChain):
            await shop.seller.publisher.publish()
        assert len(chain.batches[kit.SELLER.address]) == 1
        published = await shop.seller.publisher.publish()
        assert published.chain_index == 0
        assert len(chain.batches[kit.SELLER.address]) == 1


async def test_batch_is_marked_when_it_is_settled_and_sent_again_when_it_was_taken_back(kit, open_shop):
    chain = kit.FakeChain()
    async with open_shop(chain=chain) as shop:
        await shop.buy(await shop.papers())
        chain.lose_answer, chain.unsettled = True, 1
        with pytest.raises(kit.UnavailableFakeChain):
            await shop.seller.publisher.publish()
        with pytest.raises(UnavailableSettlement, match="from counter 1 is not settled yet"):
            await shop.seller.publisher.publish()
        assert await shop.seller._store.fetch_last_batch() is None
        (batch,) = chain.batches.pop(kit.SELLER.address)  # a reorganisation
        chain.unsettled = 0
        published = await shop.seller.publisher.publish()
        assert (published.batch, published.chain_index) == (batch, 0)
        assert chain.batches[kit.SELLER.address] == [batch]


async def test_crash_between_plan_and_publish_sends_the_same_batch(kit, open_shop):
    chain, vault = kit.FakeChain(), kit.FakeVault()
    async with open_shop(chain=chain, vault=vault) as shop:
        await shop.buy(await shop.papers())
        planned = await shop.seller.publisher._plan()
        chain.down = True
    chain.down, vault.down = False, True
    async with open_shop(chain=chain, vault=vault) as shop:
        published = await shop.seller.publisher.publish()
    assert published.batch == planned.batch == chain.batches[kit.SELLER.address][0]


async def test_publisher_loop_publishes_by_itself_and_survives_an_outage(kit, open_shop):
    chain, vault = kit.FakeChain(), kit.FakeVault(down=True)
    async with open_shop(chain=chain, vault=vault, batch_interval_s=0.01, clock=SystemClock()) as shop:
        kit.NOW_MS = SystemClock().now_ms()
        await shop.buy(await shop.papers())
        await kit.wait_for(lambda: vault.refused > 0)
        assert not chain.batches
        vault.down = False
        await kit.wait_for(lambda: bool(chain.batches))
    assert len(chain.batches[kit.SELLER.address]) == 1


async def test_journal_older_than_the_chain_is_refused(kit, open_shop, journal):
    chain = kit.FakeChain()
    async with open_shop(chain=chain) as shop:
        await shop.buy(await shop.papers())
    assert chain.batches[kit.SELLER.address][0].last_counter == 1
    journal.unlink()
    with pytest.raises(ConfigError, match="newest journal"):
        async with open_shop(chain=chain):
            pass


async def test_claims_follow_receipts_and_a_withdrawal_hurries_them(kit, open_shop):
    chain = kit.FakeChain()
    config = kit.build_config()
    async with open_shop(chain=chain) as shop:
        opening = await shop.buy(await shop.papers())
        assert await shop.seller.collector.claim(only_withdrawing=True) == 0
        await chain.initiate_withdraw(config, 5 * CREDIT)
        assert await shop.seller.collector.claim(only_withdrawing=True) == opening.receipt.fee
        assert await shop.seller.collector.claim() == 0
        assert chain.claims[-1].total == opening.receipt.charged_cumulative
        chain.channels[channel_of(kit)] = replace(
            chain.channels[channel_of(kit)], withdrawing=0, withdraw_started=False
        )
        second = await shop.buy(await shop.papers("second"))
    assert chain.claims[-1].total == second.receipt.charged_cumulative == chain.paid


async def test_what_was_claimed_is_paid_out_even_if_nobody_heard_of_the_claim(kit, open_shop):
    """A crash, or a lost answer, between the claim and the payout must not leave money with the contract."""
    chain = kit.FakeChain()
    async with open_shop(chain=chain) as shop:
        opening = await shop.buy(await shop.papers())
        real = chain.claim

        async def lose_answer(claims):
            await real(claims)
            raise Unavailable("the answer was lost, the transaction was not")

        chain.claim = lose_answer
        with pytest.raises(Unavailable):
            await shop.seller.collector.claim()
        chain.claim = real
        assert (chain.claims[-1].total, chain.paid) == (opening.receipt.fee, 0)
        await shop.seller.collector.claim()
        assert chain.paid == opening.receipt.fee


async def test_challenged_claim_is_answered_with_its_receipt(kit, open_shop):
    chain = kit.FakeChain()
    async with open_shop(chain=chain) as shop:
        await shop.buy(await shop.papers("first"))
        opening = await shop.buy(await shop.papers("second"))
        assert await shop.seller.collector.answer_challenges() == 0
        chain.challenges[channel_of(kit)] = opening.receipt.charged_cumulative
        assert await shop.seller.collector.answer_challenges() == 1
        assert chain.challenges == {}
        chain.challenges[channel_of(kit)] = opening.receipt.charged_cumulative + 1
        assert await shop.seller.collector.answer_challenges() == 0
        chain.challenges.clear()


async def test_one_bad_channel_does_not_block_other_claims(kit, open_shop):
    chain = kit.FakeChain()
    good, bad = kit.build_config(), kit.build_config(salt=b"\x01" * 32)
    chain.put(good, CREDIT)
    chain.put(bad, CREDIT)
    async with open_shop(chain=chain) as shop:
        await shop.buy(await shop.papers("good"))
        await shop.buy(await shop.papers("bad", config=bad))
        real = chain.claim

        async def claim(claims):
            if any(claim.config == bad for claim in claims):
                raise kit.RefusedByFakeChain("bad channel")
            return await real(claims)

        chain.claim = claim
        assert await shop.seller.collector.claim() == 67
        assert [claim.config for claim in chain.claims] == [good]
        chain.claim = real


async def test_offer_is_kept_over_a_restart_and_binding_until_it_ends(kit, open_shop):
    chain, clock = kit.FakeChain(), FixedClock(kit.NOW_MS)
    async with open_shop(chain=chain, clock=clock) as shop:
        offer, papers = await shop.offer(), await shop.papers()
    async with open_shop(chain=chain, clock=clock) as shop:
        assert await shop.offer() == offer
    async with open_shop(chain=chain, clock=clock, output_price=8 * CREDIT) as shop:
        assert (await shop.offer()).offer.output_price == 8 * CREDIT
        lines = await shop.lines(papers)
        assert decode_json(Receipt, lines[-1].receipt).fee == 67
    async with open_shop(chain=chain, clock=clock, engine_profile=ZERO32) as shop:
        with pytest.raises(RefusedByPeer, match="RefusedPurchase"):
            await shop.lines(kit.build_papers(offer, kit.build_order("another engine")))
    clock.value_ms = offer.offer.valid_until - 1
    async with open_shop(chain=chain, clock=clock) as shop:
        read, signature = read_offer(await shop.http.get_json(f"{shop.url}/offer", OfferAnswer))
        assert isinstance(read, Offer)
        assert len(signature) == 65
        assert read.valid_until > offer.offer.valid_until


async def test_old_outputs_are_forgotten_receipts_stay(kit, open_shop):
    clock = FixedClock(kit.NOW_MS)
    async with open_shop(clock=clock, retention_ms=1000) as shop:
        papers = await shop.papers()
        await shop.buy(papers)
        await shop.seller.publisher.publish()
        clock.value_ms += 5000
        await shop.buy(await shop.papers("later"))
        await shop.seller.publisher.publish()
    async with open_shop(chain=shop.chain, clock=clock) as shop:
        with pytest.raises(RefusedByPeer, match="no longer kept"):
            await shop.lines(papers)
        assert shop.seller.desk.last_counter == 2


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"version":1}', b"x" * 9_000_000], ids=lambda body: body[:13].hex()
)
async def test_hostile_bodies_get_typed_answers(kit, open_shop, body):
    async with open_shop() as shop:
        with pytest.raises(RefusedByPeer) as refusal:
            await shop.http.request("POST", f"{shop.url}/purchases", body=body)
        assert refusal.value.status in (400, 413)
        assert refusal.value.title in ("InvalidMessage", "RefusedTooLarge")


async def test_journal_groups_writes_and_stops_after_a_fault(tmp_path):
    journal = Journal(tmp_path / "j.db", ("CREATE TABLE t (x INTEGER PRIMARY KEY)",))
    await journal.open()

    def insert(value):
        return journal.write(lambda connection: connection.execute("INSERT INTO t VALUES (?)", (value,)).rowcount)

    assert await asyncio.gather(*(insert(n) for n in range(600))) == [1] * 600
    assert await journal.read(lambda c: c.execute("SELECT count(*) FROM t").fetchone()[0]) == 600
    with pytest.raises(UnavailableJournal, match="cannot write"):
        await insert(5)
    with pytest.raises(UnavailableJournal, match="restart"):
        insert(1000)
    await journal.close()


def test_finish_reasons_are_as_the_protocol_numbers_them():
    assert [int(reason) for reason in FinishReason] == [0, 1, 2, 3, 4]


async def test_log_probabilities_come_with_every_token_while_the_purchase_runs(kit, open_shop, journal):
    gate = asyncio.Semaphore(3)
    async with open_shop(generator=kit.FakeGenerator(gate=gate)) as shop:
        papers = await shop.papers(order=kit.build_order(logprobs=2))
        stream = shop.http.stream_lines(f"{shop.url}/purchases", encode_papers(papers))
        early = []
        async for line in stream:
            early.append(decode_line(line))
            if sum(len(line.ids) for line in early if isinstance(line, Tokens)) == 3:
                break
        await stream.aclose()
        for _ in range(100):
            gate.release()
        lines = [line for line in await shop.lines(papers) if isinstance(line, Tokens)]
        found = [(token, ranking) for line in lines for token, ranking in zip(line.ids, line.logprobs, strict=True)]
        assert [token for token, _ in found] == list(await kit.expected_ids(kit.build_order(), kit.BUYER.address, 16))
        assert [ranking for _, ranking in found] == [kit.rank_fake(token, 2) for token, _ in found]
        assert early[1].logprobs[0] == found[0][1]
        # Nothing keeps them: what is asked again later has the same ids and none of these.
        again = await shop.lines(papers)
        assert [line.logprobs for line in again if isinstance(line, Tokens)] == [msgspec.UNSET]
    assert shop.generator.asked == [2]
    async with open_shop(chain=shop.chain, generator=shop.generator) as shop:
        assert await shop.lines(papers) == again


async def test_what_was_read_before_is_counted_and_costs_the_same(kit, open_shop):
    async with open_shop(generator=kit.FakeGenerator(cached=2)) as shop:
        order = kit.build_order()
        opening = await shop.buy(await shop.papers(order=order))
        receipt = opening.receipt
        assert (receipt.cached_tokens, receipt.prompt_tokens) == (2, opening.ask.prompt_count)
        validate_opening(kit.TERMS.protocol, opening)
    # Whose it was is the payer's address, so that nobody gains from another's prompts.
    assert shop.generator.owners == [kit.BUYER.address]


async def test_a_failed_purchase_counts_nothing_as_read_before(kit, open_shop):
    broken = kit.FakeGenerator(cached=2, fail_after=3, error=kit.UnavailableFakeChain("broke"))
    async with open_shop(generator=broken) as shop:
        opening = await shop.buy(await shop.papers())
        assert (opening.receipt.state, opening.receipt.cached_tokens) == (State.FAILED_PROVIDER, 0)


def test_who_is_refused_learns_when_the_next_purchase_should_end():
    pace = EndPace()
    assert pace.estimate_next_s() is None
    for now_ms in (1000, 5000, 9000):
        pace.observe_end(now_ms, is_full=True)
    assert pace.estimate_next_s() == 4
    pace.observe_end(60_000, is_full=False)  # streams were free: the long pause says nothing
    pace.observe_end(100_000, is_full=True)
    assert pace.estimate_next_s() == 4
    for second in range(200, 300):
        pace.observe_end(second * 1000, is_full=True)
    assert pace.estimate_next_s() == 2  # a second and a little: rounded up
    pace.observe_end(10**9, is_full=True)
    assert pace.estimate_next_s() == 600


async def test_a_generator_without_log_probabilities_fails_who_asked_for_them(kit, open_shop):
    async with open_shop(generator=kit.FakeGenerator(is_mute=True)) as shop:
        opening = await shop.buy(await shop.papers(order=kit.build_order(logprobs=0)))
        assert (opening.receipt.state, opening.receipt.fee) == (State.FAILED_PROVIDER, 0)
        assert (await shop.buy(await shop.papers("other"))).receipt.state == State.SERVED


async def test_a_line_is_never_longer_than_clients_read(kit, open_shop):
    longest = kit.build_params(max_tokens=3000)
    async with open_shop() as shop:
        papers = await shop.papers(order=kit.build_order(params=longest, logprobs=20), signed=CREDIT)
        shop.generator.gate = asyncio.Semaphore(2999)
        buying = asyncio.create_task(shop.lines(papers))
        await kit.wait_for(lambda: (run := shop.seller.desk._runs.get(papers.request_digest)) and len(run.ids) == 2999)
        late = asyncio.create_task(shop.lines(papers))
        await kit.wait_for(lambda: shop.generator.gate.release() or late.done())
        lines = [line for line in await late if isinstance(line, Tokens)]
        await buying
    assert [token for line in lines for token in line.ids][-1] is not None
    assert max(len(line.ids) for line in lines) == PORTION_TOKENS_MAX
    assert max(len(encode_line(line)) for line in lines) < LINE_BYTES_MAX
    widest = ((1 << 32) - 1, LOGPROB_MICRO_MIN)
    assert len(encode_line(build_tokens((widest[0],) * 1024, ((widest,) * 21,) * 1024))) < LINE_BYTES_MAX
