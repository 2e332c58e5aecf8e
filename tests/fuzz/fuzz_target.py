"""What a target of the fuzzers is, and what is asked of it. Not a test module."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from deaios.primitives import encoding
from deaios.primitives.errors import DeaiosError


@dataclass(frozen=True)
class Target:
    """One decoder.

    Attributes:
        name: for people and for the command that repeats a finding.
        decode: takes the bytes.
        covers: the decoders behind it, as `module.function` below `deaios`.
        seeds: valid inputs to start from.
        encode: the canonical spelling of a value, where there is one.
        refuses: error types beside `DeaiosError` that are typed refusals too.
    """

    name: str
    decode: Callable[[bytes], object]
    covers: tuple[str, ...]
    seeds: tuple[bytes, ...] = ()
    encode: Callable[[object], bytes] | None = None
    refuses: tuple[type[Exception], ...] = field(default=())


class Broken(AssertionError):
    """A decoder broke its promise."""


def check(target: Target, data: bytes) -> bool:
    """Whether the bytes were accepted.

    Raises:
        Broken: an error without a type, or a second spelling.
    """
    try:
        value = target.decode(data)
    except (DeaiosError, *target.refuses) as error:
        if not str(error).isprintable() and len(str(error)) > 10_000:
            raise Broken(f"{target.name}: an error message of {len(str(error))} characters") from error
        return False
    except Exception as error:
        raise Broken(f"{target.name}: {type(error).__name__}: {str(error)[:300]} on {data[:200]!r}") from error
    if target.encode is not None and target.encode(value) != data:
        raise Broken(f"{target.name}: accepts a second spelling {data[:300]!r} of {target.encode(value)[:300]!r}")
    return True


class Skipped(DeaiosError):
    """Bytes that the layer before the decoder does not let through."""


def as_json(data: bytes) -> object:
    """Bytes as the JSON value that a decoder of values gets."""
    try:
        encoding.validate_json_depth(data)
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise Skipped(str(error)) from error


def as_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass") if data.isascii() else data.decode("utf-8", "surrogateescape")


def as_typed(kind: type, read: Callable[[object], object]) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        try:
            value = msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise Skipped(str(error)) from error
        return read(value)

    return decode
