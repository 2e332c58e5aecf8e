"""Sponsorship: who lends loses no more than the seed, who is lent to pays from its earnings only, in any order."""

from collections import Counter
from functools import partial
from typing import ClassVar

import boa
import pytest
from boa.contracts.base_evm_contract import BoaError
from contracts_world import COMPUTE, PROVIDER_STAKE, UNBONDING, ZERO32, make_actor
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from deaios.ledger.eip712 import hash_typed_data
from deaios.ledger.sponsorship import (
    InvalidPledge,
    Pledge,
    SponsorTerms,
    sign_pledge,
    split_stake,
    validate_pledge,
)
from deaios.primitives.units import CREDIT

TERM = 500
SEED, BACKING = split_stake(PROVIDER_STAKE)
OWED = SEED + CREDIT // 10
NEWCOMER = make_actor("newcomer")


@pytest.fixture
def terms(world):
    world.approve(world.stranger, world.sponsorship)
    return SponsorTerms(world.stranger.address, SEED, BACKING, OWED, TERM)


@pytest.fixture
def sponsored(world, terms):
    world.sponsorship.sponsor(*world.sponsor_arguments(NEWCOMER, terms), sender=world.stranger.text)
    return terms


@pytest.fixture
def serving(world, sponsored):
    """A newcomer that has staked its seed, is backed and takes part."""
    world.approve(NEWCOMER, world.staking)
    world.staking.stake(SEED, sender=NEWCOMER.text)
    world.sponsorship.back(NEWCOMER.text, sender=NEWCOMER.text)
    world.staking.optIn(COMPUTE, 10_000, sender=NEWCOMER.text)
    return sponsored


def earn(world, amount, total=None):
    """The newcomer claims from a channel of the buyer."""
    config = world.make_config(receiver=NEWCOMER)
    if total is None:
        world.deposit(config, 100 * CREDIT)
    world.channels.claim([world.make_claim(config, amount)], sender=NEWCOMER.text)


def test_a_newcomer_without_money_serves_and_repays_from_its_first_earnings(world, serving):
    assert world.staking.power(COMPUTE, NEWCOMER.text) == PROVIDER_STAKE
    before = world.balance(world.stranger)
    assert world.channels.debtOf(NEWCOMER.text) == (world.stranger.text, OWED)
    earn(world, 19)
    world.channels.settle(NEWCOMER.text, world.credit.address, sender=NEWCOMER.text)
    assert (world.balance(NEWCOMER), world.balance(world.stranger) - before) == (1, 18)
    assert world.channels.debtOf(NEWCOMER.text) == (world.stranger.text, OWED - 18)
    earn(world, 2 * OWED, total=True)
    world.channels.settle(NEWCOMER.text, world.credit.address, sender=world.buyer.text)
    assert (world.balance(NEWCOMER), world.balance(world.stranger) - before) == (OWED, OWED)
    assert world.channels.debtOf(NEWCOMER.text) == (world.stranger.text, 0)
    earn(world, 2 * OWED + 11, total=True)
    world.channels.settle(NEWCOMER.text, world.credit.address, sender=world.buyer.text)
    assert (world.balance(NEWCOMER), world.balance(world.stranger) - before) == (OWED + 11, OWED)
    assert world.balance(world.channels) == 100 * CREDIT - 2 * OWED - 11


