"""What is asked of a chain's file and what it answers, as values: logs and their queries, blocks, records of losses."""

from dataclasses import dataclass

from deaios.chain.blocks import BlockHeader, bloom_holds
from deaios.chain.evm import Log
from deaios.chain.tables import StoredLog
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class PlacedLog:
    """A log with its place in the chain; `block_hash` completes what JSON-RPC shows."""

    log: Log
    number: int
    block_hash: bytes
    position: int
    transaction_hash: bytes
    transaction_position: int


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block as its operator sealed it: RLP of the header, signature where there is one yet, raw transactions."""

    number: int
    header: bytes
    signature: bytes | None
    raws: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """A transaction that waited and will not run.

    Attributes:
        arrival: its number in the journal.
        reason: for people; empty where a block has taken it, which is no loss and leaves no record.
    """

    arrival: int
    transaction_hash: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What logs are wanted: all of `addresses` (empty: any), and per position any of the topics (empty: any)."""

    first: int
    last: int
    addresses: tuple[Address, ...] = ()
    topics: tuple[tuple[bytes, ...], ...] = ()

    @property
    def is_indexed(self) -> bool:
        """Does an index narrow this query before it is read?"""
        return bool(self.addresses) or bool(self.topics and self.topics[0])

    def may_be_in(self, header: BlockHeader) -> bool:
        """Does the block's bloom filter let a match be in it?"""
        return all(
            not wanted or any(bloom_holds(header.logs_bloom, item) for item in wanted)
            for wanted in (self.addresses, *self.topics)
        )

    def matches(self, item: StoredLog) -> bool:
        """Is this log wanted?"""
        if self.addresses and item.address not in self.addresses:
            return False
        if len(self.topics) > len(item.topics):
            return False
        return all(not wanted or topic in wanted for wanted, topic in zip(self.topics, item.topics, strict=False))
