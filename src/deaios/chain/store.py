"""The chain on disk: one SQLite file, one transaction per block, waiting transactions journalled before the reply.

Invariant: a block, its state writes, its logs and the promise which header is signed at its height become durable
together, and before the signature exists. A second header at one height cannot be stored. After `kill -9` the file
holds the last acknowledged block and every acknowledged transaction. Knows no rules of the chain.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deaios.chain.blocks import Block, BlockHeader, Receipt, decode_header
from deaios.chain.commitment import StateCommitment
from deaios.chain.evm import EMPTY_CODE_HASH, Account, Changes, State
from deaios.chain.genesis import Genesis, decode_genesis, encode_genesis
from deaios.chain.stored import Gone, LogQuery, PlacedLog, StoredBlock
from deaios.chain.tables import (
    MIGRATIONS,
    StoredLog,
    StoredTransaction,
    decode_logs,
    decode_transactions,
    encode_logs,
    encode_transactions,
    is_hash_of,
    log_marks,
    mark_of,
    merge_runs,
    place_marks,
    place_of,
    read_block,
    read_block_1,
    read_receipt,
    split_place,
)
from deaios.ledger.rlp import encode_integer
from deaios.primitives.errors import ConfigError, Unavailable
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address
from deaios.runtime.journal import open_journal, transaction

GONE_MAX = 65_536
"""Records of transactions that left without a block; the oldest make way."""
LOADED_SLOTS = 10_000
"""Storage words read at once at start; each is turned into numbers without a line of Python of its own."""
PRUNED_AT_ONCE_MAX = 64
"""Blocks in one transaction of pruning."""
CACHE_KIB = 32 << 10
"""SQLite's pages in memory for the writer: enough that an index is not read again for each block."""
CHECKPOINT_PAGES = 4_000
"""16 MiB of log before it is copied into the file; a page that many blocks write is then copied once."""


_MARKED = "SELECT number FROM log_marks WHERE mark IN ({}) AND number BETWEEN ? AND ?"


class UnavailableStore(Unavailable):
    """The disk refused a write; nothing of it was acknowledged."""


