"""Quotes of real TDX machines, whole and spoilt, at their time and out of it; and what they add to a check."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deaios.alignment.attested import LEVEL_T, add_quote, build_verification, judge_findings
from deaios.alignment.facts import Fact, Head, Outcome, Verification
from deaios.compute.attestation import InvalidQuote, Standing, bind_report, check_quote
from deaios.node.attesting import QuoteFiles
from deaios.primitives.keys import Address

FOLDER = Path(__file__).parent / "tdx"
QUOTE = (FOLDER / "quote.bin").read_bytes()
COLLATERAL = (FOLDER / "collateral.json").read_text()
IN_TIME = int(datetime(2025, 7, 1, tzinfo=UTC).timestamp())
REPORT_DATA = bytes.fromhex(
    "9a9d48e7f6799642d3d1b34e1e5e1742d4bb02dd6ddd551862c1211d35c304f9"
    "eca3efdbb481601c163cf52493d6e44aed55d51ec39b7e518fadb92c2b523f20"
)
ATTRIBUTES_AT = 48 + 120
"""TD attributes: behind the header and five fields of the body (Intel TDX DCAP Quoting Library API, appendix A.3)."""


def check(quote=QUOTE, collateral=COLLATERAL, now_s=IN_TIME, report_data=REPORT_DATA):
    return list(check_quote(quote, collateral, now_s, report_data))


def standings(findings):
    return {found.rule: found.standing for found in findings}


def test_a_genuine_quote_holds_in_every_step():
    findings = check()
    assert standings(findings) == dict.fromkeys(
        ("quote form", "debug", "collateral", "quote signature", "tcb status", "measurements", "report data"),
        Standing.HOLDS,
    )
    assert judge_findings(findings) is Outcome.VERIFIED
    assert build_verification(findings).headline == LEVEL_T


def test_every_spoilt_byte_of_what_is_signed_is_noticed():
    for place in (0, 8, 50, ATTRIBUTES_AT + 4, 48 + 520, 48 + 583, 640, 700, 1300):
        spoilt = bytearray(QUOTE)
        spoilt[place] ^= 0x40
        try:
            findings = check(bytes(spoilt), report_data=None)
        except InvalidQuote:
            continue
        assert standings(findings)["quote signature"] is Standing.BROKEN, place
        assert judge_findings(findings) is Outcome.VIOLATED


def test_a_debug_domain_is_named_whatever_else_is_wrong():
    spoilt = bytearray(QUOTE)
    spoilt[ATTRIBUTES_AT] |= 1
    found = next(item for item in check(bytes(spoilt)) if item.rule == "debug")
    assert found.standing is Standing.BROKEN
    assert "host can read" in found.says


@pytest.mark.parametrize("when", [datetime(2024, 1, 1, tzinfo=UTC), datetime(2026, 11, 28, tzinfo=UTC)])
def test_collateral_of_another_time_is_named_and_never_fine(when):
    findings = check(now_s=int(when.timestamp()))
    assert standings(findings)["collateral"] is Standing.UNCHECKED
    assert "quote signature" not in standings(findings)
    assert judge_findings(findings) is Outcome.UNCHECKED
    assert LEVEL_T not in build_verification(findings).headline


def test_without_collateral_nobody_knows_who_signed():
    findings = check(collateral=None)
    assert standings(findings)["quote signature"] is Standing.UNCHECKED
    assert judge_findings(findings) is Outcome.UNCHECKED


def test_firmware_that_no_level_covers_does_not_pass():
    findings = check(
        (FOLDER / "outdated-quote.bin").read_bytes(),
        (FOLDER / "outdated-collateral.json").read_text(),
        int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()),
        None,
    )
    assert judge_findings(findings) is Outcome.VIOLATED
    assert any("No matching TCB level" in found.says for found in findings)


def test_collateral_of_another_machine_does_not_pass():
    findings = check(collateral=(FOLDER / "outdated-collateral.json").read_text(), now_s=IN_TIME + 245 * 86400)
    assert judge_findings(findings) is Outcome.VIOLATED


def test_what_is_no_tdx_quote_is_refused():
    sgx = (FOLDER / "sgx-quote.bin").read_bytes()
    for quote in (b"", b"\0" * 5000, QUOTE[:600], sgx, b"\4\0" * 40_000):
        with pytest.raises(InvalidQuote):
            check(quote)
    for collateral in ("", "{}", json.dumps({"tcb_info": "x"})):
        with pytest.raises(InvalidQuote):
            check(collateral=collateral)


def test_report_data_ties_key_model_and_image():
    key, root, image = Address(bytes(range(20))), b"\1" * 32, b"\2" * 32
    bound = bind_report(key, root, image)
    assert bound.hex() == "d34a8bd1b9adbc5d3568c98994b470b2f935777ea75eb670e403431c28b78bc8" + "00" * 32
    others = {
        bind_report(Address(bytes(20)), root, image),
        bind_report(key, b"\3" * 32, image),
        bind_report(key, root, b"\3" * 32),
    }
    assert len(others | {bound}) == 4
    findings = check(report_data=bound)
    assert standings(findings)["report data"] is Standing.BROKEN
    assert standings(check(report_data=None))["report data"] is Standing.UNCHECKED


VERIFIED = Verification(Outcome.VERIFIED, (Fact(Head.PROVEN, "tokens", True, "all"),), "verified: 9 tokens")
VIOLATED = Verification(Outcome.VIOLATED, (Fact(Head.PROVEN, "tokens", False, "token 3"),), "violation: tokens")
UNPROMISED = Verification(Outcome.UNCHECKED, (), "cannot be checked: level 0")


@pytest.mark.parametrize("answer", [VERIFIED, VIOLATED, UNPROMISED])
def test_a_quote_adds_facts_and_takes_none_away(answer):
    good, broken, unchecked = check(), check(report_data=b"\0" * 64), check(collateral=None)
    for findings in (good, broken, unchecked):
        joined = add_quote(answer, findings)
        assert joined.facts[: len(answer.facts)] == answer.facts
        assert {fact.head for fact in joined.facts[len(answer.facts) :]} == {Head.HARDWARE}
        assert answer.headline in joined.headline
    assert add_quote(answer, good).outcome is answer.outcome, "hardware makes no answer better than it is"
    assert LEVEL_T in add_quote(answer, good).headline
    assert add_quote(answer, broken).outcome is Outcome.VIOLATED
    expected = Outcome.UNCHECKED if answer is VERIFIED else answer.outcome
    assert add_quote(answer, unchecked).outcome is expected
    assert LEVEL_T not in add_quote(answer, broken).headline + add_quote(answer, unchecked).headline


def test_files_come_as_bytes_or_as_text_and_faults_become_findings(tmp_path):
    text = tmp_path / "quote.hex"
    text.write_text("0x" + QUOTE.hex() + "\n")
    files = QuoteFiles(text, FOLDER / "collateral.json", IN_TIME)
    assert files.check(REPORT_DATA) == QuoteFiles(FOLDER / "quote.bin", files.collateral, IN_TIME).check(REPORT_DATA)
    assert judge_findings(files.check(REPORT_DATA)) is Outcome.VERIFIED
    assert standings(files.check_for(Address(bytes(20)), b"\1" * 32, b"\2" * 32))["report data"] is Standing.BROKEN
    assert judge_findings(QuoteFiles(text, files.collateral).check(REPORT_DATA)) is Outcome.UNCHECKED, "long expired"
    assert judge_findings(QuoteFiles(tmp_path / "none").check(None)) is Outcome.UNCHECKED
    big = tmp_path / "big"
    big.write_bytes(b"\0" * 300_000)
    assert judge_findings(QuoteFiles(big).check(None)) is Outcome.VIOLATED
