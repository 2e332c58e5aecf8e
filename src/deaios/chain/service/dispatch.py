"""JSON-RPC 2.0 from bytes to bytes, whatever carries them: single requests, notifications and batches, bounded.

The rules are those of geth's rpc/handler.go: an empty batch and a batch that is too large are one error; a batch whose
answers grow too large is answered with errors from there on, and what was not run yet is not run.
"""

from typing import Any, Protocol

import msgspec

from deaios.chain.rpc import (
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    PRUNED,
    RESPONSE_TOO_LARGE,
    RpcFault,
)
from deaios.chain.service.chain import RefusedPruned
from deaios.chain.service.methods import Methods, fault_of
from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import DeaiosError
from deaios.runtime.errors import json_rpc_code

BATCH_MAX = 1000
"""Requests in one batch, as geth."""
ANSWER_BYTES_MAX = 25_000_000
"""Bytes in one batch's answers, as geth."""
_SEND = "eth_sendRawTransaction"
_SUBSCRIBING = ("eth_subscribe", "eth_unsubscribe")

Json = Any  # Any: parsed JSON of a stranger, read by `_answer`


class Subscriber(Protocol):
    """A connection that can be told of news; HTTP has none."""

    def subscribe(self, params: object) -> str:
        """Begin a subscription; returns its id."""

    def unsubscribe(self, params: object) -> bool:
        """End a subscription."""


async def answer_body(methods: Methods, body: bytes, subscriber: Subscriber | None = None) -> bytes:
    """The response bytes to a request body; empty when it held notifications only."""
    try:
        validate_json_depth(body)
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, InvalidEncoding) as error:
        return encode_failure(RpcFault(PARSE_ERROR, f"parse error: {error}"))
    if not isinstance(parsed, list):
        answer = await _answer(methods, parsed, subscriber)
        return b"" if answer is None else _encode(answer)
    if not parsed:
        return encode_failure(RpcFault(INVALID_REQUEST, "empty batch"))
    if len(parsed) > BATCH_MAX:
        fault = RpcFault(INVALID_REQUEST, f"batch too large: {len(parsed)} requests, limit {BATCH_MAX}")
        return b"[" + _encode(_failure(_first_id(parsed), fault)) + b"]"
    return await _answer_batch(methods, parsed, subscriber)


async def _answer_batch(methods: Methods, requests: list[Json], subscriber: Subscriber | None) -> bytes:
    """Answers in order. Runs of raw transactions are admitted together, so that they share one write to disk."""
    answers: list[bytes] = []
    size = index = 0
    while index < len(requests):
        if size > ANSWER_BYTES_MAX:
            fault = RpcFault(RESPONSE_TOO_LARGE, "response too large")
            answers += [_encode(_failure(_id_of(item), fault)) for item in requests[index:] if not _is_silent(item)]
            break
        following = index
        while following < len(requests) and _is_send(requests[following]):
            following += 1
        if following > index:
            found = await _answer_sends(methods, requests[index:following])
        else:
            following = index + 1
            answer = await _answer(methods, requests[index], subscriber)
            found = [] if answer is None else [answer]
        for item in found:
            encoded = _encode(item)
            size += len(encoded)
            if size > ANSWER_BYTES_MAX:
                encoded = _encode(_failure(item.get("id"), RpcFault(RESPONSE_TOO_LARGE, "response too large")))
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


async def _answer(methods: Methods, request: Json, subscriber: Subscriber | None) -> dict[str, Json] | None:
    """The response object to one request; None for a notification."""
    if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or not isinstance(request.get("method"), str):
        return _failure(_id_of(request), RpcFault(INVALID_REQUEST, "invalid request"))
    identity = request.get("id")
    if not _is_id(identity):
        return _failure(None, RpcFault(INVALID_REQUEST, "invalid request: id is not a number or text"))
    name, params = request["method"], request.get("params")
    try:
        if name in _SUBSCRIBING:
            result: object = _manage(name, params, subscriber)
        else:
            result = await methods.call(name, params)
    except RpcFault as fault:
        answer = _failure(identity, fault)
    except DeaiosError as error:
        code = PRUNED if isinstance(error, RefusedPruned) else json_rpc_code(error)
        answer = _failure(identity, RpcFault(code, str(error)))
    else:
        answer = _success(identity, result)
    return answer if "id" in request else None


def _manage(name: str, params: object, subscriber: Subscriber | None) -> object:
    if subscriber is None:
        raise RpcFault(METHOD_NOT_FOUND, "notifications not supported")
    return subscriber.subscribe(params) if name == _SUBSCRIBING[0] else subscriber.unsubscribe(params)


def _is_id(value: Json) -> bool:
    return value is None or (isinstance(value, int | float | str) and not isinstance(value, bool))


def _id_of(request: Json) -> Json:
    """The id to answer with, where the request may be anything."""
    found = request.get("id") if isinstance(request, dict) else None
    return found if _is_id(found) else None


def _first_id(requests: list[Json]) -> Json:
    return next((found for item in requests if (found := _id_of(item)) is not None), None)


def _is_silent(request: Json) -> bool:
    return isinstance(request, dict) and request.get("jsonrpc") == "2.0" and "id" not in request


def _success(identity: Json, result: object) -> dict[str, Json]:
    return {"jsonrpc": "2.0", "id": identity, "result": result}


def _failure(identity: Json, fault: RpcFault) -> dict[str, Json]:
    return {"jsonrpc": "2.0", "id": identity, "error": fault.render()}


def _encode(answer: dict[str, Json]) -> bytes:
    return msgspec.json.encode(answer)


def encode_failure(fault: RpcFault) -> bytes:
    """A response to something that was no request."""
    return _encode(_failure(None, fault))
