"""JSON-RPC 2.0 over HTTP: one POST route, single requests and batches, bounded on the way in and out."""

from typing import Any

import msgspec
from aiohttp import web

from deaios.chain import rpc
from deaios.chain.rpc import RpcFault
from deaios.chain.service.chain import ChainService
from deaios.chain.service.methods import Methods, fault_of
from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import DeaiosError
from deaios.runtime.errors import json_rpc_code
from deaios.runtime.http import build_application as build_http_application
from deaios.runtime.http import read_body

BODY_BYTES_MAX = 8 << 20
BATCH_MAX = 1000
"""Requests in one batch, as geth."""
ANSWER_BYTES_MAX = 25_000_000
"""Bytes in one batch's answers, as geth."""
_SEND = "eth_sendRawTransaction"
_ANY_ORIGIN = {
    # Nothing behind this door is secret or signs for anybody, so that wallets in any page may use it.
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type",
    "Access-Control-Max-Age": "86400",
}

Json = Any  # Any: parsed JSON of a stranger, read by `_answer`


def build_application(chain: ChainService) -> web.Application:
    """The chain's HTTP application: JSON-RPC at `/`, `/healthz`, `/metrics`."""
    methods = Methods(chain)

    async def post(request: web.Request) -> web.Response:
        answer = await answer_body(methods, await read_body(request))
        return web.Response(body=answer, content_type="application/json", headers=_ANY_ORIGIN)

    async def options(_request: web.Request) -> web.Response:
        return web.Response(status=204, headers=_ANY_ORIGIN)

    application = build_http_application("chain", body_bytes_max=BODY_BYTES_MAX, render_error=_render_error)
    application.router.add_post("/", post)
    application.router.add_options("/", options)
    return application


async def answer_body(methods: Methods, body: bytes) -> bytes:
    """The response bytes to a request body; empty when it held notifications only."""
    try:
        validate_json_depth(body)
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, InvalidEncoding) as error:
        return _encode(_failure(None, RpcFault(rpc.PARSE_ERROR, f"parse error: {error}")))
    if not isinstance(parsed, list):
        answer = await _answer(methods, parsed)
        return b"" if answer is None else _encode(answer)
    if not parsed:
        return _encode(_failure(None, RpcFault(rpc.INVALID_REQUEST, "empty batch")))
    if len(parsed) > BATCH_MAX:
        fault = RpcFault(rpc.INVALID_REQUEST, f"batch too large: {len(parsed)} requests, limit {BATCH_MAX}")
        return _encode(_failure(None, fault))
    return await _answer_batch(methods, parsed)


async def _answer_batch(methods: Methods, requests: list[Json]) -> bytes:
    """Answers in order. Runs of raw transactions are admitted together, so that they share one write to disk."""
    answers: list[bytes] = []
    size = index = 0
    while index < len(requests):
        following = index
        while following < len(requests) and _is_send(requests[following]):
            following += 1
        if following > index:
            found = await _answer_sends(methods, requests[index:following])
        else:
            following = index + 1
            answer = await _answer(methods, requests[index])
            found = [] if answer is None else [answer]
        for item in found:
            encoded = _encode(item)
            size += len(encoded)
            if size > ANSWER_BYTES_MAX:
                encoded = _encode(_failure(item.get("id"), RpcFault(-32003, "response too large")))
            answers.append(encoded)
        index = following
    return b"[" + b",".join(answers) + b"]" if answers else b""


def _is_send(request: Json) -> bool:
    return (
        isinstance(request, dict)
        and request.get("method") == _SEND
        and request.get("jsonrpc") == "2.0"
        and _is_id(request.get("id"))
        and request.get("id") is not None
    )


async def _answer_sends(methods: Methods, requests: list[Json]) -> list[dict[str, Json]]:
    try:
        results = await methods.send_many([request.get("params") for request in requests])
    except DeaiosError as error:
        results = [fault_of(error)] * len(requests)
    return [
        _failure(request["id"], result) if isinstance(result, RpcFault) else _success(request["id"], result)
        for request, result in zip(requests, results, strict=True)
    ]


async def _answer(methods: Methods, request: Json) -> dict[str, Json] | None:
    """The response object to one request; None for a notification."""
    if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or not isinstance(request.get("method"), str):
        identity = request.get("id") if isinstance(request, dict) and _is_id(request.get("id")) else None
        return _failure(identity, RpcFault(rpc.INVALID_REQUEST, "invalid request"))
    identity = request.get("id")
    if not _is_id(identity):
        return _failure(None, RpcFault(rpc.INVALID_REQUEST, "invalid request: id is not a number or text"))
    try:
        result = await methods.call(request["method"], request.get("params"))
    except RpcFault as fault:
        answer = _failure(identity, fault)
    except DeaiosError as error:
        answer = _failure(identity, RpcFault(json_rpc_code(error), str(error)))
    else:
        answer = _success(identity, result)
    return answer if "id" in request else None


def _is_id(value: Json) -> bool:
    return value is None or (isinstance(value, int | float | str) and not isinstance(value, bool))


def _success(identity: Json, result: object) -> dict[str, Json]:
    return {"jsonrpc": "2.0", "id": identity, "result": result}


def _failure(identity: Json, fault: RpcFault) -> dict[str, Json]:
    return {"jsonrpc": "2.0", "id": identity, "error": fault.render()}


def _encode(answer: dict[str, Json]) -> bytes:
    return msgspec.json.encode(answer)


def _render_error(_request: web.Request | None, status: int, error: BaseException) -> web.Response:
    """Errors of the transport itself: oversized bodies, wrong methods, our own faults."""
    code = rpc.INTERNAL_ERROR if status >= 500 else rpc.INVALID_REQUEST
    message = "internal fault; the request may be retried" if status >= 500 else str(error)
    body = _encode(_failure(None, RpcFault(code, message)))
    return web.Response(status=status, body=body, content_type="application/json", headers=_ANY_ORIGIN)
