"""The buyer against real providers over HTTP: failover, windows, cancels, lies, restarts, proofs."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import msgspec
import pytest

from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.structs import FinishReason, State
from deaios.market.batches import SignedReceipt, verify_receipt
from deaios.market.buyer.client import Delta
from deaios.market.buyer.errors import (
    FailedPurchase,
    InvalidStream,
    RefusedByMarket,
    UnavailableProof,
    UnavailableProviders,
)
from deaios.market.channel import InvalidCharge
from deaios.market.receipts import InvalidReceipt, validate_opening
from deaios.market.wire import Admitted, Tokens, build_finished
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.units import CREDIT
from deaios.runtime.clock import SystemClock


@pytest.fixture
async def world(buyer_world):
    async with AsyncExitStack() as stack:
        yield buyer_world(stack)


async def read(purchase):
    return tuple([token async for delta in purchase for token in delta.ids])


def account_of(buyer, kit, name):
    address = kit.build_key(name).address
    return next(row for row in buyer.accounts if row.provider == address)


async def test_purchase_ends_verified_and_accounted(kit, world):
    await world.add_seller("a")
    async with world.buyer() as buyer:
        order = kit.build_order()
        purchase = await buyer.purchase(order)
        ids = await read(purchase)
        opening = purchase.opening
        validate_opening(kit.TERMS.protocol, opening)
        assert ids == opening.output_ids == await kit.expected_ids(order, kit.BUYER.address, 16)
        state = account_of(buyer, kit, "a").state
        assert (state.charged, state.reserved, state.balance) == (67, 0, 5 * CREDIT)
        assert state.signed == CREDIT // 4
        assert await buyer.fetch_opening(opening.request.provider, 1) == opening
        stats = buyer.stats[opening.request.provider]
        assert (stats.in_flight, stats.failures, round(stats.successes)) == (0, 0, 1)
    assert world.chain.deposits == 1


@pytest.mark.parametrize("streams", [8, 64])
async def test_many_streams_share_one_channel(kit, world, streams):
    seller = await world.add_seller("a", streams_max=16, queue_max=64)
    async with world.buyer() as buyer:
        purchases = await asyncio.gather(*(buyer.purchase(kit.build_order(f"o{n}")) for n in range(streams)))
        outputs = await asyncio.gather(*(read(purchase) for purchase in purchases))
        assert len(set(outputs)) == streams
        state = account_of(buyer, kit, "a").state
        seller_state = next(iter(seller.desk.channels.values())).state
        assert (state.charged, state.held, state.reserved) == (67 * streams, (), 0)
        assert (seller_state.charged, seller_state.reserved) == (67 * streams, 0)
        assert state.at_risk <= CREDIT // 4
    assert world.chain.deposits == 1
    assert len(world.chain.channels) == 1


async def test_window_holds_back_what_would_risk_more(kit, world):
    gate = asyncio.Semaphore(0)
    seller = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    async with world.buyer(window=134, fee_max=134) as buyer:
        tasks = [asyncio.create_task(buyer.purchase(kit.build_order(f"o{n}"))) for n in range(3)]
        await kit.wait_for(lambda: seller.desk.open_count == 2)
        assert account_of(buyer, kit, "a").state.signed == 134
        for _ in range(48):
            gate.release()
        for purchase in await asyncio.gather(*tasks):
            await read(purchase)
        state = account_of(buyer, kit, "a").state
        assert (state.charged, state.at_risk <= 134) == (201, True)
    async with world.buyer(window=60) as buyer:
        with pytest.raises(RefusedByMarket, match="quote 67 exceeds 60"):
            await buyer.purchase(kit.build_order("too dear"))


async def test_deposit_grows_when_it_runs_short(kit, world):
    await world.add_seller("a")
    async with world.buyer(deposit=100, window=100) as buyer:
        for n in range(4):
            await read(await buyer.purchase(kit.build_order(f"o{n}")))
        assert account_of(buyer, kit, "a").state.balance == 300
    assert world.chain.deposits == 3


async def test_failover_before_the_first_token_keeps_the_ask(kit, world):
    good = await world.add_seller("good")
    await world.add_seller(
        "bad", generator=kit.FakeGenerator(fail_after=0, error=kit.UnavailableFakeChain("engine broke"))
    )
    async with world.buyer() as buyer:
        for n in range(6):
            order = kit.build_order(f"o{n}")
            purchase = await buyer.purchase(order)
            assert await read(purchase) == await kit.expected_ids(order, kit.BUYER.address, 16)
            assert purchase.provider == good.desk.address
        assert account_of(buyer, kit, "good").state.charged == 6 * 67
        failed = [row for row in buyer.accounts if row.provider != good.desk.address]
        assert all((row.state.charged, row.state.reserved) == (0, 0) for row in failed)


async def test_dead_and_silent_providers_are_passed_over(kit, world):
    await world.add_seller("good")
    silent = await world.add_seller("silent", generator=kit.FakeGenerator(gate=asyncio.Semaphore(0)))
    world.directory.power[kit.build_key("dead").address] = 50
    dead = kit.build_key("dead")
    offer = kit.build_offer(dead, f"http://127.0.0.1:{kit.free_port()}", valid_until=SystemClock().now_ms() + 10**7)
    found = world.directory.fetch_candidates

    async def with_dead():
        return (*await found(), kit.Candidate(dead.address, offer, 50, False))

    world.directory.fetch_candidates = with_dead
    async with world.buyer(first_token_s=0.2) as buyer:
        for n in range(4):
            purchase = await buyer.purchase(kit.build_order(f"o{n}"))
            await read(purchase)
            assert purchase.provider == kit.build_key("good").address
        await kit.wait_for(lambda: silent.desk.open_count == 0)
        await kit.wait_for(
            lambda: all(row.state.reserved == 0 for row in buyer.accounts if row.provider != dead.address)
        )
        # What was sent to the dead one stays open: nobody can say that it did not arrive.
        for row in buyer.accounts:
            assert row.state.charged == (4 * 67 if row.provider == kit.build_key("good").address else 0)


async def test_nobody_left_says_why(kit, world):
    async with world.buyer() as buyer:
        with pytest.raises(RefusedByMarket, match="none is known"):
            await buyer.purchase(kit.build_order())
        await world.add_seller("a")
        with pytest.raises(RefusedByMarket, match="another model"):
            await buyer.purchase(kit.build_order(model_record_id=ZERO32))
        with pytest.raises(RefusedByMarket, match="excluded"):
            await buyer.purchase(kit.build_order(excluded=frozenset({kit.build_key("a").address})))
        await world.stop_seller("a")
        await world.add_seller("a", generator=kit.FakeGenerator(fail_after=0, error=kit.UnavailableFakeChain("broken")))
        with pytest.raises(UnavailableProviders, match="failed_provider"):
            await buyer.purchase(kit.build_order())


async def test_failure_after_the_first_token_is_told_and_free(kit, world):
    await world.add_seller("a", generator=kit.FakeGenerator(fail_after=3, error=kit.UnavailableFakeChain("broke late")))
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order())
        got = []

        async def collect():
            async for delta in purchase:
                assert isinstance(delta, Delta)
                got.extend(delta.ids)

        with pytest.raises(FailedPurchase, match="failed_provider"):
            await collect()
        assert len(got) == 3
        assert account_of(buyer, kit, "a").state.charged == 0
        assert account_of(buyer, kit, "a").state.reserved == 0


async def test_broken_stream_is_taken_up_again(kit, world):
    gate = asyncio.Semaphore(2)
    seller = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    breaks = []
    real = seller.desk.purchase

    async def breaking(body):
        run = await real(body)
        if not breaks:
            follow = run.follow

            async def cut():
                async for ids in follow():
                    yield ids
                    if len(run.ids) >= 2 and not breaks:
                        breaks.append(1)
                        raise ConnectionResetError("cut by the test")

            run.follow = cut
        return run

    seller.desk.purchase = breaking
    async with world.buyer() as buyer:
        order = kit.build_order()
        purchase = await buyer.purchase(order)
        reading = asyncio.create_task(read(purchase))
        await kit.wait_for(lambda: bool(breaks))
        for _ in range(14):
            gate.release()
        assert await reading == await kit.expected_ids(order, kit.BUYER.address, 16)
        assert account_of(buyer, kit, "a").state.charged == 67


async def test_cancel_pays_for_what_was_handed_out(kit, world):
    gate = asyncio.Semaphore(4)
    seller = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order())
        got = []
        async for delta in purchase:
            got += delta.ids
            if len(got) == 4:
                break
        await purchase.cancel()
        opening = purchase.opening
        assert (opening.receipt.state, opening.output_ids) == (State.CANCELLED, tuple(got))
        assert account_of(buyer, kit, "a").state.charged == opening.receipt.fee == 3 + 16
        assert [delta async for delta in purchase] == []
        await purchase.cancel()
        assert seller.desk.open_count == 0


async def test_caller_that_goes_away_leaves_nothing_behind(kit, world):
    gate = asyncio.Semaphore(0)
    seller = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    async with world.buyer() as buyer:
        buying = asyncio.create_task(buyer.purchase(kit.build_order()))
        await kit.wait_for(lambda: seller.desk.open_count == 1)
        buying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await buying
        await kit.wait_for(lambda: seller.desk.open_count == 0)
        await kit.wait_for(lambda: account_of(buyer, kit, "a").state.reserved == 0)
        assert account_of(buyer, kit, "a").state.charged == 0
        assert buyer.stats[seller.desk.address].failures == 0


async def test_a_provider_that_hangs_does_not_hold_up_what_lies_with_others(kit, world):
    """Room in one window comes back, whatever another provider does with questions about its own purchases."""
    hung = await world.add_seller("hung", generator=kit.FakeGenerator(gate=asyncio.Semaphore(0)))
    good = await world.add_seller("good", generator=kit.FakeGenerator(gate=asyncio.Semaphore(0)))
    asked, over = asyncio.Event(), asyncio.Event()
    answer = hung.desk.cancel

    async def hang(*papers):
        asked.set()
        await over.wait()
        return await answer(*papers)

    hung.desk.cancel = hang
    async with world.buyer() as buyer:
        for seller, name in ((hung, "hung"), (good, "good")):
            order = kit.build_order(name, provider=seller.desk.address)
            buying = asyncio.create_task(buyer.purchase(order))
            await kit.wait_for(lambda seller=seller: seller.desk.open_count == 1)
            buying.cancel()
            await asyncio.wait({buying})
            if seller is hung:
                await asked.wait()
        await kit.wait_for(lambda: account_of(buyer, kit, "good").state.reserved == 0)
        assert account_of(buyer, kit, "hung").state.reserved > 0
        over.set()
        await kit.wait_for(lambda: account_of(buyer, kit, "hung").state.reserved == 0)


async def test_restart_resolves_what_was_open(kit, world):
    gate = asyncio.Semaphore(1)
    seller = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order())
        async for _ in purchase:
            break
        signed = account_of(buyer, kit, "a").state.signed
    assert seller.desk.open_count == 1
    async with world.buyer() as buyer:
        assert account_of(buyer, kit, "a").state.signed == signed
        await kit.wait_for(lambda: account_of(buyer, kit, "a").state.reserved == 0)
        # One token was handed out before the restart, and it is paid for.
        assert account_of(buyer, kit, "a").state.charged == 3 + 4
        for _ in range(100):
            gate.release()
        await read(await buyer.purchase(kit.build_order("next")))
        assert account_of(buyer, kit, "a").state.charged == 3 + 4 + 67


async def test_provider_restart_mid_stream_costs_nothing(kit, world):
    gate = asyncio.Semaphore(3)
    seller = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    port = world.sellers["a"][2]
    async with world.buyer() as buyer:
        order = kit.build_order()
        purchase = await buyer.purchase(order)
        await kit.wait_for(lambda: purchase.current.tokens == 3)
        await world.stop_seller("a")
        seller = await world.add_seller("a", port=port)
        # Nobody else is there: it continues its own answer, and only the purchase that it ended is charged.
        assert await read(purchase) == await kit.expected_ids(order, kit.BUYER.address, 16)
        await kit.wait_for(lambda: account_of(buyer, kit, "a").state.reserved == 0)
        assert account_of(buyer, kit, "a").state.charged == 67
        assert (seller.desk.last_counter, purchase.opening.receipt.counter) == (2, 2)


async def test_lost_journal_opens_a_fresh_channel(kit, world, tmp_path):
    await world.add_seller("a")
    async with world.buyer() as buyer:
        await read(await buyer.purchase(kit.build_order()))
        first = account_of(buyer, kit, "a").channel_id
    (tmp_path / "buyer.db").unlink()
    async with world.buyer() as buyer:
        await read(await buyer.purchase(kit.build_order("again")))
        assert account_of(buyer, kit, "a").channel_id != first


async def test_provider_that_forgot_nothing_asks_for_more_and_gets_it(kit, world):
    """An older copy of the buyer's journal: the provider's charges are higher, within the window it follows."""
    seller = await world.add_seller("a")
    async with world.buyer(window=100, fee_max=100) as buyer:
        await read(await buyer.purchase(kit.build_order()))
        row = account_of(buyer, kit, "a")
        account = await buyer.wallet.fetch_account(row.provider)
        account.step(replace(account.state, signed=67, charged=34))
        purchase = await buyer.purchase(kit.build_order("next", params=kit.build_params(max_tokens=4)))
        with pytest.raises(InvalidCharge):
            await read(purchase)
    assert seller.desk.last_counter == 2


def honest(cheater, papers):
    ids = (20, 21, cheater.kit.STOP)
    return [Admitted(), Tokens(ids=list(ids)), cheater.finish(papers, ids)]


def lying(**changes):
    def answer(cheater, papers):
        ids = (20, 21, cheater.kit.STOP)
        return [Admitted(), Tokens(ids=list(ids)), cheater.finish(papers, ids, **changes)]

    return answer


def other_output(cheater, papers):
    return [Admitted(), Tokens(ids=[20, 21]), cheater.finish(papers, (20, 22))]


def fewer_counted(cheater, papers):
    return [Admitted(), Tokens(ids=[20, 21, 22]), cheater.finish(papers, (20, 21))]


def too_many(cheater, papers):
    return [Admitted(), Tokens(ids=[20] * 17)]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lying(receipt={"fee": 90, "charged_cumulative": 90}), InvalidReceipt),
        (lying(receipt={"charged_cumulative": 16}), InvalidCharge),
        (lying(receipt={"prompt_tokens": 5}), InvalidReceipt),
        (lying(receipt={"level": 4}), InvalidReceipt),
        (lying(state=State.CANCELLED, reason=FinishReason.CANCELLED), InvalidReceipt),
        (other_output, InvalidReceipt),
        (fewer_counted, InvalidStream),
        (too_many, InvalidStream),
    ],
    ids=["fee", "total", "count", "level", "uncancelled", "output", "fewer", "many"],
)
async def test_cheating_provider_is_excluded_reported_and_not_paid(kit, world, answer, kind):
    cheater = await world.add_cheater("cheater", answer)
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order())
        with pytest.raises(kind):
            await read(purchase)
        await kit.wait_for(lambda: bool(world.observer.lies))
        provider, error, _ = world.observer.lies[0]
        assert (provider, type(error)) == (cheater.key.address, kind)
        state = account_of(buyer, kit, "cheater").state
        assert (state.charged, state.at_risk <= CREDIT // 4) == (0, True)
        with pytest.raises(RefusedByMarket):
            await buyer.purchase(kit.build_order("again"))
    assert len(cheater.papers) == 1
    async with world.buyer() as buyer:
        assert cheater.key.address in buyer.excluded


async def test_honest_script_passes_so_the_lies_above_are_what_is_caught(kit, world):
    await world.add_cheater("script", honest)
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order())
        assert await read(purchase) == (20, 21, kit.STOP)
        assert account_of(buyer, kit, "script").state.charged == 15
    assert world.observer.lies == []


async def test_receipt_of_a_stranger_convicts_nobody(kit, world):
    def forged(cheater, papers):
        ids = (20, kit.STOP)
        opening = kit.build_opening(papers, cheater.offer, ids, seller=kit.build_key("stranger"))
        entry = SignedReceipt(opening.receipt, opening.receipt_signature)
        return [Admitted(), Tokens(ids=list(ids)), build_finished(entry)]

    await world.add_cheater("victim", forged)
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order())
        with pytest.raises(InvalidReceipt):
            await read(purchase)
        assert (buyer.excluded, world.observer.lies) == ({}, [])


async def test_proof_comes_from_the_provider_or_from_the_stored_batch(kit, world):
    seller = await world.add_seller("a")
    async with world.buyer() as buyer:
        purchases = [await buyer.purchase(kit.build_order(f"o{n}")) for n in range(5)]
        for purchase in purchases:
            await read(purchase)
        opening = purchases[2].opening
        with pytest.raises(UnavailableProof, match="not published"):
            await buyer.fetch_proof(opening, 0.05)
        waiting = asyncio.create_task(buyer.fetch_proof(opening, 10))
        await seller.publisher.publish()
        proof = await waiting
        assert verify_receipt(proof, opening.receipt.counter, hash_struct(opening.receipt))
        await world.stop_seller("a")
        assert await buyer.fetch_proof(opening, 10) == proof


async def test_forked_receipt_is_found_by_its_proof(kit, world):
    seller = await world.add_seller("a")
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order())
        await read(purchase)
        await seller.publisher.publish()
        fork = replace(purchase.opening.receipt, finished_at_ms=1)
        key = kit.build_key("a")
        forked = replace(purchase.opening, receipt=fork, receipt_signature=sign_struct(key, kit.TERMS.protocol, fork))
        with pytest.raises(InvalidReceipt, match="on chain"):
            await buyer.fetch_proof(forked, 5)


async def test_withdrawal_gives_everything_back_but_what_was_earned(kit, world):
    seller = await world.add_seller("a")
    async with world.buyer() as buyer:
        await read(await buyer.purchase(kit.build_order()))
        provider = kit.build_key("a").address
        assert await buyer.wallet.initiate_withdraw(provider) == 5 * CREDIT
        await seller.collector.claim(only_withdrawing=True)
        with pytest.raises(UnavailableProviders, match="deposit"):
            await buyer.purchase(kit.build_order("while withdrawing"))
        await buyer.wallet.finalize_withdraw(provider)
        state = next(iter(world.chain.channels.values()))
        assert (state.balance, state.total_claimed) == (67, 67)
        await read(await buyer.purchase(kit.build_order("after")))
        assert account_of(buyer, kit, "a").state.charged == 134


async def test_buyer_without_money_is_told_so(kit, world):
    await world.add_seller("a")

    async def refuse(*_arguments):
        raise kit.RefusedByFakeChain("transfer exceeds balance")

    world.chain.deposit = refuse
    async with world.buyer() as buyer:
        with pytest.raises(UnavailableProviders, match="exceeds balance"):
            await buyer.purchase(kit.build_order())
        assert buyer.stats[kit.build_key("a").address].failures == 0


async def test_changed_offer_is_seen_at_the_next_try(kit, world):
    """The directory shows an offer that the provider no longer honours; the next look finds the new one."""
    await world.add_seller("a")
    stale = await world.directory.fetch_candidates()
    port = world.sellers["a"][2]
    await world.stop_seller("a")
    await world.add_seller("a", port=port, engine_profile=sha256(b"another engine"))
    found = world.directory.fetch_candidates

    async def shown():
        return stale if world.directory.refreshed == 0 else await found()

    world.directory.fetch_candidates = shown
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order())
        await read(purchase)
        assert purchase.opening.offer.engine_profile == sha256(b"another engine")
        assert buyer.stats[purchase.provider].failures == 0


def test_ids_of_the_kit_are_stable(kit):
    assert kit.sample_fake(sha256(b"seed"), 0) == kit.sample_fake(sha256(b"seed"), 0) != kit.STOP


async def test_the_same_ask_bought_twice_at_one_block_is_two_purchases(kit, world):
    """A user's fixed seed makes equal asks; only the request can tell two purchases from a retry of one."""
    seller = await world.add_seller("a")
    order = kit.build_order()
    async with world.buyer() as buyer:
        first, second = await buyer.purchase(order), await buyer.purchase(order)
        outputs = [await read(first), await read(second)]
        outputs.append(await read(await buyer.purchase(order)))
    async with world.buyer() as buyer:
        outputs.append(await read(await buyer.purchase(order)))
        assert outputs == [await kit.expected_ids(order, kit.BUYER.address, 16)] * 4
        assert (account_of(buyer, kit, "a").state.charged, buyer.excluded) == (4 * 67, {})
    assert seller.desk.last_counter == 4


