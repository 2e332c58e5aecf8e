import contextlib
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from deaios.primitives.errors import ConfigError
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.journal import open_journal, transaction

FIRST = "CREATE TABLE a (x INTEGER PRIMARY KEY)"
SECOND = "CREATE TABLE b (y INTEGER); CREATE INDEX b_y ON b (y)"


def test_migrations_run_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "j.db"
    journal = open_journal(path, [FIRST])
    with transaction(journal):
        journal.execute("INSERT INTO a VALUES (1)")
    journal.close()
    journal = open_journal(path, [FIRST, SECOND])
    assert journal.execute("SELECT x FROM a").fetchall() == [(1,)]
    assert journal.execute("PRAGMA user_version").fetchone() == (2,)
    assert journal.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    open_journal(tmp_path / "j.db", [FIRST, SECOND]).close()
    with pytest.raises(ConfigError, match="schema 2, this program knows 1"):
        open_journal(tmp_path / "j.db", [FIRST])


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="not a usable database"):
        open_journal(tmp_path / "j.db", [FIRST])


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.db", [FIRST])

    def insert_twice() -> None:
        with transaction(journal):
            journal.execute("INSERT INTO a VALUES (1)")
            journal.execute("INSERT INTO a VALUES (1)")

    with pytest.raises(sqlite3.IntegrityError):
        insert_twice()
    assert journal.execute("SELECT count(*) FROM a").fetchone() == (0,)
    journal.close()


@contextlib.contextmanager
def no_file_grows() -> Iterator[None]:
    """The kernel refuses every byte beyond a file's first ones, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_the_worlds_fault_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with no_file_grows(), pytest.raises(UnavailableDisk, match="cannot open"):
        open_journal(path, [FIRST])
    journal = open_journal(path, [FIRST])
    with transaction(journal):
        journal.execute("INSERT INTO a VALUES (1)")
    journal.close()
    with no_file_grows(), pytest.raises(UnavailableDisk, match="cannot open"):
        open_journal(path, [FIRST, SECOND])
    journal = open_journal(path, [FIRST, SECOND])
    assert journal.execute("SELECT x FROM a").fetchall() == [(1,)]
    journal.close()
