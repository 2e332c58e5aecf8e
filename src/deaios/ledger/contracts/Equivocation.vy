#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Equivocation: a key that lied on any network is slashed at the root, by a stranger's transaction
@notice Two headers of one height, two checkpoints of one count, or a validator set that is not the root's: what a key
    signed is the whole proof, so nobody relays anything that must be believed. A key pays once and is buried; its
    operator is jailed in `consensus`. Evidence is committed to before it is shown, so that who copies it comes late.
    Nothing is held between calls.
"""
import attestations


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable


interface Staking:
    def token() -> address: view
    def isJudge(service: bytes32, judge: address) -> bool: view
    def capOf(service: bytes32, operator: address) -> uint256: view
    def sliceOf(service: bytes32, operator: address) -> uint256: view
    def slash(service: bytes32, operator: address, amount: uint256) -> uint256: nonpayable
    def jail(service: bytes32, operator: address): nonpayable


interface Networks:
    def equivocation() -> address: view
    def staking() -> address: view
    def domainSeparator() -> bytes32: view
    def assignmentOf(key: address) -> (address, bytes32, uint256, bool): view
    def networkOf(network: bytes32) -> Network: view
    def snapshotOf(network: bytes32, epoch: uint256) -> (uint256, bytes32): view
    def bury(key: address) -> address: nonpayable


struct Network:
    founder: address
    genesisHash: bytes32
    chainId: uint256
    mirror: address
    addedAt: uint256
    retiredAt: uint256
    bond: uint256


event EvidenceCommitted:
    prover: indexed(address)
    commitment: indexed(bytes32)


event Proven:
    network: indexed(bytes32)
    operator: indexed(address)
    prover: indexed(address)
    key: address
    kind: uint8
    paid: uint256


CONSENSUS: constant(bytes32) = keccak256("consensus")
BPS: constant(uint256) = 10000
# One tenth to whoever proved it; the rest is burned.
BOUNTY_DIVISOR: constant(uint256) = 10

KIND_HEADERS: constant(uint8) = 1
KIND_CHECKPOINTS: constant(uint8) = 2
KIND_VALSET: constant(uint8) = 3

token: public(address)
staking: public(address)
networks: public(address)
slashBps: public(uint256)

evidenceBlocks: HashMap[bytes32, uint256]


@deploy
def __init__(token: address, staking: address, networks: address, slashBps: uint256):
    assert staticcall Staking(staking).token() == token, "equivocation: staking holds another token"
    assert staticcall Staking(staking).isJudge(CONSENSUS, self), "equivocation: staking does not know this judge"
    assert staticcall Networks(networks).equivocation() == self, "equivocation: networks do not know this judge"
    assert staticcall Networks(networks).staking() == staking, "equivocation: networks are of another stake"
    assert slashBps > 0 and slashBps <= BPS, "equivocation: share is out of range"
    self.token = token
    self.staking = staking
    self.networks = networks
    self.slashBps = slashBps


@external
def commitEvidence(commitment: bytes32):
    """
    @notice Commit to evidence before showing it: keccak256(abi.encode(sender, digest of the first struct, digest of the
        second or zero, salt)). The first time counts, so that nobody is in the way who copies a commitment.
    """
    if self.evidenceBlocks[commitment] == 0:
        self.evidenceBlocks[commitment] = block.number
    log EvidenceCommitted(prover=msg.sender, commitment=commitment)


@external
def proveHeaders(
    network: bytes32,
    a: attestations.Header,
    signatureA: Bytes[65],
    b: attestations.Header,
    signatureB: Bytes[65],
    salt: bytes32,
) -> uint256:
    """
    @notice Prove that a key of a network signed two headers of one height of its chain.
    @return What was slashed and paid out.
    """
    first: bytes32 = attestations.hash_header(a)
    second: bytes32 = attestations.hash_header(b)
    self._use_evidence(first, second, salt)
    assert a.height == b.height, "equivocation: heights differ"
    home: Network = staticcall Networks(self.networks).networkOf(network)
    ours: bool = a.genesisHash == home.genesisHash and b.genesisHash == home.genesisHash
    assert ours, "equivocation: a header is of another chain"
    separator: bytes32 = attestations.header_separator(home.chainId)
    key: address = self._signer_of_both(separator, first, signatureA, second, signatureB)
    assert self._network_of(key) == network, "equivocation: the key is of another network"
    return self._punish(key, network, KIND_HEADERS)


@external
def proveCheckpoints(
    a: attestations.Checkpoint,
    signatureA: Bytes[65],
    b: attestations.Checkpoint,
    signatureB: Bytes[65],
    salt: bytes32,
) -> uint256:
    """
    @notice Prove that a key signed two checkpoints of one count between two networks, one of them its own.
    @return What was slashed and paid out.
    """
    first: bytes32 = attestations.hash_checkpoint(a)
    second: bytes32 = attestations.hash_checkpoint(b)
    self._use_evidence(first, second, salt)
    assert a.count == b.count, "equivocation: counts differ"
    assert a.source == b.source and a.destination == b.destination, "equivocation: checkpoints of other networks"
    separator: bytes32 = staticcall Networks(self.networks).domainSeparator()
    key: address = self._signer_of_both(separator, first, signatureA, second, signatureB)
    network: bytes32 = self._network_of(key)
    assert network == a.source or network == a.destination, "equivocation: the key is of another network"
    return self._punish(key, network, KIND_CHECKPOINTS)


@external
def proveValset(update: attestations.ValsetUpdate, signature: Bytes[65], salt: bytes32) -> uint256:
    """
    @notice Prove that a key signed a validator set of its network which is not the root's, or of an epoch that the root
        has not begun: one signature is enough, because the truth is here.
    @return What was slashed and paid out.
    """
    digest: bytes32 = attestations.hash_valset_update(update)
    self._use_evidence(digest, empty(bytes32), salt)
    key: address = attestations.recover(staticcall Networks(self.networks).domainSeparator(), digest, signature)
    assert key != empty(address), "equivocation: signature recovers to no key"
    network: bytes32 = self._network_of(key)
    assert network == update.network, "equivocation: the key is of another network"
    begun_at: uint256 = 0
    validators_hash: bytes32 = empty(bytes32)
    begun_at, validators_hash = staticcall Networks(self.networks).snapshotOf(
        network, convert(update.epoch, uint256)
    )
    is_true: bool = begun_at == convert(update.begunAt, uint256) and validators_hash == update.validatorsHash
    assert begun_at == 0 or not is_true, "equivocation: the update is true"
    return self._punish(key, network, KIND_VALSET)


@internal
@view
def _network_of(key: address) -> bytes32:
    operator: address = empty(address)
    network: bytes32 = empty(bytes32)
    left_at: uint256 = 0
    is_buried: bool = False
    operator, network, left_at, is_buried = staticcall Networks(self.networks).assignmentOf(key)
    assert operator != empty(address), "equivocation: nobody's key"
    return network


@internal
@pure
def _signer_of_both(
    separator: bytes32, first: bytes32, signature_a: Bytes[65], second: bytes32, signature_b: Bytes[65]
) -> address:
    assert first != second, "equivocation: one and the same"
    signer: address = attestations.recover(separator, first, signature_a)
    assert signer != empty(address), "equivocation: signature recovers to no key"
    assert attestations.recover(separator, second, signature_b) == signer, "equivocation: signed by different keys"
    return signer


@internal
def _use_evidence(first: bytes32, second: bytes32, salt: bytes32):
    commitment: bytes32 = keccak256(abi_encode(msg.sender, first, second, salt))
    committed: uint256 = self.evidenceBlocks[commitment]
    assert committed != 0, "equivocation: evidence was not committed"
    assert committed < block.number, "equivocation: evidence was committed in this block"


@internal
def _punish(key: address, network: bytes32, kind: uint8) -> uint256:
    # Refuses a key that does not answer any more, so a key pays once.
    operator: address = extcall Networks(self.networks).bury(key)
    at_stake: uint256 = staticcall Staking(self.staking).sliceOf(CONSENSUS, operator)
    paid: uint256 = extcall Staking(self.staking).slash(CONSENSUS, operator, at_stake * self.slashBps // BPS)
    if staticcall Staking(self.staking).capOf(CONSENSUS, operator) > 0:
        extcall Staking(self.staking).jail(CONSENSUS, operator)
    log Proven(network=network, operator=operator, prover=msg.sender, key=key, kind=kind, paid=paid)
    bounty: uint256 = paid // BOUNTY_DIVISOR
    if bounty > 0:
        assert extcall Token(self.token).transfer(msg.sender, bounty), "equivocation: transfer failed"
    if paid > bounty:
        extcall Token(self.token).burn(paid - bounty)
    return paid
