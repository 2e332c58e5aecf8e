"""The one table from typed errors to HTTP statuses, JSON-RPC codes and exit codes."""

from deaios.primitives.errors import ConfigError, Invalid, Refused, Unavailable
from deaios.primitives.keys import InvalidSignature


class InvalidBody(Invalid):
    """A request body that cannot be read as what the route takes."""


class RefusedTooLarge(Refused):
    """More bytes than the stated bound."""


class RefusedEncoding(Refused):
    """A body in a content encoding; bodies come as they are."""


class RefusedHead(Refused):
    """A request's head larger than the stated bound."""


class InvalidRange(Invalid):
    """A `Range` header that RFC 9110 does not allow."""


class RefusedRange(Refused):
    """None of the bytes asked for are there.

    Attributes:
        size_bytes: how many there are.
    """

    def __init__(self, message: str, size_bytes: int) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes


class UnavailableBody(Unavailable):
    """The rest of a request did not arrive in time."""


class RefusedStale(Refused):
    """A signed request outside its time window, or seen before."""


class RefusedBusy(Refused):
    """Every slot is taken; retry later.

    Attributes:
        retry_after_s: when a slot is expected to be free; None where nothing is known.
    """

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefusedPayment(Refused):
    """Not covered by what was paid or promised."""


class RefusedFull(Refused):
    """The disk quota is used up; nothing was stored."""


class NotFound(Refused):
    """No such thing here."""


class UnavailableGone(Unavailable):
    """It was here, and its time is over: asking again does not help."""


_TABLE: tuple[tuple[type[BaseException], int, int, int], ...] = (
    # error, HTTP status, JSON-RPC code, exit code
    (InvalidSignature, 401, -32602, 1),
    (RefusedStale, 401, -32600, 1),
    (UnavailableBody, 408, -32600, 2),
    (RefusedTooLarge, 413, -32600, 1),
    (RefusedEncoding, 415, -32600, 1),
    (RefusedRange, 416, -32600, 1),
    (RefusedHead, 431, -32600, 1),
    (RefusedPayment, 402, -32000, 1),
    (RefusedBusy, 429, -32005, 2),
    (RefusedFull, 507, -32000, 2),
    (NotFound, 404, -32001, 2),
    (UnavailableGone, 410, -32001, 2),
    (Invalid, 400, -32602, 1),
    (Refused, 403, -32000, 1),
    (Unavailable, 503, -32002, 2),
    (ConfigError, 500, -32603, 64),
)

EXIT_UNEXPECTED = 70


def _row(error: BaseException) -> tuple[type[BaseException], int, int, int] | None:
    return next((row for row in _TABLE if isinstance(error, row[0])), None)


def http_status(error: BaseException) -> int:
    """HTTP status for an error; 500 only for our own faults."""
    row = _row(error)
    return row[1] if row else 500


def json_rpc_code(error: BaseException) -> int:
    """JSON-RPC 2.0 error code."""
    row = _row(error)
    return row[2] if row else -32603


def exit_code(error: BaseException) -> int:
    """Process exit code: 1 the input is wrong, 2 it could not be done now, 64 wrong usage, 70 our own fault."""
    row = _row(error)
    return row[3] if row else EXIT_UNEXPECTED
