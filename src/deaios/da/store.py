"""What a member has promised to keep, and until when: its journal beside the rows.

Invariant: a pledge is on disk before its attestation is signed, and rows are let go only when no pledge of their
matrix can be called on any more. Rows that came in and were never attested to, or whose certificate never came, are
let go after a stated time. Does not know the rows themselves.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deaios.ledger.structs import RowAttestation
from deaios.runtime.journal import open_journal, transaction

EXPIRED_MAX = 256
"""Matrices let go in one go."""

_MIGRATIONS = (
    """
    CREATE TABLE arrivals (
        commitment BLOB PRIMARY KEY,
        arrived_s INTEGER NOT NULL
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
    """,
)


_CERTIFIED = (
    "SELECT commitment, epoch, begins_at, expires_at, first_row, rows, certified FROM pledges "
    "WHERE certified AND commitment > ? ORDER BY commitment LIMIT ?"
)
_UNSETTLED = (
    "SELECT commitment, epoch, begins_at, expires_at, first_row, rows, certified FROM pledges "
    "WHERE certified AND NOT settled AND expires_at < ? ORDER BY expires_at, commitment LIMIT ?"
)
_EXPIRED = (
    "SELECT commitment FROM "
    "(SELECT commitment FROM pledges UNION SELECT commitment FROM arrivals WHERE arrived_s < :arrived) "
    "WHERE commitment NOT IN (SELECT commitment FROM pledges "
    "WHERE CASE certified WHEN 1 THEN expires_at >= :certified OR NOT settled ELSE begins_at >= :begun END) "
    "AND commitment NOT IN (SELECT commitment FROM arrivals WHERE arrived_s >= :arrived) LIMIT :limit"
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
        self._journal = open_journal(path, _MIGRATIONS)
        self.guard = threading.RLock()

    def close(self) -> None:
        """Close; a store is not used after this."""
        with self.guard:
            self._journal.close()

    def note_arrival(self, commitment: bytes, now_s: int) -> None:
        """Remember when a row of a matrix last came."""
        with self.guard, transaction(self._journal):
            self._journal.execute("INSERT OR REPLACE INTO arrivals VALUES (?, ?)", (commitment, now_s))

    def add(self, pledge: Pledge) -> None:
        """Make a promise; on return it is on disk. One that is there already stays as it is."""
        self.note_chain((pledge,), None)

    def note_chain(self, certified: Iterable[Pledge], scanned: int | None) -> None:
        """Take in pledges, most of them seen on chain, and up to which block the chain was looked through."""
        with self.guard, transaction(self._journal):
            for pledge in certified:
                said = pledge.attestation
                self._journal.execute(
                    "INSERT INTO pledges (commitment, epoch, begins_at, expires_at, first_row, rows, certified) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                    "SET certified = max(certified, excluded.certified)",
                    (
                        said.commitment,
                        said.epoch,
                        said.begins_at,
                        said.expires_at,
                        pledge.first_row,
                        pledge.rows,
                        pledge.is_certified,
                    ),
                )
            if scanned is not None:
                self._journal.execute("INSERT OR REPLACE INTO progress VALUES ('scanned', ?)", (scanned,))

    @property
    def scanned(self) -> int:
        """Last block that was looked through for certificates; -1 before the first."""
        with self.guard:
            row = self._journal.execute("SELECT value FROM progress WHERE name = 'scanned'").fetchone()
        return -1 if row is None else int(row[0])

    def is_pledged(self, commitment: bytes) -> bool:
        """Is there any promise for a matrix?"""
        with self.guard:
            found = self._journal.execute("SELECT 1 FROM pledges WHERE commitment = ? LIMIT 1", (commitment,))
            return found.fetchone() is not None

    def list_certified(self, after: bytes, limit: int) -> list[Pledge]:
        """Pledges that can be called on, by commitment, from behind `after` on."""
        with self.guard:
            rows = self._journal.execute(_CERTIFIED, (after, limit)).fetchall()
        return [_read(row) for row in rows]

    def list_unsettled(self, expired_before: int, limit: int) -> list[Pledge]:
        """Certified pledges whose term is over and whose fee was not seen shared out, oldest first."""
        with self.guard:
            rows = self._journal.execute(_UNSETTLED, (expired_before, limit)).fetchall()
        return [_read(row) for row in rows]

    def mark_settled(self, pledge: Pledge) -> None:
        """The fee was shared out."""
        said = pledge.attestation
        with self.guard, transaction(self._journal):
            self._journal.execute(
                "UPDATE pledges SET settled = 1 "
                "WHERE commitment = ? AND epoch = ? AND begins_at = ? AND expires_at = ?",
                (said.commitment, said.epoch, said.begins_at, said.expires_at),
            )

    def count(self) -> tuple[int, int]:
        """Pledges that can be called on, and those that wait for their certificate."""
        with self.guard:
            row = self._journal.execute("SELECT coalesce(sum(certified), 0), count(*) FROM pledges").fetchone()
        return int(row[0]), int(row[1]) - int(row[0])

    def list_expired(self, certified_before: int, begun_before: int, arrived_before: int) -> list[bytes]:
        """Matrices of which nothing needs to be kept any more, at most `EXPIRED_MAX`.

        Args:
            certified_before: certified pledges that expired before this, and are settled, are over, Unix seconds.
            begun_before: pledges without a certificate that began before this cannot get one any more.
            arrived_before: rows without a pledge that came before this are nobody's.
        """
        times = {"certified": certified_before, "begun": begun_before, "arrived": arrived_before}
        with self.guard:
            rows = self._journal.execute(_EXPIRED, {**times, "limit": EXPIRED_MAX}).fetchall()
        return [bytes(row[0]) for row in rows]

    def forget(self, commitments: Sequence[bytes]) -> None:
        """Drop what is known of matrices whose rows are gone."""
        with self.guard, transaction(self._journal):
            names = [(commitment,) for commitment in commitments]
            self._journal.executemany("DELETE FROM pledges WHERE commitment = ?", names)
            self._journal.executemany("DELETE FROM arrivals WHERE commitment = ?", names)


def _read(row: tuple[bytes, int, int, int, int, int, int]) -> Pledge:
    commitment, epoch, begins_at, expires_at, first_row, rows, certified = row
    return Pledge(RowAttestation(commitment, epoch, begins_at, expires_at), first_row, rows, bool(certified))
