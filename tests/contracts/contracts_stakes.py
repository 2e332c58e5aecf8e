"""Rules of the machine in `contracts_machine.py` that are about stake: of operators, and of those who back them."""

from contracts_world import AUDIT, COMPUTE, CONSENSUS, DA, STORAGE, UNBONDING
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from deaios.primitives.units import CREDIT

OTHER_CAP_BPS = 5000
PROVIDERS, PROVIDERS_AND_AUDITORS, ALL_BUT_VALIDATORS = 2, 7, 11
"""Where auditors, holders of rows and validators begin among the operators."""
amounts = st.integers(1, 3 * CREDIT) | st.sampled_from([1, 2, CREDIT, 10 * CREDIT, 60 * CREDIT])
people = st.integers(0, 13)
backers = st.integers(0, 2)


class Stakes:
    """Part of `Suite`: `operators` stake for services, `backers` delegate to them."""

    def service_of(self, who):
        if who < PROVIDERS:
            return COMPUTE
        if who < PROVIDERS_AND_AUDITORS:
            return AUDIT
        return DA if who < ALL_BUT_VALIDATORS else CONSENSUS

    @rule(who=people, amount=amounts)
    def stake(self, who, amount):
        operator = self.operators[who]
        expected = self.model.can_delegate(operator.text, operator.text, amount)
        if self.call(self.world.staking.stake, amount, sender=operator, expected=expected):
            self.model.stake(operator.text, operator.text, amount)

    @rule(who=people, backer=backers, amount=amounts)
    def delegate(self, who, backer, amount):
        whom, holder = self.operators[who].text, self.backers[backer]
        expected = self.model.can_delegate(whom, holder.text, amount)
        if self.call(self.world.staking.delegate, whom, amount, sender=holder, expected=expected):
            self.model.stake(whom, holder.text, amount)

    @rule(who=people, amount=amounts)
    def unbond(self, who, amount):
        operator = self.operators[who]
        expected = amount <= self.model.operators[operator.text].active.worth(operator.text)
        if self.call(self.world.staking.beginUnbond, amount, sender=operator, expected=expected):
            self.model.unbond(operator.text, operator.text, amount, self.world.now + UNBONDING)

    @rule(who=people, backer=backers, amount=amounts, everything=st.booleans())
    def undelegate(self, who, backer, amount, everything):
        whom, holder = self.operators[who].text, self.backers[backer]
        worth = self.model.operators[whom].active.worth(holder.text)
        amount = worth if everything else amount
        call = (self.world.staking.undelegate, whom, amount)
        if self.call(*call, sender=holder, expected=0 < amount <= worth):
            self.model.unbond(whom, holder.text, amount, self.world.now + UNBONDING)

    @rule(who=people)
    def withdraw(self, who):
        operator = self.operators[who]
        expected = self.model.can_withdraw(operator.text, operator.text, self.world.now)
        if self.call(self.world.staking.withdraw, sender=operator, expected=expected):
            self.model.withdraw(operator.text, operator.text)

    @rule(who=people, backer=backers)
    def withdraw_from(self, who, backer):
        whom, holder = self.operators[who].text, self.backers[backer]
        expected = self.model.can_withdraw(whom, holder.text, self.world.now)
        if self.call(self.world.staking.withdrawFrom, whom, sender=holder, expected=expected):
            self.model.withdraw(whom, holder.text)

    @rule(who=people, amount=amounts)
    def reward(self, who, amount):
        whom = self.operators[who].text
        expected = self.model.can_reward(whom, self.poker.text, amount)
        if self.call(self.world.staking.reward, whom, amount, sender=self.poker, expected=expected):
            self.model.reward(whom, self.poker.text, amount, self.world.now)

    @rule(who=people, bps=st.sampled_from([0, 1, 500, 3333, 10_000, 10_001]))
    def set_commission(self, who, bps):
        operator = self.operators[who]
        if self.call(self.world.staking.setCommission, bps, sender=operator, expected=bps <= 10_000):
            self.model.set_commission(operator.text, bps, self.world.now, UNBONDING)

    @rule(who=people)
    def leave_or_return(self, who):
        operator, staking = self.operators[who], self.world.staking
        service = self.service_of(who)
        cap = OTHER_CAP_BPS if operator is self.other else 10_000
        if self.call(staking.optOut, service, sender=operator):
            self.model.leave(operator.text, service, self.world.now + UNBONDING)
        expected = self.model.can_complete_leaving(operator.text, service, self.world.now)
        if self.call(staking.completeOptOut, service, operator.text, sender=self.poker, expected=expected):
            self.model.complete_leaving(operator.text, service)
        if self.call(staking.optIn, service, cap, sender=operator):
            self.model.operators[operator.text].caps[service] = cap

    @rule(amount=amounts)
    def slash_elsewhere(self, amount):
        """Another service takes from its own slice of the second provider."""
        other, before = self.other.text, self.world.credit.totalSupply()
        self.call(self.world.staking.slash, STORAGE, other, amount, sender=self.judge, expected=True)
        self.model.slash(STORAGE, other, amount, self.judge.text)
        self.seen["slash that nobody is paid"] += self.world.credit.totalSupply() < before

    @rule()
    def jail_or_unjail_elsewhere(self):
        jailed = self.model.operators[self.other.text].jailed_until
        until, staking = jailed.get(STORAGE), self.world.staking
        expected = until is not None and self.world.now >= until
        if self.call(staking.unjail, STORAGE, sender=self.other, expected=expected):
            del jailed[STORAGE]
        elif until is None:
            self.call(staking.jail, STORAGE, self.other.text, sender=self.judge, expected=True)
            jailed[STORAGE] = staking.jailedUntil(STORAGE, self.other.text)

    @rule(who=people)
    def evict(self, who):
        service = self.service_of(who)
        self.call(self.world.staking.evict, service, self.operators[who].text, sender=self.poker)

    @invariant()
    def stakes_and_slices_are_the_model_s(self):
        """Read again where anything of an operator's changed: they cost most of the time."""
        if not hasattr(self, "model"):
            return
        staking = self.world.staking
        for operator in self.operators:
            mine = self.model.operators[operator.text]
            assert mine.lost_ever + mine.withdrawn_ever + mine.total == mine.staked_ever
            if self.sliced.get(operator.text) == repr(mine):
                continue
            self.sliced[operator.text] = repr(mine)
            assert staking.potsOf(operator.text) == (mine.stake, mine.unbonding)
            for holder in {operator.text, *(backer.text for backer in self.backers)}:
                account = (mine.active.worth(holder), mine.pending.worth(holder), mine.releases.get(holder, 0))
                assert staking.accountOf(operator.text, holder) == account
            services = (COMPUTE, STORAGE) if operator is self.other else (AUDIT, COMPUTE, CONSENSUS, DA)
            slices = [staking.sliceOf(service, operator.text) for service in services]
            assert slices == [mine.slice_of(service) for service in services]
            assert sum(slices) <= mine.total
            for service in services:
                assert staking.power(service, operator.text) in (0, mine.weight(service))
