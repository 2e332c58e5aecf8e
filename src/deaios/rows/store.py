"""Rows and manifests on disk: append-only packs and a SQLite index.

What `put` returned for survives `kill -9` and power loss: the pack is fsynced before the index commits, and the index
commits before `put` returns. What was deleted stays deleted for the same reason. Bytes behind the last indexed entry of
a pack are a torn write and are cut off. A digest is kept with each entry, so rotten bytes are reported and forgotten,
never served.

A pack goes once none of its entries is left. One that is mostly dead is emptied by `compact`: its live entries are
copied to the current pack and fsynced, one transaction moves a batch of them, and only then does the old pack go; so
every entry always lies whole where the index says. Packs that no entry refers to are what a crash left; opening removes
them. Within one life a pack's number is never used again, so no reader can mistake new bytes for those it looked up.

The quota counts what lies on the disk: all bytes of all packs, dead ones too, and a stated overhead for each entry (the
index file itself never shrinks; pages of entries that went are used for those that come). Dead bytes are given back by
`delete_rows` and `compact`, never just forgotten. `compact` alone may go over the quota, by less than half a pack and
while it runs: otherwise a full store could never be emptied. Does not know whether a row is right; callers verify
before they put.
"""

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deaios.primitives.errors import ConfigError, Unavailable
from deaios.primitives.hashing import blake3_256
from deaios.runtime.disk import UnavailableDisk, fsync_folder
from deaios.runtime.errors import RefusedFull
from deaios.runtime.journal import PRIMARY_CODE, open_journal, transaction

PACK_BYTES_MAX = 64 << 20
"""A pack is closed before an entry would take it past this; a single larger entry gets a pack of its own."""

ENTRY_OVERHEAD_BYTES = 256
"""What an entry costs in the index, counted against the quota so that many tiny entries cannot fill the disk."""

COPY_BYTES_MAX = 8 << 20
"""Bytes copied by `compact` in one go, more only for a single entry: how long puts and look-ups may wait for it."""

COPY_ENTRIES_MAX = 1024
"""Entries that one transaction of `compact` moves."""

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
_ROW_PREFIX, _ROW_PREFIX_NEXT = b"r", b"s"
_INDEX_BYTES = 2
_FULL = (errno.ENOSPC, errno.EDQUOT)


class UnavailableEntry(Unavailable):
    """An entry whose bytes rotted on disk; it was forgotten and can be stored again."""


