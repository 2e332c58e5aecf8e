#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Inbox: messages of other networks, each delivered once
@notice On a further network its own validators say what other networks sent here; on the root, which has none, those of
    the source do. A checkpoint that more than two thirds of their power signed is kept for ever; a message under it can
    then be delivered by anyone, in any order. A message whose target refuses is not delivered: it keeps nobody
    waiting, nothing of it is lost, and anyone may try it again.
"""
import attestations
import messages
import quorum


interface Sets:
    def epochOf(network: bytes32) -> (uint256, uint256, bytes32): view
    def trustSeconds() -> uint256: view


interface Receiver:
    def receiveMessage(
        source: bytes32, sender: address, nonce: uint64, payload: Bytes[messages.PAYLOAD_BYTES_MAX]
    ): nonpayable


event Accepted:
    source: indexed(bytes32)
    count: uint64
    root: bytes32


event Delivered:
    source: indexed(bytes32)
    nonce: indexed(uint64)
    target: indexed(address)


# This network's id.
network: public(bytes32)
# Who knows the sets: a ValsetMirror, or the registry on the root itself.
sets: public(address)
# The root, and its registry, under whose domain validators sign.
rootChainId: public(uint256)
registry: public(address)

# By source and root: the count that belongs to it; zero for roots that were not accepted.
acceptedCount: public(HashMap[bytes32, HashMap[bytes32, uint256]])
# By source: one bit for each nonce.
delivered: HashMap[bytes32, HashMap[uint256, uint256]]


@deploy
def __init__(network: bytes32, sets: address, rootChainId: uint256, registry: address):
    """
    @param network This network's id; zero on the root, whose id is its chain id.
    @param rootChainId Zero on the root, which has its own.
    """
    assert sets != empty(address) and registry != empty(address), "inbox: a contract is zero"
    assert (network == empty(bytes32)) == (rootChainId == 0), "inbox: the root has no id but its chain's"
    self.network = network if rootChainId != 0 else convert(chain.id, bytes32)
    self.sets = sets
    self.rootChainId = rootChainId if rootChainId != 0 else chain.id
    self.registry = registry


@external
def accept(
    checkpoint: attestations.Checkpoint,
    validators: DynArray[uint256, attestations.VALIDATORS_MAX],
    signers: uint256,
    signatures: DynArray[Bytes[65], attestations.VALIDATORS_MAX],
):
    """
    @notice Believe a checkpoint that more than two thirds of the power signed.
    @param validators The current set of this network, or on the root of the source, in the root's order.
    """
    assert checkpoint.destination == self.network, "inbox: checkpoint is for another network"
    assert checkpoint.count > 0, "inbox: checkpoint is empty"
    assert self.acceptedCount[checkpoint.source][checkpoint.root] == 0, "inbox: checkpoint is accepted"
    self._check_set(checkpoint.source, validators)
    assert quorum.has_signed(
        validators,
        signers,
        signatures,
        attestations.separator(self.rootChainId, self.registry),
        attestations.hash_checkpoint(checkpoint),
    ), "inbox: too little power signed"
    self.acceptedCount[checkpoint.source][checkpoint.root] = convert(checkpoint.count, uint256)
    log Accepted(source=checkpoint.source, count=checkpoint.count, root=checkpoint.root)


@external
def deliver(message: messages.Message, root: bytes32, path: DynArray[bytes32, messages.DEPTH_MAX]):
    """
    @notice Hand a message to its target. Reverts with the target, and then nothing has happened.
    @param root Of a checkpoint that was accepted.
    @param path From the message's leaf to the top of that checkpoint's tree.
    """
    assert message.destination == self.network, "inbox: message is for another network"
    count: uint256 = self.acceptedCount[message.source][root]
    assert count > 0, "inbox: root is not accepted"
    index: uint256 = convert(message.nonce, uint256)
    assert messages.is_leaf(messages.hash_leaf(message), index, count, path, root), "inbox: message is not under the root"
    bit: uint256 = 1 << (index % 256)
    word: uint256 = self.delivered[message.source][index // 256]
    assert word & bit == 0, "inbox: message is delivered"
    self.delivered[message.source][index // 256] = word | bit
    log Delivered(source=message.source, nonce=message.nonce, target=message.target)
    extcall Receiver(message.target).receiveMessage(message.source, message.sender, message.nonce, message.payload)


@external
@view
def isDelivered(source: bytes32, nonce: uint64) -> bool:
    """
    @notice Was this message handed over?
    """
    index: uint256 = convert(nonce, uint256)
    return (self.delivered[source][index // 256] >> (index % 256)) & 1 == 1


@external
@view
def deliveredWord(source: bytes32, word: uint256) -> uint256:
    """
    @notice Bit i says whether message 256 * word + i was handed over.
    """
    return self.delivered[source][word]


@internal
@view
def _check_set(source: bytes32, validators: DynArray[uint256, attestations.VALIDATORS_MAX]):
    is_root: bool = self.network == convert(self.rootChainId, bytes32)
    epoch: uint256 = 0
    begun_at: uint256 = 0
    validators_hash: bytes32 = empty(bytes32)
    epoch, begun_at, validators_hash = staticcall Sets(self.sets).epochOf(source if is_root else self.network)
    assert epoch > 0, "inbox: source is not known"
    assert block.timestamp <= begun_at + staticcall Sets(self.sets).trustSeconds(), "inbox: trust period is over"
    assert attestations.hash_validators(validators) == validators_hash, "inbox: not the current set"
