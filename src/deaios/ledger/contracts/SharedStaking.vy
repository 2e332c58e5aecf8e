#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title SharedStaking: one stake behind every service
@notice An operator stakes once, others delegate to it, and it gives each service a slice by a cap in basis points. A
    judge of a service can take from that slice only, and keeps being able to while stake unbonds and while the
    operator is leaving the service.

    Accounting per operator, with T = stake + unbonding, S(i) = what service i has slashed, S = sum of S(i), B = T + S:
        slice(i) = min(T, max(0, cap(i) * B / 10000 - S(i)))
    so a slash by one service leaves the slices of the others as they were. A withdrawal scales T and every S(i) by the
    same factor, which scales every slice by it too. A power is the active part of a slice: slice(i) * stake / T.

    Stake and unbonding are two pots of money that operator and delegators hold shares of. A slash takes from both in
    proportion, so from everybody in proportion; nobody is listed, so the number of delegators has no bound.
    Money held = sum over operators of T.
"""
import pots


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable


struct ServiceJudge:
    service: bytes32
    judge: address


struct ServiceMinimum:
    service: bytes32
    minPower: uint256


struct Member:
    member: address
    power: uint256


struct Membership:
    capBps: uint256
    leavingAt: uint256
    # Place in the list of members, from 1; 0 when not in it.
    seat: uint256
    slashed: uint256
    # No power until the operator asks for it again, which it can from then on; 0 when it has nothing to wait for.
    jailedUntil: uint256


struct Operator:
    stake: uint256
    unbonding: uint256
    # Shares of the two, as words of `pots`.
    stakeShares: uint256
    unbondingShares: uint256
    capSumBps: uint256
    slashed: uint256


struct Account:
    stakeShares: uint256
    unbondingShares: uint256
    release: uint256


struct Commission:
    bps: uint256
    nextBps: uint256
    # When the next one begins to count; 0 when none was announced.
    nextAt: uint256


event Staked:
    operator: indexed(address)
    amount: uint256


event Delegated:
    operator: indexed(address)
    holder: indexed(address)
    amount: uint256


event OptedIn:
    service: indexed(bytes32)
    operator: indexed(address)
    capBps: uint256


event OptedOut:
    service: indexed(bytes32)
    operator: indexed(address)
    leavingAt: uint256


event OptOutCompleted:
    service: indexed(bytes32)
    operator: indexed(address)


event Evicted:
    service: indexed(bytes32)
    operator: indexed(address)


event UnbondBegun:
    operator: indexed(address)
    holder: indexed(address)
    amount: uint256
    release: uint256


event Withdrawn:
    operator: indexed(address)
    holder: indexed(address)
    amount: uint256


event Slashed:
    service: indexed(bytes32)
    operator: indexed(address)
    judge: indexed(address)
    amount: uint256
    paid: uint256


event Jailed:
    service: indexed(bytes32)
    operator: indexed(address)
    judge: indexed(address)
    until: uint256


event Unjailed:
    service: indexed(bytes32)
    operator: indexed(address)


event Rewarded:
    operator: indexed(address)
    payer: indexed(address)
    amount: uint256
    commission: uint256


event CommissionSet:
    operator: indexed(address)
    bps: uint256
    begins: uint256


BPS: constant(uint256) = 10000
SERVICES_MAX: constant(uint256) = 16
# Juries and beacon read all members in one transaction; more would not fit into a block.
MEMBERS_MAX: constant(uint256) = 256
# A power and an address fit into one word of a jury's snapshot.
STAKE_MAX: constant(uint256) = 2**96 - 1
# Of an operator's active stake, at most so many times its own counts: who decides has something to lose.
OWN_MULTIPLE: constant(uint256) = 20
TIME_SHIFT: constant(uint256) = 96

token: public(address)
unbondingSeconds: public(uint256)
jailSeconds: public(uint256)
payoutSeconds: public(uint256)
payoutMax: public(uint256)
isJudge: public(HashMap[bytes32, HashMap[address, bool]])
minPower: public(HashMap[bytes32, uint256])
_services: DynArray[bytes32, SERVICES_MAX]

operators: HashMap[address, Operator]
# By operator and holder; an operator's own is among them.
accounts: HashMap[address, HashMap[address, Account]]
commissions: HashMap[address, Commission]
memberships: HashMap[bytes32, HashMap[address, Membership]]
seats: HashMap[bytes32, DynArray[address, MEMBERS_MAX]]
# What a service's judges were paid of late, and when that was so: amount | time << 96. It wears off at payoutMax in
# payoutSeconds.
payouts: HashMap[bytes32, uint256]


@deploy
def __init__(
    token: address,
    unbondingSeconds: uint256,
    jailSeconds: uint256,
    payoutSeconds: uint256,
    payoutMax: uint256,
    judges: DynArray[ServiceJudge, SERVICES_MAX],
    minimums: DynArray[ServiceMinimum, SERVICES_MAX],
):
    assert token != empty(address), "staking: token is zero"
    assert unbondingSeconds > 0, "staking: unbonding time is zero"
    # Who leaves a service is free again after unbondingSeconds, and must not come out of jail by it.
    assert jailSeconds > 0 and jailSeconds <= unbondingSeconds, "staking: jail time out of range"
    # In every second something can be paid, so that no proof waits for long.
    assert payoutSeconds > 0 and payoutMax >= payoutSeconds, "staking: payout out of range"
    assert payoutMax <= STAKE_MAX, "staking: payout out of range"
    self.token = token
    self.unbondingSeconds = unbondingSeconds
    self.jailSeconds = jailSeconds
    self.payoutSeconds = payoutSeconds
    self.payoutMax = payoutMax
    for minimum: ServiceMinimum in minimums:
        assert minimum.minPower > 0, "staking: minimum power is zero"
        assert self.minPower[minimum.service] == 0, "staking: service is named twice"
        self.minPower[minimum.service] = minimum.minPower
        self._services.append(minimum.service)
    for entry: ServiceJudge in judges:
        assert entry.judge != empty(address), "staking: judge is zero"
        assert self.minPower[entry.service] > 0, "staking: judge of an unknown service"
        assert not self.isJudge[entry.service][entry.judge], "staking: judge is named twice"
        self.isJudge[entry.service][entry.judge] = True


@external
def stake(amount: uint256):
    """
    @notice Add to the caller's own stake; the caller has approved it.
    """
    log Staked(operator=msg.sender, amount=amount)
    self._add(msg.sender, amount)


@external
def delegate(operator: address, amount: uint256):
    """
    @notice Add to an operator's stake, and share what becomes of it; the caller has approved it.
    """
    assert self._own(operator) > 0, "staking: operator has no stake of its own"
    log Delegated(operator=operator, holder=msg.sender, amount=amount)
    self._add(operator, amount)


@external
def reward(operator: address, amount: uint256):
    """
    @notice Give money to all who hold an operator's stake, its commission first; the caller has approved it.
    """
    assert amount > 0, "staking: amount is zero"
    state: Operator = self.operators[operator]
    self._check_total(state, amount)
    assert state.stakeShares & pots.SHARES_MASK > 0, "staking: operator has no stake"
    commission: uint256 = amount * self._commission(operator) // BPS
    state.stake += amount - commission
    minted: uint256 = pots.shares_for(commission, state.stake, state.stakeShares)
    state.stake += commission
    self._mint(operator, operator, state, minted)
    log Rewarded(operator=operator, payer=msg.sender, amount=amount, commission=commission)
    self._take(amount)


@external
def setCommission(bps: uint256):
    """
    @notice Lower the caller's commission at once, or announce a higher one: it counts after unbondingSeconds, so that
        whoever does not like it can be out before.
    """
    assert bps <= BPS, "staking: commission exceeds the whole"
    current: uint256 = self._commission(msg.sender)
    begins: uint256 = block.timestamp
    if bps <= current:
        self.commissions[msg.sender] = Commission(bps=bps, nextBps=0, nextAt=0)
    else:
        begins += self.unbondingSeconds
        self.commissions[msg.sender] = Commission(bps=current, nextBps=bps, nextAt=begins)
    log CommissionSet(operator=msg.sender, bps=bps, begins=begins)


@external
def optIn(service: bytes32, capBps: uint256):
    """
    @notice Join a service, or raise the cap of its slice; a cap is lowered by leaving and joining again.
    """
    assert self.minPower[service] > 0, "staking: unknown service"
    member: Membership = self.memberships[service][msg.sender]
    assert member.leavingAt == 0, "staking: operator is leaving this service"
    assert capBps > 0 and capBps >= member.capBps, "staking: a cap can only be raised"
    cap_sum: uint256 = self.operators[msg.sender].capSumBps - member.capBps + capBps
    assert cap_sum <= BPS, "staking: caps exceed the whole stake"
    self.operators[msg.sender].capSumBps = cap_sum
    self.memberships[service][msg.sender].capBps = capBps
    if member.seat == 0:
        assert len(self.seats[service]) < MEMBERS_MAX, "staking: service has no free seat"
        self.seats[service].append(msg.sender)
        self.memberships[service][msg.sender].seat = len(self.seats[service])
    assert self._power(service, msg.sender) > 0, "staking: power is below the service's minimum"
    log OptedIn(service=service, operator=msg.sender, capBps=capBps)


@external
def optOut(service: bytes32):
    """
    @notice Leave a service: no power from now on, but slashable until this is completed.
    """
    member: Membership = self.memberships[service][msg.sender]
    assert member.capBps > 0, "staking: not in this service"
    assert member.leavingAt == 0, "staking: operator is leaving this service"
    leaving_at: uint256 = block.timestamp + self.unbondingSeconds
    self.memberships[service][msg.sender].leavingAt = leaving_at
    self._give_up_seat(service, msg.sender)
    log OptedOut(service=service, operator=msg.sender, leavingAt=leaving_at)


@external
def completeOptOut(service: bytes32, operator: address):
    """
    @notice Free the cap of an operator whose leaving time has passed; anyone may ask for it.
    """
    member: Membership = self.memberships[service][operator]
    assert member.leavingAt != 0, "staking: operator is not leaving this service"
    assert block.timestamp >= member.leavingAt, "staking: leaving time has not passed"
    self.operators[operator].capSumBps -= member.capBps
    self.operators[operator].slashed -= member.slashed
    self.memberships[service][operator] = empty(Membership)
    log OptOutCompleted(service=service, operator=operator)


@external
def evict(service: bytes32, operator: address):
    """
    @notice Free the seat of a member whose power has fallen below the minimum; its slice stays slashable.
    """
    assert self.memberships[service][operator].seat != 0, "staking: operator has no seat"
    assert self._power(service, operator) == 0, "staking: power is not below the minimum"
    self._give_up_seat(service, operator)
    log Evicted(service=service, operator=operator)


@external
def beginUnbond(amount: uint256):
    """
    @notice Start to take the caller's own stake back; the wait begins anew for all that is unbonding already.
    """
    self._begin_unbond(msg.sender, amount)


@external
def undelegate(operator: address, amount: uint256):
    """
    @notice Start to take delegated stake back; the wait begins anew for all that is unbonding already.
    """
    self._begin_unbond(operator, amount)


@external
def withdraw():
    """
    @notice Take what has unbonded of the caller's own stake.
    """
    self._withdraw(msg.sender)


@external
def withdrawFrom(operator: address):
    """
    @notice Take what has unbonded of what the caller delegated.
    """
    self._withdraw(operator)


@external
def slash(service: bytes32, operator: address, amount: uint256) -> uint256:
    """
    @notice Take from an operator's slice and pay the judge, which divides it. What exceeds what the service's judges
        may be paid in a time is taken all the same, and burned.
    @return What the judge was paid.
    """
    assert self.isJudge[service][msg.sender], "staking: caller is not a judge of this service"
    taken: uint256 = min(amount, self._slice(service, operator))
    if taken == 0:
        return 0
    state: Operator = self.operators[operator]
    from_unbonding: uint256 = taken * state.unbonding // (state.stake + state.unbonding)
    state.unbonding -= from_unbonding
    state.stake -= taken - from_unbonding
    if state.stake == 0 and state.stakeShares & pots.SHARES_MASK > 0:
        state.stakeShares = pots.emptied(state.stakeShares)
    if state.unbonding == 0 and state.unbondingShares & pots.SHARES_MASK > 0:
        state.unbondingShares = pots.emptied(state.unbondingShares)
    state.slashed += taken
    self.operators[operator] = state
    self.memberships[service][operator].slashed += taken
    paid: uint256 = self._pay_out(service, taken)
    log Slashed(service=service, operator=operator, judge=msg.sender, amount=taken, paid=paid)
    if taken > paid:
        extcall Token(self.token).burn(taken - paid)
    self._pay(msg.sender, paid)
    return paid


@external
def jail(service: bytes32, operator: address):
    """
    @notice Take an operator's power in a service away until it asks for it after jailSeconds; by a judge.
    """
    assert self.isJudge[service][msg.sender], "staking: caller is not a judge of this service"
    assert self.memberships[service][operator].capBps > 0, "staking: not in this service"
    until: uint256 = block.timestamp + self.jailSeconds
    self.memberships[service][operator].jailedUntil = until
    log Jailed(service=service, operator=operator, judge=msg.sender, until=until)


@external
def unjail(service: bytes32):
    """
    @notice Count again in a service, once the jail time is over.
    """
    until: uint256 = self.memberships[service][msg.sender].jailedUntil
    assert until != 0, "staking: operator is not jailed"
    assert block.timestamp >= until, "staking: jail time has not passed"
    self.memberships[service][msg.sender].jailedUntil = 0
    log Unjailed(service=service, operator=msg.sender)


@external
@view
def stakeOf(operator: address) -> uint256:
    """
    @notice Active stake, the operator's own and what is delegated to it.
    """
    return self.operators[operator].stake


@external
@view
def unbondingOf(operator: address) -> (uint256, uint256):
    """
    @notice What of an operator's own stake is unbonding, and when it can be withdrawn.
    """
    return self._unbonding_value(operator, operator), self.accounts[operator][operator].release


@external
@view
def potsOf(operator: address) -> (uint256, uint256):
    """
    @notice Active and unbonding money of the operator and all its delegators.
    """
    return self.operators[operator].stake, self.operators[operator].unbonding


@external
@view
def accountOf(operator: address, holder: address) -> (uint256, uint256, uint256):
    """
    @notice A holder's part of an operator's active stake, what of it is unbonding, and when that can be withdrawn.
    """
    active: uint256 = self._value(operator, holder)
    return active, self._unbonding_value(operator, holder), self.accounts[operator][holder].release


@external
@view
def commissionOf(operator: address) -> (uint256, uint256, uint256):
    """
    @notice The commission that counts now, the one announced and when that begins to count (the same and 0: none).
    """
    current: uint256 = self._commission(operator)
    following: Commission = self.commissions[operator]
    if block.timestamp >= following.nextAt:
        return current, current, 0
    return current, following.nextBps, following.nextAt


@external
@view
def jailedUntil(service: bytes32, operator: address) -> uint256:
    """
    @notice From when on a jailed operator can ask for its power; 0 when it is not jailed.
    """
    return self.memberships[service][operator].jailedUntil


@external
@view
def payoutLeft(service: bytes32) -> uint256:
    """
    @notice What the judges of a service can be paid now; the rest of a slash is burned.
    """
    return self.payoutMax - self._paid_of_late(service)


@external
@view
def sliceOf(service: bytes32, operator: address) -> uint256:
    """
    @notice What the judges of a service can still take.
    """
    return self._slice(service, operator)


@external
@view
def power(service: bytes32, operator: address) -> uint256:
    """
    @notice Weight in the service's committees; 0 without a seat or below the minimum.
    """
    return self._power(service, operator)


@external
@view
def capOf(service: bytes32, operator: address) -> uint256:
    """
    @notice Cap of the slice in basis points.
    """
    return self.memberships[service][operator].capBps


@external
@view
def leavingAt(service: bytes32, operator: address) -> uint256:
    """
    @notice When leaving can be completed; 0 when staying.
    """
    return self.memberships[service][operator].leavingAt


@external
@view
def slashedOf(service: bytes32, operator: address) -> uint256:
    """
    @notice What counts as slashed by this service in the slice's formula.
    """
    return self.memberships[service][operator].slashed


@external
@view
def services() -> DynArray[bytes32, SERVICES_MAX]:
    """
    @notice All services.
    """
    return self._services


@external
@view
def members(service: bytes32) -> DynArray[address, MEMBERS_MAX]:
    """
    @notice Members with power, in the order of their seats.
    """
    found: DynArray[address, MEMBERS_MAX] = []
    for member: address in self.seats[service]:
        if self._power(service, member) > 0:
            found.append(member)
    return found


@external
@view
def roster(service: bytes32) -> DynArray[Member, MEMBERS_MAX]:
    """
    @notice The same with their powers.
    """
    found: DynArray[Member, MEMBERS_MAX] = []
    for member: address in self.seats[service]:
        weight: uint256 = self._power(service, member)
        if weight > 0:
            found.append(Member(member=member, power=weight))
    return found


@internal
@view
def _slice(service: bytes32, operator: address) -> uint256:
    total: uint256 = self.operators[operator].stake + self.operators[operator].unbonding
    whole: uint256 = self.memberships[service][operator].capBps * (total + self.operators[operator].slashed) // BPS
    slashed: uint256 = self.memberships[service][operator].slashed
    if whole <= slashed:
        return 0
    return min(total, whole - slashed)


@internal
@view
def _power(service: bytes32, operator: address) -> uint256:
    if self.memberships[service][operator].seat == 0 or self.memberships[service][operator].jailedUntil != 0:
        return 0
    at_stake: uint256 = self._slice(service, operator)
    if at_stake == 0:
        return 0
    active: uint256 = self.operators[operator].stake
    counted: uint256 = min(active, OWN_MULTIPLE * self._own(operator))
    weight: uint256 = at_stake * counted // (active + self.operators[operator].unbonding)
    return weight if weight >= self.minPower[service] else 0


@internal
@view
def _own(operator: address) -> uint256:
    return self._value(operator, operator)


@internal
@view
def _value(operator: address, holder: address) -> uint256:
    pot: uint256 = self.operators[operator].stakeShares
    shares: uint256 = pots.live(self.accounts[operator][holder].stakeShares, pot)
    return pots.money_for(shares, self.operators[operator].stake, pot)


@internal
@view
def _unbonding_value(operator: address, holder: address) -> uint256:
    pot: uint256 = self.operators[operator].unbondingShares
    shares: uint256 = pots.live(self.accounts[operator][holder].unbondingShares, pot)
    return pots.money_for(shares, self.operators[operator].unbonding, pot)


@internal
@view
def _commission(operator: address) -> uint256:
    commission: Commission = self.commissions[operator]
    if commission.nextAt != 0 and block.timestamp >= commission.nextAt:
        return commission.nextBps
    return commission.bps


@internal
@view
def _paid_of_late(service: bytes32) -> uint256:
    payout: uint256 = self.payouts[service]
    passed: uint256 = min(block.timestamp - (payout >> TIME_SHIFT), self.payoutSeconds)
    worn_off: uint256 = passed * self.payoutMax // self.payoutSeconds
    paid: uint256 = payout & STAKE_MAX
    return paid - min(paid, worn_off)


@internal
@view
def _check_total(state: Operator, amount: uint256):
    assert amount <= STAKE_MAX, "staking: stake is too large"
    assert state.stake + state.unbonding + state.slashed + amount <= STAKE_MAX, "staking: stake is too large"


@internal
def _add(operator: address, amount: uint256):
    assert amount > 0, "staking: amount is zero"
    state: Operator = self.operators[operator]
    self._check_total(state, amount)
    minted: uint256 = pots.shares_for(amount, state.stake, state.stakeShares)
    assert minted > 0, "staking: amount is below a share"
    state.stake += amount
    self._mint(operator, msg.sender, state, minted)
    self._take(amount)


@internal
def _mint(operator: address, holder: address, state: Operator, shares: uint256):
    """
    @notice Store the operator's new state with more shares of its stake for a holder.
    """
    held: uint256 = self.accounts[operator][holder].stakeShares
    self.accounts[operator][holder].stakeShares = pots.add(held, state.stakeShares, shares)
    total: uint256 = (state.stakeShares & pots.SHARES_MASK) + shares
    assert total <= pots.SHARES_MAX, "staking: operator has too many shares"
    self.operators[operator] = state
    self.operators[operator].stakeShares = state.stakeShares + shares


@internal
def _begin_unbond(operator: address, amount: uint256):
    state: Operator = self.operators[operator]
    account: Account = self.accounts[operator][msg.sender]
    held: uint256 = pots.live(account.stakeShares, state.stakeShares)
    worth: uint256 = pots.money_for(held, state.stake, state.stakeShares)
    assert amount > 0 and amount <= worth, "staking: amount exceeds the stake"
    # Who takes all leaves no part of a unit behind.
    burned: uint256 = held if amount == worth else pots.shares_of(amount, state.stake, state.stakeShares)
    minted: uint256 = pots.shares_for(amount, state.unbonding, state.unbondingShares)
    assert minted > 0, "staking: amount is below a share"
    account.stakeShares -= burned
    account.unbondingShares = pots.add(account.unbondingShares, state.unbondingShares, minted)
    account.release = block.timestamp + self.unbondingSeconds
    state.stake -= amount
    state.stakeShares -= burned
    state.unbonding += amount
    state.unbondingShares += minted
    assert state.unbondingShares & pots.SHARES_MASK <= pots.SHARES_MAX, "staking: operator has too many shares"
    self.operators[operator] = state
    self.accounts[operator][msg.sender] = account
    log UnbondBegun(operator=operator, holder=msg.sender, amount=amount, release=account.release)


@internal
def _withdraw(operator: address):
    state: Operator = self.operators[operator]
    account: Account = self.accounts[operator][msg.sender]
    held: uint256 = pots.live(account.unbondingShares, state.unbondingShares)
    assert held > 0, "staking: nothing is unbonding"
    assert block.timestamp >= account.release, "staking: unbonding time has not passed"
    amount: uint256 = pots.money_for(held, state.unbonding, state.unbondingShares)
    total: uint256 = state.stake + state.unbonding
    if state.slashed > 0 and total > 0:
        state.slashed = 0
        for service: bytes32 in self._services:
            before: uint256 = self.memberships[service][operator].slashed
            if before > 0:
                scaled: uint256 = before * (total - amount) // total
                self.memberships[service][operator].slashed = scaled
                state.slashed += scaled
    state.unbonding -= amount
    state.unbondingShares -= held
    account.unbondingShares = 0
    account.release = 0
    self.operators[operator] = state
    self.accounts[operator][msg.sender] = account
    log Withdrawn(operator=operator, holder=msg.sender, amount=amount)
    self._pay(msg.sender, amount)


@internal
def _pay_out(service: bytes32, amount: uint256) -> uint256:
    """
    @notice What of an amount the judges of a service may be paid now; it counts against what they may be paid later.
    """
    of_late: uint256 = self._paid_of_late(service)
    paid: uint256 = min(amount, self.payoutMax - of_late)
    self.payouts[service] = (of_late + paid) | (block.timestamp << TIME_SHIFT)
    return paid


@internal
def _give_up_seat(service: bytes32, operator: address):
    seat: uint256 = self.memberships[service][operator].seat
    if seat == 0:
        return
    last: address = self.seats[service].pop()
    if last != operator:
        self.seats[service][seat - 1] = last
        self.memberships[service][last].seat = seat
    self.memberships[service][operator].seat = 0


@internal
def _take(amount: uint256):
    assert extcall Token(self.token).transferFrom(msg.sender, self, amount), "staking: transfer failed"


@internal
def _pay(to: address, amount: uint256):
    if amount > 0:
        assert extcall Token(self.token).transfer(to, amount), "staking: transfer failed"
