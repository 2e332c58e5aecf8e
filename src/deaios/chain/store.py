"""The chain on disk: one SQLite file, one transaction per block, waiting transactions journalled before the reply.

Invariant: a block, its state writes, its logs and the promise which header is signed at its height become durable
together, and before the signature exists. A second header at one height cannot be stored. After `kill -9` the file
holds the last acknowledged block and every acknowledged transaction. Knows no rules of the chain.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deaios.chain.blocks import Block, BlockHeader, Receipt, decode_header
from deaios.chain.commitment import StateCommitment
from deaios.chain.evm import EMPTY_CODE_HASH, Account, Changes, Log, State
from deaios.chain.genesis import Genesis, decode_genesis, encode_genesis
from deaios.ledger.transactions import decode_transaction
from deaios.primitives.errors import ConfigError, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.journal import open_journal, transaction

_SCHEMA = """
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
MIGRATIONS = (_SCHEMA,)
TOPIC_COLUMNS = ("topic0", "topic1", "topic2", "topic3")


class UnavailableStore(Unavailable):
    """The disk refused a write; nothing of it was acknowledged."""


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


class ChainStore:
    """Reads and writes of one chain file. One writer thread and one reader thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            ConfigError: it is not a chain of this program, or a newer one's.
        """
        self.path = path
        self._writer = open_journal(path, MIGRATIONS)
        self._reader = open_journal(path, MIGRATIONS)

    def close(self) -> None:
        """Close both connections."""
        self._reader.close()
        self._writer.close()

    def load_genesis(self) -> Genesis | None:
        """The genesis this file was made with."""
        value = self._meta("genesis")
        return None if value is None else decode_genesis(value)

    def create(
        self, genesis: Genesis, header: BlockHeader, changes: Changes, commitment: StateCommitment, digest: bytes
    ) -> None:
        """Write block 0, and promise its header's digest."""
        with self._durable():
            self._put_meta("genesis", encode_genesis(genesis))
            self._put_block(Block(header, ()), changes, commitment)
            self._promise(0, digest)

    def append(
        self,
        block: Block,
        changes: Changes,
        commitment: StateCommitment,
        header_digest: bytes,
        finished: Iterable[bytes],
    ) -> None:
        """Write one block, and promise its header's digest for its height.

        Args:
            block: the next block.
            changes: its state writes.
            commitment: the state commitment after it.
            header_digest: what will be signed at this height, and nothing else ever.
            finished: hashes that no longer wait: included, replaced or dropped.
        """
        with self._durable():
            self._put_block(block, changes, commitment)
            self._promise(block.header.number, header_digest)
            self._writer.executemany("DELETE FROM waiting WHERE hash = ?", [(item,) for item in finished])

    def put_signature(self, height: int, signature: bytes) -> None:
        """Keep the signature over a promised header."""
        with self._durable():
            self._writer.execute("UPDATE signed_headers SET signature = ? WHERE height = ?", (signature, height))

    def unsigned_heights(self) -> list[tuple[int, bytes]]:
        """Heights whose header was promised but not signed, as a crash leaves them."""
        rows = self._writer.execute("SELECT height, digest FROM signed_headers WHERE signature IS NULL ORDER BY height")
        return [(height, digest) for height, digest in rows]

    def fetch_signature(self, height: int) -> bytes | None:
        """The operator's signature over the header at a height."""
        row = self._reader.execute("SELECT signature FROM signed_headers WHERE height = ?", (height,)).fetchone()
        return row[0] if row else None

    def put_waiting(self, arrived: Sequence[tuple[int, bytes, bytes, Address]], replaced: Sequence[bytes]) -> None:
        """Journal waiting transactions as (arrival, hash, raw, sender); on return they may be acknowledged."""
        with self._durable():
            self._writer.executemany("DELETE FROM waiting WHERE hash = ?", [(item,) for item in replaced])
            self._writer.executemany(
                "INSERT OR REPLACE INTO waiting (arrival, hash, raw, sender) VALUES (?, ?, ?, ?)", arrived
            )

    def delete_waiting(self, hashes: Sequence[bytes]) -> None:
        """Forget transactions that can never run."""
        with self._durable():
            self._writer.executemany("DELETE FROM waiting WHERE hash = ?", [(item,) for item in hashes])

    def load_waiting(self) -> list[tuple[bytes, Address]]:
        """Journalled transactions in order of arrival, as (raw, sender)."""
        rows = self._writer.execute("SELECT raw, sender FROM waiting ORDER BY arrival")
        return [(raw, Address(sender)) for raw, sender in rows]

    def load_state(self) -> tuple[State, StateCommitment]:
        """The whole state as of the last block."""
        codes = dict(self._writer.execute("SELECT hash, code FROM codes"))
        state = State()
        for address, nonce, balance, code_hash in self._writer.execute("SELECT * FROM accounts"):
            state.accounts[Address(address)] = Account(
                int.from_bytes(nonce), int.from_bytes(balance), codes.get(code_hash, b""), code_hash
            )
        for address, slot, value in self._writer.execute("SELECT * FROM slots"):
            state.slots.setdefault(Address(address), {})[int.from_bytes(slot)] = int.from_bytes(value)
        lanes = self._meta("commitment")
        if lanes is None:
            raise ConfigError(f"{self.path} holds no chain")
        return state, StateCommitment(lanes)

    def load_head(self) -> BlockHeader:
        """The last block's header."""
        row = self._writer.execute("SELECT header FROM blocks ORDER BY number DESC LIMIT 1").fetchone()
        return decode_header(row[0])

    def fetch_header(self, number: int) -> BlockHeader | None:
        """The header at a height."""
        row = self._reader.execute("SELECT header FROM blocks WHERE number = ?", (number,)).fetchone()
        return decode_header(row[0]) if row else None

    def fetch_number(self, block_hash: bytes) -> int | None:
        """The height of a block hash."""
        row = self._reader.execute("SELECT number FROM blocks WHERE hash = ?", (block_hash,)).fetchone()
        return row[0] if row else None

    def fetch_headers(self, first: int, last: int) -> list[BlockHeader]:
        """Headers of a range, both ends included."""
        rows = self._reader.execute(
            "SELECT header FROM blocks WHERE number BETWEEN ? AND ? ORDER BY number", (first, last)
        )
        return [decode_header(row[0]) for row in rows]

    def fetch_block(self, number: int) -> Block | None:
        """A block with its receipts and logs."""
        header = self.fetch_header(number)
        if header is None:
            return None
        logs: dict[int, list[Log]] = {}
        for row in self._reader.execute("SELECT * FROM logs WHERE number = ? ORDER BY position", (number,)):
            logs.setdefault(row[3], []).append(_read_log(row))
        rows = self._reader.execute("SELECT * FROM transactions WHERE number = ? ORDER BY position", (number,))
        return Block(header, tuple(_read_receipt(row, logs.get(row[2], ())) for row in rows))

    def fetch_receipt(self, transaction_hash: bytes) -> tuple[BlockHeader, Receipt] | None:
        """A transaction's receipt and its block's header."""
        row = self._reader.execute("SELECT * FROM transactions WHERE hash = ?", (transaction_hash,)).fetchone()
        if row is None:
            return None
        header = self.fetch_header(row[1])
        assert header is not None, "a transaction and its block are written together"
        logs = self._reader.execute(
            "SELECT * FROM logs WHERE number = ? AND transaction_position = ? ORDER BY position", (row[1], row[2])
        )
        return header, _read_receipt(row, [_read_log(item) for item in logs])

    def fetch_logs(self, query: LogQuery, logs_max: int) -> list[PlacedLog]:
        """Logs that match, in chain order, at most `logs_max`."""
        clauses, values = ["logs.number BETWEEN ? AND ?"], list[object]((query.first, query.last))
        for column, wanted in (("address", query.addresses), *zip(TOPIC_COLUMNS, query.topics, strict=False)):
            if wanted:
                clauses.append(f"{column} IN ({','.join('?' * len(wanted))})")
                values += wanted
        rows = self._reader.execute(
            "SELECT logs.*, blocks.hash FROM logs JOIN blocks ON blocks.number = logs.number "  # noqa: S608 # constants
            f"WHERE {' AND '.join(clauses)} ORDER BY logs.number, position LIMIT ?",
            (*values, logs_max),
        )
        return [PlacedLog(_read_log(row), row[0], row[10], row[1], row[2], row[3]) for row in rows]

    def _put_block(self, block: Block, changes: Changes, commitment: StateCommitment) -> None:
        header = block.header
        write = self._writer.executemany
        self._writer.execute("INSERT INTO blocks VALUES (?, ?, ?)", (header.number, header.hash, header.encoded))
        write(
            "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    receipt.transaction.hash,
                    header.number,
                    receipt.index,
                    receipt.transaction.raw,
                    receipt.sender,
                    receipt.is_success,
                    receipt.gas_used,
                    receipt.gas_before,
                    receipt.price.to_bytes(32),
                    receipt.created,
                    receipt.log_start,
                    receipt.reason,
                )
                for receipt in block.receipts
            ],
        )
        write(
            "INSERT INTO logs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    header.number,
                    receipt.log_start + offset,
                    receipt.transaction.hash,
                    receipt.index,
                    log.address,
                    *(*log.topics, None, None, None, None)[:4],
                    log.data,
                )
                for receipt in block.receipts
                for offset, log in enumerate(receipt.logs)
            ],
        )
        self._put_accounts(changes.accounts)
        self._put_slots(changes.slots)
        self._put_meta("commitment", commitment.encode())

    def _put_accounts(self, accounts: Mapping[Address, Account]) -> None:
        self._writer.executemany(
            "INSERT OR IGNORE INTO codes VALUES (?, ?)",
            [
                (account.code_hash, account.code)
                for account in accounts.values()
                if account.code_hash != EMPTY_CODE_HASH
            ],
        )
        self._writer.executemany(
            "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)",
            [
                (address, account.nonce.to_bytes(8), account.balance.to_bytes(32), account.code_hash)
                for address, account in accounts.items()
                if not account.is_empty
            ],
        )
        self._writer.executemany(
            "DELETE FROM accounts WHERE address = ?",
            [(address,) for address, account in accounts.items() if account.is_empty],
        )

    def _put_slots(self, slots: Mapping[tuple[Address, int], int]) -> None:
        self._writer.executemany(
            "INSERT OR REPLACE INTO slots VALUES (?, ?, ?)",
            [(address, slot.to_bytes(32), value.to_bytes(32)) for (address, slot), value in slots.items() if value],
        )
        self._writer.executemany(
            "DELETE FROM slots WHERE address = ? AND slot = ?",
            [(address, slot.to_bytes(32)) for (address, slot), value in slots.items() if not value],
        )

    def _promise(self, height: int, digest: bytes) -> None:
        # The height is the primary key: a second digest for it is an error, not an update.
        self._writer.execute("INSERT INTO signed_headers (height, digest) VALUES (?, ?)", (height, digest))

    def _meta(self, name: str) -> bytes | None:
        row = self._writer.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _put_meta(self, name: str, value: bytes) -> None:
        self._writer.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    @contextmanager
    def _durable(self) -> Iterator[None]:
        try:
            with transaction(self._writer):
                yield
        except sqlite3.OperationalError as error:
            raise UnavailableStore(f"{self.path}: {error}") from error


