"""Client of `Bridge`: Credit from one network to another."""

from deaios.ledger.client.bound import BoundContract, Outcome
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import TransactionReceipt
from deaios.primitives.keys import Address


class Bridge:
    """Burns here what is minted there; the allowance comes first."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Bridge", address)
        self.address = address

    async def bridge_of(self, network: bytes) -> Address:
        """A network's bridge; zero where it is not connected."""
        return Address(await self.contract.read_one("bridgeOf", network))

    async def outstanding(self, network: bytes) -> int:
        """On the hub: what went to a network and has not come back."""
        return int(await self.contract.read_one("outstanding", network))

    async def connect(self, sender: Sender, network: bytes, bridge: Address) -> TransactionReceipt:
        """On the hub, once: say which contract is the bridge of a network that the sender founded."""
        return await self.contract.send(sender, "connect", network, bridge)

    async def send(self, sender: Sender, destination: bytes, receiver: Address, amount: int) -> Outcome[int]:
        """Send Credit to a receiver on another network; gives the number of the message that carries it."""
        receipt = await self.contract.send(sender, "send", destination, receiver, amount)
        return Outcome(self.contract.find_event(receipt, "Departed").values["nonce"], receipt)
