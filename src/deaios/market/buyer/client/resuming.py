"""One answer from as many providers as it takes: a stream that breaks goes on with another one, from the same place.

The seed of every token follows from the ask, and the ask is the same for whoever serves it; so another provider that is
given the ids so far samples what the first would have. It checks them against its own model before it signs for them.

Invariants: ids that were handed out never change; at most one purchase is followed, and its receipt covers the whole
answer; a purchase that is left acknowledges nothing. It cannot know what a provider that is merely unreachable did
meanwhile: if that one finished, its receipt stands and this buyer pays it, too, never more than one quote for each hop.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from deaios.ledger.structs import Level
from deaios.market.buyer.client.purchase import Delta, Purchase
from deaios.market.buyer.errors import UnavailableProvider
from deaios.market.offers import SignedOffer
from deaios.market.opening import Opening
from deaios.market.store import UnavailableJournal
from deaios.primitives.errors import DeaiosError, Invalid, Refused, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.logs import get_logger

Hop = Callable[[Purchase, tuple[int, ...], int], Awaitable[Purchase]]
"""Buys from somebody else: the purchase that failed, ids so far, how many of them were handed out."""

_log = get_logger("buyer")


class Resumable:
    """Looks like one purchase: iterate for `Delta`s; afterwards `opening` holds the papers of who ended the answer."""

    def __init__(self, first: Purchase, hop: Hop, patience_s: Callable[[Address], float], hops_max: int) -> None:
        self._current = first
        self._hop = hop
        self._patience_s = patience_s
        self._hops_max = hops_max
        self._is_cancelled = False
        self.providers: list[Address] = [first.provider]

    @property
    def current(self) -> Purchase:
        """The purchase that is followed now."""
        return self._current

    @property
    def provider(self) -> Address:
        """Who serves now."""
        return self._current.provider

    @property
    def request_digest(self) -> bytes:
        """What names the purchase that is followed now."""
        return self._current.request_digest

    @property
    def offer(self) -> SignedOffer:
        """Under which it is bought."""
        return self._current.offer

    @property
    def opening(self) -> Opening:
        """The finished purchase; an assertion of ours that it is finished."""
        return self._current.opening

    @property
    def error(self) -> DeaiosError | None:
        """Why it failed, once it has."""
        return self._current.error

    @property
    def handed_out(self) -> int:
        """Ids that iteration gave to the caller."""
        return self._current.handed_out

    @property
    def hops(self) -> int:
        """How often another purchase went on with the answer."""
        return len(self.providers) - 1

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Ids in order, whoever gives them.

        Raises:
            UnavailableProvider: providers failed, and nobody could go on; nothing was charged for it so far.
            Invalid…: the last one lied.
        """
        while True:
            purchase = self._current
            try:
                while (delta := await self._next(purchase)) is not None:
                    yield delta
            except UnavailableJournal:
                raise
            except (Unavailable, Refused, Invalid) as error:
                if self._is_cancelled or self.hops >= self._hops_max or not is_resumable(purchase):
                    raise
                await self._move(purchase, error)
            else:
                return

    async def _next(self, purchase: Purchase) -> Delta | None:
        """The next ids, None at the good end; a provider that takes too long over them is left."""
        while (delta := purchase.take()) is None:
            if purchase.is_over:
                if purchase.error is not None:
                    raise purchase.error
                return None
            limit_s = self._patience_s(purchase.provider)
            try:
                async with asyncio.timeout(limit_s):
                    await purchase.wait_changed()
            except TimeoutError as error:
                late = UnavailableProvider(f"no further token within {limit_s:.1f} s")
                purchase.abandon(late, is_forfeit=True)
                raise late from error
        return delta

    async def _move(self, purchase: Purchase, error: DeaiosError) -> None:
        ids, kept = purchase.ids, purchase.handed_out
        try:
            self._current = await self._hop(purchase, ids, kept)
        except (Unavailable, Refused, Invalid) as failure:
            _log.info("nobody continues an answer", request=purchase.request_digest.hex(), error=str(failure))
            raise error from failure
        self.providers.append(self._current.provider)
        _log.info(
            "another provider continues an answer",
            after=len(ids),
            left=purchase.provider.hex(),
            provider=self._current.provider.hex(),
            error=str(error),
        )

    async def wait(self) -> Opening:
        """The papers at the end of whichever purchase is followed.

        Raises:
            UnavailableProvider: as iteration does.
        """
        return await self._current.wait()

    async def cancel(self) -> None:
        """End it now, paying for what iteration handed out."""
        self._is_cancelled = True
        await self._current.cancel()


def is_resumable(purchase: Purchase) -> bool:
    """Whether another provider can be expected to sample the same: only where sampling is bound to the ask's seed."""
    return purchase.offer.offer.level >= Level.SEEDED and purchase.can_go_on and not purchase.is_abandoned
