"""SharedStaking: slices that services cannot take from each other, and no way out before a judge is done."""

import boa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

COMPUTE, AUDIT, STORAGE = keccak256(b"compute"), keccak256(b"audit"), keccak256(b"storage")
UNBONDING = 3600


@pytest.fixture
def judge(world):
    """The account that the suite made judge of storage."""
    return world.deployer


@pytest.fixture
def operator(world):
    """100 credits of stake, a quarter of it behind storage and half behind compute."""
    world.join(world.stranger, STORAGE, 100 * CREDIT, 2500)
    world.staking.optIn(COMPUTE, 5000, sender=world.stranger.text)
    return world.stranger


def slash(world, service, who, amount, judge):
    return world.staking.slash(service, who.text, amount, sender=judge.text)


def test_slices_and_powers_follow_the_caps(world, operator):
    staking = world.staking
    assert staking.stakeOf(operator.text) == 100 * CREDIT
    assert (staking.sliceOf(STORAGE, operator.text), staking.sliceOf(COMPUTE, operator.text)) == (
        25 * CREDIT,
        50 * CREDIT,
    )
    assert staking.power(STORAGE, operator.text) == 25 * CREDIT
    assert staking.sliceOf(AUDIT, operator.text) == 0
    assert staking.members(STORAGE) == [operator.text]
    assert staking.roster(COMPUTE) == [(world.provider.text, 50 * CREDIT), (operator.text, 50 * CREDIT)]
    assert [bytes(service) for service in staking.services()] == [
        COMPUTE,
        AUDIT,
        STORAGE,
        keccak256(b"da"),
        keccak256(b"consensus"),
    ]


def test_caps_only_rise_and_never_exceed_the_stake(world, operator):
    with boa.reverts("staking: caps exceed the whole stake"):
        world.staking.optIn(AUDIT, 2501, sender=operator.text)
    world.staking.optIn(AUDIT, 2500, sender=operator.text)
    with boa.reverts("staking: a cap can only be raised"):
        world.staking.optIn(STORAGE, 2499, sender=operator.text)
    with boa.reverts("staking: caps exceed the whole stake"):
        world.staking.optIn(STORAGE, 2501, sender=operator.text)
    with boa.reverts("staking: unknown service"):
        world.staking.optIn(keccak256(b"other"), 1, sender=operator.text)
    with boa.reverts("staking: a cap can only be raised"):
        world.staking.optIn(AUDIT, 0, sender=world.buyer.text)


def test_joining_needs_the_minimum(world):
    world.approve(world.stranger, world.staking)
    world.staking.stake(100 * CREDIT - 1, sender=world.stranger.text)
    with boa.reverts("staking: power is below the service's minimum"):
        world.staking.optIn(COMPUTE, 5000, sender=world.stranger.text)
    world.staking.stake(1, sender=world.stranger.text)
    world.staking.optIn(COMPUTE, 5000, sender=world.stranger.text)
    with boa.reverts("staking: amount is zero"):
        world.staking.stake(0, sender=world.stranger.text)


def test_only_judges_of_the_service_slash_and_only_its_slice(world, operator, judge):
    for stranger in (world.buyer, operator, world.faucet):
        with boa.reverts("staking: caller is not a judge of this service"):
            slash(world, STORAGE, operator, 1, stranger)
    with boa.reverts("staking: caller is not a judge of this service"):
        slash(world, COMPUTE, operator, 1, judge)
    before = world.balance(judge)
    assert slash(world, STORAGE, operator, 10 * CREDIT, judge) == 10 * CREDIT
    assert slash(world, STORAGE, operator, 99 * CREDIT, judge) == 15 * CREDIT
    assert slash(world, STORAGE, operator, 1, judge) == 0
    assert world.balance(judge) == before + 25 * CREDIT
    assert world.staking.stakeOf(operator.text) == 75 * CREDIT
    assert world.staking.sliceOf(COMPUTE, operator.text) == 50 * CREDIT
    assert slash(world, STORAGE, world.provider, CREDIT, judge) == 0


