"""Clients of `Networks` and `Equivocation`: what the stake secures, whose keys count there, and keys that lied."""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.ledger.client.bound import BoundContract, ContractEvent, Outcome, to_tuple
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.commitments import commit_lie
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.networks import Validator, decode_validators
from deaios.ledger.records import TransactionReceipt
from deaios.ledger.structs import Checkpoint, Header, KeyAssignment, ValsetUpdate, networks_domain
from deaios.ledger.valset import Epoch
from deaios.primitives.keys import ZERO_ADDRESS, Address, PrivateKey

NOTHING = bytes(32)
"""In place of a second digest where one signature is the proof."""


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network as the root knows it; fields and order as in docs/contracts.md, times in Unix seconds."""

    founder: Address
    genesis_hash: bytes
    chain_id: int
    mirror: Address
    added_at: int
    retired_at: int
    """0 while it is not being given up."""
    bond: int


@dataclass(frozen=True, slots=True)
class EpochBegun:
    """An epoch with its validators in the order of their places, and the block that froze it."""

    network: bytes
    epoch: Epoch
    validators: tuple[Validator, ...]
    block: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """Whose key it is or was; `left_at` is 0 while it counts."""

    operator: Address
    network: bytes
    left_at: int
    is_buried: bool


class Networks:
    """The registry of networks on the root."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Networks", address)
        self.address = address

    async def network_ids(self) -> tuple[bytes, ...]:
        """Every network ever added, oldest first."""
        count = int(await self.contract.read_one("networkCount"))
        answers = await self.contract.read_many([("networkAt", (place,)) for place in range(count)])
        return tuple(bytes(network) for (network,) in answers)

    async def network_of(self, network: bytes) -> NetworkRecord | None:
        """A network; None for an unknown one."""
        record = NetworkRecord(*await self.contract.read_one("networkOf", network))
        return record if record.added_at else None

    async def services_of(self, network: bytes) -> tuple[bytes, ...]:
        """What a network says it hosts."""
        return tuple(await self.contract.read_one("servicesOf", network))

    async def epoch_of(self, network: bytes) -> Epoch:
        """The present epoch."""
        return Epoch(*await self.contract.read("epochOf", network))

    async def snapshot_of(self, network: bytes, number: int) -> Epoch:
        """An epoch by its number; zeros when it has not begun."""
        return Epoch(number, *await self.contract.read("snapshotOf", network, number))

    async def validators_of(self, network: bytes) -> tuple[Validator, ...]:
        """Who would be frozen now; nobody, or as `decode_validators`."""
        words = await self.contract.read_one("validatorsOf", network)
        return decode_validators(words) if words else ()

    async def key_of(self, network: bytes, operator: Address) -> Address | None:
        """An operator's key in a network."""
        key = Address(await self.contract.read_one("keyOf", network, operator))
        return None if key == ZERO_ADDRESS else key

    async def assignment_of(self, key: Address) -> Assignment | None:
        """Whose key this is or was; None for nobody's."""
        assignment = Assignment(*await self.contract.read("assignmentOf", key))
        return None if assignment.operator == ZERO_ADDRESS else assignment

    async def is_accountable(self, key: Address) -> bool:
        """Does a key answer for what it signed?"""
        return bool(await self.contract.read_one("isAccountable", key))

    async def is_urgent(self, network: bytes) -> bool:
        """May the next epoch begin before its time, because a key was caught lying?"""
        return bool(await self.contract.read_one("isUrgent", network))

    async def fetch_epochs(
        self, network: bytes, from_block: int = 0, to_block: int | None = None
    ) -> tuple[EpochBegun, ...]:
        """Epochs that began in a range of blocks, with their validators, oldest first."""
        events = await self.contract.fetch_events(
            "EpochBegun", from_block=from_block, to_block=to_block, network=network
        )
        return tuple(_read_epoch(event) for event in events)

    async def add(
        self,
        sender: Sender,
        genesis_hash: bytes,
        chain_id: int,
        mirror: Address,
        salt: bytes,
        services: Sequence[bytes] = (),
    ) -> Outcome[bytes]:
        """Found a network; gives its id. The allowance for the bond comes first."""
        receipt = await self.contract.send(sender, "add", genesis_hash, chain_id, mirror, salt, tuple(services))
        return Outcome(bytes(self.contract.find_event(receipt, "NetworkAdded").values["network"]), receipt)

    async def retire(self, sender: Sender, network: bytes) -> TransactionReceipt:
        """Give a network up; by its founder."""
        return await self.contract.send(sender, "retire", network)

    async def reclaim(self, sender: Sender, network: bytes) -> TransactionReceipt:
        """Return the bond of a network that was given up to its founder, when its keys answer no more."""
        return await self.contract.send(sender, "reclaim", network)

    async def join(self, sender: Sender, network: bytes, key: PrivateKey, root_chain_id: int) -> TransactionReceipt:
        """Count in a network from its next epoch on, with a key that nobody ever used.

        Args:
            sender: the operator, who has power in `consensus`.
            network: its id.
            key: signs for this network only.
            root_chain_id: of the chain that this contract is on.
        """
        assignment = KeyAssignment(network, sender.address)
        signature = sign_struct(key, networks_domain(root_chain_id, self.address), assignment)
        return await self.contract.send(sender, "join", network, key.address, signature)

    async def leave(self, sender: Sender, network: bytes) -> TransactionReceipt:
        """Count no more from the next epoch on; a new key needs this first."""
        return await self.contract.send(sender, "leave", network)

    async def begin_epoch(self, sender: Sender, network: bytes) -> Outcome[EpochBegun]:
        """Freeze the keys and powers of now; anyone may, when the epoch before has lasted its time."""
        receipt = await self.contract.send(sender, "beginEpoch", network)
        return Outcome(_read_epoch(self.contract.find_event(receipt, "EpochBegun")), receipt)


