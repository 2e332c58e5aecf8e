#pragma version 0.4.3
#pragma nonreentrancy on
"""
@title Bridge: Credit between networks, burned on one and minted on another
@notice All transfers pass through the hub, the network where Credit began. For every other network the hub counts what went
    there and has not come back (`outstanding`), and never lets more come back: whoever captures a network can take
    what is on it, and nothing else. Supply on all networks together plus what is on its way stays the same, but for
    what holders burn.
    Money that goes to a network that the hub does not serve (any more) is minted on the hub, for the same receiver.
    Holds no money between calls.
"""

interface Token:
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable
    def burn(amount: uint256): nonpayable
    def mint(to: address, amount: uint256): nonpayable


interface Outbox:
    def network() -> bytes32: view
    def send(destination: bytes32, target: address, payload: Bytes[1024]) -> uint64: nonpayable


interface Registry:
    def networkOf(network: bytes32) -> Record: view


struct Record:
    founder: address
    genesisHash: bytes32
    chainId: uint256
    mirror: address
    addedAt: uint256
    retiredAt: uint256
    bond: uint256


event Connected:
    network: indexed(bytes32)
    bridge: address


event Departed:
    destination: indexed(bytes32)
    owner: indexed(address)
    receiver: indexed(address)
    amount: uint256
    # Of the message to the hub, or from the hub.
    nonce: uint64


event Forwarded:
    source: indexed(bytes32)
    destination: indexed(bytes32)
    receiver: indexed(address)
    amount: uint256
    nonce: uint64


event Arrived:
    source: indexed(bytes32)
    receiver: indexed(address)
    amount: uint256
    nonce: uint64


# This network's id.
network: public(bytes32)
hub: public(bytes32)
token: public(address)
outbox: public(address)
inbox: public(address)
# On the hub: who founded a network, and whether it is retired. Zero elsewhere.
registry: public(address)

# By network: its bridge. On the hub every network's that is connected, elsewhere the hub's.
bridgeOf: public(HashMap[bytes32, address])
# On the hub, by network: what went there and has not come back.
outstanding: public(HashMap[bytes32, uint256])


@deploy
def __init__(token: address, outbox: address, inbox: address, registry: address, hub: bytes32, hubBridge: address):
    """
    @param registry On the hub; zero elsewhere.
    @param hub The hub's id; zero on the hub itself.
    @param hubBridge The hub's bridge; zero on the hub itself.
    """
    assert empty(address) not in [token, outbox, inbox], "bridge: a contract is zero"
    is_hub: bool = registry != empty(address)
    assert is_hub == (hub == empty(bytes32)) and is_hub == (hubBridge == empty(address)), "bridge: hub or not"
    self.network = staticcall Outbox(outbox).network()
    self.hub = self.network if is_hub else hub
    self.token = token
    self.outbox = outbox
    self.inbox = inbox
    self.registry = registry
    self.bridgeOf[self.hub] = hubBridge


@external
def connect(network: bytes32, bridge: address):
    """
    @notice Say, once, which contract is a network's bridge; for who founded the network.
    """
    assert self.network == self.hub, "bridge: not the hub"
    assert network != self.hub and bridge != empty(address), "bridge: no such network"
    assert self.bridgeOf[network] == empty(address), "bridge: network is connected"
    record: Record = staticcall Registry(self.registry).networkOf(network)
    assert record.founder == msg.sender, "bridge: caller did not found the network"
    self.bridgeOf[network] = bridge
    log Connected(network=network, bridge=bridge)


@external
def send(destination: bytes32, receiver: address, amount: uint256) -> uint64:
    """
    @notice Move the caller's Credit to a receiver on another network; the caller approved it.
    @return The number of the message that carries it.
    """
    assert destination != self.network, "bridge: destination is this network"
    assert receiver != empty(address), "bridge: receiver is zero"
    assert amount > 0, "bridge: amount is zero"
    via: bytes32 = destination if self.network == self.hub else self.hub
    bridge: address = self.bridgeOf[via]
    assert bridge != empty(address), "bridge: network is not connected"
    if self.network == self.hub:
        assert self._is_open(destination), "bridge: network is retired"
        self.outstanding[destination] += amount
    assert extcall Token(self.token).transferFrom(msg.sender, self, amount), "bridge: transfer failed"
    extcall Token(self.token).burn(amount)
    nonce: uint64 = extcall Outbox(self.outbox).send(via, bridge, abi_encode(destination, receiver, amount))
    log Departed(destination=destination, owner=msg.sender, receiver=receiver, amount=amount, nonce=nonce)
    return nonce


@external
def receiveMessage(source: bytes32, sender: address, nonce: uint64, payload: Bytes[1024]):
    """
    @notice Take over what a bridge of another network burned; for the Inbox.
    """
    assert msg.sender == self.inbox, "bridge: caller is not the inbox"
    assert sender != empty(address) and self.bridgeOf[source] == sender, "bridge: sender is not a bridge"
    destination: bytes32 = empty(bytes32)
    receiver: address = empty(address)
    amount: uint256 = 0
    destination, receiver, amount = abi_decode(payload, (bytes32, address, uint256))
    if self.network == self.hub:
        assert amount <= self.outstanding[source], "bridge: more than went to this network"
        self.outstanding[source] -= amount
        bridge: address = self.bridgeOf[destination]
        if bridge != empty(address) and self._is_open(destination):
            self.outstanding[destination] += amount
            sent: uint64 = extcall Outbox(self.outbox).send(destination, bridge, payload)
            log Forwarded(source=source, destination=destination, receiver=receiver, amount=amount, nonce=sent)
            return
    log Arrived(source=source, receiver=receiver, amount=amount, nonce=nonce)
    extcall Token(self.token).mint(receiver, amount)


@internal
@view
def _is_open(network: bytes32) -> bool:
    record: Record = staticcall Registry(self.registry).networkOf(network)
    return record.retiredAt == 0
