"""Any order of calls by anyone: no money is made or lost, every contract can pay what it owes, nothing is stuck."""

import boa
from boa.contracts.base_evm_contract import BoaError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deaios.ledger import structs
from deaios.ledger.eip712 import sign_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

COMPUTE, AUDIT = keccak256(b"compute"), keccak256(b"audit")
ACQUIT, GUILTY = 1, 2
COMMIT, CLOSED = 3, 8
amounts = st.integers(1, 3 * CREDIT) | st.sampled_from([1, CREDIT, 10 * CREDIT])
JURIES = ([GUILTY] * 5, [ACQUIT] * 5, [GUILTY, ACQUIT] * 3, [None] * 5, [GUILTY, GUILTY, None, GUILTY, GUILTY])
DRAIN_STEPS_MAX = 40
"""Longest path of a dispute: four juries, each after a beacon round of four attempts, and both ends."""


class Money(RuleBasedStateMachine):
    """Buyers, provider, auditors, accuser and pokers over one suite."""

    world = None

    @initialize()
    def begin(self):
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()
        world = self.world
        world.counter = 0
        self.configs = [world.make_config(salt=bytes([n]) * 32) for n in range(2)]
        self.configs.append(world.make_config(receiver=world.accuser))
        self.deposits = 0
        self.claimed = dict.fromkeys(range(3), 0)
        self.receipts = []
        self.disputes = 0
        self.refused = 0
        for actor in (world.accuser, world.provider, world.stranger):
            for contract in (world.disputes, world.forks, world.staking):
                world.approve(actor, contract)
        for which in range(3):
            self.deposit(which, 5 * CREDIT)
        self.claim(0, CREDIT, 0)

    def teardown(self):
        if not hasattr(self, "anchor"):
            return
        try:
            self.drain()
        finally:
            self.anchor.__exit__(None, None, None)

    def attempt(self, call, *arguments, sender):
        """A call that the contract may refuse; a refusal changes nothing."""
        try:
            call(*arguments, sender=sender.text)
        except BoaError:
            self.refused += 1

    # Channels

    @rule(which=st.integers(0, 2), amount=amounts)
    def deposit(self, which, amount):
        self.deposits += 1
        self.world.deposit(self.configs[which], amount, salt=self.deposits)

    @rule(which=st.integers(0, 2), amount=amounts, surplus=st.integers(0, 2))
    def claim(self, which, amount, surplus):
        config = self.configs[which]
        receiver = self.world.accuser if which == 2 else self.world.provider
        total = self.claimed[which] + amount
        row = self.world.make_claim(config, total, total + surplus)
        self.attempt(self.world.channels.claim, [row, row], sender=receiver)
        self.claimed[which] = self.world.channels.channels(self.world.channel_id(config))[1]

    @rule(accuser=st.booleans())
    def settle(self, accuser):
        receiver = self.world.accuser if accuser else self.world.provider
        token = self.world.credit.address
        self.world.channels.settle(receiver.text, token, sender=self.world.stranger.text)

    @rule(which=st.integers(0, 2), amount=amounts)
    def initiate_withdraw(self, which, amount):
        terms = self.world.tuple_of(self.configs[which])
        self.attempt(self.world.channels.initiateWithdraw, terms, amount, sender=self.world.buyer)

    @rule(which=st.integers(0, 2))
    def finalize_withdraw(self, which):
        terms = self.world.tuple_of(self.configs[which])
        self.attempt(self.world.channels.finalizeWithdraw, terms, sender=self.world.buyer)

    @rule(which=st.integers(0, 1), amount=amounts)
    def refund(self, which, amount):
        terms = self.world.tuple_of(self.configs[which])
        self.world.channels.refund(terms, amount, sender=self.world.provider.text)

    # Stake

    @rule(amount=amounts)
    def stake(self, amount):
        self.world.staking.stake(amount, sender=self.world.provider.text)

    @rule(auditor=st.integers(0, 4) | st.none(), amount=amounts)
    def unbond(self, auditor, amount):
        who = self.world.provider if auditor is None else self.world.auditors[auditor]
        self.attempt(self.world.staking.beginUnbond, amount, sender=who)

    @rule(auditor=st.integers(0, 4) | st.none())
    def withdraw(self, auditor):
        who = self.world.provider if auditor is None else self.world.auditors[auditor]
        self.attempt(self.world.staking.withdraw, sender=who)

    @rule(auditor=st.integers(0, 4))
    def leave_or_return(self, auditor):
        who = self.world.auditors[auditor]
        self.attempt(self.world.staking.optOut, AUDIT, sender=who)
        self.attempt(self.world.staking.completeOptOut, AUDIT, who.text, sender=self.world.stranger)
        self.attempt(self.world.staking.optIn, AUDIT, 10_000, sender=who)

    # Purchases, proofs, disputes

    @rule(fee=st.integers(0, CREDIT) | st.just(0))
    def buy(self, fee):
        if self.world.channels.partiesOf(self.world.channel_id(self.configs[0]))[0] == self.world.buyer.text:
            self.receipts.append(self.world.make_receipt(self.configs[0], fee))

    @precondition(lambda self: self.receipts)
    @rule(data=st.data())
    def prove_double_request(self, data):
        receipt = data.draw(st.sampled_from(self.receipts))[2]
        other = structs.Receipt(**{**receipt.__dict__, "fee": receipt.fee + 1})
        arguments = []
        for item in (receipt, other):
            arguments += [self.world.tuple_of(item), sign_struct(self.world.provider.key, self.world.domain(), item)]
        self.attempt(self.world.forks.proveDoubleRequest, *arguments, sender=self.world.stranger)

    @rule(which=st.integers(0, 2))
    def challenge_claim(self, which):
        terms = self.world.tuple_of(self.configs[which])
        self.attempt(self.world.forks.challengeClaim, terms, sender=self.world.stranger)

    @rule(fee=st.sampled_from([0, 1, CREDIT // 50, CREDIT]), again=st.booleans())
    def accuse(self, fee, again):
        """Over a new receipt, or once more over the last one."""
        if not (again and self.receipts):
            self.buy(fee)
        before = self.world.disputes.disputeCount()
        salt = keccak256(b"salt" + (before + self.refused).to_bytes(8) + bytes([len(self.receipts)]))
        try:
            self.world.open_dispute(self.receipts[-1], salt=salt)
        except BoaError:
            self.refused += 1
        self.disputes = self.world.disputes.disputeCount()

    @rule()
    def run_beacon(self):
        number = self.world.beacon.openRound()
        for auditor in self.world.auditors:
            commitment = self.world.beacon_commitment(number, auditor)
            self.attempt(self.world.beacon.commit, number, commitment, sender=auditor)
        for auditor in self.world.auditors[:4]:
            secret = keccak256(b"secret" + auditor.address)
            self.attempt(self.world.beacon.reveal, number, secret, sender=auditor)

    @precondition(lambda self: self.disputes)
    @rule(judgements=st.sampled_from(JURIES))
    def judge(self, judgements):
        """Beacon, draw, votes and tally of the last dispute."""
        dispute_id = self.disputes
        self.run_beacon()
        self.world.wait(40)
        self.poke()
        if self.world.disputes.phaseOf(dispute_id) != COMMIT:
            return
        jurors = self.world.jury(dispute_id)
        self.world.vote(dispute_id, judgements[: len(jurors)])
        self.world.wait(30)
        self.world.disputes.tally(dispute_id, sender=self.world.stranger.text)

    @precondition(lambda self: self.disputes)
    @rule()
    def appeal(self):
        for who in (self.world.accuser, self.world.provider):
            self.attempt(self.world.disputes.appeal, self.disputes, sender=who)

    @rule(seconds=st.sampled_from([1, 10, 30, 60, 900, 3600]))
    def wait(self, seconds):
        self.world.wait(seconds)

    @rule()
    def poke(self):
        """What anyone may do to go on."""
        world = self.world
        for number in range(1, world.beacon.roundCount() + 1):
            self.attempt(world.beacon.finalize, number, sender=world.stranger)
        for dispute_id in range(1, self.disputes + 1):
            for step in (world.disputes.draw, world.disputes.tally, world.disputes.finalize):
                self.attempt(step, dispute_id, sender=world.stranger)
        for config in self.configs:
            self.attempt(world.forks.finalizeClaim, world.channel_id(config), sender=world.stranger)

    def drain(self):
        """Nobody acts any more but a stranger who pokes: every bond comes out."""
        for _ in range(DRAIN_STEPS_MAX):
            if all(self.world.disputes.phaseOf(number) == CLOSED for number in range(1, self.disputes + 1)):
                break
            self.world.wait(100)
            self.poke()
            self.money_is_conserved()
        self.world.wait(100)
        self.poke()
        world = self.world
        assert [world.balance(contract) for contract in (world.disputes, world.forks, world.beacon)] == [0, 0, 0]
        assert (world.disputes.deadline(), world.forks.deadline()) == (0, 0)
        assert not world.disputes.isPaused(world.provider.text)

    @invariant()
    def money_is_conserved(self):
        world = self.world
        if not hasattr(self, "anchor"):
            return
        assert world.total_held() == world.credit.totalSupply()

    @invariant()
    def every_contract_holds_what_it_owes(self):
        world = self.world
        if not hasattr(self, "anchor"):
            return
        owed = 0
        for config in self.configs:
            balance, claimed = world.channels.channels(world.channel_id(config))
            assert claimed <= balance
            owed += balance - claimed
        for receiver in (world.provider, world.accuser):
            claimed, settled = world.channels.receivers(receiver.text, world.credit.address)
            owed += claimed - settled
        assert world.balance(world.channels) == owed
        staked = 0
        for operator in (world.provider, *world.auditors):
            staked += world.staking.stakeOf(operator.text) + world.staking.unbondingOf(operator.text)[0]
        assert world.balance(world.staking) == staked
        bonds = 0
        for dispute_id in range(1, self.disputes + 1):
            dispute = world.dispute(dispute_id)
            if world.disputes.phaseOf(dispute_id) != CLOSED:
                bonds += dispute.bond + dispute.appealBond
        assert world.balance(world.disputes) == bonds
        challenges = [world.forks.challengeOf(world.channel_id(config))[3] > 0 for config in self.configs]
        assert world.balance(world.forks) == sum(challenges) * CREDIT
        assert world.balance(world.beacon) == 0


def test_money_is_conserved_in_any_order_of_calls(world):
    class MoneyInThisWorld(Money):
        pass

    MoneyInThisWorld.world = world
    run_state_machine_as_test(
        MoneyInThisWorld,
        settings=settings(
            max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_the_machine_reaches_slashes_appeals_and_both_outcomes(world):
    """The rules above, in one fixed order, do what their names say: the property is not empty."""

    class MoneyInThisWorld(Money):
        pass

    MoneyInThisWorld.world = world
    machine = MoneyInThisWorld()
    machine.begin()
    machine.deposit(0, 5 * CREDIT)
    machine.claim(0, CREDIT, 0)
    machine.buy(CREDIT // 10)
    purchase = machine.receipts[0]
    dispute_id = world.open_dispute(purchase)
    machine.disputes = 1
    machine.challenge_claim(0)
    assert world.balance(world.forks) == CREDIT
    machine.run_beacon()
    machine.wait(60)
    machine.poke()
    assert len(world.jury(dispute_id)) == 3
    world.vote(dispute_id, [GUILTY] * 3)
    machine.poke()
    world.disputes.appeal(dispute_id, sender=world.provider.text)
    machine.every_contract_holds_what_it_owes()
    machine.run_beacon()
    machine.wait(60)
    machine.poke()
    assert len(world.jury(dispute_id)) == 5
    world.vote(dispute_id, [GUILTY] * 5)
    machine.poke()
    machine.poke()
    assert world.dispute(dispute_id).slashed > 0
    machine.every_contract_holds_what_it_owes()
    machine.money_is_conserved()
    machine.teardown()
