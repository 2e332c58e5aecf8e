"""Jurors that judge blindly, copy or keep silent, accusers without a case, and appeals without one."""

from contextlib import contextmanager

import pytest
from cheating_buyer import sue, true_evidence
from cheating_juror import Blind, Copying, Silent
from cheating_provider import invented_tokens
from cheats_world import build_order

from deaios.ledger.client.rpc import Reverted
from deaios.ledger.phases import Decision, DisputePhase
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import Judgement
from deaios.ledger.suite import COMPUTE

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextmanager
def seated(world, accuser, build):
    """Let a cheat sit in the last auditor's place; the accuser is the first, so that all others are the jury."""
    honest = list(world.watchers)
    assert accuser is honest[0]
    cheat = build(world, honest[-1])
    world.watchers[-1] = cheat
    try:
        yield cheat
    finally:
        world.watchers[:] = honest


async def accuse(world, customer, order, opening):
    """The first auditor takes a user's receipt to the jury of the other three."""
    return await sue(world, world.watchers[0], opening, true_evidence(order, opening))


async def test_a_juror_who_always_convicts_does_not_convict_an_honest_provider(world):
    async with world.selling("honest", world.machine.generate) as honest, world.buying("customer") as customer:
        order = build_order(honest.address)
        opening = (await customer.buy(order)).opening
        accuser = world.watchers[0]
        start, bonded = await world.wealth(honest), await world.wealth(accuser)
        with seated(world, accuser, lambda *seat: Blind(*seat, Judgement.GUILTY)):
            dispute_id = await accuse(world, customer, order, opening)
            dispute = await world.run_until_closed(dispute_id)
        assert (dispute.decision, dispute.guilty, dispute.acquit) == (Decision.ACQUITTED, 1, 2)
        assert await world.wealth(honest) == start + LOCAL.dispute_bond // 2
        assert await world.wealth(accuser) == bonded - LOCAL.dispute_bond


async def test_a_juror_who_always_acquits_saves_no_cheat_and_is_paid_as_built(world):
    """Planted faults are not built: README, what you still trust. One blind juror of three changes nothing."""
    async with world.selling("cheat", invented_tokens(world)) as cheat, world.buying("customer") as customer:
        order = build_order(cheat.address)
        opening = (await customer.buy(order)).opening
        with seated(world, world.watchers[0], lambda *seat: Blind(*seat, Judgement.ACQUIT)) as juror:
            before = await world.wealth(juror)
            dispute = await world.run_until_closed(await accuse(world, customer, order, opening))
            assert (dispute.decision, dispute.guilty, dispute.acquit) == (Decision.GUILTY, 2, 1)
            assert await world.wealth(juror) == before + LOCAL.juror_fee
        assert await world.contracts.staking.slashed_of(COMPUTE, cheat.address) == LOCAL.slash_floor


@pytest.mark.parametrize("kind", [Copying, Silent], ids=lambda kind: kind.__name__)
async def test_a_juror_who_copies_or_keeps_silent_is_penalised_and_the_verdict_stands(world, kind):
    async with world.selling("cheat", invented_tokens(world)) as cheat, world.buying("customer") as customer:
        order = build_order(cheat.address)
        opening = (await customer.buy(order)).opening
        others = [await world.wealth(watcher) for watcher in world.watchers[1:-1]]
        with seated(world, world.watchers[0], kind) as juror:
            before = await world.wealth(juror)
            dispute = await world.run_until_closed(await accuse(world, customer, order, opening))
            assert (dispute.decision, dispute.guilty, dispute.reveals) == (Decision.GUILTY, 2, 2)
            assert await world.wealth(juror) == before - LOCAL.juror_penalty
            if kind is Copying:
                assert set(juror.refused) == {"disputes: verdict does not open the commitment"}
        for watcher, wealth in zip(world.watchers[1:-1], others, strict=True):
            assert await world.wealth(watcher) == wealth + LOCAL.juror_fee


async def test_a_cheat_that_appeals_a_true_verdict_loses_its_appeal_bond_too(world):
    c = world.contracts
    async with world.selling("cheat", invented_tokens(world)) as cheat, world.buying("customer") as customer:
        order = build_order(cheat.address)
        opening = (await customer.buy(order)).opening
        accuser, start = world.watchers[0], await world.wealth(cheat)
        bonded = await world.wealth(accuser)
        dispute_id = await accuse(world, customer, order, opening)
        await c.credit.ensure_allowance(cheat.sender, c.disputes.address, 2 * LOCAL.appeal_bond)
        while await c.disputes.phase_of(dispute_id) != DisputePhase.APPEAL:
            await world.turn()
        await c.disputes.appeal(cheat.sender, dispute_id)
        with pytest.raises(Reverted, match="no appeal is possible now"):
            await c.disputes.appeal(cheat.sender, dispute_id)
        dispute = await world.run_until_closed(dispute_id)
        assert (dispute.decision, dispute.first_verdict) == (Decision.GUILTY, Decision.GUILTY)
        assert await world.wealth(cheat) == start - LOCAL.slash_floor - LOCAL.appeal_bond
        assert await world.wealth(accuser) == bonded + dispute.bounty + LOCAL.appeal_bond // 2
        # The user whose answer it was has its fee back.
        assert dispute.refunded == opening.receipt.fee
