#pragma version 0.4.3
"""
@title What buyers, providers, jurors and holders of rows sign, as deaios.ledger.structs has it
@notice A digest is the EIP-712 struct hash; what is signed is that digest under the domain of the Disputes contract, a
    row attestation under the domain of DataAvailability.
"""
import signatures


struct Request:
    askDigest: bytes32
    provider: address
    offerDigest: bytes32
    channelId: bytes32
    maxFee: uint128
    anchorBlockHash: bytes32
    deadlineBlock: uint64


struct Receipt:
    requestDigest: bytes32
    counter: uint64
    prevReceipt: bytes32
    outputCommitment: bytes32
    promptTokens: uint32
    cachedTokens: uint32
    completionTokens: uint32
    finishReason: uint8
    stopIndex: uint32
    state: uint8
    level: uint8
    engineProfile: bytes32
    fingerprintRoot: bytes32
    fee: uint128
    channelId: bytes32
    chargedCumulative: uint128
    batchDeadlineBlock: uint64
    startedAtMs: uint64
    firstTokenAtMs: uint64
    finishedAtMs: uint64


struct Offer:
    provider: address
    modelRecordId: bytes32
    engineProfile: bytes32
    level: uint8
    inputPrice: uint128
    outputPrice: uint128
    contextTokens: uint32
    streamsMax: uint32
    withdrawDelayMin: uint64
    # keccak256 of the URL: what EIP-712 puts in its place, so that an offer has one length whatever it is.
    urlHash: bytes32
    validUntil: uint64


struct RowAttestation:
    commitment: bytes32
    epoch: uint64
    beginsAt: uint64
    expiresAt: uint64


REQUEST_TYPE: constant(bytes32) = keccak256(
    "Request(bytes32 askDigest,address provider,bytes32 offerDigest,bytes32 channelId,uint128 maxFee,bytes32 anchorBlockHash,uint64 deadlineBlock)"
)
RECEIPT_TYPE: constant(bytes32) = keccak256(
    "Receipt(bytes32 requestDigest,uint64 counter,bytes32 prevReceipt,bytes32 outputCommitment,uint32 promptTokens,uint32 cachedTokens,uint32 completionTokens,uint8 finishReason,uint32 stopIndex,uint8 state,uint8 level,bytes32 engineProfile,bytes32 fingerprintRoot,uint128 fee,bytes32 channelId,uint128 chargedCumulative,uint64 batchDeadlineBlock,uint64 startedAtMs,uint64 firstTokenAtMs,uint64 finishedAtMs)"
)
OFFER_TYPE: constant(bytes32) = keccak256(
    "Offer(address provider,bytes32 modelRecordId,bytes32 engineProfile,uint8 level,uint128 inputPrice,uint128 outputPrice,uint32 contextTokens,uint32 streamsMax,uint64 withdrawDelayMin,string url,uint64 validUntil)"
)
VERDICT_TYPE: constant(bytes32) = keccak256(
    "Verdict(uint256 disputeId,address juror,uint8 judgement,bytes32 evidenceRoot,bytes32 salt)"
)
ROW_ATTESTATION_TYPE: constant(bytes32) = keccak256(
    "RowAttestation(bytes32 commitment,uint64 epoch,uint64 beginsAt,uint64 expiresAt)"
)


@internal
@pure
def hash_request(request: Request) -> bytes32:
    """
    @notice The request's digest.
    """
    return keccak256(abi_encode(REQUEST_TYPE, request))


@internal
@pure
def hash_receipt(receipt: Receipt) -> bytes32:
    """
    @notice The receipt's digest.
    """
    return keccak256(abi_encode(RECEIPT_TYPE, receipt))


@internal
@pure
def hash_offer(offer: Offer) -> bytes32:
    """
    @notice The offer's digest.
    """
    return keccak256(abi_encode(OFFER_TYPE, offer))


@internal
@pure
def hash_verdict(id: uint256, juror: address, judgement: uint8, evidence_root: bytes32, salt: bytes32) -> bytes32:
    """
    @notice The verdict's digest: what a juror commits to.
    """
    return keccak256(abi_encode(VERDICT_TYPE, id, juror, judgement, evidence_root, salt))


@internal
@pure
def hash_row_attestation(attestation: RowAttestation) -> bytes32:
    """
    @notice The attestation's digest.
    """
    return keccak256(abi_encode(ROW_ATTESTATION_TYPE, attestation))


@internal
@view
def separator(disputes: address) -> bytes32:
    """
    @notice The domain separator of protocol signatures.
    """
    return signatures.separator(keccak256("DeAIOS"), keccak256("1"), disputes)


@internal
@view
def recover(disputes: address, digest: bytes32, signature: Bytes[65]) -> address:
    """
    @notice Who signed a digest; zero when nobody did.
    """
    return signatures.recover(signatures.typed_data(self.separator(disputes), digest), signature)
