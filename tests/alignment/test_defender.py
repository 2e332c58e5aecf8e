"""An accused provider appeals what its own replay refutes, once and in time; a cheat keeps its bond."""

from types import SimpleNamespace

import pytest
from alignment_chain import SETTINGS, Killed
from alignment_purchases import DOMAIN, PROVIDER, RIVAL
from alignment_town import MODEL, Recheck, Town

from deaios.alignment.defence.service import Defender
from deaios.ledger.phases import Decision, DisputePhase
from deaios.primitives.units import CREDIT

LIARS = 3


class LyingRecheck(Recheck):
    """Finds every answer false, and no replay that gives it."""

    async def check(self, evidence):
        self.false.add(evidence.opening.receipt_digest)
        return await super().check(evidence)


@pytest.fixture
def town(tmp_path):
    """Nine auditors, three of them liars: one accuses, two have the majority of the first jury."""
    town = Town(tmp_path, count=9)
    liars = town.members[:LIARS]
    for liar in liars:
        liar.kill()
        liar.recheck = LyingRecheck()
        liar.start()
    town.chain.choose_jury = lambda item, size: (
        tuple(member.key.address for member in town.members[1 : LIARS + 1]) if item.first_verdict == 0 else None
    )
    yield town
    town.close()


def defend(town, recheck=None, provider=PROVIDER):
    return Defender(
        contracts=town.chain.contracts(),
        sender=SimpleNamespace(address=provider.address),
        domain=DOMAIN,
        model_record_id=MODEL,
        shelf=town.shelf,
        recheck=recheck or town.recheck,
        clock=town.clock,
    )


async def run(town, defender, turns_max=200):
    """Auditors and defender side by side until the dispute is closed; the defender may die and come back."""
    for _ in range(turns_max):
        if town.is_closed():
            return
        await town.turn()
        try:
            await defender.tend()
        except Killed:
            defender = defend(town)
    raise AssertionError("the dispute was not closed")


async def test_a_framed_provider_appeals_and_is_acquitted(town):
    assert await town.members[0].auditor.audit_once() is False
    await run(town, defend(town))
    (dispute,) = town.chain.disputes
    assert dispute.first_verdict == Decision.GUILTY
    assert dispute.decision is Decision.ACQUITTED
    assert dispute.appellant == PROVIDER.address
    assert town.chain.payers("appeal") == [PROVIDER.address]
    assert town.chain.payers("approve").count(PROVIDER.address) == 1
    assert town.chain.balances[PROVIDER.address] == 20 * CREDIT
    assert town.chain.providers[PROVIDER.address] == 50 * CREDIT
    assert dispute.jurors == 2 * SETTINGS.jury_size + 1


async def test_without_a_defender_the_frame_would_have_worked(town):
    await town.members[0].auditor.audit_once()
    await town.run_until(town.is_closed)
    assert town.chain.disputes[0].decision is Decision.GUILTY


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["approve", "appeal"])
async def test_a_defender_that_dies_appeals_once(town, name, when):
    died = []

    def gate(moment, sent, sender):
        if (moment, sent, sender) == (when, name, PROVIDER.address) and not died:
            died.append(sent)
            raise Killed

    town.chain.gates.append(gate)
    await town.members[0].auditor.audit_once()
    await run(town, defend(town))
    assert died == [name]
    assert len(town.chain.payers("appeal")) == 1
    assert town.chain.disputes[0].decision is Decision.ACQUITTED


@pytest.mark.parametrize("can_replay", [True, False])
async def test_a_cheat_or_an_unlisted_engine_does_not_appeal(town, can_replay):
    town.chain.choose_jury = None
    await town.find_cheat(5)
    recheck = Recheck(false=set(town.recheck.false), can_replay=can_replay)
    await run(town, defend(town, recheck))
    assert town.chain.payers("appeal") == []
    assert town.chain.disputes[0].decision is Decision.GUILTY
    assert town.chain.balances[PROVIDER.address] == 20 * CREDIT


async def test_the_evidence_is_read_before_the_verdict(town):
    """An appeal window is short: when it begins, the defender knows already."""
    await town.members[0].auditor.audit_once()
    defender = defend(town)
    await town.run_until(lambda: bool(town.chain.disputes))
    await defender.tend()
    assert town.recheck.replayed == 1
    disputes = town.chain.contracts().disputes
    await town.run_until(lambda: disputes.phase_now(1) == DisputePhase.APPEAL)
    town.shelf.is_away = True
    town.recheck.is_away = True
    await defender.tend()
    assert len(town.chain.payers("appeal")) == 1


async def test_evidence_that_is_late_is_asked_for_again(town):
    await town.members[0].auditor.audit_once()
    defender = defend(town)
    await town.run_until(lambda: bool(town.chain.disputes))
    town.shelf.is_away = True
    await defender.tend()
    assert town.recheck.replayed == 0
    town.shelf.is_away = False
    await run(town, defender)
    assert town.chain.disputes[0].decision is Decision.ACQUITTED


async def test_an_acquittal_and_other_providers_disputes_are_left_alone(town):
    await town.members[0].auditor.audit_once()
    defender = defend(town, provider=RIVAL)
    await run(town, defender)
    assert town.chain.payers("appeal") == []
    town.chain.choose_jury = lambda item, size: tuple(member.key.address for member in town.members[-3:])
    await town.members[0].auditor.audit_once()
    await town.run_until(lambda: town.is_closed(2))
    assert town.chain.disputes[1].decision is Decision.ACQUITTED


async def test_a_missing_bond_is_said_and_tried_until_the_window_ends(town):
    town.chain.balances[PROVIDER.address] = 0
    await town.members[0].auditor.audit_once()
    await run(town, defend(town))
    assert town.chain.payers("appeal") == []
    assert [reason for name, _, reason in town.chain.refused if name == "appeal"].count("credit: balance too low") >= 2
