"""A gateway on a real socket in front of a scripted buyer that sells bytes as tokens."""

import asyncio
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from deaios.compute.embedding import encode_vector
from deaios.compute.records import Calibration, ModelRecord, NoiseClass, RecordFile, Thresholds
from deaios.gateway.desk import Limits
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.records import RecordStore
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import Ask, FinishReason, Offer, Receipt, Request, State
from deaios.market.batches import BatchProof
from deaios.market.opening import Opening
from deaios.market.preferences import DataPolicy
from deaios.market.question import hash_request
from deaios.market.receipts import count_billed
from deaios.primitives.errors import Invalid, Unavailable
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import Address
from deaios.primitives.units import CREDIT, compute_fee
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve

END = 256
PROVIDER = Address(b"\x22" * 20)
NETWORK = b"\x77" * 32
RECORD_ID = b"\x55" * 32
SECOND_ID = b"\x66" * 32
INPUT_PRICE, OUTPUT_PRICE = CREDIT, 4 * CREDIT


class ByteTokenizer:
    """Ids 0 to 255 are bytes, 256 ends an answer."""

    end_ids = frozenset({END})
    vocabulary_size = END + 1

    tokenizer_hash = ZERO32

    def encode_plain(self, text):
        return tuple(text.encode())

    encode_prompt = encode_plain

    def get_bytes(self, token):
        if not 0 <= token <= END:
            raise Invalid(f"token id {token} is outside the vocabulary")
        return b"" if token == END else bytes([token])

    def get_label(self, token):
        return "<end>" if token == END else self.get_bytes(token).decode("utf-8", "replace")


def render(messages, tools):
    """Tools by their names, then turns; calls and whom a result answers are in parentheses."""
    lines = [f"tools:{','.join(tool.name for tool in tools)}"] if tools else []
    for message in messages:
        calls = "".join(f"({call['name']}{call['arguments']})" for call in message.get("toolCalls", ()))
        answered = f"({message['toolCallId']})" if "toolCallId" in message else ""
        lines.append(f"{message['role']}{answered}:{message['content']}{calls}")
    return tuple("".join(line + "\n" for line in lines).encode())


def build_record(context_tokens=1000):
    return ModelRecord(
        name="tiny-bytes",
        files=(RecordFile("model.gguf", ZERO32, 1, ZERO32),),
        model_root=ZERO32,
        tensors_root=ZERO32,
        serving="as-is/1",
        tokenizer_hash=ZERO32,
        template_hash=b"\x09" * 32,
        quantisation="F16",
        licence="Apache-2.0",
        parents=(),
        noise_class=NoiseClass.FLOAT,
        thresholds=Thresholds(20_000, 20_000),
        calibration=Calibration(0, 0, ZERO32),
        context_tokens=context_tokens,
        replay_profiles=(),
    )


@dataclass(frozen=True)
class FakeDelta:
    ids: tuple
    logprobs: tuple | None = None


def rank(token, count):
    """Whatever comes is at an eighth of a nat below even; the end is always at one in a thousand."""
    top = ((END, -6_907_755), *((letter, -7_000_000 - letter) for letter in b"abcdefghijklmnopqrs"))[:count]
    return ((token, -818_147), *top) if count == 0 else ((token, -818_147), (token, -818_147), *top[: count - 1])


@dataclass
class Script:
    """What a purchase does: tuples of ids, or whole deltas, arrive, events are waited for, exceptions are raised."""

    steps: list
    finish: FinishReason = FinishReason.STOP_TOKEN
    state: State = State.SERVED
    fee: int | None = None
    receipt_on_cancel: bool = False


def say(text, size=3, finish=FinishReason.STOP_TOKEN):
    """A script that says a text, some bytes at a time."""
    ids = tuple(text.encode()) + ((END,) if finish == FinishReason.STOP_TOKEN else ())
    return Script([ids[start : start + size] for start in range(0, len(ids), size)], finish)


def point(order):
    """A script that sells a vector: two numbers, by how much of the prompt is the letter e."""
    share = order.prompt_ids.count(ord("e")) / max(1, len(order.prompt_ids))
    words = encode_vector(np.array([share, (1 - share**2) ** 0.5]))
    return Script([words], FinishReason.LENGTH)


