"""Any order of calls by anyone: no money is made or lost, every contract can pay what it owes, nothing is stuck."""

from collections import Counter
from typing import ClassVar

import pytest
from contracts_machine import ABSENT, ACQUIT, GUILTY, SILENT, Suite, run_machine

from deaios.primitives.units import CREDIT

EVENTS = {
    "beacon failed",
    "beacon penalty",
    "opened again for twice the bond",
    "jury drawn anew",
    "refund after a claim",
    "call repeated",
    "slash by a jury",
    "slashed while unbonding",
    "verdict 1",
    "verdict 1 on appeal",
    "verdict 2",
    "verdict 2 on appeal",
    "verdict 3",
    "went on without a jury",
    "withdrawal while a dispute is open",
}


@pytest.fixture
def machine(world):
    """A machine class of its own over this test's world."""

    class SuiteInThisWorld(Suite):
        seen: ClassVar = Counter()

    SuiteInThisWorld.world = world
    return SuiteInThisWorld


@pytest.mark.slow
def test_money_is_conserved_in_any_order_of_calls(machine):
    run_machine(machine, examples=8, steps=25)
    assert machine.seen["deposit"] > 0


class Walk:
    """One run of a machine: all of its invariants are checked after each step, and it is drained at the end."""

    def __init__(self, machine_class):
        self.machine = machine_class()

    def __enter__(self):
        self.machine.begin()
        return self

    def __exit__(self, kind, error, trace):
        self.machine.teardown()

    def __getattr__(self, name):
        step = getattr(self.machine, name)

        def checked(*arguments, **options):
            step(*arguments, **options)
            self.machine.money_is_where_the_model_has_it()
            self.machine.stakes_and_slices_are_the_model_s()
            self.machine.channels_are_the_model_s()

        return checked


