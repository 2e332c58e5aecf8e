"""What a member has promised to keep, and until when: its journal beside the rows.

Invariant: a pledge is on disk before its attestation is signed, and rows are let go only when no pledge of their
matrix can be called on any more. Rows that came in and were never attested to, or whose certificate never came, are
let go after a stated time. A disk that fails is an error with a type, and changes nothing. Does not know the rows
themselves.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deaios.ledger.structs import RowAttestation
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.errors import RefusedFull
from deaios.runtime.journal import PRIMARY_CODE, open_journal, transaction

EXPIRED_MAX = 256
"""Matrices let go in one go."""
PRUNED_MAX = 1024
"""Pledges, and arrivals, dropped in one go beside those of matrices that are let go."""

_MIGRATIONS = (
    """
    CREATE TABLE arrivals (
        commitment BLOB PRIMARY KEY,
        arrived_s INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE pledges (
        commitment BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        begins_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        first_row INTEGER NOT NULL,
        rows INTEGER NOT NULL,
        certified INTEGER NOT NULL,
        settled INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (commitment, epoch, begins_at, expires_at)
    ) WITHOUT ROWID;
    CREATE TABLE progress (
        name TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX arrivals_by_time ON arrivals (arrived_s);
    CREATE INDEX pledges_waiting ON pledges (begins_at) WHERE NOT certified;
    CREATE INDEX pledges_settled ON pledges (expires_at) WHERE certified AND settled;
    CREATE INDEX pledges_unsettled ON pledges (expires_at, commitment, epoch, begins_at)
        WHERE certified AND NOT settled;
    """,
)

_CERTIFIED = """
    SELECT commitment, epoch, begins_at, expires_at, first_row, rows, certified FROM pledges
    WHERE certified AND (commitment, epoch, begins_at, expires_at) > (?, ?, ?, ?)
    ORDER BY commitment, epoch, begins_at, expires_at LIMIT ?
"""
_UNSETTLED = """
    SELECT commitment, epoch, begins_at, expires_at, first_row, rows, certified FROM pledges
    WHERE certified AND NOT settled AND expires_at < ? AND (expires_at, commitment, epoch, begins_at) > (?, ?, ?, ?)
    ORDER BY expires_at, commitment, epoch, begins_at LIMIT ?
"""
# What is over is found through indices of its own, so that looking every second costs that much and not what is kept.
_EXPIRED = """
    WITH found AS (
        SELECT commitment FROM pledges WHERE certified AND settled AND expires_at < :certified
        UNION SELECT commitment FROM pledges WHERE NOT certified AND begins_at < :begun
        UNION SELECT commitment FROM arrivals WHERE arrived_s < :arrived
    )
    SELECT commitment FROM found
    WHERE NOT EXISTS (
        SELECT 1 FROM pledges AS other WHERE other.commitment = found.commitment AND CASE other.certified
        WHEN 1 THEN other.expires_at >= :certified OR NOT other.settled ELSE other.begins_at >= :begun END
    ) AND NOT EXISTS (
        SELECT 1 FROM arrivals WHERE arrivals.commitment = found.commitment AND arrived_s >= :arrived
    )
    ORDER BY commitment LIMIT :limit
"""
_OUTLIVED = """
    WITH found AS (
        SELECT commitment, epoch, begins_at, expires_at FROM pledges
        WHERE certified AND settled AND expires_at < :certified
        UNION SELECT commitment, epoch, begins_at, expires_at FROM pledges WHERE NOT certified AND begins_at < :begun
    ), live AS MATERIALIZED (
        SELECT commitment FROM (SELECT DISTINCT commitment FROM found) AS matrix WHERE EXISTS (
            SELECT 1 FROM pledges AS other WHERE other.commitment = matrix.commitment AND CASE other.certified
            WHEN 1 THEN other.expires_at >= :certified OR NOT other.settled ELSE other.begins_at >= :begun END
        )
    )
    SELECT commitment, epoch, begins_at, expires_at FROM found WHERE commitment IN (SELECT commitment FROM live)
    ORDER BY commitment, epoch, begins_at, expires_at LIMIT :limit
"""
_OUTLIVED_ARRIVALS = """
    DELETE FROM arrivals WHERE commitment IN (
        SELECT commitment FROM arrivals WHERE arrived_s < ? AND NOT bytes
        AND EXISTS (SELECT 1 FROM pledges WHERE pledges.commitment = arrivals.commitment)
        ORDER BY arrived_s, commitment LIMIT ?
    )
"""
_ARRIVE = """
    INSERT INTO arrivals (commitment, arrived_s, bytes) VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET arrived_s = excluded.arrived_s, bytes = bytes + excluded.bytes
"""
_FIND = "SELECT certified FROM pledges WHERE commitment = ? AND epoch = ? AND begins_at = ? AND expires_at = ?"
_CERTIFY = "UPDATE pledges SET certified = 1 WHERE commitment = ? AND epoch = ? AND begins_at = ? AND expires_at = ?"
_SETTLE = "UPDATE pledges SET settled = 1 WHERE commitment = ? AND epoch = ? AND begins_at = ? AND expires_at = ?"
_DROP = (
    "DELETE FROM pledges WHERE commitment = ? AND epoch = ? AND begins_at = ? AND expires_at = ? RETURNING certified"
)
_INSERT = (
    "INSERT INTO pledges (commitment, epoch, begins_at, expires_at, first_row, rows, certified) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True)
class Pledge:
    """A promise to keep rows of one matrix.

    Attributes:
        attestation: what was signed.
        first_row: the member's rows are contiguous.
        rows: how many.
        is_certified: the certificate is on chain, so the promise can be called on.
    """

    attestation: RowAttestation
    first_row: int
    rows: int
    is_certified: bool

    @property
    def indices(self) -> range:
        """The rows."""
        return range(self.first_row, self.first_row + self.rows)


class PledgeStore:
    """One member's pledges. Safe to use from several threads; one process at a time.

    Attributes:
        guard: held by whoever looks at rows and promises together, so that no row is let go between the two.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the journal.

        Raises:
            ConfigError: another process has it open, or it is not usable.
            UnavailableDisk: the disk failed.
        """
        self._path = path
        self._journal = open_journal(path, _MIGRATIONS)
        self.guard = threading.RLock()
        row = self._journal.execute("SELECT coalesce(sum(certified), 0), count(*) FROM pledges").fetchone()
        self._counts = (int(row[0]), int(row[1]) - int(row[0]))
        self._waiting_bytes = int(self._journal.execute("SELECT coalesce(sum(bytes), 0) FROM arrivals").fetchone()[0])

    def close(self) -> None:
        """Close; a store is not used after this."""
        with self.guard:
            self._journal.close()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of rows that nobody has paid for: they wait for a certificate."""
        return self._waiting_bytes

    def note_arrival(self, commitment: bytes, now_s: int, size_bytes: int = 0) -> None:
        """Remember when a row of a matrix last came.

        Args:
            commitment: of the matrix.
            now_s: when, Unix seconds.
            size_bytes: what it adds to the rows that wait for a certificate.

        Raises:
            RefusedFull: the disk is full; nothing was noted.
            UnavailableDisk: the disk failed; nothing was noted.
        """
        with self.guard:
            with self._writing("an arrival was not noted"):
                self._journal.execute(_ARRIVE, (commitment, now_s, size_bytes))
            self._waiting_bytes += size_bytes

    def add(self, pledge: Pledge) -> None:
        """Make a promise; on return it is on disk. One that is there already stays as it is; raises as `note_chain`."""
        self.note_chain((pledge,), None)

    def note_chain(self, certified: Iterable[Pledge], scanned: int | None) -> None:
        """Take in pledges, most of them seen on chain, and up to which block the chain was looked through.

        Raises:
            RefusedFull: the disk is full; nothing was promised.
            UnavailableDisk: the disk failed; nothing was promised.
        """
        with self.guard:
            kept, waiting = self._counts
            paid_bytes = 0
            with self._writing("nothing was promised"):
                for pledge in certified:
                    was_certified = self._note(pledge)
                    if pledge.is_certified and not was_certified:
                        paid_bytes += self._take_arrived(pledge.attestation.commitment)
                    if was_certified is None:
                        kept, waiting = kept + pledge.is_certified, waiting + (not pledge.is_certified)
                    elif pledge.is_certified and not was_certified:
                        kept, waiting = kept + 1, waiting - 1
                if scanned is not None:
                    self._journal.execute("INSERT OR REPLACE INTO progress VALUES ('scanned', ?)", (scanned,))
            self._counts = (kept, waiting)
            self._waiting_bytes -= paid_bytes

    def _take_arrived(self, commitment: bytes) -> int:
        """What of a matrix's rows waited for a certificate until now."""
        found = self._journal.execute("SELECT bytes FROM arrivals WHERE commitment = ?", (commitment,)).fetchone()
        self._journal.execute("UPDATE arrivals SET bytes = 0 WHERE commitment = ?", (commitment,))
        return int(found[0]) if found else 0

    def _note(self, pledge: Pledge) -> bool | None:
        """Write one pledge; whether it was certified before, None where it was not there."""
        key = _key(pledge.attestation)
        found = self._journal.execute(_FIND, key).fetchone()
        if found is None:
            self._journal.execute(_INSERT, (*key, pledge.first_row, pledge.rows, pledge.is_certified))
            return None
        if pledge.is_certified:
            self._journal.execute(_CERTIFY, key)
        return bool(found[0])

    @property
    def scanned(self) -> int:
        """Last block that was looked through for certificates; -1 before the first."""
        with self._reading():
            row = self._journal.execute("SELECT value FROM progress WHERE name = 'scanned'").fetchone()
        return -1 if row is None else int(row[0])

    def is_certified(self, commitment: bytes) -> bool:
        """Has somebody paid for a matrix?"""
        with self._reading():
            found = self._journal.execute(
                "SELECT 1 FROM pledges WHERE commitment = ? AND certified LIMIT 1", (commitment,)
            )
            return found.fetchone() is not None

    def is_pledged(self, commitment: bytes) -> bool:
        """Is there any promise for a matrix?"""
        with self._reading():
            found = self._journal.execute("SELECT 1 FROM pledges WHERE commitment = ? LIMIT 1", (commitment,))
            return found.fetchone() is not None

    def list_certified(self, after: Pledge | None, limit: int) -> list[Pledge]:
        """Pledges that can be called on, by commitment, from behind `after` on."""
        start = (b"", -1, -1, -1) if after is None else _key(after.attestation)
        with self._reading():
            rows = self._journal.execute(_CERTIFIED, (*start, limit)).fetchall()
        return [_read(row) for row in rows]

    def list_unsettled(self, expired_before: int, after: Pledge | None, limit: int) -> list[Pledge]:
        """Certified pledges whose term is over and whose fee was not seen shared out, oldest first, behind `after`."""
        start = (-1, b"", -1, -1)
        if after is not None:
            said = after.attestation
            start = (said.expires_at, said.commitment, said.epoch, said.begins_at)
        with self._reading():
            rows = self._journal.execute(_UNSETTLED, (expired_before, *start, limit)).fetchall()
        return [_read(row) for row in rows]

    def mark_settled(self, pledge: Pledge) -> None:
        """The fee was shared out; raises as `note_arrival`."""
        with self._writing("a settlement was not noted"):
            self._journal.execute(_SETTLE, _key(pledge.attestation))

    def count(self) -> tuple[int, int]:
        """Pledges that can be called on, and those that wait for their certificate; never waits for the guard."""
        return self._counts

    def list_expired(self, certified_before: int, begun_before: int, arrived_before: int) -> list[bytes]:
        """Matrices of which nothing needs to be kept any more, ascending, at most `EXPIRED_MAX`.

        Args:
            certified_before: certified pledges that expired before this, and are settled, are over, Unix seconds.
            begun_before: pledges without a certificate that began before this cannot get one any more.
            arrived_before: rows without a pledge that came before this are nobody's.
        """
        times = {"certified": certified_before, "begun": begun_before, "arrived": arrived_before}
        with self._reading():
            rows = self._journal.execute(_EXPIRED, {**times, "limit": EXPIRED_MAX}).fetchall()
        return [bytes(row[0]) for row in rows]

    def forget(self, commitments: Sequence[bytes]) -> None:
        """Drop what is known of matrices whose rows are gone; raises as `note_arrival`."""
        with self.guard:
            kept, waiting = self._counts
            gone_bytes = 0
            with self._writing(f"{len(commitments)} matrices were not forgotten"):
                for commitment in commitments:
                    gone_bytes += self._take_arrived(commitment)
                    gone = self._journal.execute(
                        "DELETE FROM pledges WHERE commitment = ? RETURNING certified", (commitment,)
                    ).fetchall()
                    certified = sum(row[0] for row in gone)
                    kept, waiting = kept - certified, waiting - (len(gone) - certified)
                    self._journal.execute("DELETE FROM arrivals WHERE commitment = ?", (commitment,))
            self._counts = (kept, waiting)
            self._waiting_bytes -= gone_bytes

    def prune(self, certified_before: int, begun_before: int, arrived_before: int) -> int:
        """Drop pledges that are over where another one still keeps the matrix, and arrivals that pledges outlive.

        Without it, a matrix that is certified again and again, or attested to in many terms, would only ever grow.

        Args:
            certified_before: as `list_expired`.
            begun_before: as `list_expired`.
            arrived_before: as `list_expired`.

        Returns:
            How many pledges, at most `PRUNED_MAX`; raises as `note_arrival`.
        """
        times = {"certified": certified_before, "begun": begun_before}
        with self.guard:
            kept, waiting = self._counts
            with self._writing("nothing was pruned"):
                over = self._journal.execute(_OUTLIVED, {**times, "limit": PRUNED_MAX}).fetchall()
                for key in over:
                    (certified,) = self._journal.execute(_DROP, key).fetchall()[0]
                    kept, waiting = kept - certified, waiting - (not certified)
                self._journal.execute(_OUTLIVED_ARRIVALS, (arrived_before, PRUNED_MAX))
            self._counts = (kept, waiting)
        return len(over)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Under the guard; whose fault a failing disk is."""
        with self.guard:
            try:
                yield
            except sqlite3.OperationalError as error:
                raise UnavailableDisk(f"{self._path} failed ({error})") from error

    @contextmanager
    def _writing(self, consequence: str) -> Iterator[None]:
        """One transaction under the guard; whose fault a failing disk is, and what it means for the caller."""
        with self.guard:
            try:
                with transaction(self._journal):
                    yield
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & PRIMARY_CODE == sqlite3.SQLITE_FULL:
                    raise RefusedFull(f"the disk is full; {consequence}") from error
                raise UnavailableDisk(f"{self._path} failed ({error}); {consequence}") from error


def _key(said: RowAttestation) -> tuple[bytes, int, int, int]:
    return said.commitment, said.epoch, said.begins_at, said.expires_at


def _read(row: tuple[bytes, int, int, int, int, int, int]) -> Pledge:
    commitment, epoch, begins_at, expires_at, first_row, rows, certified = row
    return Pledge(RowAttestation(commitment, epoch, begins_at, expires_at), first_row, rows, bool(certified))
