#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title BatchSettlement: x402 `batch-settlement` for any token, at the address that stock x402 clients know
@notice The functions, types, events and order of effects of x402's contract: any token with any collector of deposits,
    signatures of keys and of contracts (ERC-1271), many calls in one. A network's own chain carries it from its first
    block at x402's canonical address; on other chains x402's own contract lies there.
    Unlike there, refusals have texts instead of typed errors, one batch holds at most 100 claims, `multicall` at most 8
    calls, and a signature 256 bytes.
    Money held = sum over channels of (balance - totalClaimed) + sum over receivers of (totalClaimed - totalSettled),
    token by token.
    Source: x402-foundation/x402, contracts/evm/src/x402BatchSettlement.sol.
"""
import signatures


interface Token:
    def balanceOf(owner: address) -> uint256: view
    def transfer(to: address, amount: uint256) -> bool: nonpayable


interface Collector:
    def collect(
        payer: address, token: address, amount: uint256, channelId: bytes32, collectorData: Bytes[COLLECTOR_DATA_MAX]
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
    signature: Bytes[SIGNATURE_MAX]
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


CLAIMS_MAX: constant(uint256) = 100
CALLS_MAX: constant(uint256) = 8
CALL_MAX: constant(uint256) = 16384
RESULT_MAX: constant(uint256) = 96
COLLECTOR_DATA_MAX: constant(uint256) = 1024
SIGNATURE_MAX: constant(uint256) = 256
# What an ERC-1271 wallet answers for a signature that is its own.
WALLET_SIGNED: constant(bytes32) = 0x1626ba7e00000000000000000000000000000000000000000000000000000000

MIN_WITHDRAW_DELAY: public(constant(uint40)) = 900
MAX_WITHDRAW_DELAY: public(constant(uint40)) = 2592000

CONFIG_TYPE: constant(bytes32) = keccak256(
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND_TYPE: constant(bytes32) = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
ENTRY_TYPE: constant(bytes32) = keccak256(
    "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
BATCH_TYPE: constant(bytes32) = keccak256(
    "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)

states: HashMap[bytes32, Channel]
withdrawals: HashMap[bytes32, Withdrawal]
earnings: HashMap[address, HashMap[address, Receiver]]
refundNonce: public(HashMap[bytes32, uint256])


@external
@reentrant
def multicall(data: DynArray[Bytes[CALL_MAX], CALLS_MAX]) -> DynArray[Bytes[RESULT_MAX], CALLS_MAX]:
    """
    @notice Several of these functions in one call, as the same caller: all of them or none. Each locks for itself.
    """
    results: DynArray[Bytes[RESULT_MAX], CALLS_MAX] = []
    for call: Bytes[CALL_MAX] in data:
        results.append(raw_call(self, call, max_outsize=RESULT_MAX, is_delegate_call=True))
    return results


@external
def deposit(config: ChannelConfig, amount: uint128, collector: address, collectorData: Bytes[COLLECTOR_DATA_MAX]):
    """
    @notice Put money into a channel: whatever the collector does, exactly this amount must have come.
    """
    assert config.payer != empty(address), "settlement: payer is zero"
    assert config.receiver != empty(address), "settlement: receiver is zero"
    assert config.receiverAuthorizer != empty(address), "settlement: receiver's authorizer is zero"
    assert config.token != empty(address), "settlement: token is zero"
    delay: uint40 = config.withdrawDelay
    assert delay >= MIN_WITHDRAW_DELAY and delay <= MAX_WITHDRAW_DELAY, "settlement: withdraw delay out of range"
    assert amount > 0, "settlement: deposit is zero"
    assert collector != empty(address), "settlement: collector is zero"
    id: bytes32 = self._channel_id(config)
    channel: Channel = self.states[id]
    channel.balance += amount
    self.states[id].balance = channel.balance
    due: uint256 = convert(amount, uint256)
    held: uint256 = staticcall Token(config.token).balanceOf(self)
    extcall Collector(collector).collect(config.payer, config.token, due, id, collectorData)
    assert staticcall Token(config.token).balanceOf(self) == held + due, "settlement: deposit did not arrive"
    if channel.balance == amount and channel.totalClaimed == 0:
        log ChannelCreated(channelId=id, config=config)
    log Deposited(channelId=id, sender=msg.sender, amount=amount, newBalance=channel.balance)


@external
def claim(voucherClaims: DynArray[VoucherClaim, CLAIMS_MAX]):
    """
    @notice Record what vouchers allow; the caller is each channel's receiver or its authorizer.
    """
    assert len(voucherClaims) > 0, "settlement: no claims"
    for row: VoucherClaim in voucherClaims:
        self._check_receiver_side(row.voucher.channel)
        self._claim(row)


@external
def claimWithSignature(voucherClaims: DynArray[VoucherClaim, CLAIMS_MAX], authorizerSignature: Bytes[SIGNATURE_MAX]):
    """
    @notice The same for anyone who has the common receiver authorizer's signature over the batch.
    """
    assert len(voucherClaims) > 0, "settlement: no claims"
    authorizer: address = voucherClaims[0].voucher.channel.receiverAuthorizer
    assert self._signed_by(authorizer, self._batch_digest(voucherClaims), authorizerSignature), "settlement: signature"
    for row: VoucherClaim in voucherClaims:
        assert row.voucher.channel.receiverAuthorizer == authorizer, "settlement: another authorizer"
        self._claim(row)


@external
def settle(receiver: address, token: address):
    """
    @notice Pay a receiver what it has claimed in one token; anyone may ask for it.
    """
    earned: Receiver = self.earnings[receiver][token]
    amount: uint128 = earned.totalClaimed - earned.totalSettled
    if amount == 0:
        return
    self.earnings[receiver][token].totalSettled = earned.totalClaimed
    self._pay(token, receiver, amount)
    log Settled(receiver=receiver, token=token, sender=msg.sender, amount=amount)


@external
def initiateWithdraw(config: ChannelConfig, amount: uint128):
    """
    @notice Start the payer's timed withdrawal; claims made until it is finalized go first.
    """
    self._check_payer_side(config)
    assert amount > 0, "settlement: nothing to withdraw"
    id: bytes32 = self._channel_id(config)
    assert self.withdrawals[id].initiatedAt == 0, "settlement: a withdrawal is pending"
    channel: Channel = self.states[id]
    assert amount <= channel.balance - channel.totalClaimed, "settlement: withdrawal exceeds what is unclaimed"
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
    assert pending.initiatedAt != 0, "settlement: no withdrawal is pending"
    ready_at: uint256 = convert(pending.initiatedAt, uint256) + convert(config.withdrawDelay, uint256)
    assert block.timestamp >= ready_at, "settlement: withdraw delay has not passed"
    channel: Channel = self.states[id]
    amount: uint128 = min(pending.amount, channel.balance - channel.totalClaimed)
    self.withdrawals[id] = empty(Withdrawal)
    channel.balance -= amount
    self.states[id].balance = channel.balance
    log WithdrawFinalized(channelId=id, sender=msg.sender, amount=amount)
    if channel.balance == 0 and channel.totalClaimed == 0:
        log ChannelClosed(channelId=id, config=config)
    if amount > 0:
        self._pay(config.token, config.payer, amount)


@external
def refund(config: ChannelConfig, amount: uint128):
    """
    @notice The receiver's side gives unclaimed money back to the payer, at most what is unclaimed.
    """
    self._check_receiver_side(config)
    self._refund(config, amount)


@external
def refundWithSignature(
    config: ChannelConfig, amount: uint128, nonce: uint256, receiverAuthorizerSignature: Bytes[SIGNATURE_MAX]
):
    """
    @notice The same for anyone who has the receiver authorizer's signature; every refund uses up one nonce.
    """
    id: bytes32 = self._channel_id(config)
    assert nonce == self.refundNonce[id], "settlement: refund nonce"
    digest: bytes32 = self._refund_digest(id, nonce, amount)
    assert self._signed_by(config.receiverAuthorizer, digest, receiverAuthorizerSignature), "settlement: signature"
    self._refund(config, amount)


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
    @notice Total claimed and total settled of a receiver in one token.
    """
    earned: Receiver = self.earnings[receiver][token]
    return earned.totalClaimed, earned.totalSettled


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
    assert row.totalClaimed <= row.voucher.maxClaimableAmount, "settlement: claim exceeds the voucher"
    assert row.totalClaimed <= channel.balance, "settlement: claim exceeds the balance"
    digest: bytes32 = self._voucher_digest(id, row.voucher.maxClaimableAmount)
    is_signed: bool = False
    if config.payerAuthorizer != empty(address):
        is_signed = self._signed_by_key(config.payerAuthorizer, digest, row.signature)
    else:
        is_signed = self._signed_by(config.payer, digest, row.signature)
    assert is_signed, "settlement: voucher's signature"
    amount: uint128 = row.totalClaimed - channel.totalClaimed
    self.states[id].totalClaimed = row.totalClaimed
    self.earnings[config.receiver][config.token].totalClaimed += amount
    log Claimed(channelId=id, sender=msg.sender, claimAmount=amount, newTotalClaimed=row.totalClaimed)


