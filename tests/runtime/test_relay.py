"""A role behind a relay is asked as if it had been dialled: real servers, real WebSockets, real failures."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web

from deaios.primitives.encoding import encode_hex
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.authentication import sign_request
from deaios.runtime.client import HttpClient, RefusedByPeer, UnavailablePeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import build_application, json_response, read_body, serve
from deaios.runtime.relay.client import RelayClient, UnavailableRelay
from deaios.runtime.relay.framing import Kind, encode_frame
from deaios.runtime.relay.server import CONNECT_PATH, Relay, RelayLimits

NETWORK = b"n" * 32
KEY = PrivateKey(b"\x01" * 32)
OTHER = PrivateKey(b"\x02" * 32)
WAIT_S = 10.0
BODY_MAX = 4 << 20


async def until(condition: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        await condition.wait()


class Door:
    """A role's own door, whose streams go on when they are told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()
        self.began = asyncio.Event()
        self.seen: list[dict[str, str]] = []
        application = build_application("door", body_bytes_max=BODY_MAX)
        application.router.add_post("/echo", self.echo)
        application.router.add_get("/offer", self.offer)
        application.router.add_post("/stream", self.stream)
        application.router.add_get("/flood", self.flood)
        self.application = application

    async def offer(self, request: web.Request) -> web.Response:
        self.seen.append(dict(request.headers))
        return json_response({"path": request.path_qs})

    async def echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await read_body(request), headers={"X-Secret": "stays here"})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            await response.write(b"first\n")
            self.began.set()
            await self.go_on.wait()
            await response.write(b"second\n")
            await response.write_eof()
        finally:
            self.left.set()
        return response

    async def flood(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 16))
        finally:
            self.left.set()


class Town:
    """A relay with one role behind it."""

    def __init__(self, relay: Relay, relay_url: str, door: Door, door_url: str, http: HttpClient) -> None:
        self.relay, self.relay_url, self.door, self.door_url, self.http = relay, relay_url, door, door_url, http

    def behind(self, key: PrivateKey = KEY) -> RelayClient:
        return RelayClient(self.relay_url, self.door_url, key, NETWORK, clock=SystemClock(), dice=SystemDice())


async def is_member(address: Address) -> bool:
    return address == KEY.address


@asynccontextmanager
async def open_town(limits: RelayLimits | None = None) -> AsyncIterator[Town]:
    door = Door()
    application = build_application("relay", body_bytes_max=BODY_MAX)
    relay = Relay(NETWORK, SystemClock(), is_member=is_member, limits=limits)
    relay.add_routes(application)
    async with serve(application) as relay_url, serve(door.application) as door_url, HttpClient() as http:
        yield Town(relay, relay_url, door, door_url, http)


async def test_requests_and_streams_pass_and_nothing_else_does() -> None:
    async with open_town() as town, town.behind() as role:
        await role.wait_connected(WAIT_S)
        assert role.url == f"{town.relay_url}/relay/{encode_hex(KEY.address)}"
        answer = await town.http.request(
            "GET", f"{role.url}/offer?a=%2F%20b", headers={"X-Forwarded-For": "me", "Cookie": "x"}
        )
        assert answer == b'{"path":"/offer?a=/%20b"}'
        assert {"x-forwarded-for", "cookie"} & {name.lower() for name in town.door.seen[0]} == set()
        body = bytes(range(256)) * 12_000
        assert await town.http.request("POST", f"{role.url}/echo", body=body) == body
        async with town.http.session.post(f"{role.url}/echo", data=b"x") as response:
            assert await response.read() == b"x"
            assert "X-Secret" not in response.headers
        with pytest.raises(RefusedByPeer, match="404"):
            await town.http.request("GET", f"{role.url}/nothing")
        assert town.relay.held_bytes == 0


async def test_many_streams_at_once_each_whole() -> None:
    async with open_town() as town, town.behind() as role:
        await role.wait_connected(WAIT_S)
        bodies = [bytes([number]) * (1000 * number + 1) for number in range(64)]

        async def ask(body: bytes) -> bytes:
            return await town.http.request("POST", f"{role.url}/echo", body=body)

        assert await asyncio.gather(*map(ask, bodies)) == bodies


async def test_a_reader_that_stops_holds_up_its_own_stream_only() -> None:
    async with open_town() as town, town.behind() as role:
        await role.wait_connected(WAIT_S)
        async with town.http.session.get(f"{role.url}/flood") as flood:
            assert await flood.content.readany()
            for _ in range(20):
                assert await town.http.request("POST", f"{role.url}/echo", body=b"x") == b"x"
            assert town.relay.held_bytes <= 128 << 10
            flood.close()
        await until(town.door.left)


async def test_the_role_s_door_learns_that_the_caller_went_away() -> None:
    async with open_town() as town, town.behind() as role:
        await role.wait_connected(WAIT_S)
        async with town.http.session.post(f"{role.url}/stream") as response:
            assert await response.content.readline() == b"first\n"
            response.close()
        town.door.go_on.set()
        await until(town.door.left)


async def test_a_role_that_dies_cuts_its_streams_and_comes_back_under_the_same_url() -> None:
    async with open_town() as town:
        async with town.behind() as role:
            await role.wait_connected(WAIT_S)
            lines = town.http.stream_lines(f"{role.url}/stream", b"{}")
            assert await anext(lines) == b"first"
            assert role._session is not None
            sockets = [place.socket for place in town.relay._places.values()]
            for socket in sockets:  # the cable is pulled
                assert socket._req is not None
                assert socket._req.transport is not None
                socket._req.transport.abort()
            with pytest.raises(UnavailablePeer):
                await anext(lines)
            while True:  # it connects again by itself
                await role.wait_connected(WAIT_S)
                with suppress(UnavailablePeer):
                    assert await town.http.request("POST", f"{role.url}/echo", body=b"again") == b"again"
                    break
        with pytest.raises(UnavailablePeer, match="not connected"):
            await town.http.request("GET", f"{role.url}/offer")
        assert town.relay.held_bytes == 0


