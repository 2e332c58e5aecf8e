"""Delegation: who backs an operator shares its rewards and its losses, and nobody else's money."""

import boa
import pytest
from contracts_world import JAIL_SECONDS, STORAGE, UNBONDING
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.primitives.units import CREDIT

SHARE_SCALE = 10**9


@pytest.fixture
def judge(world):
    """The account that the suite made judge of storage."""
    return world.deployer


@pytest.fixture
def operator(world):
    """100 credits of its own, all of them behind storage."""
    world.join(world.stranger, STORAGE, 100 * CREDIT)
    world.approve(world.stranger, world.staking)
    return world.stranger


@pytest.fixture
def backer(world):
    world.approve(world.buyer, world.staking)
    return world.buyer


def worth(world, operator, holder):
    return world.staking.accountOf(operator.text, holder.text)[0]


def test_delegated_stake_counts_and_is_lost_alike(world, operator, backer, judge):
    staking = world.staking
    staking.delegate(operator.text, 300 * CREDIT, sender=backer.text)
    assert staking.stakeOf(operator.text) == staking.power(STORAGE, operator.text) == 400 * CREDIT
    assert staking.slash(STORAGE, operator.text, 40 * CREDIT, sender=judge.text) == 40 * CREDIT
    assert (worth(world, operator, operator), worth(world, operator, backer)) == (90 * CREDIT, 270 * CREDIT)
    with boa.reverts("staking: amount exceeds the stake"):
        staking.undelegate(operator.text, 270 * CREDIT + 1, sender=backer.text)
    staking.undelegate(operator.text, 270 * CREDIT, sender=backer.text)
    assert staking.power(STORAGE, operator.text) == 90 * CREDIT
    assert staking.slash(STORAGE, operator.text, 36 * CREDIT, sender=judge.text) == 36 * CREDIT
    assert tuple(staking.accountOf(operator.text, backer.text)) == (0, 243 * CREDIT, world.now + UNBONDING)
    world.wait(UNBONDING - 1)
    with boa.reverts("staking: unbonding time has not passed"):
        staking.withdrawFrom(operator.text, sender=backer.text)
    world.wait(1)
    before = world.balance(backer)
    staking.withdrawFrom(operator.text, sender=backer.text)
    assert world.balance(backer) == before + 243 * CREDIT
    with boa.reverts("staking: nothing is unbonding"):
        staking.withdrawFrom(operator.text, sender=backer.text)
    assert tuple(staking.potsOf(operator.text)) == (81 * CREDIT, 0)


def test_nobody_takes_what_another_delegated(world, operator, backer):
    world.staking.delegate(operator.text, 10 * CREDIT, sender=backer.text)
    for thief in (world.accuser, world.auditors[0]):
        with boa.reverts("staking: amount exceeds the stake"):
            world.staking.undelegate(operator.text, 1, sender=thief.text)
    with boa.reverts("staking: amount exceeds the stake"):
        world.staking.beginUnbond(100 * CREDIT + 1, sender=operator.text)
    with boa.reverts("staking: amount exceeds the stake"):
        world.staking.beginUnbond(1, sender=backer.text)
    world.staking.undelegate(operator.text, 10 * CREDIT, sender=backer.text)
    world.wait(UNBONDING)
    for thief in (operator, world.accuser):
        with boa.reverts("staking: nothing is unbonding"):
            world.staking.withdrawFrom(operator.text, sender=thief.text)
    world.staking.withdrawFrom(operator.text, sender=backer.text)


def test_stake_is_delegated_to_who_has_some(world, backer):
    for nobody in (world.accuser, backer):
        with boa.reverts("staking: operator has no stake of its own"):
            world.staking.delegate(nobody.text, CREDIT, sender=backer.text)
    with boa.reverts("staking: amount is zero"):
        world.staking.delegate(world.provider.text, 0, sender=backer.text)


def test_an_operator_without_own_money_has_no_power(world, operator, backer):
    """Twenty times its own counts; what a rival delegates to it takes nothing away."""
    staking = world.staking
    staking.beginUnbond(99 * CREDIT, sender=operator.text)
    world.wait(UNBONDING)
    staking.withdraw(sender=operator.text)
    staking.delegate(operator.text, 19 * CREDIT, sender=backer.text)
    assert staking.power(STORAGE, operator.text) == 20 * CREDIT
    staking.delegate(operator.text, 500 * CREDIT, sender=backer.text)
    assert staking.power(STORAGE, operator.text) == 20 * CREDIT
    assert staking.sliceOf(STORAGE, operator.text) == 520 * CREDIT
    staking.beginUnbond(CREDIT, sender=operator.text)
    assert staking.power(STORAGE, operator.text) == 0


