"""A relay: roles that cannot be dialled hold a WebSocket open to it, and it passes requests for them on.

`GET /relay/connect` (WebSocket, signed by the role's key) · `GET|POST /relay/{address}/…` (passed on) ·
`POST /relay/reach` (can a URL of the caller be dialled from here?).

A relay is trusted with nothing but its time: offers, receipts and requests are signed by others, and papers that are
sealed to the provider are ciphertext to it. It can drop what it passes on, not forge it. It takes no fee. Invariants:
one session per key, the newest; strangers, who have no stake, share a few places; every wait and every buffer has a
bound; what a provider does not read holds up its own streams only.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from deaios.primitives.encoding import InvalidEncoding, encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address, parse_address
from deaios.runtime.authentication import NonceWindow, verify_request
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import Clock
from deaios.runtime.connections import Connection
from deaios.runtime.errors import InvalidBody, NotFound, RefusedBusy
from deaios.runtime.http import json_response, read_body, read_json
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics
from deaios.runtime.relay.framing import MESSAGE_BYTES_MAX, InvalidFrame, Opening, validate_path
from deaios.runtime.relay.session import Budget, Session, Stream, UnavailableStream

CONNECT_PATH = "/relay/connect"
HEARTBEAT_S = 15.0
"""A role that is gone without a word is missed after one and a half of it."""
CLOSE_S = 2.0
BODY_BYTES_MAX = 4 << 20
"""The largest request of a provider's door, and some more."""
REACH_S = 3.0
PASSED_REQUEST_HEADERS = frozenset({"content-type", "accept"}) | frozenset(
    {"ehbp-encapsulated-key", "traceparent", "x-deaios-time", "x-deaios-request-nonce", "x-deaios-signature"}
)
"""What a provider is told of who asks; nothing that names the asker's address."""
PASSED_ANSWER_HEADERS = frozenset(
    {"content-type", "cache-control", "content-length", "retry-after", "ehbp-response-nonce", "x-request-id"}
)


IsMember = Callable[[Address], Awaitable[bool]]
"""Whether a key has stake behind a service."""

_log = get_logger("relay")


class UnavailableBehindRelay(Unavailable):
    """The role is not connected, or broke off."""


