"""Beacon: values fixed before anyone knows them, early phase ends, penalties, bounded restarts."""

import boa
import pytest

from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

AUDIT = keccak256(b"audit")
PENALTY = CREDIT
COMMIT, REVEAL, CLOSABLE, FINAL, FAILED = 1, 2, 3, 4, 5


def commit(world, number, auditor):
    world.beacon.commit(number, world.beacon_commitment(number, auditor), sender=auditor.text)


def reveal(world, number, auditor, secret=None):
    secret = secret or keccak256(b"secret" + auditor.address)
    world.beacon.reveal(number, secret, sender=auditor.text)


def stake_of(world, auditor):
    return world.staking.stakeOf(auditor.text)


@pytest.fixture
def number(world):
    return world.beacon.request(sender=world.stranger.text)


def test_a_round_ends_as_soon_as_everyone_acted(world, number):
    beacon = world.beacon
    assert (number, beacon.phase(number), beacon.phase(number + 1)) == (1, COMMIT, 0)
    assert beacon.deadline() == world.now + 40
    for auditor in world.auditors:
        assert beacon.phase(number) == COMMIT
        assert not beacon.committed(number, auditor.text)
        commit(world, number, auditor)
        assert beacon.committed(number, auditor.text)
    assert beacon.phase(number) == REVEAL
    for auditor in world.auditors:
        assert bytes(beacon.value(number)) == bytes(32)
        reveal(world, number, auditor)
    assert beacon.phase(number) == FINAL
    assert bytes(beacon.value(number)) != bytes(32)
    assert (beacon.deadline(), beacon.openRound()) == (0, 0)
    with boa.reverts("beacon: round cannot be finalized now"):
        beacon.finalize(number)


def test_the_order_of_reveals_does_not_matter(world, number):
    values = []
    for order in (world.auditors, world.auditors[::-1]):
        with boa.env.anchor():
            for auditor in world.auditors:
                commit(world, number, auditor)
            for auditor in order:
                reveal(world, number, auditor)
            values.append(world.beacon.value(number))
    assert values[0] == values[1]


def test_only_staked_auditors_commit_once_and_in_time(world, number):
    with boa.reverts("beacon: caller is not a staked auditor"):
        world.beacon.commit(number, b"\x01" * 32, sender=world.provider.text)
    with boa.reverts("beacon: commitment is zero"):
        world.beacon.commit(number, bytes(32), sender=world.auditors[0].text)
    with boa.reverts("beacon: round is not in its reveal phase"):
        reveal(world, number, world.auditors[0])
    commit(world, number, world.auditors[0])
    with boa.reverts("beacon: caller has committed"):
        commit(world, number, world.auditors[0])
    world.wait(20)
    with boa.reverts("beacon: round is not in its commit phase"):
        commit(world, number, world.auditors[1])
    for stranger in (world.auditors[1], world.buyer):
        with boa.reverts("beacon: secret does not open the commitment"):
            reveal(world, number, stranger)
    with boa.reverts("beacon: secret does not open the commitment"):
        reveal(world, number, world.auditors[0], b"\x02" * 32)
    with boa.reverts("beacon: round is not in its commit phase"):
        commit(world, number + 1, world.auditors[1])


def test_a_copied_commitment_cannot_be_opened(world, number):
    original, copycat = world.auditors[:2]
    commit(world, number, original)
    world.beacon.commit(number, world.beacon_commitment(number, original), sender=copycat.text)
    world.wait(20)
    reveal(world, number, original)
    with boa.reverts("beacon: secret does not open the commitment"):
        reveal(world, number, copycat, keccak256(b"secret" + original.address))


def test_who_does_not_reveal_pays_and_the_round_goes_on(world, number):
    supply = world.credit.totalSupply()
    before = [stake_of(world, auditor) for auditor in world.auditors]
    for auditor in world.auditors[:3]:
        commit(world, number, auditor)
    world.wait(20)
    assert world.beacon.phase(number) == REVEAL
    reveal(world, number, world.auditors[0])
    with boa.reverts("beacon: caller has revealed"):
        reveal(world, number, world.auditors[0])
    with boa.reverts("beacon: round cannot be finalized now"):
        world.beacon.finalize(number)
    world.wait(20)
    with boa.reverts("beacon: round is not in its reveal phase"):
        reveal(world, number, world.auditors[1])
    world.beacon.finalize(number, sender=world.stranger.text)
    assert world.beacon.phase(number) == FINAL
    after = [stake_of(world, auditor) for auditor in world.auditors]
    assert [b - a for b, a in zip(before, after, strict=True)] == [0, PENALTY, PENALTY, 0, 0]
    assert world.credit.totalSupply() == supply - 2 * PENALTY == world.total_held()
    assert world.balance(world.beacon) == 0


