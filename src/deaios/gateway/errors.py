"""Typed errors in the words of each door: of the OpenAI or the Anthropic API, or as problem details (RFC 9457).

Every refusal of the OpenAI door is one JSON document with message, type, param and code, and the status that makes SDKs
retry what a retry may help and nothing else. Our own faults say only that they are ours.
"""

from aiohttp import web

from deaios.gateway.messages_wire import MessageError, MessageErrorAnswer
from deaios.gateway.openai_wire import ErrorAnswer, ErrorBody
from deaios.market.fields import InvalidParameter
from deaios.primitives.errors import DeaiosError, Invalid, Refused, Unavailable
from deaios.runtime.errors import InvalidBody, NotFound, RefusedBusy, RefusedPayment, UnavailableBody, http_status
from deaios.runtime.http import json_response, problem_details

RETRY_AFTER_S = 1
PROBLEM_DOORS = ("/blobs",)
"""First parts of paths whose errors are problem details."""
MESSAGE_DOORS = ("/v1/messages",)
"""The same of paths whose errors are the Anthropic API's."""
_MESSAGE_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_TYPES = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_request",
    402: "insufficient_quota",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_encoding",
    431: "headers_too_large",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "service_unavailable",
}


class RefusedKey(Refused):
    """No key, or one that is unknown, revoked or expired."""


class RefusedModel(NotFound):
    """No such model, or not for this key."""


class RefusedBudget(RefusedPayment):
    """The key's budget does not cover the most that a request may cost."""


class RefusedQuota(Refused):
    """The key keeps as much as it may."""


class RefusedRate(RefusedBusy):
    """The key asks for more than its minute allows.

    Attributes:
        retry_s: when it may ask again.
    """

    def __init__(self, message: str, retry_s: int) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class UnavailableMarket(Unavailable):
    """No provider can serve the request as it is; sending it again at once would not help."""


class UnavailableAnswer(Unavailable):
    """The purchase failed on its way; the user was not charged and may try again."""


class UnavailableLogprobs(Unavailable):
    """A provider's stream broke, and with it the log probabilities; the user was not charged and may try again."""


class UnavailableBlobs(Unavailable):
    """Data availability failed in a way that is not the user's fault, whatever it looked like from here."""


class InvalidOutput(Invalid):
    """Tokens, or log probabilities of tokens, that no honest provider sends."""


class InternalFault(DeaiosError):
    """Our own fault, logged where it happened."""


_OWN: tuple[tuple[type[DeaiosError], int, str], ...] = (
    (RefusedKey, 401, "invalid_api_key"),
    (RefusedModel, 404, "model_not_found"),
    (RefusedQuota, 413, "storage_limit_exceeded"),
    (UnavailableMarket, 503, "no_provider"),
    (UnavailableLogprobs, 503, "logprobs_lost"),
    (UnavailableBody, 408, "request_timeout"),
    (InvalidBody, 400, "invalid_json"),
)
"""Errors whose status or code says more than the common table."""


def build_error(status: int, error: BaseException, where: str = "") -> ErrorBody:
    """The error in the API's form.

    Args:
        status: HTTP status.
        error: what was raised.
        where: method and path, for routes that do not exist.
    """
    own = next((row for row in _OWN if isinstance(error, row[0])), None)
    code = own[2] if own else _CODES.get(status, "error")
    param = None
    message = str(error)
    if isinstance(error, InvalidParameter):
        param, code = _clean(error.param), error.code
    elif isinstance(error, web.HTTPNotFound):
        message, code = f"Unknown request URL: {where}", "unknown_url"
    elif isinstance(error, web.HTTPMethodNotAllowed):
        message = f"{where} is not allowed; allowed methods: {', '.join(sorted(error.allowed_methods))}"
    elif isinstance(error, web.HTTPException):
        message = error.reason
    elif status == 500:
        message = "an internal fault was logged; the request may be retried"
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return ErrorBody(_clean(message), kind, param, code)


def status_of(error: BaseException) -> int:
    """HTTP status of an error at this door."""
    own = next((row for row in _OWN if isinstance(error, row[0])), None)
    return own[1] if own else http_status(error)


def render_error(request: web.Request | None, status: int, error: BaseException) -> web.Response:
    """The answer for an error, in its door's words; the signature that `runtime.http.build_application` takes."""
    if isinstance(error, DeaiosError):
        status = status_of(error)
    if request is not None and any(_is_under(request.path, door) for door in PROBLEM_DOORS):
        return problem_details(request, status, error)
    if request is not None and any(_is_under(request.path, door) for door in MESSAGE_DOORS):
        return json_response(MessageErrorAnswer(build_message_error(status, error)), status, _headers(status, error))
    body = build_error(status, error, "" if request is None else f"{request.method} {request.path}")
    return json_response(ErrorAnswer(body), status, _headers(status, error))


def build_message_error(status: int, error: BaseException) -> MessageError:
    """The error in the Anthropic API's form, which has no field for the parameter: its name is in the message."""
    said = build_error(status, error)
    message = said.message
    if said.param is not None and said.param not in message:
        message = f"{said.param}: {message}"
    kind = _MESSAGE_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return MessageError(kind, message)


def _is_under(path: str, door: str) -> bool:
    return path == door or path.startswith(door + "/")


def _headers(status: int, error: BaseException) -> dict[str, str]:
    if isinstance(error, UnavailableMarket):
        return {"x-should-retry": "false"}
    if isinstance(error, RefusedRate):
        return {"Retry-After": str(error.retry_s)}
    if status in (429, 503):
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {}


def _clean(text: str) -> str:
    """Text without lone surrogates, which JSON encoders refuse."""
    return text.encode(errors="replace").decode()
