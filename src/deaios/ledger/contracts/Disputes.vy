#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Disputes: juries over single receipts
@notice An accuser commits to evidence, opens a dispute with a bond, and a jury drawn by stake from the auditors judges
    by commit and reveal. The loser may appeal once, with a bond, to a wider jury. Money moves when no appeal can come.
    Accuser, accused and buyer never sit. A value of the beacon that nobody can know when the jury's roster is frozen
    decides who does. After every deadline anyone can go on, so that nothing is locked for ever.
    Money held = sum over open disputes of bond + appealBond.
"""
import protocol
import selection


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable


interface Staking:
    def token() -> address: view
    def unbondingSeconds() -> uint256: view
    def isJudge(service: bytes32, judge: address) -> bool: view
    def sliceOf(service: bytes32, operator: address) -> uint256: view
    def roster(service: bytes32) -> DynArray[Member, MEMBERS_MAX]: view
    def slash(service: bytes32, operator: address, amount: uint256) -> uint256: nonpayable


interface Beacon:
    def request() -> uint256: nonpayable
    def value(round: uint256) -> bytes32: view
    def phase(round: uint256) -> uint8: view
    def maxRoundSeconds() -> uint256: view


interface Channels:
    def partiesOf(channelId: bytes32) -> (address, address, address): view


struct Member:
    member: address
    power: uint256


struct Settings:
    jurySize: uint256
    openBlocks: uint256
    commitSeconds: uint256
    revealSeconds: uint256
    appealSeconds: uint256
    bond: uint256
    appealBond: uint256
    slashFloor: uint256
    jurorFee: uint256
    jurorPenalty: uint256


struct Dispute:
    accuser: address
    provider: address
    buyer: address
    authorizer: address
    receiptDigest: bytes32
    evidenceRoot: bytes32
    evidenceManifest: bytes32
    fee: uint256
    bond: uint256
    appellant: address
    appealBond: uint256
    openedAt: uint256
    round: uint256
    draws: uint256
    redrawn: bool
    commitDeadline: uint256
    revealDeadline: uint256
    appealDeadline: uint256
    jurors: uint256
    commits: uint256
    reveals: uint256
    guilty: uint256
    acquit: uint256
    stage: uint8
    verdict: uint8
    firstVerdict: uint8
    slashed: uint256
    refunded: uint256
    bounty: uint256
    burned: uint256


struct Ballot:
    commitment: bytes32
    judgement: uint8
    evidenceRoot: bytes32


event EvidenceCommitted:
    accuser: indexed(address)
    commitment: bytes32


event Opened:
    id: indexed(uint256)
    provider: indexed(address)
    accuser: indexed(address)
    receiptDigest: bytes32
    evidenceRoot: bytes32
    evidenceManifest: bytes32
    round: uint256


event JuryDrawn:
    id: indexed(uint256)
    draw: uint256
    jurors: DynArray[address, JURORS_MAX]
    commitDeadline: uint256


event VerdictCommitted:
    id: indexed(uint256)
    juror: indexed(address)


event RevealBegun:
    id: indexed(uint256)
    revealDeadline: uint256


event VerdictRevealed:
    id: indexed(uint256)
    juror: indexed(address)
    judgement: uint8
    evidenceRoot: bytes32


event JurorPenalised:
    id: indexed(uint256)
    juror: indexed(address)
    amount: uint256


event Tallied:
    id: indexed(uint256)
    verdict: uint8
    guilty: uint256
    acquit: uint256
    appealDeadline: uint256


event Redrawn:
    id: indexed(uint256)
    round: uint256


event Appealed:
    id: indexed(uint256)
    appellant: indexed(address)
    round: uint256


event Closed:
    id: indexed(uint256)
    verdict: uint8
    slashed: uint256
    refunded: uint256
    bounty: uint256
    jurorFees: uint256
    burned: uint256


COMPUTE: constant(bytes32) = keccak256("compute")
AUDIT: constant(bytes32) = keccak256("audit")

MEMBERS_MAX: constant(uint256) = 256
JURORS_MAX: constant(uint256) = 64
# 2k + 1 jurors of an appeal fit into JURORS_MAX.
JURY_SIZE_MAX: constant(uint256) = 31
# A dispute sees at most a jury and its redraw, and the same for the appeal; they are numbered from 1.
DRAWS_MAX: constant(uint256) = 4
# What one receipt's slash is worth: detection of one lie in a thousand must pay.
FEE_MULTIPLE: constant(uint256) = 1000
WINDOW_SECONDS_MAX: constant(uint256) = 30 * 86400
# The bond doubles with each new dispute over a receipt that was not found guilty.
OPENINGS_MAX: constant(uint256) = 16

BEACON_FINAL: constant(uint8) = 4
BEACON_FAILED: constant(uint8) = 5

STAGE_BEACON: constant(uint8) = 1
STAGE_JURY: constant(uint8) = 2
STAGE_VERDICT: constant(uint8) = 3
STAGE_CLOSED: constant(uint8) = 4

PHASE_BEACON: constant(uint8) = 1
PHASE_DRAW: constant(uint8) = 2
PHASE_COMMIT: constant(uint8) = 3
PHASE_REVEAL: constant(uint8) = 4
PHASE_TALLY: constant(uint8) = 5
PHASE_APPEAL: constant(uint8) = 6
PHASE_FINALIZE: constant(uint8) = 7
PHASE_CLOSED: constant(uint8) = 8

ACQUIT: constant(uint8) = 1
GUILTY: constant(uint8) = 2
NO_QUORUM: constant(uint8) = 3

token: public(address)
staking: public(address)
beacon: public(address)
channels: public(address)
_settings: Settings

disputeCount: public(uint256)
openCount: uint256
latestDeadline: uint256
openDisputeOf: public(HashMap[bytes32, uint256])
disputes: HashMap[uint256, Dispute]
snapshots: HashMap[uint256, DynArray[uint256, MEMBERS_MAX]]
juries: HashMap[uint256, HashMap[uint256, DynArray[address, JURORS_MAX]]]
ballots: HashMap[uint256, HashMap[uint256, HashMap[address, Ballot]]]
evidenceBlocks: HashMap[bytes32, uint256]
openings: HashMap[bytes32, uint256]
closedBlocks: HashMap[bytes32, uint256]
convicted: public(HashMap[bytes32, bool])
openAgainst: HashMap[address, uint256]


@deploy
def __init__(token: address, staking: address, beacon: address, channels: address, settings: Settings):
    assert staticcall Staking(staking).token() == token, "disputes: staking holds another token"
    assert staticcall Staking(staking).isJudge(COMPUTE, self), "disputes: staking does not know this judge of compute"
    assert staticcall Staking(staking).isJudge(AUDIT, self), "disputes: staking does not know this judge of audit"
    assert settings.jurySize > 0 and settings.jurySize <= JURY_SIZE_MAX, "disputes: jury size out of range"
    assert settings.bond > 0 and settings.appealBond > 0, "disputes: a bond is zero"
    assert max(settings.bond, settings.appealBond) < 2**96, "disputes: a bond is too large"
    assert settings.openBlocks > 0 and settings.openBlocks < 2**64, "disputes: opening window out of range"
    for window: uint256 in [settings.commitSeconds, settings.revealSeconds, settings.appealSeconds]:
        assert window > 0 and window <= WINDOW_SECONDS_MAX, "disputes: a window is out of range"
    round_seconds: uint256 = staticcall Beacon(beacon).maxRoundSeconds()
    jury_seconds: uint256 = round_seconds + settings.commitSeconds + settings.revealSeconds
    longest: uint256 = DRAWS_MAX * jury_seconds + settings.appealSeconds
    assert longest < staticcall Staking(staking).unbondingSeconds(), "disputes: stake could leave before a verdict"
    self.token = token
    self.staking = staking
    self.beacon = beacon
    self.channels = channels
    self._settings = settings


@external
def commitEvidence(commitment: bytes32):
    """
    @notice Commit to evidence before showing it: keccak256(abi.encode(sender, evidenceRoot, salt)). The first time
        counts, so that nobody is in the way who copies a commitment.
    """
    if self.evidenceBlocks[commitment] == 0:
        self.evidenceBlocks[commitment] = block.number
    log EvidenceCommitted(accuser=msg.sender, commitment=commitment)


@external
def open(
    request: protocol.Request,
    requestSignature: Bytes[65],
    receipt: protocol.Receipt,
    receiptSignature: Bytes[65],
    evidenceRoot: bytes32,
    evidenceManifest: bytes32,
    salt: bytes32,
) -> uint256:
    """
    @notice Accuse a provider over one receipt; the caller committed to the evidence and approved the bond.
    @return The dispute's id.
    """
    self._use_evidence(evidenceRoot, salt)
    digest: bytes32 = protocol.hash_receipt(receipt)
    assert receipt.requestDigest == protocol.hash_request(request), "disputes: receipt is for another request"
    assert receipt.channelId == request.channelId, "disputes: receipt names another channel"
    assert request.provider != empty(address) and request.provider != msg.sender, "disputes: accuser is the accused"
    signer: address = protocol.recover(self, digest, receiptSignature)
    assert signer == request.provider, "disputes: receipt is not signed by the provider"
    buyer: address = empty(address)
    authorizer: address = empty(address)
    buyer, authorizer = self._check_buyer(request, requestSignature)
    # A dispute that was lost may have been opened to use up the time: its end begins the window anew.
    since: uint256 = max(convert(request.deadlineBlock, uint256), self.closedBlocks[digest])
    assert block.number <= since + self._settings.openBlocks, "disputes: too late for this receipt"
    at_stake: uint256 = staticcall Staking(self.staking).sliceOf(COMPUTE, request.provider)
    assert at_stake > 0, "disputes: provider has no stake in compute"
    assert not self.convicted[digest], "disputes: receipt was found guilty"
    assert self.openDisputeOf[digest] == 0, "disputes: receipt is in dispute"

    id: uint256 = self.disputeCount + 1
    bond: uint256 = self._bond(digest)
    self.disputeCount = id
    self.openings[digest] += 1
    self.openDisputeOf[digest] = id
    self.openAgainst[request.provider] += 1
    self.openCount += 1
    dispute: Dispute = empty(Dispute)
    dispute.accuser = msg.sender
    dispute.provider = request.provider
    dispute.buyer = buyer
    dispute.authorizer = authorizer
    dispute.receiptDigest = digest
    dispute.evidenceRoot = evidenceRoot
    dispute.evidenceManifest = evidenceManifest
    dispute.fee = convert(receipt.fee, uint256)
    dispute.bond = bond
    dispute.openedAt = block.timestamp
    self.disputes[id] = dispute
    assert self._await_jury(id), "disputes: too few auditors for a jury"
    log Opened(
        id=id,
        provider=request.provider,
        accuser=msg.sender,
        receiptDigest=digest,
        evidenceRoot=evidenceRoot,
        evidenceManifest=evidenceManifest,
        round=self.disputes[id].round,
    )
    self._take(msg.sender, bond)
    return id


@external
def draw(id: uint256):
    """
    @notice Draw the jury from the frozen roster with the beacon's value; anyone may ask for it.
    """
    assert self._phase(id) == PHASE_DRAW, "disputes: no jury is to be drawn now"
    round: uint256 = self.disputes[id].round
    if staticcall Beacon(self.beacon).phase(round) == BEACON_FAILED:
        self._go_on_without_jury(id)
        return
    number: uint256 = self.disputes[id].draws
    roster: DynArray[uint256, MEMBERS_MAX] = self.snapshots[id]
    count: uint256 = self._settings.jurySize
    if self.disputes[id].appellant != empty(address):
        count = min(2 * count + 1, len(roster))
    beacon_value: bytes32 = staticcall Beacon(self.beacon).value(round)
    jurors: DynArray[address, JURORS_MAX] = selection.draw(beacon_value, id, number, roster, count)
    commit_deadline: uint256 = block.timestamp + self._settings.commitSeconds
    self.juries[id][number + 1] = jurors
    self.disputes[id].draws = number + 1
    self.disputes[id].jurors = len(jurors)
    self.disputes[id].commits = 0
    self.disputes[id].reveals = 0
    self.disputes[id].guilty = 0
    self.disputes[id].acquit = 0
    self.disputes[id].stage = STAGE_JURY
    self._set_jury_deadlines(id, commit_deadline)
    log JuryDrawn(id=id, draw=number + 1, jurors=jurors, commitDeadline=commit_deadline)


@external
def commitVerdict(id: uint256, commitment: bytes32):
    """
    @notice A juror commits to a verdict: the struct hash of Verdict(disputeId, juror, judgement, evidenceRoot, salt).
    """
    assert self._phase(id) == PHASE_COMMIT, "disputes: jury is not in its commit phase"
    assert commitment != empty(bytes32), "disputes: commitment is zero"
    number: uint256 = self.disputes[id].draws
    jurors: DynArray[address, JURORS_MAX] = self.juries[id][number]
    assert msg.sender in jurors, "disputes: caller is not a juror"
    assert self.ballots[id][number][msg.sender].commitment == empty(bytes32), "disputes: juror has committed"
    self.ballots[id][number][msg.sender].commitment = commitment
    commits: uint256 = self.disputes[id].commits + 1
    self.disputes[id].commits = commits
    log VerdictCommitted(id=id, juror=msg.sender)
    if commits == len(jurors):
        self._set_jury_deadlines(id, block.timestamp)
        log RevealBegun(id=id, revealDeadline=self.disputes[id].revealDeadline)


@external
def revealVerdict(id: uint256, judgement: uint8, evidenceRoot: bytes32, salt: bytes32):
    """
    @notice A juror opens its commitment.
    @param judgement 1 acquit, 2 guilty.
    """
    assert self._phase(id) == PHASE_REVEAL, "disputes: jury is not in its reveal phase"
    assert judgement == ACQUIT or judgement == GUILTY, "disputes: judgement is neither 1 nor 2"
    number: uint256 = self.disputes[id].draws
    ballot: Ballot = self.ballots[id][number][msg.sender]
    assert ballot.judgement == 0, "disputes: juror has revealed"
    opened: bytes32 = protocol.hash_verdict(id, msg.sender, judgement, evidenceRoot, salt)
    assert ballot.commitment == opened, "disputes: verdict does not open the commitment"
    self.ballots[id][number][msg.sender].judgement = judgement
    self.ballots[id][number][msg.sender].evidenceRoot = evidenceRoot
    self.disputes[id].reveals += 1
    if judgement == GUILTY:
        self.disputes[id].guilty += 1
    else:
        self.disputes[id].acquit += 1
    log VerdictRevealed(id=id, juror=msg.sender, judgement=judgement, evidenceRoot=evidenceRoot)


@external
def tally(id: uint256):
    """
    @notice Count the verdicts when all are revealed or time is up; anyone may ask for it.
    """
    assert self._phase(id) == PHASE_TALLY, "disputes: nothing to tally now"
    guilty: uint256 = self.disputes[id].guilty
    acquit: uint256 = self.disputes[id].acquit
    quorum: uint256 = (2 * self.disputes[id].jurors + 2) // 3
    verdict: uint8 = NO_QUORUM
    if guilty >= quorum:
        verdict = GUILTY
    elif acquit >= quorum:
        verdict = ACQUIT
    # Before the roster is frozen again: whoever falls below the minimum is not eligible.
    self._penalise_jurors(id)
    redraw: bool = verdict == NO_QUORUM and not self.disputes[id].redrawn
    if redraw and self._await_jury(id):
        self.disputes[id].redrawn = True
        log Tallied(id=id, verdict=verdict, guilty=guilty, acquit=acquit, appealDeadline=0)
        log Redrawn(id=id, round=self.disputes[id].round)
    else:
        self._give_verdict(id, verdict)


@external
def appeal(id: uint256):
    """
    @notice The loser asks for a wider jury, once; it approved the appeal bond.
    """
    assert self._phase(id) == PHASE_APPEAL, "disputes: no appeal is possible now"
    verdict: uint8 = self.disputes[id].verdict
    loser: address = self.disputes[id].provider if verdict == GUILTY else self.disputes[id].accuser
    assert msg.sender == loser, "disputes: caller did not lose"
    bond: uint256 = self._settings.appealBond
    self.disputes[id].appellant = msg.sender
    self.disputes[id].appealBond = bond
    self.disputes[id].firstVerdict = verdict
    self.disputes[id].verdict = 0
    self.disputes[id].redrawn = False
    assert self._await_jury(id), "disputes: too few auditors for a jury"
    log Appealed(id=id, appellant=msg.sender, round=self.disputes[id].round)
    self._take(msg.sender, bond)


@external
def finalize(id: uint256):
    """
    @notice Move the money when no appeal can come any more; anyone may ask for it.
    """
    assert self._phase(id) == PHASE_FINALIZE, "disputes: dispute cannot be finalized now"
    dispute: Dispute = self.disputes[id]
    self.disputes[id].stage = STAGE_CLOSED
    self.openDisputeOf[dispute.receiptDigest] = 0
    self.closedBlocks[dispute.receiptDigest] = block.number
    self.openAgainst[dispute.provider] -= 1
    self.openCount -= 1

    to_accuser: uint256 = 0
    to_provider: uint256 = 0
    burned: uint256 = 0
    juror_fees: uint256 = 0
    if dispute.verdict == GUILTY:
        self.convicted[dispute.receiptDigest] = True
        wanted: uint256 = max(self._settings.slashFloor, FEE_MULTIPLE * dispute.fee)
        taken: uint256 = extcall Staking(self.staking).slash(COMPUTE, dispute.provider, wanted)
        # At least half is burned, so that friends cannot win it back.
        pool: uint256 = taken // 2
        refunded: uint256 = min(dispute.fee, pool)
        bounty: uint256 = min(taken // 10, pool - refunded)
        juror_fees = self._pay_jurors(id, dispute.draws, pool - refunded - bounty)
        burned = taken - refunded - bounty - juror_fees
        to_accuser = dispute.bond + bounty
        self.disputes[id].slashed = taken
        self.disputes[id].refunded = refunded
        self.disputes[id].bounty = bounty
        self._pay(dispute.buyer, refunded)
        dispute.slashed = taken
        dispute.refunded = refunded
        dispute.bounty = bounty
    elif dispute.verdict == ACQUIT:
        to_provider = dispute.bond // 2
        juror_fees = self._pay_jurors(id, dispute.draws, dispute.bond - to_provider)
        burned = dispute.bond - to_provider - juror_fees
    else:
        to_accuser = dispute.bond

    if dispute.appealBond > 0:
        lost: bool = dispute.verdict == dispute.firstVerdict
        half: uint256 = dispute.appealBond // 2
        appellant_part: uint256 = 0 if lost else dispute.appealBond
        winner_part: uint256 = half if lost else 0
        burned += dispute.appealBond - appellant_part - winner_part
        if dispute.appellant == dispute.provider:
            to_provider += appellant_part
            to_accuser += winner_part
        else:
            to_accuser += appellant_part
            to_provider += winner_part

    self.disputes[id].burned = burned
    log Closed(
        id=id,
        verdict=dispute.verdict,
        slashed=dispute.slashed,
        refunded=dispute.refunded,
        bounty=dispute.bounty,
        jurorFees=juror_fees,
        burned=burned,
    )
    self._pay(dispute.accuser, to_accuser)
    self._pay(dispute.provider, to_provider)
    self._burn(burned)


@external
@view
def settings() -> Settings:
    """
    @notice Windows and amounts.
    """
    return self._settings


@external
@view
def disputeOf(id: uint256) -> Dispute:
    """
    @notice Everything about a dispute.
    """
    return self.disputes[id]


@external
@view
def jurorsOf(id: uint256) -> DynArray[address, JURORS_MAX]:
    """
    @notice The jury that was drawn last.
    """
    return self.juries[id][self.disputes[id].draws]


@external
@view
def juryAt(id: uint256, number: uint256) -> DynArray[address, JURORS_MAX]:
    """
    @notice A jury by its number in the dispute, from 1; the number of the last one is `draws`.
    """
    return self.juries[id][number]


@external
@view
def ballotOf(id: uint256, number: uint256, juror: address) -> (bytes32, uint8, bytes32):
    """
    @notice A juror's commitment, judgement (0 until revealed) and evidence root.
    """
    ballot: Ballot = self.ballots[id][number][juror]
    return ballot.commitment, ballot.judgement, ballot.evidenceRoot


@external
@view
def snapshotOf(id: uint256) -> DynArray[uint256, MEMBERS_MAX]:
    """
    @notice The roster that the jury is, or was, drawn from: power << 160 | address.
    """
    return self.snapshots[id]


@external
@view
def phaseOf(id: uint256) -> uint8:
    """
    @notice 0 unknown, 1 beacon, 2 draw, 3 commit, 4 reveal, 5 tally, 6 appeal window, 7 finalize, 8 closed.
    """
    return self._phase(id)


@external
@view
def isPaused(provider: address) -> bool:
    """
    @notice Is a dispute open against this provider?
    """
    return self.openAgainst[provider] > 0


@external
@view
def deadline() -> uint256:
    """
    @notice The latest deadline of any open dispute; 0 if none is open.
    """
    return self.latestDeadline if self.openCount > 0 else 0


@external
@view
def bondOf(receiptDigest: bytes32) -> uint256:
    """
    @notice What opening a dispute over this receipt takes now.
    """
    return self._bond(receiptDigest)


@external
@view
def requestDigest(request: protocol.Request) -> bytes32:
    """
    @notice The struct hash of a request.
    """
    return protocol.hash_request(request)


@external
@view
def receiptDigest(receipt: protocol.Receipt) -> bytes32:
    """
    @notice The struct hash of a receipt.
    """
    return protocol.hash_receipt(receipt)


@external
@view
def verdictDigest(id: uint256, juror: address, judgement: uint8, evidenceRoot: bytes32, salt: bytes32) -> bytes32:
    """
    @notice The struct hash of a verdict: what a juror commits to.
    """
    return protocol.hash_verdict(id, juror, judgement, evidenceRoot, salt)


@external
@view
def domainSeparator() -> bytes32:
    """
    @notice The domain of every protocol signature.
    """
    return protocol.separator(self)


@internal
@view
def _phase(id: uint256) -> uint8:
    stage: uint8 = self.disputes[id].stage
    if stage == STAGE_BEACON:
        phase: uint8 = staticcall Beacon(self.beacon).phase(self.disputes[id].round)
        return PHASE_DRAW if phase == BEACON_FINAL or phase == BEACON_FAILED else PHASE_BEACON
    if stage == STAGE_JURY:
        if block.timestamp < self.disputes[id].commitDeadline:
            return PHASE_COMMIT
        waits: bool = self.disputes[id].reveals < self.disputes[id].commits
        return PHASE_REVEAL if waits and block.timestamp < self.disputes[id].revealDeadline else PHASE_TALLY
    if stage == STAGE_VERDICT:
        return PHASE_APPEAL if block.timestamp < self.disputes[id].appealDeadline else PHASE_FINALIZE
    return PHASE_CLOSED if stage == STAGE_CLOSED else 0


@internal
@view
def _bond(digest: bytes32) -> uint256:
    openings: uint256 = self.openings[digest]
    assert openings < OPENINGS_MAX, "disputes: receipt was disputed too often"
    return self._settings.bond << openings


@internal
def _use_evidence(evidence_root: bytes32, salt: bytes32):
    commitment: bytes32 = keccak256(abi_encode(msg.sender, evidence_root, salt))
    committed_at: uint256 = self.evidenceBlocks[commitment]
    assert committed_at > 0, "disputes: evidence was not committed"
    assert committed_at < block.number, "disputes: evidence was committed in this block"
    self.evidenceBlocks[commitment] = 0


@internal
@view
def _check_buyer(request: protocol.Request, signature: Bytes[65]) -> (address, address):
    payer: address = empty(address)
    authorizer: address = empty(address)
    receiver: address = empty(address)
    payer, authorizer, receiver = staticcall Channels(self.channels).partiesOf(request.channelId)
    assert payer != empty(address), "disputes: channel is unknown"
    signer: address = protocol.recover(self, protocol.hash_request(request), signature)
    is_buyer: bool = signer != empty(address) and (signer == payer or signer == authorizer)
    assert is_buyer, "disputes: request is not signed by the channel's payer"
    return payer, authorizer


@internal
def _await_jury(id: uint256) -> bool:
    """
    @notice Freeze the roster and ask the beacon for a value that nobody can know yet; false if a jury cannot be had.
    """
    excluded: address[4] = [
        self.disputes[id].accuser,
        self.disputes[id].provider,
        self.disputes[id].buyer,
        self.disputes[id].authorizer,
    ]
    eligible: DynArray[uint256, MEMBERS_MAX] = []
    for entry: Member in staticcall Staking(self.staking).roster(AUDIT):
        if entry.member not in excluded:
            eligible.append((entry.power << 160) | convert(entry.member, uint256))
    if len(eligible) < self._settings.jurySize:
        return False
    self.snapshots[id] = eligible
    self.disputes[id].stage = STAGE_BEACON
    self.disputes[id].round = extcall Beacon(self.beacon).request()
    return True


@internal
def _set_jury_deadlines(id: uint256, commit_deadline: uint256):
    reveal_deadline: uint256 = commit_deadline + self._settings.revealSeconds
    self.disputes[id].commitDeadline = commit_deadline
    self.disputes[id].revealDeadline = reveal_deadline
    self.latestDeadline = max(self.latestDeadline, reveal_deadline)


@internal
def _give_verdict(id: uint256, verdict: uint8):
    appeal_deadline: uint256 = block.timestamp
    if verdict != NO_QUORUM and self.disputes[id].appellant == empty(address):
        appeal_deadline += self._settings.appealSeconds
    self.disputes[id].verdict = verdict
    self.disputes[id].stage = STAGE_VERDICT
    self.disputes[id].appealDeadline = appeal_deadline
    self.latestDeadline = max(self.latestDeadline, appeal_deadline)
    log Tallied(
        id=id,
        verdict=verdict,
        guilty=self.disputes[id].guilty,
        acquit=self.disputes[id].acquit,
        appealDeadline=appeal_deadline,
    )


@internal
def _go_on_without_jury(id: uint256):
    """
    @notice The beacon failed. A first verdict stands and the appeal bond goes back; without one nobody loses anything.
    """
    appellant: address = self.disputes[id].appellant
    if appellant == empty(address):
        self._give_verdict(id, NO_QUORUM)
        return
    bond: uint256 = self.disputes[id].appealBond
    self.disputes[id].appealBond = 0
    self._give_verdict(id, self.disputes[id].firstVerdict)
    self._pay(appellant, bond)


@internal
def _penalise_jurors(id: uint256):
    number: uint256 = self.disputes[id].draws
    burned: uint256 = 0
    for juror: address in self.juries[id][number]:
        if self.ballots[id][number][juror].judgement == 0:
            taken: uint256 = extcall Staking(self.staking).slash(AUDIT, juror, self._settings.jurorPenalty)
            burned += taken
            log JurorPenalised(id=id, juror=juror, amount=taken)
    self._burn(burned)


@internal
def _pay_jurors(id: uint256, draws: uint256, pool: uint256) -> uint256:
    """
    @notice Pay everyone who revealed in any of the juries, whatever the judgement.
    @return What was paid.
    """
    revealed: DynArray[address, DRAWS_MAX * JURORS_MAX] = []
    for number: uint256 in range(1, draws + 1, bound=DRAWS_MAX):
        for juror: address in self.juries[id][number]:
            if self.ballots[id][number][juror].judgement != 0:
                revealed.append(juror)
    if len(revealed) == 0:
        return 0
    fee: uint256 = min(self._settings.jurorFee, pool // len(revealed))
    for juror: address in revealed:
        self._pay(juror, fee)
    return fee * len(revealed)


@internal
def _take(payer: address, amount: uint256):
    assert extcall Token(self.token).transferFrom(payer, self, amount), "disputes: transfer failed"


@internal
def _pay(to: address, amount: uint256):
    if amount > 0:
        assert extcall Token(self.token).transfer(to, amount), "disputes: transfer failed"


@internal
def _burn(amount: uint256):
    if amount > 0:
        extcall Token(self.token).burn(amount)
