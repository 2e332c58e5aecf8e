"""Query strings of listings, read strictly."""

from collections.abc import Collection, Sequence
from typing import TypeVar

from aiohttp import web

from deaios.market.fields import InvalidParameter
from deaios.primitives.encoding import InvalidEncoding, decode_decimal

LIMIT_MAX = 10_000
LIMIT_BITS = 16
ID_CHARS_MAX = 80
T = TypeVar("T")


def read_query(request: web.Request, names: Collection[str]) -> dict[str, str]:
    """The query's parameters.

    Raises:
        InvalidParameter: one is not among `names`, or comes twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in names:
            raise InvalidParameter(name[:80], f"unrecognized parameter: {name[:80]!r}", "unknown_parameter")
        if name in found:
            raise InvalidParameter(name, f"{name} is given twice")
        found[name] = value
    return found


def read_limit(query: dict[str, str], default: int, most: int) -> int:
    """How many entries are wanted.

    Raises:
        InvalidParameter: not a number from 1 to `most`.
    """
    text = query.get("limit", str(default))
    try:
        limit = decode_decimal(text, LIMIT_BITS)
    except InvalidEncoding as error:
        raise InvalidParameter("limit", f"limit: {error}") from error
    if not 1 <= limit <= most:
        raise InvalidParameter("limit", f"limit is {limit}, allowed are 1 to {most}")
    return limit


def read_order(query: dict[str, str]) -> bool:
    """Whether the newest comes first.

    Raises:
        InvalidParameter: neither `asc` nor `desc`.
    """
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidParameter("order", f"order is {order[:80]!r}, allowed are 'asc' and 'desc'")
    return order == "desc"


def cut_page(items: Sequence[T], ids: Sequence[str], after: str | None, limit: int) -> tuple[list[T], bool]:
    """The entries after one, and whether there are more.

    Raises:
        InvalidParameter: there is no such entry.
    """
    start = 0
    if after is not None:
        if after not in ids:
            raise InvalidParameter("after", f"no entry has the id {after[:ID_CHARS_MAX]!r}")
        start = ids.index(after) + 1
    return list(items[start : start + limit]), len(items) > start + limit
