"""What the chain's file holds: its tables by version, and a block's transactions and logs as two blobs.

A block is one row: its transactions with what became of them, and its logs, each as MessagePack of positional records.
Beside it stand two thin indexes, by marks of eight bytes that several may share, so that whoever finds a row by one
looks at the whole: transaction hash to place, and log address or first topic to block. A *place* is a block's number
and a position in it as one integer. Knows no connection.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from deaios.chain.blocks import Block, BlockHeader, Receipt
from deaios.chain.evm import Log
from deaios.ledger.rlp import encode_integer
from deaios.ledger.transactions import decode_transaction
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

Row = tuple[Any, ...]  # Any: SQLite's values

PLACE_BITS = 24
"""Of a position within a block; 30 million gas hold 1,428 transactions."""

_VERSION_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE blocks (number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, header BLOB NOT NULL);
CREATE TABLE signed_headers (height INTEGER PRIMARY KEY, digest BLOB NOT NULL, signature BLOB);
CREATE TABLE transactions (
    hash BLOB PRIMARY KEY, number INTEGER NOT NULL, position INTEGER NOT NULL, raw BLOB NOT NULL, sender BLOB NOT NULL,
    success INTEGER NOT NULL, gas_used INTEGER NOT NULL, gas_before INTEGER NOT NULL, price BLOB NOT NULL,
    created BLOB, log_start INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX transactions_by_block ON transactions (number, position);
CREATE TABLE logs (
    number INTEGER NOT NULL, position INTEGER NOT NULL, transaction_hash BLOB NOT NULL,
    transaction_position INTEGER NOT NULL, address BLOB NOT NULL, topic0 BLOB, topic1 BLOB, topic2 BLOB, topic3 BLOB,
    data BLOB NOT NULL, PRIMARY KEY (number, position)) WITHOUT ROWID;
CREATE INDEX logs_by_address ON logs (address, number);
CREATE INDEX logs_by_topic ON logs (topic0, number);
CREATE TABLE codes (hash BLOB PRIMARY KEY, code BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE accounts (
    address BLOB PRIMARY KEY, nonce BLOB NOT NULL, balance BLOB NOT NULL, code_hash BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE slots (
    address BLOB NOT NULL, slot BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (address, slot)) WITHOUT ROWID;
CREATE TABLE waiting (hash BLOB PRIMARY KEY, arrival INTEGER NOT NULL, raw BLOB NOT NULL, sender BLOB NOT NULL)
"""
_VERSION_2 = """
CREATE TABLE bodies (number INTEGER PRIMARY KEY, transactions BLOB NOT NULL, logs BLOB NOT NULL);
CREATE TABLE places (mark INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (mark, place)) WITHOUT ROWID;
CREATE TABLE log_marks (mark INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (mark, number)) WITHOUT ROWID;
ALTER TABLE transactions RENAME TO transactions_1;
ALTER TABLE logs RENAME TO logs_1;
ALTER TABLE waiting RENAME TO waiting_1;
CREATE TABLE waiting (arrival INTEGER PRIMARY KEY, raw BLOB NOT NULL, sender BLOB NOT NULL);
INSERT INTO waiting SELECT arrival, raw, sender FROM waiting_1 ORDER BY arrival;
DROP TABLE waiting_1;
CREATE TABLE gone (number INTEGER PRIMARY KEY, mark INTEGER NOT NULL, hash BLOB NOT NULL, reason TEXT NOT NULL);
CREATE INDEX gone_by_mark ON gone (mark)
"""
MIGRATIONS = (_VERSION_1, _VERSION_2)


