#pragma version 0.4.3
"""
@title Messages between networks, and the Merkle tree of those that one network sent to another
@notice A message is a leaf by its EIP-712 struct hash, in the trees of deaios.primitives.merkle with the tag
    deaios/messages/1; deaios.ledger.messages is the same in Python.
"""

PAYLOAD_BYTES_MAX: constant(uint256) = 1024
# Of a path; a tree has at most 2^32 leaves.
DEPTH_MAX: constant(uint256) = 32

TAG: constant(bytes32) = sha256("deaios/messages/1")
MESSAGE_TYPE: constant(bytes32) = keccak256(
    "Message(bytes32 source,bytes32 destination,uint64 nonce,address sender,address target,bytes payload)"
)


struct Message:
    source: bytes32
    destination: bytes32
    # Place among all messages from source to destination, from 0, without gaps.
    nonce: uint64
    sender: address
    target: address
    payload: Bytes[PAYLOAD_BYTES_MAX]


@internal
@pure
def hash_leaf(message: Message) -> bytes32:
    """
    @notice A message's leaf.
    """
    digest: bytes32 = keccak256(
        abi_encode(
            MESSAGE_TYPE,
            message.source,
            message.destination,
            message.nonce,
            message.sender,
            message.target,
            keccak256(message.payload),
        )
    )
    return sha256(concat(b"\x00", digest))


@internal
@pure
def hash_node(left: bytes32, right: bytes32) -> bytes32:
    """
    @notice An inner node.
    """
    return sha256(concat(b"\x01", left, right))


@internal
@pure
def seal(count: uint256, top: bytes32) -> bytes32:
    """
    @notice A tree's root: tag and count are in it.
    """
    return sha256(concat(b"\x02", TAG, convert(convert(count, uint64), bytes8), top))


@internal
@pure
def depth_of(count: uint256) -> uint256:
    """
    @notice Length of every path in a tree.
    """
    depth: uint256 = 0
    for _: uint256 in range(DEPTH_MAX):
        if (1 << depth) >= count:
            break
        depth += 1
    return depth


@internal
@pure
def is_leaf(
    leaf: bytes32, index: uint256, count: uint256, path: DynArray[bytes32, DEPTH_MAX], root: bytes32
) -> bool:
    """
    @notice Is this the leaf at an index of the tree of so many leaves?
    """
    if index >= count or len(path) != self.depth_of(count):
        return False
    node: bytes32 = leaf
    place: uint256 = index
    for sibling: bytes32 in path:
        node = self.hash_node(sibling, node) if place & 1 == 1 else self.hash_node(node, sibling)
        place >>= 1
    return self.seal(count, node) == root