@dataclass(slots=True)
class _Pack:
    """What one file holds.

    Attributes:
        size_bytes: on disk, dead ones too.
        live_bytes: of entries in the index.
        entries: how many these are.
    """

    size_bytes: int = 0
    live_bytes: int = 0
    entries: int = 0

    @property
    def is_sparse(self) -> bool:
        """Is less than half of it alive?"""
        return self.live_bytes * 2 < self.size_bytes or self.entries == 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an entry lies, as the index says."""

    pack: int
    offset: int
    size: int
    digest: bytes


class RowStore:
    """One node's rows and manifests. Safe to use from several threads; one process at a time."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        """Open or create a store.

        Args:
            folder: holds the index and the packs.
            quota_bytes: most bytes on disk, dead ones and index overhead included.

        Raises:
            ConfigError: another process has it open, or the index is not usable.
            UnavailableDisk: the disk failed.
        """
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._lock = threading.Lock()
        self._compacting = threading.Lock()
        self._packs: dict[int, _Pack] = {}
        self._pack, self._end = 0, 0
        self._used_bytes = 0
        self._index = open_journal(folder / "index.sqlite", _MIGRATIONS)
        try:
            self._index.execute("PRAGMA locking_mode=EXCLUSIVE")
            with transaction(self._index):
                self._read_state()
            self._clear_away()
        except OSError as error:
            self._index.close()
            raise UnavailableDisk(f"cannot open {folder}: {error}") from error
        except sqlite3.OperationalError as error:
            self._index.close()
            if error.sqlite_errorcode & PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                raise UnavailableDisk(f"cannot open {folder}: {error}") from error
            raise ConfigError(f"{folder} is in use by another process ({error}); stop it or choose another") from error

    def _read_state(self) -> None:
        """Learn from the index what every pack holds; the last one is the current one."""
        rows = self._index.execute(
            "SELECT pack, count(*), sum(size), max(offset + size) FROM entries GROUP BY pack ORDER BY pack"
        )
        for pack, entries, live_bytes, end in rows:
            self._packs[pack] = _Pack(0, live_bytes, entries)
            self._pack, self._end = pack, end
        self._used_bytes = sum(pack.entries for pack in self._packs.values()) * ENTRY_OVERHEAD_BYTES

    def _clear_away(self) -> None:
        """Remove what a crash left: packs that nothing refers to, and the torn end of the current one."""
        for path in sorted(self._folder.glob("*.pack")):
            if path.stem.isdecimal() and int(path.stem) not in self._packs:
                path.unlink()
        for number in self._packs:
            path = self._pack_path(number)
            if not path.exists():
                continue  # rot; readers are told
            if number == self._pack and path.stat().st_size > self._end:
                os.truncate(path, self._end)
            self._note_size(number, path.stat().st_size)

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

    def delete_rows(self, keys: Iterable[tuple[bytes, int]]) -> int:
        """Let rows go; on return they are gone for good, all in one transaction.

        Args:
            keys: commitment and index of each; those that are not here are passed over.

        Returns:
            How many there were.

        Raises:
            UnavailableDisk, RefusedFull: the disk failed or had no room to note it; nothing was deleted.
        """
        names = [_row_key(commitment, index) for commitment, index in keys]
        with self._lock:
            places: list[_Place] = []
            with self._typed_errors(f"{len(names)} rows were not deleted"), transaction(self._index):
                for name in names:
                    place = self._find(name)
                    if place is not None:
                        self._index.execute("DELETE FROM entries WHERE key = ?", (name,))
                        places.append(place)
            for place in places:
                self._count_entry(place.pack, -1, -place.size)
            for pack in sorted({place.pack for place in places}):
                self._reclaim(pack)
        return len(places)

    def list_rows(self, after: tuple[bytes, int] | None, limit: int) -> list[tuple[bytes, int]]:
        """Commitment and index of rows in ascending order, for whoever goes through them all.

        Args:
            after: the last one seen; None to begin.
            limit: most rows given.
        """
        start = _ROW_PREFIX if after is None else _row_key(*after)
        with self._lock:
            rows = self._index.execute(
                "SELECT key FROM entries WHERE key > ? AND key < ? ORDER BY key LIMIT ?",
                (start, _ROW_PREFIX_NEXT, limit),
            ).fetchall()
        return [(key[1:-_INDEX_BYTES], int.from_bytes(key[-_INDEX_BYTES:])) for (key,) in rows]

    def compact(self, bytes_max: int) -> int:
        """Empty packs of which less than half is alive; for a thread, as it copies.

        Args:
            bytes_max: most bytes copied; packs with more alive than what is left of it are passed over.

        Returns:
            Bytes given back to the disk, less those copied.

        Raises:
            UnavailableDisk, RefusedFull: the disk failed or is full; every entry is where it was, or moved whole.
        """
        freed = 0
        with self._compacting:
            for number, live_bytes in self._list_sparse():
                if live_bytes > bytes_max:
                    continue
                copied = 0
                # Bounded by the pack's entries: a pack that is not the current one gets no new ones.
                while (moved := self._move_some(number)) is not None:
                    copied += moved
                with self._lock:
                    given_back = self._reclaim(number)
                freed += given_back - copied if given_back else 0
                bytes_max -= copied
        return freed

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
        with self._compacting, self._lock:
            self._index.close()

    def _put(self, key: bytes, data: bytes) -> bool:
        digest = blake3_256(data)
        with self._lock:
            if self._find(key) is not None:
                return False
            cost = len(data) + ENTRY_OVERHEAD_BYTES
            if self._used_bytes + cost > self._quota_bytes:
                raise RefusedFull(f"{cost} bytes more than {self.free_bytes} free of a quota of {self._quota_bytes}")
            pack, offset = self._choose_place(len(data))
            with self._typed_errors(f"{len(data)} bytes were not stored"):
                try:
                    self._append(pack, offset, data)
                    with transaction(self._index):
                        self._index.execute(
                            "INSERT INTO entries (key, pack, offset, size, digest) VALUES (?, ?, ?, ?, ?)",
                            (key, pack, offset, len(data), digest),
                        )
                except (OSError, sqlite3.OperationalError):
                    self._retreat(pack, offset)
                    raise
            self._advance(pack, offset + len(data))
            self._count_entry(pack, 1, len(data))
        return True

    def _choose_place(self, size: int) -> tuple[int, int]:
        """Pack and offset of what is written next."""
        if self._end > 0 and self._end + size > PACK_BYTES_MAX:
            return self._pack + 1, 0
        return self._pack, self._end

    def _advance(self, pack: int, end: int) -> None:
        """Bytes were written: what comes next is written behind them."""
        self._pack, self._end = pack, end
        known = self._packs.get(pack)
        self._note_size(pack, end if known is None else max(end, known.size_bytes))

    def _retreat(self, pack: int, offset: int) -> None:
        """Cut off what a failed write left; what cannot be cut off is counted, and overwritten by the next write."""
        path = self._pack_path(pack)
        with contextlib.suppress(OSError):
            if offset == 0:
                path.unlink(missing_ok=True)
            else:
                os.truncate(path, offset)
        if pack in self._packs or path.exists():
            self._note_size(pack, path.stat().st_size if path.exists() else 0)

    def _note_size(self, pack: int, size_bytes: int) -> None:
        """A pack has so many bytes on disk."""
        known = self._packs.setdefault(pack, _Pack())
        self._used_bytes += size_bytes - known.size_bytes
        known.size_bytes = size_bytes

    def _count_entry(self, pack: int, entries: int, live_bytes: int) -> None:
        """A pack has so many more entries, and bytes of them."""
        known = self._packs[pack]
        known.entries += entries
        known.live_bytes += live_bytes
        self._used_bytes += entries * ENTRY_OVERHEAD_BYTES

    def _reclaim(self, pack: int) -> int:
        """Remove a pack that nothing refers to any more; gives the bytes that the disk has back."""
        known = self._packs.get(pack)
        if known is None or known.entries:
            return 0
        if pack == self._pack:
            self._pack, self._end = pack + 1, 0
        try:
            self._pack_path(pack).unlink(missing_ok=True)
        except OSError:
            return 0  # it stays counted; `compact` and the next opening try again
        self._used_bytes -= known.size_bytes
        del self._packs[pack]
        return known.size_bytes

    def _list_sparse(self) -> list[tuple[int, int]]:
        """Packs to be emptied, those with the least to copy first, and their live bytes; none is the current one."""
        with self._lock:
            sparse = [(pack.live_bytes, number) for number, pack in self._packs.items() if pack.is_sparse]
            if any(number == self._pack for _, number in sparse):
                self._pack, self._end = self._pack + 1, 0
        return [(number, live_bytes) for live_bytes, number in sorted(sparse)]

    def _move_some(self, pack: int) -> int | None:
        """Copy some entries of a pack behind the current end, then let the index say so.

        Returns:
            Bytes copied; None when no entry is left.
        """
        with self._lock, self._typed_errors(f"pack {pack} was not emptied"):
            moved: list[tuple[bytes, int]] = []
            parts: list[bytes] = []
            copied = 0
            for key, offset, size in self._index.execute(
                "SELECT key, offset, size FROM entries WHERE pack = ? ORDER BY offset LIMIT ?", (pack, COPY_ENTRIES_MAX)
            ).fetchall():
                if moved and copied + size > COPY_BYTES_MAX:
                    break
                moved.append((key, size))
                # Rotten bytes move as they are, at their length, so that their reader is told.
                parts.append(self._read(pack, offset, size).ljust(size, b"\0"))
                copied += size
            if not moved:
                return None
            target, start = self._choose_place(copied)
            try:
                self._append(target, start, b"".join(parts))
            except OSError:
                self._retreat(target, start)
                raise
            # Before the commit: one that fails may still be found on disk after a crash, and then these bytes count.
            self._advance(target, start + copied)
            with transaction(self._index):
                place = start
                for key, size in moved:
                    self._index.execute("UPDATE entries SET pack = ?, offset = ? WHERE key = ?", (target, place, key))
                    place += size
            self._count_entry(pack, -len(moved), -copied)
            self._count_entry(target, len(moved), copied)
            return copied

    @contextlib.contextmanager
    def _typed_errors(self, consequence: str) -> Iterator[None]:
        """Whose fault a failing disk is, and what it means for the caller."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            if getattr(error, "errno", None) in _FULL or code == sqlite3.SQLITE_FULL:
                raise RefusedFull(f"the disk is full; {consequence}") from error
            raise UnavailableDisk(f"{self._folder} failed ({error}); {consequence}") from error

    def _append(self, pack: int, offset: int, data: bytes) -> None:
        """Write at a known place and fsync; a new pack's name is fsynced too."""
        path = self._pack_path(pack)
        is_new = offset == 0 or not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            view, place = memoryview(data), offset
            while view:
                written = os.pwrite(descriptor, view, place)
                view, place = view[written:], place + written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            fsync_folder(self._folder)

    def _find(self, key: bytes) -> _Place | None:
        """Look an entry up; the lock is held."""
        row = self._index.execute("SELECT pack, offset, size, digest FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else _Place(*row)

    def _get(self, key: bytes) -> bytes | None:
        with self._lock:
            place = self._find(key)
        if place is None:
            return None
        data = self._read(place.pack, place.offset, place.size)
        if blake3_256(data) == place.digest:
            return data
        # It was deleted or moved since it was looked up, or it rotted: under the lock nothing moves.
        with self._lock:
            place = self._find(key)
            if place is None:
                return None
            data = self._read(place.pack, place.offset, place.size)
            if blake3_256(data) == place.digest:
                return data
            self._forget(key, place)
        raise UnavailableEntry(
            f"{place.size} bytes at {place.offset} of pack {place.pack} rotted; the entry must be stored again"
        )

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

    def _forget(self, key: bytes, place: _Place) -> None:
        """Drop a rotten entry; the lock is held."""
        with self._typed_errors("a rotten entry was not forgotten"), transaction(self._index):
            self._index.execute("DELETE FROM entries WHERE key = ?", (key,))
        self._count_entry(place.pack, -1, -place.size)
        self._reclaim(place.pack)

    def _get_size(self, key: bytes) -> int | None:
        with self._lock:
            place = self._find(key)
        return None if place is None else place.size

    def _pack_path(self, pack: int) -> Path:
        return self._folder / f"{pack:08d}.pack"


def _row_key(commitment: bytes, index: int) -> bytes:
    return _ROW_PREFIX + commitment + index.to_bytes(_INDEX_BYTES)


def _manifest_key(manifest_id: bytes) -> bytes:
    return b"m" + manifest_id
