"""Compiling constraints on threads, a bounded number at a time, so that no stranger's schema holds up an event loop."""

import asyncio
from collections import OrderedDict
from typing import Final

from deaios.compute.masking import MaskState, compile_mask
from deaios.compute.tokenizer import Tokenizer

COMPILES_MAX: Final = 2
"""At once, of one model; each is bounded in time and memory by what `compute.schema` and `compute.masking` take."""

KNOWN_MAX: Final = 256
"""Constraints remembered as such that compile: users send the same ones again and again."""


class MaskService:
    """Begins masks of one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._slots = asyncio.Semaphore(COMPILES_MAX)
        self._known: OrderedDict[bytes, None] = OrderedDict()

    async def open(self, constraint: bytes | None, mask_hash: bytes) -> MaskState | None:
        """`masking.compile_mask` off the event loop.

        Raises:
            InvalidConstraint, UnavailableMasker: as there.
        """
        if constraint is None:
            return compile_mask(None, mask_hash, self._tokenizer)
        async with self._slots:
            return await asyncio.to_thread(compile_mask, constraint, mask_hash, self._tokenizer)

    async def validate(self, constraint: bytes, mask_hash: bytes) -> None:
        """Check that a constraint compiles, once for each that is met again.

        Raises:
            InvalidConstraint, UnavailableMasker: as `open`.
        """
        if mask_hash not in self._known:
            await self.open(constraint, mask_hash)
            self._known[mask_hash] = None
        self._known.move_to_end(mask_hash)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
