"""Places for heavy work: so many at once, so many that wait, and whoever comes then is told to come back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deaios.runtime.errors import RefusedBusy


class Slots:
    """Places of one kind; `waiting_max` bounds those who wait for one."""

    def __init__(self, count: int, waiting_max: int) -> None:
        self.waiting_max = waiting_max
        self._count = count
        self._free = asyncio.Semaphore(count)
        self._waiting = 0

    @asynccontextmanager
    async def take(self, *, is_admitted: bool = False) -> AsyncIterator[None]:
        """One of the places, until the block ends.

        Args:
            is_admitted: had a place before, and is not refused in the middle of its work.

        Raises:
            RefusedBusy: too many wait for one.
        """
        if self._waiting >= self.waiting_max and not is_admitted:
            raise RefusedBusy(f"{self._waiting} requests wait for {self._count} slots; retry later")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