@internal
def _refund(config: ChannelConfig, amount: uint128):
    assert amount > 0, "settlement: refund is zero"
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
    self._pay(config.token, config.payer, refunded)


@internal
def _pay(token: address, to: address, amount: uint128):
    # Tokens that answer nothing count as having paid, as with SafeERC20; they revert where they do not.
    paid: bool = extcall Token(token).transfer(to, convert(amount, uint256), default_return_value=True)
    assert paid, "settlement: transfer failed"


@internal
@view
def _check_payer_side(config: ChannelConfig):
    is_payer: bool = msg.sender == config.payer or msg.sender == config.payerAuthorizer
    assert is_payer, "settlement: caller is not on the payer's side"


@internal
@view
def _check_receiver_side(config: ChannelConfig):
    is_receiver: bool = msg.sender == config.receiver or msg.sender == config.receiverAuthorizer
    assert is_receiver, "settlement: caller is not on the receiver's side"


@internal
@view
def _signed_by(signer: address, digest: bytes32, signature: Bytes[SIGNATURE_MAX]) -> bool:
    if signer.codesize > 0:
        return self._signed_by_wallet(signer, digest, signature)
    return self._signed_by_key(signer, digest, signature)


@internal
@view
def _signed_by_wallet(signer: address, digest: bytes32, signature: Bytes[SIGNATURE_MAX]) -> bool:
    # A wallet that reverts or answers nothing has not signed.
    ok: bool = False
    answer: Bytes[32] = b""
    ok, answer = raw_call(
        signer,
        abi_encode(digest, signature, method_id=method_id("isValidSignature(bytes32,bytes)")),
        max_outsize=32,
        is_static_call=True,
        revert_on_failure=False,
    )
    return ok and len(answer) == 32 and convert(answer, bytes32) == WALLET_SIGNED


@internal
@pure
def _signed_by_key(signer: address, digest: bytes32, signature: Bytes[SIGNATURE_MAX]) -> bool:
    if signer == empty(address) or len(signature) != 65:
        return False
    return signatures.recover(digest, slice(signature, 0, 65)) == signer


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
