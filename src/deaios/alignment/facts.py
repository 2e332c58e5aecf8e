"""Statements that a check makes, each under the head that it rests on (docs/spec/protocol.md §7).

Pure. A fact says no more than what was computed; what nobody computed is no fact.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from deaios.compute.verification import Report
from deaios.ledger.eip712 import Domain, recover_signer
from deaios.market.conduct import PrivacyFact
from deaios.primitives.encoding import Json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address


class Head(Enum):
    """On what a fact rests."""

    PROVEN = "proven"
    OPERATOR = "trusts the network's operator"
    GATEWAY = "trusts the gateway"
    PROMISED = "promised by the provider, and nothing would notice"
    HARDWARE = "trusts the hardware's maker"


class Outcome(Enum):
    """How a check ended; the value is the exit code of `deaios verify`."""

    VERIFIED = 0
    VIOLATED = 1
    UNCHECKED = 2


@dataclass(frozen=True, slots=True)
class Fact:
    """One checked statement.

    Attributes:
        rule: short name of the rule, stable for scripts.
        holds: False when it was broken.
        says: the statement, or how it was broken with both values.
    """

    head: Head
    rule: str
    holds: bool
    says: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check found; `headline` is its last line, `privacy` is said of no file with a broken rule."""

    outcome: Outcome
    facts: tuple[Fact, ...]
    headline: str
    report: Report | None = None
    privacy: tuple[PrivacyFact, ...] = ()

    def by_head(self) -> list[tuple[Head, list[Fact]]]:
        """Facts under the heads that they rest on, in order."""
        return [(head, facts) for head in Head if (facts := [fact for fact in self.facts if fact.head is head])]

    def to_json(self) -> Json:
        """For scripts."""
        return {
            "outcome": self.outcome.name.lower(),
            "headline": self.headline,
            "tokensChecked": self.report.tokens_checked if self.report else 0,
            "marginMax": f"{self.report.margin_max:.6f}" if self.report else None,
            "privacy": [{"fact": fact.fact, "kind": fact.kind.value, "says": fact.says} for fact in self.privacy],
            "facts": [
                {"rests_on": fact.head.value, "rule": fact.rule, "holds": fact.holds, "says": fact.says}
                for fact in self.facts
            ],
        }


def find_broken(facts: Iterable[Fact]) -> Fact | None:
    """The first broken fact: what to name."""
    return next((fact for fact in facts if not fact.holds), None)


def collect(*steps: Iterator[Fact]) -> list[Fact]:
    """Run steps in order up to and including the first broken fact; a part that no rule can read is one too."""
    facts: list[Fact] = []
    for step in steps:
        try:
            for fact in step:
                facts.append(fact)
                if not fact.holds:
                    return facts
        except Invalid as error:
            facts.append(Fact(Head.PROVEN, "form", False, str(error)))
            return facts
    return facts


def state(rule: str, holds: bool, says: str) -> Fact:
    """A proven fact whose words show both values and so are true either way."""
    return Fact(Head.PROVEN, rule, holds, says)


def compare(rule: str, says: str, found: bytes, expected: bytes) -> Fact:
    """A proven fact: two byte strings are equal."""
    if found == expected:
        return Fact(Head.PROVEN, rule, True, says)
    return Fact(
        Head.PROVEN, rule, False, f"not so: {says} ({encode_hex(found)} found, {encode_hex(expected)} expected)"
    )


def check_signer(rule: str, says: str, domain: Domain, struct: object, signature: bytes, expected: Address) -> Fact:
    """A proven fact: a struct is signed by a key."""
    try:
        signer = recover_signer(domain, struct, signature)
    except Invalid as error:
        return Fact(Head.PROVEN, rule, False, f"not so: {says} ({error})")
    return compare(rule, says, signer, expected)