def test_unbonding_stake_has_no_power_but_stays_slashable(world, operator, judge):
    staking = world.staking
    with boa.reverts("staking: amount exceeds the stake"):
        staking.beginUnbond(100 * CREDIT + 1, sender=operator.text)
    staking.beginUnbond(100 * CREDIT, sender=operator.text)
    assert staking.power(STORAGE, operator.text) == 0
    assert staking.members(STORAGE) == []
    assert staking.sliceOf(STORAGE, operator.text) == 25 * CREDIT
    assert staking.unbondingOf(operator.text) == (100 * CREDIT, world.now + UNBONDING)
    world.wait(UNBONDING - 1)
    with boa.reverts("staking: unbonding time has not passed"):
        staking.withdraw(sender=operator.text)
    assert slash(world, STORAGE, operator, 5 * CREDIT, judge) == 5 * CREDIT
    world.wait(1)
    before = world.balance(operator)
    staking.withdraw(sender=operator.text)
    assert world.balance(operator) == before + 95 * CREDIT
    assert slash(world, STORAGE, operator, CREDIT, judge) == 0
    with boa.reverts("staking: nothing is unbonding"):
        staking.withdraw(sender=operator.text)


def test_a_second_unbonding_restarts_the_wait(world, operator):
    world.staking.beginUnbond(10 * CREDIT, sender=operator.text)
    world.wait(UNBONDING - 1)
    world.staking.beginUnbond(1, sender=operator.text)
    world.wait(UNBONDING - 1)
    with boa.reverts("staking: unbonding time has not passed"):
        world.staking.withdraw(sender=operator.text)
    world.wait(1)
    world.staking.withdraw(sender=operator.text)
    assert world.staking.stakeOf(operator.text) == 90 * CREDIT - 1


def test_a_slash_takes_from_active_and_unbonding_stake_alike(world, operator, judge):
    world.staking.beginUnbond(90 * CREDIT, sender=operator.text)
    power = world.staking.power(STORAGE, operator.text)
    assert slash(world, STORAGE, operator, 12 * CREDIT, judge) == 12 * CREDIT
    assert tuple(world.staking.potsOf(operator.text)) == (8_800_000, 79_200_000)
    assert world.staking.unbondingOf(operator.text)[0] == 79_200_000
    assert (power, world.staking.power(STORAGE, operator.text)) == (2_500_000, 1_300_000)


def test_leaving_takes_as_long_as_unbonding(world, operator, judge):
    staking = world.staking
    with boa.reverts("staking: not in this service"):
        staking.optOut(AUDIT, sender=operator.text)
    staking.optOut(STORAGE, sender=operator.text)
    with boa.reverts("staking: operator is leaving this service"):
        staking.optOut(STORAGE, sender=operator.text)
    with boa.reverts("staking: operator is leaving this service"):
        staking.optIn(STORAGE, 2500, sender=operator.text)
    assert staking.power(STORAGE, operator.text) == 0
    assert staking.members(STORAGE) == []
    with boa.reverts("staking: caps exceed the whole stake"):
        staking.optIn(AUDIT, 2501, sender=operator.text)
    world.wait(UNBONDING - 1)
    with boa.reverts("staking: leaving time has not passed"):
        staking.completeOptOut(STORAGE, operator.text, sender=world.buyer.text)
    assert slash(world, STORAGE, operator, CREDIT, judge) == CREDIT
    world.wait(1)
    staking.completeOptOut(STORAGE, operator.text, sender=world.buyer.text)
    assert slash(world, STORAGE, operator, CREDIT, judge) == 0
    with boa.reverts("staking: operator is not leaving this service"):
        staking.completeOptOut(STORAGE, operator.text, sender=world.buyer.text)
    staking.optIn(AUDIT, 5000, sender=operator.text)
    assert staking.capOf(STORAGE, operator.text) == 0


def test_a_member_below_the_minimum_can_be_evicted_and_come_back(world):
    staking, member = world.staking, world.auditors[1]
    with boa.reverts("staking: power is not below the minimum"):
        staking.evict(AUDIT, member.text, sender=world.buyer.text)
    staking.beginUnbond(5 * CREDIT + 1, sender=member.text)
    assert member.text not in staking.members(AUDIT)
    staking.evict(AUDIT, member.text, sender=world.buyer.text)
    with boa.reverts("staking: operator has no seat"):
        staking.evict(AUDIT, member.text, sender=world.buyer.text)
    with boa.reverts("staking: power is below the service's minimum"):
        staking.optIn(AUDIT, 10_000, sender=member.text)
    world.approve(member, staking)
    staking.stake(1, sender=member.text)
    assert staking.power(AUDIT, member.text) == 0
    assert member.text not in staking.members(AUDIT)
    staking.optIn(AUDIT, 10_000, sender=member.text)
    assert set(staking.members(AUDIT)) == {auditor.text for auditor in world.auditors}