class RefusedReach(Refused):
    """Only the caller's own address is looked at."""


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay gives.

    Attributes:
        sessions_max: roles at a time.
        strangers_max: of them, roles without stake: newcomers that are about to get some.
        held_bytes_max: unread bytes of all sessions.
        idle_s: longest silence inside an answer, and before it; a provider may queue for so long.
        total_s: one whole answer; as long as a client follows one.
    """

    sessions_max: int = 256
    strangers_max: int = 32
    held_bytes_max: int = 64 << 20
    idle_s: float = 120.0
    total_s: float = 1800.0


@dataclass(slots=True, eq=False)
class _Place:
    """One connected role."""

    session: Session
    socket: web.WebSocketResponse
    is_member: bool


class _Reach(msgspec.Struct, forbid_unknown_fields=True):
    url: str


class Relay:
    """All roles behind one relay."""

    def __init__(
        self,
        network_id: bytes,
        clock: Clock,
        *,
        is_member: IsMember,
        limits: RelayLimits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Make a relay; `add_routes` mounts it.

        Args:
            network_id: genesis hash, which signatures carry.
            clock: time.
            is_member: whether a key has stake.
            limits: bounds.
            metrics: counts sessions and streams where given.
        """
        self._network_id = network_id
        self._clock = clock
        self._is_member = is_member
        self._limits = limits or RelayLimits()
        self._window = NonceWindow()
        self._places: dict[Address, _Place] = {}
        self._budget = Budget(self._limits.held_bytes_max)
        if metrics is not None:
            metrics.gauge("relay_sessions", "Roles behind this relay").set_function(lambda: len(self._places))
            metrics.gauge("relay_streams", "Requests that are being passed on").set_function(
                lambda: sum(len(place.session) for place in self._places.values())
            )
            metrics.gauge("relay_held_bytes", "Bytes that wait for their reader").set_function(
                lambda: self._budget.held_bytes
            )

    def __len__(self) -> int:
        return len(self._places)

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for their reader."""
        return self._budget.held_bytes

    def add_routes(self, application: web.Application) -> None:
        """Mount the relay in a role's application, and say goodbye when that ends."""
        application.router.add_get(CONNECT_PATH, self.connect)
        application.router.add_post("/relay/reach", self.reach)
        application.router.add_get("/relay/{address}/{tail:.*}", self.forward)
        application.router.add_post("/relay/{address}/{tail:.*}", self.forward)

        async def close(_application: web.Application) -> None:
            await self.close()

        application.on_shutdown.append(close)

    async def close(self) -> None:
        """Say goodbye to everybody."""
        farewells = [
            place.socket.close(code=WSCloseCode.GOING_AWAY, message=b"the relay ends")
            for place in self._places.values()
        ]
        await asyncio.gather(*farewells, return_exceptions=True)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Serve one role's session to its end.

        Raises:
            InvalidSignature: not signed by a key.
            RefusedStale: signed too long ago, or used before.
            RefusedBusy: every place is taken.
        """
        connection = request.protocol
        assert isinstance(connection, Connection), "requests come through serve()"
        address = verify_request(
            request.headers, self._network_id, "GET", CONNECT_PATH, b"", self._clock.now_ms(), self._window
        )
        is_member = await self._is_member(address)
        self._make_room(address, is_member=is_member)
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, timeout=CLOSE_S, max_msg_size=MESSAGE_BYTES_MAX, compress=False, decode_text=False
        )
        place = _Place(Session(socket.send_bytes, self._budget), socket, is_member)
        before = self._places.pop(address, None)
        self._places[address] = place
        try:
            if before is not None:
                before.session.close("the provider has connected anew")
                await before.socket.close(code=WSCloseCode.GOING_AWAY, message=b"connected anew", drain=False)
            await socket.prepare(request)
            connection.upgrade()
            _log.info("role connected", address=encode_hex(address), member=is_member)
            await self._receive(connection, place)
        finally:
            place.session.close("the provider's connection to the relay broke")
            if self._places.get(address) is place:
                del self._places[address]
            await socket.close(drain=False)
            _log.info("role gone", address=encode_hex(address))
        return socket

    async def _receive(self, connection: Connection, place: _Place) -> None:
        async for message in place.socket:
            if message.type is not WSMsgType.BINARY:
                await place.socket.close(code=WSCloseCode.UNSUPPORTED_DATA, drain=False)
                break
            data: bytes = message.data
            connection.wake()
            try:
                await place.session.receive(data)
            except InvalidFrame as error:
                _log.warning("session broke a rule", error=str(error))
                await place.socket.close(
                    code=WSCloseCode.PROTOCOL_ERROR, message=str(error)[:100].encode(), drain=False
                )
                break
            finally:
                connection.finish_message(len(data))
            if not len(place.session):
                connection.rest()

    def _make_room(self, address: Address, *, is_member: bool) -> None:
        if address in self._places:
            return
        strangers = sum(not place.is_member for place in self._places.values())
        if len(self._places) >= self._limits.sessions_max or (
            not is_member and strangers >= self._limits.strangers_max
        ):
            raise RefusedBusy("every place behind this relay is taken; try another, or again later")

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on to the role that its path names.

        Raises:
            NotFound: the path names no address.
            UnavailableBehindRelay: the role is not connected, or broke off before its answer began.
            RefusedBusy: all of its streams are taken.
        """
        session = self._find(request.match_info["address"])
        # As it was sent: a second decoding would change what the door is asked.
        path = "/" + request.raw_path.split("/", 3)[3] if request.raw_path.count("/") >= 3 else "/"
        try:
            validate_path(path)
        except InvalidFrame as error:
            raise InvalidBody(str(error)) from error
        body = await read_body(request, bytes_max=BODY_BYTES_MAX) if request.body_exists else b""
        headers = pass_headers(request.headers, PASSED_REQUEST_HEADERS)
        try:
            stream = await session.open(Opening(request.method, path, headers))
        except (UnavailableStream, InvalidFrame) as error:
            raise UnavailableBehindRelay(str(error)) from error
        reason = "the caller went away"
        try:
            async with asyncio.timeout(self._limits.total_s):
                return await self._answer(request, stream, body)
        except UnavailableStream as error:
            reason = str(error)
            raise UnavailableBehindRelay(str(error)) from error
        except TimeoutError as error:
            reason = "no byte came in time"
            raise UnavailableBehindRelay("the provider behind this relay said nothing in time") from error
        finally:
            with contextlib.suppress(UnavailableStream):
                await stream.reset(reason)

    async def _answer(self, request: web.Request, stream: Stream, body: bytes) -> web.StreamResponse:
        idle_s = self._limits.idle_s
        async with asyncio.timeout(idle_s):
            await stream.write(body)
            await stream.end()
        async with asyncio.timeout(idle_s):
            head = await stream.read_head()
        response = web.StreamResponse(status=head.status)
        for name, value in head.headers:
            if name.lower() in PASSED_ANSWER_HEADERS:
                response.headers[name] = value
        await response.prepare(request)
        while True:
            async with asyncio.timeout(idle_s):
                piece = await stream.read()
            if piece is None:
                break
            await response.write(piece)
        await response.write_eof()
        return response

    def _find(self, text: str) -> Session:
        try:
            place = self._places.get(parse_address(text))
        except InvalidEncoding as error:
            raise NotFound("no address of a role") from error
        if place is None:
            raise UnavailableBehindRelay(f"{text} is not connected to this relay")
        return place.session

    async def reach(self, request: web.Request) -> web.Response:
        """Can a URL of the caller's own address be dialled from here?

        Raises:
            RefusedReach: it is of another host, so that nobody has others looked at through this relay.
        """
        url = (await read_json(request, _Reach)).url
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidBody(f"not a URL: {url[:80]!r}") from error
        if parts.scheme != "http" or port is None or host is None or host != request.remote:
            raise RefusedReach(f"only a URL of the caller's own address {request.remote} is looked at")
        return json_response({"reachable": await _is_reachable(f"http://{host}:{port}/healthz")})


def pass_headers(headers: Mapping[str, str], passed: frozenset[str]) -> list[tuple[str, str]]:
    """Of some headers, those that are passed on; names in small letters."""
    return [(name.lower(), value) for name, value in headers.items() if name.lower() in passed]


async def _is_reachable(url: str) -> bool:
    timeout = aiohttp.ClientTimeout(total=REACH_S)
    async with HttpClient() as http:
        try:
            async with http.session.get(url, timeout=timeout, allow_redirects=False) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError, Invalid):
            return False
