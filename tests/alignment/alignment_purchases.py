"""Real purchases without a network: real keys and signatures, ids that a real engine sampled, batches with real roots.

Whoever holds the keys can sign any lie here, so that tests can play colluding buyers and providers, too.
"""

import json
from dataclasses import dataclass, field, replace

from deaios.alignment.answer import Answer
from deaios.alignment.check import BatchView, ChainView, NetworkTerms
from deaios.alignment.evidence import Evidence, prints_of
from deaios.alignment.examination import examine
from deaios.compute.constraint import hash_constraint
from deaios.compute.engine import Step
from deaios.compute.fingerprints import encode_fingerprints, owes_fingerprints, owes_replay
from deaios.compute.generation import Generation, read_output
from deaios.compute.masking import compile_mask
from deaios.compute.records import encode_record, record_id
from deaios.compute.sampling import seed_of
from deaios.compute.verification import cut_prompt, replay_output, verify_output
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.structs import FinishReason, Level, Offer, Request, State, protocol_domain
from deaios.market.batches import RECEIPTS_TAG
from deaios.market.conduct import Conduct, sign_conduct
from deaios.market.opening import Opening
from deaios.market.orders import Order, build_ask
from deaios.market.parts import read_part
from deaios.market.question import PLAIN_CHAT
from deaios.market.receipts import FIRST_LINK, Delivery, Link, build_receipt
from deaios.primitives.errors import Unavailable
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import Address, PrivateKey
from deaios.primitives.merkle import build_root, prove_leaf
from deaios.primitives.units import CREDIT

CHAIN_ID = 777
NETWORK = sha256(b"genesis")
DOMAIN = protocol_domain(CHAIN_ID, Address(b"\xd1" * 20))
ANCHOR = sha256(b"block 41")
BLOCK_TIME = 1_790_000_000


def key_of(name):
    return PrivateKey(sha256(b"key of " + name.encode()))


BUYER, FRAMER = key_of("buyer"), key_of("another buyer")
PROVIDER, RIVAL = key_of("provider"), key_of("rival")
"""Both registered."""


FINISHED_MS = 1_000_900
CONDUCT = Conduct(sha256(b"sealing key"), 30 * 86_400_000, False, FINISHED_MS + 86_400_000)
STATED = sign_conduct(PROVIDER, NETWORK, CONDUCT)


@dataclass(frozen=True)
class Bench:
    """A machine that can render, generate and check."""

    engine: object
    tokenizer: object
    template: object
    record: object

    @property
    def record_id(self):
        return record_id(encode_record(self.record))

    @property
    def terms(self):
        return NetworkTerms(NETWORK, DOMAIN, self.record_id)

    def render(self, body, part=PLAIN_CHAT):
        def render(messages, tools):
            return self.template.render_ids(messages, self.tokenizer, tools=tools)

        return read_part(part, body).prompt_ids(render, self.tokenizer)

    def generate(self, prompt_ids, params, seed, engine=None, constraint=None, leaves=None):
        """What a provider does: prompt in pieces, then id by id; with leaves where there is a list for them."""
        engine = engine or self.engine
        mask = compile_mask(constraint, params.mask_hash, self.tokenizer)
        generation = Generation(len(prompt_ids), params, seed, self.tokenizer, mask=mask)
        engine.forget(0)
        *silent, (first, last) = cut_prompt(prompt_ids, is_printed=leaves is not None)
        for start, end in silent:
            engine.decode([Step(0, start, tuple(prompt_ids[start:end]), 0)])
        step = Step(0, first, tuple(prompt_ids[first:last]), 1)
        while generation.finish is None:
            if leaves is None:
                ((row,),) = engine.decode([step])
            else:
                (((row,), hidden),) = engine.decode_hidden([step])
                leaves.append(encode_fingerprints(hidden))
            position = generation.position
            step = Step(0, position, (generation.offer(row).token,), 1)
        engine.forget(0)
        return generation


