"""A storage node's HTTP door: rows and manifests in, rows and manifests out.

    PUT, GET, HEAD /rows/{commitment}/{index}      PUT, GET, HEAD /manifests/{id}

Invariant: 201 or 200 to a PUT means that the bytes were verified against their name and are on disk. Writes are signed
requests; whose writes are admitted is the operator's policy. Reads are open, since every row proves itself. At most
`SLOTS` rows are hashed, written or read at once, and none of these waits for a peer: bodies on their way, in either
direction, count among what the server holds for all peers (`runtime.connections`). It knows no deals and no other
nodes.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import web

from deaios.primitives.encoding import decode_decimal, decode_hex
from deaios.primitives.keys import Address
from deaios.rows.manifest import MANIFEST_BYTES_MAX, open_manifest
from deaios.rows.message import MESSAGE_BYTES_MAX, validate_message
from deaios.rows.store import RowStore
from deaios.runtime.authentication import NonceWindow, verify_request
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.errors import NotFound, RefusedBusy, RefusedFull
from deaios.runtime.http import METRICS_KEY, build_application, hold_bytes, json_response, read_body

SLOTS = 8
"""Rows in work at once: more would only compete for the same disk and cores."""

WAITING_MAX = 256
"""Requests that may wait for a slot; more are told to come back."""

TRANSFER_S = 60.0
"""Longest time one row may take to its reader."""

PIECE_BYTES = 1 << 20
"""Bytes written to a socket at once."""

BODY_BYTES_MAX = max(MESSAGE_BYTES_MAX, MANIFEST_BYTES_MAX)

T = TypeVar("T")
Admit = Callable[[Address], None]


def admit_all(_signer: Address) -> None:
    """Take rows from any key, until the quota is used up."""


def build_storage_application(
    store: RowStore,
    *,
    network_id: bytes,
    clock: Clock | None = None,
    executor: Executor | None = None,
    admit: Admit = admit_all,
) -> web.Application:
    """The node's application.

    Args:
        store: where rows are kept; the caller closes it.
        network_id: genesis hash that signed requests must name.
        clock: for the age of signed requests.
        executor: threads for hashing, verification and disk; the loop's own by default.
        admit: raises a `Refused` for keys whose writes are not taken.
    """
    application = build_application("storage", body_bytes_max=BODY_BYTES_MAX)
    door = _Door(store, network_id, clock or SystemClock(), executor, admit)
    metrics = application[METRICS_KEY]
    metrics.gauge("storage_used_bytes", "Bytes counted against the quota").set_function(lambda: store.used_bytes)
    metrics.gauge("storage_free_bytes", "Bytes the quota leaves").set_function(lambda: store.free_bytes)
    router = application.router
    for path, get, head, put in (
        ("/rows/{commitment}/{index}", door.get_row, door.head_row, door.put_row),
        ("/manifests/{id}", door.get_manifest, door.head_manifest, door.put_manifest),
    ):
        router.add_get(path, get, allow_head=False)
        router.add_head(path, head)
        router.add_put(path, put)
    return application


class _Door:
    """Handlers over one store."""

    def __init__(
        self, store: RowStore, network_id: bytes, clock: Clock, executor: Executor | None, admit: Admit
    ) -> None:
        self._store = store
        self._network_id = network_id
        self._clock = clock
        self._executor = executor
        self._admit = admit
        self._nonces = NonceWindow()
        self._nonces_lock = threading.Lock()
        self._slots = asyncio.Semaphore(SLOTS)
        self._waiting = 0

    async def put_row(self, request: web.Request) -> web.Response:
        commitment, index = _read_row_name(request)

        def keep(body: bytes) -> bool:
            validate_message(commitment, index, body)
            return self._store.put_row(commitment, index, body)

        return await self._put(request, keep)

    async def put_manifest(self, request: web.Request) -> web.Response:
        manifest_id = _read_manifest_name(request)

        def keep(body: bytes) -> bool:
            open_manifest(manifest_id, body)
            return self._store.put_manifest(manifest_id, body)

        return await self._put(request, keep)

    async def get_row(self, request: web.Request) -> web.StreamResponse:
        commitment, index = _read_row_name(request)
        return await self._send(request, lambda: self._store.get_row(commitment, index))

    async def get_manifest(self, request: web.Request) -> web.StreamResponse:
        manifest_id = _read_manifest_name(request)
        return await self._send(request, lambda: self._store.get_manifest(manifest_id))

    async def head_row(self, request: web.Request) -> web.Response:
        commitment, index = _read_row_name(request)
        return _head(await self._run(lambda: self._store.get_row_size(commitment, index)))

    async def head_manifest(self, request: web.Request) -> web.Response:
        manifest_id = _read_manifest_name(request)
        return _head(await self._run(lambda: self._store.get_manifest_size(manifest_id)))

    async def _put(self, request: web.Request, keep: Callable[[bytes], bool]) -> web.Response:
        size = request.content_length or 0
        if size > self._store.free_bytes:
            raise RefusedFull(f"{size} bytes more than {self._store.free_bytes} free")
        body = await read_body(request)
        async with self._slot():
            stored = await self._run(lambda: self._keep_signed(request, body, keep))
        return json_response({"stored": stored}, status=201 if stored else 200)

    def _keep_signed(self, request: web.Request, body: bytes, keep: Callable[[bytes], bool]) -> bool:
        """Check who signed, then what was sent, then keep it; all of it hashes megabytes, so it runs on a thread."""
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
        return keep(body)

    async def _send(self, request: web.Request, read: Callable[[], bytes | None]) -> web.StreamResponse:
        async with self._slot():
            body = await self._run(read)
        if body is None:
            raise _not_found(request)
        hold_bytes(request, len(body))
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = len(body)
        async with asyncio.timeout(TRANSFER_S):
            await response.prepare(request)
            view = memoryview(body)
            for start in range(0, len(view), PIECE_BYTES):
                await response.write(view[start : start + PIECE_BYTES])
            await response.write_eof()
        return response

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._waiting >= WAITING_MAX:
            raise RefusedBusy(f"{self._waiting} requests wait for {SLOTS} slots; retry later")
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _read_row_name(request: web.Request) -> tuple[bytes, int]:
    index = decode_decimal(request.match_info["index"], 16)
    return decode_hex(request.match_info["commitment"], 32), index


def _read_manifest_name(request: web.Request) -> bytes:
    return decode_hex(request.match_info["id"], 32)


def _head(size: int | None) -> web.Response:
    if size is None:  # an ordinary answer to an ordinary question, not an error to log
        return web.Response(status=404)
    return web.Response(headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"})


def _not_found(request: web.Request) -> NotFound:
    return NotFound(f"{request.path} is not kept here")
