"""What a check of an answer says, fact by fact, under three heads, never more than is true.

Pure: the chain's view and the engine's report come in as values. Facts come in an order in which each relies only on
those before it, so the first that fails names what broke.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from deaios.alignment.answer import Answer
from deaios.compute.commitments import commit_output, commit_prompt, hash_client, hash_context
from deaios.compute.generation import read_output
from deaios.compute.records import ModelRecord
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report
from deaios.ledger.eip712 import Domain, hash_struct, recover_signer
from deaios.ledger.structs import Level, State
from deaios.market.chat import context_of, read_chat_body
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address, checksum_address
from deaios.primitives.merkle import verify_leaf
from deaios.primitives.units import compute_fee, format_credit

RECEIPTS_TAG = "deaios/receipts/1"


class Head(Enum):
    """On what a fact rests."""

    PROVEN = "proven"
    OPERATOR = "trusts the network's operator"
    GATEWAY = "trusts the gateway"


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
class BatchView:
    """A receipt batch as the chain tells it."""

    first_counter: int
    last_counter: int
    root: bytes


@dataclass(frozen=True, slots=True)
class ChainView:
    """What the chain says about an answer's provider; `batch` is None when it knows no such batch."""

    batch: BatchView | None
    provider_is_registered: bool
    provider_stake: int
    provider_is_paused: bool
    height: int


def check_binding(answer: Answer, network_id: bytes, domain: Domain) -> Iterator[Fact]:
    """Signatures and digests: who promised what to whom."""
    opening = answer.opening
    ask, request, receipt = opening.ask, opening.request, opening.receipt
    yield _compare("network", "the answer belongs to this network", answer.network, network_id)
    yield _compare(
        "client digest",
        "the request covers exactly this body and nonce",
        ask.client_digest,
        hash_client(answer.client_nonce, answer.body),
    )
    yield _compare("ask digest", "the buyer ordered exactly this ask", request.ask_digest, hash_struct(ask))
    yield _signed(
        "request signature", "the buyer signed the order", domain, request, opening.request_signature, ask.buyer
    )
    yield _compare("offer digest", "the order names this price", request.offer_digest, hash_struct(opening.offer))
    yield _signed(
        "offer signature",
        "the provider posted this price",
        domain,
        opening.offer,
        opening.offer_signature,
        request.provider,
    )
    yield _compare("offer model", "the price is for this model", opening.offer.model_record_id, ask.model_record_id)
    yield _compare("offer provider", "the price is this provider's", opening.offer.provider, request.provider)
    yield _compare("request digest", "the receipt answers this order", receipt.request_digest, hash_struct(request))
    yield _signed(
        "receipt signature",
        "the provider signed the receipt",
        domain,
        receipt,
        opening.receipt_signature,
        request.provider,
    )
    yield _compare("channel", "receipt and order name one channel", receipt.channel_id, request.channel_id)
    yield _fact(
        "level",
        ask.min_level <= receipt.level <= max(Level),
        f"the receipt claims level {receipt.level}, at least {ask.min_level} was asked for",
    )
    yield _fact("state", receipt.state == State.SERVED, f"the receipt's state is {_name(State, receipt.state)}")


def check_question(answer: Answer, record: ModelRecord, tokenizer: Tokenizer, template: ChatTemplate) -> Iterator[Fact]:
    """The question as signed is the question as asked: body, messages, parameters, token ids."""
    ask, salt = answer.opening.ask, answer.opening.salt
    yield _compare("template", "the chat template is the record's", template.template_hash, record.template_hash)
    yield _compare("tokenizer", "the tokenizer is the record's", tokenizer.tokenizer_hash, record.tokenizer_hash)
    chat = read_chat_body(answer.body)
    context = context_of(chat, template.template_hash)
    yield _compare("context", "the order covers these messages", ask.context_hash, hash_context(context, salt))
    ids = template.render_ids(chat.message_objects(), tokenizer)
    yield _compare("prompt", "the order covers these token ids", ask.prompt_commitment, commit_prompt(ids, salt))
    yield _fact(
        "prompt count", ask.prompt_count == len(ids), f"{ask.prompt_count} prompt tokens signed, {len(ids)} counted"
    )
    wanted = chat.params(record.context_tokens, len(ids))
    yield _fact("parameters", ask.params == wanted, f"signed parameters {ask.params} are the body's {wanted}")
    yield _fact("policy", ask.min_level == chat.min_level, f"level {ask.min_level} ordered, {chat.min_level} asked for")
    yield _fact(
        "audit policy",
        ask.audit_policy == chat.audit_policy,
        f"audit policy {ask.audit_policy} ordered, {chat.audit_policy} asked for",
    )


