"""A network of named hosts on virtual time: HTTP between them, delayed, lost, doubled, reordered, cut.

The application behind a host is the role's own aiohttp application; its handler runs inside the host's process. What
crosses is bytes. A lost message is a connection that breaks or goes silent, as TCP shows loss; a doubled one is a
request that a client, or a proxy on the way, sends again. Knows no role and no protocol.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from random import Random
from typing import Any, cast
from urllib.parse import urlsplit

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from deaios.ledger.client.rpc import Rpc, UnavailableChain
from deaios.node.simulation.loop import WORLD, Process, SimulatedLoop, current_process
from deaios.runtime.client import (
    STREAM_IDLE_S,
    STREAM_S,
    TOTAL_S,
    HttpClient,
    InvalidResponse,
    UnavailablePeer,
    read_failure,
)
from deaios.runtime.clock import Clock
from deaios.runtime.connections import Connection, Limits

DELAY_S = 0.002
"""Mean one-way delay in good weather."""
RESEND_S_MAX = 3.0
"""Longest time until a doubled request arrives again."""
SLOW_S = 0.1
"""A message that takes longer counts as delayed."""
SILENT_SHARE = 0.5
"""Of lost messages, those whose sender is not told and waits in vain."""


class BrokenConnection(Exception):
    """What a client sees of a connection that was refused, broke, or stayed silent for too long."""


@dataclass(slots=True)
class Weather:
    """How bad the network is now; each a chance per message, or a mean.

    Attributes:
        delay_s: mean one-way delay, exponentially distributed, so that messages overtake each other.
        loss: requests and answers that never arrive.
        doubling: requests that arrive twice.
    """

    delay_s: float = DELAY_S
    loss: float = 0.0
    doubling: float = 0.0


@dataclass(eq=False, slots=True)
class Host:
    """Where a role listens; `application` is None while it is down."""

    name: str
    process: Process
    application: web.Application | None = None


class _Reset:
    """Ends the parts of an answer that will never be whole."""


_Part = bytes | _Reset | None


class _Exchange:
    """One request at a host, and what has come back of it; the parts end with None when the answer is whole."""

    def __init__(self, loop: SimulatedLoop, process: Process) -> None:
        self.parts: asyncio.Queue[_Part] = asyncio.Queue()
        self.head: asyncio.Future[int] = loop.create_future()
        self.is_cut = False
        self._loop = loop
        self._process = process
        self._handler: asyncio.Task[None] | None = None
        self._client: Process | None = None

    def start(self, handler: "asyncio.Task[None]") -> None:
        """Tie the exchange to its handler and to the life of the handler's process."""
        self._handler = handler
        self._process.on_death.append(self.reset)
        handler.add_done_callback(self._let_go)

    def follow(self, client: Process) -> None:
        """Tie the exchange to its client's life, too."""
        if self._handler is not None and not self._handler.done():
            self._client = client
            client.on_death.append(self.cut)

    def _let_go(self, handler: "asyncio.Task[None]") -> None:
        self._process.on_death.remove(self.reset)
        if self._client is not None:
            self._client.on_death.remove(self.cut)
        error = None if handler.cancelled() else handler.exception()
        if error is not None:
            self._loop.faults.append(error)

    def cut(self) -> None:
        """The client is gone: the handler learns of it a moment later."""
        if not self.is_cut and self._handler is not None:
            self._loop.later(DELAY_S, self._handler.cancel)
        self.is_cut = True

    def reset(self) -> None:
        """Nothing more comes."""
        self.end(_Reset())

    def end(self, last: _Part) -> None:
        """Tell the client that this was all."""
        if not self.head.done():
            self.head.set_exception(BrokenConnection("connection was reset"))
            self.head.exception()
        self.parts.put_nowait(last)


