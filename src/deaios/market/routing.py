"""Which provider gets a purchase, and who is next when it fails.

Pure; the random draw is an argument. Hard filters first (each refusal with its reason, so that "why not me" has an
answer), then circuit breakers, then a score (price, predicted time, success), then the better of two drawn at random,
so that buyers do not stampede to one provider; one purchase in a hundred goes to anybody, so that nobody is judged by
old news for ever. It does not know how offers, stake or statistics were obtained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from deaios.market.offers import SignedOffer, compute_quote
from deaios.market.preferences import NO_PREFERENCES, Preferences, SortBy
from deaios.primitives.keys import Address

TTFT_MS_PRIOR = 500.0
TOKENS_PER_S_PRIOR = 20.0
"""What an unknown provider is taken for: good enough to be tried, not good enough to win always."""
EWMA_WEIGHT = 0.2
"""Weight of the newest observation; about the last ten purchases count."""
OUTCOMES_MEMORY = 0.98
"""Decay of old outcomes per purchase, so that failures are forgiven and forgotten after some 100 purchases."""
SUCCESS_TARGET = 0.95
SUCCESS_PENALTY = 27.7
"""Quadratic penalty below the target: 90 % costs 0.07, 80 % 0.62, 70 % 1.73 (the llmgateway router's table)."""
BREAKER_FAILURES = 3
BREAKER_MS_BASE = 2_000
BREAKER_MS_MAX = 60_000
"""After three failures in a row a provider rests, twice as long each time, a minute at most."""
BUSY_REST_MS = 2_000
"""A provider that has no place is left alone for so long: the `Retry-After` that every door of ours sends."""
WAITING_MEMORY_MS = 10_000
"""How long the length of a provider's queue is news."""
UNWANTED_FACTOR = 1_000.0
"""How much a provider that misses what a user prefers is put back: behind every one that does not."""
EXPLORED_OF = 100
"""One purchase of so many goes to a provider drawn from all that fit, whatever their scores."""
DRAW_SIZE = 12


class Breaker(StrEnum):
    """Whether a provider is bought from: as usual, not now, or once to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class ProviderStats:
    """What a buyer itself saw of one provider.

    Attributes:
        ttft_ms: to the first token, moving average.
        tokens_per_s: after it, moving average.
        successes: decayed count.
        failures: decayed count.
        failures_in_a_row: since the last success, those not counted that began before the breaker opened.
        rest_until_ms: when an open breaker becomes half-open.
        busy_until_ms: when a provider without a place may be asked again.
        is_probed: the one purchase that a half-open breaker lets through is under way.
        in_flight: purchases under way.
        waiting: length of the provider's queue, as it said at `waiting_at_ms`.
    """

    ttft_ms: float = TTFT_MS_PRIOR
    tokens_per_s: float = TOKENS_PER_S_PRIOR
    successes: float = 0.0
    failures: float = 0.0
    failures_in_a_row: int = 0
    rest_until_ms: int = 0
    busy_until_ms: int = 0
    is_probed: bool = False
    in_flight: int = 0
    waiting: int = 0
    waiting_at_ms: int = 0

    def breaker(self, now_ms: int) -> Breaker:
        """Open after failures in a row, half-open when it has rested, closed after a success."""
        if self.failures_in_a_row < BREAKER_FAILURES:
            return Breaker.CLOSED
        return Breaker.OPEN if self.rest_until_ms > now_ms else Breaker.HALF_OPEN

    def admits(self, now_ms: int) -> bool:
        """Whether it is to be tried now; others are tried only where nobody is left."""
        if self.busy_until_ms > now_ms:
            return False
        state = self.breaker(now_ms)
        return state == Breaker.CLOSED or (state == Breaker.HALF_OPEN and not self.is_probed)

    @property
    def success_rate(self) -> float:
        """Posterior mean with a prior of 19 successes in 20, so that the first failure does not condemn."""
        return (self.successes + 19.0) / (self.successes + self.failures + 20.0)

    def begin(self) -> "ProviderStats":
        """A purchase was sent."""
        is_probed = self.failures_in_a_row >= BREAKER_FAILURES
        return replace(self, in_flight=self.in_flight + 1, is_probed=is_probed)

    def queue(self, waiting: int, now_ms: int) -> "ProviderStats":
        """The provider said how many wait there."""
        return replace(self, waiting=waiting, waiting_at_ms=now_ms)

    def turn_away(self, now_ms: int) -> "ProviderStats":
        """The provider had no place: nobody's fault, and no news of its quality."""
        return replace(self.abandon(), busy_until_ms=now_ms + BUSY_REST_MS)

    def crowding(self, streams_max: int, now_ms: int) -> float:
        """How many purchases per stream are known to be ahead of the next one."""
        waiting = self.waiting if now_ms - self.waiting_at_ms < WAITING_MEMORY_MS else 0
        return (self.in_flight + waiting) / streams_max

    def abandon(self) -> "ProviderStats":
        """A purchase ended without telling anything about the provider."""
        return replace(self, in_flight=max(0, self.in_flight - 1), is_probed=False)

    def succeed(self, ttft_ms: float, tokens: int, duration_ms: float) -> "ProviderStats":
        """A purchase was served.

        Args:
            ttft_ms: until the first token.
            tokens: received.
            duration_ms: from the first to the last token.
        """
        rate = self.tokens_per_s
        if tokens > 1 and duration_ms > 0:
            rate += EWMA_WEIGHT * ((tokens - 1) * 1000 / duration_ms - rate)
        return replace(
            self.abandon(),
            ttft_ms=self.ttft_ms + EWMA_WEIGHT * (ttft_ms - self.ttft_ms),
            tokens_per_s=rate,
            successes=self.successes * OUTCOMES_MEMORY + 1.0,
            failures=self.failures * OUTCOMES_MEMORY,
            failures_in_a_row=0,
            rest_until_ms=0,
        )

    def fail(self, now_ms: int) -> "ProviderStats":
        """A purchase failed by the provider's fault; of many that one fault cut off, the breaker counts three."""
        row = self.failures_in_a_row + (self.breaker(now_ms) != Breaker.OPEN)
        excess = row - BREAKER_FAILURES
        rest_ms = min(BREAKER_MS_MAX, BREAKER_MS_BASE << min(excess, 16)) if excess >= 0 else 0
        return replace(
            self.abandon(),
            successes=self.successes * OUTCOMES_MEMORY,
            failures=self.failures * OUTCOMES_MEMORY + 1.0,
            failures_in_a_row=row,
            rest_until_ms=now_ms + rest_ms if rest_ms else self.rest_until_ms,
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One provider as discovery found it."""

    provider: Address
    signed_offer: SignedOffer
    power: int
    paused: bool
    promises: frozenset[str] = frozenset()
    """What it says of itself and nobody can check, such as `data_collection=deny` and `zdr`."""

    @property
    def url(self) -> str:
        """Where it is bought from."""
        return self.signed_offer.offer.url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a purchase needs from a provider."""

    model_record_id: bytes
    prompt_tokens: int
    max_tokens: int
    min_level: int
    withdraw_delay: int
    fee_max: int
    provider: Address | None = None
    excluded: frozenset[Address] = frozenset()
    preferences: Preferences = NO_PREFERENCES
    quantisation: str | None = None


def refuse_reason(candidate: Candidate, wish: Wish, now_ms: int) -> str | None:
    """Why a provider cannot get this purchase, or None."""
    offer = candidate.signed_offer.offer
    quote = compute_quote(offer, wish.prompt_tokens, wish.max_tokens)
    tokens = wish.prompt_tokens + wish.max_tokens
    checks = (
        (wish.provider is not None and candidate.provider != wish.provider, "another provider was asked for"),
        (candidate.provider in wish.excluded, "excluded"),
        (offer.model_record_id != wish.model_record_id, "serves another model record"),
        (candidate.power <= 0, "has no stake behind compute"),
        (candidate.paused, "paused by an open dispute"),
        (offer.valid_until <= now_ms, "offer has ended"),
        (offer.level < wish.min_level, f"level {offer.level} is below {wish.min_level}"),
        (tokens > offer.context_tokens, f"{tokens} tokens exceed its context of {offer.context_tokens}"),
        (offer.withdraw_delay_min > wish.withdraw_delay, f"wants a withdraw delay of {offer.withdraw_delay_min} s"),
        (quote > wish.fee_max, f"quote {quote} exceeds {wish.fee_max}"),
    )
    reason = next((reason for refused, reason in checks if refused), None)
    return reason or _refuse_preference(candidate, wish)


def _refuse_preference(candidate: Candidate, wish: Wish) -> str | None:
    """Why the user's own preferences rule a provider out, or None."""
    offer, wanted = candidate.signed_offer.offer, wish.preferences
    input_max, output_max = wanted.input_price_max, wanted.output_price_max
    missing = wanted.promises - candidate.promises
    strays = wanted.order and not wanted.allow_fallbacks and candidate.provider not in wanted.order
    checks = (
        (bool(wanted.only) and candidate.provider not in wanted.only, "is not in provider.only"),
        (candidate.provider in wanted.ignore, "is in provider.ignore"),
        (bool(strays), "is not in provider.order, and provider.allow_fallbacks is false"),
        (
            input_max is not None and offer.input_price > input_max,
            f"input price {offer.input_price} exceeds provider.max_price.prompt {input_max}",
        ),
        (
            output_max is not None and offer.output_price > output_max,
            f"output price {offer.output_price} exceeds provider.max_price.completion {output_max}",
        ),
        (
            bool(wanted.quantizations) and wish.quantisation not in wanted.quantizations,
            f"weights are {wish.quantisation}, provider.quantizations allows {sorted(wanted.quantizations)}",
        ),
        (bool(missing), f"does not promise {sorted(missing)}"),
    )
    return next((reason for refused, reason in checks if refused), None)


def compute_score(candidate: Candidate, wish: Wish, stats: ProviderStats, now_ms: int = 0) -> float:
    """A cost without unit, lower is better: price times expected time, raised by crowding and missed successes.

    A user's `sort` puts one factor in the place of the product; what misses its preferred throughput or latency comes
    behind what does not.
    """
    offer, wanted = candidate.signed_offer.offer, wish.preferences
    quote = compute_quote(offer, wish.prompt_tokens, wish.max_tokens) + 1
    expected_ms = stats.ttft_ms * (1 + stats.in_flight) + wish.max_tokens * 1000.0 / max(stats.tokens_per_s, 0.01)
    shortfall = max(0.0, SUCCESS_TARGET - stats.success_rate)
    crowding = 1.0 + stats.crowding(offer.streams_max, now_ms)
    cost = quote * expected_ms * crowding * (1.0 + SUCCESS_PENALTY * shortfall * shortfall)
    if wanted.sort is not None:
        costs = {
            SortBy.PRICE: float(quote),
            SortBy.THROUGHPUT: 1.0 / max(stats.tokens_per_s, 0.01),
            SortBy.LATENCY: stats.ttft_ms,
        }
        cost = costs[wanted.sort]
    return cost * (UNWANTED_FACTOR if wanted.is_missed(stats.ttft_ms, stats.tokens_per_s) else 1.0)


def order_candidates(
    candidates: Sequence[Candidate],
    wish: Wish,
    stats: Sequence[ProviderStats],
    draw: bytes,
    now_ms: int = 0,
    favourite: Address | None = None,
) -> list[Candidate]:
    """The order in which to try: the better of two drawn at random, then the rest by score.

    A user's own order comes first, then the favourite; a user's `sort` draws nothing.

    Args:
        candidates: those that passed the filters.
        wish: what is bought.
        stats: one per candidate, in the same order.
        draw: `DRAW_SIZE` random bytes.
        now_ms: for what passes with time.
        favourite: who served the same prompt before and may have it in its cache.
    """
    pairs = sorted(
        zip(candidates, stats, strict=True),
        key=lambda pair: (compute_score(pair[0], wish, pair[1], now_ms), pair[0].provider),
    )
    ranked = [candidate for candidate, _ in pairs]
    wanted = wish.preferences
    if wanted.order or wanted.sort is not None:
        places = {provider: place for place, provider in enumerate(wanted.order)}
        return sorted(ranked, key=lambda candidate: places.get(candidate.provider, len(places)))
    if favourite is not None and any(candidate.provider == favourite for candidate in ranked):
        return sorted(ranked, key=lambda candidate: candidate.provider != favourite)
    return _draw_first(ranked, draw)


def _draw_first(ranked: list[Candidate], draw: bytes) -> list[Candidate]:
    """The better of two drawn at random first; now and then, the one drawn first whatever its rank."""
    if len(ranked) < 2:
        return ranked
    first = int.from_bytes(draw[:4]) % len(ranked)
    second = int.from_bytes(draw[4:8]) % (len(ranked) - 1)
    second += second >= first
    chosen = first if int.from_bytes(draw[8:DRAW_SIZE]) % EXPLORED_OF == 0 else min(first, second)
    return [ranked[chosen], *ranked[:chosen], *ranked[chosen + 1 :]]
