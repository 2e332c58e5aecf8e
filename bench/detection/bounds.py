"""Exact one-sided bounds of a binomial share (Clopper and Pearson, Biometrika 1934)."""

import math

CONFIDENCE = 0.95
_HALVINGS = 60
"""More than float64 has bits between 0 and 1."""


def compute_tail(successes: int, trials: int, share: float) -> float:
    """Probability of at least `successes` in `trials` when each succeeds with probability `share`."""
    if successes <= 0:
        return 1.0
    if share <= 0.0:
        return 0.0
    if share >= 1.0:
        return 1.0
    yes, no = math.log(share), math.log1p(-share)
    whole = math.lgamma(trials + 1)
    terms = (
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * yes + (trials - k) * no)
        for k in range(successes, trials + 1)
    )
    return min(1.0, math.fsum(terms))


def compute_lower_bound(successes: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """The share below which so many successes would have had a probability of less than 1 - confidence."""
    assert 0 <= successes <= trials
    if successes == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if compute_tail(successes, trials, middle) < 1.0 - confidence:
            low = middle
        else:
            high = middle
    return low


def compute_upper_bound(successes: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """The share above which so few successes would have had a probability of less than 1 - confidence."""
    return 1.0 - compute_lower_bound(trials - successes, trials, confidence)
