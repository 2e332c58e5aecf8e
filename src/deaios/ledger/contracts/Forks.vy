#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Forks: slashing by signatures alone
@notice Two receipts with one counter; two for one request; a batch leaf that is not the signed receipt; a fee that is
    not the offer's price of the receipt's own counts, or above what the request allows; a total claimed on a channel
    above what any shown receipt charges. No jury: anyone can check such a proof, and it is always the
    provider's own key that made it.
    Money held = sum over open challenges of claimBond.
"""
import protocol


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable


interface Staking:
    def token() -> address: view
    def unbondingSeconds() -> uint256: view
    def isJudge(service: bytes32, judge: address) -> bool: view
    def sliceOf(service: bytes32, operator: address) -> uint256: view
    def slash(service: bytes32, operator: address, amount: uint256) -> uint256: nonpayable


interface Receipts:
    def verifyReceipt(
        provider: address, index: uint256, counter: uint64, receiptDigest: bytes32, path: DynArray[bytes32, DEPTH_MAX]
    ) -> bool: view


interface Channels:
    def getChannelId(config: ChannelConfig) -> bytes32: view
    def channels(channelId: bytes32) -> (uint128, uint128): view


struct ChannelConfig:
    payer: address
    payerAuthorizer: address
    receiver: address
    receiverAuthorizer: address
    token: address
    withdrawDelay: uint40
    salt: bytes32


struct Challenge:
    challenger: address
    provider: address
    total: uint256
    deadline: uint256
    bond: uint256


event Proven:
    provider: indexed(address)
    kind: indexed(uint8)
    key: bytes32
    prover: indexed(address)
    slashed: uint256


event ClaimChallenged:
    channelId: indexed(bytes32)
    provider: indexed(address)
    challenger: indexed(address)
    total: uint256
    deadline: uint256


event ClaimShown:
    channelId: indexed(bytes32)
    chargedCumulative: uint256


event ClaimSlashed:
    channelId: indexed(bytes32)
    provider: indexed(address)
    slashed: uint256


COMPUTE: constant(bytes32) = keccak256("compute")
DEPTH_MAX: constant(uint256) = 16
WINDOW_SECONDS_MAX: constant(uint256) = 30 * 86400
# One tenth to whoever proved it; the rest is burned.
BOUNTY_DIVISOR: constant(uint256) = 10

KIND_COUNTER: constant(uint8) = 1
KIND_REQUEST: constant(uint8) = 2
KIND_BATCH: constant(uint8) = 3
KIND_FEE: constant(uint8) = 4

STATE_SERVED: constant(uint8) = 0
STATE_CANCELLED: constant(uint8) = 4
# Prices are smallest units per so many tokens.
MILLION: constant(uint256) = 1_000_000

token: public(address)
staking: public(address)
receipts: public(address)
channels: public(address)
disputes: public(address)
claimSeconds: public(uint256)
claimBond: public(uint256)
penalty: public(uint256)

proven: public(HashMap[bytes32, bool])
shownUpTo: public(HashMap[bytes32, uint256])
challenges: HashMap[bytes32, Challenge]
openCount: uint256
latestDeadline: uint256


@deploy
def __init__(
    token: address,
    staking: address,
    receipts: address,
    channels: address,
    disputes: address,
    claimSeconds: uint256,
    claimBond: uint256,
    penalty: uint256,
):
    assert staticcall Staking(staking).token() == token, "forks: staking holds another token"
    assert staticcall Staking(staking).isJudge(COMPUTE, self), "forks: staking does not know this judge"
    assert receipts != empty(address) and channels != empty(address), "forks: an address is zero"
    assert disputes != empty(address), "forks: an address is zero"
    assert claimSeconds > 0 and claimSeconds <= WINDOW_SECONDS_MAX, "forks: claim window out of range"
    assert claimSeconds < staticcall Staking(staking).unbondingSeconds(), "forks: stake could leave before an answer"
    assert claimBond > 0 and penalty > 0, "forks: an amount is zero"
    self.token = token
    self.staking = staking
    self.receipts = receipts
    self.channels = channels
    self.disputes = disputes
    self.claimSeconds = claimSeconds
    self.claimBond = claimBond
    self.penalty = penalty


@external
def proveDoubleCounter(
    a: protocol.Receipt, signatureA: Bytes[65], b: protocol.Receipt, signatureB: Bytes[65]
) -> uint256:
    """
    @notice Prove that one key signed two receipts with one counter.
    @return What was slashed.
    """
    provider: address = self._signer_of_both(a, signatureA, b, signatureB)
    assert a.counter == b.counter, "forks: counters differ"
    return self._punish(provider, KIND_COUNTER, convert(a.counter, bytes32))


@external
def proveDoubleRequest(
    a: protocol.Receipt, signatureA: Bytes[65], b: protocol.Receipt, signatureB: Bytes[65]
) -> uint256:
    """
    @notice Prove that one key signed two receipts for one request.
    @return What was slashed.
    """
    provider: address = self._signer_of_both(a, signatureA, b, signatureB)
    assert a.requestDigest == b.requestDigest, "forks: requests differ"
    return self._punish(provider, KIND_REQUEST, a.requestDigest)


@external
def proveBatchMismatch(
    receipt: protocol.Receipt,
    signature: Bytes[65],
    batchIndex: uint256,
    leafDigest: bytes32,
    path: DynArray[bytes32, DEPTH_MAX],
) -> uint256:
    """
    @notice Prove that a published batch has another leaf at the counter of a signed receipt.
    @return What was slashed.
    """
    digest: bytes32 = protocol.hash_receipt(receipt)
    provider: address = protocol.recover(self.disputes, digest, signature)
    assert provider != empty(address), "forks: signature recovers to no key"
    assert leafDigest != digest, "forks: the batch holds this receipt"
    is_leaf: bool = staticcall Receipts(self.receipts).verifyReceipt(
        provider, batchIndex, receipt.counter, leafDigest, path
    )
    assert is_leaf, "forks: not a leaf of this batch"
    # The same key as for two receipts with one counter: one lie about a counter, one penalty.
    return self._punish(provider, KIND_BATCH, convert(receipt.counter, bytes32))


@external
def proveWrongFee(
    receipt: protocol.Receipt, signature: Bytes[65], request: protocol.Request, offer: protocol.Offer
) -> uint256:
    """
    @notice Prove that a provider signed a fee that its offer does not give for the receipt's own counts, or that exceeds
        the request's maximum. Its one signature binds all three: a receipt names its request, a request its offer.
    @return What was slashed.
    """
    assert receipt.requestDigest == protocol.hash_request(request), "forks: receipt is for another request"
    assert request.offerDigest == protocol.hash_offer(offer), "forks: request refers to another offer"
    provider: address = protocol.recover(self.disputes, protocol.hash_receipt(receipt), signature)
    assert provider != empty(address), "forks: signature recovers to no key"
    assert provider == request.provider and provider == offer.provider, "forks: not the provider's receipt and offer"
    fee: uint256 = convert(receipt.fee, uint256)
    is_wrong: bool = fee != self._fee_due(receipt, offer) or receipt.fee > request.maxFee
    assert is_wrong, "forks: fee is the price of what was delivered"
    return self._punish(provider, KIND_FEE, receipt.requestDigest)


@external
def challengeClaim(config: ChannelConfig):
    """
    @notice Ask a receiver for a receipt that charges what it has claimed; the caller approved the bond.
    """
    id: bytes32 = staticcall Channels(self.channels).getChannelId(config)
    balance: uint128 = 0
    claimed: uint128 = 0
    balance, claimed = staticcall Channels(self.channels).channels(id)
    total: uint256 = convert(claimed, uint256)
    assert total > self.shownUpTo[id], "forks: nothing is claimed beyond what was shown"
    assert self.challenges[id].deadline == 0, "forks: a challenge is open"
    at_stake: uint256 = staticcall Staking(self.staking).sliceOf(COMPUTE, config.receiver)
    assert at_stake > 0, "forks: receiver has no stake in compute"
    deadline: uint256 = block.timestamp + self.claimSeconds
    self.challenges[id] = Challenge(
        challenger=msg.sender, provider=config.receiver, total=total, deadline=deadline, bond=self.claimBond
    )
    self.openCount += 1
    self.latestDeadline = max(self.latestDeadline, deadline)
    log ClaimChallenged(
        channelId=id, provider=config.receiver, challenger=msg.sender, total=total, deadline=deadline
    )
    assert extcall Token(self.token).transferFrom(msg.sender, self, self.claimBond), "forks: transfer failed"


@external
def showReceipt(channelId: bytes32, receipt: protocol.Receipt, signature: Bytes[65]):
    """
    @notice Answer a challenge; the bond pays the receiver for its trouble. Possible until somebody finalizes.
    """
    challenge: Challenge = self.challenges[channelId]
    assert challenge.deadline != 0, "forks: no challenge is open"
    assert receipt.channelId == channelId, "forks: receipt names another channel"
    charged: uint256 = convert(receipt.chargedCumulative, uint256)
    assert charged >= challenge.total, "forks: receipt charges less than was claimed"
    signer: address = protocol.recover(self.disputes, protocol.hash_receipt(receipt), signature)
    assert signer == challenge.provider, "forks: receipt is not signed by the receiver"
    self._close(channelId)
    self.shownUpTo[channelId] = charged
    log ClaimShown(channelId=channelId, chargedCumulative=charged)
    self._pay(challenge.provider, challenge.bond)


@external
def finalizeClaim(channelId: bytes32) -> uint256:
    """
    @notice Slash a receiver that did not answer in time; anyone may ask for it.
    @return What was slashed.
    """
    challenge: Challenge = self.challenges[channelId]
    assert challenge.deadline != 0, "forks: no challenge is open"
    assert block.timestamp >= challenge.deadline, "forks: the receiver may still answer"
    self._close(channelId)
    # These claims are paid for: only what is claimed beyond them can be challenged again.
    self.shownUpTo[channelId] = challenge.total
    taken: uint256 = extcall Staking(self.staking).slash(COMPUTE, challenge.provider, self.penalty)
    log ClaimSlashed(channelId=channelId, provider=challenge.provider, slashed=taken)
    bounty: uint256 = taken // BOUNTY_DIVISOR
    self._pay(challenge.challenger, challenge.bond + bounty)
    self._burn(taken - bounty)
    return taken


@external
@view
def challengeOf(channelId: bytes32) -> (address, address, uint256, uint256):
    """
    @notice Challenger, provider, challenged total and deadline of an open challenge; zeros otherwise.
    """
    challenge: Challenge = self.challenges[channelId]
    return challenge.challenger, challenge.provider, challenge.total, challenge.deadline


@external
@view
def deadline() -> uint256:
    """
    @notice The latest deadline of any open challenge; 0 if none is open.
    """
    return self.latestDeadline if self.openCount > 0 else 0


@internal
@view
def _signer_of_both(
    a: protocol.Receipt, signature_a: Bytes[65], b: protocol.Receipt, signature_b: Bytes[65]
) -> address:
    digest_a: bytes32 = protocol.hash_receipt(a)
    digest_b: bytes32 = protocol.hash_receipt(b)
    assert digest_a != digest_b, "forks: one and the same receipt"
    signer: address = protocol.recover(self.disputes, digest_a, signature_a)
    assert signer != empty(address), "forks: signature recovers to no key"
    assert protocol.recover(self.disputes, digest_b, signature_b) == signer, "forks: signed by different keys"
    return signer


@internal
@pure
def _fee_due(receipt: protocol.Receipt, offer: protocol.Offer) -> uint256:
    """
    @notice The only fee that a receipt of its state may carry, rounded up once.
    """
    is_charged: bool = receipt.state == STATE_SERVED
    if receipt.state == STATE_CANCELLED:
        is_charged = receipt.completionTokens > 0
    if not is_charged:
        return 0
    read: uint256 = convert(receipt.promptTokens, uint256) * convert(offer.inputPrice, uint256)
    sampled: uint256 = convert(receipt.completionTokens, uint256) * convert(offer.outputPrice, uint256)
    return (read + sampled + MILLION - 1) // MILLION


@internal
def _punish(provider: address, kind: uint8, subject: bytes32) -> uint256:
    lie: uint8 = KIND_COUNTER if kind == KIND_BATCH else kind
    key: bytes32 = keccak256(abi_encode(provider, lie, subject))
    assert not self.proven[key], "forks: proven before"
    self.proven[key] = True
    taken: uint256 = extcall Staking(self.staking).slash(COMPUTE, provider, self.penalty)
    assert taken > 0, "forks: provider has no stake in compute"
    bounty: uint256 = taken // BOUNTY_DIVISOR
    log Proven(provider=provider, kind=kind, key=key, prover=msg.sender, slashed=taken)
    self._pay(msg.sender, bounty)
    self._burn(taken - bounty)
    return taken


@internal
def _close(id: bytes32):
    self.challenges[id] = empty(Challenge)
    self.openCount -= 1


@internal
def _pay(to: address, amount: uint256):
    if amount > 0:
        assert extcall Token(self.token).transfer(to, amount), "forks: transfer failed"


@internal
def _burn(amount: uint256):
    if amount > 0:
        extcall Token(self.token).burn(amount)
