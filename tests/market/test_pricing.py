"""A price that follows load: its rule by properties, its loop by a clock of the test, its offers over HTTP."""

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.ledger.structs import State
from deaios.market.offers import validate_offer
from deaios.market.pricing import LEVELS, LOAD_FULL, PriceRange, compute_load, find_level, price_at, step_level
from deaios.market.seller.service import Seller
from deaios.market.seller.service.autoprice import MOVING_OFFER_MS, SAMPLES, Autopricer
from deaios.market.wire import Finished, OfferAnswer, decode_line, encode_papers, read_offer, read_receipt
from deaios.primitives.errors import ConfigError
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient, RefusedByPeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve
from deaios.runtime.metrics import Metrics

RANGE = PriceRange(CREDIT, 4 * CREDIT, 3 * CREDIT, 20 * CREDIT)
SMALL = LOAD_FULL // LEVELS
levels = st.integers(0, LEVELS)
loads = st.integers(0, LOAD_FULL)
prices = st.tuples(*[st.integers(0, 10**15)] * 4).map(
    lambda four: PriceRange(min(four[:2]), min(four[2:]), max(four[:2]), max(four[2:]))
)


@given(prices=prices, level=levels, load=loads)
def test_a_price_stays_in_its_range_and_moves_by_one_step(prices, level, load):
    after = step_level(level, load)
    assert abs(after - level) <= 1
    asked = price_at(prices, after)
    assert prices.input_min <= asked[0] <= prices.input_max
    assert prices.output_min <= asked[1] <= prices.output_max
    for low, high, now, was in (
        (prices.input_min, prices.input_max, asked[0], price_at(prices, level)[0]),
        (prices.output_min, prices.output_max, asked[1], price_at(prices, level)[1]),
    ):
        assert abs(now - was) <= (high - low) // LEVELS + 1


@given(level=levels, lower=loads, higher=loads)
def test_more_load_never_gives_a_lower_price(level, lower, higher):
    lower, higher = sorted((lower, higher))
    assert step_level(level, lower) <= step_level(level, higher)


@given(level=levels, load=loads)
def test_a_price_comes_to_rest_under_constant_load(level, load):
    path = [level]
    for _ in range(LEVELS + 2):
        path.append(step_level(path[-1], load))
    assert path[-1] == path[-2]
    steps = {after - before for before, after in pairwise(path)}
    assert not {1, -1} <= steps, "it turned round on the way"


