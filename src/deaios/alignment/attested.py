"""A quote's findings as facts of a check, under a head of their own.

Invariant: facts about hardware are added to what was computed and take nothing away: a good quote makes no broken
answer whole, and a broken quote hides no check. Level T is said where every finding holds, and nowhere else. Pure.
"""

from collections.abc import Sequence
from dataclasses import replace

from deaios.alignment.facts import Fact, Head, Outcome, Verification
from deaios.compute.attestation import Finding, Standing

LEVEL_T = "level T: an up-to-date TDX machine vouches for the key"


def list_facts(findings: Sequence[Finding]) -> tuple[Fact, ...]:
    """Findings as facts; what could not be checked does not hold, and says so."""
    return tuple(
        Fact(
            Head.HARDWARE,
            found.rule,
            found.standing is Standing.HOLDS,
            found.says if found.standing is not Standing.UNCHECKED else f"not checked: {found.says}",
        )
        for found in findings
    )


def judge_findings(findings: Sequence[Finding]) -> Outcome:
    """Broken before unchecked before whole."""
    standings = {found.standing for found in findings}
    if Standing.BROKEN in standings:
        return Outcome.VIOLATED
    return Outcome.UNCHECKED if Standing.UNCHECKED in standings or not findings else Outcome.VERIFIED


def build_verification(findings: Sequence[Finding]) -> Verification:
    """A quote looked at by itself."""
    outcome = judge_findings(findings)
    broken = _first(findings, outcome)
    headlines = {
        Outcome.VERIFIED: LEVEL_T,
        Outcome.VIOLATED: f"violation: {broken}",
        Outcome.UNCHECKED: f"cannot be checked: {broken}",
    }
    return Verification(outcome, list_facts(findings), headlines[outcome])


def add_quote(found: Verification, findings: Sequence[Finding]) -> Verification:
    """A check of an answer with a quote beside it."""
    facts = (*found.facts, *list_facts(findings))
    quote = judge_findings(findings)
    match quote:
        case Outcome.VERIFIED:
            return replace(found, facts=facts, headline=f"{found.headline}; {LEVEL_T}")
        case Outcome.VIOLATED:
            headline = f"violation: {_first(findings, quote)}; of the answer itself: {found.headline}"
            return replace(found, facts=facts, headline=headline, outcome=Outcome.VIOLATED)
        case Outcome.UNCHECKED:
            headline = f"{found.headline}; the quote was not checked: {_first(findings, quote)}"
            outcome = Outcome.UNCHECKED if found.outcome is Outcome.VERIFIED else found.outcome
            return replace(found, facts=facts, headline=headline, outcome=outcome)


def _first(findings: Sequence[Finding], outcome: Outcome) -> str:
    wanted = Standing.BROKEN if outcome is Outcome.VIOLATED else Standing.UNCHECKED
    found = next((found for found in findings if found.standing is wanted), None)
    return f"{found.rule}: {found.says}" if found is not None else ""
