"""Receipts: what a provider signs about a purchase, and every check a buyer makes before it pays more.

Pure. Invariants: a fee above zero stands only on a served purchase, or on one the buyer cancelled by its signature, up
to the tokens it acknowledged; the fee follows from the signed offer; output, counts and prices are recomputed, never
believed. It cannot see gaps between receipts: batches and the chain do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.compute.commitments import commit_embedding, commit_output
from deaios.compute.constraint import validate_constraint_hash
from deaios.compute.embedding import InvalidVector, decode_vector, is_embedding
from deaios.compute.fingerprints import InvalidFingerprints, build_fingerprint_root, owes_fingerprints
from deaios.ledger.eip712 import Domain, hash_struct, recover_signer
from deaios.ledger.structs import Ask, FinishReason, Offer, Params, Receipt, Request, State
from deaios.market.opening import Opening
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32
from deaios.primitives.units import compute_fee

_FINISHED = frozenset({FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH})


COUNTER_MAX = (1 << 63) - 1
"""Journals keep counters as 64-bit signed integers; no provider signs so many receipts."""


class InvalidReceipt(Invalid):
    """A receipt that its purchase does not support: the provider errs or lies."""


class InvalidRequest(Invalid):
    """Ask, request, offer and signatures that do not belong together."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a purchase ended, before it is numbered.

    Attributes:
        state: what became of it.
        finish_reason: why the output ended.
        stop_index: which stop string, where one ended it.
        output_ids: what the receipt covers; empty where nothing is charged.
        started_at_ms: admission.
        first_token_at_ms: 0 without a token.
        finished_at_ms: the end.
        cached_tokens: ids of the prompt that were read for an earlier purchase of the same payer.
        fingerprints: one leaf for each of the ids, where the ask is owed them.
    """

    state: State
    finish_reason: FinishReason
    stop_index: int
    output_ids: tuple[int, ...]
    started_at_ms: int
    first_token_at_ms: int
    finished_at_ms: int
    cached_tokens: int = 0
    fingerprints: bytes = b""


@dataclass(frozen=True, slots=True)
class Link:
    """Where the next receipt attaches: counter and digest of the last one, and the channel's total."""

    counter: int
    digest: bytes
    charged: int


FIRST_LINK = Link(counter=0, digest=ZERO32, charged=0)


def commit_result(params: Params, ids: Sequence[int], salt: bytes) -> bytes:
    """What a receipt says of a result: sampled ids, or the words of a vector where the parameters ask for one."""
    return commit_embedding(ids, salt) if is_embedding(params) else commit_output(ids, salt)


def commit_fingerprints(ask: Ask, data: bytes, count: int) -> bytes:
    """The fingerprint root that a receipt of so many ids has to name: zero where the ask is owed none.

    Raises:
        InvalidFingerprints: not one leaf for each id, or leaves that nobody is owed.
    """
    if owes_fingerprints(ask):
        return build_fingerprint_root(data, count)
    if data:
        raise InvalidFingerprints(f"{len(data)} bytes of fingerprints for an ask of level {ask.min_level}")
    return ZERO32


def count_billed(params: Params, ids: Sequence[int]) -> int:
    """Output tokens that are paid for: of a vector none."""
    return 0 if is_embedding(params) else len(ids)


def compute_fee_due(offer: Offer, state: int, prompt_tokens: int, output_tokens: int) -> int:
    """The only fee a receipt of this state may carry; a cancel before any token is free."""
    if state == State.SERVED or (state == State.CANCELLED and output_tokens > 0):
        return compute_fee(prompt_tokens, output_tokens, offer.input_price, offer.output_price)
    return 0


