"""When blocks are made: paced by what waits, at once, or at an interval; and empty ones while deadlines run.

An idle chain makes no blocks. It beats, with empty blocks, until the latest time at which some contract needs a block.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

from deaios.chain.blocks import BlockHeader, next_base_fee
from deaios.chain.evm import State
from deaios.chain.pool import Pool, PoolLimits
from deaios.primitives.errors import ConfigError, DeaiosError
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

Deadline = Callable[[], Awaitable[int]]

DEADLINE_RETRY_S = 1.0
"""How soon an unanswered deadline is asked for again while nothing else happens."""
KEEP_BLOCKS_MIN = 256
"""As many as are kept in memory; fewer on disk would leave a start with less than it shows."""
_log = get_logger("chain")


class Sealing(Enum):
    """When blocks are made."""

    PACED = "paced"
    """When transactions wait, after a moment in which others may join them; at most one each `block_ms`."""
    INSTANT = "instant"
    """As soon as a transaction waits that can be included. For tests: ethers 6 caches nonces for longer than that."""
    INTERVAL = "interval"
    """Each `block_ms`, whether or not anything waits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Pace and bounds of one chain.

    Attributes:
        block_ms: least time between blocks.
        gather_ms: how long a first transaction waits for others. Above 250 ms, because ethers 6 caches nonces that
            long and would use one twice after an inclusion that is too quick.
        keep_blocks: of so many newest blocks transactions and logs are kept; 0 keeps all. Headers, signatures and
            state are kept always.
        slots_max: storage words of all contracts together at which nothing more is admitted. They are held in memory;
            ten million take some 4 GiB.
    """

    block_ms: int = 500
    gather_ms: int = 260
    pool: PoolLimits = field(default_factory=PoolLimits)
    sealing: Sealing = Sealing.PACED
    keep_blocks: int = 0
    slots_max: int = 10_000_000

    def __post_init__(self) -> None:
        if self.keep_blocks and self.keep_blocks < KEEP_BLOCKS_MIN:
            raise ConfigError(f"keep_blocks is {self.keep_blocks}; it must be 0 (all) or at least {KEEP_BLOCKS_MIN}")


class Pace:
    """Tells one chain when its next block is due.

    Attributes:
        wake: set when a transaction arrives.
        mine_until: height up to which blocks are made, whether or not anything waits.
        is_deadline_stale: set after a block that may have moved deadlines.
    """

    def __init__(
        self, limits: Limits, clock: Clock, deadline: Deadline | None, wake: asyncio.Event, pool: Pool
    ) -> None:
        self.wake = wake
        self.mine_until = 0
        self.is_deadline_stale = True
        self._limits = limits
        self._clock = clock
        self._deadline = deadline
        self._pool = pool
        self._beat_until = 0
        self._last_s = clock.monotonic_s() - limits.block_ms / 1000

    async def wait_until_due(self, state: State, head: BlockHeader) -> bool:
        """Wait for the time of the next block; False where there is nothing to make one of after all."""
        await self._ask_deadline()
        is_beating = self._is_beating(head)
        if not is_beating and not self._pool.has_work(state):
            if not await self._wait_for_work():
                return False
            if self._limits.sealing is Sealing.PACED:
                await self._clock.sleep(self._limits.gather_ms / 1000)
        left_s = self._last_s + self._limits.block_ms / 1000 - self._clock.monotonic_s()
        if left_s > 0 and not self._is_urgent(state, head):
            await self._pause(left_s)
        self._last_s = self._clock.monotonic_s()
        return is_beating or self._pool.has_work(state)

    def _is_beating(self, head: BlockHeader) -> bool:
        """Are blocks wanted even where nothing waits?"""
        return (
            self._limits.sealing is Sealing.INTERVAL
            or head.timestamp <= self._beat_until
            or head.number < self.mine_until
        )

    def _is_urgent(self, state: State, head: BlockHeader) -> bool:
        """Is a block due at once? What the base fee has outgrown is no reason: it would be an empty one."""
        return self._limits.sealing is Sealing.INSTANT and self._pool.has_work(state, next_base_fee(head))

    async def _pause(self, seconds: float) -> None:
        if self._limits.sealing is not Sealing.INSTANT:
            await self._clock.sleep(seconds)
            return
        self.wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wake.wait()

    async def _wait_for_work(self) -> bool:
        """Sleep until a transaction arrives; False when it is time to ask for the deadline again instead."""
        self.wake.clear()
        is_asking = self._deadline is not None and self.is_deadline_stale
        try:
            async with asyncio.timeout(DEADLINE_RETRY_S if is_asking else None):
                await self.wake.wait()
        except TimeoutError:
            return False
        return True

    async def _ask_deadline(self) -> None:
        if self._deadline is None or not self.is_deadline_stale:
            return
        try:
            self._beat_until = await self._deadline()
            self.is_deadline_stale = False
        except DeaiosError as error:
            _log.warning("deadline unknown, asked again soon", error=str(error))