def test_rewards_are_shared_after_the_commission(world, operator, backer):
    staking = world.staking
    staking.delegate(operator.text, 300 * CREDIT, sender=backer.text)
    staking.setCommission(1000, sender=operator.text)
    staking.reward(operator.text, 40 * CREDIT, sender=backer.text)
    assert (worth(world, operator, operator), worth(world, operator, backer)) == (110 * CREDIT - 1, 330 * CREDIT - 1)
    assert tuple(staking.commissionOf(operator.text)) == (0, 1000, world.now + UNBONDING)
    world.wait(UNBONDING)
    assert tuple(staking.commissionOf(operator.text)) == (1000, 1000, 0)
    staking.reward(operator.text, 40 * CREDIT, sender=backer.text)
    shares = worth(world, operator, operator), worth(world, operator, backer)
    assert shares == (123 * CREDIT - 1, 357 * CREDIT - 1)
    assert staking.stakeOf(operator.text) == 480 * CREDIT
    with boa.reverts("staking: operator has no stake"):
        staking.reward(world.accuser.text, CREDIT, sender=backer.text)
    with boa.reverts("staking: amount is zero"):
        staking.reward(operator.text, 0, sender=backer.text)


def test_a_commission_rises_only_after_everybody_could_leave(world, operator, backer):
    staking = world.staking
    with boa.reverts("staking: commission exceeds the whole"):
        staking.setCommission(10_001, sender=operator.text)
    staking.setCommission(10_000, sender=operator.text)
    world.wait(UNBONDING - 1)
    staking.setCommission(9_000, sender=operator.text)
    world.wait(UNBONDING - 1)
    assert staking.commissionOf(operator.text)[0] == 0
    world.wait(1)
    assert staking.commissionOf(operator.text)[0] == 9_000
    staking.setCommission(9_500, sender=operator.text)
    staking.setCommission(400, sender=operator.text)
    assert tuple(staking.commissionOf(operator.text)) == (400, 400, 0)
    world.wait(UNBONDING)
    assert staking.commissionOf(operator.text)[0] == 400


def test_a_pot_that_was_slashed_to_nothing_begins_anew(world, operator, backer, judge):
    staking = world.staking
    staking.delegate(operator.text, 50 * CREDIT, sender=backer.text)
    staking.undelegate(operator.text, 10 * CREDIT, sender=backer.text)
    assert staking.slash(STORAGE, operator.text, 10**12, sender=judge.text) == 150 * CREDIT
    assert tuple(staking.potsOf(operator.text)) == (0, 0)
    with boa.reverts("staking: operator has no stake of its own"):
        staking.delegate(operator.text, CREDIT, sender=backer.text)
    staking.stake(7 * CREDIT, sender=operator.text)
    staking.delegate(operator.text, 3 * CREDIT, sender=backer.text)
    assert (worth(world, operator, operator), worth(world, operator, backer)) == (7 * CREDIT, 3 * CREDIT)
    world.wait(UNBONDING)
    with boa.reverts("staking: nothing is unbonding"):
        staking.withdrawFrom(operator.text, sender=backer.text)
    staking.undelegate(operator.text, 3 * CREDIT, sender=backer.text)
    staking.beginUnbond(7 * CREDIT, sender=operator.text)
    world.wait(UNBONDING)
    staking.withdrawFrom(operator.text, sender=backer.text)
    staking.withdraw(sender=operator.text)
    assert tuple(staking.potsOf(operator.text)) == (0, 0)


def test_a_price_cannot_be_driven_up_against_the_next(world, backer):
    """The first share cut down to one unit and a gift of 500 credits: the next one still gets what it puts in."""
    staking, thief = world.staking, world.accuser
    world.approve(thief, staking)
    staking.stake(2, sender=thief.text)
    staking.beginUnbond(1, sender=thief.text)
    staking.reward(thief.text, 500 * CREDIT, sender=thief.text)
    assert worth(world, thief, thief) <= 250 * CREDIT + 1
    staking.delegate(thief.text, 750 * CREDIT, sender=backer.text)
    assert 750 * CREDIT - 1 <= worth(world, thief, backer) <= 750 * CREDIT
    assert worth(world, thief, thief) <= 250 * CREDIT + 1


