"""How much a key may ask for in a minute: requests and tokens, each a bucket that fills evenly.

Invariant: over any stretch of time a key begins no more requests than its bucket and its rate allow. Tokens are counted
when an answer ends, since nobody knows before how many it will have: a request begins while the bucket is not empty,
and what ran over is owed by the next ones. In memory: a restart fills all buckets.
"""

import math
from dataclasses import dataclass

from deaios.gateway.errors import RefusedRate
from deaios.gateway.keys import KeyRecord
from deaios.runtime.clock import Clock

MINUTE_S = 60.0
KEYS_MAX = 65_536
"""Buckets kept; the oldest is forgotten, which fills it."""


@dataclass(slots=True)
class _Bucket:
    """What is left, as of a moment."""

    left: float
    at_s: float

    def refill(self, now_s: float, rate: int) -> None:
        self.left = min(float(rate), self.left + (now_s - self.at_s) * rate / MINUTE_S)
        self.at_s = now_s

    def wait_s(self, needed: float, rate: int) -> float:
        """How long until so much is there."""
        return max(0.0, (needed - self.left) * MINUTE_S / rate)


class Rates:
    """The buckets of one gateway process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def admit(self, key: KeyRecord) -> None:
        """Count one request.

        Raises:
            RefusedRate: there is none left, or the key owes tokens; nothing is counted.
        """
        tokens, requests = self._find(key, "tokens", key.tokens_per_minute), None
        if tokens is not None and key.tokens_per_minute is not None and tokens.left < 1:
            self._refuse("tokens", key.tokens_per_minute, tokens)
        requests = self._find(key, "requests", key.requests_per_minute)
        if requests is not None and key.requests_per_minute is not None:
            if requests.left < 1:
                self._refuse("requests", key.requests_per_minute, requests)
            requests.left -= 1

    def count(self, key_id: str, tokens: int) -> None:
        """Count what an answer took, where its key has a limit."""
        bucket = self._buckets.get((key_id, "tokens"))
        if bucket is not None:
            bucket.left -= tokens

    def describe(self, key: KeyRecord) -> dict[str, str]:
        """The headers that say what is left, as in the OpenAI API; none where there is no limit."""
        headers: dict[str, str] = {}
        for name, rate in (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute)):
            bucket = self._find(key, name, rate)
            if bucket is not None and rate is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(rate)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.left)))
                headers[f"x-ratelimit-reset-{name}"] = f"{bucket.wait_s(rate, rate):.3f}s"
        return headers

    def _find(self, key: KeyRecord, name: str, rate: int | None) -> _Bucket | None:
        if rate is None:
            return None
        now_s = self._clock.monotonic_s()
        bucket = self._buckets.get((key.key_id, name))
        if bucket is None:
            if len(self._buckets) >= KEYS_MAX:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[key.key_id, name] = _Bucket(float(rate), now_s)
        bucket.refill(now_s, rate)
        return bucket

    def _refuse(self, name: str, rate: int, bucket: _Bucket) -> None:
        retry_s = math.ceil(bucket.wait_s(1, rate))
        raise RefusedRate(f"this key may use {rate} {name} per minute; try again in {retry_s} s", max(1, retry_s))
