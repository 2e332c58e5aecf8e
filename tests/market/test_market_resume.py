"""Answers that break off after their first token go on elsewhere: the same tokens, one charge, one receipt for all."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import FinishReason, Level, State
from deaios.market.buyer.errors import FailedPurchase, RefusedPrefix, UnavailableProvider
from deaios.market.ports import Piece
from deaios.market.receipts import compute_fee_due, validate_opening
from deaios.market.wire import Admitted, Finished, Tokens, decode_line, encode_papers
from deaios.runtime.client import HttpClient, RefusedByPeer

FULL = 67
"""What 16 tokens after 3 cost."""


@pytest.fixture
async def world(buyer_world):
    async with AsyncExitStack() as stack:
        yield buyer_world(stack)


async def read(purchase):
    return tuple([token async for delta in purchase for token in delta.ids])


def state_of(buyer, kit, name):
    address = kit.build_key(name).address
    return next((row.state for row in buyer.accounts if row.provider == address), None)


def charged_of(buyer, kit, name):
    state = state_of(buyer, kit, name)
    return 0 if state is None else state.charged


async def begin_at(kit, world, buyer, name, order):
    """Buy with only one provider known, so that it is the first."""
    others = {key: url for key, url in world.directory.urls.items() if key != kit.build_key(name).address}
    for key in others:
        del world.directory.urls[key]
    purchase = await buyer.purchase(order)
    world.directory.urls.update(others)
    return purchase


class Altering:
    """Honest but for the token at one place."""

    def __init__(self, kit, place, fail_after):
        self.inner = kit.FakeGenerator(fail_after=fail_after, error=kit.UnavailableFakeChain("broke"))
        self.place = place

    async def __call__(self, wanted):
        place = 0
        async for piece in self.inner(wanted):
            yield Piece(piece.token ^ 1, piece.finish) if place == self.place else piece
            place += 1


async def test_a_failed_stream_goes_on_elsewhere_and_one_receipt_covers_it(kit, world):
    error = kit.UnavailableFakeChain("engine broke")
    await world.add_seller("a", generator=kit.FakeGenerator(fail_after=5, error=error))
    second = kit.FakeGenerator()
    await world.add_seller("b", generator=second)
    async with world.buyer() as buyer:
        order = kit.build_order()
        purchase = await begin_at(kit, world, buyer, "a", order)
        assert await read(purchase) == await kit.expected_ids(order, kit.BUYER.address, 16)
        opening = purchase.opening
        validate_opening(kit.TERMS.protocol, opening)
        assert opening.output_ids == await kit.expected_ids(order, kit.BUYER.address, 16)
        assert (opening.request.provider, opening.receipt.completion_tokens) == (kit.build_key("b").address, 16)
        assert [charged_of(buyer, kit, name) for name in "ab"] == [0, FULL]
        assert all(row.state.reserved == 0 for row in buyer.accounts)
        assert purchase.hops == 1
        endpoint = buyer.router.describe(kit.build_key("a").address)
        assert endpoint.states == {"failed_provider": 1}
        await kit.wait_for(lambda: buyer.router.describe(kit.build_key("b").address).states == {"served": 1})


async def test_a_silent_stream_is_left_and_acknowledges_nothing(kit, world):
    gate = asyncio.Semaphore(4)
    first = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    await world.add_seller("b")
    async with world.buyer(stall_s=0.2, stall_gaps=0.0) as buyer:
        order = kit.build_order()
        purchase = await begin_at(kit, world, buyer, "a", order)
        assert await read(purchase) == await kit.expected_ids(order, kit.BUYER.address, 16)
        # The provider that hung lives: it hears of a cancel that acknowledges nothing, and charges nothing.
        await kit.wait_for(lambda: first.desk.open_count == 0 and state_of(buyer, kit, "a").reserved == 0)
        assert [charged_of(buyer, kit, name) for name in "ab"] == [0, FULL]
        _, outcome = await buyer.fetch_outcome(next(iter(first.desk._ended)))  # the only request it had
        assert (outcome.receipt.state, outcome.receipt.fee) == (State.CANCELLED, 0)


async def test_a_provider_that_finished_out_of_reach_is_owed_its_quote_and_no_more(kit, world):
    """The worst case: its receipt stands. This buyer pays both, each once; the answer names one."""
    gate = asyncio.Semaphore(4)
    first = await world.add_seller("a", generator=kit.FakeGenerator(gate=gate))
    await world.add_seller("b")
    url = world.directory.urls[kit.build_key("a").address]
    async with world.buyer(stall_s=0.2, stall_gaps=0.0) as buyer:
        reach = buyer._desk.http.post_json  # the way on which cancels go

        async def post_json(target, *rest):
            if target.startswith(url):
                for _ in range(20):
                    gate.release()
                await kit.wait_for(lambda: first.desk.open_count == 0)
            return await reach(target, *rest)

        buyer._desk.http.post_json = post_json
        order = kit.build_order()
        purchase = await begin_at(kit, world, buyer, "a", order)
        assert await read(purchase) == await kit.expected_ids(order, kit.BUYER.address, 16)
        await kit.wait_for(lambda: state_of(buyer, kit, "a").reserved == 0)
        assert [charged_of(buyer, kit, name) for name in "ab"] == [FULL, FULL]
        assert purchase.opening.receipt.fee == FULL


async def test_stop_during_the_continuation_pays_for_what_was_handed_out_by_both(kit, world):
    await world.add_seller("a", generator=kit.FakeGenerator(fail_after=5, error=kit.UnavailableFakeChain("broke")))
    gate = asyncio.Semaphore(0)
    second = await world.add_seller("b", generator=kit.FakeGenerator(gate=gate))
    async with world.buyer() as buyer:
        order = kit.build_order()
        purchase = await begin_at(kit, world, buyer, "a", order)
        got = []
        for _ in range(7):  # five of the prefix, which this fake samples anew, and two of its own
            gate.release()
        async for delta in purchase:
            got += delta.ids
            if len(got) == 7:
                break
        await purchase.cancel()
        receipt = purchase.opening.receipt
        assert (receipt.state, receipt.completion_tokens) == (State.CANCELLED, 7)
        assert purchase.opening.output_ids == tuple(got) == await kit.expected_ids(order, kit.BUYER.address, 7)
        offer = purchase.opening.offer
        assert charged_of(buyer, kit, "b") == compute_fee_due(offer, State.CANCELLED, 3, 7)
        assert second.desk.open_count == 0


async def test_stop_before_the_continuation_gives_a_token_costs_nothing(kit, world):
    await world.add_seller("a", generator=kit.FakeGenerator(fail_after=5, error=kit.UnavailableFakeChain("broke")))
    second = await world.add_seller("b", generator=kit.FakeGenerator(gate=asyncio.Semaphore(0)))
    async with world.buyer() as buyer:
        purchase = await begin_at(kit, world, buyer, "a", kit.build_order())
        reading = asyncio.create_task(read(purchase))
        await kit.wait_for(lambda: second.desk.open_count == 1)
        reading.cancel()
        await asyncio.wait({reading})
        await kit.wait_for(lambda: second.desk.open_count == 0)
        await kit.wait_for(lambda: all(row.state.reserved == 0 for row in buyer.accounts))
        assert [charged_of(buyer, kit, name) for name in "ab"] == [0, 0]


async def test_several_providers_in_a_row_may_fail_but_not_without_end(kit, world):
    for name, count in (("a", 3), ("b", 6), ("c", 9), ("d", None)):
        broken = kit.FakeGenerator(fail_after=count, error=kit.UnavailableFakeChain("broke"))
        await world.add_seller(name, generator=broken)
    async with world.buyer(hops_max=8) as buyer:
        order = kit.build_order()
        purchase = await begin_at(kit, world, buyer, "a", order)
        assert await read(purchase) == await kit.expected_ids(order, kit.BUYER.address, 16)
        assert purchase.provider == kit.build_key("d").address
        assert [charged_of(buyer, kit, name) for name in "abcd"] == [0, 0, 0, FULL]
        await world.stop_seller("d")
    async with world.buyer(hops_max=1) as buyer:
        purchase = await begin_at(kit, world, buyer, "a", kit.build_order("again"))
        with pytest.raises(UnavailableProvider):
            await read(purchase)
        assert purchase.hops == 1
        assert [charged_of(buyer, kit, name) for name in "abc"] == [0, 0, 0]


async def test_nobody_else_fits_and_the_first_error_is_told(kit, world):
    await world.add_seller("a", generator=kit.FakeGenerator(fail_after=3, error=kit.UnavailableFakeChain("broke late")))
    await world.add_seller("b", output_price=10**11)
    async with world.buyer() as buyer:
        order = kit.build_order()
        with pytest.raises(FailedPurchase, match="failed_provider"):
            await read(await begin_at(kit, world, buyer, "a", order))
        pinned = kit.build_order("pinned", provider=kit.build_key("a").address)
        purchase = await buyer.purchase(pinned)
        with pytest.raises(FailedPurchase):
            await read(purchase)
        assert purchase.hops == 0
        assert [charged_of(buyer, kit, name) for name in "ab"] == [0, 0]


async def test_only_what_is_bound_to_a_seed_is_continued(kit, world):
    broken = kit.FakeGenerator(fail_after=3, error=kit.UnavailableFakeChain("broke"))
    await world.add_seller("a", generator=broken, level=Level.SIGNED)
    second = kit.FakeGenerator()
    await world.add_seller("b", generator=second, level=Level.SIGNED)
    async with world.buyer() as buyer:
        purchase = await begin_at(kit, world, buyer, "a", kit.build_order(min_level=Level.SIGNED))
        with pytest.raises(FailedPurchase):
            await read(purchase)
        assert second.started == 0


async def test_what_nobody_has_seen_is_sampled_anew_where_it_was_wrong(kit, world):
    """The provider that goes on disagrees with an id before anybody was given it: it is replaced."""
    await world.add_seller("a", generator=Altering(kit, 3, 5))
    second = await world.add_seller("b")
    async with world.buyer() as buyer:
        order = kit.build_order()
        purchase = await begin_at(kit, world, buyer, "a", order)
        await kit.wait_for(lambda: purchase.current.is_over)
        assert purchase.handed_out == 0
        purchase.current._handed_out = 2  # as if the first two had been taken before the others came
        expected = await kit.expected_ids(order, kit.BUYER.address, 16)
        ids = purchase.current.ids
        failed = purchase.current
        bought = await buyer._continue(order, failed._papers.ask, failed, ids, 2)
        await bought.wait()
        assert bought.ids == expected
        assert charged_of(buyer, kit, "b") == FULL
        assert second.desk.last_counter == 2  # one that refused the prefix, for nothing, and one that served


async def test_a_lie_that_was_shown_ends_the_answer_and_nobody_is_paid(kit, world):
    await world.add_seller("a", generator=Altering(kit, 3, 5))
    await world.add_seller("b")
    await world.add_seller("c")
    async with world.buyer() as buyer:
        purchase = await begin_at(kit, world, buyer, "a", kit.build_order())
        got = []

        async def collect():
            async for delta in purchase:
                got.extend(delta.ids)

        with pytest.raises(FailedPurchase) as failed:
            await collect()
        assert "prefix violates at 3" in str(failed.value.__cause__)
        assert len(got) == 5
        assert [charged_of(buyer, kit, name) for name in "abc"] == [0, 0, 0]
        # Who refused is not blamed, who broke off is.
        assert [buyer.stats[kit.build_key(name).address].failures > 0 for name in "abc"] == [True, False, False]


async def buy_lines(world, papers):
    url = next(iter(world.directory.urls.values()))
    async with HttpClient() as http:
        return [decode_line(line) async for line in http.stream_lines(f"{url}/purchases", encode_papers(papers))]


async def papers_with(kit, world, seller, prefix, name="order", **changes):
    offer = await seller.desk.fetch_current_offer()
    order = kit.build_order(name)
    config = kit.build_config(kit.BUYER, seller.desk.address)
    world.chain.put(config, 10_000)
    from dataclasses import replace

    return replace(kit.build_papers(offer, order, **changes), prefix=tuple(prefix)), order


async def test_only_the_continuation_is_sent_and_repeated(kit, world):
    seller = await world.add_seller("a")
    order = kit.build_order()
    expected = await kit.expected_ids(order, kit.BUYER.address, 16)
    papers, _ = await papers_with(kit, world, seller, expected[:6])
    for _ in range(2):  # bought once, and given again
        lines = await buy_lines(world, papers)
        assert lines[0].prefix == 6
        ids = [token for line in lines if isinstance(line, Tokens) for token in line.ids]
        assert tuple(ids) == expected[6:]
        assert isinstance(lines[-1], Finished)
        assert int(lines[-1].receipt["completionTokens"]) == 16
    assert seller.desk.last_counter == 1


async def test_a_wrong_prefix_is_free_until_it_was_tried_too_often(kit, world):
    seller = await world.add_seller("a", unpaid_max=20)
    outcomes = []
    for number in range(9):
        papers, _ = await papers_with(kit, world, seller, (11, 12), f"order {number}")
        try:
            lines = await buy_lines(world, papers)
        except RefusedByPeer as refusal:
            outcomes.append(refusal.detail)
            continue
        assert (lines[0], lines[-1].violation) == (Admitted(2), 0)
        assert lines[-1].receipt["fee"] in ("0", 0)
        assert FinishReason(int(lines[-1].receipt["finishReason"])) == FinishReason.FAILED
        outcomes.append("read")
    # Five ids of reading cost 5 units; more than 20 in all is not forgiven.
    assert outcomes[:5] == ["read"] * 5
    assert all("no prefix is read" in outcome for outcome in outcomes[5:])
    honest, order = await papers_with(kit, world, seller, (), "honest")
    lines = await buy_lines(world, honest)
    assert int(lines[-1].receipt["completionTokens"]) == 16
    assert hash_struct(honest.request) != hash_struct(papers.request)
    assert order.prompt_ids == (1, 2, 3)


async def test_prefixes_that_no_answer_can_have_are_refused_at_the_door(kit, world):
    seller = await world.add_seller("a")
    for prefix, reason in (((11,) * 17, "the answer at most 16"), ((kit.VOCABULARY,), "not below the vocabulary")):
        papers, _ = await papers_with(kit, world, seller, prefix)
        with pytest.raises(RefusedByPeer, match=reason):
            await buy_lines(world, papers)
    assert seller.desk.last_counter == 0


def test_the_refusal_names_the_place():
    assert (RefusedPrefix(7).position, "prefix violates at 7" in str(RefusedPrefix(7))) == (7, True)
