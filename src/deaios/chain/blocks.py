"""Blocks of the embedded chain: Ethereum-shaped headers and their hashes, receipts, roots, blooms, base fee.

A block hash is keccak-256 of the RLP of a London header, as everywhere. Three of its fields mean something else here,
because the engine keeps no Merkle-Patricia trie: `stateRoot` is the commitment of `commitment.py`, `transactionsRoot`
and `receiptsRoot` are `primitives.merkle` roots over transaction hashes and over logs. The same three go into the
record that the operator signs (`ledger.structs.Header`). Knows no clock, disk or engine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import msgspec

from deaios.chain.evm import Log
from deaios.ledger.rlp import decode_integer, decode_rlp, encode_integer, encode_rlp, wrap_list
from deaios.ledger.structs import Header
from deaios.ledger.transactions import Transaction
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ADDRESS_SIZE, Address
from deaios.primitives.merkle import build_root

TRANSACTIONS_TAG = "deaios/chain/transactions/1"
LOGS_TAG = "deaios/chain/logs/1"

EMPTY_OMMERS_HASH = keccak256(encode_rlp([]))
BLOCK_NONCE = bytes(8)
BLOOM_BYTES = 256
EXTRA_BYTES_MAX = 32

ELASTICITY = 2
BASE_FEE_CHANGE_DENOMINATOR = 8
"""EIP-1559."""


class InvalidBlock(Invalid):
    """Bytes that are not a header of this chain."""


@dataclass(frozen=True)
class BlockHeader:
    """The fields of a London header that vary here; difficulty, nonce and ommers are constants after the merge."""

    parent_hash: bytes
    coinbase: Address
    state_commitment: bytes
    transactions_root: bytes
    logs_root: bytes
    logs_bloom: bytes
    number: int
    gas_limit: int
    gas_used: int
    timestamp: int
    extra_data: bytes
    prevrandao: bytes
    base_fee: int

    @cached_property
    def encoded(self) -> bytes:
        """RLP in Ethereum's field order."""
        return encode_rlp(
            [
                self.parent_hash,
                EMPTY_OMMERS_HASH,
                self.coinbase,
                self.state_commitment,
                self.transactions_root,
                self.logs_root,
                self.logs_bloom,
                b"",
                encode_integer(self.number),
                encode_integer(self.gas_limit),
                encode_integer(self.gas_used),
                encode_integer(self.timestamp),
                self.extra_data,
                self.prevrandao,
                BLOCK_NONCE,
                encode_integer(self.base_fee),
            ]
        )

    @cached_property
    def hash(self) -> bytes:
        """The block hash."""
        return keccak256(self.encoded)


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What became of one transaction.

    Attributes:
        index: position in the block.
        price: wei per gas that was paid.
        gas_before: gas used by the transactions before it in the block.
        log_start: logs of the block before its own.
        reason: why the engine refused it; empty otherwise.
    """

    transaction: Transaction
    sender: Address
    index: int
    is_success: bool
    gas_used: int
    gas_before: int
    price: int
    created: Address | None
    logs: tuple[Log, ...]
    log_start: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """A header with what it commits to."""

    header: BlockHeader
    receipts: tuple[Receipt, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of header and transactions, as explorers show it."""
        return len(self.header.encoded) + sum(len(receipt.transaction.raw) for receipt in self.receipts)


