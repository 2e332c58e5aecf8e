"""Messages between networks and the tree of those that one sent to another, equal to `ledger/contracts/messages.vy`.

The tree is that of `primitives.merkle` with the tag below over the messages' struct hashes, kept so that it grows by
one leaf at a time and gives the root and the proofs of any earlier count as well. Knows no chain.
"""

from deaios.ledger.abi import encode_values
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import Message
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import ADDRESS_SIZE, ZERO_ADDRESS, Address
from deaios.primitives.merkle import hash_leaf, hash_node, seal_root, tree_depth

TAG = "deaios/messages/1"
PAYLOAD_BYTES_MAX = 1024
TRANSFER = ("bytes32", "address", "uint256")
"""ABI types of a bridge's payload: destination, receiver, amount."""


class InvalidMessages(Invalid):
    """Messages that are not the next ones of their tree, or a count that it has not reached."""


class MessageTree:
    """All messages from one network to another so far; a message takes 64 bytes."""

    def __init__(self, source: bytes, destination: bytes) -> None:
        self.source = source
        self.destination = destination
        self._levels: list[list[bytes]] = [[]]
        """By level: hashes of complete subtrees."""

    @property
    def count(self) -> int:
        """Messages so far."""
        return len(self._levels[0])

    def append(self, message: Message) -> None:
        """Add the next message.

        Raises:
            InvalidMessages: it is of other networks, or not the next one.
        """
        if (message.source, message.destination, message.nonce) != (self.source, self.destination, self.count):
            raise InvalidMessages(f"message {message.nonce} is not number {self.count} of this tree")
        node, index, level = hash_leaf(hash_struct(message)), self.count, 0
        self._levels[0].append(node)
        while index & 1:
            node = hash_node(self._levels[level][index - 1], node)
            index, level = index >> 1, level + 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(node)

    def root(self, count: int) -> bytes:
        """Root over the first messages.

        Raises:
            InvalidMessages: there are not so many.
        """
        self._validate_count(count)
        return seal_root(TAG, count, self._node(tree_depth(count), 0, count))

    def prove(self, nonce: int, count: int) -> tuple[bytes, ...]:
        """Path of a message in the tree of the first `count`.

        Raises:
            InvalidMessages: it is not among them, or there are not so many.
        """
        self._validate_count(count)
        if not 0 <= nonce < count:
            raise InvalidMessages(f"message {nonce} is not among the first {count}")
        return tuple(self._node(level, (nonce >> level) ^ 1, count) for level in range(tree_depth(count)))

    def _validate_count(self, count: int) -> None:
        if not 0 < count <= self.count:
            raise InvalidMessages(f"the tree has {self.count} messages, {count} asked for")

    def _node(self, level: int, index: int, count: int) -> bytes:
        """A node of the tree of the first `count`; only those on its right edge are not kept."""
        if (index + 1) << level <= count:
            return self._levels[level][index]
        if level == 0:
            return ZERO32
        return hash_node(self._node(level - 1, 2 * index, count), self._node(level - 1, 2 * index + 1, count))


def encode_transfer(destination: bytes, receiver: Address, amount: int) -> bytes:
    """A bridge's payload."""
    return encode_values(TRANSFER, (destination, receiver, amount), "transfer")


def validate_message(message: Message) -> None:
    """Hold a message to the bounds that an Outbox keeps.

    Raises:
        InvalidMessages: no Outbox sends such a message.
    """
    if len(message.payload) > PAYLOAD_BYTES_MAX or len(message.target) != ADDRESS_SIZE:
        raise InvalidMessages(f"payload of {len(message.payload)} bytes, at most {PAYLOAD_BYTES_MAX} allowed")
    if message.target == ZERO_ADDRESS or message.source == message.destination:
        raise InvalidMessages("message has no target or goes to its own network")
