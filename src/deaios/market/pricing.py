"""A price that follows load: between two bounds, in steps, and still while load is.

Pure. The price stands on one of `LEVELS` + 1 rungs from the lowest price to the highest. Load says which rung it should
stand on; each look moves it by one rung at most, and only where it is more than `SLACK` rungs off, so that it comes to
rest under any load that stays the same and does not follow every small change (hysteresis).
"""

from dataclasses import dataclass

from deaios.primitives.errors import ConfigError

LEVELS = 16
"""Rungs above the lowest price. One look moves a price by a sixteenth of its range at most."""
SLACK = 1
"""Rungs that a price may be off before it moves."""
LOAD_FULL = 1000
"""Thousandths: every stream is taken and the queue is full."""
STREAMS_SHARE = 500
"""Of them when every stream is taken and nobody waits: half the range is for competition, half for the queue."""


@dataclass(frozen=True, slots=True)
class PriceRange:
    """Lowest and highest price, smallest units per million prompt and sampled tokens."""

    input_min: int
    output_min: int
    input_max: int
    output_max: int

    def __post_init__(self) -> None:
        for name, low, high in (
            ("input", self.input_min, self.input_max),
            ("output", self.output_min, self.output_max),
        ):
            if not 0 <= low <= high:
                raise ConfigError(f"highest {name} price {high} is below the lowest, {low} per million tokens")


def compute_load(open_count: int, streams_max: int, queue_max: int) -> int:
    """How busy a provider is, 0 to `LOAD_FULL`.

    Args:
        open_count: purchases without a receipt.
        streams_max: generations at one time, at least 1.
        queue_max: purchases that may wait beside them.
    """
    running = min(open_count, streams_max)
    waiting = min(open_count - running, queue_max)
    queued = 0 if not queue_max else (LOAD_FULL - STREAMS_SHARE) * waiting // queue_max
    return STREAMS_SHARE * running // streams_max + queued


def step_level(level: int, load: int) -> int:
    """The rung after one look at the load; at most one away, and nearer to where the load wants it."""
    wanted = LEVELS * load // LOAD_FULL
    if abs(wanted - level) <= SLACK and wanted not in (0, LEVELS):
        return level
    return level + (wanted > level) - (wanted < level)


def price_at(prices: PriceRange, level: int) -> tuple[int, int]:
    """Prices of prompt and sampled tokens on a rung, 0 to `LEVELS`."""
    return (
        prices.input_min + (prices.input_max - prices.input_min) * level // LEVELS,
        prices.output_min + (prices.output_max - prices.output_min) * level // LEVELS,
    )


def find_level(prices: PriceRange, input_price: int, output_price: int) -> int:
    """The lowest rung that asks at least so much of both, the highest where none does: where a restart goes on."""
    for level in range(LEVELS):
        asked = price_at(prices, level)
        if asked[0] >= input_price and asked[1] >= output_price:
            return level
    return LEVELS
