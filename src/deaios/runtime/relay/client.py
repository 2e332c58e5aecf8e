"""Behind a relay: one outbound WebSocket, through which this role's own door is asked as if it had been dialled.

Every stream becomes a request to the door on this machine, so the door's bounds hold for it as for any other peer. The
relay is no friend: its frames are decoded strictly, its streams are bounded, and it is believed nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import WSMsgType

from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Unavailable
from deaios.primitives.keys import PrivateKey
from deaios.runtime.authentication import NONCE_SIZE, sign_request
from deaios.runtime.client import CONNECT_S, STREAM_IDLE_S, STREAM_S, HttpClient
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.logs import get_logger
from deaios.runtime.relay.framing import MESSAGE_BYTES_MAX, Head, InvalidFrame
from deaios.runtime.relay.server import (
    BODY_BYTES_MAX,
    CONNECT_PATH,
    HEARTBEAT_S,
    PASSED_ANSWER_HEADERS,
    PASSED_REQUEST_HEADERS,
    pass_headers,
)
from deaios.runtime.relay.session import Budget, Session, Stream, UnavailableStream

BACKOFF_S = 0.25
BACKOFF_S_MAX = 20.0
"""Between two attempts to connect, doubled from the first to the second and never given up."""
STEADY_S = 30.0
"""A connection that lasted so long begins the pauses anew."""
HELD_BYTES_MAX = 64 << 20
DRAIN_S = 15.0
"""How long answers under way may take to end before the role leaves."""

_log = get_logger("relay")


class UnavailableRelay(Unavailable):
    """The relay cannot be reached or does not take this role now."""


class RelayClient:
    """Keeps one role reachable through one relay; use as an async context manager.

    Attributes:
        url: under which the role answers.
    """

    def __init__(
        self, relay_url: str, door_url: str, key: PrivateKey, network_id: bytes, *, clock: Clock, dice: Dice
    ) -> None:
        """Plan a connection.

        Args:
            relay_url: base URL of the relay.
            door_url: base URL of the role's own door.
            key: the role's.
            network_id: genesis hash.
            clock: time.
            dice: nonces.
        """
        self._relay_url = relay_url.rstrip("/")
        self._door_url = door_url.rstrip("/")
        self._key = key
        self._network_id = network_id
        self._clock = clock
        self._dice = dice
        self._http = HttpClient(total_s=STREAM_S)
        self._budget = Budget(HELD_BYTES_MAX)
        self._session: Session | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._connected = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.failure = "not tried yet"
        self.url = f"{self._relay_url}/relay/{encode_hex(key.address)}"

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        self._running = asyncio.create_task(self._run(), name="relay")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(TimeoutError, UnavailableStream):
            async with asyncio.timeout(DRAIN_S):
                await self.drain()
        tasks = [*self._answering, *([] if self._running is None else [self._running])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.__aexit__(kind, error, trace)

    async def wait_connected(self, timeout_s: float) -> None:
        """Until the relay has taken this role.

        Raises:
            UnavailableRelay: not within so long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError as error:
            raise UnavailableRelay(f"relay {self._relay_url} does not take this role: {self.failure}") from error

    async def drain(self) -> None:
        """Take no more requests; returns when those under way have ended."""
        if self._session is not None:
            await self._session.drain()

    async def watch(self) -> None:
        """Until the connection's task ends, which it does by our own fault only."""
        assert self._running is not None, "used outside its context"
        await asyncio.shield(self._running)

    async def _run(self) -> None:
        pause_s = BACKOFF_S
        while True:
            began_s = self._clock.monotonic_s()
            try:
                await self._connect()
                self.failure = "the connection ended"
            except (aiohttp.ClientError, TimeoutError, OSError, UnavailableStream, InvalidFrame) as error:
                self.failure = str(error) or repr(error)
            if self._clock.monotonic_s() - began_s > STEADY_S:
                pause_s = BACKOFF_S
            _log.warning("relay lost", relay=self._relay_url, reason=self.failure, again_in_s=pause_s)
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S_MAX)

    async def _connect(self) -> None:
        nonce = self._dice.token_bytes(NONCE_SIZE)
        headers = sign_request(self._key, self._network_id, "GET", CONNECT_PATH, b"", self._clock.now_ms(), nonce)
        async with (
            asyncio.timeout(CONNECT_S + HEARTBEAT_S) as patience,
            self._http.session.ws_connect(
                f"{self._relay_url}{CONNECT_PATH}",
                headers=headers,
                heartbeat=HEARTBEAT_S,
                max_msg_size=MESSAGE_BYTES_MAX,
            ) as socket,
        ):
            patience.reschedule(None)
            session = Session(socket.send_bytes, self._budget, on_open=self._begin)
            self._session = session
            self._connected.set()
            _log.info("relay connected", relay=self._relay_url)
            try:
                async for message in socket:
                    if message.type is not WSMsgType.BINARY:
                        raise InvalidFrame("a relay sends binary messages only")
                    await session.receive(message.data)
            finally:
                self._connected.clear()
                session.close("the connection to the relay broke")

    def _begin(self, stream: Stream) -> None:
        task = asyncio.create_task(self._answer(stream), name=f"relayed {stream.number}")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, stream: Stream) -> None:
        """Ask the door and pass on what it says; what fails is reset, never half an answer with a good end."""
        reason = "the provider is stopping"
        try:
            await self._pass_on(stream)
        except UnavailableStream as error:
            reason = str(error)
        except (aiohttp.ClientError, TimeoutError, OSError, InvalidFrame) as error:
            reason = f"the provider's door: {error!r}"
            _log.info("relayed request failed", error=repr(error))
        finally:
            with contextlib.suppress(UnavailableStream):
                await stream.reset(reason)

    async def _pass_on(self, stream: Stream) -> None:
        opening = stream.opening
        assert opening is not None, "the relay opened it"
        body = await _read_body(stream)
        headers = dict(pass_headers(dict(opening.headers), PASSED_REQUEST_HEADERS))
        async with _ask(self._http, opening.method, f"{self._door_url}{opening.path}", headers, body) as response:
            passed = pass_headers(response.headers, PASSED_ANSWER_HEADERS)
            await stream.write_head(Head(response.status, passed))
            async for piece in response.content.iter_any():
                await stream.write(piece)
        await stream.end()


@asynccontextmanager
async def _ask(
    http: HttpClient, method: str, url: str, headers: dict[str, str], body: bytes
) -> AsyncIterator[aiohttp.ClientResponse]:
    timeout = aiohttp.ClientTimeout(total=STREAM_S, connect=CONNECT_S, sock_read=STREAM_IDLE_S)
    data = BytesIO(body) if method == "POST" else None  # read piece by piece
    async with http.session.request(
        method, url, headers=headers, data=data, timeout=timeout, allow_redirects=False
    ) as response:
        yield response


async def _read_body(stream: Stream) -> bytes:
    pieces, size = [], 0
    while (piece := await stream.read()) is not None:
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise UnavailableStream(f"body exceeds {BODY_BYTES_MAX} bytes")
        pieces.append(piece)
    return b"".join(pieces)
