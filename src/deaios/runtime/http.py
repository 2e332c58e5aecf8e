"""Bounded HTTP for every role: typed errors become typed answers, sizes have limits, no trace leaks.

A handler raises the errors of `primitives.errors`; the middleware renders them (RFC 9457 problem details unless the
door speaks another dialect) and counts them. `/healthz` and `/metrics` exist on every role. What all peers together may
hold of the process, and for how long, is `runtime.connections`' matter.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from aiohttp import web
from structlog.stdlib import BoundLogger

from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import DeaiosError, Unavailable
from deaios.runtime.clock import SystemClock
from deaios.runtime.connections import BACKLOG, RETRY_AFTER_S, Connection, Crowd, Limits, Refusals
from deaios.runtime.dice import SystemDice
from deaios.runtime.errors import (
    InvalidBody,
    NotFound,
    RefusedBusy,
    RefusedEncoding,
    RefusedRange,
    RefusedTooLarge,
    UnavailableBody,
    UnavailableGone,
    http_status,
)
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

HEADER_BYTES_MAX = 16 << 10
"""One line of a head."""
HEADERS_MAX = 64
LINGER_S = 3.0
"""How long the rest of a refused body is read and dropped, so that its sender may read the refusal."""
SHUTDOWN_S = 5.0
PATH_CHARACTERS_MAX = 200
"""Of a path in a log line."""
REQUEST_ID_HEADER = "X-Request-Id"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RenderError = Refusals
T = TypeVar("T")

_PREPARED: web.RequestKey[bool] = web.RequestKey("prepared", bool)
"""Set on a request once its answer's status line is out."""
METRICS_KEY: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
_RENDER_KEY: web.AppKey[RenderError] = web.AppKey("render")


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer encoded by msgspec."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )


def problem_details(_request: web.Request | None, status: int, error: BaseException) -> web.Response:
    """RFC 9457: type, title, status, detail, and when to come back. Our own faults say only that they are ours."""
    ours = status == 500
    title = "InternalError" if ours else type(error).__name__
    detail = "an internal fault was logged; the request may be retried" if ours else str(error)
    problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    response = json_response(problem, status)
    response.content_type = "application/problem+json"
    if isinstance(error, RefusedBusy | Unavailable) and not isinstance(error, UnavailableGone):
        known = error.retry_after_s if isinstance(error, RefusedBusy) else None
        response.headers["Retry-After"] = str(RETRY_AFTER_S if known is None else known)
    return response


async def read_json(request: web.Request, kind: type[T]) -> T:
    """Read a body as one msgspec type.

    Raises:
        InvalidBody: not JSON, too deep, or not of that type.
        RefusedTooLarge: more bytes than the application allows.
    """
    body = await read_body(request)
    try:
        validate_json_depth(body)
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeError, InvalidEncoding) as error:
        raise InvalidBody(f"body is not a valid {kind.__name__}: {error}") from error


async def read_body(request: web.Request, timeout_s: float | None = None, *, bytes_max: int | None = None) -> bytes:
    """The whole body, within the application's bound and the time a body has.

    Args:
        request: whose body.
        timeout_s: another time than the connection's.
        bytes_max: another bound than the application's.

    Raises:
        RefusedTooLarge: more bytes than the bound.
        RefusedEncoding: it is compressed, so that its size says nothing.
        RefusedBusy: too many bytes are in work in this process.
        UnavailableBody: it did not arrive in time.
        InvalidBody: its transfer encoding is broken.
    """
    connection = _connection_of(request)
    size_max = request.client_max_size if bytes_max is None else bytes_max
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
        raise RefusedEncoding("the body has a content encoding; send it as it is")
    if (request.content_length or 0) > size_max:
        raise RefusedTooLarge(f"body has {request.content_length} bytes, at most {size_max} are taken")
    limit_s = connection.limits.body_s if timeout_s is None else timeout_s
    pieces, size = [], 0
    try:
        async with asyncio.timeout(None if request.content.is_eof() else limit_s):  # most bodies came with their head
            while piece := await request.content.readany():
                size += len(piece)
                if size > size_max:
                    raise RefusedTooLarge(f"body exceeds {size_max} bytes")
                connection.hold(len(piece))
                pieces.append(piece)
    except TimeoutError as error:
        raise UnavailableBody(f"the body did not arrive within {limit_s:g} s") from error
    except web.RequestPayloadError as error:
        raise InvalidBody(f"body cannot be decoded: {error}") from error
    connection.end_body()
    return b"".join(pieces)


def hold_bytes(request: web.Request, size_bytes: int) -> None:
    """Account for bytes that an answer keeps in memory until the peer has read it.

    Raises:
        RefusedBusy: too many bytes are in work in this process.
    """
    _connection_of(request).hold(size_bytes)


