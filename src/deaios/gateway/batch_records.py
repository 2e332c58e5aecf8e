"""Batches and their lines in the gateway's records.

Invariants: a line's draws are on disk before it is bought, so that its order is the same after a restart; a line has at
most one result; a batch ends once, and its output files appear in the same write. Methods block.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from deaios.gateway.errors import RefusedQuota
from deaios.gateway.file_records import FileRecord, insert_output
from deaios.gateway.files_wire import Batch, Counts
from deaios.gateway.records import RecordStore
from deaios.runtime.errors import NotFound

OPEN_MAX = 8
"""Batches of one key that have not ended."""
BATCHES_MAX = 256
"""Of one key; the oldest that have ended are forgotten."""
OPEN_STATES = ("in_progress", "cancelling")


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch; `draws` are nonces and salts of its purchases, end to end."""

    number: int
    custom_id: str
    body: bytes
    draws: bytes
    is_started: bool = False


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """What the worker needs to know of a batch."""

    batch_id: str
    key_id: str
    api: str
    status: str
    expires_at_ms: int


class BatchRecords:
    """Batches of one record store."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def add(self, key_id: str, api: str, batch: Batch, lines: Sequence[Line]) -> None:
        """Keep a batch with all its lines; one that failed at once has none.

        Raises:
            RefusedQuota: the key has too many open.
        """
        with self._store.write() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM batches WHERE key_id = ? AND status IN (?, ?)", (key_id, *OPEN_STATES)
            ).fetchone()
            if batch.status in OPEN_STATES and count >= OPEN_MAX:
                raise RefusedQuota(f"this key has {count} open batches, at most {OPEN_MAX} are allowed")
            connection.execute(
                "INSERT INTO batches VALUES (?,?,?,?,?,?,?,?)",
                (
                    batch.id,
                    key_id,
                    batch.created_at * 1000,
                    batch.expires_at * 1000,
                    batch.status,
                    api,
                    len(lines),
                    msgspec.json.encode(batch),
                ),
            )
            connection.executemany(
                "INSERT INTO batch_lines (batch_id, number, custom_id, body, draws) VALUES (?,?,?,?,?)",
                [(batch.id, line.number, line.custom_id, line.body, line.draws) for line in lines],
            )
            connection.execute(
                "DELETE FROM batches WHERE key_id = ? AND status NOT IN (?, ?) AND batch_id NOT IN"
                " (SELECT batch_id FROM batches WHERE key_id = ? ORDER BY created_at_ms DESC, batch_id LIMIT ?)",
                (key_id, *OPEN_STATES, key_id, BATCHES_MAX),
            )

    def find(self, key_id: str, batch_id: str) -> Batch:
        """A batch of this key as it stands.

        Raises:
            NotFound: there is none.
        """
        row = self._store.read_one(
            "SELECT document, status, total FROM batches WHERE batch_id = ? AND key_id = ?", (batch_id, key_id)
        )
        if row is None:
            raise NotFound(f"this key has no batch {batch_id[:80]!r}")
        return self._build(row)

    def list_batches(self, key_id: str) -> list[Batch]:
        """All batches of a key, newest first."""
        rows = self._store.read_all(
            "SELECT document, status, total FROM batches WHERE key_id = ? ORDER BY created_at_ms DESC, batch_id",
            (key_id,),
        )
        return [self._build(row) for row in rows]

    def list_open(self) -> list[OpenBatch]:
        """Batches that have not ended, oldest first."""
        rows = self._store.read_all(
            "SELECT batch_id, key_id, api, status, expires_at_ms FROM batches WHERE status IN (?, ?)"
            " ORDER BY created_at_ms, batch_id",
            OPEN_STATES,
        )
        return [OpenBatch(*row) for row in rows]

    def find_open(self, batch_id: str) -> OpenBatch | None:
        """A batch that has not ended."""
        row = self._store.read_one(
            "SELECT batch_id, key_id, api, status, expires_at_ms FROM batches WHERE batch_id = ? AND status IN (?, ?)",
            (batch_id, *OPEN_STATES),
        )
        return None if row is None else OpenBatch(*row)

    def cancel(self, batch_id: str, now_s: int) -> bool:
        """Begin no more lines; says whether the batch was running."""
        with self._store.write() as connection:
            row = connection.execute("SELECT document, status FROM batches WHERE batch_id = ?", (batch_id,)).fetchone()
            if row is None or row[1] != "in_progress":
                return False
            batch = msgspec.json.decode(row[0], type=Batch)
            _save(connection, msgspec.structs.replace(batch, status="cancelling", cancelling_at=now_s))
        return True

    def list_waiting(self, batch_id: str, after: int, count_max: int) -> list[Line]:
        """Lines without a result, in order."""
        rows = self._store.read_all(
            "SELECT number, custom_id, body, draws, is_started FROM batch_lines"
            " WHERE batch_id = ? AND number > ? AND result IS NULL ORDER BY number LIMIT ?",
            (batch_id, after, count_max),
        )
        return [Line(number, custom_id, body, draws, bool(started)) for number, custom_id, body, draws, started in rows]

    def start_line(self, batch_id: str, number: int) -> None:
        """From now on the line may have been bought."""
        with self._store.write() as connection:
            connection.execute(
                "UPDATE batch_lines SET is_started = 1 WHERE batch_id = ? AND number = ?", (batch_id, number)
            )

    def end_line(self, batch_id: str, number: int, result: bytes, *, is_good: bool) -> None:
        """Keep a line's result, the first that comes."""
        with self._store.write() as connection:
            connection.execute(
                "UPDATE batch_lines SET is_good = ?, result = ? WHERE batch_id = ? AND number = ? AND result IS NULL",
                (int(is_good), result, batch_id, number),
            )

    def finish(self, batch_id: str, status: str, now_ms: int, output: FileRecord, errors: FileRecord) -> None:
        """End a batch: its results become files, its lines go.

        Args:
            batch_id: which.
            status: `completed`, `expired` or `cancelled`.
            now_ms: wall time.
            output: the file of good results; its size is set here, and without results there is none.
            errors: the same of the others.
        """
        with self._store.write() as connection:
            row = connection.execute(
                "SELECT document, status, total FROM batches WHERE batch_id = ?", (batch_id,)
            ).fetchone()
            if row is None or row[1] not in OPEN_STATES:
                return
            batch, ids, sizes = msgspec.json.decode(row[0], type=Batch), [], []
            for is_good, record in ((1, output), (0, errors)):
                results = [
                    result
                    for (result,) in connection.execute(
                        "SELECT result FROM batch_lines WHERE batch_id = ? AND is_good = ? ORDER BY number",
                        (batch_id, is_good),
                    )
                ]
                content = b"".join(result + b"\n" for result in results)
                sizes.append(len(results))
                ids.append(record.file_id if results else None)
                if results:
                    insert_output(connection, replace(record, size_bytes=len(content)), content)
            changes: dict[str, Any] = {f"{status}_at": now_ms // 1000}  # Any: the fields of a batch
            ended = msgspec.structs.replace(
                batch,
                status=status,
                output_file_id=ids[0],
                error_file_id=ids[1],
                finalizing_at=now_ms // 1000,
                request_counts=Counts(row[2], *sizes),
                **changes,
            )
            _save(connection, ended)
            connection.execute("DELETE FROM batch_lines WHERE batch_id = ?", (batch_id,))

    def _build(self, row: tuple[Any, ...]) -> Batch:
        batch = msgspec.json.decode(row[0], type=Batch)
        if row[1] not in OPEN_STATES:
            return batch
        counted = self._store.read_one(
            "SELECT coalesce(sum(is_good = 1), 0), coalesce(sum(is_good = 0), 0) FROM batch_lines WHERE batch_id = ?",
            (batch.id,),
        )
        good, bad = counted or (0, 0)
        return msgspec.structs.replace(batch, request_counts=Counts(row[2], good, bad))


def _save(connection: sqlite3.Connection, batch: Batch) -> None:
    connection.execute(
        "UPDATE batches SET document = ?, status = ? WHERE batch_id = ?",
        (msgspec.json.encode(batch), batch.status, batch.id),
    )
