#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Outbox: what contracts of this network say to contracts of others
@notice Messages to one network are numbered without gaps and become leaves of one growing Merkle tree, of which only the
    nodes that a further leaf needs are kept. Validators sign the tree's roots (Checkpoint), and an Inbox believes them.
    Anyone may send, to anybody: a target looks at who sent.
"""
import messages

event Sent:
    destination: indexed(bytes32)
    sender: indexed(address)
    target: indexed(address)
    nonce: uint64
    payload: Bytes[messages.PAYLOAD_BYTES_MAX]


MESSAGES_MAX: constant(uint256) = 2**32 - 1

# This network's id.
network: public(bytes32)
countOf: public(HashMap[bytes32, uint256])
# By destination and level: the last complete subtree that is a left child, or the whole tree.
branches: HashMap[bytes32, HashMap[uint256, bytes32]]


@deploy
def __init__(network: bytes32):
    """
    @param network This network's id; zero on the root, whose id is its chain id.
    """
    self.network = network if network != empty(bytes32) else convert(chain.id, bytes32)


@external
def send(destination: bytes32, target: address, payload: Bytes[messages.PAYLOAD_BYTES_MAX]) -> uint64:
    """
    @notice Say something to a contract of another network, which has `receiveMessage(bytes32,address,uint64,bytes)`.
    @return The message's number.
    """
    assert destination != self.network, "outbox: destination is this network"
    assert target != empty(address), "outbox: target is zero"
    index: uint256 = self.countOf[destination]
    assert index < MESSAGES_MAX, "outbox: no number is left"
    nonce: uint64 = convert(index, uint64)
    self.countOf[destination] = index + 1
    node: bytes32 = messages.hash_leaf(
        messages.Message(
            source=self.network,
            destination=destination,
            nonce=nonce,
            sender=msg.sender,
            target=target,
            payload=payload,
        )
    )
    size: uint256 = index + 1
    for level: uint256 in range(messages.DEPTH_MAX):
        if size & 1 == 1:
            self.branches[destination][level] = node
            break
        node = messages.hash_node(self.branches[destination][level], node)
        size >>= 1
    log Sent(destination=destination, sender=msg.sender, target=target, nonce=nonce, payload=payload)
    return nonce


@external
@view
def checkpoint(destination: bytes32) -> (uint64, bytes32):
    """
    @notice How many messages to a network there are, and the root over them; zeros where there are none.
    """
    count: uint256 = self.countOf[destination]
    if count == 0:
        return 0, empty(bytes32)
    depth: uint256 = messages.depth_of(count)
    if (1 << depth) == count:
        return convert(count, uint64), messages.seal(count, self.branches[destination][depth])
    node: bytes32 = empty(bytes32)
    absent: bytes32 = empty(bytes32)
    size: uint256 = count
    for level: uint256 in range(depth, bound=messages.DEPTH_MAX):
        if size & 1 == 1:
            node = messages.hash_node(self.branches[destination][level], node)
        else:
            node = messages.hash_node(node, absent)
        absent = messages.hash_node(absent, absent)
        size >>= 1
    return convert(count, uint64), messages.seal(count, node)