def check_delivery(answer: Answer, tokenizer: Tokenizer) -> Iterator[Fact]:
    """Counts, fee and text are what the output ids say."""
    opening = answer.opening
    ask, receipt, offer, ids = opening.ask, opening.receipt, opening.offer, opening.output_ids
    yield _compare(
        "output", "the receipt covers these output ids", receipt.output_commitment, commit_output(ids, opening.salt)
    )
    yield _fact(
        "completion count",
        receipt.completion_tokens == len(ids),
        f"{receipt.completion_tokens} output tokens billed, {len(ids)} counted",
    )
    yield _fact(
        "prompt bill",
        receipt.prompt_tokens == ask.prompt_count,
        f"{receipt.prompt_tokens} prompt tokens billed, {ask.prompt_count} counted",
    )
    fee = compute_fee(receipt.prompt_tokens, receipt.completion_tokens, offer.input_price, offer.output_price)
    yield _fact(
        "fee",
        receipt.fee == fee <= opening.request.max_fee,
        f"fee {format_credit(receipt.fee)} billed, {format_credit(fee)} by the posted price, "
        f"at most {format_credit(opening.request.max_fee)} agreed",
    )
    text = read_output(ids, ask.params, tokenizer)
    yield _fact("text", answer.text == text, "the text is what the output ids say")


def check_chain(answer: Answer, view: ChainView) -> Iterator[Fact]:
    """The receipt is a leaf of a batch on chain, and its signer has something to lose."""
    receipt, provider = answer.opening.receipt, answer.opening.request.provider
    batch = view.batch
    if batch is None:
        yield Fact(Head.OPERATOR, "batch", False, f"the chain knows no batch {answer.batch_index} of this provider")
        return
    count = batch.last_counter - batch.first_counter + 1
    inside = batch.first_counter <= receipt.counter <= batch.last_counter
    leaf = inside and verify_leaf(
        RECEIPTS_TAG, batch.root, count, receipt.counter - batch.first_counter, hash_struct(receipt), answer.path
    )
    yield Fact(
        Head.OPERATOR,
        "batch",
        leaf,
        f"receipt {receipt.counter} is a leaf of the batch whose root 0x{batch.root.hex()} is on chain"
        if leaf
        else f"receipt {receipt.counter} is not in batch {answer.batch_index} "
        f"(counters {batch.first_counter} to {batch.last_counter}) under root 0x{batch.root.hex()}",
    )
    yield Fact(
        Head.OPERATOR,
        "provider",
        view.provider_is_registered,
        f"{checksum_address(provider)} is {'' if view.provider_is_registered else 'not '}a registered provider",
    )
    yield Fact(
        Head.OPERATOR,
        "stake",
        True,
        f"the provider has {format_credit(view.provider_stake)} credit at stake at height {view.height}"
        + (", an open dispute pauses its offer" if view.provider_is_paused else ""),
    )


def check_tokens(report: Report) -> Iterator[Fact]:
    """Every token is the one that this model, prompt and seed give."""
    if report.ok:
        says = (
            f"{report.tokens_checked} tokens are this model's own choice under the buyer's seed; "
            f"largest margin {report.margin_max:.4f} logit"
        )
        yield Fact(Head.PROVEN, "tokens", True, says)
        return
    for violation in report.violations[:3]:
        says = f"token {violation.position}: margin {violation.margin:.4f} logit breaks rule '{violation.rule}'"
        yield Fact(Head.PROVEN, "tokens", False, says)


def list_trusts(answer: Answer, user_nonce: bytes | None) -> Iterator[Fact]:
    """What no mathematics covers here, said aloud."""
    opening = answer.opening
    if user_nonce is None:
        yield Fact(
            Head.GATEWAY,
            "client nonce",
            True,
            "the body above is the one you sent (send X-DeAIOS-Nonce, or pass --nonce, to prove it)",
        )
    else:
        yield _compare(
            "client nonce", "the body was bought under the nonce that you drew", answer.client_nonce, user_nonce
        )
    if opening.receipt.level < Level.SEEDED:
        yield Fact(Head.GATEWAY, "level", True, f"level {opening.receipt.level} proves authorship, not the model")
    yield Fact(Head.OPERATOR, "times", True, "times in a receipt inform; nobody proves them")


def outcome_of(facts: Iterable[Fact]) -> Outcome:
    """Verified only when every fact holds."""
    return Outcome.VERIFIED if all(fact.holds for fact in facts) else Outcome.VIOLATED


def collect(*steps: Iterator[Fact]) -> list[Fact]:
    """Run steps in order up to and including the first broken fact; a malformed part is a broken fact too."""
    facts: list[Fact] = []
    for step in steps:
        try:
            for fact in step:
                facts.append(fact)
                if not fact.holds:
                    return facts
        except Invalid as error:
            facts.append(Fact(Head.PROVEN, type(error).__name__, False, str(error)))
            return facts
    return facts


def _fact(rule: str, holds: bool, says: str) -> Fact:
    return Fact(Head.PROVEN, rule, holds, says)


def _compare(rule: str, says: str, found: bytes, expected: bytes) -> Fact:
    if found == expected:
        return Fact(Head.PROVEN, rule, True, says)
    return Fact(Head.PROVEN, rule, False, f"not so: {says} (0x{found.hex()} signed, 0x{expected.hex()} computed)")


def _signed(rule: str, says: str, domain: Domain, struct: object, signature: bytes, expected: Address) -> Fact:
    try:
        signer = recover_signer(domain, struct, signature)
    except Invalid as error:
        return Fact(Head.PROVEN, rule, False, f"not so: {says} ({error})")
    return _compare(rule, says, signer, expected)


def _name(kind: type[State], value: int) -> str:
    return kind(value).name.lower() if value in set(kind) else str(value)
