"""What is published of endpoints, by OpenRouter's definitions; what routing remembers, and for how long."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.ledger.structs import State
from deaios.market.buyer.errors import UnavailableProviders
from deaios.market.routing import Breaker
from deaios.market.statistics import (
    MINUTE_MS,
    MINUTES_KEPT,
    SAMPLES_MAX,
    EndpointRecord,
    InvalidRecord,
    Percentiles,
    compute_percentiles,
)

NOON = 30_000_000 * MINUTE_MS


def fill(record, minute, attempts, successes):
    for number in range(attempts):
        record.note_attempt(NOON + minute * MINUTE_MS + number, is_success=number < successes)


def test_uptime_is_the_share_of_minutes_with_enough_attempts_that_mostly_succeeded():
    record = EndpointRecord()
    fill(record, -1000, 10, 7)  # below 80 %: a bad minute of the day
    fill(record, -20, 10, 8)
    fill(record, -3, 9, 0)  # too few to say anything
    fill(record, -2, 20, 16)
    fill(record, 0, 10, 7)
    found = record.compute(NOON + 30_000)
    assert (found.uptime_last_5m, found.uptime_last_30m) == (50.0, pytest.approx(200 / 3))
    assert found.uptime_last_1d == 50.0
    later = record.compute(NOON + 6 * MINUTE_MS)
    assert (later.uptime_last_5m, later.uptime_last_30m) == (None, pytest.approx(200 / 3))
    assert EndpointRecord().compute(NOON).uptime_last_1d is None


def test_percentiles_are_of_the_last_half_hour_best_first():
    record = EndpointRecord()
    record.note_served(NOON - 31 * MINUTE_MS, 9999.0, 0.1)
    for number in range(1, 101):
        record.note_served(NOON - number, float(number), float(number))
    record.note_served(NOON, 50.5, None)  # one token has no rate
    found = record.compute(NOON)
    assert found.latency_last_30m == Percentiles(50.5, 75.0, 90.0, 99.0)
    assert found.throughput_last_30m == Percentiles(51.0, 26.0, 11.0, 2.0)
    assert record.compute(NOON + 31 * MINUTE_MS).latency_last_30m is None
    assert compute_percentiles([]) is None
    assert compute_percentiles([3.0]) == Percentiles(3.0, 3.0, 3.0, 3.0)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(-3000, 3000), st.booleans()), max_size=200))
def test_a_record_is_bounded_and_survives_its_bytes(attempts):
    record = EndpointRecord()
    for minute, is_success in attempts:
        record.note_attempt(NOON + minute * MINUTE_MS, is_success=is_success)
        record.note_served(NOON + minute, 1.0, 2.0)
        record.states["served"] += 1
    again = EndpointRecord.decode(record.encode())
    assert again == record
    assert again.compute(NOON) == record.compute(NOON)
    assert len(record.minutes) <= MINUTES_KEPT
    assert len(record.samples) <= SAMPLES_MAX
    assert sum(count for _, count, _ in record.minutes) == len(attempts)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"minutes":[[1,2]],"samples":[],"states":{}}', b"\xff"])
def test_other_bytes_are_no_record(data):
    with pytest.raises(InvalidRecord):
        EndpointRecord.decode(data)


@pytest.fixture
async def world(buyer_world):
    async with AsyncExitStack() as stack:
        yield buyer_world(stack)


async def read(purchase):
    return tuple([token async for delta in purchase for token in delta.ids])


async def test_endpoints_are_described_and_remembered_over_a_restart(kit, world):
    await world.add_seller("good")
    broken = kit.FakeGenerator(fail_after=0, error=kit.UnavailableFakeChain("engine broke"))
    await world.add_seller("bad", generator=broken, input_price=0, output_price=0)
    good, bad = kit.build_key("good").address, kit.build_key("bad").address
    async with world.buyer() as buyer:
        for number in range(12):
            await read(await buyer.purchase(kit.build_order(f"o{number}")))
        found = {item.candidate.provider: item for item in await buyer.list_endpoints(kit.RECORD)}
        assert found[good].seen.states == {"served": 12}
        assert (found[good].breaker, found[good].refused) == (Breaker.CLOSED, None)
        # The free one is tried first until its breaker opens, and once more by who explores or probes.
        assert found[bad].breaker in (Breaker.OPEN, Breaker.HALF_OPEN)
        assert found[bad].seen.states.keys() == {"failed_provider"}
        assert found[good].seen.latency_last_30m is not None
        assert await buyer.list_endpoints(bytes(32)) == []
    async with world.buyer() as buyer:
        again = {item.candidate.provider: item for item in await buyer.list_endpoints(kit.RECORD)}
        assert {key: item.seen.states for key, item in again.items()} == {
            key: item.seen.states for key, item in found.items()
        }


@pytest.mark.parametrize(
    ("error", "state"),
    [
        ("UnavailableFakeChain", State.FAILED_PROVIDER),
        ("RefusedByFakeChain", State.REFUSED),
    ],
)
async def test_every_state_that_failed_is_free_and_counted(kit, world, error, state):
    failing = kit.FakeGenerator(fail_after=0, error=getattr(kit, error)("no"))
    await world.add_seller("a", generator=failing)
    async with world.buyer() as buyer:
        with pytest.raises(UnavailableProviders, match=state.name.lower()):
            await buyer.purchase(kit.build_order())
        await kit.wait_for(lambda: buyer.router.describe(kit.build_key("a").address).states != {})
        assert buyer.router.describe(kit.build_key("a").address).states == {state.name.lower(): 1}
        assert [row.state.charged + row.state.reserved for row in buyer.accounts] == [0]


async def test_a_prompts_beginning_goes_where_it_was_read_while_that_provider_is_well(kit, world):
    for name in "abc":
        await world.add_seller(name)
    async with world.buyer() as buyer:
        orders = [kit.build_order(f"o{number}", affinity=b"same beginning") for number in range(8)]
        purchases = [await buyer.purchase(order) for order in orders[:6]]
        for purchase in purchases:
            await read(purchase)
        (favourite,) = {purchase.provider for purchase in purchases}
        name = next(name for name in "abc" if kit.build_key(name).address == favourite)
        await world.stop_seller(name)
        other = await buyer.purchase(orders[6])
        await read(other)
        assert other.provider != favourite
        again = await buyer.purchase(orders[7])
        await read(again)
        assert again.provider == other.provider


async def test_a_late_first_token_is_hedged_where_that_is_wanted_and_one_is_paid(kit, world):
    slow = await world.add_seller("slow", generator=kit.FakeGenerator(gate=asyncio.Semaphore(0)), output_price=0)
    await world.add_seller("fast")
    async with world.buyer() as buyer:
        buyer.router.hedge_after_s = lambda _provider: 0.05
        preferences = kit.Preferences(order=(kit.build_key("slow").address,))
        order = kit.build_order(is_hedged=True, preferences=preferences)
        purchase = await buyer.purchase(order)
        assert await read(purchase) == await kit.expected_ids(order, kit.BUYER.address, 16)
        assert purchase.provider == kit.build_key("fast").address
        await kit.wait_for(lambda: slow.desk.open_count == 0)
        await kit.wait_for(lambda: all(row.state.reserved == 0 for row in buyer.accounts))
        assert sum(row.state.charged for row in buyer.accounts) == purchase.opening.receipt.fee == 67
        stats = buyer.stats[kit.build_key("slow").address]
        assert (stats.failures, stats.in_flight) == (0, 0)


async def test_a_full_provider_sends_buyers_on(kit, world):
    gate = asyncio.Semaphore(0)
    full = await world.add_seller("full", generator=kit.FakeGenerator(gate=gate), streams_max=1, queue_max=0)
    async with world.buyer() as buyer:
        first = asyncio.create_task(buyer.purchase(kit.build_order("first")))
        await kit.wait_for(lambda: full.desk.open_count == 1)
        await world.add_seller("free")
        preferences = kit.Preferences(order=(kit.build_key("full").address,))
        purchase = await buyer.purchase(kit.build_order("second", preferences=preferences))
        assert purchase.provider == kit.build_key("free").address
        await read(purchase)
        stats = buyer.stats[kit.build_key("full").address]
        assert (stats.failures, stats.busy_until_ms > 0) == (0, True)
        for _ in range(16):
            gate.release()
        await read(await first)
