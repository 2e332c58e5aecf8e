import pytest

from deaios.alignment.duty import (
    CRANK_PATIENCE_S,
    BeaconDuty,
    DisputeDuty,
    DisputeView,
    RoundView,
    beacon_duty,
    crank_delay_s,
    dispute_duty,
)
from deaios.ledger.phases import BeaconPhase, DisputePhase
from deaios.primitives.keys import Address


def round_view(phase: BeaconPhase, **changes: bool) -> RoundView:
    base = {"is_member": True, "has_committed": False, "has_revealed": False, "knows_secret": False}
    return RoundView(phase, **{**base, **changes})


def dispute_view(phase: DisputePhase, **changes: bool) -> DisputeView:
    base = {"is_juror": True, "has_committed": False, "has_revealed": False, "knows_verdict": False}
    return DisputeView(phase, **{**base, **changes})


def test_a_member_commits_once() -> None:
    assert beacon_duty(round_view(BeaconPhase.COMMIT), may_crank=False) is BeaconDuty.COMMIT
    assert beacon_duty(round_view(BeaconPhase.COMMIT, has_committed=True), may_crank=True) is BeaconDuty.NOTHING
    assert beacon_duty(round_view(BeaconPhase.COMMIT, is_member=False), may_crank=True) is BeaconDuty.NOTHING


def test_only_a_known_secret_is_revealed() -> None:
    committed = {"has_committed": True}
    assert beacon_duty(round_view(BeaconPhase.REVEAL, **committed), may_crank=True) is BeaconDuty.NOTHING
    known = {**committed, "knows_secret": True}
    assert beacon_duty(round_view(BeaconPhase.REVEAL, **known), may_crank=False) is BeaconDuty.REVEAL
    assert beacon_duty(round_view(BeaconPhase.REVEAL, **known, has_revealed=True), may_crank=True) is BeaconDuty.NOTHING


@pytest.mark.parametrize("phase", [BeaconPhase.UNKNOWN, BeaconPhase.FINAL, BeaconPhase.FAILED])
def test_a_round_that_is_over_asks_nothing(phase: BeaconPhase) -> None:
    assert beacon_duty(round_view(phase), may_crank=True) is BeaconDuty.NOTHING


@pytest.mark.parametrize(
    ("phase", "duty"),
    [
        (DisputePhase.DRAW, DisputeDuty.DRAW),
        (DisputePhase.TALLY, DisputeDuty.TALLY),
        (DisputePhase.FINALIZE, DisputeDuty.FINALIZE),
    ],
)
def test_common_steps_are_taken_by_whose_turn_it_is(phase: DisputePhase, duty: DisputeDuty) -> None:
    assert dispute_duty(dispute_view(phase), may_crank=True) is duty
    assert dispute_duty(dispute_view(phase), may_crank=False) is DisputeDuty.NOTHING


def test_only_jurors_judge_and_only_committed_jurors_reveal() -> None:
    assert dispute_duty(dispute_view(DisputePhase.COMMIT), may_crank=False) is DisputeDuty.JUDGE
    assert dispute_duty(dispute_view(DisputePhase.COMMIT, is_juror=False), may_crank=True) is DisputeDuty.NOTHING
    assert dispute_duty(dispute_view(DisputePhase.REVEAL), may_crank=True) is DisputeDuty.NOTHING
    ready = dispute_view(DisputePhase.REVEAL, has_committed=True, knows_verdict=True)
    assert dispute_duty(ready, may_crank=False) is DisputeDuty.REVEAL


def test_cranks_are_staggered_and_rotate() -> None:
    members = tuple(Address(bytes([n]) * 20) for n in (3, 1, 2))
    first = [crank_delay_s(member, members, 0) for member in sorted(members)]
    assert first == [0.0, CRANK_PATIENCE_S, 2 * CRANK_PATIENCE_S]
    assert sorted(crank_delay_s(member, members, 7) for member in members) == first
    assert crank_delay_s(sorted(members)[1], members, 1) == 0.0
    assert crank_delay_s(Address(bytes(20)), members, 0) == 3 * CRANK_PATIENCE_S
