#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title SharedStaking: one stake behind every service
@notice An operator stakes once and gives each service a slice by a cap in basis points. A judge of a service can take
    from that slice only, and keeps being able to while stake unbonds and while the operator is leaving the service.

    Accounting per operator, with T = stake + unbonding, S(i) = what service i has slashed, S = sum of S(i), B = T + S:
        slice(i) = min(T, max(0, cap(i) * B / 10000 - S(i)))
    so a slash by one service leaves the slices of the others as they were. A withdrawal scales T and every S(i) by the
    same factor, which scales every slice by it too.
    Money held = sum over operators of T.
"""

interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable


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


struct Operator:
    stake: uint256
    unbonding: uint256
    release: uint256
    capSumBps: uint256
    slashed: uint256


event Staked:
    operator: indexed(address)
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
    amount: uint256
    release: uint256


event Withdrawn:
    operator: indexed(address)
    amount: uint256


event Slashed:
    service: indexed(bytes32)
    operator: indexed(address)
    judge: indexed(address)
    amount: uint256


BPS: constant(uint256) = 10000
SERVICES_MAX: constant(uint256) = 16
# Juries and beacon read all members in one transaction; more would not fit into a block.
MEMBERS_MAX: constant(uint256) = 256
# A power and an address fit into one word of a jury's snapshot.
STAKE_MAX: constant(uint256) = 2**96 - 1

token: public(address)
unbondingSeconds: public(uint256)
isJudge: public(HashMap[bytes32, HashMap[address, bool]])
minPower: public(HashMap[bytes32, uint256])
_services: DynArray[bytes32, SERVICES_MAX]

operators: HashMap[address, Operator]
memberships: HashMap[bytes32, HashMap[address, Membership]]
seats: HashMap[bytes32, DynArray[address, MEMBERS_MAX]]


@deploy
def __init__(
    token: address,
    unbondingSeconds: uint256,
    judges: DynArray[ServiceJudge, SERVICES_MAX],
    minimums: DynArray[ServiceMinimum, SERVICES_MAX],
):
    assert token != empty(address), "staking: token is zero"
    assert unbondingSeconds > 0, "staking: unbonding time is zero"
    self.token = token
    self.unbondingSeconds = unbondingSeconds
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
    @notice Add to the caller's stake; the caller has approved it.
    """
    assert amount > 0, "staking: amount is zero"
    operator: Operator = self.operators[msg.sender]
    total: uint256 = operator.stake + operator.unbonding + operator.slashed + amount
    assert total <= STAKE_MAX, "staking: stake is too large"
    self.operators[msg.sender].stake = operator.stake + amount
    log Staked(operator=msg.sender, amount=amount)
    assert extcall Token(self.token).transferFrom(msg.sender, self, amount), "staking: transfer failed"


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
    @notice Start to take stake back; the wait begins anew for all that is unbonding already.
    """
    operator: Operator = self.operators[msg.sender]
    assert amount > 0 and amount <= operator.stake, "staking: amount exceeds the stake"
    operator.stake -= amount
    operator.unbonding += amount
    operator.release = block.timestamp + self.unbondingSeconds
    self.operators[msg.sender] = operator
    log UnbondBegun(operator=msg.sender, amount=operator.unbonding, release=operator.release)


@external
def withdraw():
    """
    @notice Take what has unbonded.
    """
    operator: Operator = self.operators[msg.sender]
    amount: uint256 = operator.unbonding
    assert amount > 0, "staking: nothing is unbonding"
    assert block.timestamp >= operator.release, "staking: unbonding time has not passed"
    if operator.slashed > 0:
        total: uint256 = operator.stake + amount
        slashed: uint256 = 0
        for service: bytes32 in self._services:
            before: uint256 = self.memberships[service][msg.sender].slashed
            if before > 0:
                scaled: uint256 = before * operator.stake // total
                self.memberships[service][msg.sender].slashed = scaled
                slashed += scaled
        operator.slashed = slashed
    operator.unbonding = 0
    operator.release = 0
    self.operators[msg.sender] = operator
    log Withdrawn(operator=msg.sender, amount=amount)
    self._pay(msg.sender, amount)


@external
def slash(service: bytes32, operator: address, amount: uint256) -> uint256:
    """
    @notice Take from an operator's slice and pay the judge, which divides it.
    @return What was taken: the amount, or what is left of the slice where that is less.
    """
    assert self.isJudge[service][msg.sender], "staking: caller is not a judge of this service"
    taken: uint256 = min(amount, self._slice(service, operator))
    if taken == 0:
        return 0
    state: Operator = self.operators[operator]
    from_stake: uint256 = min(taken, state.stake)
    state.stake -= from_stake
    state.unbonding -= taken - from_stake
    state.slashed += taken
    self.operators[operator] = state
    self.memberships[service][operator].slashed += taken
    log Slashed(service=service, operator=operator, judge=msg.sender, amount=taken)
    self._pay(msg.sender, taken)
    return taken


@external
@view
def stakeOf(operator: address) -> uint256:
    """
    @notice Active stake.
    """
    return self.operators[operator].stake


@external
@view
def unbondingOf(operator: address) -> (uint256, uint256):
    """
    @notice What is unbonding, and when it can be withdrawn.
    """
    return self.operators[operator].unbonding, self.operators[operator].release


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
    member: Membership = self.memberships[service][operator]
    state: Operator = self.operators[operator]
    total: uint256 = state.stake + state.unbonding
    whole: uint256 = member.capBps * (total + state.slashed) // BPS
    if whole <= member.slashed:
        return 0
    return min(total, whole - member.slashed)


@internal
@view
def _power(service: bytes32, operator: address) -> uint256:
    member: Membership = self.memberships[service][operator]
    if member.seat == 0:
        return 0
    state: Operator = self.operators[operator]
    whole: uint256 = member.capBps * (state.stake + state.slashed) // BPS
    if whole <= member.slashed:
        return 0
    weight: uint256 = min(state.stake, whole - member.slashed)
    return weight if weight >= self.minPower[service] else 0


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
def _pay(to: address, amount: uint256):
    assert extcall Token(self.token).transfer(to, amount), "staking: transfer failed"
