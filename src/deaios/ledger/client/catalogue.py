"""Client of `Catalogue`: immutable model records by their content's id."""

from deaios.ledger.client.bound import BoundContract, Outcome
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import InvalidAnswer
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import ZERO_ADDRESS, Address

RECORD_TAG = "deaios/model-record/1"


class Catalogue:
    """Model records; publishing one again changes nothing."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Catalogue", address)
        self.address = address

    async def publisher_of(self, record_id: bytes) -> Address | None:
        """Who published a record first; None for an unknown one."""
        publisher = Address(await self.contract.read_one("publisherOf", record_id))
        return None if publisher == ZERO_ADDRESS else publisher

    async def record_of(self, record_id: bytes) -> bytes | None:
        """A record's bytes, checked against its id; None for an unknown one.

        Raises:
            InvalidAnswer: the node returned other bytes.
        """
        if await self.publisher_of(record_id) is None:
            return None
        record = bytes(await self.contract.read_one("recordOf", record_id))
        if tagged_sha256(RECORD_TAG, record) != record_id:
            raise InvalidAnswer(f"the node returned {len(record)} bytes that are not record {encode_hex(record_id)}")
        return record

    async def record_count(self) -> int:
        """How many records exist."""
        return int(await self.contract.read_one("recordCount"))

    async def record_at(self, index: int) -> bytes:
        """A record's id by position, from 0."""
        return bytes(await self.contract.read_one("recordAt", index))

    async def publish(self, sender: Sender, record: bytes) -> Outcome[bytes]:
        """Publish a record; gives its id."""
        receipt = await self.contract.send(sender, "publish", record)
        return Outcome(tagged_sha256(RECORD_TAG, record), receipt)