def test_the_machine_s_rules_reach_every_event(machine):
    """In one fixed order, so that the property above is not empty: what it is about really can happen."""
    with Walk(machine) as walk:
        here = walk.machine
        walk.initiate_withdraw(0, CREDIT)
        for dispute_id, again in ((1, False), (2, True)):
            walk.accuse(again, 0, CREDIT // 50)
            walk.judge_by_jury(dispute_id, [ACQUIT] * 7)
            walk.wait(10)
            walk.poke()
        walk.accuse(False, 1, CREDIT // 50)
        walk.wait(900)
        walk.poke()
        walk.finalize_withdraw(0)
        walk.refund(0, CREDIT, True)
        walk.refund(0, 1, False)
        walk.unbond(0, 45 * CREDIT)
        walk.judge_by_jury(3, [SILENT] * 7)
        walk.judge_by_jury(3, [GUILTY] * 7)
        walk.appeal_by_anyone(3)
        walk.judge_by_jury(3, [GUILTY, ACQUIT] * 4)
        walk.judge_by_jury(3, [GUILTY] * 7)
        walk.poke()
        walk.slash_elsewhere(CREDIT)
        walk.accuse(False, 2, CREDIT)
        walk.judge_by_jury(4, [GUILTY] * 7)
        walk.appeal_by_anyone(4)
        walk.judge_by_jury(4, [ACQUIT] * 7)
        walk.poke()
        walk.accuse(False, 2, CREDIT)
        walk.judge_by_jury(5, [ABSENT] * 7)
        walk.judge_by_jury(5, [GUILTY, ACQUIT, SILENT])
        walk.accuse(False, 2, 1)
        for _ in range(4):
            walk.run_beacon(5, 5)
            walk.wait(60)
            walk.poke()
        walk.poke()
        for function, arguments, sender in list(here.history):
            here.call(function, *arguments, sender=sender, expected=function is here.world.channels.claim)
            here.seen["call repeated"] += 1
        walk.settle(0)
        walk.wait(3600)
        walk.withdraw(0)
        assert {name for name in EVENTS if not machine.seen[name]} == set()


def test_proofs_and_challenges_take_each_penalty_once(machine):
    """Both providers, both proofs, the batch, and claims with and without a receipt."""
    with Walk(machine) as walk:
        here = walk.machine
        for which in (0, 2):
            walk.buy(which, CREDIT)
        for which, purchase in list(here.receipts):
            for kind in ("counter", "request"):
                walk.prove_pair(which, purchase, kind, honest=True)
                walk.prove_pair(which, purchase, kind, honest=False)
                walk.prove_pair(which, purchase, kind, honest=False)
        walk.stake(0, 60 * CREDIT)
        for _ in range(3):
            walk.publish_leaf(*here.receipts[0], honest=False)
        walk.publish_leaf(*here.receipts[0], honest=True)
        walk.challenge_claim(0)
        walk.show_receipt(0, 1)
        walk.show_receipt(0, 0)
        walk.challenge_claim(0)
        walk.claim(0, 1, 0)
        walk.challenge_claim(0)
        walk.wait(60)
        walk.poke()
        walk.claim(2, CREDIT, -1)
        walk.claim(2, CREDIT, 0)
        walk.challenge_claim(2)
        walk.wait(60)
        walk.show_receipt(2, -CREDIT)
        for name, count in {
            "proveDoubleCounter": 2,
            "proveDoubleRequest": 2,
            "proveBatchMismatch": 2,
            "challengeClaim": 3,
            "challengeClaim refused": 1,
            "finalizeClaim": 1,
            "showReceipt": 2,
        }.items():
            assert (name, machine.seen[name]) == (name, count)


def test_rows_are_promised_doubted_shown_and_paid(machine):
    """Certificates with and without quorum; rows shown, not shown and never asked for; fees shared and burned."""
    with Walk(machine) as walk:
        here = walk.machine
        walk.certify(0, 600)
        walk.begin_epoch()
        walk.begin_epoch()
        for absent in (2, 1, 0):
            walk.certify(absent, 600)
        first, second = sorted(here.model.promises)
        walk.doubt_seat(first, 0)
        walk.doubt_seat(first, 0)
        walk.show_seat(first, 0, 7, honest=True)
        walk.run_beacon(5, 0)
        walk.show_seat(first, 0, 7, honest=False)
        walk.show_seat(first, 0, 2, honest=True)
        walk.doubt_seat(first, 1)
        walk.wait(190)
        walk.poke()
        for seat in range(12):
            walk.doubt_seat(second, seat)
        walk.run_beacon(5, 0)
        walk.poke()
        walk.wait(300)
        walk.poke()
        walk.wait(300)
        walk.poke()
        for who in (7, 7, 8, 9, 10):
            walk.withdraw_rows(who)
        for function, arguments, sender in list(here.history):
            here.call(function, *arguments, sender=sender, expected=function is here.world.channels.claim)
        for name, count in {
            "certify": 2,
            "certify refused": 3,
            "challenge": 14,
            "challenge refused": 1,
            "row shown": 1,
            "row not shown": 12,
            "doubt without a value": 1,
            "fee shared": 1,
            "fee burned": 1,
        }.items():
            assert (name, machine.seen[name]) == (name, count)


def test_stake_that_others_added_is_shared_lost_and_taken_back(make_world):
    """Rewards, commissions, slashes that nobody is paid for, a pot slashed to nothing, and everybody's way out."""

    class SuiteWithLittleToPay(Suite):
        seen: ClassVar = Counter()
        world = make_world(payout_max=4 * CREDIT)

    with Walk(SuiteWithLittleToPay) as walk:
        for backer, amount in enumerate((7 * CREDIT, 11, CREDIT // 3)):
            walk.delegate(1, backer, amount)
        walk.set_commission(1, 10_001)
        walk.set_commission(1, 3333)
        walk.reward(1, 10 * CREDIT + 1)
        walk.undelegate(1, 0, 2 * CREDIT, everything=False)
        walk.undelegate(1, 0, 100 * CREDIT, everything=False)
        walk.slash_elsewhere(3 * CREDIT)
        walk.slash_elsewhere(5 * CREDIT)
        walk.wait(3600)
        walk.reward(1, 7)
        walk.withdraw_from(1, 0)
        walk.withdraw_from(1, 1)
        walk.set_commission(1, 0)
        walk.reward(1, CREDIT)
        walk.jail_or_unjail_elsewhere()
        walk.jail_or_unjail_elsewhere()
        walk.wait(900)
        walk.jail_or_unjail_elsewhere()
        walk.delegate(0, 0, 10 * CREDIT)
        walk.unbond(0, 50 * CREDIT)
        walk.undelegate(0, 0, 4 * CREDIT, everything=False)
        walk.delegate(0, 1, 1)
        walk.buy(0, CREDIT)
        walk.prove_pair(*walk.machine.receipts[0], "counter", honest=False)
        for backer in range(3):
            walk.undelegate(1, backer, 0, everything=True)
        walk.wait(3600)
        for backer in range(3):
            for operator in (0, 1):
                walk.withdraw_from(operator, backer)
        walk.withdraw(0)
        for name, count in {
            "delegate": 4,
            "delegate refused": 1,
            "undelegate refused": 1,
            "setCommission refused": 1,
            "reward": 3,
            "slash that nobody is paid": 1,
            "jail": 1,
            "unjail": 1,
            "unjail refused": 2,
            "withdrawFrom": 5,
            "proveDoubleCounter": 1,
        }.items():
            assert (name, walk.machine.seen[name]) == (name, count)
