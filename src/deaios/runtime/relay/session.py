"""One session between a relay and a role behind it: streams with credit, whichever side one is on.

Whoever receives frames calls `receive`; whoever wants to say something has a `Stream`. Invariants: no stream holds more
unread bytes than the credit it granted, all together no more than the budget; a frame that breaks a rule ends the
session; when the session ends, every stream fails and nobody waits for ever.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deaios.primitives.errors import Unavailable
from deaios.runtime.errors import RefusedBusy
from deaios.runtime.relay.framing import (
    CREDIT_BYTES,
    DATA_BYTES_MAX,
    STREAM_MAX,
    Frame,
    Head,
    InvalidFrame,
    Kind,
    Opening,
    decode_frame,
    decode_head,
    decode_opening,
    encode_credit,
    encode_frame,
    encode_head,
    encode_opening,
    encode_reset,
)

STREAMS_MAX = 256
"""Exchanges of one role at a time."""
GRANT_BYTES = CREDIT_BYTES // 2
"""Credit is given back in portions of this size."""
SEND_S = 20.0
"""How long the other side may take no byte before the session counts as dead."""

Send = Callable[[bytes], Awaitable[None]]


class UnavailableStream(Unavailable):
    """The exchange failed on the way: the session ended, or the other side gave it up."""


@dataclass(slots=True)
class Budget:
    """Unread bytes of all sessions of a process together."""

    bytes_max: int
    held_bytes: int = 0


class Stream:
    """One exchange."""

    def __init__(self, session: "Session", number: int, opening: Opening | None) -> None:
        self.number = number
        self.opening = opening
        """What is asked for, on the role's side."""
        self._session = session
        self._inbox: deque[bytes] = deque()
        self._held = 0
        self._granted = CREDIT_BYTES
        self._ungranted = 0
        self._credit = CREDIT_BYTES
        self._head: Head | None = None
        self._has_ended = False
        self._has_sent_end = False
        self._error: str | None = None
        self._knows_error = False
        """Whether the other side knows that it failed."""
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Nothing more is sent or comes."""
        return self._error is not None or (self._has_ended and self._has_sent_end)

    async def read_head(self) -> Head:
        """The answer's head, on the relay's side.

        Raises:
            UnavailableStream: it failed before.
        """
        while self._head is None:
            self._check()
            if self._has_ended:
                raise UnavailableStream("the answer ended before it began")
            await self._wait()
        return self._head

    async def read(self) -> bytes | None:
        """The next bytes; None at the end.

        Raises:
            UnavailableStream: it failed.
        """
        while not self._inbox:
            self._check()
            if self._has_ended:
                return None
            await self._wait()
        piece = self._inbox.popleft()
        self._release(len(piece))
        self._ungranted += len(piece)
        if self._ungranted >= GRANT_BYTES and not self._has_ended:
            grant, self._ungranted = self._ungranted, 0
            self._granted += grant
            await self._session.send(encode_credit(self.number, grant))
        return piece

    async def write_head(self, head: Head) -> None:
        """Begin the answer, on the role's side."""
        self._check()
        await self._session.send(encode_head(self.number, head))

    async def write(self, data: bytes) -> None:
        """Send bytes, as credit allows.

        Raises:
            UnavailableStream: it failed.
        """
        start = 0
        while start < len(data):
            self._check()
            size = min(self._credit, DATA_BYTES_MAX, len(data) - start)
            if size == 0:
                await self._wait()
                continue
            self._credit -= size
            await self._session.send(encode_frame(Kind.DATA, self.number, data[start : start + size]))
            start += size

    async def end(self) -> None:
        """Say that nothing more is sent."""
        self._check()
        self._has_sent_end = True
        await self._session.send(encode_frame(Kind.END, self.number))
        self._session.forget_if_over(self)

    async def reset(self, reason: str) -> None:
        """Give the exchange up and drop what was not read; harmless when it is over."""
        is_told = self._knows_error or (self._has_ended and self._has_sent_end)
        self.fail(reason)
        if not is_told and not self._session.is_over:
            self._knows_error = True
            await self._session.send(encode_reset(self.number, reason))

    def fail(self, reason: str) -> None:
        """Note that it failed; whoever waits is told."""
        if self._error is None:
            self._error = reason
        self._release(self._held)
        self._inbox.clear()
        self._session.forget_if_over(self)
        self._notify()

    def take(self, frame: Frame) -> None:
        """A frame of this stream came.

        Raises:
            InvalidFrame: not now.
        """
        match frame.kind:
            case Kind.HEAD:
                if self.opening is not None or self._head is not None:
                    raise InvalidFrame(f"a head came on stream {self.number}, which has one")
                self._head = decode_head(frame)
            case Kind.DATA:
                self._take_data(frame.payload)
            case Kind.END:
                if self._has_ended:
                    raise InvalidFrame(f"stream {self.number} ended twice")
                self._has_ended = True
                self._session.forget_if_over(self)
            case Kind.CREDIT:
                self._credit += int.from_bytes(frame.payload)
                if self._credit > CREDIT_BYTES:
                    raise InvalidFrame(f"credit of stream {self.number} exceeds {CREDIT_BYTES} bytes")
            case Kind.RESET:
                self._knows_error = True
                self.fail(frame.payload.decode(errors="replace") or "the other side gave it up")
            case Kind.OPEN | Kind.DRAIN:
                raise InvalidFrame(f"{frame.kind.name} on an open stream")
        self._notify()

    def _take_data(self, data: bytes) -> None:
        if self._has_ended or (self.opening is None and self._head is None):
            raise InvalidFrame(f"data came outside of what stream {self.number} carries")
        self._granted -= len(data)
        if self._granted < 0:
            raise InvalidFrame(f"stream {self.number} sent more than its credit")
        budget = self._session.budget
        if budget.held_bytes + len(data) > budget.bytes_max:
            self.fail("too many bytes wait to be read; retry later")
            return
        budget.held_bytes += len(data)
        self._held += len(data)
        self._inbox.append(data)

    def _release(self, size_bytes: int) -> None:
        self._held -= size_bytes
        self._session.budget.held_bytes -= size_bytes

    def _check(self) -> None:
        if self._error is not None:
            raise UnavailableStream(self._error)

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _wait(self) -> None:
        await self._changed.wait()


