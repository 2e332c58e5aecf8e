"""What an accuser lays before a jury, and what a juror commits to.

The evidence of a purchase is its opening and the prompt's token ids: enough to recompute every token, and nothing that
no signature binds. It is public once a dispute is opened (the buyer opens its own receipt). Pure.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deaios.compute.commitments import commit_output, commit_prompt, leaf_salt
from deaios.ledger.eip712 import Domain, hash_struct, recover_signer
from deaios.ledger.structs import MAX_TOKENS_LIMIT, Judgement
from deaios.market.opening import Opening, read_ids
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address
from deaios.primitives.merkle import build_root

VERSION = 1
EVIDENCE_BYTES_MAX = 8 << 20
EVIDENCE_TAG = "deaios/evidence/1"
MARGIN_STEP_MILLI = 20
"""Margins are rounded to class F's tolerance, 0.02 logit, so that honest jurors' evidence is comparable."""


class InvalidEvidence(Invalid):
    """Evidence that is malformed, or is not about the disputed receipt."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One purchase, opened."""

    opening: Opening
    prompt_ids: tuple[int, ...]


def encode_evidence(evidence: Evidence) -> bytes:
    """Canonical bytes, for storage."""
    return encode_canonical_json(
        {"version": VERSION, "opening": evidence.opening.encode_json(), "promptIds": list(evidence.prompt_ids)}
    )


def decode_evidence(data: bytes) -> Evidence:
    """Read evidence strictly.

    Raises:
        InvalidEvidence: what is wrong.
    """
    if len(data) > EVIDENCE_BYTES_MAX:
        raise InvalidEvidence(f"evidence has {len(data)} bytes, at most {EVIDENCE_BYTES_MAX} are read")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidEvidence(f"evidence is not JSON: {error}") from error
    if not isinstance(value, Mapping) or value.keys() != {"version", "opening", "promptIds"}:
        raise InvalidEvidence("evidence has other keys than version, opening, promptIds")
    if value["version"] != VERSION:
        raise InvalidEvidence(f"evidence version {value['version']!r:.40}, this program reads {VERSION}")
    try:
        return Evidence(Opening.decode_json(value["opening"]), read_ids(value["promptIds"], MAX_TOKENS_LIMIT))
    except Invalid as error:
        raise InvalidEvidence(str(error)) from error


def validate_evidence(evidence: Evidence, domain: Domain, provider: Address, receipt_digest: bytes) -> None:
    """Is this the disputed receipt, fully opened?

    Raises:
        InvalidEvidence: the rule and both values; a juror then acquits, because nothing was proven.
    """
    opening = evidence.opening
    ask, request, receipt = opening.ask, opening.request, opening.receipt
    pairs = (
        ("receipt digest", hash_struct(receipt), receipt_digest),
        ("receipt signer", recover_signer(domain, receipt, opening.receipt_signature), provider),
        ("provider", request.provider, provider),
        ("request digest", receipt.request_digest, hash_struct(request)),
        ("request signer", recover_signer(domain, request, opening.request_signature), ask.buyer),
        ("ask digest", request.ask_digest, hash_struct(ask)),
        ("output commitment", receipt.output_commitment, commit_output(opening.output_ids, opening.salt)),
        ("prompt commitment", ask.prompt_commitment, commit_prompt(evidence.prompt_ids, opening.salt)),
    )
    for name, found, expected in pairs:
        if found != expected:
            raise InvalidEvidence(f"{name} is 0x{found.hex()}, expected 0x{expected.hex()}")
    if ask.prompt_count != len(evidence.prompt_ids):
        raise InvalidEvidence(f"{ask.prompt_count} prompt tokens signed, {len(evidence.prompt_ids)} shown")


def build_evidence_root(salt: bytes, margins: Sequence[float]) -> bytes:
    """Commit to token margins, rounded and salted so that a verdict cannot be copied.

    Args:
        salt: 32 bytes of whoever commits.
        margins: one per output token, in logit; infinite where a token was impossible.
    """
    leaves = []
    for index, margin in enumerate(margins):
        steps = min(round(margin * 1000 / MARGIN_STEP_MILLI), (1 << 32) - 1) if margin < 1e6 else (1 << 32) - 1
        leaves.append(leaf_salt(salt, "evidence", index) + steps.to_bytes(4))
    return build_root(EVIDENCE_TAG, leaves)


def judge(*, margins_hold: bool, replay_equal: bool | None) -> Judgement:
    """The verdict of PROTOCOL §4: a violated margin convicts only when exact replay fails too.

    Args:
        margins_hold: no token broke its rule.
        replay_equal: exact replay gave the output; None when replay could not be had, which acquits here.
    """
    return Judgement.GUILTY if not margins_hold and replay_equal is False else Judgement.ACQUIT
