"""Which provider gets a purchase, and who is next when it fails.

Pure; the random draw is an argument. Hard filters first (each refusal with its reason, so that "why not me" has an
answer), then a score (price, predicted time, success), then the better of two drawn at random, so that buyers do not
stampede to one provider. It does not know how offers, stake or statistics were obtained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deaios.market.offers import SignedOffer, compute_quote
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
DRAW_SIZE = 8


@dataclass(frozen=True, slots=True)
class ProviderStats:
    """What a buyer itself saw of one provider."""

    ttft_ms: float = TTFT_MS_PRIOR
    tokens_per_s: float = TOKENS_PER_S_PRIOR
    successes: float = 0.0
    failures: float = 0.0
    failures_in_a_row: int = 0
    rest_until_ms: int = 0
    in_flight: int = 0

    def is_resting(self, now_ms: int) -> bool:
        """Whether it failed so often in a row that it is tried only where nobody else is left."""
        return self.rest_until_ms > now_ms

    @property
    def success_rate(self) -> float:
        """Posterior mean with a prior of 19 successes in 20, so that the first failure does not condemn."""
        return (self.successes + 19.0) / (self.successes + self.failures + 20.0)

    def begin(self) -> "ProviderStats":
        """A purchase was sent."""
        return replace(self, in_flight=self.in_flight + 1)

    def abandon(self) -> "ProviderStats":
        """A purchase ended without telling anything about the provider."""
        return replace(self, in_flight=max(0, self.in_flight - 1))

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
        """A purchase failed by the provider's fault."""
        row = self.failures_in_a_row + 1
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
    return next((reason for refused, reason in checks if refused), None)


def compute_score(candidate: Candidate, wish: Wish, stats: ProviderStats) -> float:
    """A cost without unit, lower is better: price times expected time, raised by crowding and missed successes."""
    offer = candidate.signed_offer.offer
    quote = compute_quote(offer, wish.prompt_tokens, wish.max_tokens) + 1
    expected_ms = stats.ttft_ms * (1 + stats.in_flight) + wish.max_tokens * 1000.0 / max(stats.tokens_per_s, 0.01)
    crowding = 1.0 + stats.in_flight / offer.streams_max
    shortfall = max(0.0, SUCCESS_TARGET - stats.success_rate)
    return quote * expected_ms * crowding * (1.0 + SUCCESS_PENALTY * shortfall * shortfall)


def order_candidates(
    candidates: Sequence[Candidate], wish: Wish, stats: Sequence[ProviderStats], draw: bytes
) -> list[Candidate]:
    """The order in which to try: the better of two drawn at random, then the rest by score.

    Args:
        candidates: those that passed the filters.
        wish: what is bought.
        stats: one per candidate, in the same order.
        draw: `DRAW_SIZE` random bytes.
    """
    pairs = sorted(
        zip(candidates, stats, strict=True), key=lambda pair: (compute_score(pair[0], wish, pair[1]), pair[0].provider)
    )
    ranked = [candidate for candidate, _ in pairs]
    if len(ranked) < 2:
        return ranked
    first = int.from_bytes(draw[:4]) % len(ranked)
    second = int.from_bytes(draw[4:DRAW_SIZE]) % (len(ranked) - 1)
    second += second >= first
    chosen = min(first, second)
    return [ranked[chosen], *ranked[:chosen], *ranked[chosen + 1 :]]