def build_receipt(
    ask: Ask, salt: bytes, request: Request, offer: Offer, delivery: Delivery, link: Link, batch_deadline_block: int
) -> Receipt:
    """The receipt that follows `link`; the caller journals it before it signs it."""
    tokens = count_billed(ask.params, delivery.output_ids)
    fee = compute_fee_due(offer, delivery.state, ask.prompt_count, tokens)
    return Receipt(
        request_digest=hash_struct(request),
        counter=link.counter + 1,
        prev_receipt=link.digest,
        output_commitment=commit_result(ask.params, delivery.output_ids, salt),
        prompt_tokens=ask.prompt_count,
        cached_tokens=delivery.cached_tokens,
        completion_tokens=tokens,
        finish_reason=delivery.finish_reason,
        stop_index=delivery.stop_index,
        state=delivery.state,
        level=offer.level,
        engine_profile=offer.engine_profile,
        fingerprint_root=commit_fingerprints(ask, delivery.fingerprints, len(delivery.output_ids)),
        fee=fee,
        channel_id=request.channel_id,
        charged_cumulative=link.charged + fee,
        batch_deadline_block=batch_deadline_block,
        started_at_ms=delivery.started_at_ms,
        first_token_at_ms=delivery.first_token_at_ms,
        finished_at_ms=delivery.finished_at_ms,
    )


def validate_opening(domain: Domain, opening: Opening, acknowledged: int | None = None) -> None:
    """Check that an opening's parts belong together and that its receipt is what the purchase supports.

    Args:
        domain: the network's protocol domain.
        opening: as received or loaded.
        acknowledged: tokens of the cancel that the buyer signed, None where it signed none or it is not known.

    Raises:
        InvalidRequest, InvalidConstraint: the buyer's side does not hold together.
        InvalidReceipt: the provider's side does not.
        InvalidSignature: a signature is malformed.
    """
    ask, request, offer = opening.ask, opening.request, opening.offer
    buyer = recover_signer(domain, request, opening.request_signature)
    if buyer != ask.buyer:
        raise InvalidRequest(f"request is signed by 0x{buyer.hex()}, the ask names buyer 0x{ask.buyer.hex()}")
    if request.ask_digest != hash_struct(ask):
        raise InvalidRequest("request is for another ask")
    if request.offer_digest != hash_struct(offer):
        raise InvalidRequest("request refers to another offer")
    if request.provider != offer.provider or offer.model_record_id != ask.model_record_id:
        raise InvalidRequest("offer is of another provider or model than the request asks for")
    validate_constraint_hash(opening.constraint, ask.params.mask_hash)
    seller = recover_signer(domain, offer, opening.offer_signature)
    if seller != offer.provider:
        raise InvalidRequest(f"offer of 0x{offer.provider.hex()} is signed by 0x{seller.hex()}")
    validate_receipt(domain, opening, acknowledged)


def validate_receipt(domain: Domain, opening: Opening, acknowledged: int | None = None) -> None:
    """Check the receipt alone, against a request this buyer made itself.

    Raises:
        InvalidReceipt: the rule and both values.
    """
    receipt, request, offer = opening.receipt, opening.request, opening.offer
    signer = recover_signer(domain, receipt, opening.receipt_signature)
    if signer != request.provider:
        raise InvalidReceipt(f"receipt is signed by 0x{signer.hex()}, provider is 0x{request.provider.hex()}")
    _expect("request digest", receipt.request_digest, hash_struct(request))
    _expect("channel id", receipt.channel_id, request.channel_id)
    _expect(
        "output commitment",
        receipt.output_commitment,
        commit_result(opening.ask.params, opening.output_ids, opening.salt),
    )
    try:
        root = commit_fingerprints(opening.ask, opening.fingerprints, len(opening.output_ids))
    except InvalidFingerprints as error:
        raise InvalidReceipt(str(error)) from error
    _expect("fingerprint root", receipt.fingerprint_root, root)
    _expect("prompt tokens", receipt.prompt_tokens, opening.ask.prompt_count)
    billed = count_billed(opening.ask.params, opening.output_ids)
    _expect("completion tokens", receipt.completion_tokens, billed)
    _expect("engine profile", receipt.engine_profile, offer.engine_profile)
    _expect("level", receipt.level, offer.level)
    if receipt.counter < 1:
        raise InvalidReceipt("receipt counter is 0, the first is 1")
    if receipt.counter > COUNTER_MAX:
        raise InvalidReceipt(f"receipt counter {receipt.counter} exceeds {COUNTER_MAX}")
    if receipt.cached_tokens > receipt.prompt_tokens:
        raise InvalidReceipt(f"{receipt.cached_tokens} cached tokens of {receipt.prompt_tokens} prompt tokens")
    if is_embedding(opening.ask.params):
        _validate_vector(receipt, opening.output_ids)
    if receipt.state != State.SERVED or not is_embedding(opening.ask.params):
        _validate_finish(opening, acknowledged)
    due = compute_fee_due(offer, receipt.state, receipt.prompt_tokens, receipt.completion_tokens)
    _expect("fee", receipt.fee, due)
    if receipt.fee > request.max_fee:
        raise InvalidReceipt(f"fee {receipt.fee} exceeds the request's maximum {request.max_fee}")
    if receipt.charged_cumulative < receipt.fee:
        raise InvalidReceipt(f"charged total {receipt.charged_cumulative} is below the fee {receipt.fee}")