def test_deployment_refuses_unsound_services(world, deploy_contract, deployment_reverts):
    token, judge, nobody = world.credit.address, world.buyer.text, "0x" + "00" * 20
    windows = (10, 10, 10, 10)
    cases = (
        ("staking: unbonding time is zero", token, (0, 1, 1, 1), [], []),
        ("staking: token is zero", nobody, windows, [], []),
        ("staking: jail time out of range", token, (10, 0, 1, 1), [], []),
        ("staking: jail time out of range", token, (10, 11, 1, 1), [], []),
        ("staking: payout out of range", token, (10, 10, 0, 1), [], []),
        ("staking: payout out of range", token, (10, 10, 2, 1), [], []),
        ("staking: payout out of range", token, (10, 10, 1, 2**96), [], []),
        ("staking: service is named twice", token, windows, [], [(AUDIT, 1), (AUDIT, 2)]),
        ("staking: minimum power is zero", token, windows, [], [(AUDIT, 0)]),
        ("staking: judge of an unknown service", token, windows, [(AUDIT, judge)], []),
        ("staking: judge is named twice", token, windows, [(AUDIT, judge)] * 2, [(AUDIT, 1)]),
        ("staking: judge is zero", token, windows, [(AUDIT, nobody)], [(AUDIT, 1)]),
    )
    for message, money, times, judges, minimums in cases:
        with deployment_reverts(message):
            deploy_contract("SharedStaking", money, *times, judges, minimums)


@given(
    caps=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    steps=st.lists(
        st.tuples(st.sampled_from(["slash0", "slash1", "stake", "unbond", "withdraw"]), st.integers(1, 10**9)),
        max_size=14,
    ),
)
@settings(max_examples=25, deadline=None)
def test_no_service_takes_from_the_slice_of_another(deployed, deploy_contract, caps, steps):
    """Two services, any order of calls: no slice falls by what the other service does, and the money is there."""
    world, judges = deployed, (deployed.buyer, deployed.accuser)
    names = (b"\x01" * 32, b"\x02" * 32)
    with boa.env.anchor():
        staking = deploy_contract(
            "SharedStaking",
            world.credit.address,
            *(UNBONDING, UNBONDING, 1, 10**15),
            [(name, judge.text) for name, judge in zip(names, judges, strict=True)],
            [(name, 1) for name in names],
        )
        who = world.stranger.text
        world.credit.approve(staking.address, 2**256 - 1, sender=who)
        staking.stake(10**8, sender=who)
        for name, cap in zip(names, caps, strict=True):
            staking.optIn(name, cap, sender=who)
        for step, amount in steps:
            slices = [staking.sliceOf(name, who) for name in names]
            powers = [staking.power(name, who) for name in names]
            total = staking.stakeOf(who) + staking.unbondingOf(who)[0]
            if step.startswith("slash"):
                mine = int(step[-1])
                taken = staking.slash(names[mine], who, amount, sender=judges[mine].text)
                assert taken == min(amount, slices[mine])
                assert staking.sliceOf(names[mine], who) == slices[mine] - taken
                assert staking.sliceOf(names[1 - mine], who) == slices[1 - mine]
                assert staking.power(names[mine], who) <= powers[mine]
                assert abs(staking.power(names[1 - mine], who) - powers[1 - mine]) <= 1
            elif step == "stake":
                staking.stake(min(amount, 10**8), sender=who)
                for name, before in zip(names, slices, strict=True):
                    assert staking.sliceOf(name, who) >= before
            elif step == "unbond" and staking.stakeOf(who):
                staking.beginUnbond(min(amount, staking.stakeOf(who)), sender=who)
                assert [staking.sliceOf(name, who) for name in names] == slices
            elif step == "withdraw" and staking.unbondingOf(who)[0]:
                world.wait(UNBONDING)
                staking.withdraw(sender=who)
                left = staking.stakeOf(who)
                for name, before in zip(names, slices, strict=True):
                    assert abs(staking.sliceOf(name, who) - before * left // total) <= 2
            total = staking.stakeOf(who) + staking.unbondingOf(who)[0]
            assert sum(staking.sliceOf(name, who) for name in names) <= total + 2
            assert world.credit.balanceOf(staking.address) == total
