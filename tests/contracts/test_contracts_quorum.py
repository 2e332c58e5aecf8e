"""The exact edge of the quorum: a verdict needs two thirds of all seats, rounded up, and not one vote less.

Every jury size up to the largest appeal is counted by the rule in Python; the real contract is asked at 3, 7 and 21
and at their appeals' 7, 15 and 43, with the other seats silent, absent or of the opposite mind.
"""

from dataclasses import replace
from fractions import Fraction

import boa
import pytest
from contracts_world import ACQUIT, GUILTY, NO_QUORUM

from deaios.ledger.eip712 import hash_struct
from deaios.ledger.selection import JURORS_MAX, jury_size, quorum
from deaios.primitives.units import CREDIT

BEACON, APPEAL, FINALIZE = 1, 6, 7
SILENT, ABSENT = None, "absent"


@pytest.mark.parametrize("jurors", range(1, JURORS_MAX))
def test_the_rule_needs_two_thirds_and_no_more(jurors):
    needed = quorum(jurors)
    assert Fraction(needed - 1, jurors) < Fraction(2, 3) <= Fraction(needed, jurors)
    # Two opposite verdicts can never both be reached, and a third of the seats plus one can prevent either.
    assert 2 * needed > jurors
    assert jurors - (jurors // 3 + 1) < needed


@pytest.mark.parametrize("size", [3, 7, 21])
def test_the_first_jury_s_edge(make_world, world, size):
    with Court(make_world, world, size, 2 * size + 1) as court:
        needed = quorum(size)
        others = size - needed
        for judgement, opposite in ((GUILTY, ACQUIT), (ACQUIT, GUILTY)):
            for rest in (SILENT, ABSENT, opposite):
                assert court.verdict([judgement] * needed + [rest] * others) == judgement
                if others + 1 < needed:
                    assert court.verdict([judgement] * (needed - 1) + [rest] * (others + 1)) is None


@pytest.mark.parametrize("size", [3, 7, 21])
def test_the_appeal_s_edge(make_world, world, size):
    with Court(make_world, world, size, 2 * size + 1) as court:
        court.convict_and_appeal()
        seats = jury_size(size, 2 * size + 1, appealed=True)
        needed = quorum(seats)
        assert seats == len(court.jurors)
        for rest in (SILENT, ABSENT):
            assert court.count([GUILTY] * needed + [rest] * (seats - needed)) == (GUILTY, FINALIZE)
            assert court.count([ACQUIT] * needed + [rest] * (seats - needed)) == (ACQUIT, FINALIZE)
            edge = [GUILTY] * (needed - 1) + [rest] * (seats - needed + 1)
            verdict, phase = court.count(edge)
            # The silent seats are penalised first: where too few stay eligible, there is no redraw.
            assert (verdict, phase) in ((0, BEACON), (NO_QUORUM, FINALIZE))


def test_a_narrow_appeal_s_edge(make_world, world):
    """Where fewer than 2k + 1 are eligible all of them sit, and two thirds of those decide."""
    with Court(make_world, world, 3, 5) as court:
        court.convict_and_appeal()
        assert (len(court.jurors), quorum(5)) == (5, 4)
        assert court.count([ACQUIT] * 4 + [SILENT]) == (ACQUIT, FINALIZE)
        assert court.count([ACQUIT] * 3 + [SILENT] * 2) == (0, BEACON)
        assert court.count([ACQUIT] * 3 + [GUILTY] * 2) == (0, BEACON)


class Court:
    """A suite with a jury of one size that sits over one receipt; each verdict is asked for and undone."""

    def __init__(self, make_world, world, size, auditors):
        self.made = lambda: make_world(replace(world.settings, jury_size=size), auditors=auditors)

    def __enter__(self):
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()
        self.world = self.made()
        config = self.world.make_config()
        self.world.deposit(config, CREDIT)
        self.dispute_id = self.world.open_dispute(self.world.make_receipt(config))
        self.jurors = self.world.seat_jury(self.dispute_id)
        return self

    def __exit__(self, *error):
        self.anchor.__exit__(None, None, None)

    def vote_and_tally(self, judgements):
        disputes = self.world.disputes
        votes = list(zip(self.jurors, judgements, strict=True))
        for juror, judgement in votes:
            if judgement != ABSENT:
                commitment = hash_struct(self.world.verdict(self.dispute_id, juror, judgement or ACQUIT))
                disputes.commitVerdict(self.dispute_id, commitment, sender=juror.text)
        if ABSENT in judgements:
            self.world.wait(60)
        for juror, judgement in votes:
            if judgement in (ACQUIT, GUILTY):
                self.world.reveal_verdict(self.dispute_id, juror, judgement)
        if SILENT in judgements:
            self.world.wait(30)
        disputes.tally(self.dispute_id)

    def count(self, judgements):
        """Verdict and phase after these votes."""
        with boa.env.anchor():
            self.vote_and_tally(judgements)
            phase = self.world.disputes.phaseOf(self.dispute_id)
            return self.world.dispute(self.dispute_id).verdict, phase

    def verdict(self, judgements):
        """The verdict, or None when the jury is drawn anew."""
        verdict, phase = self.count(judgements)
        assert (phase == BEACON) == (verdict == 0)
        return verdict or None

    def convict_and_appeal(self):
        self.vote_and_tally([GUILTY] * len(self.jurors))
        self.world.approve(self.world.provider, self.world.disputes)
        self.world.disputes.appeal(self.dispute_id, sender=self.world.provider.text)
        self.jurors = self.world.seat_jury(self.dispute_id)