def body_of(question, **fields):
    message = {"role": "user", "content": question}
    fields = {"model": "smollm2-135m-instruct", "messages": [message], "max_tokens": 24, "temperature": 0.8} | fields
    return json.dumps(fields, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Sale:
    """One purchase with everything that made it; `replace` a part and `sign` again to lie consistently."""

    bench: Bench
    order: Order
    offer: Offer
    delivery: Delivery
    link: Link
    buyer: PrivateKey = BUYER
    provider: PrivateKey = PROVIDER
    ask_changes: dict = field(default_factory=dict)
    request_changes: dict = field(default_factory=dict)
    receipt_changes: dict = field(default_factory=dict)
    conduct: object = None

    def sign(self):
        """Sign all papers, with the changes that were asked for, each side with its own key."""
        ask = replace(build_ask(self.order, self.buyer.address), **self.ask_changes)
        request = Request(
            ask_digest=hash_struct(ask),
            provider=self.offer.provider,
            offer_digest=hash_struct(self.offer),
            channel_id=sha256(b"channel"),
            max_fee=CREDIT // 4,
            anchor_block_hash=ANCHOR,
            deadline_block=1_000,
        )
        request = replace(request, **self.request_changes)
        receipt = build_receipt(ask, self.order.salt, request, self.offer, self.delivery, self.link, 200)
        receipt = replace(receipt, **self.receipt_changes)
        return Opening(
            ask=ask,
            salt=self.order.salt,
            offer=self.offer,
            offer_signature=sign_struct(self.provider, DOMAIN, self.offer),
            request=request,
            request_signature=sign_struct(self.buyer, DOMAIN, request),
            output_ids=self.delivery.output_ids,
            receipt=receipt,
            receipt_signature=sign_struct(self.provider, DOMAIN, receipt),
            constraint=self.order.constraint,
            conduct=self.conduct,
            fingerprints=self.delivery.fingerprints,
        )

    @property
    def evidence(self):
        return Evidence(self.sign(), self.order.prompt_ids)

    def lie(self, *, ids=None, finish=None, stop_index=None, state=None, **receipt_changes):
        """Another delivery, or a receipt with other numbers."""
        delivery = replace(
            self.delivery,
            output_ids=self.delivery.output_ids if ids is None else ids,
            finish_reason=self.delivery.finish_reason if finish is None else finish,
            stop_index=self.delivery.stop_index if stop_index is None else stop_index,
            state=self.delivery.state if state is None else state,
        )
        return replace(self, delivery=delivery, receipt_changes=receipt_changes)


def sell(
    bench,
    body,
    *,
    name="a",
    buyer=BUYER,
    provider=PROVIDER,
    link=FIRST_LINK,
    level=Level.REPLAYABLE,
    profile=None,
    engine=None,
    served_prompt=None,
    served_params=None,
    served_constraint=None,
    ask_changes=None,
    part=PLAIN_CHAT,
):
    """Sell an answer; with another engine, prompt or parameters than were ordered it is a cheat's."""
    prompt_ids = bench.render(body, part)
    chat = read_part(part, body)
    order = Order(
        model_record_id=bench.record_id,
        prompt_ids=prompt_ids,
        params=chat.params(bench.record.context_tokens, len(prompt_ids)),
        context=chat.context(bench.template.template_hash, bench.tokenizer.tokenizer_hash),
        body=body,
        client_nonce=sha256(b"client nonce" + name.encode()),
        nonce=sha256(b"nonce" + name.encode()),
        salt=sha256(b"salt" + name.encode()),
        min_level=chat.min_level,
        audit_policy=chat.audit_policy,
        part=part,
        constraint=None if chat.constraint is None else chat.constraint.encode(),
    )
    offer = Offer(
        provider=provider.address,
        model_record_id=order.model_record_id,
        engine_profile=profile or bench.engine.profile.digest(),
        level=level,
        input_price=CREDIT,
        output_price=4 * CREDIT,
        context_tokens=512,
        streams_max=4,
        withdraw_delay_min=900,
        url="http://provider.example:8080",
        valid_until=BLOCK_TIME * 1000,
    )
    ask_changes = ask_changes or {}
    ask = replace(build_ask(order, buyer.address), **ask_changes)
    params, constraint = served_params or ask.params, order.constraint
    if served_constraint is not None:  # bytes; empty for a provider that masks nothing
        constraint = served_constraint or None
        params = replace(params, mask_hash=hash_constraint(constraint))
    leaves = [] if owes_fingerprints(ask) else None
    generation = bench.generate(served_prompt or prompt_ids, params, seed_of(ask), engine, constraint, leaves)
    delivery = Delivery(
        State.SERVED,
        generation.finish,
        generation.stop_index,
        generation.output_ids,
        1_000_000,
        1_000_050,
        FINISHED_MS,
        fingerprints=b"".join(leaves or ()),
    )
    return Sale(bench, order, offer, delivery, link, buyer, provider, ask_changes)


class UnavailableRecord(Unavailable):
    """The catalogue has no such record."""


@dataclass
class PaperChain:
    """What a check may ask a chain and a catalogue, and an engine that counts how often it was needed."""

    bench: Bench
    batches: dict = field(default_factory=dict)
    digests: dict = field(default_factory=dict)
    records: dict = field(default_factory=dict)
    registered: set = field(default_factory=lambda: {PROVIDER.address, RIVAL.address})
    convicted: set = field(default_factory=set)
    anchors: dict = field(default_factory=lambda: {ANCHOR: 41})
    slashed: int = 0
    paused: bool = False
    recomputed: int = 0

    def publish(self, provider, openings):
        """One batch; gives its index."""
        batches = self.batches.setdefault(provider, [])
        first = openings[0].receipt.counter
        leaves = [opening.receipt_digest for opening in openings]
        root = build_root(RECEIPTS_TAG, leaves)
        batches.append(BatchView(first, first + len(openings) - 1, root, BLOCK_TIME))
        self.digests[provider, len(batches) - 1] = leaves
        return len(batches) - 1

    def answer(self, sale, opening, index, text=None):
        provider = opening.request.provider
        batch = self.batches[provider][index]
        path = prove_leaf(self.digests[provider, index], opening.receipt.counter - batch.first_counter)
        said = read_output(opening.output_ids, opening.ask.params, self.bench.tokenizer) if text is None else text
        return Answer(NETWORK, sale.order.body, sale.order.client_nonce, opening, said, index, path, sale.order.part)

    async def fetch_record(self, wanted):
        found = self.records.get(wanted) or (self.bench.record if wanted == self.bench.record_id else None)
        if found is None:
            raise UnavailableRecord("the catalogue has no such record")
        return found

    async def open_model(self, record):
        return self.bench.tokenizer, self.bench.template

    async def read_chain(self, answer):
        opening = answer.opening
        batches = self.batches.get(opening.request.provider, [])
        return ChainView(
            height=99,
            batch=batches[answer.batch_index] if answer.batch_index < len(batches) else None,
            anchor_height=self.anchors.get(opening.request.anchor_block_hash),
            provider_is_registered=opening.request.provider in self.registered,
            provider_stake=50 * CREDIT - self.slashed,
            provider_slashed=self.slashed,
            provider_is_paused=self.paused,
            receipt_is_convicted=opening.receipt_digest in self.convicted,
        )

    async def recompute(self, answer, record, prompt_ids):
        self.recomputed += 1
        opening = answer.opening
        engine, params, seed = self.bench.engine, opening.ask.params, seed_of(opening.ask)
        prints = prints_of(opening, record.noise_class)
        report = verify_output(
            engine,
            prompt_ids,
            opening.output_ids,
            params,
            seed,
            FinishReason(opening.receipt.finish_reason),
            opening.receipt.stop_index,
            record.thresholds,
            self.bench.tokenizer,
            mask=compile_mask(opening.constraint, params.mask_hash, self.bench.tokenizer),
            prints=prints,
        )
        if not owes_replay(opening.ask) or engine.profile.digest() != opening.receipt.engine_profile:
            return report
        mask = compile_mask(opening.constraint, params.mask_hash, self.bench.tokenizer)
        replay = replay_output(engine, prompt_ids, opening.output_ids, params, seed, mask=mask, prints=prints)
        return replace(report, replay=replay)

    async def examine(self, answer, user_nonce=None, terms=None):
        return await examine(answer, terms or self.bench.terms, self, user_nonce)

    async def examine_sale(self, sale, **options):
        """Publish a sale as a batch of its own and check it."""
        opening = sale.sign()
        index = self.publish(opening.request.provider, [opening])
        return await self.examine(self.answer(sale, opening, index), **options)


@dataclass(frozen=True)
class Library:
    """Honest answers: `provider` sold three in one batch and one in the next, where it had a statement; `rival` one."""

    chain: PaperChain
    sales: tuple
    answers: tuple


def build_library(bench, profile=None):
    chain = PaperChain(bench)
    bodies = (
        body_of("Why do cats purr?", max_tokens=40),
        body_of("Name three rivers.", temperature=0, max_tokens=16),
        body_of("Count from one to nine.", stop=[" and", ","], top_p=0.9, max_tokens=32),
        body_of("Write one sentence about snow.", top_k=40, temperature=1.1),
    )
    sales, openings, link = [], [], FIRST_LINK
    for number, body in enumerate(bodies):
        sale = sell(bench, body, name=f"sale {number}", link=link, profile=profile)
        sale = replace(sale, conduct=STATED if number == 3 else None)
        opening = sale.sign()
        link = Link(opening.receipt.counter, opening.receipt_digest, opening.receipt.charged_cumulative)
        sales.append(sale)
        openings.append(opening)
    chain.publish(PROVIDER.address, openings[:3])
    chain.publish(PROVIDER.address, openings[3:])
    rival = sell(bench, bodies[0], name="rival's", provider=RIVAL, profile=profile)
    sales.append(rival)
    openings.append(rival.sign())
    chain.publish(RIVAL.address, openings[4:])
    indices = (0, 0, 0, 1, 0)
    answers = tuple(
        chain.answer(sale, opening, index) for sale, opening, index in zip(sales, openings, indices, strict=True)
    )
    return Library(chain, tuple(sales), answers)