def build_application(
    name: str, *, body_bytes_max: int, render_error: RenderError = problem_details, metrics: Metrics | None = None
) -> web.Application:
    """An aiohttp application with error mapping, request ids, metrics, `/healthz` and `/metrics`."""
    metrics = metrics or Metrics(name)
    log = get_logger(name)
    dice, clock = SystemDice(), SystemClock()
    requests = metrics.counter(
        "http_requests_total", "HTTP requests by route and status", ("method", "route", "status")
    )
    latency = metrics.histogram("http_request_seconds", "HTTP request duration", ("route",))

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = dice.token_bytes(8).hex()
        connection = _connection_of(request)
        connection.begin(request)
        start = clock.monotonic_s()
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unmatched"
        response: web.StreamResponse
        try:
            response = await handler(request)
        except ConnectionResetError as error:
            log.info("client went away", path=_path_of(request), error=repr(error), request_id=request_id)
            raise
        except Exception as error:  # the edge of a request: the stranger gets a typed answer, the log the fault
            if not request.get(_PREPARED):
                response = _render(log, render_error, request, error, request_id)
            else:  # the status line is out: only a cut connection can still say that the answer is not whole
                fault = None if isinstance(error, DeaiosError | TimeoutError) else error
                log.warning(
                    "answer cut", path=_path_of(request), error=repr(error), request_id=request_id, exc_info=fault
                )
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the answer was cut") from error
        finally:
            connection.finish()
        requests.labels(request.method, route, response.status).inc()
        latency.labels(route).observe(clock.monotonic_s() - start)
        if not response.prepared:
            response.headers[REQUEST_ID_HEADER] = request_id
        return response

    async def note_prepared(request: web.Request, _response: web.StreamResponse) -> None:
        request[_PREPARED] = True

    async def healthz(_request: web.Request) -> web.Response:
        return json_response({"status": "ok", "role": name})

    async def render_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})

    application = web.Application(middlewares=[guard], client_max_size=body_bytes_max)
    application[METRICS_KEY] = metrics
    application[_RENDER_KEY] = render_error
    application.on_response_prepare.append(note_prepared)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/metrics", render_metrics)
    return application


def _render(
    log: BoundLogger, render_error: RenderError, request: web.Request, error: Exception, request_id: str
) -> web.Response:
    """The answer to an error that a handler raised, and its line in the log."""
    if isinstance(error, TimeoutError):
        error = Unavailable("the work took too long; the request may be retried")
    if isinstance(error, DeaiosError):
        status = http_status(error)
        log.info("request refused", path=_path_of(request), status=status, error=str(error), request_id=request_id)
        refusal = render_error(request, status, error)
        if isinstance(error, RefusedRange):
            refusal.headers["Content-Range"] = f"bytes */{error.size_bytes}"
        return refusal
    if isinstance(error, web.HTTPException):
        if error.status < 400:
            raise error
        answer = render_error(request, error.status, error)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    log.error("internal fault", path=_path_of(request), request_id=request_id, exc_info=error)
    return render_error(request, 500, RuntimeError("internal fault"))


@asynccontextmanager
async def serve(
    application: web.Application, host: str = "127.0.0.1", port: int = 0, limits: Limits | None = None
) -> AsyncIterator[str]:
    """Serve until the block ends; yields the base URL. Port 0 lets the system pick one."""
    limits = limits or Limits()
    loop = asyncio.get_running_loop()
    metrics = application[METRICS_KEY]
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_S, handler_cancellation=True)
    dismissed = metrics.counter("http_connections_dismissed_total", "Connections that were ended", ("reason",))
    crowd = Crowd(limits, application[_RENDER_KEY], lambda reason: dismissed.labels(reason).inc(), loop.time)
    metrics.gauge("http_connections", "Open connections").set_function(lambda: len(crowd))
    metrics.gauge("http_held_bytes", "Bytes of bodies in work").set_function(lambda: crowd.held_bytes)
    await runner.setup()
    server = runner.server
    assert server is not None

    def accept() -> Connection:
        return Connection(
            server,
            crowd,
            loop=loop,
            access_log=None,
            keepalive_timeout=limits.idle_s,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
            lingering_time=LINGER_S,
            auto_decompress=False,
        )

    sweeping = asyncio.create_task(crowd.run(), name="connections")
    try:
        listener = await loop.create_server(accept, host, port, backlog=BACKLOG)
        try:
            yield f"http://{host}:{listener.sockets[0].getsockname()[1]}"
        finally:
            listener.close()
    finally:
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping
        await runner.cleanup()


def _connection_of(request: web.Request) -> Connection:
    connection = request.protocol
    assert isinstance(connection, Connection), "requests come through serve()"
    return connection


def _path_of(request: web.Request) -> str:
    return request.path[:PATH_CHARACTERS_MAX]


__all__ = [
    "METRICS_KEY",
    "InvalidBody",
    "NotFound",
    "RefusedTooLarge",
    "build_application",
    "hold_bytes",
    "json_response",
    "problem_details",
    "read_body",
    "read_json",
    "serve",
]
