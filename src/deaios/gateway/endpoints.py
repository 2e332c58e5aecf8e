"""Who sells a model and how well, as this gateway saw it: `GET /v1/models/{name}/endpoints`, in OpenRouter's form.

Numbers are the gateway's own observations by OpenRouter's definitions (`market.statistics`); prices are credits per
token. Under `deaios` stands what OpenRouter has no word for: the provider's address, what its receipts let anybody
check, how its purchases ended, and why it would get none now.
"""

import msgspec
from aiohttp import web

from deaios.gateway.errors import RefusedModel
from deaios.gateway.keys import KeyRecord
from deaios.gateway.openai_wire import Pricing
from deaios.gateway.purchasing import Purchasing, ServedModel, ServedModels
from deaios.market.buyer.endpoints import Endpoint
from deaios.market.preferences import name_quantization
from deaios.market.routing import Breaker
from deaios.market.statistics import Percentiles
from deaios.primitives.encoding import encode_hex
from deaios.primitives.units import CREDIT_DECIMALS
from deaios.runtime.http import json_response

SUPPORTED_PARAMETERS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "response_format",
    "structured_outputs",
)
"""Of OpenRouter's names, those that engines of ours take; a server that somebody resells may refuse tools and forms."""
STATUS_OK, STATUS_RESTING = 0, -1
PRICE_DECIMALS = CREDIT_DECIMALS + 6
"""Prices are per million tokens."""


class EndpointExtra(msgspec.Struct, frozen=True, rename="camel"):
    """What is said beside OpenRouter's fields; `refused` is why it would get no purchase now."""

    provider: str
    level: int
    breaker: str
    outcomes: dict[str, int]
    promises: list[str]
    in_flight: int
    waiting: int
    refused: str | None


class EndpointEntry(msgspec.Struct, frozen=True):
    """One provider's offer of a model and what was seen of it."""

    name: str
    model_id: str
    model_name: str
    provider_name: str
    tag: str
    context_length: int
    max_completion_tokens: int
    max_prompt_tokens: int
    pricing: Pricing
    quantization: str
    supported_parameters: tuple[str, ...]
    supports_implicit_caching: bool
    status: int
    uptime_last_5m: float | None
    uptime_last_30m: float | None
    uptime_last_1d: float | None
    latency_last_30m: Percentiles | None
    throughput_last_30m: Percentiles | None
    deaios: EndpointExtra


class ModelEndpoints(msgspec.Struct, frozen=True):
    """A model with its endpoints."""

    id: str
    name: str
    created: int
    description: str
    endpoints: list[EndpointEntry]


class EndpointsAnswer(msgspec.Struct, frozen=True):
    """The whole answer."""

    data: ModelEndpoints


class EndpointsDoor:
    """The route's handler."""

    def __init__(self, buyer: Purchasing, models: ServedModels) -> None:
        self._buyer = buyer
        self._models = models

    async def show(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """`GET /v1/models/{name}/endpoints`."""
        name = request.match_info["name"]
        model = self._models.find(name)
        if model is None or not key.may_use(*model.names):
            raise RefusedModel(f"the model {name[:128]!r} does not exist or this key may not use it")
        found = await self._buyer.list_endpoints(model.record_id)
        entries = [describe_endpoint(model, endpoint) for endpoint in found]
        named = model.record.name
        return json_response(EndpointsAnswer(ModelEndpoints(named, named, model.created_s, "", entries)))


def describe_endpoint(model: ServedModel, endpoint: Endpoint) -> EndpointEntry:
    """One entry."""
    offer, seen, stats = endpoint.candidate.signed_offer.offer, endpoint.seen, endpoint.stats
    address = encode_hex(endpoint.candidate.provider)
    is_well = endpoint.breaker == Breaker.CLOSED and endpoint.refused is None
    return EndpointEntry(
        name=f"{model.record.name} | {address}",
        model_id=encode_hex(model.record_id),
        model_name=model.record.name,
        provider_name=address,
        tag=address,
        context_length=offer.context_tokens,
        max_completion_tokens=offer.context_tokens,
        max_prompt_tokens=offer.context_tokens,
        pricing=Pricing(price_text(offer.input_price), price_text(offer.output_price)),
        quantization=name_quantization(model.record.quantisation),
        supported_parameters=SUPPORTED_PARAMETERS,
        supports_implicit_caching=False,
        status=STATUS_OK if is_well else STATUS_RESTING,
        uptime_last_5m=seen.uptime_last_5m,
        uptime_last_30m=seen.uptime_last_30m,
        uptime_last_1d=seen.uptime_last_1d,
        latency_last_30m=seen.latency_last_30m,
        throughput_last_30m=seen.throughput_last_30m,
        deaios=EndpointExtra(
            provider=address,
            level=offer.level,
            breaker=endpoint.breaker,
            outcomes=seen.states,
            promises=sorted(endpoint.candidate.promises),
            in_flight=stats.in_flight,
            waiting=stats.waiting,
            refused=endpoint.refused,
        ),
    )


def price_text(price: int) -> str:
    """Credits per token from smallest units per million tokens, exactly."""
    digits = str(price).rjust(PRICE_DECIMALS + 1, "0")
    whole, part = digits[:-PRICE_DECIMALS], digits[-PRICE_DECIMALS:].rstrip("0")
    return f"{whole}.{part}" if part else whole