class ChainStore:
    """Reads and writes of one chain file. One writer thread and one reader thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            ConfigError: it is not a chain of this program, or a newer one's.
        """
        self.path = path
        self._writer = open_journal(path, MIGRATIONS)
        self._convert_version_1()
        self._reader = open_journal(path, MIGRATIONS)
        self.oldest = int.from_bytes(self._meta("oldest") or b"")
        self._writer.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        self._writer.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")

    def _convert_version_1(self) -> None:
        """Blocks that version 1 kept row by row, as version 2 keeps them; all of them, or none."""
        tables = {row[0] for row in self._writer.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "transactions_1" not in tables:
            return
        with self._durable():
            heights = self._writer.execute("SELECT DISTINCT number FROM transactions_1 ORDER BY number").fetchall()
            for (number,) in heights:
                self._put_body(self._read_version_1(number))
            self._writer.execute("DROP TABLE transactions_1")
            self._writer.execute("DROP TABLE logs_1")

    def _read_version_1(self, number: int) -> Block:
        rows = self._writer.execute
        (header,) = rows("SELECT header FROM blocks WHERE number = ?", (number,)).fetchone()
        transactions = rows("SELECT * FROM transactions_1 WHERE number = ? ORDER BY position", (number,)).fetchall()
        logs = rows("SELECT * FROM logs_1 WHERE number = ? ORDER BY position", (number,)).fetchall()
        return read_block_1(decode_header(header), transactions, logs)

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
        finished: Iterable[int],
        signature: bytes | None = None,
        returned: Iterable[bytes] = (),
    ) -> None:
        """Write one block, and promise its header's digest for its height.

        Args:
            block: the next block.
            changes: its state writes.
            commitment: the state commitment after it.
            header_digest: what will be signed at this height, and nothing else ever.
            finished: arrivals that wait no longer.
            signature: over that header, where a follower has it from the operator already.
            returned: hashes in this block that were given up while it was built: their records are taken back.
        """
        with self._durable():
            self._put_block(block, changes, commitment)
            self._promise(block.header.number, header_digest, signature)
            self._writer.executemany("DELETE FROM waiting WHERE arrival BETWEEN ? AND ?", merge_runs(finished))
            self._writer.executemany(
                "DELETE FROM gone WHERE mark = ? AND hash = ?", [(mark_of(item), item) for item in returned]
            )

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

    def put_waiting(self, arrived: Sequence[tuple[int, bytes, Address]], gone: Sequence[Gone]) -> None:
        """Journal waiting transactions as (arrival, raw, sender); on return they may be acknowledged.

        Args:
            arrived: with numbers that no waiting transaction has.
            gone: what the pool gave up; forgotten, and remembered with its reason.
        """
        with self._durable():
            self._writer.executemany("DELETE FROM waiting WHERE arrival = ?", [(item.arrival,) for item in gone])
            self._writer.executemany("INSERT INTO waiting VALUES (?, ?, ?)", arrived)
            records = [
                (mark_of(item.transaction_hash), item.transaction_hash, item.reason) for item in gone if item.reason
            ]
            if records:
                self._writer.executemany("INSERT INTO gone (mark, hash, reason) VALUES (?, ?, ?)", records)
                self._writer.execute("DELETE FROM gone WHERE number <= (SELECT max(number) FROM gone) - ?", (GONE_MAX,))

    def load_waiting(self) -> list[tuple[int, bytes, Address]]:
        """Journalled transactions in order of arrival, as (arrival, raw, sender)."""
        rows = self._writer.execute("SELECT arrival, raw, sender FROM waiting ORDER BY arrival")
        return [(arrival, raw, Address(sender)) for arrival, raw, sender in rows]

    def fetch_gone(self, transaction_hash: bytes) -> str | None:
        """Why a transaction was given up, the last time that it was; it may have come again since."""
        row = self._reader.execute(
            "SELECT reason FROM gone WHERE mark = ? AND hash = ? ORDER BY number DESC",
            (mark_of(transaction_hash), transaction_hash),
        ).fetchone()
        return row[0] if row else None

    def load_state(self) -> tuple[State, StateCommitment]:
        """The whole state as of the last block."""
        codes = dict(self._writer.execute("SELECT hash, code FROM codes"))
        state = State()
        for address, nonce, balance, code_hash in self._writer.execute("SELECT * FROM accounts"):
            state.accounts[Address(address)] = Account(
                int.from_bytes(nonce), int.from_bytes(balance), codes.get(code_hash, b""), code_hash
            )
        holders = self._writer.execute("SELECT DISTINCT address FROM slots").fetchall()
        for (address,) in holders:
            words: dict[int, int] = {}
            rows = self._writer.execute("SELECT slot, value FROM slots WHERE address = ?", (address,))
            while chunk := rows.fetchmany(LOADED_SLOTS):
                slots, values = zip(*chunk, strict=True)
                words.update(zip(map(int.from_bytes, slots), map(int.from_bytes, values), strict=True))
            state.slots[Address(address)] = words
        state.slot_count = sum(map(len, state.slots.values()))
        lanes = self._meta("commitment")
        if lanes is None:
            raise ConfigError(f"{self.path} holds no chain")
        return state, StateCommitment(lanes)

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
        return read_block(header, *self._fetch_body(self._reader, number))

    def _fetch_body(
        self, connection: sqlite3.Connection, number: int
    ) -> tuple[list[StoredTransaction], list[StoredLog]]:
        """A block's transactions and logs; none where it is empty or pruned."""
        row = connection.execute("SELECT transactions, logs FROM bodies WHERE number = ?", (number,)).fetchone()
        return ([], []) if row is None else (decode_transactions(row[0]), decode_logs(row[1]))

    def fetch_sealed(self, first: int, count: int, bytes_max: int) -> list[StoredBlock]:
        """Up to `count` blocks from a height on; none is added once they have `bytes_max` bytes together."""
        found, size = list[StoredBlock](), 0
        rows = self._reader.execute(
            "SELECT number, header, signature FROM blocks LEFT JOIN signed_headers ON height = number "
            "WHERE number BETWEEN ? AND ? ORDER BY number",
            (first, first + count - 1),
        )
        for number, header, signature in rows:
            transactions, _ = self._fetch_body(self._reader, number)
            block = StoredBlock(number, header, signature, tuple(item.raw for item in transactions))
            size += len(header) + sum(len(raw) for raw in block.raws)
            if found and size > bytes_max:
                break
            found.append(block)
        return found

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read within belongs to one block, whatever is written meanwhile; the log on disk grows so long."""
        self._reader.execute("BEGIN")
        try:
            yield
        finally:
            self._reader.execute("COMMIT")

    def fetch_head(self) -> BlockHeader | None:
        """The last block's header, as of the reader's snapshot; None before there is a chain."""
        row = self._reader.execute("SELECT header FROM blocks ORDER BY number DESC LIMIT 1").fetchone()
        return decode_header(row[0]) if row else None

    def oldest_block(self) -> int:
        """The first height whose transactions and logs are kept, as of the reader's snapshot."""
        row = self._reader.execute("SELECT value FROM meta WHERE name = 'oldest'").fetchone()
        return int.from_bytes(row[0]) if row else 0

    def prune(self, before: int) -> None:
        """Delete transactions and logs below a height, at most `PRUNED_AT_ONCE_MAX` blocks; the rest of them stays."""
        end = min(before, self.oldest + PRUNED_AT_ONCE_MAX)
        if end <= self.oldest:
            return
        with self._durable():
            for number in range(self.oldest, end):
                transactions, logs = self._fetch_body(self._writer, number)
                places = [
                    (mark_of(keccak256(item.raw)), place_of(number, index)) for index, item in enumerate(transactions)
                ]
                marks = {mark_of(name) for item in logs for name in (item.address, *item.topics[:1])}
                self._writer.executemany("DELETE FROM places WHERE mark = ? AND place = ?", places)
                self._writer.executemany(
                    "DELETE FROM log_marks WHERE mark = ? AND number = ?", [(mark, number) for mark in sorted(marks)]
                )
            self._writer.execute("DELETE FROM bodies WHERE number BETWEEN ? AND ?", (self.oldest, end - 1))
            self._put_meta("oldest", end.to_bytes(8))
        self.oldest = end

    def compact(self) -> None:
        """Write the file anew without what was deleted. Takes as much space again while it runs; nobody else writes."""
        self._writer.execute("VACUUM")
        self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def fetch_commitment(self) -> StateCommitment:
        """The state commitment as of the reader's snapshot."""
        (lanes,) = self._reader.execute("SELECT value FROM meta WHERE name = 'commitment'").fetchone()
        return StateCommitment(lanes)

    def iterate_codes(self) -> Iterator[tuple[bytes, bytes]]:
        """Every contract code as (hash, code), by hash."""
        yield from self._reader.execute("SELECT hash, code FROM codes ORDER BY hash")

    def iterate_accounts(self) -> Iterator[tuple[Address, int, int, bytes]]:
        """Every account as (address, nonce, balance, code hash), by address."""
        rows = self._reader.execute("SELECT address, nonce, balance, code_hash FROM accounts ORDER BY address")
        for address, nonce, balance, code_hash in rows:
            yield Address(address), int.from_bytes(nonce), int.from_bytes(balance), code_hash

    def iterate_slots(self) -> Iterator[tuple[Address, int, int]]:
        """Every storage word as (address, slot, value), by address and slot."""
        for address, slot, value in self._reader.execute("SELECT * FROM slots ORDER BY address, slot"):
            yield Address(address), int.from_bytes(slot), int.from_bytes(value)

    def restore(
        self,
        genesis: Genesis,
        header: BlockHeader,
        signature: bytes,
        digest: bytes,
        codes: Iterable[tuple[bytes, bytes]],
        accounts: Iterable[tuple[Address, int, int, bytes]],
        slots: Iterable[tuple[Address, int, int]],
        commitment: Callable[[], StateCommitment],
    ) -> None:
        """Begin this file with the state after some block, in one transaction; what an iterable raises undoes it all.

        Args:
            genesis: the chain's.
            header: of the block after which the state stands; its transactions stay unknown.
            signature: the operator's over its record.
            digest: of its record.
            codes: (hash, code).
            accounts: (address, nonce, balance, code hash).
            slots: (address, slot, value).
            commitment: asked for when the iterables are used up.
        """
        with self._durable():
            write = self._writer.executemany
            write("INSERT INTO codes VALUES (?, ?)", codes)
            write(
                "INSERT INTO accounts VALUES (?, ?, ?, ?)",
                (
                    (address, nonce.to_bytes(8), balance.to_bytes(32), code_hash)
                    for address, nonce, balance, code_hash in accounts
                ),
            )
            write(
                "INSERT INTO slots VALUES (?, ?, ?)",
                ((address, slot.to_bytes(32), encode_integer(value)) for address, slot, value in slots),
            )
            self._put_meta("genesis", encode_genesis(genesis))
            self._put_meta("commitment", commitment().encode())
            self._writer.execute("INSERT INTO blocks VALUES (?, ?, ?)", (header.number, header.hash, header.encoded))
            self._promise(header.number, digest, signature)
            self._put_meta("oldest", (header.number + 1).to_bytes(8))

    def fetch_receipt(self, transaction_hash: bytes) -> tuple[BlockHeader, Receipt] | None:
        """A transaction's receipt and its block's header."""
        found = self._find_transaction(self._reader, transaction_hash)
        if found is None:
            return None
        number, index, transactions, logs = found
        header = self.fetch_header(number)
        assert header is not None, "a transaction and its block are written together"
        return header, read_receipt(transactions, logs, index)

    def has_transaction(self, transaction_hash: bytes) -> bool:
        """Is it in a block?"""
        return self._find_transaction(self._writer, transaction_hash) is not None

    def _find_transaction(
        self, connection: sqlite3.Connection, transaction_hash: bytes
    ) -> tuple[int, int, list[StoredTransaction], list[StoredLog]] | None:
        """Number, position, and the whole body around it."""
        rows = connection.execute("SELECT place FROM places WHERE mark = ?", (mark_of(transaction_hash),)).fetchall()
        for (place,) in rows:
            number, index = split_place(place)
            transactions, logs = self._fetch_body(connection, number)
            if is_hash_of(transactions[index], transaction_hash):
                return number, index, transactions, logs
        return None

    def fetch_logs(self, query: LogQuery, logs_max: int) -> list[PlacedLog]:
        """Logs that match, in chain order, at most `logs_max`."""
        found: list[PlacedLog] = []
        clauses, values = "", list[int]([query.first, query.last])
        for wanted in (query.addresses, query.topics[0] if query.topics else ()):
            if wanted:
                clauses += f" AND number IN ({_MARKED.format(','.join('?' * len(wanted)))})"
                values += [*map(mark_of, wanted), query.first, query.last]
        rows = self._reader.execute(
            "SELECT number, header, transactions, logs FROM bodies JOIN blocks USING (number) "  # noqa: S608 # constants
            f"WHERE number BETWEEN ? AND ?{clauses} ORDER BY number",
            values,
        )
        for number, encoded, transactions, logs in rows:
            header = decode_header(encoded)
            if not query.may_be_in(header):
                continue
            matching = [(place, item) for place, item in enumerate(decode_logs(logs)) if query.matches(item)]
            hashes = [keccak256(item.raw) for item in decode_transactions(transactions)] if matching else []
            for position, item in matching:
                placed = PlacedLog(item.log, number, header.hash, position, hashes[item.transaction], item.transaction)
                found.append(placed)
                if len(found) >= logs_max:
                    return found
        return found

    def _put_block(self, block: Block, changes: Changes, commitment: StateCommitment) -> None:
        header = block.header
        self._writer.execute("INSERT INTO blocks VALUES (?, ?, ?)", (header.number, header.hash, header.encoded))
        self._put_body(block)
        self._put_accounts(changes.accounts)
        self._put_slots(changes.slots)
        self._put_meta("commitment", commitment.encode())

    def _put_body(self, block: Block) -> None:
        if block.receipts:
            body = (block.header.number, encode_transactions(block), encode_logs(block))
            self._writer.execute("INSERT INTO bodies VALUES (?, ?, ?)", body)
            self._writer.executemany("INSERT INTO places VALUES (?, ?)", place_marks(block))
            self._writer.executemany("INSERT INTO log_marks VALUES (?, ?)", log_marks(block))

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
            [(address, slot.to_bytes(32), encode_integer(value)) for (address, slot), value in slots.items() if value],
        )
        self._writer.executemany(
            "DELETE FROM slots WHERE address = ? AND slot = ?",
            [(address, slot.to_bytes(32)) for (address, slot), value in slots.items() if not value],
        )

    def _promise(self, height: int, digest: bytes, signature: bytes | None = None) -> None:
        # The height is the primary key: a second digest for it is an error, not an update.
        self._writer.execute("INSERT INTO signed_headers VALUES (?, ?, ?)", (height, digest, signature))

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