def _read_log(row: tuple[int, int, bytes, int, bytes, bytes, bytes, bytes, bytes, bytes]) -> Log:
    return Log(Address(row[4]), tuple(topic for topic in row[5:9] if topic is not None), row[9])


def _read_receipt(
    row: tuple[bytes, int, int, bytes, bytes, int, int, int, bytes, bytes, int, str], logs: Sequence[Log]
) -> Receipt:
    transaction_hash, _, position, raw, sender, success, used, before, price, created, log_start, reason = row
    decoded = decode_transaction(raw)
    assert decoded.hash == transaction_hash, "the file holds the bytes that were hashed"
    return Receipt(
        transaction=decoded,
        sender=Address(sender),
        index=position,
        is_success=bool(success),
        gas_used=used,
        gas_before=before,
        price=int.from_bytes(price),
        created=Address(created) if created else None,
        logs=tuple(logs),
        log_start=log_start,
        reason=reason,
    )


def holds_chain(path: Path) -> bool:
    """Was a chain begun in this file? One that was made and cut before its genesis was written holds none.

    Raises:
        ConfigError: the file is no database of this program.
        UnavailableDisk: the disk failed.
    """
    if not path.exists():
        return False
    store = ChainStore(path)
    try:
        return store.load_genesis() is not None
    finally:
        store.close()
