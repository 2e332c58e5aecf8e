"""What the gateway keeps for its users beside their money: responses that may be had again. One SQLite journal.

Invariants: a record belongs to one key, and no other key sees that it exists; what a client was told is kept is on
disk; each key's records are bounded in number, bytes and age, the oldest go first. Its methods block.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deaios.gateway.records_schema import MIGRATIONS
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.journal import open_journal, transaction

RESPONSES_MAX = 4096
"""Of one key."""
RESPONSE_BYTES_MAX = 64 << 20
"""Of all responses of one key, with their conversations."""
RETENTION_MS = 30 * 24 * 3600 * 1000
"""As long as the OpenAI API keeps responses."""


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """One response.

    Attributes:
        response_id: its public name.
        key_id: whose.
        created_at_ms: wall time.
        document: what the client was given, JSON.
        turns: the whole conversation, its own answer last, JSON.
    """

    response_id: str
    key_id: str
    created_at_ms: int
    document: bytes
    turns: bytes


class RecordStore:
    """Records on disk."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # Threads of the loop's pool share one connection.
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the journal."""
        return cls(open_journal(path, MIGRATIONS))

    def close(self) -> None:
        """Close, after what a thread is in."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on return it is on disk.

        Raises:
            UnavailableDisk: the disk did not take it.
        """
        try:
            with self._lock, transaction(self._connection) as connection:
                yield connection
        except sqlite3.Error as error:
            raise UnavailableDisk(f"the record could not be kept: {error}") from error

    def read_one(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        """The first row of a query."""
        # Any: STRICT tables hold the declared types.
        with self._lock:
            row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        return row

    def read_all(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def keep_response(self, record: ResponseRecord) -> None:
        """Keep a response, and let go what is too old or too much for its key; a second time changes nothing.

        Raises:
            UnavailableDisk: the disk did not take it.
        """
        size = len(record.document) + len(record.turns)
        with self.write() as connection:
            connection.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (record.response_id, record.key_id, record.created_at_ms, record.document, record.turns, size),
            )
            connection.execute(
                """
                DELETE FROM responses WHERE key_id = ? AND response_id != ? AND (created_at_ms < ? OR response_id IN
                (SELECT response_id FROM (SELECT response_id,
                    row_number() OVER (ORDER BY created_at_ms DESC, response_id) AS place,
                    sum(size_bytes) OVER (ORDER BY created_at_ms DESC, response_id) AS total
                    FROM responses WHERE key_id = ?) WHERE place > ? OR total > ?))
                """,
                (
                    record.key_id,
                    record.response_id,
                    record.created_at_ms - RETENTION_MS,
                    record.key_id,
                    RESPONSES_MAX,
                    RESPONSE_BYTES_MAX,
                ),
            )

    def find_response(self, key_id: str, response_id: str) -> ResponseRecord | None:
        """A response of this key."""
        row = self.read_one(
            "SELECT response_id, key_id, created_at_ms, document, turns FROM responses"
            " WHERE response_id = ? AND key_id = ?",
            (response_id, key_id),
        )
        return None if row is None else ResponseRecord(*row)

    def delete_response(self, key_id: str, response_id: str) -> bool:
        """Forget a response; says whether there was one."""
        with self.write() as connection:
            cursor = connection.execute(
                "DELETE FROM responses WHERE response_id = ? AND key_id = ?", (response_id, key_id)
            )
        return cursor.rowcount > 0
