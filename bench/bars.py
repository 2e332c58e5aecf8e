"""The bars and goals of the design's budgets, by row. They are shown beside the figures and asserted nowhere."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bar:
    """What a row should reach.

    Attributes:
        on: whether `bar` and `goal` are about ours over the peer's, or about our figure alone.
        better: which way is better.
    """

    bar: float
    goal: float
    on: Literal["ratio", "value"] = "ratio"
    better: Literal["higher", "lower"] = "higher"

    def holds(self, figure: float) -> bool:
        return figure >= self.bar if self.better == "higher" else figure <= self.bar


def _at_most(bar: float, goal: float, on: Literal["ratio", "value"] = "ratio") -> Bar:
    return Bar(bar, goal, on, "lower")


BARS = {
    "coding.encode_commit": Bar(0.25, 0.60),
    "coding.encode_commit_portable": Bar(0.08, 0.25),
    "coding.encode_commit_vs_kzg": Bar(500, 1500),
    "coding.verify_row": Bar(0.45, 0.80),
    "coding.decode_random": Bar(0.20, 0.50),
    "coding.two_threads": Bar(1.7, 1.95),
    "chain.erc20_tx_per_cpu_s": Bar(1.5, 3),
    "gateway.added_latency_p50_ms": _at_most(3, 1, "value"),
    "gateway.requests_per_s": Bar(10, 30),
    "compute.verify_over_generate": _at_most(0.5, 0.2),
    "compute.provider_overhead": _at_most(1.03, 1.01),
    "compute.detection_128": Bar(0.95, 0.999, "value"),
    "compute.batched_tokens_per_s": Bar(0.9, 1.0),
    "compute.prefix_cache_ttft": _at_most(0.5, 0.1),
    "storage.get": Bar(0.3, 0.8),
    "storage.put": Bar(0.15, 0.5),
    "node.first_answer_s": _at_most(20, 8, "value"),
    "node.memory_mib": _at_most(2048, 1000, "value"),
}