async def collect(purchase):
    """Ids with the rankings that came with them."""
    found = []
    async for delta in purchase:
        found += zip(delta.ids, delta.logprobs or (None,) * len(delta.ids), strict=True)
    return found


async def test_log_probabilities_come_where_they_are_asked_for_and_change_nothing_else(kit, world):
    seller = await world.add_seller("a")
    async with world.buyer() as buyer:
        order = kit.build_order()
        bare = await buyer.purchase(order)
        plain = await collect(bare)
        for count in (0, 3):
            purchase = await buyer.purchase(replace(order, logprobs=count))
            assert await collect(purchase) == [(token, kit.rank_fake(token, count)) for token, _ in plain]
            assert purchase.opening.ask == bare.opening.ask
        assert {ranking for _, ranking in plain} == {None}
    assert seller.desk.last_counter == 3


async def test_log_probabilities_survive_a_failover(kit, world):
    await world.add_seller("good")
    await world.add_seller("mute", generator=kit.FakeGenerator(is_mute=True))
    async with world.buyer() as buyer:
        for number in range(4):
            found = await collect(await buyer.purchase(kit.build_order(f"o{number}", logprobs=1)))
            assert [ranking for _, ranking in found] == [kit.rank_fake(token, 1) for token, _ in found]
        assert buyer.excluded == {}


