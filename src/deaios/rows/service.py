"""The HTTP door that every keeper of rows has: signed writes, open reads, bounded work.

Invariant: 201 or 200 to a PUT means that the bytes were checked by the caller's `keep` and are on disk. Writes are
signed requests; whose writes are admitted is the operator's policy. Reads are open, since every row proves itself. At
most `SLOTS` requests are hashed, written or read at once, and none of these waits for a peer: bodies on their way, in
either direction, count among what the server holds for all peers (`runtime.connections`). It owns no routes, and knows
neither manifests nor blobs nor other nodes.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from aiohttp import web

from deaios.primitives.encoding import decode_decimal, decode_hex
from deaios.primitives.keys import Address
from deaios.rows.store import RowStore
from deaios.runtime.authentication import NonceWindow, verify_request
from deaios.runtime.clock import Clock
from deaios.runtime.errors import NotFound, RefusedFull
from deaios.runtime.http import hold_bytes, json_response, read_body
from deaios.runtime.ranges import decode_range
from deaios.runtime.slots import Slots

SLOTS = 8
"""Rows in work at once: more would only compete for the same disk and cores."""

WAITING_MAX = 256
"""Requests that may wait for a slot; more are told to come back."""

TRANSFER_S = 60.0
"""Longest time one row may take to its reader."""

PIECE_BYTES = 1 << 20
"""Bytes written to a socket at once."""

T = TypeVar("T")
Admit = Callable[[Address], None]


def admit_all(_signer: Address) -> None:
    """Take rows from any key, until the quota is used up."""


class RowDoor:
    """What handlers over one store are made of; its owner adds the routes."""

    def __init__(
        self, store: RowStore, *, network_id: bytes, clock: Clock, executor: Executor | None, admit: Admit
    ) -> None:
        """A door.

        Args:
            store: where rows are kept; the caller closes it.
            network_id: genesis hash that signed requests must name.
            clock: for the age of signed requests.
            executor: threads for hashing, verification and disk; the loop's own when None.
            admit: raises a `Refused` for keys whose writes are not taken; called on a thread.
        """
        self._store = store
        self._network_id = network_id
        self._clock = clock
        self._executor = executor
        self._admit = admit
        self._nonces = NonceWindow()
        self._nonces_lock = threading.Lock()
        self._slots = Slots(SLOTS, WAITING_MAX)

    async def put(self, request: web.Request, keep: Callable[[bytes], bool]) -> web.Response:
        """Answer a signed write.

        Args:
            request: whose body is to be kept.
            keep: checks the body and keeps it, on a thread; False when it was there already.
        """
        size = request.content_length or 0
        if size > self._store.free_bytes:
            raise RefusedFull(f"{size} bytes more than {self._store.free_bytes} free")
        body = await read_body(request)

        def keep_signed() -> bool:
            self._verify(request, body)
            return keep(body)

        async with self._slots.take():
            stored = await self.run(keep_signed)
        return json_response({"stored": stored}, status=201 if stored else 200)

    async def send(self, request: web.Request, read: Callable[[], bytes | None]) -> web.StreamResponse:
        """Answer a read with what there is, or with the one range of it that is asked for.

        Args:
            request: its `Range` counts as RFC 9110 §14 says; `If-Range` never matches, as nothing has validators.
            read: gives the bytes, on a thread; None when they are not kept.
        """
        async with self._slots.take():
            body = await self.run(read)
        if body is None:
            raise NotFound(f"{request.path} is not kept here")
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        status, asked = 200, None
        if "Range" in request.headers and "If-Range" not in request.headers:
            asked = decode_range(request.headers["Range"], len(body))
        if asked is not None:
            status, headers["Content-Range"] = 206, f"bytes {asked.start}-{asked.stop - 1}/{len(body)}"
            body = body[asked.start : asked.stop]
        hold_bytes(request, len(body))
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(body)
        async with asyncio.timeout(TRANSFER_S):
            await response.prepare(request)
            view = memoryview(body)
            for start in range(0, len(view), PIECE_BYTES):
                await response.write(view[start : start + PIECE_BYTES])
            await response.write_eof()
        return response

    async def head(self, read_size: Callable[[], int | None]) -> web.Response:
        """Answer what `send` would, without the bytes.

        Args:
            read_size: gives their number, on a thread; None when they are not kept.
        """
        size = await self.run(read_size)
        if size is None:  # an ordinary answer to an ordinary question, not an error to log
            return web.Response(status=404)
        return web.Response(
            headers={
                "Content-Length": str(size),
                "Content-Type": "application/octet-stream",
                "Accept-Ranges": "bytes",
            }
        )

    async def read_signed(self, request: web.Request, bytes_max: int) -> tuple[Address, bytes]:
        """Who sent a signed request that is no row, and its body of at most `bytes_max` bytes.

        Raises:
            InvalidSignature: not signed, or not well.
            Refused: stale, sent before, not admitted, or too large.
        """
        body = await read_body(request, bytes_max=bytes_max)
        async with self._slots.take():
            return await self.run(lambda: self._verify(request, body)), body

    async def run(self, work: Callable[[], T]) -> T:
        """Do heavy or blocking work on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _verify(self, request: web.Request, body: bytes) -> Address:
        """Who signed, if admitted; hashes the body, so it runs on a thread."""
        with self._nonces_lock:
            signer = verify_request(
                request.headers,
                self._network_id,
                request.method,
                request.path_qs,
                body,
                self._clock.now_ms(),
                self._nonces,
            )
        self._admit(signer)
        return signer


def read_row_name(request: web.Request) -> tuple[bytes, int]:
    """Commitment and index from a route with `{commitment}` and `{index}`.

    Raises:
        InvalidEncoding: not 32 bytes of hex, or not a decimal below 65,536.
    """
    index = decode_decimal(request.match_info["index"], 16)
    return decode_hex(request.match_info["commitment"], 32), index
