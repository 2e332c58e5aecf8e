"""Work of one chain in threads: under a lock where it must be alone, and never half done because a caller left."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Runs jobs in an executor that the caller owns; `drain` waits for all of them."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._tasks: set[asyncio.Task[Any]] = set()  # Any: results of several types

    async def run(self, job: Callable[[], T]) -> T:
        """Run a job in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    async def run_locked(self, lock: asyncio.Lock, job: Callable[[], T]) -> T:
        """Run a job in a thread; a caller that goes away does not free the lock before the thread is done."""

        async def locked() -> T:
            async with lock:
                return await self.run(job)

        return await self.shield(locked())

    async def shield(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish the work whatever happens to the caller."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin work that `drain` will wait for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self) -> None:
        """Wait until nothing is left to do."""
        while self._tasks:  # bounded: nothing adds work after the HTTP server and `run` have ended
            await asyncio.wait(self._tasks)
