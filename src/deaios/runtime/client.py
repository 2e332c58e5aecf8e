"""A bounded HTTP client for talk between roles: every call has a time limit and a size limit, every failure a type."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import Invalid, Refused, Unavailable

CONNECT_S = 5.0
TOTAL_S = 60.0
STREAM_IDLE_S = 120.0
"""Longest silence inside a stream; the first byte of an answer may take this long on a busy machine."""
STREAM_S = 1800.0
"""A whole stream, twice what a provider gives itself for one purchase: who dribbles is not followed for ever."""
JSON_BYTES_MAX = 4 << 20
LINE_BYTES_MAX = 1 << 20
CONNECTIONS_MAX = 256
PIECE_BYTES = 256 << 10
"""Of a body, handed to the connection at once: more would push it through the loop in one go."""

T = TypeVar("T")


class UnavailablePeer(Unavailable):
    """The peer could not be reached, hung, broke off, or says it cannot serve now.

    Attributes:
        status: of a 5xx answer; 0 where there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class InvalidResponse(Invalid):
    """The peer answered, but not in the protocol."""


class RefusedByPeer(Refused):
    """The peer understood and declined.

    Attributes:
        status: HTTP status, 400 to 499 or 507.
        title: the error's type name on the peer's side.
        detail: its message.
        body: raw problem document, at most 64 KiB.
    """

    def __init__(self, url: str, status: int, title: str, detail: str, body: bytes) -> None:
        super().__init__(f"{url} refused: {status} {title}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.body = body


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""


class HttpClient:
    """One connection pool; use as an async context manager."""

    def __init__(self, *, total_s: float = TOTAL_S) -> None:
        self._timeout = aiohttp.ClientTimeout(total=total_s, connect=CONNECT_S)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            auto_decompress=False,
            read_bufsize=LINE_BYTES_MAX,
            cookie_jar=aiohttp.DummyCookieJar(),  # peers are nobody's session: nothing they set is kept or sent
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The pool; an assertion of ours that the client is open."""
        assert self._session is not None, "HttpClient is used outside its async context"
        return self._session

    async def get_json(self, url: str, kind: type[T], headers: Mapping[str, str] | None = None) -> T:
        """GET and decode."""
        return _decode(url, await self.request("GET", url, headers=headers), kind)

    async def post_json(self, url: str, value: object, kind: type[T], headers: Mapping[str, str] | None = None) -> T:
        """POST a JSON value and decode the answer."""
        return await self.post_body(url, msgspec.json.encode(value), kind, headers)

    async def post_body(self, url: str, body: bytes, kind: type[T], headers: Mapping[str, str] | None = None) -> T:
        """POST exact JSON bytes, such as a signed body, and decode the answer."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        return _decode(url, await self.request("POST", url, body=body, headers=sent), kind)

    async def get_bytes(self, url: str, bytes_max: int, headers: Mapping[str, str] | None = None) -> bytes:
        """GET at most `bytes_max` bytes."""
        return await self.request("GET", url, headers=headers, bytes_max=bytes_max)

    async def put_bytes(self, url: str, data: bytes, headers: Mapping[str, str] | None = None) -> bytes:
        """PUT bytes; returns the answer's body."""
        return await self.request("PUT", url, body=data, headers=headers)

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        bytes_max: int = JSON_BYTES_MAX,
    ) -> bytes:
        """One bounded exchange.

        Raises:
            UnavailablePeer: network failure, time-out, or a 5xx answer.
            RefusedByPeer: a 4xx or 507 answer.
            InvalidResponse: the answer is larger than `bytes_max`, or sends us elsewhere.
        """
        data = _Pieces(body) if body is not None and len(body) > PIECE_BYTES else body
        try:
            # A peer does not choose whom else we talk to, nor what a signed body of ours is shown to.
            async with self.session.request(method, url, data=data, headers=headers, allow_redirects=False) as response:
                if response.status >= 300:
                    raise await _failure(url, response)
                return await _read_bounded(url, response, bytes_max)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailablePeer(f"{url}: {error!r}") from error

    async def stream_lines(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        idle_s: float = STREAM_IDLE_S,
        total_s: float = STREAM_S,
    ) -> AsyncGenerator[bytes, None]:
        """POST JSON bytes and yield the answer's lines as they come, without their newline.

        Raises:
            UnavailablePeer: the stream failed, was silent for `idle_s` or went on for `total_s`.
            RefusedByPeer: the peer declined before the stream began.
            InvalidResponse: a line is longer than `LINE_BYTES_MAX`, or the answer sends us elsewhere.
        """
        timeout = aiohttp.ClientTimeout(total=total_s, connect=CONNECT_S, sock_read=idle_s)
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            async with self.session.post(
                url, data=body, headers=sent, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status >= 300:
                    raise await _failure(url, response)
                async for line in split_lines(url, response.content.iter_any()):
                    if line.strip():
                        yield line.rstrip(b"\r")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailablePeer(f"{url}: {error!r}") from error

    @asynccontextmanager
    async def open_stream(
        self, url: str, body: bytes, headers: Mapping[str, str], *, idle_s: float = STREAM_IDLE_S
    ) -> AsyncIterator[tuple[Mapping[str, str], AsyncIterator[bytes]]]:
        """POST a body and give the answer's headers, and its bytes as they come.

        Raises:
            UnavailablePeer: the stream failed, was silent for `idle_s` or went on for `STREAM_S`.
            RefusedByPeer: the peer declined before the stream began.
            InvalidResponse: the answer sends us elsewhere.
        """
        timeout = aiohttp.ClientTimeout(total=STREAM_S, connect=CONNECT_S, sock_read=idle_s)
        try:
            data = _Pieces(body) if len(body) > PIECE_BYTES else body
            async with self.session.post(
                url, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status >= 300:
                    raise await _failure(url, response)
                yield response.headers, response.content.iter_any()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailablePeer(f"{url}: {error!r}") from error


class _Pieces(Payload):
    """A body that is sent in pieces and never copied, as a file-like one is as a whole; it can be sent again."""

    _value: bytes
    _autoclose = True  # it is memory

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type="application/octet-stream")
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """As every payload."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Hand everything to a connection, which takes no more than it can send soon."""
        view = memoryview(self._value)
        for start in range(0, len(view), PIECE_BYTES):
            await writer.write(view[start : start + PIECE_BYTES])


def _decode(url: str, body: bytes, kind: type[T]) -> T:
    try:
        validate_json_depth(body)
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeError, InvalidEncoding) as error:
        raise InvalidResponse(f"{url}: answer is not a valid {getattr(kind, '__name__', kind)}: {error}") from error