def test_a_jailed_operator_counts_when_it_asks_again(world, operator, judge):
    staking = world.staking
    with boa.reverts("staking: caller is not a judge of this service"):
        staking.jail(STORAGE, operator.text, sender=operator.text)
    with boa.reverts("staking: not in this service"):
        staking.jail(STORAGE, world.buyer.text, sender=judge.text)
    with boa.reverts("staking: operator is not jailed"):
        staking.unjail(STORAGE, sender=operator.text)
    staking.jail(STORAGE, operator.text, sender=judge.text)
    assert (staking.power(STORAGE, operator.text), staking.roster(STORAGE)) == (0, [])
    assert staking.sliceOf(STORAGE, operator.text) == 100 * CREDIT
    world.wait(JAIL_SECONDS - 1)
    with boa.reverts("staking: jail time has not passed"):
        staking.unjail(STORAGE, sender=operator.text)
    world.wait(1)
    assert staking.power(STORAGE, operator.text) == 0
    staking.unjail(STORAGE, sender=operator.text)
    assert staking.power(STORAGE, operator.text) == 100 * CREDIT


def test_what_exceeds_the_payout_is_taken_and_burned(make_world):
    world = make_world(payout_max=10 * CREDIT)
    world.join(world.stranger, STORAGE, 100 * CREDIT)
    judge, supply, before = world.deployer, world.credit.totalSupply(), world.balance(world.deployer)
    assert world.staking.slash(STORAGE, world.stranger.text, 25 * CREDIT, sender=judge.text) == 10 * CREDIT
    log = world.staking.get_logs()[0]
    assert (log.amount, log.paid) == (25 * CREDIT, 10 * CREDIT)
    assert world.staking.stakeOf(world.stranger.text) == 75 * CREDIT
    assert (world.balance(judge), world.credit.totalSupply()) == (before + 10 * CREDIT, supply - 15 * CREDIT)
    assert world.staking.slash(STORAGE, world.stranger.text, CREDIT, sender=judge.text) == 0
    world.wait(250)
    assert world.staking.payoutLeft(STORAGE) == 10 * CREDIT // 4
    assert world.staking.slash(STORAGE, world.stranger.text, CREDIT, sender=judge.text) == CREDIT


@given(
    stakes=st.lists(st.integers(1, 10**10), min_size=2, max_size=3),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "take", "withdraw", "slash", "reward"]), st.integers(0, 2), st.integers(1, 10**10)
        ),
        max_size=12,
    ),
)
@settings(max_examples=25, deadline=None)
def test_no_order_of_calls_gives_anybody_more_than_its_part(deployed, stakes, steps):
    """Whoever holds shares: together they are worth no more than the pots, and a step of one takes from no other."""
    world, staking, judge = deployed, deployed.staking, deployed.deployer
    held = world.balance(staking)
    operator = world.stranger
    people = (operator, world.buyer, world.accuser)
    with boa.env.anchor():
        for person in people:
            world.approve(person, staking)
            world.credit.transfer(person.text, 10**11, sender=world.faucet.text)
        staking.stake(stakes[0], sender=operator.text)
        staking.optIn(STORAGE, 10_000, sender=operator.text) if stakes[0] >= CREDIT else None
        for person, amount in zip(people[1:], stakes[1:], strict=False):
            staking.delegate(operator.text, amount, sender=person.text)
        for step, who, amount in steps:
            before = [sum(staking.accountOf(operator.text, person.text)[:2]) for person in people]
            run_step(world, operator, people[who], step, amount, judge)
            after = [sum(staking.accountOf(operator.text, person.text)[:2]) for person in people]
            assert sum(after) <= sum(staking.potsOf(operator.text)) == world.balance(staking) - held
            if step in ("put", "take", "withdraw"):
                others = [place for place in range(3) if place != who]
                assert all(after[place] >= before[place] for place in others)


def run_step(world, operator, person, step, amount, judge):
    staking = world.staking
    active, unbonding, _ = staking.accountOf(operator.text, person.text)
    if step == "put" and staking.accountOf(operator.text, operator.text)[0] > 0:
        staking.delegate(operator.text, amount, sender=person.text)
    elif step == "take" and active:
        staking.undelegate(operator.text, min(amount, active), sender=person.text)
    elif step == "withdraw" and unbonding:
        world.wait(UNBONDING)
        before = world.balance(person)
        staking.withdrawFrom(operator.text, sender=person.text)
        assert world.balance(person) == before + unbonding
    elif step == "slash":
        staking.slash(STORAGE, operator.text, amount, sender=judge.text)
    elif step == "reward" and staking.accountOf(operator.text, operator.text)[0] > 0:
        staking.reward(operator.text, amount, sender=person.text)
