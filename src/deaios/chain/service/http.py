"""JSON-RPC over HTTP: one POST route for requests and batches, and the way to WebSocket by GET on the same path."""

from aiohttp import web

from deaios.chain import rpc
from deaios.chain.rpc import RpcFault
from deaios.chain.service.chain import ChainService
from deaios.chain.service.dispatch import answer_body, encode_failure
from deaios.chain.service.methods import Methods
from deaios.chain.service.subscriptions import Newsroom
from deaios.chain.service.time_travel import MovedClock
from deaios.chain.service.websocket import WebSockets
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import build_application as build_http_application
from deaios.runtime.http import read_body

BODY_BYTES_MAX = 8 << 20
_ANY_ORIGIN = {
    # Nothing behind this door is secret or signs for anybody, so that wallets in any page may use it.
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type",
    "Access-Control-Max-Age": "86400",
}


def build_application(chain: ChainService, moved_clock: MovedClock | None = None) -> web.Application:
    """The chain's HTTP application: JSON-RPC at `/`, `/healthz`, `/metrics`.

    Args:
        chain: what it serves.
        moved_clock: the chain's clock, where strangers may move it by dev_* methods.
    """
    methods, newsroom = Methods(chain, moved_clock), Newsroom()
    sockets = WebSockets(methods, newsroom, SystemDice())
    chain.listeners.add(newsroom)

    async def post(request: web.Request) -> web.Response:
        answer = await answer_body(methods, await read_body(request))
        return web.Response(body=answer, content_type="application/json", headers=_ANY_ORIGIN)

    async def get(request: web.Request) -> web.StreamResponse:
        """A WebSocket; or nothing, which tells a health check that somebody is here, as geth does."""
        if "upgrade" not in request.headers.get("Connection", "").lower():
            return web.Response(headers=_ANY_ORIGIN)
        return await sockets.serve(request)

    async def options(_request: web.Request) -> web.Response:
        return web.Response(status=204, headers=_ANY_ORIGIN)

    async def end(_application: web.Application) -> None:
        chain.sealed.close()
        await sockets.close()

    application = build_http_application("chain", body_bytes_max=BODY_BYTES_MAX, render_error=_render_error)
    application.router.add_post("/", post)
    application.router.add_get("/", get, allow_head=False)
    application.router.add_options("/", options)
    application.on_shutdown.append(end)
    return application


def _render_error(_request: web.Request | None, status: int, error: BaseException) -> web.Response:
    """Errors of the transport itself: oversized bodies, wrong methods, our own faults."""
    code = rpc.INTERNAL_ERROR if status >= 500 else rpc.INVALID_REQUEST
    message = "internal fault; the request may be retried" if status >= 500 else str(error)
    body = encode_failure(RpcFault(code, message))
    return web.Response(status=status, body=body, content_type="application/json", headers=_ANY_ORIGIN)