@pytest.mark.parametrize("ends_meanwhile", [False, True])
async def test_a_broken_stream_loses_log_probabilities_only_if_the_purchase_ended_meanwhile(kit, world, ends_meanwhile):
    gate = asyncio.Semaphore(2)
    seller = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    real, bodies = seller.desk.purchase, []

    def go_on():
        for _ in range(14):
            gate.release()

    async def breaking(body):
        run = await real(body)
        bodies.append(body)
        follow = run.follow

        async def cut():
            async for portion in follow():
                yield portion
                if len(run.ids) == 2:
                    if ends_meanwhile:
                        go_on()
                        await run.wait_outcome()
                    raise ConnectionResetError("cut by the test")

        if len(bodies) == 1:
            run.follow = cut
        elif not ends_meanwhile:
            del run.follow
            go_on()
        return run

    seller.desk.purchase = breaking
    async with world.buyer() as buyer:
        order = kit.build_order(logprobs=2)
        found = await collect(await buyer.purchase(order))
        assert [token for token, _ in found] == list(await kit.expected_ids(order, kit.BUYER.address, 16))
        honest = [kit.rank_fake(token, 2) for token, _ in found]
        assert [ranking for _, ranking in found] == (honest[:2] + [None] * 14 if ends_meanwhile else honest)
        assert (len(bodies), buyer.excluded, account_of(buyer, kit, "a").state.charged) == (2, {}, 67)


