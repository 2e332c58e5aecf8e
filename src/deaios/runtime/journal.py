"""SQLite as a journal: what a committed transaction holds survives `kill -9` and power loss.

One file per role, write-ahead log, `synchronous=FULL`, forward migrations only. A file written by a newer program is
refused rather than guessed at.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deaios.primitives.errors import ConfigError
from deaios.runtime.disk import UnavailableDisk

BUSY_TIMEOUT_MS = 10_000
"""How long a writer waits for another process (such as a status command) before it fails."""
PRIMARY_CODE = 0xFF
"""Of an extended SQLite result code, the bits that say what kind it is (sqlite.org/rescode.html)."""
_WORLD_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})


def open_journal(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """Open or create a journal and bring its schema up to date.

    Args:
        path: the database file; its folder is created.
        migrations: SQL scripts, oldest first; `user_version` counts those already applied.

    Returns:
        A connection in autocommit mode; group writes with `transaction`. It may be used from any one thread at a time.

    Raises:
        ConfigError: the file was written by a newer program, is not a database, or another process holds it.
        UnavailableDisk: the disk is full or broken; the file may be sound.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        _migrate(connection, path, migrations)
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_world_fault(error):
            raise UnavailableDisk(f"cannot open {path}: {error}") from error
        raise ConfigError(f"{path} is not a usable database ({error}); move it away or restore a copy") from error
    except ConfigError:
        connection.close()
        raise
    return connection


def is_world_fault(error: sqlite3.Error) -> bool:
    """Did the disk stop SQLite, so that the same file may work later?"""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & PRIMARY_CODE in _WORLD_CODES


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise ConfigError(
            f"{path} has schema {version}, this program knows {len(migrations)}; run the newer program that wrote it"
        )
    for number, script in enumerate(migrations[version:], start=version + 1):
        with transaction(connection):
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing; on return the writes are on disk."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:  # the block or the commit failed, and SQLite has not rolled back by itself
            connection.execute("ROLLBACK")