def test_the_backing_comes_back_after_the_term(world, serving):
    before = world.balance(world.stranger)
    with boa.reverts("sponsorship: term has not passed"):
        world.sponsorship.recall(NEWCOMER.text, sender=world.stranger.text)
    with boa.reverts("staking: amount exceeds the stake"):
        world.staking.beginUnbond(SEED + 1, sender=NEWCOMER.text)
    world.wait(TERM)
    with boa.reverts("sponsorship: caller is not the sponsor"):
        world.sponsorship.recall(NEWCOMER.text, sender=NEWCOMER.text)
    with boa.reverts("sponsorship: backing was not recalled"):
        world.sponsorship.collect(NEWCOMER.text, sender=world.stranger.text)
    world.sponsorship.recall(NEWCOMER.text, sender=world.stranger.text)
    assert world.staking.power(COMPUTE, NEWCOMER.text) == 0
    with boa.reverts("staking: unbonding time has not passed"):
        world.sponsorship.collect(NEWCOMER.text, sender=world.stranger.text)
    world.wait(UNBONDING)
    world.sponsorship.collect(NEWCOMER.text, sender=world.buyer.text)
    assert world.balance(world.stranger) - before == BACKING
    for what in ("recall", "back"):
        with boa.reverts():
            getattr(world.sponsorship, what)(NEWCOMER.text, sender=world.stranger.text)
    with boa.reverts("staking: nothing is unbonding"):
        world.sponsorship.collect(NEWCOMER.text, sender=world.stranger.text)
    assert world.balance(world.sponsorship) == 0


def test_a_newcomer_that_runs_away_costs_the_seed(world, sponsored):
    before = world.balance(world.stranger) + SEED + BACKING
    world.credit.transfer(world.buyer.text, SEED, sender=NEWCOMER.text)
    with boa.reverts("staking: operator has no stake of its own"):
        world.sponsorship.back(NEWCOMER.text, sender=NEWCOMER.text)
    world.wait(TERM)
    world.sponsorship.recall(NEWCOMER.text, sender=world.stranger.text)
    assert before - world.balance(world.stranger) == SEED


def test_a_key_is_sponsored_once_even_when_all_is_repaid(world, serving, terms):
    earn(world, 2 * OWED)
    world.channels.settle(NEWCOMER.text, world.credit.address, sender=world.buyer.text)
    with boa.reverts("sponsorship: key was sponsored before"):
        world.sponsorship.sponsor(*world.sponsor_arguments(NEWCOMER, terms, nonce=1), sender=world.stranger.text)


def test_a_pledge_binds_for_what_was_signed_and_nothing_else(world, terms):
    newcomer, seed, backing, owed, term, deadline, signature = world.sponsor_arguments(NEWCOMER, terms)
    changed = {
        "less seed": (newcomer, seed - 1, backing, owed, term, deadline, signature),
        "less backing": (newcomer, seed, backing - 1, owed, term, deadline, signature),
        "more owed": (newcomer, seed, backing, owed + 1, term, deadline, signature),
        "a shorter term": (newcomer, seed, backing, owed, term - 1, deadline, signature),
        "a later deadline": (newcomer, seed, backing, owed, term, deadline + 1, signature),
        "somebody else": (world.buyer.text, seed, backing, owed, term, deadline, signature),
    }
    for arguments in changed.values():
        with boa.reverts("channels: pledge's signature"):
            world.sponsorship.sponsor(*arguments, sender=world.stranger.text)
    with boa.reverts("channels: pledge's signature"):  # another sponsor
        world.sponsorship.sponsor(newcomer, seed, backing, owed, term, deadline, signature, sender=world.buyer.text)
    with boa.reverts("channels: pledge's signature"):  # without lending anything
        world.channels.pledge(
            newcomer, world.stranger.text, owed, terms.digest(), deadline, signature, sender=world.stranger.text
        )
    world.wait(101)
    with boa.reverts("channels: pledge has expired"):
        world.sponsorship.sponsor(newcomer, seed, backing, owed, term, deadline, signature, sender=world.stranger.text)
    with boa.reverts("sponsorship: term is too long"):
        world.sponsorship.sponsor(
            newcomer, seed, backing, owed, 367 * 86400, deadline, signature, sender=world.stranger.text
        )
    with boa.reverts("sponsorship: seed is zero"):
        world.sponsorship.sponsor(newcomer, 0, backing, owed, term, deadline, signature, sender=world.stranger.text)


