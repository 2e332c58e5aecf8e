"""Rows and manifests on disk: append-only packs and a SQLite index.

What `put` returned for survives `kill -9` and power loss: the pack is fsynced before the index commits, and the index
commits before `put` returns. Bytes behind the last indexed entry of a pack are a torn write and get overwritten. A
digest is kept with each entry, so rotten bytes are reported and forgotten, never served. Does not know whether a row is
right; callers verify before they put.
"""

import errno
import os
import sqlite3
import threading
from pathlib import Path

from deaios.primitives.errors import ConfigError, Unavailable
from deaios.primitives.hashing import blake3_256
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.errors import RefusedFull
from deaios.runtime.journal import PRIMARY_CODE, open_journal, transaction

PACK_BYTES_MAX = 64 << 20
"""A pack is closed before an entry would take it past this; a single larger entry gets a pack of its own."""

ENTRY_OVERHEAD_BYTES = 256
"""What an entry costs in the index, counted against the quota so that many tiny entries cannot fill the disk."""

_MIGRATIONS = (
    """
    CREATE TABLE entries (
        key BLOB PRIMARY KEY,
        pack INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        size INTEGER NOT NULL,
        digest BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX entries_by_place ON entries (pack, offset);
    """,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class UnavailableEntry(Unavailable):
    """An entry whose bytes rotted on disk; it was forgotten and can be stored again."""


class RowStore:
    """One node's rows and manifests. Safe to use from several threads; one process at a time."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        """Open or create a store.

        Args:
            folder: holds the index and the packs.
            quota_bytes: most bytes of entries kept, index overhead included.

        Raises:
            ConfigError: another process has it open, or the index is not usable.
        """
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._lock = threading.Lock()
        self._index = open_journal(folder / "index.sqlite", _MIGRATIONS)
        try:
            self._index.execute("PRAGMA locking_mode=EXCLUSIVE")
            with transaction(self._index):
                self._pack, self._end, self._used_bytes = self._read_state()
        except sqlite3.OperationalError as error:
            self._index.close()
            if error.sqlite_errorcode & PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                raise UnavailableDisk(f"cannot open {folder}: {error}") from error
            raise ConfigError(f"{folder} is in use by another process ({error}); stop it or choose another") from error

    def _read_state(self) -> tuple[int, int, int]:
        row = self._index.execute(
            "SELECT pack, offset + size FROM entries ORDER BY pack DESC, offset DESC LIMIT 1"
        ).fetchone()
        used = self._index.execute(
            "SELECT coalesce(sum(size), 0) + count(*) * ? FROM entries", (ENTRY_OVERHEAD_BYTES,)
        ).fetchone()[0]
        pack, end = row or (0, 0)
        return pack, end, used

    @property
    def used_bytes(self) -> int:
        """Bytes counted against the quota."""
        return self._used_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes the quota leaves."""
        return max(0, self._quota_bytes - self._used_bytes)

    def put_row(self, commitment: bytes, index: int, data: bytes) -> bool:
        """Keep a verified row message.

        Returns:
            False when it was there already.

        Raises:
            RefusedFull: over the quota or the disk is full; nothing was stored.
            UnavailableDisk: the disk failed; nothing was stored.
        """
        return self._put(_row_key(commitment, index), data)

    def get_row(self, commitment: bytes, index: int) -> bytes | None:
        """A row message, or None.

        Raises:
            UnavailableEntry: its bytes rotted.
        """
        return self._get(_row_key(commitment, index))

    def get_row_size(self, commitment: bytes, index: int) -> int | None:
        """Size of a row message, or None, without reading it."""
        return self._get_size(_row_key(commitment, index))

    def put_manifest(self, manifest_id: bytes, data: bytes) -> bool:
        """Keep a checked manifest; as `put_row`."""
        return self._put(_manifest_key(manifest_id), data)

    def get_manifest(self, manifest_id: bytes) -> bytes | None:
        """A manifest, or None; as `get_row`."""
        return self._get(_manifest_key(manifest_id))

    def get_manifest_size(self, manifest_id: bytes) -> int | None:
        """Size of a manifest, or None, without reading it."""
        return self._get_size(_manifest_key(manifest_id))

    def close(self) -> None:
        """Close the index; a store is not used after this."""
        with self._lock:
            self._index.close()

    def _put(self, key: bytes, data: bytes) -> bool:
        digest = blake3_256(data)
        with self._lock:
            if self._index.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone() is not None:
                return False
            cost = len(data) + ENTRY_OVERHEAD_BYTES
            if self._used_bytes + cost > self._quota_bytes:
                raise RefusedFull(f"{cost} bytes more than {self.free_bytes} free of a quota of {self._quota_bytes}")
            pack, offset = self._pack, self._end
            if offset > 0 and offset + len(data) > PACK_BYTES_MAX:
                pack, offset = pack + 1, 0
            try:
                self._append(pack, offset, data)
                with transaction(self._index):
                    self._index.execute(
                        "INSERT INTO entries (key, pack, offset, size, digest) VALUES (?, ?, ?, ?, ?)",
                        (key, pack, offset, len(data), digest),
                    )
            except (OSError, sqlite3.OperationalError) as error:
                if getattr(error, "errno", None) in _FULL or getattr(error, "sqlite_errorcode", None) == (
                    sqlite3.SQLITE_FULL
                ):
                    raise RefusedFull(f"the disk is full; {len(data)} bytes were not stored") from error
                raise UnavailableDisk(f"cannot store {len(data)} bytes in {self._folder}: {error}") from error
            self._pack, self._end = pack, offset + len(data)
            self._used_bytes += cost
        return True

    def _append(self, pack: int, offset: int, data: bytes) -> None:
        """Write at a known place and fsync; a new pack's name is fsynced too."""
        path = self._pack_path(pack)
        created = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            view, place = memoryview(data), offset
            while view:
                written = os.pwrite(descriptor, view, place)
                view, place = view[written:], place + written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if created:
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _get(self, key: bytes) -> bytes | None:
        with self._lock:
            row = self._index.execute("SELECT pack, offset, size, digest FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        pack, offset, size, digest = row
        data = self._read(pack, offset, size)
        if blake3_256(data) != digest:
            self._forget(key, size)
            raise UnavailableEntry(f"{size} bytes at {offset} of pack {pack} rotted; the entry must be stored again")
        return data

    def _read(self, pack: int, offset: int, size: int) -> bytes:
        try:
            descriptor = os.open(self._pack_path(pack), os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            parts = []
            while size > 0 and (part := os.pread(descriptor, size, offset)):
                parts.append(part)
                size, offset = size - len(part), offset + len(part)
            return b"".join(parts)
        except OSError as error:
            raise UnavailableDisk(f"cannot read pack {pack}: {error}") from error
        finally:
            os.close(descriptor)

    def _forget(self, key: bytes, size: int) -> None:
        with self._lock, transaction(self._index):
            if self._index.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount:
                self._used_bytes -= size + ENTRY_OVERHEAD_BYTES

    def _get_size(self, key: bytes) -> int | None:
        with self._lock:
            row = self._index.execute("SELECT size FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else int(row[0])

    def _pack_path(self, pack: int) -> Path:
        return self._folder / f"{pack:08d}.pack"


def _row_key(commitment: bytes, index: int) -> bytes:
    return b"r" + commitment + index.to_bytes(2)


def _manifest_key(manifest_id: bytes) -> bytes:
    return b"m" + manifest_id
