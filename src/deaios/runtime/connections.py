"""Connections that strangers hold: how many, for how long, with how many bytes.

aiohttp bounds one line, one head and one body; it bounds neither time nor the sum over all connections. Here one rule
does both. A connection either works for its peer or waits for it: for a head, for a body, or for it to read its answer.
Waiting has a deadline of its own in each of these states; and when the process has no connection or no bytes left to
give, the peer that was waited for longest gives way. So a crowd that idles, dribbles or does not read never keeps out
somebody who speaks, and a peer that is slow but moves is left alone while there is room.

Invariants: a server holds at most `connections_max` connections, at most `held_bytes_max` bytes of bodies and unread
answers, and no peer that is silent in the middle of something for longer than its deadline. It knows no routes.
"""

import asyncio
import contextlib
import fcntl
import resource
import sys
import termios
from asyncio import BaseTransport, Transport
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from deaios.primitives.errors import Invalid, Unavailable
from deaios.runtime.errors import RefusedBusy, RefusedHead, UnavailableBody
from deaios.runtime.logs import get_logger

BACKLOG = 1024
"""Connections that the kernel keeps for us; whoever finds them all taken tries again a second later. asyncio accepts as
many in one turn, before any can be refused."""
DESCRIPTORS_RESERVED = BACKLOG + 512
"""Descriptors that peers never get: one turn of accepts, and some for databases, files and our own calls."""
CONNECTIONS_MAX = 12_000
"""An idle one takes some 6 KiB."""
DESCRIPTORS_WANTED = CONNECTIONS_MAX + DESCRIPTORS_RESERVED
SWEEP_S = 1.0
"""Deadlines are looked at this often."""
STALL_S = 5.0
"""A peer that has read nothing of its answer for so long counts as waited for."""
FRAME_HEAD_BYTES_MAX = 14
"""Of one WebSocket frame (RFC 6455, 5.2)."""
FRAMES_IGNORED_BYTES = 4096
"""Pings, pongs and heads of frames between two sweeps, which belong to no message."""
RETRY_AFTER_S = 1
MESSAGE_CHARACTERS_MAX = 200

_log = get_logger("connections")


class InvalidRequest(Invalid):
    """Bytes that are not HTTP."""


class UnavailableConnection(Unavailable):
    """No connection to spare, or none for a peer this slow; a later attempt may find one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server gives to all its peers together, and to one of them.

    Attributes:
        connections_max: at one time; None for what the process's descriptors allow.
        held_bytes_max: of bodies of requests in progress and of answers that wait for their reader: some ten of the
            largest bodies, and thousands of usual ones.
        head_s: from a request's first byte to the end of its head.
        head_bytes_max: of one head; single lines have a bound of their own.
        body_s: from the end of the head to the end of the body: 16 MiB at 2 Mbit/s.
        read_s: how long a peer may read nothing while its answer waits; one byte begins it anew.
        idle_s: how long a connection without a request is kept; longer than the minute that proxies keep theirs.
    """

    connections_max: int | None = None
    held_bytes_max: int = 256 << 20
    head_s: float = 15.0
    head_bytes_max: int = 64 << 10
    body_s: float = 60.0
    read_s: float = 60.0
    idle_s: float = 75.0


Refusals = Callable[[web.Request | None, int, BaseException], web.Response]
"""How a door words an error; the request is None where there is none yet."""


def raise_descriptor_limit() -> None:
    """Ask the system for as many descriptors as `CONNECTIONS_MAX` needs, as far as it lets this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system that refuses leaves the limit as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def count_connections_max() -> int:
    """Connections that this process's descriptors allow; where these are few, half of them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return min(CONNECTIONS_MAX, max(soft // 2, soft - DESCRIPTORS_RESERVED))


