#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Networks: which networks the stake secures, whose keys count on them, and who they are in each epoch
@notice A founder adds a network for a bond; an operator with power in `consensus` joins it with a key of its own, which
    is never used again anywhere. An epoch freezes keys and powers under one hash, which the network's mirror takes over
    from any relayer when its present validators have signed it. A key answers for what it signed until everything
    that a mirror could have believed it for is over, and evidence had its time.
    Money held = sum over networks of bond.
"""
import attestations


interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable


interface Staking:
    def token() -> address: view
    def unbondingSeconds() -> uint256: view
    def minPower(service: bytes32) -> uint256: view
    def power(service: bytes32, operator: address) -> uint256: view


struct Network:
    founder: address
    genesisHash: bytes32
    chainId: uint256
    mirror: address
    addedAt: uint256
    # 0 while it is not being given up.
    retiredAt: uint256
    bond: uint256


struct Snapshot:
    begunAt: uint256
    validatorsHash: bytes32


struct Assignment:
    operator: address
    network: bytes32
    # When the operator left with it; 0 while it is its key.
    leftAt: uint256
    isBuried: bool


event NetworkAdded:
    network: indexed(bytes32)
    founder: indexed(address)
    genesisHash: bytes32
    chainId: uint256
    mirror: address
    services: DynArray[bytes32, SERVICES_MAX]


event NetworkRetired:
    network: indexed(bytes32)
    reclaimableAt: uint256


event BondReturned:
    network: indexed(bytes32)
    founder: indexed(address)
    amount: uint256


event Joined:
    network: indexed(bytes32)
    operator: indexed(address)
    key: indexed(address)


event Left:
    network: indexed(bytes32)
    operator: indexed(address)
    key: indexed(address)


event Buried:
    network: indexed(bytes32)
    operator: indexed(address)
    key: indexed(address)


event EpochBegun:
    network: indexed(bytes32)
    epoch: indexed(uint256)
    begunAt: uint256
    validatorsHash: bytes32
    validators: DynArray[uint256, attestations.VALIDATORS_MAX]


CONSENSUS: constant(bytes32) = keccak256("consensus")
SERVICES_MAX: constant(uint256) = 16
WINDOW_SECONDS_MAX: constant(uint256) = 90 * 86400

token: public(address)
staking: public(address)
equivocation: public(address)
epochSeconds: public(uint256)
trustSeconds: public(uint256)
evidenceSeconds: public(uint256)
bond: public(uint256)

networkCount: public(uint256)
networkAt: public(HashMap[uint256, bytes32])
networks: HashMap[bytes32, Network]
services: HashMap[bytes32, DynArray[bytes32, SERVICES_MAX]]
operators: HashMap[bytes32, DynArray[address, attestations.VALIDATORS_MAX]]
# Place in the list of operators, from 1; 0 when not in it.
places: HashMap[bytes32, HashMap[address, uint256]]
keys: HashMap[bytes32, HashMap[address, address]]
assignments: HashMap[address, Assignment]
epochs: HashMap[bytes32, uint256]
snapshots: HashMap[bytes32, HashMap[uint256, Snapshot]]
# A key of the present epoch was caught lying: the next one need not wait.
isUrgent: public(HashMap[bytes32, bool])


@deploy
def __init__(
    token: address,
    staking: address,
    equivocation: address,
    epochSeconds: uint256,
    trustSeconds: uint256,
    evidenceSeconds: uint256,
    bond: uint256,
):
    assert staticcall Staking(staking).token() == token, "networks: staking holds another token"
    assert staticcall Staking(staking).minPower(CONSENSUS) > 0, "networks: staking has no consensus service"
    assert equivocation != empty(address), "networks: equivocation is zero"
    for window: uint256 in [epochSeconds, trustSeconds, evidenceSeconds]:
        assert window > 0 and window <= WINDOW_SECONDS_MAX, "networks: a window is out of range"
    assert epochSeconds < trustSeconds, "networks: an epoch outlasts the trust in it"
    answers: uint256 = trustSeconds + evidenceSeconds
    assert answers < staticcall Staking(staking).unbondingSeconds(), "networks: stake could leave before the evidence"
    assert bond > 0, "networks: bond is zero"
    self.token = token
    self.staking = staking
    self.equivocation = equivocation
    self.epochSeconds = epochSeconds
    self.trustSeconds = trustSeconds
    self.evidenceSeconds = evidenceSeconds
    self.bond = bond


@external
def add(
    genesisHash: bytes32,
    chainId: uint256,
    mirror: address,
    salt: bytes32,
    services: DynArray[bytes32, SERVICES_MAX],
) -> bytes32:
    """
    @notice Found a network; the caller approved the bond.
    @param mirror Where its validators are on that network; zero where nothing mirrors them.
    @param services What it says it hosts.
    @return Its id, which binds the caller: nobody can take another's.
    """
    assert genesisHash != empty(bytes32) and chainId > 0, "networks: no such network"
    network: bytes32 = self._id(msg.sender, genesisHash, chainId, salt)
    assert self.networks[network].addedAt == 0, "networks: network is known"
    self.networks[network] = Network(
        founder=msg.sender,
        genesisHash=genesisHash,
        chainId=chainId,
        mirror=mirror,
        addedAt=block.timestamp,
        retiredAt=0,
        bond=self.bond,
    )
    self.services[network] = services
    self.networkAt[self.networkCount] = network
    self.networkCount += 1
    log NetworkAdded(
        network=network,
        founder=msg.sender,
        genesisHash=genesisHash,
        chainId=chainId,
        mirror=mirror,
        services=services,
    )
    assert extcall Token(self.token).transferFrom(msg.sender, self, self.bond), "networks: transfer failed"
    return network


@external
def retire(network: bytes32):
    """
    @notice Give a network up: no more epochs and keys; its keys answer for what they signed until the bond is free.
    """
    assert self.networks[network].founder == msg.sender, "networks: caller is not the founder"
    assert self.networks[network].retiredAt == 0, "networks: network is retired"
    self.networks[network].retiredAt = block.timestamp
    log NetworkRetired(network=network, reclaimableAt=block.timestamp + self._answer_seconds())


@external
def reclaim(network: bytes32):
    """
    @notice Return the bond of a network that was given up; anyone may ask for it.
    """
    state: Network = self.networks[network]
    assert state.retiredAt != 0, "networks: network is not retired"
    assert block.timestamp >= state.retiredAt + self._answer_seconds(), "networks: its keys still answer"
    assert state.bond > 0, "networks: bond was returned"
    self.networks[network].bond = 0
    log BondReturned(network=network, founder=state.founder, amount=state.bond)
    assert extcall Token(self.token).transfer(state.founder, state.bond), "networks: transfer failed"


@external
def join(network: bytes32, key: address, signature: Bytes[65]):
    """
    @notice Count in a network from its next epoch on, with a key that nobody ever used.
    @param signature The key's, over KeyAssignment(network, caller).
    """
    self._check_open(network)
    assert self.keys[network][msg.sender] == empty(address), "networks: operator has a key here"
    assert self.assignments[key].operator == empty(address), "networks: key was used before"
    digest: bytes32 = attestations.hash_key_assignment(network, msg.sender)
    signer: address = attestations.recover(self._separator(), digest, signature)
    assert signer != empty(address) and signer == key, "networks: the key did not sign"
    weight: uint256 = self._power(msg.sender)
    assert weight > 0, "networks: operator has no power in consensus"
    self._seat(network, msg.sender, weight)
    self.keys[network][msg.sender] = key
    self.assignments[key] = Assignment(operator=msg.sender, network=network, leftAt=0, isBuried=False)
    log Joined(network=network, operator=msg.sender, key=key)


@external
def leave(network: bytes32):
    """
    @notice Count no more from the next epoch on; the key answers for what it signed for as long as it could be believed.
    """
    assert self.keys[network][msg.sender] != empty(address), "networks: operator has no key here"
    self._dismiss(network, msg.sender)


@external
def beginEpoch(network: bytes32) -> uint256:
    """
    @notice Freeze the keys and powers of now; anyone may ask for it.
    @return The epoch, from 1.
    """
    self._check_open(network)
    epoch: uint256 = self.epochs[network] + 1
    begun_at: uint256 = self.snapshots[network][epoch - 1].begunAt
    is_due: bool = block.timestamp >= begun_at + self.epochSeconds
    assert is_due or self.isUrgent[network], "networks: the epoch is not over"
    validators: DynArray[uint256, attestations.VALIDATORS_MAX] = self._validators(network)
    assert len(validators) > 0, "networks: nobody has a key and power"
    validators_hash: bytes32 = attestations.hash_validators(validators)
    self.snapshots[network][epoch] = Snapshot(begunAt=block.timestamp, validatorsHash=validators_hash)
    self.epochs[network] = epoch
    self.isUrgent[network] = False
    log EpochBegun(
        network=network,
        epoch=epoch,
        begunAt=block.timestamp,
        validatorsHash=validators_hash,
        validators=validators,
    )
    return epoch


@external
def bury(key: address) -> address:
    """
    @notice A key was proven a liar: it counts nowhere any more and answers for nothing more; by Equivocation.
    @return Whose it was.
    """
    assert msg.sender == self.equivocation, "networks: caller is not the judge of keys"
    assert self._is_accountable(key), "networks: key does not answer"
    assignment: Assignment = self.assignments[key]
    self.assignments[key].isBuried = True
    self.isUrgent[assignment.network] = True
    if assignment.leftAt == 0:
        self._dismiss(assignment.network, assignment.operator)
    log Buried(network=assignment.network, operator=assignment.operator, key=key)
    return assignment.operator


@external
@view
def networkOf(network: bytes32) -> Network:
    """
    @notice What is known of a network; zeros when nothing is.
    """
    return self.networks[network]


@external
@view
def servicesOf(network: bytes32) -> DynArray[bytes32, SERVICES_MAX]:
    """
    @notice What a network says it hosts.
    """
    return self.services[network]


@external
@view
def epochOf(network: bytes32) -> (uint256, uint256, bytes32):
    """
    @notice The present epoch, when it began, and the hash of its validators; zeros before the first.
    """
    epoch: uint256 = self.epochs[network]
    snapshot: Snapshot = self.snapshots[network][epoch]
    return epoch, snapshot.begunAt, snapshot.validatorsHash


@external
@view
def snapshotOf(network: bytes32, epoch: uint256) -> (uint256, bytes32):
    """
    @notice When an epoch began, and the hash of its validators; zeros when it did not.
    """
    snapshot: Snapshot = self.snapshots[network][epoch]
    return snapshot.begunAt, snapshot.validatorsHash


@external
@view
def validatorsOf(network: bytes32) -> DynArray[uint256, attestations.VALIDATORS_MAX]:
    """
    @notice Who would be frozen now: power << 160 | key.
    """
    return self._validators(network)


@external
@view
def operatorsOf(network: bytes32) -> DynArray[address, attestations.VALIDATORS_MAX]:
    """
    @notice Who has a key in a network, with power or without.
    """
    return self.operators[network]


@external
@view
def keyOf(network: bytes32, operator: address) -> address:
    """
    @notice An operator's key in a network; zero when it has none.
    """
    return self.keys[network][operator]


@external
@view
def assignmentOf(key: address) -> (address, bytes32, uint256, bool):
    """
    @notice Whose key this is or was, where, when it was given up (0: it was not), and whether it was proven a liar.
    """
    assignment: Assignment = self.assignments[key]
    return assignment.operator, assignment.network, assignment.leftAt, assignment.isBuried


@external
@view
def isAccountable(key: address) -> bool:
    """
    @notice Does a key answer for what it signed?
    """
    return self._is_accountable(key)


@external
@view
def idOf(founder: address, genesisHash: bytes32, chainId: uint256, salt: bytes32) -> bytes32:
    """
    @notice What a network is called.
    """
    return self._id(founder, genesisHash, chainId, salt)


@external
@view
def domainSeparator() -> bytes32:
    """
    @notice The domain of key assignments, validator sets and checkpoints.
    """
    return self._separator()


@internal
@view
def _separator() -> bytes32:
    return attestations.separator(chain.id, self)


@internal
@pure
def _id(founder: address, genesis_hash: bytes32, chain_id: uint256, salt: bytes32) -> bytes32:
    return keccak256(abi_encode("deaios/network/1", founder, genesis_hash, chain_id, salt))


@internal
@view
def _answer_seconds() -> uint256:
    return self.trustSeconds + self.evidenceSeconds


@internal
@view
def _check_open(network: bytes32):
    assert self.networks[network].addedAt != 0, "networks: unknown network"
    assert self.networks[network].retiredAt == 0, "networks: network is retired"


@internal
@view
def _power(operator: address) -> uint256:
    return staticcall Staking(self.staking).power(CONSENSUS, operator)


@internal
@view
def _validators(network: bytes32) -> DynArray[uint256, attestations.VALIDATORS_MAX]:
    found: DynArray[uint256, attestations.VALIDATORS_MAX] = []
    for operator: address in self.operators[network]:
        weight: uint256 = self._power(operator)
        if weight > 0:
            key: uint256 = convert(convert(self.keys[network][operator], uint160), uint256)
            found.append((weight << attestations.KEY_BITS) | key)
    return found


@internal
@view
def _is_accountable(key: address) -> bool:
    assignment: Assignment = self.assignments[key]
    if assignment.operator == empty(address) or assignment.isBuried:
        return False
    ended: uint256 = assignment.leftAt
    retired: uint256 = self.networks[assignment.network].retiredAt
    if ended == 0 or (retired != 0 and retired < ended):
        ended = retired
    return ended == 0 or block.timestamp < ended + self._answer_seconds()


@internal
def _seat(network: bytes32, operator: address, weight: uint256):
    """
    @notice Give an operator a place, that of the weakest where all are taken and it is weaker.
    """
    if len(self.operators[network]) == attestations.VALIDATORS_MAX:
        weakest: address = empty(address)
        least: uint256 = weight
        for other: address in self.operators[network]:
            power: uint256 = self._power(other)
            if power < least:
                least = power
                weakest = other
        assert weakest != empty(address), "networks: no validator is weaker"
        self._dismiss(network, weakest)
    self.operators[network].append(operator)
    self.places[network][operator] = len(self.operators[network])


@internal
def _dismiss(network: bytes32, operator: address):
    key: address = self.keys[network][operator]
    place: uint256 = self.places[network][operator]
    last: address = self.operators[network].pop()
    if last != operator:
        self.operators[network][place - 1] = last
        self.places[network][last] = place
    self.places[network][operator] = 0
    self.keys[network][operator] = empty(address)
    self.assignments[key].leftAt = block.timestamp
    log Left(network=network, operator=operator, key=key)
