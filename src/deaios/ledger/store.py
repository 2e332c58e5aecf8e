"""What a validator's keys have signed: its journal.

Invariant: what is signed is on disk before there is a signature, and a slot never gets a second content, so that a
validator that was killed, or whose chain changed under it, never signs two things where one is true. Does not know
what it is that is signed.
"""

import sqlite3
import threading
from pathlib import Path

from deaios.primitives.errors import Refused
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.journal import is_world_fault, open_journal, transaction

_MIGRATIONS = (
    """
    CREATE TABLE signed (
        slot BLOB PRIMARY KEY,
        digest BLOB NOT NULL
    ) WITHOUT ROWID;
    """,
)


class RefusedSecondPromise(Refused):
    """A slot has another content already: signing this one would be equivocation."""


class PromiseStore:
    """One validator's journal. Safe to use from several threads; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal.

        Raises:
            ConfigError: another process has it open, or it is not usable.
            UnavailableDisk: the disk failed.
        """
        self._path = path
        self._journal = open_journal(path, _MIGRATIONS)
        self._guard = threading.Lock()

    def close(self) -> None:
        """Close; a store is not used after this."""
        with self._guard:
            self._journal.close()

    def promise(self, slot: bytes, digest: bytes) -> None:
        """Give a slot its content for ever; on return it is on disk. The same content again changes nothing.

        Raises:
            RefusedSecondPromise: it has another one.
            UnavailableDisk: the disk failed or is full; nothing may be signed.
        """
        with self._guard:
            try:
                row = self._journal.execute("SELECT digest FROM signed WHERE slot = ?", (slot,)).fetchone()
                if row is None:
                    with transaction(self._journal):
                        self._journal.execute("INSERT INTO signed (slot, digest) VALUES (?, ?)", (slot, digest))
                    return
            except sqlite3.Error as error:
                if is_world_fault(error):
                    raise UnavailableDisk(f"{self._path}: {error}; nothing was signed") from error
                raise
        if row[0] != digest:
            raise RefusedSecondPromise(
                f"slot 0x{slot.hex()} was signed with 0x{row[0].hex()}; 0x{digest.hex()} would be a second one"
            )

    def count(self) -> int:
        """How many slots have a content."""
        with self._guard:
            return int(self._journal.execute("SELECT count(*) FROM signed").fetchone()[0])
