"""Weak evidence added up over many tokens: a test that may be looked at after each of them.

Invariant: whatever the order and however often anybody looks, an honest provider's value reaches `1 / alpha` with
probability at most alpha, as long as its tokens exceed the tail no more often than the model's calibration allows.
Pure: counts in, value out. Knows nothing of models, providers or records.

Method: the mean over fixed alternatives of the likelihood ratio of Bernoulli counts is a test martingale under the
honest rate and a supermartingale below it (Ville's inequality; Ramdas, Gruenwald, Vovk and Shafer, arXiv:2210.01948).
"""

import math
from dataclasses import dataclass
from typing import Final

ALTERNATIVES: Final = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
"""Rates of a cheat as multiples of the honest one; the mean over them loses at most a factor of seven."""
ALPHA: Final = 1e-4
"""Chance at most that an honest provider is ever reported: the e-value of 10,000 of docs/spec/protocol.md §4."""
RATE_MAX: Final = 0.9
"""Alternatives are cut here, so that every likelihood stays above zero."""
CONFIDENCE_ERROR: Final = 1e-3
"""Chance at most that the honest rate is above the bound that calibration states."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted of one provider.

    Attributes:
        tokens: checked.
        exceeding: of them, with a margin above the tail.
    """

    tokens: int = 0
    exceeding: int = 0

    def add(self, tokens: int, exceeding: int) -> "Tally":
        """Count further tokens."""
        assert 0 <= exceeding <= tokens
        return Tally(self.tokens + tokens, self.exceeding + exceeding)


def compute_evalue(tally: Tally, honest_rate: float) -> float:
    """How much the counts speak against honesty; 1.0 before anything was seen.

    Args:
        tally: of one provider.
        honest_rate: the largest share of honest tokens above the tail, between 0 and 1.
    """
    return math.exp(min(700.0, _log_evalue(tally, honest_rate)))


def _log_evalue(tally: Tally, honest_rate: float) -> float:
    assert 0.0 < honest_rate < RATE_MAX
    passing = tally.tokens - tally.exceeding
    logs = [
        tally.exceeding * math.log(rate / honest_rate) + passing * math.log((1.0 - rate) / (1.0 - honest_rate))
        for rate in _alternatives(honest_rate)
    ]
    highest = max(logs)
    return highest + math.log(sum(math.exp(item - highest) for item in logs) / len(logs))


def is_convicting(tally: Tally, honest_rate: float, alpha: float = ALPHA) -> bool:
    """Has the value reached what an honest provider reaches with probability at most `alpha`?"""
    return _log_evalue(tally, honest_rate) >= math.log(1.0 / alpha)


def compute_expected_tokens(rate: float, honest_rate: float, alpha: float = ALPHA) -> int | None:
    """Tokens until a cheat of a given rate is reported, on average (Wald); None where it never is.

    Args:
        rate: share of the cheat's tokens above the tail.
        honest_rate: the bound of honest ones.
        alpha: of the test.
    """

    def gain(alternative: float) -> float:
        return rate * math.log(alternative / honest_rate) + (1.0 - rate) * math.log(
            (1.0 - alternative) / (1.0 - honest_rate)
        )

    best = max(gain(alternative) for alternative in _alternatives(honest_rate))
    if best <= 0.0:
        return None
    return math.ceil((math.log(1.0 / alpha) + math.log(len(ALTERNATIVES))) / best)


def bound_rate(tokens: int, exceeding: int, error: float = CONFIDENCE_ERROR) -> float:
    """Upper confidence bound of a share: the largest one under which so few exceed with probability `error`.

    Source: Clopper and Pearson, Biometrika 26 (1934); one-sided.
    """
    assert 0 <= exceeding <= tokens
    if exceeding >= tokens:
        return 1.0
    low, high = exceeding / tokens, 1.0
    for _ in range(60):  # halves the interval to below a float's precision
        middle = (low + high) / 2
        if _log_at_most(tokens, exceeding, middle) > math.log(error):
            low = middle
        else:
            high = middle
    return high


def _log_at_most(tokens: int, exceeding: int, rate: float) -> float:
    """Logarithm of the chance that at most so many of the tokens exceed."""
    if rate >= 1.0:
        return -math.inf
    logs = [
        math.lgamma(tokens + 1)
        - math.lgamma(count + 1)
        - math.lgamma(tokens - count + 1)
        + (count * math.log(rate) if count else 0.0)
        + (tokens - count) * math.log1p(-rate)
        for count in range(exceeding + 1)
    ]
    highest = max(logs)
    return highest + math.log(sum(math.exp(item - highest) for item in logs))


def _alternatives(honest_rate: float) -> tuple[float, ...]:
    return tuple(min(RATE_MAX, multiple * honest_rate) for multiple in ALTERNATIVES)
