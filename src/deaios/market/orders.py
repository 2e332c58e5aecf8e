"""What a buyer wants, and the papers it hands to one provider to get it.

Pure. An order becomes an ask that is the same for every provider; papers add one provider's request, the channel and
the voucher that pay for it. The seed follows from the ask alone, so nobody but the buyer chooses it.
"""

from dataclasses import dataclass

from deaios.compute.commitments import commit_prompt, hash_context
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import Ask, AuditPolicy, ChannelConfig, Level, Params, Request, Voucher
from deaios.market.preferences import Preferences
from deaios.market.question import PLAIN_CHAT, Part, hash_request
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class Order:
    """One wish for output.

    Attributes:
        model_record_id: exactly which model.
        prompt_ids: the rendered prompt.
        params: sampling parameters.
        context: canonical JSON that the prompt was rendered from.
        body: exact bytes the user sent.
        client_nonce: 32 bytes, the user's or drawn for it.
        nonce: 32 bytes, the ask's.
        salt: 32 bytes that hide prompt, context and output in their commitments.
        min_level: weakest receipt acceptable.
        audit_policy: who else may be given the opening.
        provider: buy from this one only.
        excluded: never buy from these.
        logprobs: how many of the most probable tokens are wanted with each sampled one; None for no log probabilities.
            It changes no token and no price, so no signature covers it.
        part: which purchase of the request this is.
        constraint: canonical bytes of what the answer is held to, which `params.mask_hash` binds.
        preferences: which providers the user wants; None for whichever are best.
        quantisation: of the model's weights, from its record, where preferences name some.
        affinity: names the beginning of the prompt; who read it before is preferred. None where nobody is.
        is_hedged: a second provider is asked when the first takes longer than usual; the faster one is paid.
    """

    model_record_id: bytes
    prompt_ids: tuple[int, ...]
    params: Params
    context: bytes
    body: bytes
    client_nonce: bytes
    nonce: bytes
    salt: bytes
    min_level: int = Level.SEEDED
    audit_policy: int = AuditPolicy.BUYER_ONLY
    provider: Address | None = None
    excluded: frozenset[Address] = frozenset()
    logprobs: int | None = None
    part: Part = PLAIN_CHAT
    constraint: bytes | None = None
    preferences: Preferences | None = None
    quantisation: str | None = None
    affinity: bytes | None = None
    is_hedged: bool = False


def build_ask(order: Order, buyer: Address) -> Ask:
    """The ask an order means when `buyer` signs for it."""
    return Ask(
        buyer=buyer,
        model_record_id=order.model_record_id,
        prompt_commitment=commit_prompt(order.prompt_ids, order.salt),
        prompt_count=len(order.prompt_ids),
        context_hash=hash_context(order.context, order.salt),
        params=order.params,
        client_digest=hash_request(order.part, order.client_nonce, order.body),
        min_level=order.min_level,
        audit_policy=order.audit_policy,
        nonce=order.nonce,
    )


@dataclass(frozen=True, slots=True)
class Papers:
    """All that a provider gets with a purchase; the prompt in clear, the context only as its hash.

    Everything is signed or bound by a signed hash, save two: `logprobs` is how many of the most probable tokens are
    wanted with each sampled one; `prefix` is how another provider began the answer to this ask, a hint that is checked
    against this provider's own model and that changes neither the answer nor its price.
    """

    ask: Ask
    salt: bytes
    prompt_ids: tuple[int, ...]
    request: Request
    request_signature: bytes
    channel: ChannelConfig
    voucher: Voucher
    voucher_signature: bytes
    logprobs: int | None = None
    constraint: bytes | None = None
    prefix: tuple[int, ...] = ()

    @property
    def request_digest(self) -> bytes:
        """What names the purchase everywhere."""
        return hash_struct(self.request)