def ranked(*rankings, ids=(20,)):
    """A provider whose receipt is honest and whose log probabilities are these."""

    def answer(cheater, papers):
        given = msgspec.UNSET if rankings == (None,) else list(rankings)
        rest = cheater.kit.rank_fake(cheater.kit.STOP, 2)
        yield Tokens(ids=list(ids), logprobs=given)
        yield Tokens(ids=[cheater.kit.STOP], logprobs=[rest] if papers.logprobs == 2 else msgspec.UNSET)
        yield cheater.finish(papers, (*ids, cheater.kit.STOP))

    return answer


HONEST = ((20, -2_000_000), (5, -500_000), (6, -1_500_000))


@pytest.mark.parametrize(
    ("answer", "count", "words"),
    [
        (ranked(HONEST), None, "none were asked for"),
        (ranked(None), 2, "without the log probabilities"),
        (ranked(), 2, "0 tokens came with 1 ids"),
        (ranked(HONEST, HONEST), 2, "2 tokens came with 1 ids"),
        (ranked(HONEST[:2]), 2, "2 log probabilities were given"),
        (ranked(((21, -2_000_000), *HONEST[1:])), 2, "the sampled one is 20"),
        (ranked((HONEST[0], HONEST[2], HONEST[1])), 2, "descending"),
        (ranked(((20, 1), *HONEST[1:])), 2, "token 20 with 1 micro-nats is outside"),
        (ranked((*HONEST[:2], (1 << 32, -1_500_000))), 2, "token 4294967296 with"),
        (ranked(((20, 0), (20, 0), (5, 0))), 2, "add up"),
    ],
)
async def test_impossible_log_probabilities_exclude_a_provider(kit, world, answer, count, words):
    cheater = await world.add_cheater("cheater", answer)
    async with world.buyer() as buyer:
        with pytest.raises((InvalidStream, UnavailableProviders), match=words):
            await read(await buyer.purchase(kit.build_order(logprobs=count)))
        await kit.wait_for(lambda: bool(world.observer.lies))
        assert [type(error) for _, error, _ in world.observer.lies] == [InvalidStream]
        assert (account_of(buyer, kit, "cheater").state.charged, list(buyer.excluded)) == (0, [cheater.key.address])


async def test_possible_log_probabilities_pass_so_those_above_are_what_is_caught(kit, world):
    await world.add_cheater("script", ranked(HONEST))
    async with world.buyer() as buyer:
        purchase = await buyer.purchase(kit.build_order(logprobs=2))
        assert await collect(purchase) == [(20, HONEST), (kit.STOP, kit.rank_fake(kit.STOP, 2))]
    assert world.observer.lies == []
