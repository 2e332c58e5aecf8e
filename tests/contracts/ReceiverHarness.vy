#pragma version 0.4.3
"""
@title A target of messages: notes what it is told, refuses when it shall, and calls back whom it shall while it is told
"""

CALL_BYTES_MAX: constant(uint256) = 8192

refuses: public(bool)
told: public(uint256)
last: public(bytes32)
gotThrough: public(uint256)
target: address
call: Bytes[CALL_BYTES_MAX]


@external
def refuse(refuses: bool):
    self.refuses = refuses


@external
def arm(target: address, call: Bytes[CALL_BYTES_MAX]):
    self.target = target
    self.call = call


@external
def receiveMessage(source: bytes32, sender: address, nonce: uint64, payload: Bytes[1024]):
    assert not self.refuses, "receiver: not now"
    self.told += 1
    self.last = keccak256(abi_encode(source, sender, nonce, payload, msg.sender))
    if self.target != empty(address):
        if raw_call(self.target, self.call, revert_on_failure=False):
            self.gotThrough += 1
