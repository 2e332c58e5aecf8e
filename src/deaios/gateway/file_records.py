"""Files and uploads in the gateway's records.

Invariants: a key's files are bounded in number and bytes, its open uploads and their parts too; what is over its time
is gone when anybody looks. Methods block.
"""

import hashlib
import sqlite3
from dataclasses import dataclass

from deaios.gateway.errors import RefusedQuota
from deaios.gateway.records import RecordStore
from deaios.primitives.errors import Invalid
from deaios.runtime.errors import NotFound

FILES_MAX = 256
"""Of one key."""
FILES_BYTES_MAX = 128 << 20
"""Of all files of one key, and again of the parts of its uploads."""
UPLOADS_MAX = 16
"""Open ones of one key."""
UPLOAD_PARTS_MAX = 256
_FILE = "file_id, key_id, created_at_ms, expires_at_ms, filename, purpose, size_bytes"
_UPLOAD = "upload_id, key_id, created_at_ms, expires_at_ms, filename, purpose, size_bytes, status, file_id"


class InvalidUpload(Invalid):
    """An upload that takes no more parts, or whose parts do not make its file."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of a file beside its content; times in milliseconds, None for no end."""

    file_id: str
    key_id: str
    created_at_ms: int
    expires_at_ms: int | None
    filename: str
    purpose: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """A file that comes in parts; `status` is `pending`, `completed` or `cancelled`."""

    upload_id: str
    key_id: str
    created_at_ms: int
    expires_at_ms: int
    filename: str
    purpose: str
    size_bytes: int
    status: str = "pending"
    file_id: str | None = None


