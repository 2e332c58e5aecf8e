"""Reading quotes and their collateral from files, and checking them at this machine's time or at a named one."""

import re
from dataclasses import dataclass
from pathlib import Path

from deaios.compute.attestation import (
    COLLATERAL_BYTES_MAX,
    QUOTE_BYTES_MAX,
    Finding,
    InvalidQuote,
    Standing,
    bind_report,
    check_quote,
)
from deaios.primitives.errors import ConfigError, DeaiosError, Invalid
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock, SystemClock

_HEX = re.compile(rb"\s*(?:0x)?([0-9a-fA-F\s]+)\s*")


@dataclass(frozen=True, slots=True)
class QuoteFiles:
    """A quote and what it is checked with.

    Attributes:
        quote: file, as bytes or as hexadecimal text.
        collateral: file of Intel's collateral as JSON (`QuoteCollateralV3` of dcap-qvl).
        at_s: Unix time that the collateral is held to; now otherwise.
    """

    quote: Path
    collateral: Path | None = None
    at_s: int | None = None

    def check(self, report_data: bytes | None, clock: Clock | None = None) -> tuple[Finding, ...]:
        """All findings; whatever goes wrong is one of them, so that nothing else is left undone.

        Args:
            report_data: the 64 bytes wanted, or None.
            clock: for now.
        """
        findings: list[Finding] = []
        try:
            collateral = None if self.collateral is None else _read_text(self.collateral)
            now_s = (clock or SystemClock()).now_ms() // 1000 if self.at_s is None else self.at_s
            for found in check_quote(_read_quote(self.quote), collateral, now_s, report_data):
                findings.append(found)  # noqa: PERF402 - those before an error count
        except Invalid as error:
            findings.append(Finding("quote form", Standing.BROKEN, str(error)))
        except DeaiosError as error:
            findings.append(Finding("quote", Standing.UNCHECKED, str(error)))
        return tuple(findings)

    def check_for(self, key: Address, tensors_root: bytes, image: bytes) -> tuple[Finding, ...]:
        """As `check`, for the report data that ties the quote to a receipt key."""
        return self.check(bind_report(key, tensors_root, image))


def _read_quote(path: Path) -> bytes:
    data = _read(path, 3 * QUOTE_BYTES_MAX)
    found = _HEX.fullmatch(data)
    return data if found is None else bytes.fromhex("".join(found.group(1).decode().split()))


def _read_text(path: Path) -> str:
    try:
        return _read(path, COLLATERAL_BYTES_MAX).decode()
    except UnicodeDecodeError as error:
        raise InvalidQuote(f"the collateral {path} is not text") from error


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if len(data) > bytes_max:
        raise InvalidQuote(f"{path} is larger than {bytes_max} bytes")
    return data
