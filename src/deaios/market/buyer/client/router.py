"""Whom a buyer tries next, and what it remembers of everybody it bought from.

Invariants: everything that is kept has a bound; a provider that is excluded is never picked; what is published of an
endpoint was seen by this buyer itself, and outlives a restart. The rules are in `market.routing` and
`market.statistics`; here are the state, the clock and the disk.
"""

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from deaios.ledger.structs import Level
from deaios.market.buyer.client.settings import BuyerSettings
from deaios.market.buyer.endpoints import Endpoint
from deaios.market.orders import Order
from deaios.market.preferences import NO_PREFERENCES, name_quantization
from deaios.market.routing import (
    DRAW_SIZE,
    Candidate,
    ProviderStats,
    Wish,
    order_candidates,
    refuse_reason,
)
from deaios.market.statistics import EndpointRecord, EndpointStats, InvalidRecord
from deaios.market.store import Journal, UnavailableJournal
from deaios.primitives.errors import ConfigError
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.logs import get_logger

STATS_MAX = 4096
FAVOURITES_MAX = 16_384
FAVOURITE_S = 600.0
"""How long a provider is taken to have a prompt in its cache, as hosted caches of peers keep theirs."""
CROWDED = 1.0
"""A favourite with so many purchases per stream ahead of the next one is not waited for."""
SAVE_S = 30.0
HEDGE_SAMPLES_MIN = 20
HEDGE_FACTOR = 3.0
"""What stands for the 95th percentile of a provider's first tokens until there are enough of them."""
MIGRATIONS = ("CREATE TABLE endpoints (provider BLOB PRIMARY KEY, record BLOB NOT NULL)",)
ROUTES_FILE = "routes.db"

_log = get_logger("router")


class DirectoryPort(Protocol):
    """Who sells."""

    async def fetch_candidates(self) -> Sequence[Candidate]:
        """Providers with a valid offer, as known now."""

    async def refresh(self) -> None:
        """Look again at once."""


