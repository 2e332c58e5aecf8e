"""Who a network's validators are: the client of its `ValsetMirror`, and a view of the epochs that the root began."""

from deaios.ledger.client.bound import BoundContract, ContractEvent, to_tuple
from deaios.ledger.client.networks import Networks
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.scanner import Scanner
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import TransactionReceipt
from deaios.ledger.structs import ValsetUpdate
from deaios.ledger.valset import Epoch, Quorum, Valset
from deaios.primitives.keys import Address


class ValsetMirror:
    """A further network's validators as that network knows them."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "ValsetMirror", address)
        self.address = address

    async def epoch_of(self, network: bytes) -> Epoch:
        """The newest epoch known here; number 0 for any other network than its own."""
        return Epoch(*await self.contract.read("epochOf", network))

    async def is_trusted(self) -> bool:
        """Is the trust period of that epoch not over?"""
        return bool(await self.contract.read_one("isTrusted"))

    async def update(self, sender: Sender, update: ValsetUpdate, current: Valset, quorum: Quorum) -> TransactionReceipt:
        """Bring a later epoch that the current set signed."""
        return await self.contract.send(
            sender, "update", to_tuple(update), current.words, quorum.signers, quorum.signatures
        )


class EpochView:
    """Every network's epochs with their validators, as far as the root is confirmed.

    `sync` brings it up to date. Where the root turns out to be another chain than before, it begins anew.
    """

    def __init__(self, registry: Networks, confirmations: int) -> None:
        self._epochs: dict[bytes, dict[int, Valset]] = {}
        self._scanner = Scanner(registry.contract, "EpochBegun", confirmations, self._take, self._epochs.clear)

    async def sync(self) -> None:
        """Read what is confirmed and new.

        Raises:
            UnavailableChain: the node does not answer, or its chain changed meanwhile.
            Invalid: the node's logs are no registry's.
        """
        await self._scanner.sync()

    def get(self, network: bytes, epoch: int) -> Valset | None:
        """An epoch's validators; None where the root began no such epoch."""
        return self._epochs.get(network, {}).get(epoch)

    def latest(self, network: bytes) -> Valset | None:
        """The newest epoch's validators; None before the first."""
        epochs = self._epochs.get(network)
        return epochs[max(epochs)] if epochs else None

    def _take(self, event: ContractEvent) -> None:
        values = event.values
        epoch = Epoch(values["epoch"], values["begunAt"], values["validatorsHash"])
        self._epochs.setdefault(values["network"], {})[epoch.number] = Valset.of_words(epoch, values["validators"])
