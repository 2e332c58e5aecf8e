"""`GET /v1/usage`: what the asking key may spend, has spent, and on what.

Parameters: `start_time` and `end_time` in Unix seconds, and `bucket_width`, `1d`, `1h` or `1m`; without a start, the
last 30 days, or as many spans as are shown. Amounts are credits as decimal text.
"""

import asyncio

import msgspec
from aiohttp import web

from deaios.gateway.keys import KeyRecord
from deaios.gateway.queries import read_query
from deaios.gateway.store import KeyStore, Spending
from deaios.market.fields import InvalidParameter
from deaios.primitives.encoding import InvalidEncoding, decode_decimal
from deaios.primitives.units import format_credit
from deaios.runtime.clock import Clock
from deaios.runtime.http import json_response

WIDTHS_S = {"1d": 24 * 3600, "1h": 3600, "1m": 60}
BUCKETS_MAX = 1440
DEFAULT_S = 30 * 24 * 3600
TIME_BITS = 40


class UsageBucket(msgspec.Struct, frozen=True):
    """What was bought in one span."""

    start_time: int
    end_time: int
    purchases: int
    prompt_tokens: int
    completion_tokens: int
    cost: str
    object: str = "bucket"


class KeyTerms(msgspec.Struct, frozen=True):
    """What a key may do."""

    id: str
    name: str
    budget: str | None
    spent: str
    remaining: str | None
    models: list[str] | None
    created_at: int
    expires_at: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None


class Usage(msgspec.Struct, frozen=True):
    """The whole answer; spans without purchases are left out."""

    key: KeyTerms
    start_time: int
    end_time: int
    purchases: int
    prompt_tokens: int
    completion_tokens: int
    cost: str
    data: list[UsageBucket]
    object: str = "usage"


class UsageDoor:
    """The route's handler."""

    def __init__(self, keys: KeyStore, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    async def show(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """The asking key's own usage."""
        query = read_query(request, ("start_time", "end_time", "bucket_width"))
        now_s = self._clock.now_ms() // 1000
        end_s = _read_time(query, "end_time", now_s + 1)
        width = query.get("bucket_width", "1d")
        if width not in WIDTHS_S:
            raise InvalidParameter("bucket_width", f"bucket_width is {width[:20]!r}, allowed are {', '.join(WIDTHS_S)}")
        width_s = WIDTHS_S[width]
        span_s = min(DEFAULT_S, BUCKETS_MAX * width_s)
        start_s = _read_time(query, "start_time", max(0, end_s - span_s))
        if not 0 < end_s - start_s <= BUCKETS_MAX * width_s:
            raise InvalidParameter(
                "start_time",
                f"from {start_s} to {end_s} are {end_s - start_s} s, allowed are 1 to {BUCKETS_MAX * width_s}",
            )
        spans = await asyncio.to_thread(
            self._keys.sum_charges, key.key_id, start_s * 1000, end_s * 1000, width_s * 1000
        )
        return json_response(
            Usage(
                key=_describe(key),
                start_time=start_s,
                end_time=end_s,
                purchases=sum(span.purchases for span in spans),
                prompt_tokens=sum(span.prompt_tokens for span in spans),
                completion_tokens=sum(span.completion_tokens for span in spans),
                cost=format_credit(sum(span.amount for span in spans)),
                data=[_build_bucket(span, width_s) for span in spans],
            )
        )


def _read_time(query: dict[str, str], name: str, default: int) -> int:
    if name not in query:
        return default
    try:
        return decode_decimal(query[name], TIME_BITS)
    except InvalidEncoding as error:
        raise InvalidParameter(name, f"{name}: {error}") from error


def _build_bucket(span: Spending, width_s: int) -> UsageBucket:
    start_s = span.from_ms // 1000
    cost = format_credit(span.amount)
    return UsageBucket(start_s, start_s + width_s, span.purchases, span.prompt_tokens, span.completion_tokens, cost)


def _describe(key: KeyRecord) -> KeyTerms:
    left = None if key.budget is None else format_credit(key.budget - key.spent)
    return KeyTerms(
        id=key.key_id,
        name=key.name,
        budget=None if key.budget is None else format_credit(key.budget),
        spent=format_credit(key.spent),
        remaining=left,
        models=None if key.models is None else sorted(key.models),
        created_at=key.created_at_ms // 1000,
        expires_at=None if key.expires_at_ms is None else key.expires_at_ms // 1000,
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
    )