class Router:
    """One buyer's memory of providers, and its choices."""

    def __init__(
        self, settings: BuyerSettings, directory: DirectoryPort, clock: Clock, dice: Dice, journal: Path
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._clock = clock
        self._dice = dice
        self._journal = Journal(journal.with_name(ROUTES_FILE), MIGRATIONS)
        self._is_kept = False
        self._stats: dict[Address, ProviderStats] = {}
        self._records: dict[Address, EndpointRecord] = {}
        self._unsaved: set[Address] = set()
        self._saved_at_s = clock.monotonic_s()
        self._favourites: OrderedDict[bytes, tuple[Address, float]] = OrderedDict()
        self.excluded: dict[Address, str] = {}

    async def open(self) -> None:
        """Take up what was seen before; without a readable file nothing was."""
        try:
            await self._journal.open()
            rows = await self._journal.read(
                lambda connection: connection.execute("SELECT provider, record FROM endpoints").fetchall()
            )
            self._is_kept = True
            self._records = {Address(provider): EndpointRecord.decode(data) for provider, data in rows[:STATS_MAX]}
        except (UnavailableJournal, InvalidRecord, ConfigError, sqlite3.Error) as error:
            _log.warning("statistics of endpoints begin anew", error=str(error))

    async def close(self) -> None:
        """Keep what was seen, if the disk lets us: nothing depends on it."""
        try:
            if self._is_kept and self._unsaved:
                await self._save()
        except UnavailableJournal as error:
            _log.warning("statistics of endpoints are not kept", error=str(error))
        await self._journal.close()

    @property
    def stats(self) -> dict[Address, ProviderStats]:
        """What routing goes by."""
        return dict(self._stats)

    def stat(self, provider: Address) -> ProviderStats:
        """The same of one provider."""
        return self._stats.get(provider, ProviderStats())

    def note(self, provider: Address, stats: ProviderStats) -> None:
        """Remember."""
        self._stats[provider] = stats
        if len(self._stats) > STATS_MAX:
            del self._stats[next(iter(self._stats))]

    def describe(self, provider: Address) -> EndpointStats:
        """The published numbers of one provider."""
        return self._records.get(provider, EndpointRecord()).compute(self._clock.now_ms())

    def record(self, provider: Address) -> EndpointRecord:
        """Where observations of a provider go."""
        if provider not in self._records and len(self._records) >= STATS_MAX:
            del self._records[next(iter(self._records))]
        self._unsaved.add(provider)
        return self._records.setdefault(provider, EndpointRecord())

    async def list_endpoints(self, model_record_id: bytes) -> list[Endpoint]:
        """Everybody who sells a model, fit or not."""
        now_ms, settings = self._clock.now_ms(), self._settings
        wish = Wish(
            model_record_id=model_record_id,
            prompt_tokens=1,
            max_tokens=1,
            min_level=Level.SIGNED,
            withdraw_delay=settings.withdraw_delay,
            fee_max=min(settings.fee_max, settings.window),
            excluded=frozenset(self.excluded),
        )
        endpoints = []
        for candidate in await self._directory.fetch_candidates():
            if candidate.signed_offer.offer.model_record_id == model_record_id:
                provider = candidate.provider
                refused = self.excluded.get(provider) or refuse_reason(candidate, wish, now_ms)
                seen, stats = self.describe(provider), self.stat(provider)
                endpoints.append(Endpoint(candidate, seen, stats, stats.breaker(now_ms), refused))
        return endpoints

    async def refresh(self) -> None:
        """Look at once who sells."""
        await self._directory.refresh()

    async def pick(self, order: Order, tried: Mapping[Address, bytes]) -> tuple[Candidate | None, dict[Address, str]]:
        """The next provider to try, none twice under one offer; and why the others are not."""
        wish, now_ms = self._build_wish(order), self._clock.now_ms()
        reasons: dict[Address, str] = {}
        eligible = []
        for candidate in await self._directory.fetch_candidates():
            if tried.get(candidate.provider) == candidate.signed_offer.digest:
                continue
            reason = refuse_reason(candidate, wish, now_ms)
            if reason is None:
                eligible.append(candidate)
            else:
                reasons[candidate.provider] = self.excluded.get(candidate.provider, reason)
        if not eligible:
            return None, reasons
        eligible = [item for item in eligible if self.stat(item.provider).admits(now_ms)] or eligible
        stats = [self.stat(candidate.provider) for candidate in eligible]
        favourite = self._find_favourite(order, eligible, now_ms)
        draw = self._dice.token_bytes(DRAW_SIZE)
        return order_candidates(eligible, wish, stats, draw, now_ms, favourite)[0], reasons

    def _build_wish(self, order: Order) -> Wish:
        return Wish(
            model_record_id=order.model_record_id,
            prompt_tokens=len(order.prompt_ids),
            max_tokens=order.params.max_tokens,
            min_level=order.min_level,
            withdraw_delay=self._settings.withdraw_delay,
            fee_max=min(self._settings.fee_max, self._settings.window),
            provider=order.provider,
            excluded=order.excluded | frozenset(self.excluded),
            preferences=order.preferences or NO_PREFERENCES,
            quantisation=None if order.quantisation is None else name_quantization(order.quantisation),
        )

    def _find_favourite(self, order: Order, eligible: Sequence[Candidate], now_ms: int) -> Address | None:
        """Who served this prompt's beginning lately, unless a queue there costs more than its cache saves."""
        if order.affinity is None or order.affinity not in self._favourites:
            return None
        provider, at_s = self._favourites[order.affinity]
        found = next((item for item in eligible if item.provider == provider), None)
        if found is None or self._clock.monotonic_s() - at_s > FAVOURITE_S:
            return None
        crowding = self.stat(provider).crowding(found.signed_offer.offer.streams_max, now_ms)
        return provider if crowding < CROWDED else None

    def favour(self, order: Order, provider: Address) -> None:
        """A provider has read this prompt."""
        if order.affinity is None:
            return
        self._favourites[order.affinity] = provider, self._clock.monotonic_s()
        self._favourites.move_to_end(order.affinity)
        if len(self._favourites) > FAVOURITES_MAX:
            self._favourites.popitem(last=False)

    def hedge_after_s(self, provider: Address) -> float:
        """After how long without a first token a second provider is asked: what 95 of 100 purchases take at most."""
        samples = self._records.get(provider, EndpointRecord()).samples
        waits = sorted(ttft_ms for _, ttft_ms, _ in samples)
        if len(waits) < HEDGE_SAMPLES_MIN:
            return HEDGE_FACTOR * self.stat(provider).ttft_ms / 1000
        return waits[len(waits) * 95 // 100] / 1000

    def patience_s(self, provider: Address) -> float:
        """How long the next token of a stream may take before another provider continues it."""
        gap_s = 1.0 / max(self.stat(provider).tokens_per_s, 0.01)
        return min(self._settings.idle_s, max(self._settings.stall_s, self._settings.stall_gaps * gap_s))

    async def save_sometimes(self) -> None:
        """Write what is new to disk, where it is long enough since the last time."""
        now_s = self._clock.monotonic_s()
        if not self._is_kept or not self._unsaved or now_s - self._saved_at_s < SAVE_S:
            return
        self._saved_at_s = now_s
        try:
            await self._save()
        except UnavailableJournal as error:
            self._is_kept = False
            _log.warning("statistics of endpoints are not kept any more", error=str(error))

    def _save(self) -> "asyncio.Future[None]":
        rows = [
            (provider, self._records[provider].encode()) for provider in sorted(self._unsaved & self._records.keys())
        ]
        self._unsaved.clear()

        def change(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO endpoints VALUES (?, ?)", rows)
            connection.execute(
                "DELETE FROM endpoints WHERE rowid NOT IN (SELECT rowid FROM endpoints ORDER BY rowid DESC LIMIT ?)",
                (STATS_MAX,),
            )

        return self._journal.write(change)
