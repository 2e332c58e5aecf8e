"""Charges that were made before their receipt was known, set right once it is.

A client left, its provider could not be asked, and the key was charged for the tokens that had come. The buyer goes on
asking the provider; whatever it learns is what the key pays in the end: nothing where the provider failed, all of it
where the answer had ended before the cancel arrived, as for any cancel. Invariant: when no purchase is open, every
charge stands on a receipt. It survives a restart, because charges name their purchases on disk.
"""

import asyncio
import sqlite3

from deaios.gateway.purchasing import Purchasing
from deaios.gateway.store import KeyStore
from deaios.primitives.errors import Invalid, Unavailable
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

CHARGES_MAX = 256
"""Looked at in one turn; the rest comes in the next."""

log = get_logger("gateway")


class Reckoner:
    """Sets provisional charges right."""

    def __init__(self, buyer: Purchasing, keys: KeyStore, clock: Clock, interval_s: float) -> None:
        self._buyer = buyer
        self._keys = keys
        self._clock = clock
        self._interval_s = interval_s

    async def run(self) -> None:
        """For ever; what cannot be done now is tried at the next turn."""
        while True:
            await self._clock.sleep(self._interval_s)
            try:
                await self.reckon()
            except (Unavailable, Invalid, sqlite3.Error) as error:
                log.warning("charges wait for their receipts", error=str(error))

    async def reckon(self) -> None:
        """Look at every provisional charge once."""
        for charge in self._keys.list_provisional(CHARGES_MAX):
            assert charge.purchase is not None, "only charges that name a purchase are listed"
            is_open, opening = await self._buyer.fetch_outcome(charge.purchase)
            if is_open:
                continue
            if opening is None:  # it never reached its provider
                await asyncio.to_thread(self._keys.correct, charge.answer_id, 0, None, None)
            else:
                receipt = opening.receipt
                provider = opening.request.provider
                await asyncio.to_thread(self._keys.correct, charge.answer_id, receipt.fee, provider, receipt.counter)
            log.info("charge set right", answer=charge.answer_id, was=charge.amount, has_receipt=opening is not None)