def test_leaving_after_the_commitment_does_not_save_the_penalty(world, number):
    auditor = world.auditors[0]
    commit(world, number, auditor)
    world.staking.optOut(AUDIT, sender=auditor.text)
    world.staking.beginUnbond(stake_of(world, auditor), sender=auditor.text)
    world.wait(40)
    before = world.staking.unbondingOf(auditor.text)[0]
    world.beacon.finalize(number)
    assert world.staking.unbondingOf(auditor.text)[0] == before - PENALTY


def test_members_who_left_do_not_hold_the_round_up(world, number):
    for auditor in world.auditors[:-1]:
        commit(world, number, auditor)
    world.staking.optOut(AUDIT, sender=world.auditors[-1].text)
    assert world.beacon.phase(number) == COMMIT
    world.wait(20)
    assert world.beacon.phase(number) == REVEAL


def test_a_round_without_reveals_restarts_three_times_and_fails(world, number):
    beacon, auditor = world.beacon, world.auditors[0]
    for attempt in range(4):
        assert beacon.roundOf(number)[0] == attempt
        assert beacon.phase(number) == COMMIT
        if attempt == 1:
            commit(world, number, auditor)
            world.wait(20)
            assert beacon.phase(number) == REVEAL
        world.wait(20)
        assert beacon.phase(number) == CLOSABLE
        assert beacon.deadline() > 0
        beacon.finalize(number)
        assert not beacon.committed(number, auditor.text)
    assert beacon.phase(number) == FAILED
    assert (beacon.openRound(), beacon.deadline(), bytes(beacon.value(number))) == (0, 0, bytes(32))
    assert stake_of(world, auditor) == 20 * CREDIT - PENALTY
    assert beacon.request() == number + 1


def test_requests_join_while_secrets_are_committed_and_no_longer(world, number):
    beacon = world.beacon
    for auditor in world.auditors:
        assert beacon.request() == number
        commit(world, number, auditor)
    assert (beacon.request(), beacon.openRound(), beacon.pendingRounds()) == (2, 2, [2, 1])
    assert beacon.request() == 2
    for auditor in world.auditors:
        reveal(world, number, auditor)
    assert (beacon.phase(number), beacon.phase(2), beacon.pendingRounds()) == (FINAL, COMMIT, [2])
    assert beacon.deadline() == world.now + 40
    assert world.run_beacon(2) != bytes(beacon.value(number))
    assert beacon.pendingRounds() == []


def test_a_round_that_has_to_begin_again_is_joined(world, number):
    world.wait(40)
    assert world.beacon.phase(number) == CLOSABLE
    assert world.beacon.request() == number
    commit_later = world.auditors[0]
    world.beacon.finalize(number)
    commit(world, number, commit_later)
    world.wait(20)
    reveal(world, number, commit_later)
    assert world.beacon.phase(number) == FINAL


def test_a_round_that_can_only_fail_is_not_joined(world, number):
    """Else whoever opens a dispute or appeals just then would get no jury, because others slept before."""
    for _ in range(3):
        world.wait(40)
        world.beacon.finalize(number)
    world.wait(40)
    assert (world.beacon.phase(number), world.beacon.roundOf(number)[0]) == (CLOSABLE, 3)
    assert world.beacon.request() == number + 1
    assert world.beacon.pendingRounds() == [number + 1, number]
    world.beacon.finalize(number)
    assert world.beacon.phase(number) == FAILED
    world.run_beacon(number + 1)
    assert world.beacon.phase(number + 1) == FINAL


def test_a_round_with_reveals_is_not_joined_after_its_deadline(world, number):
    for auditor in world.auditors[:2]:
        commit(world, number, auditor)
    world.wait(20)
    reveal(world, number, world.auditors[0])
    world.wait(20)
    assert world.beacon.phase(number) == CLOSABLE
    assert world.beacon.request() == number + 1


def test_deployment_checks_its_judge_and_windows(world, deploy_contract, deployment_reverts):
    for windows in ((0, 1), (1, 0), (30 * 86400 + 1, 1)):
        with deployment_reverts("window out of range"):
            deploy_contract("Beacon", world.staking.address, *windows, 1)
    with deployment_reverts("beacon: staking does not know this judge"):
        deploy_contract("Beacon", world.staking.address, 1, 1, 1)
