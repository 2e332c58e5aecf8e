"""Auditors on a chain that takes blocks back: what cannot be unsaid is said only once its reason is settled."""

import pytest
from alignment_purchases import PROVIDER
from alignment_town import Town

from deaios.alignment.auditor.store import CaseState
from deaios.ledger.phases import BeaconPhase, Decision, DisputePhase
from deaios.primitives.units import CREDIT

LAG = 4


@pytest.fixture
def town(tmp_path):
    town = Town(tmp_path)
    town.chain.lag = LAG
    for member in town.members:  # they were made for a chain that never takes anything back
        member.kill()
        member.start()
    yield town
    town.close()


async def test_secrets_and_verdicts_wait_for_settled_phases_and_the_cheat_is_caught_all_the_same(town):
    seen = []

    def gate(moment, name, _sender):
        settled = town.chain.contracts().settled
        if moment == "before" and name == "beacon.reveal":
            seen.append(name)
            assert settled.beacon.phase_now(1) == BeaconPhase.REVEAL
        if moment == "before" and name in ("commit_verdict", "reveal_verdict"):
            seen.append(name)
            wanted = DisputePhase.COMMIT if name == "commit_verdict" else DisputePhase.REVEAL
            assert settled.disputes.phase_now(1) == wanted

    town.chain.gates.append(gate)
    await town.find_cheat()
    await town.run_until(town.is_closed)
    assert {name: seen.count(name) for name in set(seen)} == {
        "beacon.reveal": 4,
        "commit_verdict": 3,
        "reveal_verdict": 3,
    }
    (dispute,) = town.chain.disputes
    assert dispute.decision is Decision.GUILTY
    assert town.chain.providers[PROVIDER.address] == 40 * CREDIT
    assert town.chain.penalised == []


async def test_a_dispute_found_after_a_crash_counts_as_opened_once_it_is_settled(town):
    await town.find_cheat()
    await town.run_until(lambda: town.chain.disputes)
    accuser = town.members[0]
    digest = town.chain.disputes[0].receipt_digest
    accuser.store.advance_case(digest, CaseState.OPENING)  # as a crash right after sending leaves it
    accuser.kill()
    accuser.start()
    await accuser.tend()
    assert accuser.store.find_case(digest).state is CaseState.OPENING
    await town.run_until(lambda: accuser.store.find_case(digest).state is CaseState.OPENED, turns_max=5 * LAG)
    assert len(town.chain.settled().disputes) == 1
    assert len(town.chain.disputes) == 1
