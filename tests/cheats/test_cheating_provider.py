"""Providers that compute something else than was ordered lose their stake, and who bought from them is made whole."""

import pytest
from cheating_provider import WRONG_ANSWERS
from cheats_world import build_order

from deaios.ledger.phases import Decision
from deaios.ledger.settings import LOCAL
from deaios.ledger.suite import COMPUTE

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("cheat", WRONG_ANSWERS, ids=lambda cheat: cheat.__name__)
async def test_who_computes_something_else_is_slashed_and_pays_its_buyer(world, cheat):
    c, finder = world.contracts, world.watchers[0]
    async with world.selling(cheat.__name__, cheat(world)) as provider:
        before = await world.wealth(provider)
        purse_before = await world.wealth_of(finder.purse)
        stakes = [await world.wealth(watcher) for watcher in world.watchers]
        dispute_id = await c.disputes.dispute_count() + 1
        assert await finder.auditor.audit_once() is False
        for _ in range(5):
            if await c.disputes.dispute_count() >= dispute_id:
                break
            await world.turn()
        dispute = await world.run_until_closed(dispute_id)
        # A receipt in a buyer's hand is enough: hiding it from the chain shelters nothing.
        assert await c.receipts.batch_count(provider.address) == 0
        await world.settle(provider)

        assert (dispute.decision, dispute.provider) == (Decision.GUILTY, provider.address)
        assert dispute.slashed == LOCAL.slash_floor
        assert await c.staking.slice_of(COMPUTE, provider.address) == LOCAL.compute_stake_min - LOCAL.slash_floor
        # What it earned is one fee; what it lost is the floor.
        assert await world.wealth(provider) == before + dispute.fee - LOCAL.slash_floor
        assert await world.wealth_of(finder.purse) == purse_before
        for watcher, stake in zip(world.watchers, stakes, strict=True):
            assert await world.wealth(watcher) > stake
        # Below the least stake that counts, nobody buys from it any more.
        assert await c.staking.power(COMPUTE, provider.address) == 0


async def test_an_honest_provider_earns_what_it_billed_and_keeps_its_stake(world):
    c, finder = world.contracts, world.watchers[0]
    async with world.selling("honest", world.machine.generate) as provider, world.buying("customer") as customer:
        before, count = await world.wealth(provider), await c.disputes.dispute_count()
        purchase = await customer.buy(build_order(provider.address))
        assert await finder.auditor.audit_once() is True
        for _ in range(3):
            await world.turn()
        await world.settle(provider)
        assert await c.disputes.dispute_count() == count
        earned = await world.wealth(provider) - before
        assert earned > purchase.opening.receipt.fee > 0
        assert await c.staking.slashed_of(COMPUTE, provider.address) == 0