class FakePurchase:
    def __init__(self, buyer, order, script, counter):
        self.buyer, self.order, self.script, self.counter = buyer, order, script, counter
        self.opening = None
        self.ids = ()
        self.cancelled = False
        self.request_digest = counter.to_bytes(32)
        self.is_open = True

    async def __aiter__(self):
        for step in self.script.steps:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, BaseException):
                raise step
            else:
                delta = step if isinstance(step, FakeDelta) else self.build_delta(step)
                self.ids += delta.ids
                yield delta
        self.opening = self.build_opening(self.script.state, self.script.finish)

    def build_delta(self, ids):
        count = self.order.logprobs
        return FakeDelta(ids, None if count is None else tuple(rank(token, count) for token in ids))

    async def wait(self):
        if self.opening is None:
            raise Unavailable("no receipt")
        return self.opening

    async def cancel(self):
        self.cancelled = True
        self.buyer.cancelled.append(self)
        self.buyer.cancel_seen.set()
        if self.script.receipt_on_cancel:
            self.opening = self.build_opening(State.CANCELLED, FinishReason.CANCELLED)

    def build_opening(self, state, finish):
        order = self.order
        ask = Ask(
            buyer=Address(b"\x11" * 20),
            model_record_id=order.model_record_id,
            prompt_commitment=hashlib.sha256(repr(order.prompt_ids).encode() + order.salt).digest(),
            prompt_count=len(order.prompt_ids),
            context_hash=hashlib.sha256(order.context + order.salt).digest(),
            params=order.params,
            client_digest=hash_request(order.part, order.client_nonce, order.body),
            min_level=order.min_level,
            audit_policy=order.audit_policy,
            nonce=order.nonce,
        )
        offer = Offer(
            PROVIDER, order.model_record_id, ZERO32, 2, INPUT_PRICE, OUTPUT_PRICE, 1000, 8, 900, "http://p", 2**40
        )
        request = Request(hash_struct(ask), PROVIDER, hash_struct(offer), ZERO32, 10**6, ZERO32, 99)
        billed = count_billed(order.params, self.ids)
        fee = compute_fee(len(order.prompt_ids), billed, INPUT_PRICE, OUTPUT_PRICE)
        fee = fee if self.script.fee is None else self.script.fee
        receipt = Receipt(
            request_digest=hash_struct(request),
            counter=self.counter,
            prev_receipt=ZERO32,
            output_commitment=ZERO32,
            prompt_tokens=len(order.prompt_ids),
            cached_tokens=0,
            completion_tokens=billed,
            finish_reason=finish,
            stop_index=0,
            state=state,
            level=2,
            engine_profile=ZERO32,
            fingerprint_root=ZERO32,
            fee=fee if state in (State.SERVED, State.CANCELLED) else 0,
            channel_id=ZERO32,
            charged_cumulative=fee,
            batch_deadline_block=100,
            started_at_ms=1,
            first_token_at_ms=2,
            finished_at_ms=3,
        )
        return Opening(ask, order.salt, offer, bytes(65), request, bytes(65), self.ids, receipt, bytes(65))


@dataclass
class FakeBuyer:
    """Sells what `reply` scripts; keeps all orders."""

    reply: Callable = lambda order: say("Hello, wörld!")
    orders: list = field(default_factory=list)
    purchases: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    cancel_seen: asyncio.Event = field(default_factory=asyncio.Event)
    proof: Callable | None = None
    outcomes_asked: int = 0
    endpoints: list = field(default_factory=list)

    async def purchase(self, order):
        self.orders.append(order)
        script = self.reply(order)
        if isinstance(script, BaseException):
            raise script
        purchase = FakePurchase(self, order, script, len(self.orders))
        self.purchases.append(purchase)
        return purchase

    async def fetch_opening(self, provider, counter):
        openings = [purchase.opening for purchase in self.purchases if purchase.opening]
        return next((found for found in openings if (provider, counter) == (PROVIDER, found.receipt.counter)), None)

    async def fetch_outcome(self, request_digest):
        self.outcomes_asked += 1
        purchase = next(item for item in self.purchases if item.request_digest == request_digest)
        return purchase.is_open and purchase.opening is None, purchase.opening

    async def find_purchases(self, order):
        made = [purchase for purchase in self.purchases if purchase.order == order]
        return any(p.is_open and not p.opening for p in made), [p.opening for p in made if p.opening]

    async def list_endpoints(self, model_record_id):
        return [item for item in self.endpoints if item.candidate.signed_offer.offer.model_record_id == model_record_id]

    async def fetch_proof(self, opening, timeout_s):
        if self.proof is not None:
            return self.proof(opening, timeout_s)
        counter = opening.receipt.counter
        return BatchProof(0, counter, counter, ZERO32, opening.receipt_digest, ZERO32, ())