def _validate_finish(opening: Opening, acknowledged: int | None) -> None:
    receipt, params = opening.receipt, opening.ask.params
    tokens = receipt.completion_tokens
    if tokens > params.max_tokens:
        raise InvalidReceipt(f"{tokens} tokens exceed the ask's maximum {params.max_tokens}")
    if receipt.state == State.SERVED:
        if receipt.finish_reason not in _FINISHED or tokens == 0:
            raise InvalidReceipt(f"served with finish reason {receipt.finish_reason} after {tokens} tokens")
        if receipt.finish_reason == FinishReason.LENGTH and tokens != params.max_tokens:
            raise InvalidReceipt(f"finished by length after {tokens} tokens, maximum is {params.max_tokens}")
        if receipt.finish_reason == FinishReason.STOP_STRING and receipt.stop_index >= len(params.stop_strings):
            raise InvalidReceipt(f"stop index {receipt.stop_index} of {len(params.stop_strings)} stop strings")
    elif receipt.state == State.CANCELLED:
        if receipt.finish_reason != FinishReason.CANCELLED:
            raise InvalidReceipt(f"cancelled with finish reason {receipt.finish_reason}")
        if acknowledged is not None and tokens > acknowledged:
            raise InvalidReceipt(f"cancelled after {tokens} tokens, the buyer acknowledged {acknowledged}")
    elif receipt.state in (State.REFUSED, State.FAILED_PROVIDER, State.FAILED_CLIENT):
        if receipt.finish_reason != FinishReason.FAILED or tokens:
            raise InvalidReceipt(f"state {receipt.state} with finish reason {receipt.finish_reason}, {tokens} tokens")
    else:
        raise InvalidReceipt(f"unknown state {receipt.state}")


def _validate_vector(receipt: Receipt, words: Sequence[int]) -> None:
    """How a vector's purchase may end, beside what holds for every purchase."""
    if receipt.state != State.SERVED:
        if words:
            raise InvalidReceipt(f"a vector of {len(words)} words was not served, but is covered")
        return
    if receipt.finish_reason != FinishReason.LENGTH or receipt.stop_index:
        said = f"finish reason {receipt.finish_reason} and stop index {receipt.stop_index}"
        raise InvalidReceipt(f"a vector was served with {said}, expected {int(FinishReason.LENGTH)} and 0")
    try:
        decode_vector(words)
    except InvalidVector as error:
        raise InvalidReceipt(str(error)) from error


def _expect(name: str, found: object, expected: object) -> None:
    if found != expected:
        shown = [value.hex() if isinstance(value, bytes) else value for value in (found, expected)]
        raise InvalidReceipt(f"receipt's {name} is {shown[0]}, expected {shown[1]}")
