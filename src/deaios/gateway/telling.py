"""One request's answers on their way to one client: whole, or as server-sent events while they grow.

Invariants: what fails before the first byte fails with an HTTP status; answers are charged before their last bytes are
sent; a client that reads slowly holds back the purchase, and one that goes away ends it. How events are worded is the
door's matter (`Voice`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from aiohttp import web

from deaios.gateway.answer import Piece
from deaios.gateway.desk import NONCE_SIZE, Asked, Desk, Sale
from deaios.gateway.keys import KeyRecord
from deaios.gateway.papers import opening_of
from deaios.market.fields import BODY_BYTES_MAX, InvalidParameter
from deaios.market.opening import Opening
from deaios.primitives.encoding import InvalidEncoding, decode_hex
from deaios.primitives.errors import DeaiosError
from deaios.runtime.http import read_body
from deaios.runtime.logs import get_logger

NONCE_HEADER = "X-DeAIOS-Nonce"
RETRY_HEADER = "x-stainless-retry-count"
HEAD_S = 1.0
"""For so long after a stream's head was sent, a client that is gone may not have had it."""
BODY_READ: web.RequestKey[bytes] = web.RequestKey("body_read", bytes)
"""Set where a request's body had to be read before its door, to tell what it costs."""
ANSWER_FAILED: web.RequestKey[bool] = web.RequestKey("answer_failed", bool)
"""Set where a stream that had begun ended with an error."""
_KEEP_ALIVE = b": keep-alive\n\n"
log = get_logger("gateway")


class Voice(Protocol):
    """How one door words its events; every method gives bytes of whole events, or none."""

    def first(self) -> bytes:
        """Before anything else."""

    def piece(self, index: int, piece: Piece) -> bytes:
        """More of a choice."""

    def end(self, index: int, opening: Opening, *, is_last: bool) -> bytes:
        """A choice has ended; `is_last` when all have."""

    def error(self, error: DeaiosError) -> bytes:
        """The request failed after its first byte."""


def encode_event(value: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"data: " if name is None else b"event: " + name.encode() + b"\ndata: "
    return head + msgspec.json.encode(value) + b"\n\n"


async def read_asked(request: web.Request, key: KeyRecord, key_text: str, desk: Desk) -> Asked:
    """A request with its whole body; a retry waits until what its client left has ended.

    Raises:
        InvalidParameter: its nonce header is not a nonce.
    """
    nonce = _read_nonce(request)
    body = request.get(BODY_READ)
    if body is None:
        body = await read_body(request, desk.limits.body_s)
    assert len(body) <= BODY_BYTES_MAX
    is_retry = request.headers.get(RETRY_HEADER, "0").strip() != "0"
    if is_retry:
        await desk.wait_abandoned(key)
    return Asked(key, key_text, body, nonce, is_retry=is_retry)


def _read_nonce(request: web.Request) -> bytes | None:
    text = request.headers.get(NONCE_HEADER)
    if text is None:
        return None
    try:
        return decode_hex(text, NONCE_SIZE)
    except InvalidEncoding as error:
        raise InvalidParameter(NONCE_HEADER, f"{NONCE_HEADER}: {error}") from error


async def tell(
    request: web.Request,
    desk: Desk,
    sale: Sale,
    whole: Callable[[], web.Response],
    voice: Callable[[], Voice] | None,
    keep: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:
    """Give a client its answers.

    Args:
        request: the client's.
        desk: whose bounds hold.
        sale: what it bought.
        whole: builds the answer that is sent at once, when everything is there.
        voice: how a stream is worded; None where no stream is wanted.
        keep: what must be on disk before the client hears that all is there; may raise typed errors.
    """
    began_s: float | None = None
    try:
        if voice is None:
            await sale.wait_whole()
            if keep is not None:
                await keep()
            response: web.StreamResponse = whole()
            sale.note_delivered()
            return response
        await _hold(desk, sale)
        began_s = desk.clock.monotonic_s()
        response = await _open_stream(request, sale)
        try:
            await _stream(_Writer(request, response, desk.limits.write_s), desk, sale, voice(), keep)
        except ConnectionError as error:
            log.info("client went away", answer=sale.first.wanted.answer_id, error=repr(error))
        return response
    finally:
        # SDKs do not send a request again once they have seen a stream begin; its head may have been lost.
        has_seen = began_s is not None and desk.clock.monotonic_s() - began_s > HEAD_S
        sale.leave(may_return=RETRY_HEADER in request.headers and not has_seen)


async def _hold(desk: Desk, sale: Sale) -> None:
    """Wait for the first piece, so that what fails before it fails with a status; not for ever."""

    def has_begun() -> bool:
        return sale.error is not None or sale.has_ended or any(reader.is_behind for reader in sale.readers)

    try:
        async with asyncio.timeout(desk.limits.hold_s):
            await sale.wait(has_begun)
    except TimeoutError:
        return
    if sale.error is not None and not any(answer.pieces for answer in sale.answers):
        raise sale.error


async def _open_stream(request: web.Request, sale: Sale) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            "X-Request-Id": sale.first.wanted.answer_id,
        }
    )
    await response.prepare(request)
    sale.note_shown()
    return response


class _Writer:
    """A stream's socket, where a slow client is waited for only so long."""

    def __init__(self, request: web.Request, response: web.StreamResponse, write_s: float) -> None:
        self.request = request
        self.response = response
        self._write_s = write_s

    async def write(self, data: bytes) -> None:
        """Write.

        Raises:
            ConnectionError: the client left, or stopped reading.
        """
        try:
            async with asyncio.timeout(self._write_s):
                await self.response.write(data)
        except TimeoutError as error:
            if self.request.transport is not None:
                self.request.transport.abort()
            raise ConnectionResetError("client stopped reading") from error


async def _stream(
    writer: _Writer, desk: Desk, sale: Sale, voice: Voice, keep: Callable[[], Awaitable[None]] | None
) -> None:
    """Send the answers as they grow.

    Raises:
        ConnectionError: the client left, or stopped reading.
    """
    while not sale.is_settled:
        try:
            async with asyncio.timeout(desk.limits.keep_alive_s):
                await sale.wait(lambda: sale.is_settled)
        except TimeoutError:
            await writer.write(_KEEP_ALIVE)
    await writer.write(voice.first())
    running = set(range(len(sale.answers)))

    def is_news() -> bool:
        return any(sale.readers[index].is_behind or sale.answers[index].has_ended for index in running)

    while running and sale.error is None:
        data = b"".join(voice.piece(index, piece) for index in sorted(running) for piece in sale.readers[index].take())
        if data:
            await writer.write(data)
            continue
        ended = [index for index in sorted(running) if sale.answers[index].has_ended]
        for index in ended:
            running.discard(index)
            if keep is not None and not running:
                try:
                    await keep()
                except DeaiosError as error:
                    await writer.write(voice.error(error))
                    break
            await writer.write(voice.end(index, opening_of(sale.answers[index]), is_last=not running))
        if ended:
            continue
        try:
            async with asyncio.timeout(desk.limits.keep_alive_s):
                await sale.wait(is_news)
        except TimeoutError:
            await writer.write(_KEEP_ALIVE)
    if sale.error is not None:
        writer.request[ANSWER_FAILED] = True
        left = (voice.piece(index, piece) for index in sorted(running) for piece in sale.readers[index].take())
        await writer.write(b"".join(left) + voice.error(sale.error))
    else:
        sale.note_delivered()
    await writer.response.write_eof()
