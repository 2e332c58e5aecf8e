#pragma version 0.4.3
"""
@title A registry of networks that says what tests tell it to
@notice The views that Inbox and Bridge of the root ask of Networks.
"""

struct Record:
    founder: address
    genesisHash: bytes32
    chainId: uint256
    mirror: address
    addedAt: uint256
    retiredAt: uint256
    bond: uint256


struct Epoch:
    number: uint256
    begunAt: uint256
    validatorsHash: bytes32


trustSeconds: public(uint256)
networkOf: public(HashMap[bytes32, Record])
epochs: HashMap[bytes32, Epoch]


@deploy
def __init__(trustSeconds: uint256):
    self.trustSeconds = trustSeconds


@external
def add(network: bytes32, founder: address):
    self.networkOf[network].founder = founder
    self.networkOf[network].addedAt = block.timestamp


@external
def retire(network: bytes32):
    self.networkOf[network].retiredAt = block.timestamp


@external
def begin(network: bytes32, number: uint256, validatorsHash: bytes32):
    self.epochs[network] = Epoch(number=number, begunAt=block.timestamp, validatorsHash=validatorsHash)


@external
@view
def epochOf(network: bytes32) -> (uint256, uint256, bytes32):
    epoch: Epoch = self.epochs[network]
    return epoch.number, epoch.begunAt, epoch.validatorsHash
