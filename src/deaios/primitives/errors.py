"""Whose fault an error is: the one question every caller, log line and HTTP status depends on.

Every error that crosses a module's edge derives from one of four classes. `assert` is for our own faults only, never
for outside data.
"""


class DeaiosError(Exception):
    """Root of all typed errors; never raised itself."""


class Invalid(DeaiosError):
    """The peer's fault: what it sent breaks a stated rule. Retrying the same bytes cannot help."""


class Unavailable(DeaiosError):
    """The world's fault: a peer, disk or deadline failed. A bounded retry may help."""


class Refused(DeaiosError):
    """Policy: the request is well formed and we decline it. The message says what would be accepted."""


class ConfigError(DeaiosError):
    """The operator's fault. The message names the key and the fix."""