@given(level=levels, load=loads, sway=st.integers(-SMALL, SMALL))
def test_a_price_at_rest_does_not_follow_small_changes(level, load, sway):
    inner = range(2 * LOAD_FULL // LEVELS, LOAD_FULL - 2 * LOAD_FULL // LEVELS)
    load = inner[load % len(inner)]
    resting = LEVELS * load // LOAD_FULL
    swayed = step_level(step_level(resting, load + sway), load)
    assert swayed == step_level(swayed, load)
    assert step_level(resting, load + sway) == resting


@pytest.mark.parametrize(("load", "level"), [(0, 0), (LOAD_FULL, LEVELS)])
def test_an_idle_provider_asks_the_least_and_a_full_one_the_most(load, level):
    found = LEVELS // 2
    for _ in range(LEVELS):
        found = step_level(found, load)
    assert found == level


@given(open_count=st.integers(0, 10_000), streams_max=st.integers(1, 512), queue_max=st.integers(0, 512))
def test_load_is_bounded_and_grows_with_what_is_open(open_count, streams_max, queue_max):
    load = compute_load(open_count, streams_max, queue_max)
    assert 0 <= load <= compute_load(open_count + 1, streams_max, queue_max) <= LOAD_FULL
    assert compute_load(0, streams_max, queue_max) == 0


@given(prices=prices, level=levels)
def test_a_restart_asks_what_was_asked(prices, level):
    asked = price_at(prices, level)
    assert price_at(prices, find_level(prices, *asked)) == asked


def test_a_highest_price_below_the_lowest_is_refused():
    with pytest.raises(ConfigError, match="highest output price 3 is below the lowest, 4"):
        PriceRange(1, 4, 2, 3)


class HeldClock(SystemClock):
    """Sleeps as often as a test lets it."""

    def __init__(self):
        self.slept = asyncio.Semaphore(0)
        self.waiting = asyncio.Event()

    async def sleep(self, seconds):
        self.waiting.set()
        await self.slept.acquire()

    async def pass_samples(self, count):
        for _ in range(count):
            self.waiting.clear()
            self.slept.release()
            await self.waiting.wait()


async def test_the_loop_steps_by_the_mean_of_its_samples():
    clock, metrics, open_counts = HeldClock(), Metrics("provider"), [0]
    pricer = Autopricer(RANGE, 4, 4, lambda: open_counts[0], clock, metrics)
    loop = asyncio.create_task(pricer.run())
    await clock.waiting.wait()
    open_counts[0] = 8
    await clock.pass_samples(SAMPLES - 1)
    assert pricer.ask() == price_at(RANGE, 0)
    await clock.pass_samples(1)
    assert pricer.ask() == price_at(RANGE, 1)
    open_counts[0] = 0
    await clock.pass_samples(SAMPLES)
    assert pricer.ask() == price_at(RANGE, 0)
    assert b"deaios_seller_input_price 1e+06" in metrics.render()
    loop.cancel()
    await asyncio.wait({loop})


class SetClock(SystemClock):
    def __init__(self, now_ms):
        self.value_ms = now_ms

    def now_ms(self):
        return self.value_ms


@pytest.fixture
def open_seller(kit, journal):
    """A provider with a moving price over one journal."""
    chain, clock = kit.FakeChain(), SetClock(kit.NOW_MS)
    chain.put(kit.build_config(), 5 * CREDIT)

    @asynccontextmanager
    async def start():
        settings = kit.build_settings(moving=RANGE)
        vault = kit.FakeVault()
        seller = Seller(kit.SELLER, kit.TERMS, settings, journal, chain, kit.FakeGenerator(), vault, clock=clock)
        async with seller, serve(seller.application) as url, HttpClient() as http:

            async def read():
                offer, signature = read_offer(await http.get_json(f"{url}/offer", OfferAnswer))
                return validate_offer(kit.TERMS.protocol, offer, signature, kit.SELLER.address, clock.value_ms)

            async def buy(offer, name):
                papers = kit.build_papers(offer, kit.build_order(name))
                stream = http.stream_lines(f"{url}/purchases", encode_papers(papers))
                last = [decode_line(line) async for line in stream][-1]
                assert isinstance(last, Finished)
                return read_receipt(last.receipt, last.signature).receipt

            yield seller, read, buy, clock

    return start


async def test_a_purchase_costs_what_its_offer_says_and_a_restart_keeps_the_price(open_seller):
    async with open_seller() as (seller, read, buy, clock):
        low = await read()
        assert (low.offer.input_price, low.offer.output_price) == price_at(RANGE, 0)
        assert low.offer.valid_until - clock.now_ms() == MOVING_OFFER_MS
        for _ in range(3):
            seller.autopricer.look(LOAD_FULL)
        high = await read()
        assert (high.offer.input_price, high.offer.output_price) == price_at(RANGE, 3)
        # who signed for the lower price pays it, while that offer lasts
        cheap, dear = await buy(low, "in flight"), await buy(high, "later")
        assert (cheap.state, dear.state) == (State.SERVED, State.SERVED)
        assert cheap.fee == 3 + 4 * 16 < dear.fee
    async with open_seller() as (seller, read, buy, clock):
        again = await read()
        assert (again.offer.input_price, again.offer.output_price) == price_at(RANGE, 3)
        clock.value_ms = low.offer.valid_until
        with pytest.raises(RefusedByPeer, match="offer ended"):
            await buy(low, "too late")
