"""Rounding, from one unit to the largest amounts: nobody gets more than a rule says, and no unit goes missing."""

from dataclasses import replace

import boa
import pytest
from contracts_world import (
    ACQUIT,
    ANSWER_SECONDS,
    CHALLENGE_BOND,
    COMPUTE,
    DA,
    FORK_PENALTY,
    GUILTY,
    PROVIDER_STAKE,
    ROUND_SECONDS,
    ROW_PENALTY,
    UNBONDING,
    ZERO32,
    Settings,
    World,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deaios.ledger.eip712 import sign_struct
from deaios.primitives.units import CREDIT

STAKE_MAX = 2**96 - 1
AMOUNT_MAX = 2**128 - 1
SUPPLY_MAX = 2**256 - 1
STAKING_WINDOWS = (UNBONDING, UNBONDING, 1, STAKE_MAX)
"""Unbonding, jail, and payouts without a bound that anything here reaches."""
BOND_MAX = 2**96 - 1
SLICES = (1, 2, 3, 9, 10, 11, 20, 21, 1_000_003, STAKE_MAX)
"""What is left to slash: around the first units of each part, odd, and all that the contract can hold."""
FEES = (0, 1, CREDIT // 100, AMOUNT_MAX)
AMOUNTS = {
    "one unit each": {"bond": 1, "appeal_bond": 1, "slash_floor": 1, "juror_fee": 1, "juror_penalty": 1},
    "odd": {"bond": 7, "appeal_bond": 5, "slash_floor": 13, "juror_fee": 3, "juror_penalty": 1},
    "usual": {},
    "largest": {
        "bond": BOND_MAX,
        "appeal_bond": BOND_MAX,
        "slash_floor": SUPPLY_MAX,
        "juror_fee": SUPPLY_MAX,
        "juror_penalty": SUPPLY_MAX,
    },
}


def make_rich_world(amounts):
    """A suite whose provider has staked all that fits, over a token of the largest supply."""
    world = World(replace(Settings(), **amounts), supply=SUPPLY_MAX, payout_max=STAKE_MAX)
    for actor in (world.provider, world.accuser):
        world.credit.transfer(actor.text, 2**130, sender=world.faucet.text)
        for contract in (world.staking, world.disputes):
            world.approve(actor, contract)
    world.credit.transfer(world.buyer.text, 2**130, sender=world.faucet.text)
    world.staking.stake(STAKE_MAX - PROVIDER_STAKE, sender=world.provider.text)
    return world


def leave_at_stake(world, amount):
    """The provider takes back everything but this."""
    provider = world.provider.text
    if amount < STAKE_MAX:
        world.staking.beginUnbond(STAKE_MAX - amount, sender=provider)
        world.wait(UNBONDING)
        world.staking.withdraw(sender=provider)
    assert world.staking.sliceOf(COMPUTE, provider) == amount


def balances(world):
    return {actor: world.balance(actor) for actor in world.everyone}


@pytest.mark.parametrize("amounts", AMOUNTS.values(), ids=AMOUNTS)
@pytest.mark.parametrize("fee", FEES)
def test_a_slash_is_divided_to_the_unit(amounts, fee):
    with boa.env.anchor():
        world = make_rich_world(amounts)
        config = world.make_config()
        world.deposit(config, CREDIT)
        dispute_id = world.open_dispute(world.make_receipt(config, fee))
        jurors = world.seat_jury(dispute_id)
        world.vote(dispute_id, [GUILTY] * 3)
        world.disputes.tally(dispute_id)
        world.wait(8)
        for at_stake in SLICES:
            with boa.env.anchor():
                leave_at_stake(world, at_stake)
                check_division(world, dispute_id, fee, at_stake, jurors)


def check_division(world, dispute_id, fee, at_stake, jurors):
    before, supply = balances(world), world.credit.totalSupply()
    world.disputes.finalize(dispute_id)
    got = {actor: now - before[actor] for actor, now in balances(world).items()}
    burned = supply - world.credit.totalSupply()
    bond = world.settings.bond
    taken = min(at_stake, max(world.settings.slash_floor, 1000 * fee))
    bounty, refund, fees = got[world.accuser] - bond, got[world.buyer], [got[juror] for juror in jurors]
    assert bounty + refund + sum(fees) + burned == taken
    assert 2 * burned >= taken
    assert 0 <= 10 * bounty <= taken
    assert 0 <= refund <= fee
    assert refund == min(fee, taken // 2)
    assert len(set(fees)) == 1
    assert 0 <= fees[0] <= world.settings.juror_fee
    assert world.balance(world.disputes) == 0
    assert world.staking.sliceOf(COMPUTE, world.provider.text) == at_stake - taken
    closed = world.dispute(dispute_id)
    assert (closed.slashed, closed.refunded, closed.bounty, closed.burned) == (taken, refund, bounty, burned)


@pytest.mark.parametrize("amounts", AMOUNTS.values(), ids=AMOUNTS)
def test_lost_bonds_are_divided_to_the_unit(amounts):
    """Acquitted twice: half of each bond to the accused, fees out of the first one's other half, the rest burned."""
    with boa.env.anchor():
        world = make_rich_world(amounts)
        config = world.make_config()
        world.deposit(config, CREDIT)
        dispute_id = world.open_dispute(world.make_receipt(config, 1))
        for votes in ([ACQUIT] * 3, [ACQUIT] * 5):
            world.seat_jury(dispute_id)
            world.vote(dispute_id, votes)
            world.disputes.tally(dispute_id)
            if len(votes) == 3:
                world.disputes.appeal(dispute_id, sender=world.accuser.text)
        before, supply = balances(world), world.credit.totalSupply()
        world.disputes.finalize(dispute_id)
        got = {actor: now - before[actor] for actor, now in balances(world).items() if now != before[actor]}
        bond, appeal_bond = world.settings.bond, world.settings.appeal_bond
        assert got.pop(world.provider, 0) == bond // 2 + appeal_bond // 2
        fee = min(world.settings.juror_fee, (bond - bond // 2) // 8)
        assert sum(got.values()) == 8 * fee
        burned = supply - world.credit.totalSupply()
        assert burned == bond - bond // 2 - 8 * fee + appeal_bond - appeal_bond // 2
        assert world.balance(world.disputes) == 0


def test_a_fork_s_penalty_is_divided_to_the_unit():
    with boa.env.anchor():
        world = make_rich_world({})
        config = world.make_config()
        world.deposit(config, CREDIT)
        first, second = (world.make_receipt(config)[2] for _ in range(2))
        pair = []
        for receipt in (first, replace(second, counter=first.counter)):
            pair += [world.tuple_of(receipt), sign_struct(world.provider.key, world.domain(), receipt)]
        for at_stake in SLICES:
            with boa.env.anchor():
                leave_at_stake(world, at_stake)
                before, supply = world.balance(world.stranger), world.credit.totalSupply()
                taken = world.forks.proveDoubleCounter(*pair, sender=world.stranger.text)
                bounty = world.balance(world.stranger) - before
                assert taken == min(at_stake, FORK_PENALTY)
                assert (bounty, supply - world.credit.totalSupply()) == (taken // 10, taken - taken // 10)
                assert world.balance(world.forks) == 0


@pytest.mark.parametrize("at_stake", [0, 1, 9, 10, 11, 19, ROW_PENALTY - 1, ROW_PENALTY, ROW_PENALTY + 1])
def test_a_row_s_penalty_is_divided_to_the_unit(world, at_stake):
    """Whatever is left of the slice when a challenge ends; from nothing nobody gets a bounty."""
    world.availability.beginEpoch()
    blob = world.certify(world.make_blob())
    challenge_id = world.challenge_row(blob, 0)
    world.run_beacon(world.availability.challengeOf(challenge_id)[2])
    holder = world.holder_of(0).text
    world.staking.beginUnbond(world.staking.stakeOf(holder) - at_stake, sender=holder)
    world.wait(max(UNBONDING, ROUND_SECONDS + ANSWER_SECONDS))
    world.staking.withdraw(sender=holder)
    assert world.staking.sliceOf(DA, holder) == at_stake
    before, supply, fee = world.balance(world.stranger), world.credit.totalSupply(), world.balance(world.availability)
    taken = world.availability.finalize(challenge_id, sender=world.accuser.text)
    assert taken == min(at_stake, ROW_PENALTY)
    assert world.balance(world.stranger) - before == CHALLENGE_BOND + taken // 10
    assert supply - world.credit.totalSupply() == taken - taken // 10
    assert world.balance(world.availability) == fee - CHALLENGE_BOND


def test_the_largest_channel_refuses_what_does_not_fit_and_loses_nothing():
    with boa.env.anchor():
        world = make_rich_world({})
        full, other = world.make_config(), world.make_config(salt=b"\x01" * 32)
        world.deposit(full, AMOUNT_MAX)
        with boa.reverts():
            world.deposit(full, 1, salt=1)
        world.deposit(other, 5)
        provider = world.provider.text
        world.channels.claim([world.make_claim(full, AMOUNT_MAX)], sender=provider)
        # A receiver's claims are counted in 128 bits over its whole life; beyond them the payer gets its money back.
        with boa.reverts():
            world.channels.claim([world.make_claim(other, 1)], sender=provider)
        world.channels.settle(provider, world.credit.address)
        with boa.reverts():
            world.channels.claim([world.make_claim(other, 1)], sender=provider)
        before = world.balance(world.buyer)
        world.channels.refund(world.tuple_of(other), AMOUNT_MAX, sender=provider)
        assert world.balance(world.buyer) == before + 5
        assert world.balance(world.channels) == 0
        assert world.channels.channels(world.channel_id(full)) == (AMOUNT_MAX, AMOUNT_MAX)


extremes = st.integers(1, 12) | st.integers(1, STAKE_MAX) | st.sampled_from([STAKE_MAX, STAKE_MAX - 1, STAKE_MAX // 2])


@pytest.fixture(scope="module")
def rich():
    """A token of the largest supply, all of it with one holder; titanoboa's plugin undoes each test's changes."""
    return World(supply=SUPPLY_MAX, payout_max=STAKE_MAX)


@given(
    start=extremes,
    caps=st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)).filter(lambda caps: sum(caps) <= 10_000),
    steps=st.lists(st.tuples(st.sampled_from(["slash0", "slash1", "unbond", "withdraw"]), extremes), max_size=8),
)
@example(start=10**9, caps=(5000, 5000), steps=[("slash0", 10**8), ("unbond", 10**8), ("withdraw", 1)])
@settings(max_examples=15, deadline=None)
def test_slices_of_any_stake_never_exceed_it(rich, deploy_contract, start, caps, steps):
    """Two services, stakes of one unit and of all that fits: what is taken, left and given back sums to the stake."""
    names, judges = (b"\x01" * 32, b"\x02" * 32), (rich.buyer.text, rich.accuser.text)
    who = rich.faucet.text
    with boa.env.anchor():
        token = rich.credit
        named = list(zip(names, judges, strict=True))
        minimums = [(name, 1) for name in names]
        staking = deploy_contract("SharedStaking", token.address, *STAKING_WINDOWS, named, minimums)
        token.approve(staking.address, SUPPLY_MAX, sender=who)
        staking.stake(start, sender=who)
        joined = []
        for name, cap in zip(names, caps, strict=True):
            # One unit of stake makes no power of a small cap: then there is no seat and no slice.
            if start * cap // 10_000:
                staking.optIn(name, cap, sender=who)
                joined.append(name)
            else:
                with boa.reverts("staking: power is below the service's minimum"):
                    staking.optIn(name, cap, sender=who)
        taken = returned = 0
        for step, amount in steps:
            slices = {name: staking.sliceOf(name, who) for name in names}
            (stake, unbonding, _), before = staking.accountOf(who, who), sum(staking.potsOf(who))
            if step.startswith("slash"):
                mine = names[int(step[-1])]
                got = staking.slash(mine, who, amount, sender=dict(named)[mine])
                assert got == min(amount, slices[mine])
                assert {name: staking.sliceOf(name, who) for name in names} == slices | {mine: slices[mine] - got}
                taken += got
            elif step == "unbond" and stake:
                staking.beginUnbond(min(amount, stake), sender=who)
                assert {name: staking.sliceOf(name, who) for name in names} == slices
            elif step == "withdraw" and unbonding:
                rich.wait(UNBONDING)
                staking.withdraw(sender=who)
                returned += unbonding
                for name in joined:
                    assert abs(staking.sliceOf(name, who) - slices[name] * (before - unbonding) // before) <= 2
            total = sum(staking.potsOf(who))
            assert taken + returned + total == start
            assert token.balanceOf(staking.address) == total
            assert sum(staking.sliceOf(name, who) for name in names) <= total
        with boa.reverts():
            staking.stake(STAKE_MAX + 1 - start if taken + returned == 0 else STAKE_MAX + 1, sender=who)


def test_a_unit_too_much_stake_is_refused(rich, deploy_contract):
    staking = deploy_contract("SharedStaking", rich.credit.address, *STAKING_WINDOWS, [], [(ZERO32, 1)])
    who = rich.faucet.text
    rich.credit.approve(staking.address, SUPPLY_MAX, sender=who)
    for amount in (STAKE_MAX + 1, SUPPLY_MAX):
        with boa.reverts():
            staking.stake(amount, sender=who)
    staking.stake(STAKE_MAX, sender=who)
    with boa.reverts("staking: stake is too large"):
        staking.stake(1, sender=who)
