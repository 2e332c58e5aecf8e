"""What a juror finds in evidence: the one path from bytes to a judgement.

Whatever the bytes are, the outcome is a finding; only an engine that cannot answer now raises. Evidence that proves
nothing acquits, and the finding says why.
"""

from dataclasses import dataclass

from deaios.alignment.evidence import Evidence, decode_evidence, is_promised, judge, validate_evidence
from deaios.alignment.ports import Recheck
from deaios.compute.embedding import is_embedding
from deaios.ledger.eip712 import Domain
from deaios.ledger.structs import Judgement
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class Charge:
    """What evidence has to be about.

    Attributes:
        domain: of the protocol's signatures.
        provider: the accused.
        receipt_digest: the disputed receipt.
        model_record_id: the model that is checked here; None where any can be.
    """

    domain: Domain
    provider: Address
    receipt_digest: bytes
    model_record_id: bytes | None


@dataclass(frozen=True, slots=True)
class Finding:
    """A judgement, the token margins behind it, and in words why."""

    judgement: Judgement
    margins: tuple[float, ...]
    reason: str


def read_charge(data: bytes, charge: Charge) -> Evidence:
    """Evidence that is about the charge.

    Raises:
        Invalid: it is not; the rule and both values.
    """
    evidence = decode_evidence(data)
    validate_evidence(evidence, charge.domain, charge.provider, charge.receipt_digest, charge.model_record_id)
    return evidence


async def find(data: bytes, charge: Charge, recheck: Recheck) -> Finding:
    """Judge evidence.

    Raises:
        Unavailable: the engine cannot answer now.
        Refused: likewise.
    """
    try:
        evidence = read_charge(data, charge)
        if not is_promised(evidence.opening):
            level = evidence.opening.receipt.level
            return Finding(Judgement.ACQUIT, (), f"a receipt of level {level} does not promise recomputable tokens")
        report = await recheck.check(evidence)
        replay = None if report.ok else await recheck.replay(evidence)
    except Invalid as error:
        return Finding(Judgement.ACQUIT, (), f"the evidence proves nothing: {error}")
    judgement = judge(margins_hold=report.ok, replay_equal=replay)
    if report.ok:
        reason = f"{report.tokens_checked} tokens hold, largest margin {report.margin_max:.4f} logit"
        if is_embedding(evidence.opening.ask.params):
            reason = f"the vector holds, 1 - cosine is {report.margin_max:.2g}"
    else:
        first = report.violations[0]
        said = {True: "gives the output", False: "gives another output", None: "cannot be had here"}[replay]
        reason = f"token {first.position} breaks rule {first.rule} ({first.detail}); exact replay {said}"
        if cached := evidence.opening.receipt.cached_tokens:
            reason += f"; by its receipt the answer was made on {cached} prompt ids read before, the replay on none"
    return Finding(judgement, report.margins, reason)