def test_a_pledge_is_used_once_and_one_at_a_time(world):
    lender, deadline = world.stranger, world.now + 100
    first = world.sign_pledge(NEWCOMER, lender.text, lender.text, 5, ZERO32, deadline)
    arguments = (NEWCOMER.text, lender.text, 5, ZERO32, deadline)
    world.channels.pledge(*arguments, first, sender=lender.text)
    second = world.sign_pledge(NEWCOMER, lender.text, lender.text, 5, ZERO32, deadline, nonce=1)
    with boa.reverts("channels: receiver is in debt"):
        world.channels.pledge(*arguments, second, sender=lender.text)
    earn(world, 5)
    world.channels.settle(NEWCOMER.text, world.credit.address, sender=lender.text)
    with boa.reverts("channels: pledge's signature"):
        world.channels.pledge(*arguments, first, sender=lender.text)
    world.channels.pledge(*arguments, second, sender=lender.text)
    assert world.channels.pledgeNonce(NEWCOMER.text) == 2
    for bad, reason in (
        ((NEWCOMER.text, "0x" + "00" * 20, 5), "channels: creditor is zero"),
        ((NEWCOMER.text, lender.text, 0), "channels: pledge is zero"),
    ):
        with boa.reverts(reason):
            world.channels.pledge(*bad, ZERO32, deadline, second, sender=lender.text)


def test_the_pledge_is_that_of_the_python_side(world):
    pledge = Pledge(NEWCOMER.address, world.buyer.address, world.stranger.address, 5, ZERO32, 0, world.now + 100)
    signature = sign_pledge(NEWCOMER.key, world.channels_domain(), pledge)
    validate_pledge(world.channels_domain(), pledge, signature)
    with pytest.raises(InvalidPledge):
        sign_pledge(world.buyer.key, world.channels_domain(), pledge)
    forged = world.buyer.key.sign_digest(hash_typed_data(world.channels_domain(), pledge))
    with pytest.raises(InvalidPledge):
        validate_pledge(world.channels_domain(), pledge, forged)
    world.channels.pledge(
        NEWCOMER.text, world.stranger.text, 5, ZERO32, pledge.deadline, signature, sender=world.buyer.text
    )


def test_a_slash_of_the_whole_leaves_nothing_to_take_back_and_no_lock(world, serving):
    world.wait(TERM)
    world.staking.slash(COMPUTE, NEWCOMER.text, PROVIDER_STAKE, sender=world.disputes.address)
    world.sponsorship.recall(NEWCOMER.text, sender=world.stranger.text)
    with boa.reverts("staking: nothing is unbonding"):
        world.sponsorship.collect(NEWCOMER.text, sender=world.stranger.text)


