"""Bounded HTTP for every role: typed errors become typed answers, sizes have limits, no trace leaks.

A handler raises the errors of `primitives.errors`; the middleware renders them (RFC 9457 problem details unless the
door speaks another dialect) and counts them. `/healthz` and `/metrics` exist on every role.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import DeaiosError
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.errors import InvalidBody, NotFound, RefusedTooLarge, http_status
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

HEADER_BYTES_MAX = 16 << 10
KEEP_ALIVE_S = 75.0
SHUTDOWN_S = 5.0
BACKLOG = 1024
REQUEST_ID_HEADER = "X-Request-Id"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RenderError = Callable[[web.Request, int, BaseException], web.Response]
T = TypeVar("T")

_PREPARED: web.RequestKey[bool] = web.RequestKey("prepared", bool)
"""Set on a request once its answer's status line is out."""
METRICS_KEY: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer encoded by msgspec."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )


def problem_details(_request: web.Request, status: int, error: BaseException) -> web.Response:
    """RFC 9457: type, title, status, detail. Our own faults say only that they are ours."""
    ours = status == 500
    title = "InternalError" if ours else type(error).__name__
    detail = "an internal fault was logged; the request may be retried" if ours else str(error)
    problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    response = json_response(problem, status)
    response.content_type = "application/problem+json"
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
    except (msgspec.DecodeError, InvalidEncoding) as error:
        raise InvalidBody(f"body is not a valid {kind.__name__}: {error}") from error


async def read_body(request: web.Request) -> bytes:
    """The whole body, within the application's bound.

    Raises:
        RefusedTooLarge: more bytes than the bound.
        InvalidBody: its transfer or content encoding is broken.
    """
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise RefusedTooLarge(f"body exceeds {request.client_max_size} bytes") from error
    except web.RequestPayloadError as error:
        raise InvalidBody(f"body cannot be decoded: {error}") from error


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
        start = clock.monotonic_s()
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unmatched"
        response: web.StreamResponse
        try:
            response = await handler(request)
        except (ConnectionResetError, TimeoutError) as error:
            log.info("client went away", path=request.path, error=repr(error), request_id=request_id)
            raise
        except Exception as error:
            if not request.get(_PREPARED):
                response = _render(request, error, request_id)
            else:  # the status line is out: only a cut connection can still say that the answer is not whole
                log.warning("answer cut", path=request.path, error=repr(error), request_id=request_id)
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the answer was cut") from error
        requests.labels(request.method, route, response.status).inc()
        latency.labels(route).observe(clock.monotonic_s() - start)
        if not response.prepared:
            response.headers[REQUEST_ID_HEADER] = request_id
        return response

    def _render(request: web.Request, error: Exception, request_id: str) -> web.Response:
        if isinstance(error, DeaiosError):
            status = http_status(error)
            log.info("request refused", path=request.path, status=status, error=str(error), request_id=request_id)
            return render_error(request, status, error)
        if isinstance(error, web.HTTPException):
            if error.status < 400:
                raise error
            answer = render_error(request, error.status, error)
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
            return answer
        log.error("internal fault", path=request.path, request_id=request_id, exc_info=error)
        return render_error(request, 500, RuntimeError("internal fault"))

    async def note_prepared(request: web.Request, _response: web.StreamResponse) -> None:
        request[_PREPARED] = True

    async def healthz(_request: web.Request) -> web.Response:
        return json_response({"status": "ok", "role": name})

    async def render_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})

    application = web.Application(middlewares=[guard], client_max_size=body_bytes_max)
    application[METRICS_KEY] = metrics
    application.on_response_prepare.append(note_prepared)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/metrics", render_metrics)
    return application


@asynccontextmanager
async def serve(application: web.Application, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve until the block ends; yields the base URL. Port 0 lets the system pick one."""
    runner = web.AppRunner(
        application,
        access_log=None,
        keepalive_timeout=KEEP_ALIVE_S,
        max_line_size=HEADER_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
        shutdown_timeout=SHUTDOWN_S,
        handler_cancellation=True,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=BACKLOG)
        await site.start()
        bound: Any = runner.addresses[0]  # Any: aiohttp types a socket name loosely
        yield f"http://{host}:{bound[1]}"
    finally:
        await runner.cleanup()


__all__ = [
    "METRICS_KEY",
    "InvalidBody",
    "NotFound",
    "RefusedTooLarge",
    "build_application",
    "json_response",
    "problem_details",
    "read_body",
    "read_json",
    "serve",
]