class Equivocation:
    """Proofs that a key lied. Each takes two transactions: a commitment, and a block later the proof itself."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Equivocation", address)
        self.address = address

    async def commit(
        self, sender: Sender, first: Header | Checkpoint | ValsetUpdate, second: Header | Checkpoint | None, salt: bytes
    ) -> TransactionReceipt:
        """Commit to evidence; `second` is None for a validator set."""
        other = NOTHING if second is None else hash_struct(second)
        commitment = commit_lie(sender.address, hash_struct(first), other, salt)
        return await self.contract.send(sender, "commitEvidence", commitment)

    async def prove_headers(
        self, sender: Sender, network: bytes, a: tuple[Header, bytes], b: tuple[Header, bytes], salt: bytes
    ) -> Outcome[int]:
        """Two signed headers of one height; gives what was slashed and paid out, a tenth of it to the sender."""
        arguments = (network, to_tuple(a[0]), a[1], to_tuple(b[0]), b[1], salt)
        return self._read(await self.contract.send(sender, "proveHeaders", *arguments))

    async def prove_checkpoints(
        self, sender: Sender, a: tuple[Checkpoint, bytes], b: tuple[Checkpoint, bytes], salt: bytes
    ) -> Outcome[int]:
        """Two signed checkpoints of one count between two networks; as `prove_headers`."""
        arguments = (to_tuple(a[0]), a[1], to_tuple(b[0]), b[1], salt)
        return self._read(await self.contract.send(sender, "proveCheckpoints", *arguments))

    async def prove_valset(self, sender: Sender, update: ValsetUpdate, signature: bytes, salt: bytes) -> Outcome[int]:
        """One signed validator set that is not the root's; as `prove_headers`."""
        return self._read(await self.contract.send(sender, "proveValset", to_tuple(update), signature, salt))

    def _read(self, receipt: TransactionReceipt) -> Outcome[int]:
        return Outcome(int(self.contract.find_event(receipt, "Proven").values["paid"]), receipt)


def _read_epoch(event: ContractEvent) -> EpochBegun:
    values = event.values
    epoch = Epoch(values["epoch"], values["begunAt"], values["validatorsHash"])
    return EpochBegun(values["network"], epoch, decode_validators(values["validators"]), event.log.block_number)
