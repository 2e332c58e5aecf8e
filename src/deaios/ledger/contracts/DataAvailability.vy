#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title DataAvailability: a staked committee says that it holds the rows of a blob, and answers for it
@notice Each epoch the seats are apportioned by stake; one seat is one row of every blob and one vote. A certificate is
    one message signed by the holders of two thirds of the seats. Until it expires anyone can bet a bond that a seat
    which signed cannot show leaves that nobody could foresee; after it expired the seats that were not caught share
    its fee.
    Money held = sum over open challenges of challengeBond + fees of certificates that are not settled + sum earned.
"""
import apportionment
import protocol
import rowtree
import signatures as signing


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable


interface Staking:
    def token() -> address: view
    def unbondingSeconds() -> uint256: view
    def isJudge(service: bytes32, judge: address) -> bool: view
    def roster(service: bytes32) -> DynArray[Member, MEMBERS_MAX]: view
    def slash(service: bytes32, operator: address, amount: uint256) -> uint256: nonpayable


interface Beacon:
    def request() -> uint256: nonpayable
    def value(round: uint256) -> bytes32: view
    def finalizedAt(round: uint256) -> uint256: view
    def maxRoundSeconds() -> uint256: view


struct Member:
    member: address
    power: uint256


struct Head:
    root: bytes32
    combinationsHash: bytes32
    length: uint64


struct PlacedSignature:
    # Index into the epoch's members.
    place: uint16
    signature: Bytes[65]


struct Certificate:
    attestation: protocol.RowAttestation
    head: Head


struct Challenge:
    digest: bytes32
    challenger: address
    member: address
    seat: uint256
    round: uint256
    deadline: uint256


event EpochBegun:
    epoch: indexed(uint256)
    begunAt: uint256
    members: DynArray[uint256, MEMBERS_MAX]


event Certified:
    commitment: indexed(bytes32)
    epoch: indexed(uint256)
    payer: indexed(address)
    beginsAt: uint64
    expiresAt: uint64
    length: uint64
    root: bytes32
    combinationsHash: bytes32
    signers: uint256
    fee: uint256


event Challenged:
    commitment: indexed(bytes32)
    member: indexed(address)
    challenger: indexed(address)
    id: bytes32
    digest: bytes32
    seat: uint256
    round: uint256
    deadline: uint256


event Answered:
    id: indexed(bytes32)
    answerer: indexed(address)


event Convicted:
    id: indexed(bytes32)
    member: indexed(address)
    slashed: uint256


event Voided:
    id: indexed(bytes32)


event Settled:
    digest: indexed(bytes32)
    fee: uint256
    seats: uint256


event Withdrawn:
    member: indexed(address)
    amount: uint256


DA: constant(bytes32) = keccak256("da")
MEMBERS_MAX: constant(uint256) = 256
SEATS_MIN: constant(uint256) = 3
SEATS_MAX: constant(uint256) = 256
# What a transaction can settle at once with a full committee.
SETTLED_MAX: constant(uint256) = 16
LENGTH_MAX: constant(uint64) = 2**26
WINDOW_SECONDS_MAX: constant(uint256) = 30 * 86400
AMOUNT_MAX: constant(uint256) = 2**96 - 1
# Attestations that were being collected when an epoch ended are still good.
GRACE_SECONDS: constant(uint256) = 600
# How long collecting the signatures may take.
COLLECT_SECONDS_MAX: constant(uint256) = 3600
# Rows are read by who checks a member: few enough leaves for a transaction, enough that half a row is not.
PICKS_MAX: constant(uint256) = 4
# One tenth to the challenger; the rest is burned.
BOUNTY_DIVISOR: constant(uint256) = 10
GIB_DAY: constant(uint256) = 2**30 * 86400

# A member's word: address | first seat << 160 | seats << 176.
FIRST_SEAT_SHIFT: constant(uint256) = 160
SEATS_SHIFT: constant(uint256) = 176
FIELD_MASK: constant(uint256) = 2**16 - 1
# An epoch's word: begin | members << 64.
MEMBERS_SHIFT: constant(uint256) = 64
BEGIN_MASK: constant(uint256) = 2**64 - 1

token: public(address)
staking: public(address)
beacon: public(address)
seatCount: public(uint256)
epochSeconds: public(uint256)
termSecondsMax: public(uint256)
answerSeconds: public(uint256)
challengeBond: public(uint256)
penalty: public(uint256)
feeBase: public(uint256)
feePerGibDay: public(uint256)

currentEpoch: public(uint256)
epochs: HashMap[uint256, uint256]
members: HashMap[uint256, uint256[MEMBERS_MAX]]
# By digest of the attestation; bit s is seat s. Zero before certifying and after settling.
signersOf: public(HashMap[bytes32, uint256])
# Every seat was caught: nobody earns the fee, and the slot above is empty though it was certified.
isForfeited: public(HashMap[bytes32, bool])
openChallenges: public(HashMap[bytes32, uint256])
earnedOf: public(HashMap[address, uint256])
challenges: HashMap[bytes32, Challenge]
openCount: uint256
latestDeadline: uint256


@deploy
def __init__(
    token: address,
    staking: address,
    beacon: address,
    seatCount: uint256,
    epochSeconds: uint256,
    termSecondsMax: uint256,
    answerSeconds: uint256,
    challengeBond: uint256,
    penalty: uint256,
    feeBase: uint256,
    feePerGibDay: uint256,
):
    assert staticcall Staking(staking).token() == token, "availability: staking holds another token"
    assert staticcall Staking(staking).isJudge(DA, self), "availability: staking does not know this judge"
    assert seatCount >= SEATS_MIN and seatCount <= SEATS_MAX, "availability: seats out of range"
    for window: uint256 in [epochSeconds, termSecondsMax, answerSeconds]:
        assert window > 0 and window <= WINDOW_SECONDS_MAX, "availability: a window is out of range"
    for amount: uint256 in [challengeBond, penalty, feeBase, feePerGibDay]:
        assert amount > 0 and amount <= AMOUNT_MAX, "availability: an amount is out of range"
    answer_seconds: uint256 = staticcall Beacon(beacon).maxRoundSeconds() + answerSeconds
    longest: uint256 = 2 * epochSeconds + GRACE_SECONDS + termSecondsMax + answer_seconds
    assert longest < staticcall Staking(staking).unbondingSeconds(), "availability: stake could leave before an answer"
    self.token = token
    self.staking = staking
    self.beacon = beacon
    self.seatCount = seatCount
    self.epochSeconds = epochSeconds
    self.termSecondsMax = termSecondsMax
    self.answerSeconds = answerSeconds
    self.challengeBond = challengeBond
    self.penalty = penalty
    self.feeBase = feeBase
    self.feePerGibDay = feePerGibDay


@external
def beginEpoch() -> uint256:
    """
    @notice Apportion the seats anew by the stake of now; anyone may ask for it.
    @return The epoch, from 1.
    """
    epoch: uint256 = self.currentEpoch + 1
    if epoch > 1:
        due: uint256 = (self.epochs[epoch - 1] & BEGIN_MASK) + self.epochSeconds
        assert block.timestamp >= due, "availability: the epoch is not over"
    roster: DynArray[Member, MEMBERS_MAX] = staticcall Staking(self.staking).roster(DA)
    assert len(roster) > 0, "availability: nobody has stake in da"
    words: DynArray[uint256, MEMBERS_MAX] = self._lay_out(roster, epoch)
    for i: uint256 in range(len(words), bound=MEMBERS_MAX):
        self.members[epoch][i] = words[i]
    self.epochs[epoch] = block.timestamp | (len(words) << MEMBERS_SHIFT)
    self.currentEpoch = epoch
    log EpochBegun(epoch=epoch, begunAt=block.timestamp, members=words)
    return epoch


@external
def certify(
    attestation: protocol.RowAttestation, head: Head, signatures: DynArray[PlacedSignature, MEMBERS_MAX]
) -> bytes32:
    """
    @notice Record that two thirds of the seats hold their rows; the caller approved the fee.
    @return The attestation's digest.
    """
    epoch: uint256 = convert(attestation.epoch, uint256)
    self._check_epoch(epoch)
    self._check_term(convert(attestation.beginsAt, uint256), convert(attestation.expiresAt, uint256))
    self._check_head(attestation.commitment, head)
    digest: bytes32 = protocol.hash_row_attestation(attestation)
    assert self.signersOf[digest] == 0 and not self.isForfeited[digest], "availability: certified before"
    signers: uint256 = self._signers(epoch, digest, signatures)
    assert self._count_bits(signers) * 3 >= 2 * self.seatCount, "availability: too few seats signed"
    fee: uint256 = self._fee(attestation, head)
    self.signersOf[digest] = signers
    log Certified(
        commitment=attestation.commitment,
        epoch=epoch,
        payer=msg.sender,
        beginsAt=attestation.beginsAt,
        expiresAt=attestation.expiresAt,
        length=head.length,
        root=head.root,
        combinationsHash=head.combinationsHash,
        signers=signers,
        fee=fee,
    )
    self._take(fee)
    return digest


@external
def challenge(attestation: protocol.RowAttestation, seat: uint256) -> bytes32:
    """
    @notice Bet that the holder of a seat cannot show its row; the caller approved the bond.
    @return The challenge's id: one at a time for a certificate and a seat.
    """
    digest: bytes32 = protocol.hash_row_attestation(attestation)
    assert seat < self.seatCount, "availability: no such seat"
    assert (self.signersOf[digest] >> seat) & 1 == 1, "availability: seat did not sign"
    assert block.timestamp < convert(attestation.expiresAt, uint256), "availability: term has ended"
    id: bytes32 = keccak256(abi_encode(digest, seat))
    assert self.challenges[id].deadline == 0, "availability: a challenge is open"
    member: address = self._owner_of(convert(attestation.epoch, uint256), seat)
    deadline: uint256 = block.timestamp + staticcall Beacon(self.beacon).maxRoundSeconds() + self.answerSeconds
    round: uint256 = extcall Beacon(self.beacon).request()
    self.challenges[id] = Challenge(
        digest=digest, challenger=msg.sender, member=member, seat=seat, round=round, deadline=deadline
    )
    self.openChallenges[digest] += 1
    self.openCount += 1
    self.latestDeadline = max(self.latestDeadline, deadline)
    log Challenged(
        commitment=attestation.commitment,
        member=member,
        challenger=msg.sender,
        id=id,
        digest=digest,
        seat=seat,
        round=round,
        deadline=deadline,
    )
    self._take(self.challengeBond)
    return id


@external
def answer(
    attestation: protocol.RowAttestation,
    head: Head,
    seat: uint256,
    leaves: DynArray[Bytes[rowtree.LEAF_BYTES], PICKS_MAX],
    paths: DynArray[DynArray[bytes32, rowtree.PATH_MAX], PICKS_MAX],
):
    """
    @notice Show the picked leaves of a challenged row; the bond pays the caller. Possible until somebody finalizes.
    """
    digest: bytes32 = protocol.hash_row_attestation(attestation)
    id: bytes32 = keccak256(abi_encode(digest, seat))
    challenge: Challenge = self.challenges[id]
    assert challenge.deadline != 0, "availability: no challenge is open"
    self._check_head(attestation.commitment, head)
    picks: DynArray[uint256, PICKS_MAX] = self._picks(id, challenge.round, head.length)
    assert len(picks) > 0, "availability: the beacon has no value yet"
    assert len(leaves) == len(picks) and len(paths) == len(picks), "availability: another number of leaves was picked"
    leaf_depth: uint256 = rowtree.depth_of(rowtree.leaves_per_row(convert(head.length, uint256), self._data_rows()))
    depth: uint256 = leaf_depth + rowtree.depth_of(self.seatCount)
    for i: uint256 in range(len(picks), bound=PICKS_MAX):
        assert len(leaves[i]) == rowtree.LEAF_BYTES, "availability: a leaf has another size"
        assert len(paths[i]) == depth, "availability: a path has another length"
        root: bytes32 = rowtree.root_of(leaves[i], picks[i], leaf_depth, seat, paths[i])
        assert root == head.root, "availability: a leaf is not in this row"
    self._close(id, challenge)
    log Answered(id=id, answerer=msg.sender)
    self._pay(msg.sender, self.challengeBond)


@external
def finalize(id: bytes32) -> uint256:
    """
    @notice End a challenge that nobody answered in time; anyone may ask for it. The time to answer begins with the
        beacon's value, however late that came; without a value nothing was asked, and the bond goes back.
    @return What was slashed.
    """
    challenge: Challenge = self.challenges[id]
    assert challenge.deadline != 0, "availability: no challenge is open"
    asked_at: uint256 = staticcall Beacon(self.beacon).finalizedAt(challenge.round)
    assert block.timestamp >= self._ends_at(challenge, asked_at), "availability: the member may still answer"
    self._close(id, challenge)
    if asked_at == 0:
        log Voided(id=id)
        self._pay(challenge.challenger, self.challengeBond)
        return 0
    signers: uint256 = self.signersOf[challenge.digest] ^ (1 << challenge.seat)
    self.signersOf[challenge.digest] = signers
    if signers == 0:
        self.isForfeited[challenge.digest] = True
    taken: uint256 = extcall Staking(self.staking).slash(DA, challenge.member, self.penalty)
    log Convicted(id=id, member=challenge.member, slashed=taken)
    bounty: uint256 = taken // BOUNTY_DIVISOR
    self._pay(challenge.challenger, self.challengeBond + bounty)
    self._burn(taken - bounty)
    return taken


@external
def settle(certificates: DynArray[Certificate, SETTLED_MAX]):
    """
    @notice Divide the fees of expired certificates of one epoch among the seats that were not caught; anyone may.
    """
    assert len(certificates) > 0, "availability: nothing to settle"
    epoch: uint64 = certificates[0].attestation.epoch
    signers: DynArray[uint256, SETTLED_MAX] = []
    shares: DynArray[uint256, SETTLED_MAX] = []
    dusts: DynArray[uint256, SETTLED_MAX] = []
    forfeited: uint256 = 0
    for certificate: Certificate in certificates:
        assert certificate.attestation.epoch == epoch, "availability: certificates of several epochs"
        digest: bytes32 = protocol.hash_row_attestation(certificate.attestation)
        seats: uint256 = self._use_up(digest, certificate)
        fee: uint256 = self._fee(certificate.attestation, certificate.head)
        count: uint256 = self._count_bits(seats)
        log Settled(digest=digest, fee=fee, seats=count)
        if count == 0:
            forfeited += fee
        else:
            signers.append(seats)
            shares.append(fee // count)
            dusts.append(fee % count)
    self._credit(convert(epoch, uint256), signers, shares, dusts)
    self._burn(forfeited)


@external
def withdraw() -> uint256:
    """
    @notice Pay the caller what its seats earned.
    """
    amount: uint256 = self.earnedOf[msg.sender]
    assert amount > 0, "availability: nothing is earned"
    self.earnedOf[msg.sender] = 0
    log Withdrawn(member=msg.sender, amount=amount)
    self._pay(msg.sender, amount)
    return amount


@external
@view
def epochOf(epoch: uint256) -> (uint256, uint256):
    """
    @notice When an epoch began and how many members it has; zeros when unknown.
    """
    return self.epochs[epoch] & BEGIN_MASK, self.epochs[epoch] >> MEMBERS_SHIFT


@external
@view
def committeeOf(epoch: uint256) -> DynArray[uint256, MEMBERS_MAX]:
    """
    @notice The members of an epoch by place: address | first seat << 160 | seats << 176.
    """
    words: DynArray[uint256, MEMBERS_MAX] = []
    for i: uint256 in range(self.epochs[epoch] >> MEMBERS_SHIFT, bound=MEMBERS_MAX):
        words.append(self.members[epoch][i])
    return words


@external
@view
def feeOf(length: uint64, term: uint64) -> uint256:
    """
    @notice What certifying a blob of so many bytes for so many seconds costs.
    """
    return self._fee_of(convert(length, uint256), convert(term, uint256))


@external
@view
def challengeOf(id: bytes32) -> (address, address, uint256, uint256):
    """
    @notice Challenger, member, beacon round and deadline of an open challenge; zeros otherwise.
    """
    challenge: Challenge = self.challenges[id]
    return challenge.challenger, challenge.member, challenge.round, challenge.deadline


@external
@view
def endsAt(id: bytes32) -> uint256:
    """
    @notice From when on an open challenge can be finalized, as far as is known now; zero when it is not open.
    """
    challenge: Challenge = self.challenges[id]
    if challenge.deadline == 0:
        return 0
    return self._ends_at(challenge, staticcall Beacon(self.beacon).finalizedAt(challenge.round))


@external
@view
def picksOf(id: bytes32, length: uint64) -> DynArray[uint256, PICKS_MAX]:
    """
    @notice The leaves to be shown for an open challenge over a blob of so many bytes; none before the beacon's value.
    """
    challenge: Challenge = self.challenges[id]
    if challenge.deadline == 0:
        return []
    return self._picks(id, challenge.round, length)


@external
@view
def deadline() -> uint256:
    """
    @notice The latest deadline of any open challenge; 0 if none is open.
    """
    return self.latestDeadline if self.openCount > 0 else 0


@internal
@view
def _lay_out(roster: DynArray[Member, MEMBERS_MAX], epoch: uint256) -> DynArray[uint256, MEMBERS_MAX]:
    powers: DynArray[uint256, MEMBERS_MAX] = []
    for entry: Member in roster:
        powers.append(entry.power)
    given: DynArray[uint256, MEMBERS_MAX] = apportionment.apportion(powers, self.seatCount)
    seated: DynArray[uint256, MEMBERS_MAX] = []
    for i: uint256 in range(len(roster), bound=MEMBERS_MAX):
        if given[i] > 0:
            seated.append(convert(roster[i].member, uint256) | (given[i] << SEATS_SHIFT))
    # Rows differ in use: data rows are read first. Each epoch another member has the first ones.
    words: DynArray[uint256, MEMBERS_MAX] = []
    first: uint256 = 0
    for i: uint256 in range(len(seated), bound=MEMBERS_MAX):
        word: uint256 = seated[(i + epoch) % len(seated)]
        words.append(word | (first << FIRST_SEAT_SHIFT))
        first += word >> SEATS_SHIFT
    return words


@internal
@view
def _check_epoch(epoch: uint256):
    current: uint256 = self.currentEpoch
    if epoch != current:
        begun: uint256 = self.epochs[current] & BEGIN_MASK
        is_before: bool = epoch > 0 and epoch + 1 == current
        assert is_before and block.timestamp < begun + GRACE_SECONDS, "availability: epoch is not the current one"
    assert epoch > 0, "availability: no epoch has begun"
    begin: uint256 = self.epochs[epoch] & BEGIN_MASK
    assert block.timestamp < begin + 2 * self.epochSeconds, "availability: epoch is stale"


@internal
@view
def _check_term(begins: uint256, expires: uint256):
    assert begins <= block.timestamp, "availability: term has not begun"
    assert block.timestamp <= begins + COLLECT_SECONDS_MAX, "availability: term began too long ago"
    assert block.timestamp < expires, "availability: term has ended"
    assert expires <= begins + self.termSecondsMax, "availability: term is too long"


@internal
@view
def _check_head(commitment: bytes32, head: Head):
    assert head.length > 0 and head.length <= LENGTH_MAX, "availability: length out of range"
    expected: bytes32 = rowtree.hash_commitment(
        head.root, head.combinationsHash, self._data_rows(), self.seatCount, head.length
    )
    assert commitment == expected, "availability: commitment is of another head"


@internal
@view
def _data_rows() -> uint256:
    # The honest third of the seats is enough to decode.
    return self.seatCount // 3


@internal
@view
def _signers(epoch: uint256, digest: bytes32, signatures: DynArray[PlacedSignature, MEMBERS_MAX]) -> uint256:
    signed: bytes32 = signing.typed_data(protocol.separator(self), digest)
    count: uint256 = self.epochs[epoch] >> MEMBERS_SHIFT
    next_place: uint256 = 0
    signers: uint256 = 0
    for i: uint256 in range(len(signatures), bound=MEMBERS_MAX):
        place: uint256 = convert(signatures[i].place, uint256)
        assert place >= next_place, "availability: places do not ascend"
        assert place < count, "availability: no member at this place"
        next_place = place + 1
        word: uint256 = self.members[epoch][place]
        signer: address = signing.recover(signed, signatures[i].signature)
        assert signer == self._address_in(word), "availability: signature is not the member's"
        signers |= self._seats_in(word)
    return signers


@internal
@view
def _owner_of(epoch: uint256, seat: uint256) -> address:
    """
    @notice Members lie in the order of their seats: halve until one is left.
    """
    low: uint256 = 0
    high: uint256 = self.epochs[epoch] >> MEMBERS_SHIFT
    for _: uint256 in range(MEMBERS_MAX):
        if low + 1 >= high:
            break
        middle: uint256 = (low + high) // 2
        if (self.members[epoch][middle] >> FIRST_SEAT_SHIFT) & FIELD_MASK <= seat:
            low = middle
        else:
            high = middle
    return self._address_in(self.members[epoch][low])


@internal
@pure
def _address_in(word: uint256) -> address:
    return convert(convert(word & (2**FIRST_SEAT_SHIFT - 1), uint160), address)


@internal
@pure
def _seats_in(word: uint256) -> uint256:
    """
    @notice The bits of a member's seats.
    """
    bits: uint256 = max_value(uint256) >> (SEATS_MAX - (word >> SEATS_SHIFT))
    return bits << ((word >> FIRST_SEAT_SHIFT) & FIELD_MASK)


@internal
@view
def _ends_at(challenge: Challenge, asked_at: uint256) -> uint256:
    return challenge.deadline if asked_at == 0 else asked_at + self.answerSeconds


@internal
@view
def _picks(id: bytes32, round: uint256, length: uint64) -> DynArray[uint256, PICKS_MAX]:
    picks: DynArray[uint256, PICKS_MAX] = []
    beacon_value: bytes32 = staticcall Beacon(self.beacon).value(round)
    leaves: uint256 = rowtree.leaves_per_row(convert(length, uint256), self._data_rows())
    if beacon_value != empty(bytes32):
        for i: uint256 in range(min(PICKS_MAX, leaves), bound=PICKS_MAX):
            picks.append(convert(keccak256(abi_encode(beacon_value, id, i)), uint256) % leaves)
    return picks


@internal
def _close(id: bytes32, challenge: Challenge):
    self.challenges[id] = empty(Challenge)
    self.openChallenges[challenge.digest] -= 1
    self.openCount -= 1


@internal
def _use_up(digest: bytes32, certificate: Certificate) -> uint256:
    """
    @notice The seats that earn the fee of a certificate; it can be used once.
    """
    seats: uint256 = self.signersOf[digest]
    assert seats != 0 or self.isForfeited[digest], "availability: not certified, or settled before"
    expires: uint256 = convert(certificate.attestation.expiresAt, uint256)
    assert block.timestamp >= expires, "availability: term has not ended"
    assert self.openChallenges[digest] == 0, "availability: a challenge is open"
    self._check_head(certificate.attestation.commitment, certificate.head)
    if seats == 0:
        self.isForfeited[digest] = False
    else:
        self.signersOf[digest] = 0
    return seats


@internal
def _credit(
    epoch: uint256,
    signers: DynArray[uint256, SETTLED_MAX],
    shares: DynArray[uint256, SETTLED_MAX],
    dusts: DynArray[uint256, SETTLED_MAX],
):
    """
    @notice One write per member; what cannot be divided goes to the lowest seat.
    """
    lowest: DynArray[uint256, SETTLED_MAX] = []
    for seats: uint256 in signers:
        lowest.append(seats & (~seats + 1))
    for place: uint256 in range(self.epochs[epoch] >> MEMBERS_SHIFT, bound=MEMBERS_MAX):
        word: uint256 = self.members[epoch][place]
        mine: uint256 = self._seats_in(word)
        amount: uint256 = 0
        for i: uint256 in range(len(signers), bound=SETTLED_MAX):
            amount += self._count_bits(signers[i] & mine) * shares[i]
            if lowest[i] & mine != 0:
                amount += dusts[i]
        if amount > 0:
            self.earnedOf[self._address_in(word)] += amount


@internal
@pure
def _count_bits(bits: uint256) -> uint256:
    """
    @notice Sums of pairs, of fours, of eights in place, then all bytes by one product (Hacker's Delight, 5-1).
    """
    if bits == max_value(uint256):
        # 256 does not fit into the product's byte.
        return 256
    sums: uint256 = bits - ((bits >> 1) & (max_value(uint256) // 3))
    sums = (sums & (max_value(uint256) // 5)) + ((sums >> 2) & (max_value(uint256) // 5))
    sums = (sums + (sums >> 4)) & (max_value(uint256) // 17)
    return unsafe_mul(sums, max_value(uint256) // 255) >> 248


@internal
@view
def _fee(attestation: protocol.RowAttestation, head: Head) -> uint256:
    return self._fee_of(
        convert(head.length, uint256), convert(attestation.expiresAt - attestation.beginsAt, uint256)
    )


@internal
@view
def _fee_of(length: uint256, term: uint256) -> uint256:
    row_bytes: uint256 = rowtree.leaves_per_row(length, self._data_rows()) * rowtree.LEAF_BYTES
    held: uint256 = self.seatCount * row_bytes * term * self.feePerGibDay
    return self.feeBase + (held + GIB_DAY - 1) // GIB_DAY


@internal
def _take(amount: uint256):
    assert extcall Token(self.token).transferFrom(msg.sender, self, amount), "availability: transfer failed"


@internal
def _pay(to: address, amount: uint256):
    assert extcall Token(self.token).transfer(to, amount), "availability: transfer failed"


@internal
def _burn(amount: uint256):
    if amount > 0:
        extcall Token(self.token).burn(amount)
