"""An auditor's journal: secrets it has committed to, violations on their way to a jury, what it has audited.

A secret is on disk before its commitment is sent, so that a crash never turns an honest auditor into one that does not
reveal. A violation is on disk before its first step, and each step before the next, so that a crash never loses one
and never takes one to a jury twice.
"""

import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deaios.primitives.keys import Address
from deaios.runtime.journal import open_journal, transaction

AUDITS_KEPT = 100_000
ROUNDS_KEPT = 1_000
"""Beacon rounds whose secrets are kept; a round that is this much older than the newest is long over."""

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
    CREATE TABLE audit_case (
        receipt_digest BLOB PRIMARY KEY, evidence BLOB NOT NULL, evidence_root BLOB NOT NULL, salt BLOB NOT NULL,
        state TEXT NOT NULL, dispute INTEGER
    )
    """,
)


class CaseState(StrEnum):
    """How far a violation has come."""

    SUSPECTED = "suspected"
    """A margin or a finish broke a rule; replay has not been asked yet."""
    FOUND = "found"
    """Replay failed, too."""
    COMMITTED = "committed"
    """The chain holds the commitment to the evidence."""
    OPENING = "opening"
    """The dispute may or may not be on chain: what was sent last is not known."""
    OPENED = "opened"
    CLEARED = "cleared"
    """Replay gave the output."""
    DROPPED = "dropped"
    """It cannot or need not come before a jury."""


@dataclass(frozen=True, slots=True)
class KeptVerdict:
    """What this juror committed to."""

    judgement: int
    evidence_root: bytes
    salt: bytes


@dataclass(frozen=True, slots=True)
class Case:
    """A violation on its way to a jury."""

    receipt_digest: bytes
    evidence: bytes
    evidence_root: bytes
    salt: bytes
    state: CaseState
    dispute: int | None


@dataclass(frozen=True, slots=True)
class Audit:
    """One purchase that was re-executed."""

    receipt_digest: bytes
    provider: Address
    at_ms: int
    tokens: int
    margin_max: float
    holds: bool


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What turns an audit that broke a rule into a case."""

    evidence: bytes
    evidence_root: bytes
    salt: bytes


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
            self._db.execute("DELETE FROM beacon_secret WHERE round <= ?", (round_id - ROUNDS_KEPT,))
        return self.beacon_secrets(round_id)[attempt]

    def beacon_secrets(self, round_id: int) -> dict[int, bytes]:
        """The secrets of a round by attempt, the latest attempt first."""
        rows = self._db.execute(
            "SELECT attempt, secret FROM beacon_secret WHERE round = ? ORDER BY attempt DESC", (round_id,)
        ).fetchall()
        return dict(rows)

    def keep_verdict(self, dispute: int, draw: int, verdict: KeptVerdict) -> KeptVerdict:
        """Remember a verdict before its commitment is sent; returns the one already kept, if there is one."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO verdict VALUES (?, ?, ?, ?, ?)",
                (dispute, draw, verdict.judgement, verdict.evidence_root, verdict.salt),
            )
        return self.verdicts(dispute)[draw]

    def verdicts(self, dispute: int) -> dict[int, KeptVerdict]:
        """What was decided in a dispute, by draw."""
        rows = self._db.execute(
            "SELECT draw, judgement, evidence_root, salt FROM verdict WHERE dispute = ? ORDER BY draw", (dispute,)
        ).fetchall()
        return {draw: KeptVerdict(*rest) for draw, *rest in rows}

    def record_audit(self, audit: Audit, suspicion: Suspicion | None) -> None:
        """Note one audited purchase, and in the same breath the case that it makes."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO audit VALUES (?, ?, ?, ?, ?, ?)",
                (audit.receipt_digest, audit.provider, audit.at_ms, audit.tokens, audit.margin_max, audit.holds),
            )
            self._db.execute("DELETE FROM audit WHERE rowid <= (SELECT max(rowid) FROM audit) - ?", (AUDITS_KEPT,))
            if suspicion is not None:
                self._db.execute(
                    "INSERT OR IGNORE INTO audit_case VALUES (?, ?, ?, ?, ?, NULL)",
                    (
                        audit.receipt_digest,
                        suspicion.evidence,
                        suspicion.evidence_root,
                        suspicion.salt,
                        CaseState.SUSPECTED,
                    ),
                )

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

    def advance_case(self, receipt_digest: bytes, state: CaseState, dispute: int | None = None) -> None:
        """Note how far a case has come; what did not become a dispute needs its evidence no more."""
        with transaction(self._db):
            self._db.execute(
                "UPDATE audit_case SET state = ?, dispute = ? WHERE receipt_digest = ?",
                (state, dispute, receipt_digest),
            )
            if state in (CaseState.CLEARED, CaseState.DROPPED):
                self._db.execute("UPDATE audit_case SET evidence = x'' WHERE receipt_digest = ?", (receipt_digest,))

    def find_case(self, receipt_digest: bytes) -> Case | None:
        """A case by its receipt."""
        row = self._db.execute(
            "SELECT receipt_digest, evidence, evidence_root, salt, state, dispute FROM audit_case "
            "WHERE receipt_digest = ?",
            (receipt_digest,),
        ).fetchone()
        return _case_of(row) if row else None

    def open_cases(self) -> list[Case]:
        """Violations that are not before a jury yet, oldest first."""
        rows = self._db.execute(
            "SELECT receipt_digest, evidence, evidence_root, salt, state, dispute FROM audit_case "
            "WHERE state NOT IN ('opened', 'cleared', 'dropped') ORDER BY rowid"
        ).fetchall()
        return [_case_of(row) for row in rows]


def _case_of(row: tuple[bytes, bytes, bytes, bytes, str, int | None]) -> Case:
    digest, evidence, root, salt, state, dispute = row
    return Case(digest, evidence, root, salt, CaseState(state), dispute)
