"""A journal on its own thread with group commit: many waiting writers share one fsync.

Changes are applied in the order in which they were handed in, and a caller gets its answer only when the change is on
disk. After a write failed, memory and disk differ; the journal then refuses everything until the role restarts.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from deaios.ledger.eip712 import encode_json
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.errors import Unavailable
from deaios.runtime.journal import open_journal, transaction

QUEUE_MAX = 4096
"""Changes waiting; more means that the disk does not keep up."""
GROUP_MAX = 256
"""Changes under one fsync, so that one commit stays short."""
TEXTS_MAX = 256
"""Texts of structs that are remembered."""

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]


@lru_cache(maxsize=TEXTS_MAX)
def spell(struct: object) -> str:
    """A struct's canonical text, as journals keep it: an offer or a channel is written with every purchase."""
    return encode_canonical_json(encode_json(struct)).decode()


class UnavailableJournal(Unavailable):
    """The journal cannot promise anything now: disk full, broken, or more writes than it can take."""


class Journal:
    """One SQLite file, one thread; open it before use and close it last."""

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        self._path = path
        self._migrations = migrations
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._connection: sqlite3.Connection | None = None
        # Any: each change has its own result type, and its own future is made with it.
        self._waiting: deque[tuple[Change[Any], asyncio.Future[Any]]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._fault: str | None = None
        self._failed = asyncio.Event()

    async def open(self) -> None:
        """Open the file.

        Raises:
            ConfigError: not a journal, or written by a newer program.
        """
        loop = asyncio.get_running_loop()
        self._connection = await loop.run_in_executor(self._thread, open_journal, self._path, self._migrations)

    async def close(self) -> None:
        """Write what waits, then close."""
        await self._idle.wait()
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
            self._connection = None
        self._thread.shutdown()

    def write(self, change: Change[T]) -> "asyncio.Future[T]":
        """Queue a change at once; the future ends when it is on disk.

        Raises:
            UnavailableJournal: an earlier write failed, or too many wait.
        """
        if self._fault is not None:
            raise UnavailableJournal(f"journal {self._path} failed earlier: {self._fault}; restart this role")
        if len(self._waiting) >= QUEUE_MAX:
            raise UnavailableJournal(f"{len(self._waiting)} writes wait for the disk, at most {QUEUE_MAX} may")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((change, future))
        if self._idle.is_set():
            self._idle.clear()
            loop.call_soon(self._begin_group)  # not now, so that writes of one step share one fsync
        return future

    async def watch(self) -> None:
        """Return only by raising: when a write has failed, so that the role ends and is started again.

        Raises:
            UnavailableJournal: what failed.
        """
        await self._failed.wait()
        raise UnavailableJournal(f"journal {self._path} failed: {self._fault}; this role must be started again")

    async def read(self, query: Change[T]) -> T:
        """Run a query on the journal's thread, after the writes already queued."""
        return await self.write(query)

    def _begin_group(self) -> None:
        """Hand what waits to the thread. Callbacks, not a task: every purchase passes here several times."""
        group = [self._waiting.popleft() for _ in range(min(GROUP_MAX, len(self._waiting)))]
        try:
            work = asyncio.get_running_loop().run_in_executor(
                self._thread, self._apply, [change for change, _ in group]
            )
        except RuntimeError as error:  # the thread was shut down
            self._fail(group, error)
            return
        work.add_done_callback(partial(self._end_group, group))

    def _end_group(self, group: "list[tuple[Change[Any], asyncio.Future[Any]]]", work: "asyncio.Future[Any]") -> None:
        if work.cancelled():
            self._fail(group, asyncio.CancelledError())
            return
        error = work.exception()
        if error is not None:
            self._fail(group, error)
            return
        for (_, future), result in zip(group, work.result(), strict=True):
            if not future.done():
                future.set_result(result)
        if self._waiting:
            self._begin_group()
        else:
            self._idle.set()

    def _apply(self, changes: list[Change[Any]]) -> list[Any]:  # Any: as in the queue
        assert self._connection is not None, "journal is used before it is open"
        with transaction(self._connection) as connection:
            return [change(connection) for change in changes]

    def _fail(self, group: "list[tuple[Change[Any], asyncio.Future[Any]]]", error: BaseException) -> None:
        """Tell everybody who waits, and refuse whoever comes; memory and disk may differ from now on."""
        self._fault = repr(error)
        self._failed.set()
        for _, future in [*group, *self._waiting]:
            if not future.done():
                future.set_exception(UnavailableJournal(f"journal {self._path} cannot write: {error!r}"))
                future.exception()  # whoever stopped waiting never asks, and that is not a fault
        self._waiting.clear()
        self._idle.set()
