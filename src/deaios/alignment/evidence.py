"""What an accuser lays before a jury, and what a juror commits to.

The evidence of a purchase is its opening and the prompt's token ids: enough to recompute every token, and nothing that
no signature binds. It is public once a dispute is opened (the buyer opens its own receipt). Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deaios.alignment.documents import cut, read_document
from deaios.compute.commitments import commit_prompt, leaf_salt
from deaios.compute.constraint import hash_constraint
from deaios.compute.fingerprints import DISTANCES_MAX, build_fingerprint_root
from deaios.compute.records import NoiseClass
from deaios.compute.verification import Prints
from deaios.ledger.eip712 import Domain, hash_struct, recover_signer
from deaios.ledger.structs import GREEDY, MAX_TOKENS_LIMIT, FinishReason, Judgement, Level, Receipt
from deaios.market.opening import Opening, read_ids
from deaios.market.receipts import commit_result
from deaios.primitives.encoding import encode_canonical_json
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address
from deaios.primitives.merkle import build_root

VERSION = 1
EVIDENCE_BYTES_MAX = 8 << 20
EVIDENCE_TAG = "deaios/evidence/1"
MARGIN_STEP_MILLI = 20
"""Margins are rounded to class F's tolerance, 0.02 logit, so that honest jurors' evidence is comparable."""
_KEYS = frozenset({"version", "opening", "promptIds"})


class InvalidEvidence(Invalid):
    """Evidence that is malformed, or is not about the disputed receipt."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One purchase, opened; what it bought is an answer's ids, or the words of a vector."""

    opening: Opening
    prompt_ids: tuple[int, ...]


def encode_evidence(evidence: Evidence) -> bytes:
    """Canonical bytes, for storage; what the provider stated about prompts is no matter for a jury and left out."""
    opening = replace(evidence.opening, conduct=None)
    return encode_canonical_json(
        {"version": VERSION, "opening": opening.encode_json(), "promptIds": list(evidence.prompt_ids)}
    )


def decode_evidence(data: bytes) -> Evidence:
    """Read evidence strictly: all jurors see the same, because there is one spelling.

    Raises:
        InvalidEvidence: what is wrong.
    """
    try:
        value = read_document(data, EVIDENCE_BYTES_MAX)
        if value.keys() != _KEYS:
            raise InvalidEvidence(cut(f"keys {sorted(value)}, expected {sorted(_KEYS)}"))
        if value["version"] != VERSION:
            raise InvalidEvidence(f"version {value['version']!r:.40}, this program reads {VERSION}")
        evidence = Evidence(Opening.decode_json(value["opening"]), read_ids(value["promptIds"], MAX_TOKENS_LIMIT))
    except Invalid as error:
        raise InvalidEvidence(cut(f"evidence: {error}")) from error
    if encode_evidence(evidence) != data:
        raise InvalidEvidence("evidence is not in its canonical spelling")
    return evidence


def validate_evidence(
    evidence: Evidence, domain: Domain, provider: Address, receipt_digest: bytes, model_record_id: bytes | None
) -> None:
    """Is this the disputed receipt, fully opened, about the model that is checked here (None for any)?

    Raises:
        InvalidEvidence: the rule and both values; a juror then acquits, because nothing was proven.
        InvalidFingerprints: likewise; who was not handed what the root names leaves it out, and ids alone are judged.
        InvalidSignature: a signature is malformed; likewise.
    """
    opening = evidence.opening
    ask, request, receipt, offer = opening.ask, opening.request, opening.receipt, opening.offer
    pairs = (
        ("receipt digest", hash_struct(receipt), receipt_digest),
        ("receipt signer", recover_signer(domain, receipt, opening.receipt_signature), provider),
        ("provider", request.provider, provider),
        ("request digest", receipt.request_digest, hash_struct(request)),
        ("request signer", recover_signer(domain, request, opening.request_signature), ask.buyer),
        ("ask digest", request.ask_digest, hash_struct(ask)),
        ("offer digest", request.offer_digest, hash_struct(offer)),
        ("offer signer", recover_signer(domain, offer, opening.offer_signature), provider),
        ("model record", ask.model_record_id, ask.model_record_id if model_record_id is None else model_record_id),
        ("output commitment", receipt.output_commitment, commit_result(ask.params, opening.output_ids, opening.salt)),
        ("mask hash", ask.params.mask_hash, hash_constraint(opening.constraint)),
        ("prompt commitment", ask.prompt_commitment, commit_prompt(evidence.prompt_ids, opening.salt)),
    )
    root = receipt.fingerprint_root
    if opening.fingerprints:
        root = build_fingerprint_root(opening.fingerprints, len(opening.output_ids))
    for name, found, expected in (*pairs, ("fingerprint root", receipt.fingerprint_root, root)):
        if found != expected:
            raise InvalidEvidence(f"{name} is 0x{found.hex()}, expected 0x{expected.hex()}")
    if ask.prompt_count != len(evidence.prompt_ids):
        raise InvalidEvidence(f"{ask.prompt_count} prompt tokens signed, {len(evidence.prompt_ids)} shown")


def finish_of(receipt: Receipt) -> FinishReason | None:
    """The finish reason that a receipt claims; None for a number that no reason has."""
    return FinishReason(receipt.finish_reason) if receipt.finish_reason in set(FinishReason) else None


def prints_of(opening: Opening, noise_class: NoiseClass) -> Prints | None:
    """The fingerprints that a check holds to, where the opening has any."""
    return Prints(opening.fingerprints, DISTANCES_MAX[noise_class]) if opening.fingerprints else None


def is_promised(opening: Opening) -> bool:
    """Did the provider promise tokens that can be recomputed? Levels 0 and 1 mostly do not.

    The higher of what was offered and what the receipt says counts, so that no receipt shields a cheat by a low level.
    """
    level = max(opening.offer.level, opening.receipt.level)
    return level >= Level.SEEDED or (level == Level.GREEDY and opening.ask.params.temperature_milli == GREEDY)


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
    """The verdict of docs/spec/protocol.md §4: a violated margin convicts only when exact replay fails too.

    Args:
        margins_hold: no token broke its rule.
        replay_equal: exact replay gave the output and its end; None when replay could not be had, which acquits here.
    """
    return Judgement.GUILTY if not margins_hold and replay_equal is False else Judgement.ACQUIT
