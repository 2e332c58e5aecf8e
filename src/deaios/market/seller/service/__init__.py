"""A provider at work: desk, door, publisher and collector under one roof.

Start order and stop order matter: the journal opens first and closes last; recovery ends before the door opens; the
last batch and the last claim go out after the last purchase ended.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from deaios.market.ports import Generate, PutBytes, SellerChain
from deaios.market.seller.service.autoprice import MOVING_OFFER_MS, Autopricer
from deaios.market.seller.service.desk import Desk
from deaios.market.seller.service.door import Door
from deaios.market.seller.service.privacy import Privacy
from deaios.market.seller.service.settings import SellerSettings
from deaios.market.seller.service.settlement import Collector, Publisher
from deaios.market.seller.store import SellerStore
from deaios.market.terms import Terms
from deaios.market.view import ChainView
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import PrivateKey
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

STOP_S = 20.0
"""How long the last batch and the last claim may take when the service stops; both resume at the next start."""

_log = get_logger("seller")


class Seller:
    """One provider; use as an async context manager, serve `application` inside it.

    Attributes:
        desk: admits and serves.
        autopricer: moves the price; None where it is fixed.
    """

    def __init__(
        self,
        key: PrivateKey,
        terms: Terms,
        settings: SellerSettings,
        journal: Path,
        chain: SellerChain,
        generate: Generate,
        put_bytes: PutBytes,
        *,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        privacy: Privacy | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._store = SellerStore(journal)
        view = ChainView(chain, clock)
        self._view = view
        self.autopricer = None
        if (moving := settings.moving) is not None:
            settings = replace(settings, offer_lifetime_ms=min(settings.offer_lifetime_ms, MOVING_OFFER_MS))
            self.autopricer = Autopricer(
                moving, settings.streams_max, settings.queue_max, lambda: self.desk.open_count, clock, metrics
            )
        ask_price = None if self.autopricer is None else self.autopricer.ask
        self.desk = Desk(key, terms, settings, self._store, view, generate, clock, ask_price)
        self.publisher = Publisher(key, terms, settings, self._store, chain, view, put_bytes, clock)
        self.collector = Collector(self.desk, settings, chain, clock)
        door = Door(key, terms, self.desk, self._store, privacy)
        self.application: web.Application = door.build_application(metrics)
        self._loops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        state = await self._store.open()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._store.close)
            await self.publisher.validate_journal(state.last.counter)
            await self._view.fetch_head()
            await self.desk.open(state)
            if self.autopricer is not None:
                self.autopricer.resume(await self._store.fetch_latest_offer())
            await self.desk.fetch_current_offer()
            stack.pop_all()
        self._loops = [
            asyncio.create_task(self.publisher.run(), name="publisher"),
            asyncio.create_task(self.collector.run(), name="collector"),
            asyncio.create_task(self._store.watch(), name="journal watch"),
        ]
        if self.autopricer is not None:
            self._loops.append(asyncio.create_task(self.autopricer.run(), name="autopricer"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loop in self._loops:
            loop.cancel()
        await self.desk.close()
        ended = await asyncio.gather(*self._loops, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_S):
                while await self.publisher.publish() is not None:
                    pass
                await self.collector.claim()
        except (Unavailable, Refused, Invalid, TimeoutError) as fault:
            _log.warning("last batch or claim waits for the next start", error=repr(fault))
        await self._store.close()
        for result in ended:
            if isinstance(result, Exception):
                raise result

    async def watch(self) -> None:
        """Return only by raising: when a loop ended by a fault that a retry cannot mend."""
        done, _ = await asyncio.wait(self._loops, return_when=asyncio.FIRST_COMPLETED)
        for loop in done:
            loop.result()


__all__ = ["Seller", "SellerSettings"]
