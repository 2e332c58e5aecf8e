"""Quotes of trusted execution environments: what Intel's signatures say about a machine, and what they do not.

Invariants: every step that was taken is a finding of its own, and a step that could not be taken says so; time comes in
as an argument; nothing here is "fine" that Intel does not call up to date. A quote binds a key to a machine's start-up
measurements. It says nothing about any answer, and so replaces no check of one (docs/spec/attestation.md).

Sources: Intel TDX DCAP Quoting Library API, appendix A (quote formats 4 and 5); Intel TDX Module ABI (TD attributes).
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from types import ModuleType
from typing import Any

from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Unavailable
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import Address

REPORT_TAG = "deaios/tee-report/1"
REPORT_DATA_SIZE = 64
DIGEST_SIZE = 32
QUOTE_BYTES_MAX = 64 << 10
COLLATERAL_BYTES_MAX = 1 << 20
UP_TO_DATE = "UpToDate"
FIX = "install it with: pip install 'deaios[attest]'"
_DEBUG = 0x01
"""TD attributes, bit 0 of TUD: the host may read and change the domain's memory and registers."""
_TIMES = ("expired", "issue date is in the future", "NotValidYet", "CrlExpired")
"""Words of dcap-qvl's errors that are about time and nothing else."""


class InvalidQuote(Invalid):
    """Bytes that are no quote of a TDX domain, or collateral that is none."""


class UnavailableAttestation(Unavailable):
    """The library that checks quotes is not installed."""


class Standing(Enum):
    """How a finding ended."""

    HOLDS = "holds"
    BROKEN = "broken"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Finding:
    """One step of a quote's check; `rule` is stable for scripts."""

    rule: str
    standing: Standing
    says: str


def bind_report(key: Address, tensors_root: bytes, image: bytes) -> bytes:
    """The 64 bytes of report data that tie a quote to a receipt key, a model and a program.

    Args:
        key: address whose signatures receipts carry.
        tensors_root: of the model record that is served.
        image: SHA-256 of the image that the domain runs.
    """
    assert len(key) == 20
    assert len(tensors_root) == len(image) == DIGEST_SIZE
    return tagged_sha256(REPORT_TAG, key, tensors_root, image).ljust(REPORT_DATA_SIZE, b"\0")


def check_quote(quote: bytes, collateral: str | None, now_s: int, report_data: bytes | None) -> Iterator[Finding]:
    """Check a quote without asking anybody.

    Args:
        quote: as the machine's quoting enclave signed it.
        collateral: Intel's certificates, revocation lists and TCB levels as JSON; None where there are none.
        now_s: Unix time that the collateral is held to.
        report_data: the 64 bytes that the quote should carry; None to compare them with nothing.

    Yields:
        every step up to the first that shows the quote to be nobody's.

    Raises:
        InvalidQuote: not a quote of a TDX domain, or collateral that cannot be read.
        UnavailableAttestation: the library is not installed.
    """
    library = _load()
    parsed = _parse(library, quote)
    report: Any = parsed.report  # Any: one of three classes of the library
    yield Finding("quote form", Standing.HOLDS, f"an Intel TDX quote of version {parsed.header.version}")
    is_debug = bool(report.td_attributes[0] & _DEBUG)
    says = "the domain runs in debug mode: its host can read and change everything in it"
    yield _find("debug", not is_debug, says if is_debug else "the domain does not run in debug mode")
    yield from _check_chain(library, quote, collateral, now_s)
    measured = ", ".join(f"{name} {encode_hex(getattr(report, name))}" for name in ("mr_td", "rt_mr0", "rt_mr1"))
    measured += ", " + ", ".join(f"{name} {encode_hex(getattr(report, name))}" for name in ("rt_mr2", "rt_mr3"))
    says = f"the domain measured {measured}; what programs these stand for is for you to compare"
    yield Finding("measurements", Standing.HOLDS, says)
    yield _check_report_data(report.report_data, report_data)


def _check_chain(library: ModuleType, quote: bytes, collateral: str | None, now_s: int) -> Iterator[Finding]:
    """Signatures up to Intel's root, revocation, and how old the machine's firmware is."""
    if collateral is None:
        says = "no collateral is at hand: who signed this quote is not known; anybody can write one"
        yield Finding("quote signature", Standing.UNCHECKED, says)
        return
    when = datetime.fromtimestamp(now_s, UTC).isoformat(" ", "seconds")
    try:
        known = library.QuoteCollateralV3.from_json(collateral)
    except ValueError as error:
        raise InvalidQuote(f"the collateral cannot be read: {error}") from error
    try:
        verified = library.verify(quote, known, now_s)
    except ValueError as error:
        said = " ".join(str(error).split())[:300]
        if any(word in said for word in _TIMES):
            says = f"the collateral says nothing about {when}: {said}; fetch it anew, or name the time that it is for"
            yield Finding("collateral", Standing.UNCHECKED, says)
            return
        yield Finding("quote signature", Standing.BROKEN, f"Intel's chain of signatures does not reach it: {said}")
        return
    yield Finding("collateral", Standing.HOLDS, f"Intel's collateral is valid at {when}")
    yield Finding("quote signature", Standing.HOLDS, "signed by a machine that Intel's root certifies")
    advisories = ", ".join(verified.advisory_ids)
    says = f"Intel calls the machine's firmware {verified.status}" + (f" ({advisories})" if advisories else "")
    yield _find("tcb status", verified.status == UP_TO_DATE, says)


def _check_report_data(found: bytes, wanted: bytes | None) -> Finding:
    if wanted is None:
        says = f"report data {encode_hex(found)} was compared with nothing: the quote is tied to no receipt key"
        return Finding("report data", Standing.UNCHECKED, says)
    if found == wanted:
        return Finding("report data", Standing.HOLDS, f"the quote carries the report data wanted, {encode_hex(found)}")
    says = f"the quote is for another key, model or image: report data {encode_hex(found)}, {encode_hex(wanted)} wanted"
    return Finding("report data", Standing.BROKEN, says)


def _find(rule: str, holds: bool, says: str) -> Finding:
    return Finding(rule, Standing.HOLDS if holds else Standing.BROKEN, says)


def _load() -> ModuleType:
    try:
        return importlib.import_module("dcap_qvl")
    except ModuleNotFoundError as error:
        raise UnavailableAttestation(f"quotes are checked by dcap-qvl, which is not installed; {FIX}") from error


def _parse(library: ModuleType, quote: bytes) -> Any:  # Any: a class of the library, which has no types of its own
    if len(quote) > QUOTE_BYTES_MAX:
        raise InvalidQuote(f"quote of {len(quote)} bytes exceeds {QUOTE_BYTES_MAX}")
    try:
        parsed = library.parse_quote(quote)
    except ValueError as error:
        raise InvalidQuote(f"no quote: {error}") from error
    if not parsed.is_tdx():
        raise InvalidQuote(f"a quote of {parsed.quote_type()}, TDX expected")
    return parsed