class CountingDice:
    """Repeatable dice."""

    def __init__(self):
        self.count = 0

    def token_bytes(self, size):
        self.count += 1
        return hashlib.shake_128(b"dice%d" % self.count).digest(size)


@dataclass
class World:
    """A running gateway and what a test needs to talk to it."""

    url: str
    buyer: FakeBuyer
    keys: KeyStore
    key: str
    key_id: str
    application: web.Application
    say: Callable = say
    point: Callable = point
    script: type = Script
    delta: type = FakeDelta
    rank: Callable = rank

    @property
    def base_url(self):
        return self.url + "/v1"

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def spent(self):
        return self.keys.get(self.key_id).spent


@pytest.fixture
def start_gateway(tmp_path):
    """Makes gateways: `async with start_gateway(reply=..., budget=...) as world`."""

    @asynccontextmanager
    async def start(
        *,
        reply=None,
        budget=None,
        limits=None,
        context_tokens=1000,
        dice=None,
        models=None,
        buyer=None,
        served=None,
        alias="tiny",
        payments=None,
        more=(),
        data_policy=DataPolicy.ANY,
    ):
        keys = KeyStore.open(tmp_path / "keys.sqlite", b"p" * 32)
        records = RecordStore.open(tmp_path / "records.sqlite")
        key, record = keys.create(SystemDice(), 0, name="test", budget=budget, models=models, data_policy=data_policy)
        buyer = buyer or (FakeBuyer() if reply is None else FakeBuyer(reply))
        served = served or ServedModel(
            record_id=RECORD_ID,
            record=build_record(context_tokens),
            tokenizer=ByteTokenizer(),
            render=render,
            input_price=INPUT_PRICE,
            output_price=OUTPUT_PRICE,
            created_s=1_700_000_000,
            owned_by="tests",
            aliases=(alias,),
        )
        application = build_gateway_application(
            network_id=NETWORK,
            buyer=buyer,
            models=ServedModels((served, *more)),
            keys=keys,
            clock=SystemClock(),
            dice=dice or SystemDice(),
            limits=limits or Limits(),
            records=records,
            payments=payments,
        )
        try:
            async with serve(application) as url:
                yield World(url, buyer, keys, key, record.key_id, application)
        finally:
            records.close()
            keys.close()

    return start


@pytest.fixture
async def world(start_gateway):
    """A gateway with default settings."""
    async with start_gateway() as running:
        yield running


def load_beside(name):
    """A helper module that lies beside the tests."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def x402_kit():
    """A chain with x402's contracts, money and payers."""
    return load_beside("x402_kit")


@pytest.fixture(scope="session")
def x402_money():
    """The same in memory, with payers that lie."""
    return load_beside("x402_money")


@pytest.fixture
def counting_dice():
    return CountingDice()


@pytest.fixture(scope="session")
def tiny_record():
    return build_record()


@pytest.fixture(scope="session")
def second_model():
    """A model beside the first, at twice its prices."""
    return ServedModel(
        record_id=SECOND_ID,
        record=replace(build_record(), name="second"),
        tokenizer=ByteTokenizer(),
        render=render,
        input_price=2 * INPUT_PRICE,
        output_price=2 * OUTPUT_PRICE,
        created_s=1_700_000_000,
        owned_by="tests",
    )


@pytest.fixture(scope="session")
def write_script():
    """Makes scripts that say a text."""
    return say


@pytest.fixture(scope="session")
def record_id():
    return RECORD_ID
