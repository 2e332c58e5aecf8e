"""Discovery: the staked members of `compute`, their registered URLs, their signed offers.

Invariants: only who has stake behind compute is asked; an offer counts only when its provider signed it. Answers are
kept for a while and refreshed in the background, so that a purchase seldom waits for discovery; a provider that does
not answer is left out, and the rest are not held up by it.
"""

import asyncio
from dataclasses import replace

import msgspec

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.suite import COMPUTE
from deaios.market.conduct import list_promises, validate_conduct
from deaios.market.offers import validate_offer, validate_url
from deaios.market.preferences import NO_COLLECTION, ZERO_RETENTION
from deaios.market.routing import Candidate
from deaios.market.terms import Terms
from deaios.market.wire import OfferAnswer, read_offer
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.logs import get_logger

FRESH_S = 5.0
"""Younger than this is used as it is."""
STALE_S = 60.0
"""Up to this age it is used while a refresh runs; older, the caller waits."""
REFRESH_S_MIN = 0.5
"""A forced refresh younger than this is not repeated."""
OFFER_S = 5.0
CONCURRENCY = 16
PROVIDERS_MAX = 256
"""As many members as the staking contract lists."""
PROVIDER_ROLE = "provider"
KEEP_S = 60.0
"""A signed offer holds while nobody answers: so long a silent provider stays known, and buyers judge by breakers."""
_PROMISES = {"no_training": NO_COLLECTION, "no_retention": ZERO_RETENTION}
"""What users ask for by the name it has elsewhere."""

_log = get_logger("directory")


class Directory:
    """Providers as they can be bought from now."""

    def __init__(self, contracts: Contracts, terms: Terms, http: HttpClient, clock: Clock | None = None) -> None:
        self._contracts = contracts
        self._terms = terms
        self._http = http
        self._clock = clock or SystemClock()
        self._candidates: tuple[Candidate, ...] = ()
        self._found_at_s: float | None = None
        self._search: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._known: dict[Address, tuple[Candidate, float]] = {}
        self.failures: dict[Address, str] = {}

    async def close(self) -> None:
        """Stop a search in the background."""
        search, self._search = self._search, None
        if search is not None:
            search.cancel()
            await asyncio.wait({search})

    async def fetch_candidates(self) -> tuple[Candidate, ...]:
        """Providers with stake and a valid offer, by address.

        Raises:
            UnavailableChain: nothing usable is known and the chain does not answer.
        """
        age_s = None if self._found_at_s is None else self._clock.monotonic_s() - self._found_at_s
        if age_s is None or age_s > STALE_S or not self._candidates:
            await self.refresh()
        elif age_s > FRESH_S:
            _ = self._start_search()
        return self._candidates

    async def refresh(self) -> None:
        """Look again now; concurrent callers share one search."""
        if self._found_at_s is not None and self._clock.monotonic_s() - self._found_at_s < REFRESH_S_MIN:
            return
        await asyncio.shield(self._start_search())

    def _start_search(self) -> "asyncio.Task[None]":
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._find(), name="directory")
            self._search.add_done_callback(_report)
        return self._search

    async def _find(self) -> None:
        roster = await self._contracts.staking.roster(COMPUTE)
        self.failures = {}
        found = await asyncio.gather(*(self._ask(member.address, member.power) for member in roster[:PROVIDERS_MAX]))
        now_s = self._clock.monotonic_s()
        self._known = {
            item.provider: self._known[item.provider] if item.provider in self.failures else (item, now_s)
            for item in found
            if item is not None
        }
        self._candidates = tuple(
            sorted((item for item in found if item is not None), key=lambda candidate: candidate.provider)
        )
        self._found_at_s = self._clock.monotonic_s()

    async def _ask(self, provider: Address, power: int) -> Candidate | None:
        try:
            async with self._slots, asyncio.timeout(OFFER_S):
                return await self._fetch_candidate(provider, power)
        except (Invalid, Unavailable, Refused, TimeoutError) as error:
            self.failures[provider] = str(error) or f"no answer within {OFFER_S} s"
            known = self._known.get(provider)
            is_silent = isinstance(error, Unavailable | TimeoutError)
            if is_silent and known is not None and self._clock.monotonic_s() - known[1] < KEEP_S:
                return replace(known[0], power=power)
            _log.info("provider left out", provider=provider.hex(), reason=self.failures[provider])
            return None

    async def _fetch_candidate(self, provider: Address, power: int) -> Candidate | None:
        identities = self._contracts.identities
        agent = await identities.agent_of(provider)
        if agent == 0 or await identities.get_role(agent) != PROVIDER_ROLE:
            return None
        url = await identities.token_uri(agent)
        validate_url(url)
        is_paused = await self._contracts.disputes.is_paused(provider)
        answer = await self._http.get_json(f"{url.rstrip('/')}/offer", OfferAnswer)
        offer, signature = read_offer(answer)
        now_ms = self._clock.now_ms()
        signed = validate_offer(self._terms.protocol, offer, signature, provider, now_ms)
        promises: frozenset[str] = frozenset()
        if answer.conduct is not msgspec.UNSET:
            conduct = validate_conduct(self._terms.network_id, answer.conduct, provider, now_ms)
            signed = replace(signed, sealing_key=conduct.sealing_key, conduct=answer.conduct)
            promises = frozenset(_PROMISES[name] for name in list_promises(conduct))
        return Candidate(provider, signed, power, is_paused, promises)


def _report(search: "asyncio.Task[None]") -> None:
    error = None if search.cancelled() else search.exception()
    if error is not None:
        _log.warning("discovery failed", error=str(error))
