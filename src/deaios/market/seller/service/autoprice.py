"""The loop that moves a provider's price with its load.

The rule is `market.pricing`. A price that was posted binds until its offer ends, so offers of a moving price are short:
who has seen a low price can buy at it for `MOVING_OFFER_MS` and no longer, whatever the price has become.
"""

from collections.abc import Callable

from deaios.market.offers import SignedOffer
from deaios.market.pricing import PriceRange, compute_load, find_level, price_at, step_level
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

MOVING_OFFER_MS = 10 * 60 * 1000
"""Longer than any gateway keeps an offer without asking again, with room for what is in flight."""
SAMPLE_S = 1.0
SAMPLES = 15
"""One step a quarter of a minute at most, by the mean of so many looks: one request more is no rush."""

_log = get_logger("seller")


class Autopricer:
    """Where a provider's price stands."""

    def __init__(
        self,
        prices: PriceRange,
        streams_max: int,
        queue_max: int,
        count_open: Callable[[], int],
        clock: Clock,
        metrics: Metrics | None,
    ) -> None:
        """Begin at the lowest price.

        Args:
            prices: between which it moves.
            streams_max: generations at one time.
            queue_max: purchases that may wait beside them.
            count_open: purchases without a receipt now.
            clock: time.
            metrics: gets its gauges.
        """
        self._prices = prices
        self._streams_max = streams_max
        self._queue_max = queue_max
        self._count_open = count_open
        self._clock = clock
        self._level = 0
        self._load = 0
        if metrics is not None:
            text = "per million %s tokens in smallest units, as it stands now"
            metrics.gauge("seller_input_price", "Price " + text % "prompt").set_function(lambda: self.ask()[0])
            metrics.gauge("seller_output_price", "Price " + text % "sampled").set_function(lambda: self.ask()[1])
            metrics.gauge("seller_load", "Load that the price follows, 0 to 1000").set_function(lambda: self._load)

    def ask(self) -> tuple[int, int]:
        """Prices of prompt and sampled tokens now, smallest units per million."""
        return price_at(self._prices, self._level)

    def resume(self, last: SignedOffer | None) -> None:
        """Go on where the last run stopped, as far as the range still allows."""
        if last is not None:
            self._level = find_level(self._prices, last.offer.input_price, last.offer.output_price)

    async def run(self) -> None:
        """Look and step until cancelled; the next offer that is read is signed at the new price."""
        while True:
            total = 0
            for _ in range(SAMPLES):
                await self._clock.sleep(SAMPLE_S)
                total += compute_load(self._count_open(), self._streams_max, self._queue_max)
            self.look(total // SAMPLES)

    def look(self, load: int) -> None:
        """Take one step by a load, 0 to `LOAD_FULL`."""
        self._load = load
        level = step_level(self._level, load)
        if level != self._level:
            self._level = level
            input_price, output_price = self.ask()
            _log.info("price moved", load=load, input_price=input_price, output_price=output_price)