@dataclass(eq=False, slots=True)
class Crowd:
    """All connections of one server.

    Attributes:
        limits: what there is to give.
        render: the door's words for an error.
        count: told why a peer was dismissed or refused.
        now_s: monotonic time.
        held_bytes: of bodies, now.
        unread_bytes: of answers, when last looked at.
    """

    limits: Limits
    render: Refusals
    count: Callable[[str], None]
    now_s: Callable[[], float]
    held_bytes: int = 0
    unread_bytes: int = 0
    _connections: dict["Connection", None] = field(default_factory=dict)
    _waiting: dict["Connection", None] = field(default_factory=dict)
    """Those that wait for their peer, the longest first."""
    _connections_max: int = 0

    def __post_init__(self) -> None:
        self._connections_max = self.limits.connections_max or count_connections_max()

    def __len__(self) -> int:
        return len(self._connections)

    def enter(self, connection: "Connection") -> bool:
        """Let a connection in, if need be for one that is waited for; False when all of them are being served."""
        if len(self._connections) >= self._connections_max:
            longest = next(iter(self._waiting), None)
            if longest is None:
                self.count("refused")
                return False
            self.dismiss(longest, "crowded")
        self._connections[connection] = None
        self._waiting[connection] = None
        return True

    def leave(self, connection: "Connection") -> None:
        """Forget a connection and what it held."""
        self._connections.pop(connection, None)
        self._waiting.pop(connection, None)
        self.release(connection)

    def note_waiting(self, connection: "Connection") -> None:
        """From now on its peer is waited for."""
        if connection in self._connections:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None

    def note_working(self, connection: "Connection") -> None:
        """The peer has done its part."""
        self._waiting.pop(connection, None)

    def is_waiting(self, connection: "Connection") -> bool:
        """Whether its peer is waited for."""
        return connection in self._waiting

    def hold(self, connection: "Connection", size_bytes: int) -> None:
        """Account for bytes of a body that just came.

        Raises:
            RefusedBusy: there is no room, and no other peer has been waited for longer.
        """
        connection.held_bytes += size_bytes
        self.held_bytes += size_bytes
        if not self._make_room(connection):
            raise RefusedBusy(f"more than {self.limits.held_bytes_max} bytes are in work here; retry later")

    def release(self, connection: "Connection") -> None:
        """The request is done, its body is forgotten."""
        self.held_bytes -= connection.held_bytes
        connection.held_bytes = 0

    def release_part(self, connection: "Connection", size_bytes: int) -> None:
        """Some of what a connection holds is forgotten."""
        released = min(size_bytes, connection.held_bytes)
        self.held_bytes -= released
        connection.held_bytes -= released

    def dismiss(self, connection: "Connection", reason: str) -> None:
        """End a connection at once."""
        self.count(reason)
        self.leave(connection)
        connection.dismiss(UnavailableConnection(f"the server was waiting for this peer ({reason}) and needs the room"))

    async def run(self) -> None:
        """Hold deadlines until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """Look at every connection once."""
        now_s = self.now_s()
        self.unread_bytes = 0
        for connection in list(self._connections):
            if connection.examine(now_s):
                self.unread_bytes += connection.unread_bytes
            else:
                self.leave(connection)
        self._make_room(None)

    def _make_room(self, asking: "Connection | None") -> bool:
        """Dismiss peers, the longest waited for first, until all bytes fit; False when it is the asking one's turn."""
        for connection in list(self._waiting):
            if self.held_bytes + self.unread_bytes <= self.limits.held_bytes_max:
                return True
            if connection is asking:
                return False
            if connection.held_bytes or connection.unread_bytes:
                self.unread_bytes -= connection.unread_bytes
                self.dismiss(connection, "held bytes")
        return asking is None or self.held_bytes + self.unread_bytes <= self.limits.held_bytes_max


