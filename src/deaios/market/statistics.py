"""What one buyer saw of one provider, as it is published: OpenRouter's numbers by OpenRouter's definitions.

Pure; time is an argument. Uptime is the share of minutes in which at least 80 % of the attempts succeeded, counting
minutes with ten attempts or more, without what was refused for lack of room and without what the buyer caused; None
where no minute had so many (OpenRouter's Python SDK 1.3.84, `components/publicendpoint.py`). Latency is the time to the
first token. Memory is bounded: a day of minutes, the newest served purchases of half an hour.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from deaios.primitives.errors import Invalid

MINUTE_MS = 60_000
MINUTES_KEPT = 24 * 60
ATTEMPTS_MIN = 10
SUCCESS_MIN = 0.8
SAMPLES_MS = 30 * MINUTE_MS
SAMPLES_MAX = 512
"""Newest served purchases kept per provider; percentiles of more would not be better."""
RECORD_BYTES_MAX = 256 << 10


class InvalidRecord(Invalid):
    """Bytes that are not a record of this form."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """What half, three quarters, nine tenths and all but one in a hundred purchases reached or were better than."""

    p50: float
    p75: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """Numbers for people; uptimes in percent, latency in milliseconds, throughput in tokens per second."""

    uptime_last_5m: float | None
    uptime_last_30m: float | None
    uptime_last_1d: float | None
    latency_last_30m: Percentiles | None
    throughput_last_30m: Percentiles | None
    states: dict[str, int]


class _Saved(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    minutes: list[tuple[int, int, int]]
    samples: list[tuple[int, float, float | None]]
    states: dict[str, int]


@dataclass(slots=True)
class EndpointRecord:
    """One provider's last day.

    Attributes:
        minutes: (minute since the epoch, attempts, successes), oldest first.
        samples: (time, ms to the first token, tokens per second after it) of served purchases.
        states: purchases by how they ended, since the record began.
    """

    minutes: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=MINUTES_KEPT))
    samples: deque[tuple[int, float, float | None]] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    states: Counter[str] = field(default_factory=Counter)

    def note_attempt(self, now_ms: int, *, is_success: bool) -> None:
        """A purchase ended by the provider's merit or fault."""
        minute, attempts, successes = now_ms // MINUTE_MS, 0, 0
        if self.minutes and self.minutes[-1][0] >= minute:
            minute, attempts, successes = self.minutes.pop()
        self.minutes.append((minute, attempts + 1, successes + is_success))

    def note_served(self, now_ms: int, ttft_ms: float, tokens_per_s: float | None) -> None:
        """How fast a served purchase was; without a rate where it had one token."""
        self.samples.append((now_ms, ttft_ms, tokens_per_s))

    def compute(self, now_ms: int) -> EndpointStats:
        """The published numbers."""
        recent = [sample for sample in self.samples if sample[0] > now_ms - SAMPLES_MS]
        rates = sorted((rate for _, _, rate in recent if rate is not None), reverse=True)
        return EndpointStats(
            uptime_last_5m=self._compute_uptime(now_ms, 5),
            uptime_last_30m=self._compute_uptime(now_ms, 30),
            uptime_last_1d=self._compute_uptime(now_ms, MINUTES_KEPT),
            latency_last_30m=compute_percentiles(sorted(ttft_ms for _, ttft_ms, _ in recent)),
            throughput_last_30m=compute_percentiles(rates),
            states=dict(sorted(self.states.items())),
        )

    def _compute_uptime(self, now_ms: int, minutes: int) -> float | None:
        oldest = now_ms // MINUTE_MS - minutes
        shares = [
            successes / attempts
            for minute, attempts, successes in self.minutes
            if minute > oldest and attempts >= ATTEMPTS_MIN
        ]
        return 100.0 * sum(share >= SUCCESS_MIN for share in shares) / len(shares) if shares else None

    def encode(self) -> bytes:
        """As it is kept on disk."""
        return msgspec.json.encode(_Saved(list(self.minutes), list(self.samples), dict(self.states)))

    @classmethod
    def decode(cls, data: bytes) -> "EndpointRecord":
        """Read what `encode` wrote.

        Raises:
            InvalidRecord: it is something else.
        """
        try:
            saved = msgspec.json.decode(data, type=_Saved)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidRecord(f"not a record of an endpoint: {error}") from error
        record = cls(states=Counter(saved.states))
        record.minutes.extend(saved.minutes)
        record.samples.extend(saved.samples)
        return record


def compute_percentiles(values: Sequence[float]) -> Percentiles | None:
    """Nearest-rank percentiles of values from the best to the worst; None of nothing."""
    if not values:
        return None
    ranks = ((len(values) * percent + 99) // 100 - 1 for percent in (50, 75, 90, 99))
    return Percentiles(*(values[rank] for rank in ranks))
