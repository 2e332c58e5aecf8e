"""The rules of an answer's check: what each value of the file is held to, and what follows under which head.

Pure: the chain's view and the engine's report come in as values. Facts come in an order in which each relies only on
those before it, so the first that is broken names what broke. A value that is signed but that nobody can hold to
anything (times, the offer's URL) is bound by its signature and otherwise makes no fact.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from deaios.alignment.answer import Answer
from deaios.alignment.evidence import finish_of
from deaios.alignment.facts import Fact, Head, check_signer, compare, state
from deaios.compute.commitments import commit_prompt, hash_context
from deaios.compute.constraint import decode_constraint, hash_constraint
from deaios.compute.embedding import InvalidVector, decode_vector, is_embedding
from deaios.compute.fingerprints import DISTANCES_MAX, owes_fingerprints
from deaios.compute.generation import check_finish, read_output
from deaios.compute.records import ModelRecord, encode_record, record_id
from deaios.compute.sampling import Rule
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report
from deaios.ledger.eip712 import Domain, hash_struct
from deaios.ledger.structs import FinishReason, Level, State
from deaios.market.batches import RECEIPTS_TAG
from deaios.market.parts import read_part
from deaios.market.question import Question, hash_request
from deaios.market.receipts import commit_fingerprints, commit_result, compute_fee_due, count_billed
from deaios.market.tool_text import read_calls
from deaios.market.tools import may_call
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import checksum_address
from deaios.primitives.merkle import verify_leaf
from deaios.primitives.units import format_credit

VIOLATIONS_SHOWN_MAX = 3
TIME_MAX = 1 << 35
"""Seconds that still make a date (some year 3058); a chain may say anything."""
_LEVELS = {
    Level.SIGNED: "signed: it says who answered, not what computed it",
    Level.GREEDY: "greedy: it can be recomputed where the temperature is 0, and only there",
    Level.SEEDED: "seeded: every token can be recomputed from the buyer's seed",
    Level.FINGERPRINTED: "fingerprinted: as seeded; where fingerprints are ordered, one token shows other weights",
    Level.REPLAYABLE: "replayable: as fingerprinted, and replayed exactly on a listed engine where that was ordered",
}
"""What a receipt can be held to."""


@dataclass(frozen=True, slots=True)
class NetworkTerms:
    """The network that an answer is held to.

    Attributes:
        network_id: genesis hash.
        domain: of the protocol's signatures.
        default_record_id: the model record that the network's operator calls the default.
    """

    network_id: bytes
    domain: Domain
    default_record_id: bytes


@dataclass(frozen=True, slots=True)
class BatchView:
    """A receipt batch as the chain tells it; `block_time` in Unix seconds."""

    first_counter: int
    last_counter: int
    root: bytes
    block_time: int


@dataclass(frozen=True, slots=True)
class ChainView:
    """What the chain says about an answer and its provider.

    Attributes:
        height: block that was the latest before anything else was read.
        batch: the batch that the answer names; None when the provider has no such batch.
        anchor_height: block that the order is anchored in; None when the chain has no such block.
        provider_is_registered: whether the provider's key owns an entry of the registry.
        provider_stake: what it could still lose.
        provider_slashed: what it has lost to juries and proofs so far.
        provider_is_paused: whether a dispute is open against it.
        receipt_is_convicted: whether a jury found this very receipt guilty.
    """

    height: int
    batch: BatchView | None
    anchor_height: int | None
    provider_is_registered: bool
    provider_stake: int
    provider_slashed: int
    provider_is_paused: bool
    receipt_is_convicted: bool


def check_binding(answer: Answer, terms: NetworkTerms, user_nonce: bytes | None) -> Iterator[Fact]:
    """Signatures and digests: who promised what to whom."""
    opening = answer.opening
    ask, request, receipt, offer = opening.ask, opening.request, opening.receipt, opening.offer
    domain, provider = terms.domain, request.provider
    yield compare("network", "the answer names this network", answer.network, terms.network_id)
    if user_nonce is not None:
        yield compare("client nonce", "the body was bought under the nonce you drew", answer.client_nonce, user_nonce)
    digest = hash_request(answer.part, answer.client_nonce, answer.body)
    yield compare("client digest", "the order covers exactly this body and nonce", ask.client_digest, digest)
    yield compare("ask digest", "the order is for exactly this ask", request.ask_digest, hash_struct(ask))
    says = f"the buyer {checksum_address(ask.buyer)} signed the order"
    yield check_signer("request signature", says, domain, request, opening.request_signature, ask.buyer)
    yield compare("offer digest", "the order is at this posted price", request.offer_digest, hash_struct(offer))
    yield compare("offer provider", "the price is the provider's who got the order", offer.provider, provider)
    yield compare("offer model", "the price is for the model ordered", offer.model_record_id, ask.model_record_id)
    says = f"the provider {checksum_address(provider)} signed the price"
    yield check_signer("offer signature", says, domain, offer, opening.offer_signature, provider)
    yield compare("request digest", "the receipt answers this order", receipt.request_digest, hash_struct(request))
    says = f"the provider signed receipt {receipt.counter}"
    yield check_signer("receipt signature", says, domain, receipt, opening.receipt_signature, provider)
    named = hash_constraint(opening.constraint)
    yield compare("constraint", "the order is held to exactly this constraint", ask.params.mask_hash, named)
    yield compare("channel", "receipt and order name one channel", receipt.channel_id, request.channel_id)
    yield from _check_claims(answer)


def _check_claims(answer: Answer) -> Iterator[Fact]:
    """What the receipt says of itself, against the order and the price it was sold under."""
    ask, receipt, offer = answer.opening.ask, answer.opening.receipt, answer.opening.offer
    yield state(
        "state",
        receipt.state == State.SERVED,
        f"the receipt's state is {_name(State, receipt.state)}, served is wanted",
    )
    known = receipt.level in _LEVELS
    yield state(
        "level",
        known and ask.min_level <= receipt.level == offer.level,
        f"level {receipt.level} claimed, {offer.level} offered, at least {ask.min_level} ordered"
        + (f"; {_LEVELS[Level(receipt.level)]}" if known else "; this version knows levels 0 to 4"),
    )
    yield compare(
        "engine profile", "the receipt names the engine that was offered", receipt.engine_profile, offer.engine_profile
    )
    root = commit_fingerprints(ask, answer.opening.fingerprints, len(answer.opening.output_ids))
    says = "no fingerprint was ordered or is claimed"
    if owes_fingerprints(ask):
        says = f"the receipt covers these {len(answer.opening.output_ids)} fingerprints, one for each output id"
    yield compare("fingerprint", says, receipt.fingerprint_root, root)
    yield state("counter", receipt.counter >= 1, f"receipt number {receipt.counter}, the first is 1")


def check_question(
    answer: Answer, terms: NetworkTerms, record: ModelRecord, tokenizer: Tokenizer, template: ChatTemplate
) -> Iterator[Fact]:
    """The question as signed is the question as asked: body, messages, parameters, token ids, model."""
    ask, salt, receipt = answer.opening.ask, answer.opening.salt, answer.opening.receipt
    named = record_id(encode_record(record))
    yield compare("model record", f"the model ordered is the record of {record.name}", ask.model_record_id, named)
    yield compare("template", "the chat template is the record's", template.template_hash, record.template_hash)
    yield compare("tokenizer", "the tokenizer is the record's", tokenizer.tokenizer_hash, record.tokenizer_hash)
    if receipt.level == Level.REPLAYABLE:
        listed = receipt.engine_profile in record.replay_profiles
        says = f"level {receipt.level} needs an engine on the record's replay list, and {_is(listed)} on it"
        yield state("replay profile", listed, says)
    try:
        question = _name_masker(read_part(answer.part, answer.body), answer)
        context = question.context(template.template_hash, tokenizer.tokenizer_hash)
        ids = render_prompt(question, tokenizer, template)
        wanted = question.params(record.context_tokens, len(ids))
    except Invalid as error:
        yield state("body", False, f"the body asks for nothing that can be bought here: {error}")
        return
    yield from _name_models(question, ask.model_record_id, record, terms)
    yield compare("context", _describe_prompt(question), ask.context_hash, hash_context(context, salt))
    yield compare("prompt", "the order covers these token ids", ask.prompt_commitment, commit_prompt(ids, salt))
    says = f"{ask.prompt_count} prompt tokens ordered, {len(ids)} counted"
    yield state("prompt count", ask.prompt_count == len(ids), says)
    differing = [name for name in vars(wanted) if getattr(wanted, name) != getattr(ask.params, name)]
    says = "parameters ordered are the body's" + "".join(
        f"; not so: {name} is {getattr(ask.params, name)!r:.80}, the body says {getattr(wanted, name)!r:.80}"
        for name in differing
    )
    yield state("parameters", not differing, says)
    says = f"level {ask.min_level} ordered, {question.min_level} asked for"
    yield state("minimum level", ask.min_level == question.min_level, says)
    says = f"audit policy {ask.audit_policy} ordered, {question.audit_policy} asked for"
    yield state("audit policy", ask.audit_policy == question.audit_policy, says)
    if question.provider is not None:
        yield compare(
            "provider choice", "the order went where the body says", answer.opening.request.provider, question.provider
        )
    if answer.part.history:
        says = f"the {len(answer.part.history)} turns before the body's are those of the response that it continues"
        yield Fact(Head.GATEWAY, "history", True, says)


def render_prompt(question: Question, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """The prompt ids of a question under a record's own tokenizer and template.

    Raises:
        Invalid: the template refuses the messages, or there is no such id.
    """
    return question.prompt_ids(
        lambda messages, tools: template.render_ids(messages, tokenizer, tools=tools),
        tokenizer,
    )


def _name_masker(question: Question, answer: Answer) -> Question:
    """The question as it was asked by a program with another masker, where it was: the body does not say which."""
    if question.constraint is None or answer.opening.constraint is None:
        return question
    masker = decode_constraint(answer.opening.constraint).masker
    return replace(question, constraint=replace(question.constraint, masker=masker))


def _describe_prompt(question: Question) -> str:
    if question.raw is None:
        return "the order covers these messages"
    return "the order covers this raw prompt, to which no chat template was applied"


def _name_models(question: Question, ordered: bytes, record: ModelRecord, terms: NetworkTerms) -> Iterator[Fact]:
    """The same where the body names several: the first name that fits, and on whose word the ones before it failed."""
    names = (question.model, *question.fallbacks)
    facts = [_name_model(name, ordered, record, terms) for name in names]
    place = next((index for index, fact in enumerate(facts) if fact.holds), 0)
    yield facts[place]
    if place:
        says = f"none of the {place} models that the body names before {names[place]!r:.80} could answer"
        yield Fact(Head.GATEWAY, "model fallback", True, says)


def _name_model(asked: str, ordered: bytes, record: ModelRecord, terms: NetworkTerms) -> Fact:
    """What ties a name in the body to the record that was ordered: anybody may publish a record of any name."""
    if asked == encode_hex(ordered):
        return Fact(Head.PROVEN, "model name", True, "the body names the model record itself")
    owner, _, name = asked.rpartition("/")
    if name != record.name:
        says = f"the body asks for {asked!r:.80}, the model ordered is {record.name!r}"
        return Fact(Head.PROVEN, "model name", False, says)
    if ordered == terms.default_record_id and not owner:
        says = f"{record.name!r} means the network's default model, by its operator's descriptor"
        return Fact(Head.OPERATOR, "model name", True, says)
    says = f"of all records called {asked!r:.160}, you wanted {encode_hex(ordered)}"
    return Fact(Head.GATEWAY, "model name", True, says)


def check_delivery(answer: Answer, tokenizer: Tokenizer) -> Iterator[Fact]:
    """Counts, fee, end and text are what the output ids say."""
    opening = answer.opening
    ask, receipt, ids = opening.ask, opening.receipt, opening.output_ids
    root = commit_result(ask.params, ids, opening.salt)
    yield compare("output", "the receipt covers these output ids", receipt.output_commitment, root)
    counted = count_billed(ask.params, ids)
    says = f"{receipt.completion_tokens} output tokens billed, {counted} counted"
    yield state("completion count", receipt.completion_tokens == counted, says)
    says = f"{receipt.prompt_tokens} prompt tokens billed, {ask.prompt_count} ordered, {receipt.cached_tokens} cached"
    fits = receipt.prompt_tokens == ask.prompt_count >= receipt.cached_tokens
    yield state("prompt bill", fits, says)
    if is_embedding(ask.params):
        yield _check_vector(answer)
        yield from _check_fee(answer)
        yield state("text", not answer.text, "a vector has no text")
        return
    yield _check_finish(answer, tokenizer)
    yield from _check_fee(answer)
    text = read_output(ids, ask.params, tokenizer)
    says = "the text is what the output ids say"
    if answer.text != text:
        says = f"the text is not what the output ids say, from character {_first_difference(answer.text, text)} on"
    yield state("text", answer.text == text, says)
    yield from _tell_calls(answer, text)


def _tell_calls(answer: Answer, text: str) -> Iterator[Fact]:
    """Which tools the text calls: the body says whether it is read for calls, so a gateway can show no others."""
    try:
        question = read_part(answer.part, answer.body)
    except Invalid:
        return
    if not may_call(question):
        return
    calls = read_calls(text, answer.opening.ask.client_digest).calls
    told = "; ".join(f"{call.name[:80]!r} with {call.arguments!r:.200} as {call.id}" for call in calls)
    yield state("calls", True, f"the text calls {told or 'no tool'}")


def _check_finish(answer: Answer, tokenizer: Tokenizer) -> Fact:
    receipt, ids = answer.opening.receipt, answer.opening.output_ids
    reason = finish_of(receipt)
    if reason is None:
        return state("finish", False, f"finish reason {receipt.finish_reason} is not known")
    wrong = check_finish(ids, answer.opening.ask.params, tokenizer, reason, receipt.stop_index)
    if wrong is None and not ids:
        wrong = "an answer without any token was billed as served"
    says = f"the answer ends after {len(ids)} tokens by {reason.name.lower()}, as its tokens say"
    return state("finish", wrong is None, wrong or says)


def _check_vector(answer: Answer) -> Fact:
    receipt = answer.opening.receipt
    if receipt.finish_reason != FinishReason.LENGTH or receipt.stop_index:
        says = f"a vector ends by reason {int(FinishReason.LENGTH)} and index 0, not {receipt.finish_reason} and "
        return state("finish", False, f"{says}{receipt.stop_index}")
    try:
        dimensions = len(decode_vector(answer.opening.output_ids))
    except InvalidVector as error:
        return state("finish", False, str(error))
    return state("finish", True, f"the words are a vector of {dimensions} dimensions and length one")


def _check_fee(answer: Answer) -> Iterator[Fact]:
    opening = answer.opening
    receipt, offer, request = opening.receipt, opening.offer, opening.request
    due = compute_fee_due(offer, receipt.state, receipt.prompt_tokens, receipt.completion_tokens)
    yield state(
        "fee",
        receipt.fee == due <= request.max_fee,
        f"fee {format_credit(receipt.fee)} billed, {format_credit(due)} by the posted price, "
        f"at most {format_credit(request.max_fee)} agreed",
    )
    says = f"{format_credit(receipt.charged_cumulative)} charged on this channel so far, this fee included"
    yield state("charged total", receipt.charged_cumulative >= receipt.fee, says)


def check_chain(answer: Answer, view: ChainView) -> Iterator[Fact]:
    """The receipt is a leaf of a batch on chain, and what its signer has to lose."""
    receipt, request = answer.opening.receipt, answer.opening.request
    yield _check_batch(answer, view.batch)
    anchor, says = view.anchor_height, f"the chain has no block {encode_hex(request.anchor_block_hash)}"
    if anchor is not None:
        says = f"ordered after block {anchor}, good until block {request.deadline_block}"
    yield _by_chain("anchor", anchor is not None and anchor <= request.deadline_block, says)
    says = f"{checksum_address(request.provider)} is {'' if view.provider_is_registered else 'not '}registered"
    yield _by_chain("provider", view.provider_is_registered, says)
    yield _by_chain(
        "verdict",
        not view.receipt_is_convicted,
        f"{'a' if view.receipt_is_convicted else 'no'} jury found receipt {receipt.counter} guilty so far",
    )
    lost = f", {format_credit(view.provider_slashed)} lost so far" if view.provider_slashed else ""
    paused = ", an open dispute pauses its offer" if view.provider_is_paused else ""
    says = f"the provider has {format_credit(view.provider_stake)} credit at stake after block {view.height}"
    yield _by_chain("stake", True, says + lost + paused)


def _check_batch(answer: Answer, batch: BatchView | None) -> Fact:
    receipt = answer.opening.receipt
    if batch is None:
        return _by_chain("batch", False, f"the chain knows no batch {answer.batch_index} of this provider")
    count, place = batch.last_counter - batch.first_counter + 1, receipt.counter - batch.first_counter
    where = f"batch {answer.batch_index}, counters {batch.first_counter} to {batch.last_counter}"
    if verify_leaf(RECEIPTS_TAG, batch.root, count, place, hash_struct(receipt), answer.path):
        since = f"on chain since {_time(batch.block_time)}"
        return _by_chain(
            "batch", True, f"receipt {receipt.counter} is in {where}, root {encode_hex(batch.root)}, {since}"
        )
    return _by_chain("batch", False, f"receipt {receipt.counter} is not in {where}, root {encode_hex(batch.root)}")


def check_tokens(answer: Answer, report: Report, record: ModelRecord) -> Iterator[Fact]:
    """Every token is the one that this model, prompt and seed give, as far as a float can tell; fingerprints too."""
    if is_embedding(answer.opening.ask.params):
        yield _check_distance(report)
        return
    count, thresholds = len(answer.opening.output_ids), record.thresholds
    if report.ok and report.tokens_checked == count:
        says = (
            f"all {count} tokens are what this model gives under the buyer's seed: {report.exact_count} exactly, "
            f"the largest margin is {report.margin_max:.4f} logit, {thresholds.margin:.4f} is allowed"
        )
        yield state("tokens", True, says)
        if owes_fingerprints(answer.opening.ask):
            yield _check_prints(report, count, DISTANCES_MAX[record.noise_class])
        if report.replay is not None and report.replay.equal:
            says = f"exact replay on the engine that the receipt names gives all {count} tokens"
            yield state("replay", True, says)
        return
    for found in report.violations[:VIOLATIONS_SHOWN_MAX]:
        rule = "fingerprints" if found.rule is Rule.FINGERPRINT else "tokens"
        yield state(rule, False, f"token {found.position}, rule {found.rule}: {found.detail}")
    if not report.violations:
        yield state("tokens", False, f"{report.tokens_checked} of {count} tokens were checked")


def _check_prints(report: Report, count: int, distance_max: float) -> Fact:
    """The fingerprints of an answer without a violation."""
    if len(report.distances) != count:
        return state("fingerprints", False, f"{len(report.distances)} of {count} fingerprints were checked")
    says = f"all {count} fingerprints are this model's: the largest distance is {report.distance_max:.4f}"
    return state("fingerprints", True, f"{says}, {distance_max:g} is allowed")


def _check_distance(report: Report) -> Fact:
    if report.ok and report.tokens_checked == 1:
        says = f"the vector is what this model gives for the input: 1 - cosine is {report.margin_max:.2g}"
        return state("vector", True, says)
    said = [found.detail for found in report.violations[:VIOLATIONS_SHOWN_MAX]]
    return state("vector", False, "; ".join(said) or "the vector was not checked")


def list_trusts(user_nonce: bytes | None) -> Iterator[Fact]:
    """What no mathematics covers here, said aloud."""
    if user_nonce is None:
        says = "the body in this file is the one you sent, and was bought for you (the nonce that you sent proves it)"
        yield Fact(Head.GATEWAY, "client nonce", True, says)
    says = "the buyer drew the nonce that seeds the answer once, and did not order again until an answer pleased it"
    yield Fact(Head.GATEWAY, "seed", True, says)


def _by_chain(rule: str, holds: bool, says: str) -> Fact:
    return Fact(Head.OPERATOR, rule, holds, says)


def _time(block_time: int) -> str:
    if block_time > TIME_MAX:
        return f"second {block_time}"
    return datetime.fromtimestamp(block_time, UTC).isoformat(" ", "seconds")


def _is(holds: bool) -> str:
    return "this one is" if holds else "this one is not"


def _name(kind: type[State], value: int) -> str:
    return kind(value).name.lower() if value in set(kind) else str(value)


def _first_difference(found: str, expected: str) -> int:
    pairs = zip(found, expected, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
