"""A storage node's HTTP door: rows and manifests in, rows and manifests out.

    PUT, GET, HEAD /rows/{commitment}/{index}      PUT, GET, HEAD /manifests/{id}

Invariant: 201 or 200 to a PUT means that the bytes were verified against their name and are on disk. Everything else is
the door's (`rows.service`). It knows no deals and no other nodes.
"""

from concurrent.futures import Executor

from aiohttp import web

from deaios.primitives.encoding import decode_hex
from deaios.rows.manifest import MANIFEST_BYTES_MAX, open_manifest
from deaios.rows.message import MESSAGE_BYTES_MAX, validate_message
from deaios.rows.service import Admit, RowDoor, admit_all, read_row_name
from deaios.rows.store import RowStore
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.http import METRICS_KEY, build_application

BODY_BYTES_MAX = max(MESSAGE_BYTES_MAX, MANIFEST_BYTES_MAX)


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
    door = RowDoor(store, network_id=network_id, clock=clock or SystemClock(), executor=executor, admit=admit)
    handlers = _Handlers(store, door)
    metrics = application[METRICS_KEY]
    metrics.gauge("storage_used_bytes", "Bytes counted against the quota").set_function(lambda: store.used_bytes)
    metrics.gauge("storage_free_bytes", "Bytes the quota leaves").set_function(lambda: store.free_bytes)
    router = application.router
    for path, get, head, put in (
        ("/rows/{commitment}/{index}", handlers.get_row, handlers.head_row, handlers.put_row),
        ("/manifests/{id}", handlers.get_manifest, handlers.head_manifest, handlers.put_manifest),
    ):
        router.add_get(path, get, allow_head=False)
        router.add_head(path, head)
        router.add_put(path, put)
    return application


class _Handlers:
    """Rows and manifests of one store through one door."""

    def __init__(self, store: RowStore, door: RowDoor) -> None:
        self._store = store
        self._door = door

    async def put_row(self, request: web.Request) -> web.Response:
        commitment, index = read_row_name(request)

        def keep(body: bytes) -> bool:
            validate_message(commitment, index, body)
            return self._store.put_row(commitment, index, body)

        return await self._door.put(request, keep)

    async def put_manifest(self, request: web.Request) -> web.Response:
        manifest_id = _read_manifest_name(request)

        def keep(body: bytes) -> bool:
            open_manifest(manifest_id, body)
            return self._store.put_manifest(manifest_id, body)

        return await self._door.put(request, keep)

    async def get_row(self, request: web.Request) -> web.StreamResponse:
        commitment, index = read_row_name(request)
        return await self._door.send(request, lambda: self._store.get_row(commitment, index))

    async def get_manifest(self, request: web.Request) -> web.StreamResponse:
        manifest_id = _read_manifest_name(request)
        return await self._door.send(request, lambda: self._store.get_manifest(manifest_id))

    async def head_row(self, request: web.Request) -> web.Response:
        commitment, index = read_row_name(request)
        return await self._door.head(lambda: self._store.get_row_size(commitment, index))

    async def head_manifest(self, request: web.Request) -> web.Response:
        manifest_id = _read_manifest_name(request)
        return await self._door.head(lambda: self._store.get_manifest_size(manifest_id))


def _read_manifest_name(request: web.Request) -> bytes:
    return decode_hex(request.match_info["id"], 32)