class Network:
    """All hosts and the weather between them."""

    def __init__(self, loop: SimulatedLoop, random: Random) -> None:
        self.weather = Weather()
        self.hosts: dict[str, Host] = {}
        self.counts: Counter[str] = Counter()
        self.on_send: Callable[[Process, str], None] | None = None
        self.on_request: Callable[[str, str, str, Mapping[str, str], bytes], None] | None = None
        self._loop = loop
        self._random = random
        self._cuts: set[str] = set()
        self._sent = 0
        self._arrived: dict[tuple[str, str], int] = {}

    def listen(self, name: str, process: Process, application: web.Application) -> None:
        """Put an application that has started on the network."""
        self.hosts[name] = Host(name, process, application)

    def now_s(self) -> float:
        """Virtual time."""
        return self._loop.time()

    def cut(self, name: str) -> None:
        """Partition: nothing passes between this host and the others."""
        self._cuts.add(name)

    def join(self, name: str) -> None:
        """End a partition."""
        self._cuts.discard(name)

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, silence_s: float
    ) -> "tuple[int, AsyncGenerator[bytes, None]]":
        """Send a request; returns the answer's status and its parts, once it begins.

        Args:
            method: HTTP method.
            url: of a host here.
            headers: of the request.
            body: exact bytes.
            silence_s: how long the client waits for anything.

        Raises:
            BrokenConnection: refused, lost, cut or silent.
        """
        client = current_process()
        target = urlsplit(url)
        name = target.hostname or ""
        if self.on_send is not None:
            self.on_send(client, f"{method} {target.path}")
        if not client.is_alive:  # it died on this very step; nothing leaves it
            await self._loop.create_future()
        self.counts["messages"] += 1
        await self._travel(client.name, name, silence_s)
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
        if self.on_request is not None:
            self.on_request(name, method, path, headers, body)
        # What a user sends twice is bought twice, as the gateway says; between roles it must change nothing.
        if self._random.random() < self.weather.doubling and client is not WORLD:
            self.counts["doubled"] += 1
            self.deliver_later(self._random.random() * RESEND_S_MAX, name, method, path, headers, body)
        exchange = self._deliver(name, method, path, headers, body)
        if exchange is None:
            raise BrokenConnection(f"{name} refuses connections")
        exchange.follow(client)
        with ExitStack() as undo:
            undo.callback(exchange.cut)  # the caller went away, or the answer was lost: the handler learns of it
            try:
                async with asyncio.timeout(silence_s):
                    status = await exchange.head
                await self._travel(name, client.name, silence_s)
            except TimeoutError as error:
                raise BrokenConnection(f"{name} is silent for {silence_s} s") from error
            undo.pop_all()
        return status, self._read(exchange, name, client.name, silence_s)

    def deliver_later(
        self, delay_s: float, name: str, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Send a request whose answer nobody waits for."""
        self._loop.later(delay_s, self._deliver, name, method, path, headers, body)

    async def _travel(self, source: str, target: str, silence_s: float) -> None:
        """One message on its way."""
        if source != target and {source, target} & self._cuts:
            self.counts["cut"] += 1
            await asyncio.sleep(silence_s)
            raise BrokenConnection(f"{source} does not reach {target}")
        delay_s = min(self._random.expovariate(1 / self.weather.delay_s), silence_s)
        if delay_s > SLOW_S:
            self.counts["delayed"] += 1
        self._sent += 1
        number, way = self._sent, (source, target)
        await asyncio.sleep(delay_s)
        if number < self._arrived.get(way, 0):
            self.counts["reordered"] += 1
        else:
            self._arrived[way] = number
        if self._random.random() < self.weather.loss:
            self.counts["lost"] += 1
            if self._random.random() < SILENT_SHARE:
                await asyncio.sleep(silence_s)
            raise BrokenConnection(f"connection between {source} and {target} broke")

    async def _read(
        self, exchange: _Exchange, source: str, target: str, silence_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Parts of an answer until its end; leaving early tells the handler."""
        is_whole = False
        try:
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        part = await exchange.parts.get()
                except TimeoutError as error:
                    raise BrokenConnection(f"nothing came for {silence_s} s") from error
                if isinstance(part, _Reset):
                    raise BrokenConnection("connection was reset")
                if part is None:
                    is_whole = True
                    return
                if self._random.random() < self.weather.loss:
                    self.counts["broken midway"] += 1
                    raise BrokenConnection(f"connection between {source} and {target} broke midway")
                yield part
        finally:
            if not is_whole:
                exchange.cut()

    def _deliver(self, name: str, method: str, path: str, headers: Mapping[str, str], body: bytes) -> _Exchange | None:
        host = self.hosts.get(name)
        if host is None or host.application is None or not host.process.is_alive:
            return None
        exchange = _Exchange(self._loop, host.process)
        work = _handle(self._loop, host.application, exchange, method, path, headers, body)
        exchange.start(self._loop.run_in(host.process, work, f"{name} {method} {path}"))
        return exchange


async def _handle(
    loop: SimulatedLoop,
    application: web.Application,
    exchange: _Exchange,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
) -> None:
    """Run a role's own handler, as aiohttp's connection would."""
    last: _Part = _Reset()
    try:
        request = _build_request(loop, method, path, headers, body, application, exchange)
        response = await application._handle(request)
        await response.prepare(request)
        await response.write_eof()
        last = None
    except (ConnectionResetError, asyncio.CancelledError):
        pass  # the client went away
    finally:
        exchange.end(last)


class _Transport:
    """What a handler may ask of its connection."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def abort(self) -> None:
        """Cut the answer."""
        self._exchange.reset()
        self._exchange.cut()

    def is_closing(self) -> bool:
        """Whether the client is gone."""
        return self._exchange.is_cut

    def get_extra_info(self, _name: str, default: object = None) -> object:
        """Nothing is known of the peer."""
        return default


class _Connection(Connection):
    """A connection of the simulated network, as much of it as handlers and aiohttp's request ask for."""

    ssl_context = None
    peername = ("simulated", 0)
    sockname = ("simulated", 0)
    limits = Limits()

    def __init__(self, transport: _Transport) -> None:
        """Nothing of aiohttp's connection is made: there is no socket."""
        self.transport = transport  # type: ignore[assignment] # has what a handler may ask of its connection
        self._reading_paused = False

    def begin(self, request: web.Request) -> None:
        """Peers here are few."""

    def hold(self, size_bytes: int) -> None:
        """As above."""

    def end_body(self) -> None:
        """As above."""

    def finish(self) -> None:
        """As above."""

    def pause_reading(self) -> None:
        """The whole body is here already."""

    def resume_reading(self, resume_parser: bool = True) -> None:  # as aiohttp calls it
        """As above."""


class _Writer(AbstractStreamWriter):
    """Takes what a handler writes; an answer that is cut breaks the next write."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self.buffer_size = 0
        self.output_size = 0
        self.length: int | None = 0

    async def write(self, chunk: Any) -> None:  # Any: bytes-like, as in the base class
        if self._exchange.is_cut:
            raise ConnectionResetError("the client is gone")
        if chunk:
            self.output_size += len(chunk)
            self._exchange.parts.put_nowait(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        await self.write(chunk)

    async def drain(self) -> None:
        if self._exchange.is_cut:
            raise ConnectionResetError("the client is gone")

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise AssertionError(f"answers of roles are never compressed: {encoding}, {strategy}")

    def enable_chunking(self) -> None:
        """Parts are parts."""

    async def write_headers(self, status_line: str, _headers: "CIMultiDict[str]") -> None:
        if not self._exchange.head.done():
            self._exchange.head.set_result(int(status_line.split(" ", 2)[1]))


def _build_request(
    loop: asyncio.AbstractEventLoop,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    application: web.Application,
    exchange: _Exchange,
) -> web.Request:
    fields = CIMultiDict({"Host": "simulated", "Content-Length": str(len(body)), **headers})
    protocol = _Connection(_Transport(exchange))
    message = RawRequestMessage(
        method, path, HttpVersion11, CIMultiDictProxy(fields), (), False, None, False, False, URL(path, encoded=True)
    )
    payload = StreamReader(protocol, 1 << 16, loop=loop)
    payload.feed_data(body)
    payload.feed_eof()
    task = cast("asyncio.Task[None]", asyncio.current_task())
    request = web.Request(
        message, payload, protocol, _Writer(exchange), task, loop, client_max_size=application._client_max_size
    )
    request._cache["remote"] = "simulated"
    return request


class SimulatedHttp(HttpClient):
    """The roles' HTTP client over the simulated network, from whatever process uses it."""

    def __init__(self, network: Network, *, total_s: float = TOTAL_S) -> None:
        super().__init__(total_s=total_s)
        self._network = network
        self._total_s = total_s

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        bytes_max: int = 4 << 20,
    ) -> bytes:
        """As live."""
        try:
            status, parts = await self._network.send(method, url, headers or {}, body or b"", self._total_s)
            data = b"".join([part async for part in parts])
        except BrokenConnection as error:
            raise UnavailablePeer(f"{url}: {error}") from error
        if status >= 400:
            raise read_failure(url, status, data)
        if len(data) > bytes_max:
            raise InvalidResponse(f"{url}: answer exceeds {bytes_max} bytes")
        return data

    async def stream_lines(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        idle_s: float = STREAM_IDLE_S,
        total_s: float = STREAM_S,
    ) -> AsyncGenerator[bytes, None]:
        """As live."""
        ends_s = self._network.now_s() + total_s
        try:
            status, parts = await self._network.send("POST", url, headers or {}, body, idle_s)
            async with aclosing(parts):
                rest = b""
                async for part in parts:
                    if self._network.now_s() > ends_s:
                        raise BrokenConnection(f"it went on for {total_s} s")
                    *lines, rest = [rest + part] if status >= 400 else (rest + part).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield line.rstrip(b"\r")
        except BrokenConnection as error:
            raise UnavailablePeer(f"{url}: {error}") from error
        if status >= 400:
            raise read_failure(url, status, rest)
        if rest.strip():
            yield rest


class SimulatedRpc(Rpc):
    """The ledger's JSON-RPC client over the simulated network."""

    def __init__(self, network: Network, url: str, clock: Clock) -> None:
        super().__init__(url, clock=clock)
        self._network = network

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """As live."""
        headers = {"Content-Type": "application/json"}
        try:
            status, parts = await self._network.send("POST", self.url, headers, body, self.total_s)
            return status, b"".join([part async for part in parts])
        except BrokenConnection as error:
            raise UnavailableChain(f"{self.url}: {error}") from error
