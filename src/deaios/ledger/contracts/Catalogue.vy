#pragma version 0.4.3
"""
@title Catalogue: immutable, content-addressed model records
@notice Anyone publishes; nothing is changed or removed. Records lie in plain storage: as contract code they could hold
    bytes that look like refused opcodes to the embedded engine.
"""

event Published:
    id: indexed(bytes32)
    publisher: indexed(address)
    size: uint256


RECORD_BYTES_MAX: constant(uint256) = 8192
# SHA-256("deaios/model-record/1")
RECORD_TAG: constant(bytes32) = 0x576fae53d6f39ad774968c61e18c345a6f7f1785b80a8ba496c541d126be2f28

publisherOf: public(HashMap[bytes32, address])
recordCount: public(uint256)
recordAt: public(HashMap[uint256, bytes32])
records: HashMap[bytes32, Bytes[RECORD_BYTES_MAX]]


@deploy
def __init__():
    pass


@external
def publish(record: Bytes[RECORD_BYTES_MAX]) -> bytes32:
    """
    @notice Store a record under its id; a record that is here already stays as it is.
    @return The id: SHA-256(SHA-256("deaios/model-record/1") || record).
    """
    assert len(record) > 0, "catalogue: record is empty"
    id: bytes32 = sha256(concat(RECORD_TAG, record))
    if self.publisherOf[id] == empty(address):
        self.publisherOf[id] = msg.sender
        self.records[id] = record
        self.recordAt[self.recordCount] = id
        self.recordCount += 1
        log Published(id=id, publisher=msg.sender, size=len(record))
    return id


@external
@view
def recordOf(id: bytes32) -> Bytes[RECORD_BYTES_MAX]:
    """
    @notice The record's bytes; empty for an unknown id.
    """
    return self.records[id]
