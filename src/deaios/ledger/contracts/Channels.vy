#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Channels: one-way payment channels with cumulative vouchers
@notice The functions, types and events of x402 `batch-settlement`, for one token, with signatures of keys only
    (no ERC-1271) and deposits by EIP-3009 through this contract itself.
    Money held = sum over channels of (balance - totalClaimed) + sum over receivers of (totalClaimed - totalSettled).
    A receiver may pledge what it earns: until the debt is repaid, settling pays its creditor nine tenths. The tenth
    stays the receiver's, because whoever earns has to pay for publishing its receipts.
    Source: x402-foundation/x402, contracts/evm/src/x402BatchSettlement.sol.
"""
import signatures


interface Token:
    def balanceOf(owner: address) -> uint256: view
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def receiveWithAuthorization(
        owner: address,
        to: address,
        amount: uint256,
        validAfter: uint256,
        validBefore: uint256,
        nonce: bytes32,
        v: uint8,
        r: bytes32,
        s: bytes32,
    ): nonpayable


struct ChannelConfig:
    payer: address
    payerAuthorizer: address
    receiver: address
    receiverAuthorizer: address
    token: address
    withdrawDelay: uint40
    salt: bytes32


struct Voucher:
    channel: ChannelConfig
    maxClaimableAmount: uint128


struct VoucherClaim:
    voucher: Voucher
    signature: Bytes[65]
    totalClaimed: uint128


struct Channel:
    balance: uint128
    totalClaimed: uint128


struct Withdrawal:
    amount: uint128
    initiatedAt: uint40


struct Receiver:
    totalClaimed: uint128
    totalSettled: uint128


struct Parties:
    payer: address
    payerAuthorizer: address
    receiver: address


struct Debt:
    creditor: address
    left: uint128


event ChannelCreated:
    channelId: indexed(bytes32)
    config: ChannelConfig


event ChannelClosed:
    channelId: indexed(bytes32)
    config: ChannelConfig


event Deposited:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128
    newBalance: uint128


event Claimed:
    channelId: indexed(bytes32)
    sender: indexed(address)
    claimAmount: uint128
    newTotalClaimed: uint128


event Settled:
    receiver: indexed(address)
    token: indexed(address)
    sender: indexed(address)
    amount: uint128


event Refunded:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128


event WithdrawInitiated:
    channelId: indexed(bytes32)
    amount: uint128
    finalizeAfter: uint40


event WithdrawFinalized:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128


event Pledged:
    receiver: indexed(address)
    creditor: indexed(address)
    amount: uint128


event Repaid:
    receiver: indexed(address)
    creditor: indexed(address)
    amount: uint128
    left: uint128


CLAIMS_MAX: constant(uint256) = 100
COLLECTOR_DATA_MAX: constant(uint256) = 288
# Of what a receiver in debt is paid, the part that it keeps.
KEPT_DIVISOR: constant(uint128) = 10

CONFIG_TYPE: constant(bytes32) = keccak256(
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND_TYPE: constant(bytes32) = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
ENTRY_TYPE: constant(bytes32) = keccak256(
    "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
PLEDGE_TYPE: constant(bytes32) = keccak256(
    "Pledge(address receiver,address lender,address creditor,uint128 amount,bytes32 terms,uint256 nonce,uint256 deadline)"
)
BATCH_TYPE: constant(bytes32) = keccak256(
    "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)

token: public(address)
withdrawDelayMin: public(uint256)
withdrawDelayMax: public(uint256)

states: HashMap[bytes32, Channel]
withdrawals: HashMap[bytes32, Withdrawal]
earnings: HashMap[address, Receiver]
parties: HashMap[bytes32, Parties]
refundNonce: public(HashMap[bytes32, uint256])
debts: HashMap[address, Debt]
pledgeNonce: public(HashMap[address, uint256])


@deploy
def __init__(token: address, withdrawDelayMin: uint256, withdrawDelayMax: uint256):
    assert token != empty(address), "channels: token is zero"
    assert withdrawDelayMin <= withdrawDelayMax, "channels: delay bounds are out of order"
    assert withdrawDelayMax < 2**32, "channels: delay bound is too large"
    self.token = token
    self.withdrawDelayMin = withdrawDelayMin
    self.withdrawDelayMax = withdrawDelayMax


@external
def deposit(config: ChannelConfig, amount: uint128, collector: address, collectorData: Bytes[COLLECTOR_DATA_MAX]):
    """
    @notice Put the payer's money into a channel by its EIP-3009 authorization; anyone may submit it.
    @param collector This contract's address: it collects itself.
    @param collectorData abi.encode(validAfter, validBefore, salt, signature).
    """
    assert config.payer != empty(address), "channels: payer is zero"
    assert config.receiver != empty(address), "channels: receiver is zero"
    assert config.receiverAuthorizer != empty(address), "channels: receiver's authorizer is zero"
    assert config.token == self.token, "channels: another token"
    delay: uint256 = convert(config.withdrawDelay, uint256)
    assert delay >= self.withdrawDelayMin and delay <= self.withdrawDelayMax, "channels: withdraw delay out of range"
    assert amount > 0, "channels: deposit is zero"
    assert collector == self, "channels: collector is not this contract"
    id: bytes32 = self._channel_id(config)
    channel: Channel = self.states[id]
    channel.balance += amount
    self.states[id].balance = channel.balance
    if self.parties[id].payer == empty(address):
        self.parties[id] = Parties(
            payer=config.payer, payerAuthorizer=config.payerAuthorizer, receiver=config.receiver
        )
    if channel.balance == amount and channel.totalClaimed == 0:
        log ChannelCreated(channelId=id, config=config)
    log Deposited(channelId=id, sender=msg.sender, amount=amount, newBalance=channel.balance)
    self._collect(config.payer, convert(amount, uint256), id, collectorData)


@external
def claim(voucherClaims: DynArray[VoucherClaim, CLAIMS_MAX]):
    """
    @notice Record what vouchers allow; the caller is each channel's receiver or its authorizer.
    """
    assert len(voucherClaims) > 0, "channels: no claims"
    for row: VoucherClaim in voucherClaims:
        self._check_receiver_side(row.voucher.channel)
        self._claim(row)


@external
def claimWithSignature(voucherClaims: DynArray[VoucherClaim, CLAIMS_MAX], authorizerSignature: Bytes[65]):
    """
    @notice The same for anyone who has the common receiver authorizer's signature over the batch.
    """
    assert len(voucherClaims) > 0, "channels: no claims"
    authorizer: address = voucherClaims[0].voucher.channel.receiverAuthorizer
    assert self._signed_by(authorizer, self._batch_digest(voucherClaims), authorizerSignature), "channels: signature"
    for row: VoucherClaim in voucherClaims:
        assert row.voucher.channel.receiverAuthorizer == authorizer, "channels: another authorizer"
        self._claim(row)


@external
def settle(receiver: address, token: address):
    """
    @notice Pay a receiver what it has claimed, while it is in debt mostly its creditor; anyone may ask for it.
    """
    assert token == self.token, "channels: another token"
    earned: Receiver = self.earnings[receiver]
    amount: uint128 = earned.totalClaimed - earned.totalSettled
    if amount == 0:
        return
    self.earnings[receiver].totalSettled = earned.totalClaimed
    log Settled(receiver=receiver, token=token, sender=msg.sender, amount=amount)
    debt: Debt = self.debts[receiver]
    repaid: uint128 = min(amount - amount // KEPT_DIVISOR, debt.left)
    if repaid > 0:
        self.debts[receiver].left = debt.left - repaid
        log Repaid(receiver=receiver, creditor=debt.creditor, amount=repaid, left=debt.left - repaid)
        self._pay(debt.creditor, repaid)
    if amount > repaid:
        self._pay(receiver, amount - repaid)


@external
def pledge(
    receiver: address, creditor: address, amount: uint128, terms: bytes32, deadline: uint256, signature: Bytes[65]
):
    """
    @notice Bind what a receiver earns from now on to a creditor, until so much is repaid. The receiver signed it for
        the caller, the lender, who answers for what `terms` stand for. One debt at a time; nobody can lift it but by
        repaying it.
    """
    assert creditor != empty(address), "channels: creditor is zero"
    assert amount > 0, "channels: pledge is zero"
    assert self.debts[receiver].left == 0, "channels: receiver is in debt"
    assert block.timestamp <= deadline, "channels: pledge has expired"
    nonce: uint256 = self.pledgeNonce[receiver]
    self.pledgeNonce[receiver] = nonce + 1
    struct_hash: bytes32 = keccak256(
        abi_encode(PLEDGE_TYPE, receiver, msg.sender, creditor, amount, terms, nonce, deadline)
    )
    digest: bytes32 = signatures.typed_data(self._separator(), struct_hash)
    assert self._signed_by(receiver, digest, signature), "channels: pledge's signature"
    self.debts[receiver] = Debt(creditor=creditor, left=amount)
    log Pledged(receiver=receiver, creditor=creditor, amount=amount)


@external
def initiateWithdraw(config: ChannelConfig, amount: uint128):
    """
    @notice Start the payer's timed withdrawal; claims made until it is finalized go first.
    """
    self._check_payer_side(config)
    assert amount > 0, "channels: nothing to withdraw"
    id: bytes32 = self._channel_id(config)
    assert self.withdrawals[id].initiatedAt == 0, "channels: a withdrawal is pending"
    channel: Channel = self.states[id]
    assert amount <= channel.balance - channel.totalClaimed, "channels: withdrawal exceeds what is unclaimed"
    started_at: uint40 = convert(block.timestamp, uint40)
    self.withdrawals[id] = Withdrawal(amount=amount, initiatedAt=started_at)
    log WithdrawInitiated(channelId=id, amount=amount, finalizeAfter=started_at + config.withdrawDelay)


@external
def finalizeWithdraw(config: ChannelConfig):
    """
    @notice Pay the pending withdrawal, at most what is unclaimed now, after the channel's delay.
    """
    self._check_payer_side(config)
    id: bytes32 = self._channel_id(config)
    pending: Withdrawal = self.withdrawals[id]
    assert pending.initiatedAt != 0, "channels: no withdrawal is pending"
    ready_at: uint256 = convert(pending.initiatedAt, uint256) + convert(config.withdrawDelay, uint256)
    assert block.timestamp >= ready_at, "channels: withdraw delay has not passed"
    channel: Channel = self.states[id]
    amount: uint128 = min(pending.amount, channel.balance - channel.totalClaimed)
    self.withdrawals[id] = empty(Withdrawal)
    channel.balance -= amount
    self.states[id].balance = channel.balance
    log WithdrawFinalized(channelId=id, sender=msg.sender, amount=amount)
    if channel.balance == 0 and channel.totalClaimed == 0:
        log ChannelClosed(channelId=id, config=config)
    if amount > 0:
        self._pay(config.payer, amount)


@external
def refund(config: ChannelConfig, amount: uint128):
    """
    @notice The receiver's side gives unclaimed money back to the payer, at most what is unclaimed.
    """
    self._check_receiver_side(config)
    self._refund(config, amount)


@external
def refundWithSignature(
    config: ChannelConfig, amount: uint128, nonce: uint256, receiverAuthorizerSignature: Bytes[65]
):
    """
    @notice The same for anyone who has the receiver authorizer's signature; every refund uses up one nonce.
    """
    id: bytes32 = self._channel_id(config)
    assert nonce == self.refundNonce[id], "channels: refund nonce"
    digest: bytes32 = self._refund_digest(id, nonce, amount)
    assert self._signed_by(config.receiverAuthorizer, digest, receiverAuthorizerSignature), "channels: signature"
    self._refund(config, amount)


@external
@view
def MIN_WITHDRAW_DELAY() -> uint40:
    """
    @notice The shortest withdraw delay, under the name that x402 gives it.
    """
    return convert(self.withdrawDelayMin, uint40)


@external
@view
def MAX_WITHDRAW_DELAY() -> uint40:
    """
    @notice The longest withdraw delay, under the name that x402 gives it.
    """
    return convert(self.withdrawDelayMax, uint40)


@external
@view
def channels(channelId: bytes32) -> (uint128, uint128):
    """
    @notice Balance and total claimed of a channel.
    """
    channel: Channel = self.states[channelId]
    return channel.balance, channel.totalClaimed


@external
@view
def pendingWithdrawals(channelId: bytes32) -> (uint128, uint40):
    """
    @notice Amount and start of a pending withdrawal.
    """
    pending: Withdrawal = self.withdrawals[channelId]
    return pending.amount, pending.initiatedAt


@external
@view
def receivers(receiver: address, token: address) -> (uint128, uint128):
    """
    @notice Total claimed and total settled of a receiver.
    """
    if token != self.token:
        return 0, 0
    earned: Receiver = self.earnings[receiver]
    return earned.totalClaimed, earned.totalSettled


@external
@view
def debtOf(receiver: address) -> (address, uint128):
    """
    @notice Whom a receiver pledged its earnings to last, and what of the debt is left.
    """
    return self.debts[receiver].creditor, self.debts[receiver].left


@external
@view
def partiesOf(channelId: bytes32) -> (address, address, address):
    """
    @notice Payer, payer's authorizer and receiver of a channel that ever held money; zeros otherwise.
    """
    found: Parties = self.parties[channelId]
    return found.payer, found.payerAuthorizer, found.receiver


@external
@view
def getChannelId(config: ChannelConfig) -> bytes32:
    """
    @notice The channel's id: the typed-data digest of its terms.
    """
    return self._channel_id(config)


@external
@view
def getVoucherDigest(channelId: bytes32, maxClaimableAmount: uint128) -> bytes32:
    """
    @notice What the payer signs.
    """
    return self._voucher_digest(channelId, maxClaimableAmount)


@external
@view
def getRefundDigest(channelId: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    """
    @notice What the receiver's authorizer signs for a refund.
    """
    return self._refund_digest(channelId, nonce, amount)


@external
@view
def getClaimBatchDigest(voucherClaims: DynArray[VoucherClaim, CLAIMS_MAX]) -> bytes32:
    """
    @notice What the receiver's authorizer signs for a batch of claims.
    """
    return self._batch_digest(voucherClaims)


@internal
def _claim(row: VoucherClaim):
    config: ChannelConfig = row.voucher.channel
    id: bytes32 = self._channel_id(config)
    channel: Channel = self.states[id]
    if row.totalClaimed <= channel.totalClaimed:
        return
    assert row.totalClaimed <= row.voucher.maxClaimableAmount, "channels: claim exceeds the voucher"
    assert row.totalClaimed <= channel.balance, "channels: claim exceeds the balance"
    signer: address = config.payerAuthorizer
    if signer == empty(address):
        signer = config.payer
    digest: bytes32 = self._voucher_digest(id, row.voucher.maxClaimableAmount)
    assert self._signed_by(signer, digest, row.signature), "channels: voucher's signature"
    amount: uint128 = row.totalClaimed - channel.totalClaimed
    self.states[id].totalClaimed = row.totalClaimed
    self.earnings[config.receiver].totalClaimed += amount
    log Claimed(channelId=id, sender=msg.sender, claimAmount=amount, newTotalClaimed=row.totalClaimed)


@internal
def _refund(config: ChannelConfig, amount: uint128):
    assert amount > 0, "channels: refund is zero"
    id: bytes32 = self._channel_id(config)
    self.refundNonce[id] += 1
    channel: Channel = self.states[id]
    refunded: uint128 = min(amount, channel.balance - channel.totalClaimed)
    if refunded == 0:
        return
    channel.balance -= refunded
    self.states[id].balance = channel.balance
    pending: Withdrawal = self.withdrawals[id]
    if pending.initiatedAt != 0:
        if refunded >= pending.amount:
            self.withdrawals[id] = empty(Withdrawal)
        else:
            self.withdrawals[id].amount = pending.amount - refunded
    log Refunded(channelId=id, sender=msg.sender, amount=refunded)
    if channel.balance == 0 and channel.totalClaimed == 0:
        log ChannelClosed(channelId=id, config=config)
    self._pay(config.payer, refunded)


@internal
def _collect(payer: address, amount: uint256, id: bytes32, data: Bytes[COLLECTOR_DATA_MAX]):
    valid_after: uint256 = 0
    valid_before: uint256 = 0
    salt: uint256 = 0
    signature: Bytes[65] = b""
    valid_after, valid_before, salt, signature = abi_decode(data, (uint256, uint256, uint256, Bytes[65]))
    assert len(signature) == 65, "channels: deposit signature is not 65 bytes"
    held: uint256 = staticcall Token(self.token).balanceOf(self)
    extcall Token(self.token).receiveWithAuthorization(
        payer,
        self,
        amount,
        valid_after,
        valid_before,
        keccak256(abi_encode(id, salt)),
        convert(slice(signature, 64, 1), uint8),
        convert(slice(signature, 0, 32), bytes32),
        convert(slice(signature, 32, 32), bytes32),
    )
    assert staticcall Token(self.token).balanceOf(self) == held + amount, "channels: deposit did not arrive"


@internal
def _pay(to: address, amount: uint128):
    assert extcall Token(self.token).transfer(to, convert(amount, uint256)), "channels: transfer failed"


@internal
@view
def _check_payer_side(config: ChannelConfig):
    is_payer: bool = msg.sender == config.payer or msg.sender == config.payerAuthorizer
    assert is_payer, "channels: caller is not on the payer's side"


@internal
@view
def _check_receiver_side(config: ChannelConfig):
    is_receiver: bool = msg.sender == config.receiver or msg.sender == config.receiverAuthorizer
    assert is_receiver, "channels: caller is not on the receiver's side"


@internal
@pure
def _signed_by(signer: address, digest: bytes32, signature: Bytes[65]) -> bool:
    return signer != empty(address) and signatures.recover(digest, signature) == signer


@internal
@view
def _separator() -> bytes32:
    return signatures.separator(keccak256("x402 Batch Settlement"), keccak256("1"), self)


@internal
@view
def _channel_id(config: ChannelConfig) -> bytes32:
    return signatures.typed_data(self._separator(), keccak256(abi_encode(CONFIG_TYPE, config)))


@internal
@view
def _voucher_digest(id: bytes32, maximum: uint128) -> bytes32:
    return signatures.typed_data(self._separator(), keccak256(abi_encode(VOUCHER_TYPE, id, maximum)))


@internal
@view
def _refund_digest(id: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    return signatures.typed_data(self._separator(), keccak256(abi_encode(REFUND_TYPE, id, nonce, amount)))


@internal
@view
def _batch_digest(rows: DynArray[VoucherClaim, CLAIMS_MAX]) -> bytes32:
    entries: DynArray[bytes32, CLAIMS_MAX] = []
    for row: VoucherClaim in rows:
        id: bytes32 = self._channel_id(row.voucher.channel)
        entries.append(keccak256(abi_encode(ENTRY_TYPE, id, row.voucher.maxClaimableAmount, row.totalClaimed)))
    # abi.encode of a list is offset, count, items; EIP-712 hashes the items only.
    encoded: Bytes[CLAIMS_MAX * 32 + 64] = abi_encode(entries)
    items: bytes32 = keccak256(slice(encoded, 64, len(entries) * 32))
    return signatures.typed_data(self._separator(), keccak256(abi_encode(BATCH_TYPE, items)))