class Session:
    """One WebSocket's streams.

    Attributes:
        is_draining: the role behind it takes no more.
    """

    def __init__(
        self,
        send: Send,
        budget: Budget,
        *,
        on_open: Callable[[Stream], None] | None = None,
        streams_max: int = STREAMS_MAX,
    ) -> None:
        """Begin.

        Args:
            send: one WebSocket message.
            budget: shared by all sessions of the process.
            on_open: told each new stream, on the role's side; None on the relay's.
            streams_max: open at a time.
        """
        self.budget = budget
        self.is_draining = False
        self._send = send
        self._on_open = on_open
        self._streams_max = streams_max
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._is_over = False
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def is_over(self) -> bool:
        """Whether the WebSocket is gone."""
        return self._is_over

    async def open(self, opening: Opening) -> Stream:
        """Ask something, on the relay's side.

        Raises:
            RefusedBusy: all of the role's streams are taken.
            UnavailableStream: the role is gone or going.
            InvalidFrame: the head is too large.
        """
        if self._is_over or self.is_draining or self._last >= STREAM_MAX:
            raise UnavailableStream("the provider behind this relay is away; retry later")
        if len(self._streams) >= self._streams_max:
            raise RefusedBusy(f"all {self._streams_max} streams to this provider are in use; retry later")
        data = encode_opening(self._last + 1, opening)
        self._last += 1
        stream = self._add(Stream(self, self._last, None))
        await self.send(data)
        return stream

    async def receive(self, data: bytes) -> None:
        """A WebSocket message came.

        Raises:
            InvalidFrame: it breaks a rule; the session must end.
        """
        frame = decode_frame(data)
        if frame.kind is Kind.DRAIN:
            if self._on_open is not None:
                raise InvalidFrame("a relay does not drain")
            self.is_draining = True
        elif frame.kind is Kind.OPEN:
            await self._take_opening(frame)
        elif frame.stream in self._streams:
            self._streams[frame.stream].take(frame)
        elif frame.stream > self._last:
            raise InvalidFrame(f"{frame.kind.name} on stream {frame.stream}, which was never opened")
        # What comes for a stream that is over was on its way when it ended.

    async def _take_opening(self, frame: Frame) -> None:
        if self._on_open is None:
            raise InvalidFrame("only a relay opens streams")
        if frame.stream <= self._last:
            raise InvalidFrame(f"stream {frame.stream} opened after stream {self._last}")
        opening = decode_opening(frame)
        self._last = frame.stream
        if len(self._streams) >= self._streams_max or self.is_draining:
            await self.send(encode_reset(frame.stream, "no stream is free here; retry later"))
            return
        self._on_open(self._add(Stream(self, frame.stream, opening)))

    async def drain(self) -> None:
        """Take no more, on the role's side, and wait until what is open has ended."""
        self.is_draining = True
        if not self._is_over:
            await self.send(encode_frame(Kind.DRAIN, 0))
        await self._emptied.wait()

    def close(self, reason: str) -> None:
        """The WebSocket is gone: every stream fails."""
        self._is_over = True
        for stream in tuple(self._streams.values()):
            stream.fail(reason)

    async def send(self, data: bytes) -> None:
        """Send one frame.

        Raises:
            UnavailableStream: the WebSocket is gone, or takes nothing.
        """
        if self._is_over:
            raise UnavailableStream("the connection to the relay is gone")
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(data)
        except (ConnectionError, TimeoutError, OSError) as error:
            self.close("the connection to the relay broke")
            raise UnavailableStream("the connection to the relay broke") from error

    def forget_if_over(self, stream: Stream) -> None:
        """Free the place of a stream on which nothing more comes."""
        if stream.is_over and self._streams.pop(stream.number, None) is not None and not self._streams:
            self._emptied.set()

    def _add(self, stream: Stream) -> Stream:
        self._streams[stream.number] = stream
        self._emptied.clear()
        return stream
