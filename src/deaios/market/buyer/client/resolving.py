"""Purchases that were cut off: each is asked about until its provider says what became of it.

Invariant: a purchase in doubt keeps its room in the window until a receipt settles it or its provider promises never to
admit it. One provider that hangs holds up nobody else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from deaios.market.buyer.client.purchase import (
    Desk,
    build_opening,
    check_receipt,
    is_unknown_purchase,
    send_cancel,
)
from deaios.market.buyer.client.router import Router
from deaios.market.buyer.errors import InvalidStream
from deaios.market.buyer.store import OpenRow
from deaios.market.channel import InvalidCharge
from deaios.market.opening import Opening
from deaios.market.receipts import InvalidReceipt
from deaios.market.view import ChainView
from deaios.market.wire import decode_papers
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.client import RefusedByPeer
from deaios.runtime.logs import get_logger

RESOLVE_WAIT_S_MAX = 15.0
"""Longest pause between two questions about one purchase; its room in the window is wanted."""
LIES = (InvalidReceipt, InvalidCharge, InvalidStream)
"""What shows a provider to be wrong by its own signature or its own words; anything less only counts as a failure."""

Exclude = Callable[[Address, Invalid, Opening | None], Awaitable[None]]

_log = get_logger("buyer")


@dataclass(slots=True)
class _Doubt:
    """A purchase that was cut off, and when to ask about it next."""

    row: OpenRow
    wait_s: float
    next_at_s: float


class Resolver:
    """One buyer's purchases in doubt."""

    def __init__(self, desk: Desk, view: ChainView, router: Router, exclude: Exclude) -> None:
        self._desk = desk
        self._view = view
        self._router = router
        self._exclude = exclude
        self._in_doubt: dict[bytes, _Doubt] = {}
        self._resolving: dict[Address, asyncio.Task[None]] = {}

    def add(self, row: OpenRow) -> None:
        """A purchase was cut off."""
        self._in_doubt[row.request_digest] = _Doubt(
            row, self._desk.settings.resolve_interval_s, self._desk.clock.monotonic_s()
        )

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                await self._desk.clock.sleep(self._desk.settings.resolve_interval_s)
                self._resolve_due()
                await self._router.save_sometimes()
                try:
                    await self._view.fetch_head(fresh=True)
                except (Unavailable, Refused, Invalid) as error:
                    _log.info("chain does not answer", error=str(error))
        finally:
            tasks = list(self._resolving.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _resolve_due(self) -> None:
        """Ask each provider about its own purchases, side by side: one that hangs must not hold up the others."""
        now_s = self._desk.clock.monotonic_s()
        due = {doubt.row.provider for doubt in self._in_doubt.values() if doubt.next_at_s <= now_s}
        for provider in sorted(due - self._resolving.keys()):
            task = asyncio.create_task(self._resolve_with(provider), name=f"resolve with {provider.hex()[:8]}")
            self._resolving[provider] = task
            task.add_done_callback(partial(self._resolved, provider))

    def _resolved(self, provider: Address, task: "asyncio.Task[None]") -> None:
        del self._resolving[provider]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("purchases stay open by our own fault", provider=provider.hex(), error=repr(error))

    async def _resolve_with(self, provider: Address) -> None:
        """Ask a provider what became of purchases that were cut off, cancelling those still open."""
        for digest, doubt in list(self._in_doubt.items()):
            now_s = self._desk.clock.monotonic_s()
            if doubt.row.provider != provider or doubt.next_at_s > now_s:
                continue
            try:
                await self._resolve_one(doubt.row)
            except LIES as error:
                await self._exclude(doubt.row.provider, error, None)
            except (Unavailable, Refused, Invalid) as error:
                doubt.wait_s = min(doubt.wait_s * 2, RESOLVE_WAIT_S_MAX)
                doubt.next_at_s = now_s + doubt.wait_s
                _log.info("purchase stays open", request=digest.hex(), error=str(error))
                continue
            self._in_doubt.pop(digest, None)

    async def _resolve_one(self, row: OpenRow) -> None:
        account = await self._desk.wallet.fetch_account(row.provider)
        if row.request_digest not in account.state.reservations:
            return
        acknowledged = row.acknowledged or 0
        await self._desk.store.acknowledge(row.request_digest, acknowledged)
        try:
            ids, entry, leaves = await send_cancel(self._desk, row.offer, row.request_digest, acknowledged)
        except RefusedByPeer as refusal:
            if not is_unknown_purchase(refusal):
                raise
            await self._desk.wallet.release(account, row.request_digest)
            return
        opening = build_opening(decode_papers(row.papers), row.offer, ids, entry, leaves)
        try:
            check_receipt(self._desk.terms, opening, acknowledged, complete=True, received=len(ids))
            self._desk.wallet.settle(account, opening)
        except LIES as error:
            await self._exclude(row.provider, error, opening)
