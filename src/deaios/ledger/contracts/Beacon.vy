#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Beacon: public randomness by commit and reveal among the staked auditors
@notice A value is fixed by commitments made before anyone reveals, and stored for good; there is no fallback to
    anything a block producer chooses. Whoever commits and does not reveal loses money, and the round goes on with the
    secrets of the others. The last to reveal can still choose between two values by paying that price, and a single
    operator of the chain can censor: readers of the value say so.
"""

interface Token:
    def burn(amount: uint256): nonpayable


interface Staking:
    def token() -> address: view
    def isJudge(service: bytes32, judge: address) -> bool: view
    def power(service: bytes32, operator: address) -> uint256: view
    def members(service: bytes32) -> DynArray[address, MEMBERS_MAX]: view
    def slash(service: bytes32, operator: address, amount: uint256) -> uint256: nonpayable


struct Round:
    attempt: uint256
    commitDeadline: uint256
    revealDeadline: uint256
    # Members when the attempt began: fewer commits than these need no look at who has committed.
    expected: uint256
    reveals: uint256
    mix: bytes32
    final: bytes32
    finalAt: uint256
    failed: bool


event Requested:
    round: indexed(uint256)
    requester: indexed(address)


event AttemptBegun:
    round: indexed(uint256)
    attempt: uint256
    commitDeadline: uint256
    revealDeadline: uint256


event Committed:
    round: indexed(uint256)
    member: indexed(address)


event RevealBegun:
    round: indexed(uint256)
    revealDeadline: uint256


event Revealed:
    round: indexed(uint256)
    member: indexed(address)
    secret: bytes32


event Penalised:
    round: indexed(uint256)
    member: indexed(address)
    amount: uint256


event Finalized:
    round: indexed(uint256)
    beaconValue: bytes32
    reveals: uint256


event Failed:
    round: indexed(uint256)


AUDIT: constant(bytes32) = keccak256("audit")
MEMBERS_MAX: constant(uint256) = 256
# A network in which nobody reveals four times in a row has no auditors.
ATTEMPTS_MAX: constant(uint256) = 4
# A round that is older than this many others has been forgotten by everybody.
PENDING_MAX: constant(uint256) = 16
WINDOW_SECONDS_MAX: constant(uint256) = 30 * 86400

UNKNOWN: constant(uint8) = 0
COMMIT: constant(uint8) = 1
REVEAL: constant(uint8) = 2
CLOSABLE: constant(uint8) = 3
FINAL: constant(uint8) = 4
FAILED: constant(uint8) = 5

staking: public(address)
token: public(address)
commitSeconds: public(uint256)
revealSeconds: public(uint256)
penalty: public(uint256)

roundCount: public(uint256)
openCount: uint256
latestDeadline: uint256
rounds: HashMap[uint256, Round]
# By round and attempt.
committers: HashMap[uint256, HashMap[uint256, DynArray[address, MEMBERS_MAX]]]
commitments: HashMap[uint256, HashMap[uint256, HashMap[address, bytes32]]]
reveals: HashMap[uint256, HashMap[uint256, HashMap[address, bool]]]


@deploy
def __init__(staking: address, commitSeconds: uint256, revealSeconds: uint256, penalty: uint256):
    assert commitSeconds > 0 and commitSeconds <= WINDOW_SECONDS_MAX, "beacon: commit window out of range"
    assert revealSeconds > 0 and revealSeconds <= WINDOW_SECONDS_MAX, "beacon: reveal window out of range"
    assert staticcall Staking(staking).isJudge(AUDIT, self), "beacon: staking does not know this judge"
    self.staking = staking
    self.token = staticcall Staking(staking).token()
    self.commitSeconds = commitSeconds
    self.revealSeconds = revealSeconds
    self.penalty = penalty


@external
def request() -> uint256:
    """
    @notice Ask for a value that nobody can know yet.
    @return The round that will give it: the newest one while its secrets are being committed to (a reveal may be seen
        before it is in a block), or one that has to begin again; else a new one. One that can only fail is not joined.
    """
    round: uint256 = self.roundCount
    phase: uint8 = self._phase(round)
    state: Round = self.rounds[round]
    begins_again: bool = phase == CLOSABLE and state.reveals == 0 and state.attempt + 1 < ATTEMPTS_MAX
    if phase != COMMIT and not begins_again:
        round += 1
        self.roundCount = round
        self.openCount += 1
        self._begin_attempt(round)
    log Requested(round=round, requester=msg.sender)
    return round


@external
def commit(round: uint256, commitment: bytes32):
    """
    @notice Commit to a secret: keccak256(abi.encode(round, sender, secret)).
    """
    assert self._phase(round) == COMMIT, "beacon: round is not in its commit phase"
    assert commitment != empty(bytes32), "beacon: commitment is zero"
    assert staticcall Staking(self.staking).power(AUDIT, msg.sender) > 0, "beacon: caller is not a staked auditor"
    attempt: uint256 = self.rounds[round].attempt
    assert self.commitments[round][attempt][msg.sender] == empty(bytes32), "beacon: caller has committed"
    self.commitments[round][attempt][msg.sender] = commitment
    self.committers[round][attempt].append(msg.sender)
    log Committed(round=round, member=msg.sender)
    commits: uint256 = len(self.committers[round][attempt])
    if commits >= self.rounds[round].expected and self._has_everyone_committed(round, attempt):
        reveal_deadline: uint256 = block.timestamp + self.revealSeconds
        self.rounds[round].commitDeadline = block.timestamp
        self.rounds[round].revealDeadline = reveal_deadline
        log RevealBegun(round=round, revealDeadline=reveal_deadline)


@external
def reveal(round: uint256, secret: bytes32):
    """
    @notice Open one's commitment; the last one to do so finalizes the round.
    """
    assert self._phase(round) == REVEAL, "beacon: round is not in its reveal phase"
    state: Round = self.rounds[round]
    attempt: uint256 = state.attempt
    assert not self.reveals[round][attempt][msg.sender], "beacon: caller has revealed"
    commitment: bytes32 = self.commitments[round][attempt][msg.sender]
    opened: bytes32 = keccak256(abi_encode(round, msg.sender, secret))
    assert commitment == opened, "beacon: secret does not open the commitment"
    self.reveals[round][attempt][msg.sender] = True
    self.rounds[round].reveals = state.reveals + 1
    # An exclusive or of hashes: the order of the reveals gives nobody a choice.
    mixed: uint256 = convert(state.mix, uint256) ^ convert(keccak256(abi_encode("deaios/beacon/1", opened, secret)), uint256)
    self.rounds[round].mix = convert(mixed, bytes32)
    log Revealed(round=round, member=msg.sender, secret=secret)
    if state.reveals + 1 == len(self.committers[round][attempt]):
        self._finish(round)


@external
def finalize(round: uint256):
    """
    @notice After the deadline: fix the value from what was revealed, or begin again where nobody revealed.
    """
    assert self._phase(round) == CLOSABLE, "beacon: round cannot be finalized now"
    state: Round = self.rounds[round]
    if state.reveals > 0:
        self._finish(round)
    elif state.attempt + 1 < ATTEMPTS_MAX:
        self.rounds[round].attempt = state.attempt + 1
        self._begin_attempt(round)
    else:
        self.rounds[round].failed = True
        self.openCount -= 1
        log Failed(round=round)
    self._penalise(round, state.attempt)


@external
@view
def value(round: uint256) -> bytes32:
    """
    @notice The round's value; zero until it is final.
    """
    return self.rounds[round].final


@external
@view
def phase(round: uint256) -> uint8:
    """
    @notice 0 unknown, 1 commit, 2 reveal, 3 to be finalized, 4 final, 5 failed.
    """
    return self._phase(round)


@external
@view
def openRound() -> uint256:
    """
    @notice The newest round if it is not over; else 0.
    """
    phase: uint8 = self._phase(self.roundCount)
    return 0 if phase == FINAL or phase == FAILED else self.roundCount


@external
@view
def pendingRounds() -> DynArray[uint256, PENDING_MAX]:
    """
    @notice The rounds that are not over, the newest first, among the newest 16.
    """
    pending: DynArray[uint256, PENDING_MAX] = []
    for age: uint256 in range(PENDING_MAX):
        if age < self.roundCount:
            phase: uint8 = self._phase(self.roundCount - age)
            if phase != FINAL and phase != FAILED:
                pending.append(self.roundCount - age)
    return pending


@external
@view
def deadline() -> uint256:
    """
    @notice The latest time at which an open round can need a block; 0 if none is open.
    """
    return self.latestDeadline if self.openCount > 0 else 0


@external
@view
def finalizedAt(round: uint256) -> uint256:
    """
    @notice When the round's value became final; 0 until then.
    """
    return self.rounds[round].finalAt


@external
@view
def maxRoundSeconds() -> uint256:
    """
    @notice A round lasts at most this long when somebody finalizes it in time.
    """
    return ATTEMPTS_MAX * (self.commitSeconds + self.revealSeconds)


@external
@view
def roundOf(round: uint256) -> (uint256, uint256, uint256, uint256, uint256):
    """
    @notice Attempt, commit deadline, reveal deadline, commits and reveals of the current attempt.
    """
    state: Round = self.rounds[round]
    commits: uint256 = len(self.committers[round][state.attempt])
    return state.attempt, state.commitDeadline, state.revealDeadline, commits, state.reveals


@external
@view
def committed(round: uint256, who: address) -> bool:
    """
    @notice Has this member committed in the current attempt?
    """
    return self.commitments[round][self.rounds[round].attempt][who] != empty(bytes32)


@external
@view
def revealed(round: uint256, who: address) -> bool:
    """
    @notice Has this member revealed in the current attempt?
    """
    return self.reveals[round][self.rounds[round].attempt][who]


@internal
@view
def _phase(round: uint256) -> uint8:
    state: Round = self.rounds[round]
    if state.commitDeadline == 0:
        return UNKNOWN
    if state.final != empty(bytes32):
        return FINAL
    if state.failed:
        return FAILED
    if block.timestamp < state.commitDeadline:
        return COMMIT
    if block.timestamp < state.revealDeadline and len(self.committers[round][state.attempt]) > 0:
        return REVEAL
    return CLOSABLE


@internal
@view
def _has_everyone_committed(round: uint256, attempt: uint256) -> bool:
    for member: address in staticcall Staking(self.staking).members(AUDIT):
        if self.commitments[round][attempt][member] == empty(bytes32):
            return False
    return True


@internal
def _begin_attempt(round: uint256):
    commit_deadline: uint256 = block.timestamp + self.commitSeconds
    reveal_deadline: uint256 = commit_deadline + self.revealSeconds
    self.rounds[round].commitDeadline = commit_deadline
    self.rounds[round].revealDeadline = reveal_deadline
    self.rounds[round].expected = len(staticcall Staking(self.staking).members(AUDIT))
    self.latestDeadline = max(self.latestDeadline, reveal_deadline)
    log AttemptBegun(
        round=round,
        attempt=self.rounds[round].attempt,
        commitDeadline=commit_deadline,
        revealDeadline=reveal_deadline,
    )


@internal
def _finish(round: uint256):
    state: Round = self.rounds[round]
    final: bytes32 = keccak256(abi_encode("deaios/beacon/1", round, state.attempt, state.mix))
    self.rounds[round].final = final
    self.rounds[round].finalAt = block.timestamp
    self.openCount -= 1
    log Finalized(round=round, beaconValue=final, reveals=state.reveals)


@internal
def _penalise(round: uint256, attempt: uint256):
    burned: uint256 = 0
    for member: address in self.committers[round][attempt]:
        if not self.reveals[round][attempt][member]:
            taken: uint256 = extcall Staking(self.staking).slash(AUDIT, member, self.penalty)
            burned += taken
            log Penalised(round=round, member=member, amount=taken)
    if burned > 0:
        extcall Token(self.token).burn(burned)
