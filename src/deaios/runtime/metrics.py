"""Counters, gauges and histograms of one role in the Prometheus exposition format."""

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """A role's own registry, so that several roles can live in one process."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._registry = CollectorRegistry()
        self.gauge("asyncio_tasks", "Tasks of the event loop that are not done").set_function(_count_tasks)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """A count that only grows; the name gets the prefix `deaios_`."""
        return Counter(f"deaios_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        """A value that moves both ways."""
        return Gauge(f"deaios_{name}", text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
        """Durations in seconds."""
        return Histogram(f"deaios_{name}", text, labels, registry=self._registry, buckets=LATENCY_BUCKETS_S)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)


def _count_tasks() -> int:
    """Tasks of the loop that asks, the asking one included; 0 outside of any loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