async def split_lines(url: str, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Lines without their newline, in time that is linear however small the pieces are that a peer sends.

    Raises:
        InvalidResponse: a line is longer than `LINE_BYTES_MAX`.
    """
    line = bytearray()
    async for piece in pieces:
        start = 0
        while True:
            end = piece.find(b"\n", start)
            line += piece[start:] if end < 0 else piece[start:end]
            if len(line) > LINE_BYTES_MAX:
                raise InvalidResponse(f"{url}: a line exceeds {LINE_BYTES_MAX} bytes")
            if end < 0:
                break
            yield bytes(line)
            line.clear()
            start = end + 1
    yield bytes(line)


async def _read_bounded(url: str, response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    if response.content_length is not None and response.content_length > bytes_max:
        raise InvalidResponse(f"{url}: answer has {response.content_length} bytes, at most {bytes_max} expected")
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > bytes_max:
            raise InvalidResponse(f"{url}: answer exceeds {bytes_max} bytes")
        parts.append(part)
    return b"".join(parts)


async def _failure(url: str, response: aiohttp.ClientResponse) -> Exception:
    if response.status < 400:
        return InvalidResponse(f"{url}: status {response.status}; redirects are not followed")
    return read_failure(url, response.status, await response.content.read(65536))


def read_failure(url: str, status: int, body: bytes) -> Exception:
    """The typed error that an answer of status 400 or above stands for."""
    try:
        validate_json_depth(body)
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeError, InvalidEncoding):
        problem = _Problem(detail=body[:200].decode(errors="replace"))
    if status >= 500 and status != 507:
        return UnavailablePeer(f"{url}: {status} {problem.title}: {problem.detail}", status)
    return RefusedByPeer(url, status, problem.title, problem.detail, body)