class FileRecords:
    """Files and uploads of one record store."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def add_file(self, record: FileRecord, content: bytes) -> None:
        """Keep a file.

        Raises:
            RefusedQuota: the key has too many, or too many bytes.
        """
        with self._store.write() as connection:
            _forget(connection, record.created_at_ms)
            _insert_file(connection, record, content)

    def find_file(self, key_id: str, file_id: str, now_ms: int) -> FileRecord:
        """A file of this key.

        Raises:
            NotFound: there is none.
        """
        row = self._store.read_one(
            f"SELECT {_FILE} FROM files WHERE file_id = ? AND key_id = ? AND coalesce(expires_at_ms, ?) >= ?",  # noqa: S608 # a constant
            (file_id, key_id, now_ms, now_ms),
        )
        if row is None:
            raise NotFound(f"this key has no file {file_id[:80]!r}")
        return FileRecord(*row)

    def read_content(self, key_id: str, file_id: str, now_ms: int) -> bytes:
        """A file's bytes.

        Raises:
            NotFound: there is none.
        """
        self.find_file(key_id, file_id, now_ms)
        row = self._store.read_one("SELECT content FROM files WHERE file_id = ?", (file_id,))
        if row is None:
            raise NotFound(f"this key has no file {file_id[:80]!r}")
        return bytes(row[0])

    def list_files(self, key_id: str, now_ms: int) -> list[FileRecord]:
        """All files of a key, oldest first."""
        rows = self._store.read_all(
            f"SELECT {_FILE} FROM files WHERE key_id = ? AND coalesce(expires_at_ms, ?) >= ?"  # noqa: S608 # a constant
            " ORDER BY created_at_ms, file_id",
            (key_id, now_ms, now_ms),
        )
        return [FileRecord(*row) for row in rows]

    def delete_file(self, key_id: str, file_id: str) -> None:
        """Forget a file.

        Raises:
            NotFound: there is none.
        """
        with self._store.write() as connection:
            cursor = connection.execute("DELETE FROM files WHERE file_id = ? AND key_id = ?", (file_id, key_id))
        if not cursor.rowcount:
            raise NotFound(f"this key has no file {file_id[:80]!r}")

    def add_upload(self, record: UploadRecord) -> None:
        """Begin an upload.

        Raises:
            RefusedQuota: the key has too many open.
        """
        with self._store.write() as connection:
            _forget(connection, record.created_at_ms)
            (count,) = connection.execute(
                "SELECT count(*) FROM uploads WHERE key_id = ? AND status = 'pending'", (record.key_id,)
            ).fetchone()
            if count >= UPLOADS_MAX:
                raise RefusedQuota(f"this key has {count} open uploads, at most {UPLOADS_MAX} are allowed")
            connection.execute(
                f"INSERT INTO uploads ({_UPLOAD}) VALUES (?,?,?,?,?,?,?,?,?)",  # noqa: S608 # a constant
                (
                    record.upload_id,
                    record.key_id,
                    record.created_at_ms,
                    record.expires_at_ms,
                    record.filename,
                    record.purpose,
                    record.size_bytes,
                    record.status,
                    record.file_id,
                ),
            )

    def find_upload(self, key_id: str, upload_id: str, now_ms: int) -> UploadRecord:
        """An upload of this key.

        Raises:
            NotFound: there is none, or its time is over.
        """
        row = self._store.read_one(
            f"SELECT {_UPLOAD} FROM uploads WHERE upload_id = ? AND key_id = ? AND expires_at_ms >= ?",  # noqa: S608 # a constant
            (upload_id, key_id, now_ms),
        )
        if row is None:
            raise NotFound(f"this key has no upload {upload_id[:80]!r}, or its time is over")
        return UploadRecord(*row)

    def add_part(self, upload: UploadRecord, part_id: str, content: bytes, now_ms: int) -> None:
        """Keep a part.

        Raises:
            InvalidUpload: the upload has ended.
            RefusedQuota: it has too many parts, or more bytes than it said.
        """
        with self._store.write() as connection:
            _expect_pending(connection, upload)
            count, size = connection.execute(
                "SELECT count(*), coalesce(sum(length(content)), 0) FROM upload_parts WHERE upload_id = ?",
                (upload.upload_id,),
            ).fetchone()
            if count >= UPLOAD_PARTS_MAX or size + len(content) > upload.size_bytes:
                raise RefusedQuota(
                    f"the upload has {count} parts of {size} bytes; {UPLOAD_PARTS_MAX} parts and the "
                    f"{upload.size_bytes} bytes that it said are allowed"
                )
            connection.execute(
                "INSERT INTO upload_parts VALUES (?, ?, ?, ?)", (part_id, upload.upload_id, now_ms, content)
            )

    def complete(self, upload: UploadRecord, part_ids: list[str], record: FileRecord, md5: str | None) -> None:
        """Make a file of parts in the order named; `md5` is what the whole should hash to, in hex.

        Raises:
            InvalidUpload: it has ended, or the parts are not there or not of the size that was said.
            RefusedQuota: the key has too many files, or too many bytes.
        """
        with self._store.write() as connection:
            _expect_pending(connection, upload)
            rows = connection.execute(
                "SELECT part_id, content FROM upload_parts WHERE upload_id = ?", (upload.upload_id,)
            )
            parts = dict(rows.fetchall())
            if len(set(part_ids)) != len(part_ids) or not set(part_ids) <= parts.keys():
                raise InvalidUpload("part_ids names a part twice, or one that this upload does not have")
            content = b"".join(parts[part_id] for part_id in part_ids)
            if len(content) != upload.size_bytes:
                raise InvalidUpload(f"the parts have {len(content)} bytes, the upload said {upload.size_bytes}")
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if md5 is not None and md5.lower() != found:
                raise InvalidUpload(f"the parts hash to {found}, md5 says {md5[:32]!r}")
            _insert_file(connection, record, content)
            _end(connection, upload, "completed", record.file_id)

    def cancel(self, upload: UploadRecord) -> None:
        """Let an upload and its parts go.

        Raises:
            InvalidUpload: it has ended.
        """
        with self._store.write() as connection:
            _expect_pending(connection, upload)
            _end(connection, upload, "cancelled", None)


def insert_output(connection: sqlite3.Connection, record: FileRecord, content: bytes) -> None:
    """Keep a file that the gateway made itself: it is not refused for the key's quota, but counts in it."""
    connection.execute(
        f"INSERT INTO files ({_FILE}, content) VALUES (?,?,?,?,?,?,?,?)",  # noqa: S608 # a constant
        (
            record.file_id,
            record.key_id,
            record.created_at_ms,
            record.expires_at_ms,
            record.filename,
            record.purpose,
            record.size_bytes,
            content,
        ),
    )


def _insert_file(connection: sqlite3.Connection, record: FileRecord, content: bytes) -> None:
    count, size = connection.execute(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM files WHERE key_id = ?", (record.key_id,)
    ).fetchone()
    if count >= FILES_MAX or size + len(content) > FILES_BYTES_MAX:
        raise RefusedQuota(
            f"this key has {count} files of {size} bytes; {FILES_MAX} files of {FILES_BYTES_MAX} bytes are allowed"
        )
    insert_output(connection, record, content)


def _forget(connection: sqlite3.Connection, now_ms: int) -> None:
    connection.execute("DELETE FROM files WHERE expires_at_ms < ?", (now_ms,))
    connection.execute("DELETE FROM uploads WHERE expires_at_ms < ?", (now_ms,))


def _expect_pending(connection: sqlite3.Connection, upload: UploadRecord) -> None:
    row = connection.execute("SELECT status FROM uploads WHERE upload_id = ?", (upload.upload_id,)).fetchone()
    if row is None or row[0] != "pending":
        raise InvalidUpload(f"the upload is {row[0] if row else 'gone'}, pending is needed")


def _end(connection: sqlite3.Connection, upload: UploadRecord, status: str, file_id: str | None) -> None:
    connection.execute(
        "UPDATE uploads SET status = ?, file_id = ? WHERE upload_id = ?", (status, file_id, upload.upload_id)
    )
    connection.execute("DELETE FROM upload_parts WHERE upload_id = ?", (upload.upload_id,))
