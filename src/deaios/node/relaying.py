"""Where a role answers: under its own address, or behind a relay where nobody can dial it.

A role that cannot be dialled finds a relay by itself: every gateway that is registered on chain can be one. It keeps
the first that takes it, and is registered under that relay's URL, so that who asks it needs no change.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from deaios.ledger.descriptor import NetworkDescriptor
from deaios.node.context import RoleContext
from deaios.node.member import Member
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.runtime.http import build_application, serve
from deaios.runtime.logs import get_logger
from deaios.runtime.relay.client import RelayClient, UnavailableRelay

GATEWAY_ROLE = "gateway"
RELAYS_MAX = 8
"""So many gateways, the newest, are asked."""
ASK_S = 8.0
CONNECT_S = 30.0
DIRECT = "direct"
"""Of the setting: never use a relay."""

_log = get_logger("relay")


class _Reached(msgspec.Struct):
    reachable: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a role answers.

    Attributes:
        url: what is registered and stands in offers.
        relay_url: of the relay; None where the role is dialled itself.
    """

    url: str
    relay_url: str | None = None


async def find_place(member: Member, host: str, port: int, wanted: str) -> Place:
    """Decide where a role answers, before it serves.

    Args:
        member: the role's key.
        host: address that it listens on.
        port: its port, free now.
        wanted: a relay's URL, `DIRECT`, or empty to find out.

    Raises:
        UnavailableRelay: it cannot be dialled, and no gateway passes requests on.
    """
    own = Place(f"http://{host}:{port}")
    if wanted == DIRECT or (not wanted and _is_one_machine(member.descriptor)):
        return own
    if wanted:
        return _behind(member, wanted)
    relays = await member.contracts.identities.list_role(GATEWAY_ROLE, RELAYS_MAX * 8)
    async with _answering(host, port):
        for relay in relays[:RELAYS_MAX]:
            reached = await _ask(member, relay.url, own.url)
            if reached is not None:
                _log.info("looked at from outside", relay=relay.url, reachable=reached)
                return own if reached else _behind(member, relay.url)
    if _is_loopback(host):
        raise UnavailableRelay(
            f"nobody else can dial {own.url} and no gateway of this network passes requests on; set network.host in "
            "deaios.toml to an address that others reach, or name a relay with --relay URL"
        )
    return own


@asynccontextmanager
async def reached_at(
    place: Place, door_url: str, context: RoleContext, member: Member
) -> AsyncIterator[RelayClient | None]:
    """Be reachable at a place while the block runs; yields the connection to its relay, None without one.

    Raises:
        UnavailableRelay: it does not take this role.
    """
    if place.relay_url is None:
        yield None
        return
    client = RelayClient(
        place.relay_url, door_url, member.key, member.descriptor.network_id, clock=context.clock, dice=context.dice
    )
    async with client:
        await client.wait_connected(CONNECT_S)
        yield client


def _behind(member: Member, relay_url: str) -> Place:
    base = relay_url.rstrip("/")
    return Place(f"{base}/relay/{encode_hex(member.address)}", base)


def _is_one_machine(descriptor: NetworkDescriptor) -> bool:
    """A network whose chain is on the loopback has nobody outside this machine."""
    return all(_is_loopback(urlsplit(url).hostname or "") for url in descriptor.rpc_urls)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _ask(member: Member, relay_url: str, url: str) -> bool | None:
    """Can a URL be dialled from a relay? None where the relay does not say."""
    try:
        async with asyncio.timeout(ASK_S):
            answer = await member.http.post_json(f"{relay_url.rstrip('/')}/relay/reach", {"url": url}, _Reached)
    except Refused as refusal:
        # Seen from there, we come from elsewhere than where we listen.
        return False if "RefusedReach" in str(refusal) else None
    except (Unavailable, Invalid, TimeoutError):
        return None
    return answer.reachable


@asynccontextmanager
async def _answering(host: str, port: int) -> AsyncIterator[None]:
    """A door that says no more than that it is there."""
    application: web.Application = build_application("look", body_bytes_max=1)
    async with serve(application, host, port):
        yield
