"""One provider of a model as a buyer sees it. Pure; `Router.list_endpoints` fills it."""

from dataclasses import dataclass

from deaios.market.routing import Breaker, Candidate, ProviderStats
from deaios.market.statistics import EndpointStats


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An offer and what was seen of who made it.

    Attributes:
        candidate: offer, stake, promises.
        seen: the published numbers.
        stats: what routing goes by.
        breaker: whether it is bought from.
        refused: why the smallest purchase would not go there, or None.
    """

    candidate: Candidate
    seen: EndpointStats
    stats: ProviderStats
    breaker: Breaker
    refused: str | None
