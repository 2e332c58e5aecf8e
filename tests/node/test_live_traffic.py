"""The judge of growth: it sees a leak through noise, and does not see one where there is only noise."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from soak.live_traffic import MB, compute_slope, judge, table

NOISE = random.Random(1)


def points(base: float, growth: float, noise: float, count: int = 90) -> list[tuple[float, float]]:
    return [(20.0 * n, base + growth * n / count + NOISE.uniform(-noise, noise)) for n in range(count)]


def test_the_slope_ignores_outliers() -> None:
    series = [(float(n), 3.0 * n) for n in range(40)]
    series[7] = (7.0, 10_000.0)
    series[30] = (30.0, -10_000.0)
    assert compute_slope(series) == pytest.approx(3.0)


def test_a_leak_is_seen_through_noise_and_noise_is_no_leak() -> None:
    series = {
        "gateway memory": points(120 * MB, 40 * MB, 6 * MB),
        "chain memory": points(120 * MB, 0, 6 * MB),
        "gateway asyncio_tasks": points(40, 60, 5),
        "chain asyncio_tasks": points(40, 0, 5),
        "gateway buyer_channels": points(2, 8, 0),
        "auditor-1 buyer_channels": points(2, 0, 0),
    }
    grown = judge(series)
    assert [text.split(" grew")[0] for text in grown] == [
        "gateway memory",
        "gateway asyncio_tasks",
        "gateway buyer_channels",
    ]


def test_what_grew_only_while_caches_filled_is_no_leak() -> None:
    filling = [(20.0 * n, float(min(n, 20) * 5 * MB)) for n in range(90)]
    assert judge({"gateway memory": filling}) == []
    assert "gateway memory" in table({"gateway memory": filling})
