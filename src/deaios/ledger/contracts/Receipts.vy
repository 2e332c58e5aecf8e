#pragma version 0.4.3
"""
@title Receipts: roots of receipt batches, gap-free per provider
@notice A provider publishes for itself. Each batch goes on where the one before ended and names its root, so that a
    provider cannot leave out a counter or show two histories.
"""

event BatchPublished:
    provider: indexed(address)
    index: indexed(uint256)
    firstCounter: uint64
    lastCounter: uint64
    root: bytes32
    daCommitment: bytes32


struct Batch:
    firstCounter: uint64
    lastCounter: uint64
    previousRoot: bytes32
    root: bytes32
    daCommitment: bytes32
    blockTime: uint256


BATCH_RECEIPTS_MAX: constant(uint64) = 65536
DEPTH_MAX: constant(uint256) = 16
# SHA-256("deaios/receipts/1")
RECEIPTS_TAG: constant(bytes32) = 0xcba65f0b9db271169be2bc2f674dbfb002eb15870a68dec8502240fb3f82b769

batchCount: public(HashMap[address, uint256])
lastCounter: public(HashMap[address, uint64])
batches: HashMap[address, HashMap[uint256, Batch]]


@deploy
def __init__():
    pass


@external
def publish(
    firstCounter: uint64, lastCounter: uint64, previousRoot: bytes32, root: bytes32, daCommitment: bytes32
) -> uint256:
    """
    @notice Publish the next batch of the caller's receipts.
    @return Its index, from 0.
    """
    index: uint256 = self.batchCount[msg.sender]
    last: uint64 = self.lastCounter[msg.sender]
    last_root: bytes32 = empty(bytes32)
    if index > 0:
        last_root = self.batches[msg.sender][index - 1].root
    assert last < max_value(uint64) and firstCounter == last + 1, "receipts: first counter does not follow"
    assert lastCounter >= firstCounter, "receipts: batch is empty"
    assert lastCounter - firstCounter < BATCH_RECEIPTS_MAX, "receipts: batch is too long"
    assert previousRoot == last_root, "receipts: previous root does not match"
    assert root != empty(bytes32), "receipts: root is zero"
    self.batches[msg.sender][index] = Batch(
        firstCounter=firstCounter,
        lastCounter=lastCounter,
        previousRoot=previousRoot,
        root=root,
        daCommitment=daCommitment,
        blockTime=block.timestamp,
    )
    self.batchCount[msg.sender] = index + 1
    self.lastCounter[msg.sender] = lastCounter
    log BatchPublished(
        provider=msg.sender,
        index=index,
        firstCounter=firstCounter,
        lastCounter=lastCounter,
        root=root,
        daCommitment=daCommitment,
    )
    return index


@external
@view
def batchAt(provider: address, index: uint256) -> (uint64, uint64, bytes32, bytes32, bytes32, uint256):
    """
    @notice A batch: first and last counter, previous root, root, DA commitment, block time; zeros when unknown.
    """
    batch: Batch = self.batches[provider][index]
    return (
        batch.firstCounter, batch.lastCounter, batch.previousRoot, batch.root, batch.daCommitment, batch.blockTime
    )


@external
@view
def verifyReceipt(
    provider: address, index: uint256, counter: uint64, receiptDigest: bytes32, path: DynArray[bytes32, DEPTH_MAX]
) -> bool:
    """
    @notice Is this digest the leaf of this counter in this batch? The depth comes from the batch, never from the path.
    """
    batch: Batch = self.batches[provider][index]
    if batch.lastCounter == 0 or counter < batch.firstCounter or counter > batch.lastCounter:
        return False
    count: uint64 = batch.lastCounter - batch.firstCounter + 1
    depth: uint256 = 0
    for i: uint256 in range(DEPTH_MAX):
        if 2**depth < convert(count, uint256):
            depth += 1
    if len(path) != depth:
        return False
    position: uint256 = convert(counter - batch.firstCounter, uint256)
    node: bytes32 = sha256(concat(b"\x00", receiptDigest))
    for sibling: bytes32 in path:
        if position % 2 == 1:
            node = sha256(concat(b"\x01", sibling, node))
        else:
            node = sha256(concat(b"\x01", node, sibling))
        position //= 2
    sealed: bytes32 = sha256(concat(b"\x02", RECEIPTS_TAG, convert(count, bytes8), node))
    return sealed == batch.root
