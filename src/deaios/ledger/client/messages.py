"""Clients of `Outbox` and `Inbox`, and a view of an outbox that grows with its chain."""

from collections.abc import Sequence

from deaios.ledger.client.bound import BoundContract, ContractEvent, to_tuple
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.scanner import Scanner
from deaios.ledger.client.sender import Sender
from deaios.ledger.messages import MessageTree
from deaios.ledger.records import TransactionReceipt
from deaios.ledger.structs import Checkpoint, Message
from deaios.ledger.valset import Quorum, Valset
from deaios.primitives.keys import Address

WORD_BITS = 256


class Outbox:
    """What contracts of a network say to those of others."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Outbox", address)
        self.address = address

    async def checkpoint(self, destination: bytes) -> tuple[int, bytes]:
        """Messages to a network so far, and the root over them."""
        count, root = await self.contract.read("checkpoint", destination)
        return int(count), bytes(root)

    async def send(self, sender: Sender, destination: bytes, target: Address, payload: bytes) -> TransactionReceipt:
        """Say something to a contract of another network."""
        return await self.contract.send(sender, "send", destination, target, payload)


class Inbox:
    """What other networks said to this one."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Inbox", address)
        self.address = address

    async def accepted_count(self, source: bytes, root: bytes) -> int:
        """The count that belongs to an accepted root; 0 for another one."""
        return int(await self.contract.read_one("acceptedCount", source, root))

    async def is_delivered(self, source: bytes, nonce: int) -> bool:
        """Was a message handed to its target?"""
        return bool(await self.contract.read_one("isDelivered", source, nonce))

    async def fetch_undelivered(self, source: bytes, first: int, count: int) -> tuple[int, ...]:
        """Which messages from `first` to `count - 1` were not handed over yet, in order."""
        words = range(first // WORD_BITS, -(-count // WORD_BITS))
        answers = await self.contract.read_many([("deliveredWord", (source, word)) for word in words])
        found = dict(zip(words, (answer[0] for answer in answers), strict=True))
        return tuple(nonce for nonce in range(first, count) if not found[nonce // WORD_BITS] >> (nonce % WORD_BITS) & 1)

    async def accept(
        self, sender: Sender, checkpoint: Checkpoint, current: Valset, quorum: Quorum
    ) -> TransactionReceipt:
        """Bring a checkpoint that the current set signed."""
        return await self.contract.send(
            sender, "accept", to_tuple(checkpoint), current.words, quorum.signers, quorum.signatures
        )

    async def deliver(self, sender: Sender, message: Message, root: bytes, path: Sequence[bytes]) -> TransactionReceipt:
        """Hand a message to its target.

        Raises:
            Reverted: it was delivered before, or its target refuses it now.
        """
        return await self.contract.send(sender, "deliver", to_tuple(message), root, tuple(path))


class OutboxView:
    """An outbox as far as its chain is confirmed: trees by destination, and the messages that are still wanted.

    `sync` brings it up to date. Where the chain turns out to be another one than before, it begins anew.
    """

    def __init__(self, outbox: Outbox, network: bytes, confirmations: int, *, keeps_messages: bool) -> None:
        self.outbox = outbox
        self.network = network
        self.trees: dict[bytes, MessageTree] = {}
        self._messages: dict[bytes, dict[int, Message]] = {}
        self._keeps_messages = keeps_messages
        self._scanner = Scanner(outbox.contract, "Sent", confirmations, self._take, self._forget_all)

    async def sync(self) -> None:
        """Read what is confirmed and new.

        Raises:
            UnavailableChain: the node does not answer, or its chain changed meanwhile.
            InvalidMessages: the node's logs are no outbox's.
        """
        await self._scanner.sync()

    def count(self, destination: bytes) -> int:
        """Confirmed messages to a network."""
        tree = self.trees.get(destination)
        return 0 if tree is None else tree.count

    def get_message(self, destination: bytes, nonce: int) -> Message:
        """A message that was not forgotten."""
        return self._messages[destination][nonce]

    def forget(self, destination: bytes, nonce: int) -> None:
        """A message is not wanted any more."""
        self._messages.get(destination, {}).pop(nonce, None)

    def _take(self, event: ContractEvent) -> None:
        values = event.values
        destination = values["destination"]
        message = Message(
            source=self.network,
            destination=destination,
            nonce=values["nonce"],
            sender=values["sender"],
            target=values["target"],
            payload=values["payload"],
        )
        self.trees.setdefault(destination, MessageTree(self.network, destination)).append(message)
        if self._keeps_messages:
            self._messages.setdefault(destination, {})[message.nonce] = message

    def _forget_all(self) -> None:
        self.trees.clear()
        self._messages.clear()