class StoredTransaction(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A transaction and what became of it, as a body holds them; the rest of a receipt follows from its neighbours."""

    raw: bytes
    sender: bytes
    is_success: bool
    gas_used: int
    price: bytes
    created: bytes | None
    log_count: int
    reason: str


class StoredLog(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A log, as a body holds it; `transaction` is its transaction's position."""

    transaction: int
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes

    @property
    def log(self) -> Log:
        """As the engine makes them."""
        return Log(Address(self.address), self.topics, self.data)


_encode = msgspec.msgpack.Encoder().encode
_decode_transactions = msgspec.msgpack.Decoder(list[StoredTransaction]).decode
_decode_logs = msgspec.msgpack.Decoder(list[StoredLog]).decode


def merge_runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as (first, last) of each unbroken run; what arrived one after another mostly leaves together."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def place_of(number: int, position: int) -> int:
    """Where something stands."""
    return (number << PLACE_BITS) + position


def split_place(place: int) -> tuple[int, int]:
    """Number and position of a place."""
    return place >> PLACE_BITS, place & ((1 << PLACE_BITS) - 1)


def mark_of(value: bytes) -> int:
    """What a hash, topic or address is found by: its last eight bytes as SQLite's integer."""
    return int.from_bytes(value[-8:], signed=True)


def encode_transactions(block: Block) -> bytes:
    """A block's transactions as a blob."""
    return _encode(
        [
            (
                receipt.transaction.raw,
                receipt.sender,
                receipt.is_success,
                receipt.gas_used,
                encode_integer(receipt.price),
                receipt.created,
                len(receipt.logs),
                receipt.reason,
            )
            for receipt in block.receipts
        ]
    )


def encode_logs(block: Block) -> bytes:
    """A block's logs as a blob."""
    return _encode(
        [(receipt.index, log.address, log.topics, log.data) for receipt in block.receipts for log in receipt.logs]
    )


def decode_transactions(blob: bytes) -> list[StoredTransaction]:
    """What `encode_transactions` wrote."""
    return _decode_transactions(blob)


def decode_logs(blob: bytes) -> list[StoredLog]:
    """What `encode_logs` wrote."""
    return _decode_logs(blob)


def place_marks(block: Block) -> list[tuple[int, int]]:
    """(mark, place) of a block's transactions."""
    start = place_of(block.header.number, 0)
    return [(mark_of(receipt.transaction.hash), start + receipt.index) for receipt in block.receipts]


def log_marks(block: Block) -> list[tuple[int, int]]:
    """(mark, number) of every address and first topic among a block's logs."""
    marks = set()
    for receipt in block.receipts:
        for log in receipt.logs:
            marks.add(mark_of(log.address))
            if log.topics:
                marks.add(mark_of(log.topics[0]))
    return [(mark, block.header.number) for mark in sorted(marks)]


def read_block(header: BlockHeader, transactions: Sequence[StoredTransaction], logs: Sequence[StoredLog]) -> Block:
    """A block from its row."""
    return Block(header, tuple(read_receipts(transactions, logs)))


def read_receipts(transactions: Sequence[StoredTransaction], logs: Sequence[StoredLog]) -> Iterator[Receipt]:
    """The receipts of a block, in order."""
    gas_before = log_start = 0
    for index, stored in enumerate(transactions):
        own = logs[log_start : log_start + stored.log_count]
        yield _read_receipt(stored, index, gas_before, log_start, own)
        gas_before += stored.gas_used
        log_start += stored.log_count


def read_receipt(transactions: Sequence[StoredTransaction], logs: Sequence[StoredLog], index: int) -> Receipt:
    """One of them, without reading the other transactions."""
    before = transactions[:index]
    gas_before, log_start = sum(item.gas_used for item in before), sum(item.log_count for item in before)
    stored = transactions[index]
    return _read_receipt(stored, index, gas_before, log_start, logs[log_start : log_start + stored.log_count])


def _read_receipt(
    stored: StoredTransaction, index: int, gas_before: int, log_start: int, logs: Sequence[StoredLog]
) -> Receipt:
    return Receipt(
        transaction=decode_transaction(stored.raw),
        sender=Address(stored.sender),
        index=index,
        is_success=stored.is_success,
        gas_used=stored.gas_used,
        gas_before=gas_before,
        price=int.from_bytes(stored.price),
        created=Address(stored.created) if stored.created else None,
        logs=tuple([item.log for item in logs]),
        log_start=log_start,
        reason=stored.reason,
    )


def is_hash_of(stored: StoredTransaction, transaction_hash: bytes) -> bool:
    """Is this the transaction with that hash, and not only with its mark?"""
    return keccak256(stored.raw) == transaction_hash


def read_block_1(header: BlockHeader, transactions: Sequence[Row], logs: Sequence[Row]) -> Block:
    """A block from version 1's rows."""
    own: dict[int, list[Log]] = {}
    for row in logs:
        topics = tuple([topic for topic in row[5:9] if topic is not None])
        own.setdefault(row[3], []).append(Log(Address(row[4]), topics, row[9]))
    receipts = []
    for _, _, index, raw, sender, success, used, before, price, created, log_start, reason in transactions:
        receipts.append(
            Receipt(
                transaction=decode_transaction(raw),
                sender=Address(sender),
                index=index,
                is_success=bool(success),
                gas_used=used,
                gas_before=before,
                price=int.from_bytes(price),
                created=Address(created) if created else None,
                logs=tuple(own.get(index, ())),
                log_start=log_start,
                reason=reason,
            )
        )
    return Block(header, tuple(receipts))
