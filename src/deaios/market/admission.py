"""What a provider checks before the first token, in the order of cost.

Pure; the chain's view, the head and the offer are arguments. Every refusal names the rule, both values, and thereby
the fix. Invariant: whatever passes can be judged by strangers later, because each paper binds the next: voucher to
channel, channel to buyer, request to ask, offer and channel, ask to the prompt's ids.
"""

from dataclasses import dataclass

from deaios.compute.commitments import commit_prompt
from deaios.compute.constraint import MASKER, decode_constraint, validate_constraint_hash
from deaios.compute.embedding import is_embedding
from deaios.compute.fingerprints import LEAVES_MAX, owes_fingerprints
from deaios.compute.sampling import validate_params
from deaios.ledger.eip712 import hash_struct, recover_signer
from deaios.ledger.structs import AuditPolicy, Offer
from deaios.market.offers import SignedOffer, compute_quote
from deaios.market.orders import Papers
from deaios.market.terms import Terms
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.keys import Address

DEADLINE_BLOCKS_MAX = 100_000
"""A request may stay good this far ahead of the head; about half a day of 500 ms blocks."""
ANCHOR_BLOCKS_MAX = 100_000
"""How old the block that a request is anchored in may be."""


class InvalidPurchase(Invalid):
    """Papers that do not belong together or break a bound."""


