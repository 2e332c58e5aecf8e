"""A journal on its own thread with group commit: many waiting writers share one fsync.

Changes are applied in the order in which they were handed in, and a caller gets its answer only when the change is on
disk. After a write failed, memory and disk differ; the journal then refuses everything until the role restarts.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from deaios.primitives.errors import Unavailable
from deaios.runtime.journal import open_journal, transaction

QUEUE_MAX = 4096
"""Changes waiting; more means that the disk does not keep up."""
GROUP_MAX = 256
"""Changes under one fsync, so that one commit stays short."""

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]


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
        self._group: list[tuple[Change[Any], asyncio.Future[Any]]] = []
        self._drainer: asyncio.Task[None] | None = None
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
        if self._drainer is not None:
            await asyncio.wait({self._drainer})
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
            self._connection = None
        self._thread.shutdown()

    async def watch(self) -> None:
        """Return only by raising: once a write failed, nothing can be promised before a restart.

        Raises:
            UnavailableJournal: what failed.
        """
        await self._failed.wait()
        raise UnavailableJournal(f"journal {self._path} cannot write: {self._fault}")

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
        if self._drainer is None:
            self._drainer = loop.create_task(self._drain(), name=f"journal {self._path.name}")
            self._drainer.add_done_callback(self._drained)
        return future

    async def read(self, query: Change[T]) -> T:
        """Run a query on the journal's thread, after the writes already queued."""
        return await self.write(query)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            self._group = [self._waiting.popleft() for _ in range(min(GROUP_MAX, len(self._waiting)))]
            results = await loop.run_in_executor(self._thread, self._apply, [change for change, _ in self._group])
            for (_, future), result in zip(self._group, results, strict=True):
                if not future.done():
                    future.set_result(result)
            self._group = []
        # In the same step as the last look at the queue, so that no write falls between two drainers.
        self._drainer = None

    def _apply(self, changes: list[Change[Any]]) -> list[Any]:  # Any: as in the queue
        assert self._connection is not None, "journal is used before it is open"
        with transaction(self._connection) as connection:
            return [change(connection) for change in changes]

    def _drained(self, drainer: "asyncio.Task[None]") -> None:
        error = None if drainer.cancelled() else drainer.exception()
        if error is None and not drainer.cancelled():
            return
        self._drainer = None
        self._fault = repr(error)
        self._failed.set()
        for _, future in [*self._group, *self._waiting]:
            if not future.done():
                future.set_exception(UnavailableJournal(f"journal {self._path} cannot write: {error!r}"))
                future.exception()  # whoever stopped waiting never asks, and that is not a fault
        self._group = []
        self._waiting.clear()
