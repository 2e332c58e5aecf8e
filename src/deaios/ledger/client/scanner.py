"""Follows the events of one contract as far as its chain is confirmed.

Every event is handed over once and in order. A chain whose confirmed block turns out to be another one than before is
told by `restart`, and read again from its beginning: who follows keeps nothing of what never was.
"""

import asyncio
from collections.abc import Callable

from deaios.ledger.client.bound import BoundContract, ContractEvent
from deaios.ledger.client.rpc import UnavailableChain
from deaios.primitives.encoding import encode_hex

BLOCKS_STEP = 5_000
"""Blocks looked through in one question."""


class Scanner:
    """One contract's events of one name."""

    def __init__(
        self,
        contract: BoundContract,
        event: str,
        confirmations: int,
        take: Callable[[ContractEvent], None],
        restart: Callable[[], None],
    ) -> None:
        """A scanner that has seen nothing yet.

        Args:
            contract: whose events.
            event: their name.
            confirmations: blocks that must hold an event, its own included.
            take: told each event.
            restart: told that all that was taken is void.
        """
        assert confirmations > 0
        self._contract = contract
        self._event = event
        self._confirmations = confirmations
        self._take = take
        self._restart = restart
        self._lock = asyncio.Lock()
        self._next_block = 0
        self._anchor: tuple[int, bytes] | None = None
        """Number and hash of the last block that was looked through."""

    async def sync(self) -> None:
        """Hand over what is confirmed and new.

        Raises:
            UnavailableChain: the node does not answer, or its chain changed while it was read.
        """
        async with self._lock:
            rpc = self._contract.rpc
            if self._anchor is not None and not await self._has_block(*self._anchor):
                self._anchor, self._next_block = None, 0
                self._restart()
            safe = await rpc.block_number() - self._confirmations + 1
            while self._next_block <= safe:
                last = min(self._next_block + BLOCKS_STEP - 1, safe)
                block = await rpc.get_block(last)
                if block is None:
                    raise UnavailableChain(f"{rpc.url}: block {last} is gone")
                events = await self._contract.fetch_events(self._event, from_block=self._next_block, to_block=last)
                if not await self._has_block(last, block.hash):
                    raise UnavailableChain(f"{rpc.url}: block {encode_hex(block.hash)} was replaced meanwhile")
                self._anchor, self._next_block = (last, block.hash), last + 1
                for event in events:
                    self._take(event)

    async def _has_block(self, number: int, block_hash: bytes) -> bool:
        block = await self._contract.rpc.get_block(number)
        return block is not None and block.hash == block_hash
