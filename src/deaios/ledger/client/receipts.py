"""Client of `Receipts`: the roots of each provider's receipt batches."""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.ledger.client.bound import BoundContract, Outcome
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as the contract keeps it; `block_time` in Unix seconds."""

    first_counter: int
    last_counter: int
    previous_root: bytes
    root: bytes
    da_commitment: bytes
    block_time: int


class Receipts:
    """Batches by provider and index, from 0."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Receipts", address)
        self.address = address

    async def batch_count(self, provider: Address) -> int:
        """How many batches a provider published."""
        return int(await self.contract.read_one("batchCount", provider))

    async def batch_at(self, provider: Address, index: int) -> BatchRecord:
        """A batch.

        Raises:
            Reverted: there is none at this index.
        """
        return BatchRecord(*await self.contract.read("batchAt", provider, index))

    async def last_counter(self, provider: Address) -> int:
        """Counter of the last receipt in a batch; 0 before the first."""
        return int(await self.contract.read_one("lastCounter", provider))

    async def verify_receipt(
        self, provider: Address, index: int, counter: int, receipt_digest: bytes, path: Sequence[bytes]
    ) -> bool:
        """Does the contract find a receipt's digest in a batch?"""
        answer = await self.contract.read_one("verifyReceipt", provider, index, counter, receipt_digest, tuple(path))
        return bool(answer)

    async def publish(
        self,
        sender: Sender,
        first_counter: int,
        last_counter: int,
        previous_root: bytes,
        root: bytes,
        da_commitment: bytes,
    ) -> Outcome[int]:
        """Publish the sender's next batch; gives its index."""
        receipt = await self.contract.send(
            sender, "publish", first_counter, last_counter, previous_root, root, da_commitment
        )
        return Outcome(self.contract.find_event(receipt, "BatchPublished").values["index"], receipt)