class Connection(web.RequestHandler):
    """aiohttp's connection, with deadlines and a place in the crowd.

    Attributes:
        held_bytes: of the body of the request in progress.
        unread_bytes: of answers that the peer has not taken, when last looked at.
    """

    __slots__ = (
        "_awaits_body",
        "_crowd",
        "_head_bytes",
        "_head_since_s",
        "_is_resting",
        "_is_serving",
        "_is_upgraded",
        "_moved_at_s",
        "_unsent_bytes",
        "held_bytes",
        "unread_bytes",
    )

    def __init__(self, server: web.Server, crowd: Crowd, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        # Any: options are aiohttp's own keyword arguments
        super().__init__(server, loop=loop, **options)
        self._crowd = crowd
        self._head_bytes = 0
        self._head_since_s: float | None = None
        self._is_serving = False
        self._is_resting = False
        self._is_upgraded = False
        self._awaits_body = False
        self._moved_at_s = 0.0
        self._unsent_bytes = 0
        self.held_bytes = 0
        self.unread_bytes = 0

    @property
    def crowd(self) -> Crowd:
        """Whom it shares the server with."""
        return self._crowd

    @property
    def limits(self) -> Limits:
        """Of the crowd it belongs to."""
        return self._crowd.limits

    def connection_made(self, transport: BaseTransport) -> None:
        """Take it in, or refuse it before a byte is read."""
        if self._crowd.enter(self):
            super().connection_made(transport)
            return
        self.close()
        refusal = UnavailableConnection("every connection is in use; retry later")
        cast("Transport", transport).write(self._encode(503, refusal))  # a TCP transport, as aiohttp takes it to be
        transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give back what it held."""
        self._crowd.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before a whole head is there."""
        super().data_received(data)
        if self._is_upgraded:
            self._hold_piece(len(data))
            return
        waiter = self._waiter
        if waiter is None or waiter.done():  # a request is in work, or waits to be
            self._head_bytes, self._head_since_s = 0, None
        elif data:
            self._head_bytes += len(data)
            if self._head_since_s is None:
                self._head_since_s = self._crowd.now_s()
            if self._head_bytes > self.limits.head_bytes_max:
                self._crowd.count("head size")
                error = RefusedHead(f"the head of a request has more than {self.limits.head_bytes_max} bytes")
                self._end(self._encode(431, error))

    def _hold_piece(self, size_bytes: int) -> None:
        try:
            self.hold(size_bytes)
        except RefusedBusy:
            self._crowd.count("held bytes")
            self._end(b"")

    def resume_writing(self) -> None:
        """The peer has read."""
        super().resume_writing()
        self._moved_at_s = self._crowd.now_s()

    def begin(self, request: web.Request) -> None:
        """A request's head is there."""
        self._is_serving = True
        self._awaits_body = not request.content.is_eof()
        if self._awaits_body:
            self._crowd.note_waiting(self)
        else:
            self._crowd.note_working(self)

    def hold(self, size_bytes: int) -> None:
        """Bytes of the body came.

        Raises:
            RefusedBusy: there is no room for them.
        """
        self._crowd.hold(self, size_bytes)

    def end_body(self) -> None:
        """The body is whole: the peer has done its part."""
        self._awaits_body = False
        self._crowd.note_working(self)

    def upgrade(self) -> None:
        """From here on the peer sends messages in frames. What is no whole message yet counts as a body's bytes do."""
        self._is_upgraded = True
        self.rest()

    def rest(self) -> None:
        """Nothing is owed to an upgraded peer: whether it says anything is up to it."""
        self._is_resting = True
        self._crowd.note_waiting(self)

    def wake(self) -> None:
        """An upgraded peer said something, or is to be told something."""
        self._is_resting = False
        self._crowd.note_working(self)

    def finish_message(self, size_bytes: int) -> None:
        """A message is answered and forgotten."""
        self._crowd.release_part(self, size_bytes + FRAME_HEAD_BYTES_MAX)

    def finish(self) -> None:
        """The answer is made; what comes next is the peer's: to read it, and to ask again."""
        self._is_serving = False
        self._crowd.release(self)
        self._crowd.note_waiting(self)

    def examine(self, now_s: float) -> bool:
        """Whether it may go on; one that missed a deadline is ended."""
        transport = self.transport
        if transport is None:
            return False
        limits = self.limits
        if self._head_since_s is not None and now_s - self._head_since_s > limits.head_s:
            self._crowd.count("head time")
            self._end(self._encode(408, UnavailableBody(f"no whole head came within {limits.head_s:g} s")))
            return False
        self.unread_bytes = transport.get_write_buffer_size()
        before, self._unsent_bytes = self._unsent_bytes, self.unread_bytes
        if self.unread_bytes:
            self._unsent_bytes += _count_queued(transport)
        if self._unsent_bytes < before or before == 0 or self.unread_bytes == 0:
            self._moved_at_s = now_s
        if now_s - self._moved_at_s > limits.read_s:
            self._crowd.count("unread")
            self._end(b"")
            return False
        if self._is_upgraded and self.held_bytes <= FRAMES_IGNORED_BYTES:
            self._crowd.release(self)
        if self._is_serving and not self._awaits_body and not self._is_resting:
            if now_s - self._moved_at_s <= STALL_S:
                self._crowd.note_working(self)
            elif not self._crowd.is_waiting(self):
                self._crowd.note_waiting(self)
        return True

    def dismiss(self, error: UnavailableConnection) -> None:
        """Give way to others: at once, and in silence where nothing was asked."""
        is_asking = self._head_since_s is not None or self._awaits_body
        self._end(self._encode(503, error) if is_asking else b"")

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What aiohttp could not read, or could not render, in the door's words and without a trace."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if status < 500 or isinstance(exc, HttpProcessingError):
            lines = (message or str(exc)).splitlines() or [""]
            error: BaseException = InvalidRequest(f"not HTTP: {lines[0][:MESSAGE_CHARACTERS_MAX]}")
            status = 400
            _log.info("request refused", status=status, error=str(error))
        else:
            _log.error("internal fault", exc_info=exc)
            error = RuntimeError("internal fault")
        response = self._crowd.render(None, status, error)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Word what aiohttp answers before any handler runs, such as an expectation it does not know."""
        if isinstance(resp, web.HTTPException):
            rendered = self._crowd.render(None, resp.status, resp)
            rendered.force_close()
            resp = rendered
        return await super().finish_response(request, resp, start_time)

    def _encode(self, status: int, error: BaseException) -> bytes:
        """An answer for a connection on which there is no request to answer."""
        response = self._crowd.render(None, status, error)
        body = response.body
        assert isinstance(body, bytes)
        head = (
            f"HTTP/1.1 {status} {response.reason}\r\nContent-Type: {response.content_type}\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: {RETRY_AFTER_S}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body

    def _end(self, last_words: bytes) -> None:
        """Close now; a peer that does not read is not waited for."""
        transport = self.transport
        if transport is not None:
            if last_words and transport.get_write_buffer_size() == 0:
                transport.write(last_words)
            if transport.get_write_buffer_size():
                transport.abort()
        self.force_close()


def _count_queued(transport: Transport) -> int:
    """Bytes that the kernel still holds for a peer; 0 where it does not say.

    A socket becomes writable only once a third of its buffer, a megabyte or more, is free: without this number, a peer
    that reads slowly would look like one that does not read.
    """
    try:
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)