async def test_a_relay_that_comes_back_is_found_again() -> None:
    door = Door()
    async with serve(door.application) as door_url, HttpClient() as http, AsyncExitStack() as first:

        def build() -> web.Application:
            application = build_application("relay", body_bytes_max=BODY_MAX)
            Relay(NETWORK, SystemClock(), is_member=is_member).add_routes(application)
            return application

        relay_url = await first.enter_async_context(serve(build()))
        port = int(relay_url.rpartition(":")[2])
        async with RelayClient(relay_url, door_url, KEY, NETWORK, clock=SystemClock(), dice=SystemDice()) as role:
            await role.wait_connected(WAIT_S)
            await first.aclose()
            async with serve(build(), port=port), asyncio.timeout(WAIT_S):
                while True:
                    await role.wait_connected(WAIT_S)
                    with suppress(UnavailablePeer):
                        assert await http.request("POST", f"{role.url}/echo", body=b"x") == b"x"
                        break


async def test_a_drain_lets_answers_end_and_takes_no_more() -> None:
    async with open_town() as town, town.behind() as role:
        await role.wait_connected(WAIT_S)
        lines = town.http.stream_lines(f"{role.url}/stream", b"{}")
        assert await anext(lines) == b"first"
        draining = asyncio.create_task(role.drain())

        async def ask_until_refused() -> None:
            while True:
                await town.http.request("POST", f"{role.url}/echo", body=b"x")

        with pytest.raises(UnavailablePeer, match="away"):
            await ask_until_refused()
        assert not draining.done()
        town.door.go_on.set()
        assert [line async for line in lines] == [b"second"]
        async with asyncio.timeout(WAIT_S):
            await draining


async def test_places_are_bounded_and_strangers_take_none_from_members() -> None:
    limits = RelayLimits(sessions_max=3, strangers_max=1)
    async with open_town(limits) as town, town.behind(OTHER) as stranger:
        await stranger.wait_connected(WAIT_S)
        third = PrivateKey(b"\x03" * 32)
        async with town.behind(third) as refused:
            with pytest.raises(UnavailableRelay, match="429"):
                await refused.wait_connected(1.0)
        async with town.behind() as member:
            await member.wait_connected(WAIT_S)
            assert len(town.relay) == 2


async def test_one_session_per_key_the_newest() -> None:
    async with open_town() as town, town.behind() as first:
        await first.wait_connected(WAIT_S)
        second = Door()
        async with serve(second.application) as door_url:
            client = RelayClient(town.relay_url, door_url, KEY, NETWORK, clock=SystemClock(), dice=SystemDice())
            async with client:
                await client.wait_connected(WAIT_S)
                assert len(town.relay) == 1


async def test_who_does_not_sign_does_not_connect_and_a_signature_works_once() -> None:
    async with open_town() as town:
        now, nonce = SystemClock().now_ms(), SystemDice().token_bytes(16)
        good = sign_request(KEY, NETWORK, "GET", CONNECT_PATH, b"", now, nonce)
        other_network = sign_request(KEY, b"m" * 32, "GET", CONNECT_PATH, b"", now, nonce)
        url = f"{town.relay_url}{CONNECT_PATH}"
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await town.http.session.ws_connect(url)
        async with town.http.session.ws_connect(url, headers=good):
            assert encode_hex(KEY.address) in {encode_hex(address) for address in town.relay._places}
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await town.http.session.ws_connect(url, headers=good)
        async with town.http.session.ws_connect(url, headers=other_network):  # another key's, for all it says
            assert encode_hex(KEY.address) not in {encode_hex(address) for address in town.relay._places}


HOSTILE = [
    b"",
    b"\xff" * 40,
    encode_frame(Kind.OPEN, 1, b"{}"),
    encode_frame(Kind.DATA, 77, b"x"),
    encode_frame(Kind.HEAD, 1, b"[" * 500),
    bytes(1 << 16),
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_frames_end_their_session_and_nothing_else(data: bytes) -> None:
    async with open_town() as town, town.behind(OTHER) as neighbour:
        await neighbour.wait_connected(WAIT_S)
        headers = sign_request(
            KEY, NETWORK, "GET", CONNECT_PATH, b"", SystemClock().now_ms(), SystemDice().token_bytes(16)
        )
        async with town.http.session.ws_connect(f"{town.relay_url}{CONNECT_PATH}", headers=headers) as socket:
            await socket.send_bytes(data)
            async with asyncio.timeout(WAIT_S):
                message = await socket.receive()
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert await town.http.request("POST", f"{neighbour.url}/echo", body=b"x") == b"x"


async def test_only_the_caller_s_own_address_is_looked_at() -> None:
    async with open_town() as town:

        async def reach(url: str) -> object:
            return await town.http.post_json(f"{town.relay_url}/relay/reach", {"url": url}, dict[str, bool])

        assert await reach(town.door_url) == {"reachable": True}
        assert await reach("http://127.0.0.1:1") == {"reachable": False}
        for url in (
            "http://10.0.0.1:80",
            "http://localhost:80",
            "https://127.0.0.1:1",
            "http://127.0.0.1",
            "x",
            "//[",
            "",
        ):
            with pytest.raises(RefusedByPeer):
                await reach(url)