def decode_header(data: bytes) -> BlockHeader:
    """Read what `BlockHeader.encoded` wrote.

    Raises:
        InvalidBlock: not such a header, or a constant field that is not the constant.
    """
    match decode_rlp(data):
        case [
            bytes(parent_hash),
            bytes(ommers_hash),
            bytes(coinbase),
            bytes(state_commitment),
            bytes(transactions_root),
            bytes(logs_root),
            bytes(logs_bloom),
            b"",
            bytes(number),
            bytes(gas_limit),
            bytes(gas_used),
            bytes(timestamp),
            bytes(extra_data),
            bytes(prevrandao),
            bytes(nonce),
            bytes(base_fee),
        ]:
            pass
        case _:
            raise InvalidBlock("header is not a list of 16 strings with difficulty 0")
    hashes = (parent_hash, state_commitment, transactions_root, logs_root, prevrandao)
    if ommers_hash != EMPTY_OMMERS_HASH or nonce != BLOCK_NONCE or any(len(item) != 32 for item in hashes):
        raise InvalidBlock("header has ommers, a nonce, or a hash that is not 32 bytes")
    if len(coinbase) != ADDRESS_SIZE or len(logs_bloom) != BLOOM_BYTES or len(extra_data) > EXTRA_BYTES_MAX:
        raise InvalidBlock("header's coinbase, bloom or extra data has the wrong size")
    return BlockHeader(
        parent_hash=parent_hash,
        coinbase=Address(coinbase),
        state_commitment=state_commitment,
        transactions_root=transactions_root,
        logs_root=logs_root,
        logs_bloom=logs_bloom,
        number=decode_integer(number, 64),
        gas_limit=decode_integer(gas_limit, 64),
        gas_used=decode_integer(gas_used, 64),
        timestamp=decode_integer(timestamp, 64),
        extra_data=extra_data,
        prevrandao=prevrandao,
        base_fee=decode_integer(base_fee, 256),
    )


def compute_transactions_root(hashes: Sequence[bytes]) -> bytes:
    """Merkle root over transaction hashes in block order."""
    return build_root(TRANSACTIONS_TAG, hashes)


def encode_log_leaf(transaction_hash: bytes, log: Log) -> bytes:
    """The leaf of one log: RLP of [transaction hash, address, topics, data]."""
    # RLP heads of 32 and of 20 bytes, written out because every log of every block comes through here.
    topics = wrap_list([b"\xa0" + topic for topic in log.topics])
    return wrap_list([b"\xa0" + transaction_hash, b"\x94" + log.address, topics, encode_rlp(log.data)])


def compute_logs_root(receipts: Iterable[Receipt]) -> bytes:
    """Merkle root over every log of a block, in order."""
    return build_root(
        LOGS_TAG, [encode_log_leaf(receipt.transaction.hash, log) for receipt in receipts for log in receipt.logs]
    )


def compute_bloom(logs: Iterable[Log]) -> bytes:
    """The 2048-bit bloom filter over addresses and topics (Yellow Paper, section 4.3.1)."""
    items: set[bytes] = set()
    for log in logs:
        items.add(log.address)
        items.update(log.topics)
    bits = 0
    for item in items:
        bits |= _bloom_bits(item)
    return bits.to_bytes(BLOOM_BYTES)


def bloom_holds(bloom: bytes, item: bytes) -> bool:
    """May a block with this bloom filter have a log with this address or topic?"""
    bits = _bloom_bits(item)
    return int.from_bytes(bloom) & bits == bits


@lru_cache(maxsize=16384)
def _bloom_bits(item: bytes) -> int:
    digest = keccak256(item)
    bits = 0
    for offset in (0, 2, 4):
        bits |= 1 << (int.from_bytes(digest[offset : offset + 2]) & 2047)
    return bits


def next_base_fee(parent: BlockHeader) -> int:
    """Base fee of the block after `parent` (EIP-1559)."""
    target = parent.gas_limit // ELASTICITY
    if parent.gas_used == target:
        return parent.base_fee
    step = parent.base_fee * abs(parent.gas_used - target) // target // BASE_FEE_CHANGE_DENOMINATOR
    return parent.base_fee + max(step, 1) if parent.gas_used > target else parent.base_fee - step


def header_record(genesis_hash: bytes, header: BlockHeader) -> Header:
    """The record of a block that the operator signs."""
    return Header(
        genesis_hash=genesis_hash,
        height=header.number,
        previous_hash=header.parent_hash,
        transactions_root=header.transactions_root,
        logs_root=header.logs_root,
        state_commitment=header.state_commitment,
        timestamp=header.timestamp,
    )
