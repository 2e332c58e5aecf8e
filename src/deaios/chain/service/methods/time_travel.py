"""dev_*: moving time and making blocks, for developers; there only where the operator asked for it."""

import asyncio
from typing import Any

from deaios.chain.rpc import bad_params, read_at, read_quantity, server_error
from deaios.chain.service.chain import ChainService
from deaios.chain.service.methods.places import Table
from deaios.chain.service.news import Bell
from deaios.chain.service.time_travel import SHIFT_S_MAX, MovedClock

BLOCKS_MAX = 256
"""Of one dev_mine; they come at the chain's pace."""


class TimeTravelMethods:
    """See the module."""

    def __init__(self, chain: ChainService, clock: MovedClock, bell: Bell) -> None:
        self._chain = chain
        self._clock = clock
        self._bell = bell

    def table(self) -> Table:
        """The methods by name."""
        return {
            "dev_increaseTime": (1, 1, self._increase_time),
            "dev_setNextBlockTimestamp": (1, 1, self._set_next),
            "dev_mine": (0, 1, self._mine),
        }

    async def _increase_time(self, params: list[Any]) -> str:
        """Move ahead by seconds; the answer is how far ahead of the machine's clock the chain is now."""
        self._move(read_at(params, 0, read_quantity, "seconds", 64))
        return hex(self._clock.shift_s)

    async def _set_next(self, params: list[Any]) -> None:
        """From now on time goes on from a timestamp: a block made within this second has it."""
        wanted = read_at(params, 0, read_quantity, "timestamp", 64)
        now_s = self._chain.pending_context().timestamp
        if wanted < now_s:
            raise bad_params(f"timestamp {wanted} is in the past: the next block's is at least {now_s}")
        self._move(wanted - self._clock.now_ms() // 1000)

    async def _mine(self, params: list[Any]) -> str:
        """Make blocks, one unless said otherwise; the answer is the last one's height."""
        count = 1 if params[0] is None else read_at(params, 0, read_quantity, "blocks", 64)
        if not 1 <= count <= BLOCKS_MAX:
            raise bad_params(f"{count} blocks are wanted, from 1 to {BLOCKS_MAX} can be made at once")
        height = self._chain.mine(count)
        while self._chain.head.number < height:  # bounded: the chain makes them, or ends
            await asyncio.shield(self._bell.coming)
        return hex(height)

    def _move(self, seconds: int) -> None:
        if seconds > SHIFT_S_MAX or not self._clock.move(max(seconds, 0)):
            raise server_error(f"the chain's time may be at most {SHIFT_S_MAX} s ahead of the machine's")