class Lending(RuleBasedStateMachine):
    """One newcomer, one sponsor, any order; money beside a model, to the unit."""

    world = None
    seen: ClassVar = Counter()

    @initialize(
        owed=st.integers(1, 3 * CREDIT),
        seed=st.sampled_from([1, SEED]),
        # Hypothesis tries the first of each first, so the whole way is always among the examples.
        backing=st.sampled_from([BACKING, 0]),
        begun=st.sampled_from([7, 3, 1, 0]),
    )
    def begin(self, owed, seed, backing, begun):
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()
        world = self.world
        world.approve(world.stranger, world.sponsorship)
        world.approve(NEWCOMER, world.staking)
        self.terms = SponsorTerms(world.stranger.address, seed, backing, owed, TERM)
        self.config = world.make_config(receiver=NEWCOMER)
        world.deposit(self.config, 10 * CREDIT)
        self.supply = world.credit.totalSupply()
        self.sponsor_had, self.phase, self.until, self.unbonds_at = world.balance(world.stranger), 0, 0, None
        self.owed = self.claimed = self.settled = self.lent = self.staked = 0
        self.newcomer, self.returned, self.repaid = 0, 0, 0
        later = (partial(self.wait, TERM), self.recall, partial(self.wait, UNBONDING))
        for step in (self.sponsor, self.stake, self.back, *later, self.collect)[:begun]:
            step()

    def teardown(self):
        if hasattr(self, "anchor"):
            self.anchor.__exit__(None, None, None)

    def call(self, what, function, *arguments, sender, expected):
        try:
            function(*arguments, sender=sender.text)
        except BoaError:
            through = False
        else:
            through = True
        assert through == expected, what
        self.seen[what if through else f"{what} refused"] += 1
        return through

    @rule()
    def sponsor(self):
        world, expected = self.world, self.phase == 0
        arguments = world.sponsor_arguments(NEWCOMER, self.terms, world.channels.pledgeNonce(NEWCOMER.text))
        if self.call("sponsor", world.sponsorship.sponsor, *arguments, sender=world.stranger, expected=expected):
            self.phase, self.until, self.owed = 1, world.now + TERM, self.terms.owed
            self.lent, self.newcomer = self.terms.seed + self.terms.backing, self.newcomer + self.terms.seed

    @rule()
    def stake(self):
        amount = min(self.newcomer, self.terms.seed)
        if self.call("stake", self.world.staking.stake, amount, sender=NEWCOMER, expected=amount > 0):
            self.staked, self.newcomer = self.staked + amount, self.newcomer - amount

    @rule()
    def back(self):
        expected = self.phase == 1 and (self.staked > 0 or self.terms.backing == 0)
        if self.call("back", self.world.sponsorship.back, NEWCOMER.text, sender=self.world.buyer, expected=expected):
            self.phase = 2

    @rule()
    def recall(self):
        world, expected = self.world, self.phase in (1, 2) and self.world.now >= self.until
        if self.call("recall", world.sponsorship.recall, NEWCOMER.text, sender=world.stranger, expected=expected):
            if self.phase == 1:
                self.returned = self.terms.backing
            elif self.terms.backing:
                self.unbonds_at = world.now + UNBONDING
            self.phase = 4

    @rule()
    def collect(self):
        world = self.world
        expected = self.phase == 4 and self.unbonds_at is not None and world.now >= self.unbonds_at
        if self.call("collect", world.sponsorship.collect, NEWCOMER.text, sender=world.buyer, expected=expected):
            self.returned, self.unbonds_at = self.terms.backing, None

    @rule(amount=st.integers(1, CREDIT))
    def earn(self, amount):
        self.claimed += amount
        world, claim = self.world, self.world.make_claim(self.config, self.claimed)
        if not self.call("claim", world.channels.claim, [claim], sender=NEWCOMER, expected=self.claimed <= 10 * CREDIT):
            self.claimed -= amount

    @rule()
    def settle(self):
        arguments = (NEWCOMER.text, self.world.credit.address)
        self.call("settle", self.world.channels.settle, *arguments, sender=self.world.buyer, expected=True)
        paid, self.settled = self.claimed - self.settled, self.claimed
        repaid = min(paid - paid // 10, self.owed)
        self.owed, self.repaid, self.newcomer = self.owed - repaid, self.repaid + repaid, self.newcomer + paid - repaid

    @rule(seconds=st.sampled_from([1, TERM, UNBONDING]))
    def wait(self, seconds):
        self.world.wait(seconds)

    @invariant()
    def every_unit_is_where_the_model_has_it(self):
        if not hasattr(self, "terms"):
            return
        world = self.world
        assert world.balance(NEWCOMER) == self.newcomer
        sponsor = self.sponsor_had - self.lent + self.returned + self.repaid
        assert world.balance(world.stranger) == sponsor
        assert world.balance(world.sponsorship) == (self.terms.backing if self.phase == 1 else 0)
        assert world.channels.debtOf(NEWCOMER.text)[1] == self.owed
        assert world.credit.totalSupply() == self.supply


def test_any_order_of_calls_equals_the_model(world):
    Lending.world, Lending.seen = world, Counter()
    run_state_machine_as_test(
        Lending,
        settings=settings(
            max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    wanted = {"sponsor", "sponsor refused", "back", "recall", "recall refused", "collect", "settle", "claim", "stake"}
    assert wanted <= Lending.seen.keys(), Lending.seen
