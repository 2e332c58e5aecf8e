"""An auditor's journal: secrets it has committed to, disputes it has begun, what it has audited.

A secret is on disk before its commitment is sent, so that a crash never turns an honest auditor into one that does not
reveal. A case is on disk before its first step, so that a crash never loses a found violation.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from deaios.primitives.keys import Address
from deaios.runtime.journal import open_journal, transaction

AUDITS_KEPT = 100_000

_MIGRATIONS = (
    """
    CREATE TABLE beacon_secret (
        round INTEGER NOT NULL, attempt INTEGER NOT NULL, secret BLOB NOT NULL, PRIMARY KEY (round, attempt)
    );
    CREATE TABLE verdict (
        dispute INTEGER NOT NULL, draw INTEGER NOT NULL, judgement INTEGER NOT NULL, evidence_root BLOB NOT NULL,
        salt BLOB NOT NULL, PRIMARY KEY (dispute, draw)
    );
    CREATE TABLE audit (
        receipt_digest BLOB PRIMARY KEY, provider BLOB NOT NULL, at_ms INTEGER NOT NULL, tokens INTEGER NOT NULL,
        margin_max REAL NOT NULL, holds INTEGER NOT NULL
    );
    CREATE INDEX audit_by_provider ON audit (provider, at_ms);
    CREATE TABLE open_case (
        receipt_digest BLOB PRIMARY KEY, evidence BLOB NOT NULL, evidence_root BLOB NOT NULL, salt BLOB NOT NULL,
        state TEXT NOT NULL, dispute INTEGER
    )
    """,
)


@dataclass(frozen=True, slots=True)
class KeptVerdict:
    """What this juror committed to."""

    judgement: int
    evidence_root: bytes
    salt: bytes


@dataclass(frozen=True, slots=True)
class Case:
    """A violation on its way to a jury; `state` is found, committed, opened or dropped."""

    receipt_digest: bytes
    evidence: bytes
    evidence_root: bytes
    salt: bytes
    state: str
    dispute: int | None


class AuditorStore:
    """The journal of one auditor."""

    def __init__(self, path: Path) -> None:
        self._db: sqlite3.Connection = open_journal(path, _MIGRATIONS)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def keep_beacon_secret(self, round_id: int, attempt: int, secret: bytes) -> bytes:
        """Remember a secret before its commitment is sent; returns the one already kept, if there is one."""
        with transaction(self._db):
            self._db.execute("INSERT OR IGNORE INTO beacon_secret VALUES (?, ?, ?)", (round_id, attempt, secret))
        kept = self.beacon_secret(round_id, attempt)
        assert kept is not None
        return kept

    def beacon_secret(self, round_id: int, attempt: int) -> bytes | None:
        """The secret of one attempt of a round."""
        row = self._db.execute(
            "SELECT secret FROM beacon_secret WHERE round = ? AND attempt = ?", (round_id, attempt)
        ).fetchone()
        return row[0] if row else None

    def keep_verdict(self, dispute: int, draw: int, verdict: KeptVerdict) -> KeptVerdict:
        """Remember a verdict before its commitment is sent; returns the one already kept, if there is one."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO verdict VALUES (?, ?, ?, ?, ?)",
                (dispute, draw, verdict.judgement, verdict.evidence_root, verdict.salt),
            )
        kept = self.verdict(dispute, draw)
        assert kept is not None
        return kept

    def verdict(self, dispute: int, draw: int) -> KeptVerdict | None:
        """What was committed to for one draw of a dispute."""
        row = self._db.execute(
            "SELECT judgement, evidence_root, salt FROM verdict WHERE dispute = ? AND draw = ?", (dispute, draw)
        ).fetchone()
        return KeptVerdict(*row) if row else None

    def record_audit(
        self, receipt_digest: bytes, provider: Address, at_ms: int, tokens: int, margin_max: float, *, holds: bool
    ) -> None:
        """Note one audited purchase."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO audit VALUES (?, ?, ?, ?, ?, ?)",
                (receipt_digest, provider, at_ms, tokens, margin_max, holds),
            )
            self._db.execute("DELETE FROM audit WHERE rowid <= (SELECT max(rowid) FROM audit) - ?", (AUDITS_KEPT,))

    def tokens_audited(self, provider: Address, since_ms: int) -> int:
        """Output tokens of a provider checked since a time."""
        row = self._db.execute(
            "SELECT coalesce(sum(tokens), 0) FROM audit WHERE provider = ? AND at_ms >= ?", (provider, since_ms)
        ).fetchone()
        return int(row[0])

    def summary(self) -> list[tuple[bytes, int, int, int]]:
        """(provider, audits, tokens, violations) per provider."""
        return self._db.execute(
            "SELECT provider, count(*), sum(tokens), sum(1 - holds) FROM audit GROUP BY provider ORDER BY provider"
        ).fetchall()

    def begin_case(self, receipt_digest: bytes, evidence: bytes, evidence_root: bytes, salt: bytes) -> None:
        """Remember a violation before anything is done about it."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO open_case VALUES (?, ?, ?, ?, 'found', NULL)",
                (receipt_digest, evidence, evidence_root, salt),
            )

    def advance_case(self, receipt_digest: bytes, state: str, dispute: int | None = None) -> None:
        """Note how far a case has come."""
        with transaction(self._db):
            self._db.execute(
                "UPDATE open_case SET state = ?, dispute = ? WHERE receipt_digest = ?", (state, dispute, receipt_digest)
            )

    def unopened_cases(self) -> list[Case]:
        """Violations that are not before a jury yet, oldest first."""
        rows = self._db.execute(
            "SELECT receipt_digest, evidence, evidence_root, salt, state, dispute FROM open_case "
            "WHERE state IN ('found', 'committed') ORDER BY rowid"
        ).fetchall()
        return [Case(*row) for row in rows]
