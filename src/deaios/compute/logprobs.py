"""How probable the model found tokens at one position: whole micro-nats, and the rules that such numbers keep.

The numbers are the model's own opinion: log-softmax of the raw logits at temperature 1, before mask and filters, in
float64. Invariant: what `rank_tokens` gives has no fault in the eyes of `find_fault`. Nothing here enters sampling,
receipts or checks. Knows nothing of text, requests or engines.
"""

import math

import numpy as np
from numpy.typing import NDArray

LOGPROBS_MAX = 20
"""Most tokens ranked beside the sampled one, as in the OpenAI API; also a bound of the wire."""
MICRO = 1_000_000
LOGPROB_MICRO_MIN = -9_999 * MICRO
"""What is less probable is written as this, as the OpenAI API writes -9999.0."""
TOKEN_ID_MAX = (1 << 32) - 1
MASS_MAX = 1.0 + 1e-6
"""Total probability of different tokens; each value may be rounded up by half a micro-nat."""

Ranking = tuple[tuple[int, int], ...]
"""Pairs of token id and log probability in micro-nats: the sampled token, then the most probable ones in order."""


def rank_tokens(logits: NDArray[np.float32], token: int, count: int) -> Ranking:
    """The sampled token and the `count` most probable ones, of equal ones the lower id first.

    Args:
        logits: one finite row, `(vocabulary,) float32`.
        token: the sampled id.
        count: 0 to `LOGPROBS_MAX`; a smaller vocabulary gives fewer.
    """
    assert 0 <= count <= LOGPROBS_MAX
    count = min(count, logits.size)
    top: NDArray[np.intp] = np.empty(0, np.intp)
    if count:
        near = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
        top = near[np.argsort(-logits[near], kind="stable")][:count]
    shifted = logits.astype(np.float64)
    highest = float(shifted.max())
    shifted -= highest
    total = math.log(float(np.exp(shifted, out=shifted).sum()))
    return tuple((place, _to_micro(float(logits[place]) - highest - total)) for place in (token, *top.tolist()))


def find_fault(ranking: Ranking, token: int, count: int) -> str | None:
    """What is wrong with a ranking that somebody else claims, or None where it could be true.

    Args:
        ranking: as received.
        token: the id that it goes with.
        count: how many of the most probable tokens were asked for.
    """
    if len(ranking) != 1 + count:
        return f"{len(ranking)} log probabilities were given, 1 and the {count} highest were asked for"
    (first, own), top = ranking[0], ranking[1:]
    if first != token:
        return f"the first log probability is of token {first}, the sampled one is {token}"
    for place, value in ranking:
        if not 0 <= place <= TOKEN_ID_MAX or not LOGPROB_MICRO_MIN <= value <= 0:
            return f"token {place} with {value} micro-nats is outside 0..{TOKEN_ID_MAX} or {LOGPROB_MICRO_MIN}..0"
    values = [value for _, value in top]
    if values != sorted(values, reverse=True):
        return "the most probable tokens are not in descending order"
    found = dict(top)
    if len(found) != count:
        return "the most probable tokens name one token twice"
    said, lowest = found.get(token), min(values, default=0)
    if own != said if said is not None else own > lowest:
        return (
            f"the sampled token has {own} micro-nats, yet the most probable tokens give it {said} and end at {lowest}"
        )
    mass = math.fsum(math.exp(value / MICRO) for value in ({token: own} | found).values())
    return None if mass <= MASS_MAX else f"probabilities add up to {mass:.6f}, at most 1 is possible"


def _to_micro(logprob: float) -> int:
    return min(0, max(LOGPROB_MICRO_MIN, round(logprob * MICRO)))