class RefusedPurchase(Refused):
    """Well-formed papers that this provider does not serve; the message says what it would."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """What one provider serves, beside its current offer.

    Attributes:
        vocabulary_size: ids at or above it are refused, because an engine may not survive them.
        withdraw_delay_max: longest channel delay it tracks, seconds.
    """

    vocabulary_size: int
    withdraw_delay_max: int = 30 * 24 * 3600


def validate_tokens(papers: Papers, vocabulary_size: int) -> None:
    """Refuse ids that the engine's vocabulary does not have.

    Raises:
        InvalidPurchase: the largest id and the bound.
    """
    top = max((*papers.prompt_ids, *papers.ask.params.stop_ids, *papers.prefix))
    if top >= vocabulary_size:
        raise InvalidPurchase(f"token id {top} is not below the vocabulary's {vocabulary_size}")


def validate_request(terms: Terms, papers: Papers, provider: Address) -> None:
    """Check that the request is for this provider and signed by the ask's buyer: enough to answer from the journal.

    Raises:
        InvalidPurchase: another provider, ask or signer.
        InvalidSignature: malformed signature.
    """
    request, ask = papers.request, papers.ask
    if request.provider != provider:
        raise InvalidPurchase(f"request is for 0x{request.provider.hex()}, this is 0x{provider.hex()}")
    if request.ask_digest != hash_struct(ask):
        raise InvalidPurchase("request is for another ask than the one sent")
    buyer = recover_signer(terms.protocol, request, papers.request_signature)
    if buyer != ask.buyer:
        raise InvalidPurchase(f"request is signed by 0x{buyer.hex()}, the ask names buyer 0x{ask.buyer.hex()}")


def validate_ask(papers: Papers, offer: Offer, shelf: Shelf) -> None:
    """Check what is asked for against what is offered, down to the prompt's ids.

    Raises:
        InvalidPurchase: a bound or a commitment is broken.
        InvalidParams: a sampling parameter outside the protocol's bounds.
        InvalidConstraint: the constraint is not what the parameters name, or cannot be enforced.
        RefusedPurchase: another model, level or masker than this provider serves.
    """
    ask = papers.ask
    if ask.model_record_id != offer.model_record_id:
        raise RefusedPurchase(
            f"model record 0x{ask.model_record_id.hex()} is not served, 0x{offer.model_record_id.hex()} is"
        )
    if ask.min_level > offer.level:
        raise RefusedPurchase(f"level {ask.min_level} is asked for, {offer.level} is served")
    if owes_fingerprints(ask) and ask.params.max_tokens > LEAVES_MAX:
        raise RefusedPurchase(f"{ask.params.max_tokens} ids are asked for with fingerprints, {LEAVES_MAX} at most")
    if ask.audit_policy not in set(AuditPolicy):
        raise InvalidPurchase(f"unknown audit policy {ask.audit_policy}")
    if not is_embedding(ask.params):
        validate_params(ask.params)
    elif papers.logprobs is not None or papers.constraint is not None:
        raise InvalidPurchase("a vector has no log probabilities and is held to no constraint")
    if not papers.prompt_ids or len(papers.prompt_ids) != ask.prompt_count:
        raise InvalidPurchase(f"{len(papers.prompt_ids)} prompt ids were sent, the ask counts {ask.prompt_count}")
    tokens = ask.prompt_count + ask.params.max_tokens
    if tokens > offer.context_tokens:
        raise RefusedPurchase(f"{tokens} tokens of prompt and answer exceed the context of {offer.context_tokens}")
    if len(papers.prefix) > ask.params.max_tokens:
        raise InvalidPurchase(f"prefix has {len(papers.prefix)} ids, the answer at most {ask.params.max_tokens}")
    validate_tokens(papers, shelf.vocabulary_size)
    if commit_prompt(papers.prompt_ids, papers.salt) != ask.prompt_commitment:
        raise InvalidPurchase("prompt ids and salt do not give the ask's prompt commitment")
    _validate_constraint(papers)


def _validate_constraint(papers: Papers) -> None:
    """Check a constraint as far as is cheap; whether it compiles is found on a thread, before the first token."""
    validate_constraint_hash(papers.constraint, papers.ask.params.mask_hash)
    if papers.constraint is None:
        return
    needed = decode_constraint(papers.constraint).masker
    if needed != MASKER:
        raise RefusedPurchase(f"the answer's masks need {needed[:80]}, this provider has {MASKER}")


def validate_price(papers: Papers, signed_offer: SignedOffer, now_ms: int, head: int) -> int:
    """Check offer, fee cap and deadline.

    Returns:
        The quote to reserve.

    Raises:
        RefusedPurchase: another or an ended offer, a cap below the quote, a deadline outside the range.
    """
    request, offer = papers.request, signed_offer.offer
    if request.offer_digest != signed_offer.digest:
        raise RefusedPurchase(f"request is for another offer; the current one is 0x{signed_offer.digest.hex()}")
    if offer.valid_until <= now_ms:
        raise RefusedPurchase(f"offer ended at {offer.valid_until} ms, now is {now_ms} ms")
    quote = compute_quote(offer, papers.ask.prompt_count, papers.ask.params.max_tokens)
    if request.max_fee < quote:
        raise RefusedPurchase(f"maximum fee {request.max_fee} is below the quote {quote}")
    if not head <= request.deadline_block <= head + DEADLINE_BLOCKS_MAX:
        raise RefusedPurchase(
            f"deadline block {request.deadline_block} is outside {head} to {head + DEADLINE_BLOCKS_MAX}"
        )
    return quote


def validate_anchor(anchor_block: int | None, head: int) -> None:
    """Check that the request's anchor is a block of this chain, and not an old one.

    Raises:
        RefusedPurchase: unknown or too old.
    """
    if anchor_block is None:
        raise RefusedPurchase("anchor block is not known here; anchor in a block of the common chain")
    if anchor_block + ANCHOR_BLOCKS_MAX < head:
        raise RefusedPurchase(f"anchor block {anchor_block} is more than {ANCHOR_BLOCKS_MAX} behind {head}")


def validate_channel(terms: Terms, papers: Papers, offer: Offer, shelf: Shelf) -> None:
    """Check that the channel pays this provider in this money, from this buyer, with time enough to claim.

    Raises:
        InvalidPurchase: ids that do not match.
        RefusedPurchase: another token, receiver or payer, or a withdraw delay out of range.
    """
    config = papers.channel
    channel_id = terms.channel_id(config)
    if papers.request.channel_id != channel_id or papers.voucher.channel_id != channel_id:
        raise InvalidPurchase("channel, request and voucher name different channels")
    if config.token != terms.token:
        raise RefusedPurchase(f"channel holds token 0x{config.token.hex()}, 0x{terms.token.hex()} is accepted")
    if config.receiver != offer.provider:
        raise RefusedPurchase(f"channel pays 0x{config.receiver.hex()}, this is 0x{offer.provider.hex()}")
    if config.receiver_authorizer != offer.provider:
        raise RefusedPurchase("receiver authorizer of the channel must be the provider, so that it alone may refund")
    if config.payer_authorizer != papers.ask.buyer:
        raise RefusedPurchase("payer authorizer of the channel must be the buyer, whose key signs the vouchers")
    if not offer.withdraw_delay_min <= config.withdraw_delay <= shelf.withdraw_delay_max:
        raise RefusedPurchase(
            f"withdraw delay {config.withdraw_delay} s is outside "
            f"{offer.withdraw_delay_min} to {shelf.withdraw_delay_max} s"
        )


def validate_voucher(terms: Terms, papers: Papers) -> None:
    """Check the voucher's signature.

    Raises:
        InvalidPurchase: signed by another key.
        InvalidSignature: malformed.
    """
    signer = recover_signer(terms.vouchers, papers.voucher, papers.voucher_signature)
    expected = papers.channel.payer_authorizer
    if signer != expected:
        raise InvalidPurchase(f"voucher is signed by 0x{signer.hex()}, expected 0x{expected.hex()}")
