"""Fakes and builders for the market's tests: a chain in memory, a generator without a model, papers ready to send."""

import asyncio
import importlib.util
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits
from deaios.chain.service import build_application as build_chain_application
from deaios.compute.logprobs import Ranking
from deaios.compute.sampling import seed_of
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import deploy_suite
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.eip712 import hash_struct, recover_signer, sign_struct
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import (
    Ask,
    Batch,
    ChannelConfig,
    FinishReason,
    Level,
    Offer,
    Params,
    Receipt,
    Request,
    Voucher,
)
from deaios.ledger.suite import COMPUTE, CREDIT_NAME, CREDIT_VERSION
from deaios.market.channel import ChainState
from deaios.market.client import LedgerChain
from deaios.market.offers import SignedOffer, compute_quote, sign_offer, validate_offer
from deaios.market.opening import Opening
from deaios.market.orders import Order, Papers, build_ask
from deaios.market.ports import Assignment, Authorization, Claim, Head, Piece, PublishedBatch
from deaios.market.preferences import Preferences  # noqa: F401 # for tests, by the kit
from deaios.market.receipts import FIRST_LINK, Delivery, Link, State, build_receipt
from deaios.market.routing import Candidate
from deaios.market.seller.service import Seller, SellerSettings
from deaios.market.terms import Terms
from deaios.market.wire import OfferAnswer, read_offer
from deaios.primitives.errors import Refused, Unavailable
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.keys import Address, PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient, UnavailablePeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

VOCABULARY = 1000
STOP = 7
NOW_MS = 1_800_000_000_000
RECORD = sha256(b"record")
PROFILE = sha256(b"profile")


class RefusedByFakeChain(Refused):
    """The fake contract's revert."""


class UnavailableFakeChain(Unavailable):
    """The fake node is down."""


def build_key(name: str) -> PrivateKey:
    return PrivateKey(sha256(b"key " + name.encode()))


BUYER = build_key("buyer")
SELLER = build_key("seller")
TERMS = Terms(
    chain_id=31337,
    network_id=sha256(b"genesis"),
    disputes=build_key("disputes").address,
    channels=build_key("channels").address,
    token=build_key("token").address,
    token_name="Test Credit",
    token_version="1",
)


@dataclass
class FakeChain:
    """Channels and Receipts in memory, with the contracts' rules; `down` makes every call fail."""

    terms: Terms = TERMS
    number: int = 100
    down: bool = False
    channels: dict[bytes, ChainState] = field(default_factory=dict)
    batches: dict[Address, list[Batch]] = field(default_factory=dict)
    paid: int = 0
    claims: list[Claim] = field(default_factory=list)
    deposits: int = 0
    lose_answer: bool = False
    challenges: dict[bytes, int] = field(default_factory=dict)
    unsettled: int = 0
    """How many of the newest batches may still be taken back."""

    def settled_batches(self, provider: Address) -> list[Batch]:
        batches = self.batches.get(provider, [])
        return batches[: len(batches) - self.unsettled]

    def check(self) -> None:
        if self.down:
            raise UnavailableFakeChain("fake chain is down")

    def hash_at(self, number: int) -> bytes:
        return sha256(b"block" + number.to_bytes(8))

    async def fetch_head(self) -> Head:
        self.check()
        return Head(self.number, self.hash_at(self.number))

    async def fetch_block_number(self, block_hash: bytes) -> int | None:
        self.check()
        return next((n for n in range(self.number, -1, -1) if self.hash_at(n) == block_hash), None)

    async def fetch_channel(self, channel_id: bytes) -> ChainState:
        self.check()
        return self.channels.get(channel_id, ChainState())

    async def fetch_last_counter(self, provider: Address, *, settled: bool = True) -> int:
        self.check()
        batches = self.settled_batches(provider) if settled else self.batches.get(provider, [])
        return batches[-1].last_counter if batches else 0

    async def fetch_batch_count(self, provider: Address) -> int:
        self.check()
        return len(self.settled_batches(provider))

    async def fetch_batch(self, provider: Address, index: int) -> PublishedBatch:
        self.check()
        return PublishedBatch(index, self.settled_batches(provider)[index])

    async def publish_batch(self, batch: Batch) -> bytes:
        self.check()
        batches = self.batches.setdefault(batch.provider, [])
        last, root = (batches[-1].last_counter, batches[-1].root) if batches else (0, ZERO32)
        if batch.first_counter != last + 1 or batch.previous_root != root:
            raise RefusedByFakeChain(f"batch starts at {batch.first_counter}, last counter is {last}")
        batches.append(batch)
        self.number += 1
        if self.lose_answer:
            self.lose_answer = False
            raise UnavailableFakeChain("the answer was lost, the transaction was not")
        return hash_struct(batch)

    async def claim(self, claims: Sequence[Claim]) -> bytes:
        self.check()
        for claim in claims:
            state = self.channels[self.terms.channel_id(claim.config)]
            if not claim.total <= min(claim.signed, state.balance):
                raise RefusedByFakeChain(f"claim {claim.total} exceeds voucher or balance")
        for claim in claims:
            channel_id = self.terms.channel_id(claim.config)
            state = self.channels[channel_id]
            self.channels[channel_id] = replace(state, total_claimed=max(state.total_claimed, claim.total))
            self.claims.append(claim)
        return ZERO32

    async def sweep(self) -> bytes:
        self.check()
        self.paid = sum(state.total_claimed for state in self.channels.values())
        return ZERO32

    async def has_challenges(self) -> bool:
        self.check()
        return bool(self.challenges)

    async def fetch_challenge(self, channel_id: bytes) -> int | None:
        self.check()
        return self.challenges.get(channel_id)

    async def show_receipt(self, receipt: Receipt, signature: bytes) -> bytes:
        self.check()
        assert receipt.charged_cumulative >= self.challenges.pop(receipt.channel_id)
        assert recover_signer(self.terms.protocol, receipt, signature) == SELLER.address
        return ZERO32

    async def deposit(self, config: ChannelConfig, amount: int, authorization: Authorization) -> bytes:
        self.check()
        assert len(authorization.signature) == 65
        self.put(config, amount)
        self.deposits += 1
        return ZERO32

    def put(self, config: ChannelConfig, amount: int) -> None:
        channel_id = self.terms.channel_id(config)
        state = self.channels.get(channel_id, ChainState())
        self.channels[channel_id] = replace(state, balance=state.balance + amount)

    async def initiate_withdraw(self, config: ChannelConfig, amount: int) -> bytes:
        self.check()
        channel_id = self.terms.channel_id(config)
        self.channels[channel_id] = replace(self.channels[channel_id], withdrawing=amount, withdraw_started=True)
        return ZERO32

    async def finalize_withdraw(self, config: ChannelConfig) -> bytes:
        self.check()
        channel_id = self.terms.channel_id(config)
        state = self.channels[channel_id]
        amount = min(state.withdrawing, state.balance - state.total_claimed)
        self.channels[channel_id] = ChainState(state.balance - amount, state.total_claimed)
        return ZERO32


def sample_fake(seed: bytes, position: int) -> int:
    """A token that depends on seed and position only; never the stop token."""
    return 10 + int.from_bytes(sha256(seed + position.to_bytes(4))[:4]) % (VOCABULARY - 10)


def rank_fake(token: int, count: int) -> Ranking:
    """The sampled token at one in a thousand, the most probable ones at less and less than a half."""
    top = tuple((VOCABULARY + rank, -700_000 - 500_000 * rank) for rank in range(count))
    return ((token, min([-6_907_755, *(value for _, value in top)])), *top)


@dataclass
class FakeGenerator:
    """Seeded tokens without a model; `gate` holds it before each token until released."""

    stop_after: int | None = None
    fail_after: int | None = None
    error: Exception | None = None
    gate: asyncio.Semaphore | None = None
    started: int = 0
    closed: int = 0
    asked: list[int | None] = field(default_factory=list)
    owners: list[bytes | None] = field(default_factory=list)
    cached: int = 0
    is_mute: bool = False

    def rank(self, token: int, logprobs: int | None) -> Ranking | None:
        return None if logprobs is None or self.is_mute else rank_fake(token, logprobs)

    async def __call__(self, wanted: Assignment) -> AsyncIterator[Piece]:
        params, logprobs = wanted.params, wanted.logprobs
        self.started += 1
        self.asked.append(logprobs)
        self.owners.append(wanted.owner)
        try:
            for position in range(params.max_tokens):
                if self.gate is not None:
                    await self.gate.acquire()
                if self.fail_after is not None and position >= self.fail_after:
                    assert self.error is not None
                    raise self.error
                if position == self.stop_after:
                    yield Piece(STOP, FinishReason.STOP_TOKEN, 0, self.rank(STOP, logprobs))
                    return
                is_last = position == params.max_tokens - 1
                token = sample_fake(wanted.seed, position)
                yield Piece(token, FinishReason.LENGTH if is_last else None, 0, self.rank(token, logprobs), self.cached)
                await asyncio.sleep(0)
        finally:
            self.closed += 1


@dataclass
class FakeVault:
    """Where batches go."""

    blobs: dict[bytes, bytes] = field(default_factory=dict)
    down: bool = False
    refused: int = 0

    async def __call__(self, data: bytes) -> bytes:
        if self.down:
            self.refused += 1
            raise UnavailableFakeChain("vault is down")
        self.blobs[sha256(data)] = data
        return sha256(data)


def build_offer(key: PrivateKey = SELLER, url: str = "http://127.0.0.1:1", **changes: object) -> SignedOffer:
    fields: dict[str, object] = {
        "provider": key.address,
        "model_record_id": RECORD,
        "engine_profile": PROFILE,
        "level": Level.SEEDED,
        "input_price": CREDIT,
        "output_price": 4 * CREDIT,
        "context_tokens": 4096,
        "streams_max": 8,
        "withdraw_delay_min": 900,
        "url": url,
        "valid_until": NOW_MS + 3_600_000,
    }
    return sign_offer(key, TERMS.protocol, Offer(**(fields | changes)))  # type: ignore[arg-type]


def build_params(**changes: object) -> Params:
    fields: dict[str, object] = {
        "temperature_milli": 1000,
        "top_k": 0,
        "top_p_milli": 1000,
        "max_tokens": 16,
        "stop_ids": (),
        "stop_strings": (),
        "mask_hash": ZERO32,
    }
    return Params(**(fields | changes))  # type: ignore[arg-type]


def build_order(name: str = "order", *, prompt: Sequence[int] = (1, 2, 3), **changes: object) -> Order:
    params = changes.pop("params", None) or build_params()
    fields: dict[str, object] = {
        "model_record_id": RECORD,
        "prompt_ids": tuple(prompt),
        "params": params,
        "context": b"{}",
        "body": b"{}",
        "client_nonce": sha256(b"client" + name.encode()),
        "nonce": sha256(b"nonce" + name.encode()),
        "salt": sha256(b"salt" + name.encode()),
    }
    return Order(**(fields | changes))  # type: ignore[arg-type]


def build_config(buyer: PrivateKey = BUYER, seller: Address = SELLER.address, **changes: object) -> ChannelConfig:
    fields: dict[str, object] = {
        "payer": buyer.address,
        "payer_authorizer": buyer.address,
        "receiver": seller,
        "receiver_authorizer": seller,
        "token": TERMS.token,
        "withdraw_delay": 900,
        "salt": ZERO32,
    }
    return ChannelConfig(**(fields | changes))  # type: ignore[arg-type]


def build_papers(
    offer: SignedOffer,
    order: Order | None = None,
    *,
    signed: int = CREDIT // 4,
    head: Head | None = None,
    buyer: PrivateKey = BUYER,
    config: ChannelConfig | None = None,
    request: dict[str, object] | None = None,
    ask: Ask | None = None,
) -> Papers:
    order = order or build_order()
    head = head or Head(100, sha256(b"block" + (100).to_bytes(8)))
    ask = ask or build_ask(order, buyer.address)
    config = config or build_config(buyer, offer.offer.provider)
    channel_id = TERMS.channel_id(config)
    fields: dict[str, object] = {
        "ask_digest": hash_struct(ask),
        "provider": offer.offer.provider,
        "offer_digest": offer.digest,
        "channel_id": channel_id,
        "max_fee": compute_quote(offer.offer, len(order.prompt_ids), order.params.max_tokens),
        "anchor_block_hash": head.block_hash,
        "deadline_block": head.number + 100,
    }
    made = Request(**(fields | (request or {})))  # type: ignore[arg-type]
    voucher = Voucher(channel_id=channel_id, max_claimable_amount=signed)
    return Papers(
        ask=ask,
        salt=order.salt,
        prompt_ids=order.prompt_ids,
        request=made,
        request_signature=sign_struct(buyer, TERMS.protocol, made),
        channel=config,
        voucher=voucher,
        voucher_signature=sign_struct(buyer, TERMS.vouchers, voucher),
        logprobs=order.logprobs,
        constraint=order.constraint,
    )


def build_opening(
    papers: Papers,
    offer: SignedOffer,
    ids: tuple[int, ...],
    *,
    state: State = State.SERVED,
    reason: FinishReason = FinishReason.STOP_TOKEN,
    link: Link = FIRST_LINK,
    seller: PrivateKey = SELLER,
    receipt: dict[str, object] | None = None,
) -> Opening:
    """An opening whose receipt the seller signed, honest unless `receipt` changes it."""
    delivery = Delivery(state, reason, 0, ids, NOW_MS, NOW_MS + 1, NOW_MS + 2)
    made = build_receipt(papers.ask, papers.salt, papers.request, offer.offer, delivery, link, 1000)
    made = replace(made, **(receipt or {}))  # type: ignore[arg-type]
    return Opening(
        ask=papers.ask,
        salt=papers.salt,
        offer=offer.offer,
        offer_signature=offer.signature,
        request=papers.request,
        request_signature=papers.request_signature,
        output_ids=ids,
        receipt=made,
        receipt_signature=sign_struct(seller, TERMS.protocol, made),
        constraint=papers.constraint,
    )


def build_settings(url: str = "http://127.0.0.1:1", **changes: object) -> SellerSettings:
    fields: dict[str, object] = {
        "url": url,
        "model_record_id": RECORD,
        "engine_profile": PROFILE,
        "vocabulary_size": VOCABULARY,
        "context_tokens": 4096,
        "drain_s": 0.0,
        "batch_interval_s": 3600.0,
        "watch_interval_s": 3600.0,
        "claim_interval_s": 3600.0,
    }
    return SellerSettings(**(fields | changes))  # type: ignore[arg-type]


async def expected_ids(order: Order, buyer: Address, count: int) -> tuple[int, ...]:
    seed = seed_of(build_ask(order, buyer))
    return tuple(sample_fake(seed, position) for position in range(count))


async def wait_for(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds; the test's own time limit is the bound."""
    while not condition():  # what is waited for has no event of its own
        await asyncio.sleep(0.001)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class FakeDirectory:
    """Whoever was put in, with the offer it shows now."""

    urls: dict[Address, str] = field(default_factory=dict)
    power: dict[Address, int] = field(default_factory=dict)
    paused: set[Address] = field(default_factory=set)
    refreshed: int = 0

    async def fetch_candidates(self) -> tuple[Candidate, ...]:
        found = []
        async with HttpClient() as http:
            for provider, url in self.urls.items():
                try:
                    offer, signature = read_offer(await http.get_json(f"{url}/offer", OfferAnswer))
                except UnavailablePeer:
                    continue
                now_ms = SystemClock().now_ms()
                signed = validate_offer(TERMS.protocol, offer, signature, provider, now_ms)
                found.append(Candidate(provider, signed, self.power.get(provider, 50), provider in self.paused))
        return tuple(found)

    async def refresh(self) -> None:
        self.refreshed += 1


@dataclass
class FakeObserver:
    lies: list[tuple[Address, Exception, Opening | None]] = field(default_factory=list)

    def provider_lied(self, provider: Address, error: Exception, opening: Opening | None) -> None:
        self.lies.append((provider, error, opening))


@pytest.fixture
def kit() -> SimpleNamespace:
    """Everything above by name, because test modules cannot import each other."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("_")})


@pytest.fixture
def buyer_world(kit: SimpleNamespace, tmp_path: Path) -> Callable[[AsyncExitStack], object]:
    """Makes a world of providers and buyers that ends with a stack."""
    spec = importlib.util.spec_from_file_location("buyer_world", Path(__file__).with_name("buyer_world.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda stack: module.World(kit, tmp_path, stack)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "seller.db"


FAST = Patience(poll_min_s=0.01, poll_max_s=0.05)


@dataclass
class Network:
    """A chain with contracts and money for whoever joins."""

    path: Path
    stack: AsyncExitStack
    rpc: Rpc
    contracts: Contracts
    operator: Sender
    terms: Terms

    async def join(self, key: PrivateKey, credit: int) -> Sender:
        await self.operator.send(key.address, value=ETHER)
        await self.contracts.credit.transfer(self.operator, key.address, credit)
        sender = Sender(self.rpc, key, self.terms.chain_id, patience=FAST)
        self.stack.push_async_callback(sender.close)
        return sender

    async def add_seller(self, name, generator, *, stake=50 * CREDIT):
        key = build_key(name)
        sender = await self.join(key, max(stake, CREDIT))
        if stake:
            await self.contracts.credit.approve(sender, self.contracts.staking.address, stake)
            await self.contracts.staking.stake(sender, stake)
            await self.contracts.staking.opt_in(sender, COMPUTE, 10_000)
        port = free_port()
        await self.contracts.identities.ensure_registered(sender, f"http://127.0.0.1:{port}", "provider")
        return key, sender, port, generator

    @asynccontextmanager
    async def running(self, member, vault):
        key, sender, port, generator = member
        seller = Seller(
            key,
            self.terms,
            build_settings(f"http://127.0.0.1:{port}"),
            self.path / f"{key.address.hex()}.db",
            LedgerChain(self.contracts, sender),
            generator,
            vault,
        )
        async with seller, serve(seller.application, port=port):
            yield seller


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    operator = build_key("operator")
    genesis = Genesis(
        seed=sha256(b"market test"),
        operator=operator.address,
        timestamp=SystemClock().now_ms() // 1000,
        allocations=(Allocation(operator.address, 1000 * ETHER),),
    )
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(4))
        chain = await ChainService.start(
            tmp_path / "chain.db",
            operator,
            genesis,
            executor=executor,
            clock=SystemClock(),
            limits=Limits(block_ms=10, gather_ms=1),
        )
        stack.push_async_callback(chain.close)
        running = asyncio.create_task(chain.run())
        stack.callback(running.cancel)
        url = await stack.enter_async_context(serve(build_chain_application(chain)))
        rpc = await stack.enter_async_context(Rpc(url))
        sender = Sender(rpc, operator, chain.chain_id, patience=FAST)
        stack.push_async_callback(sender.close)
        contracts = Contracts(rpc, await deploy_suite(sender, rpc, LOCAL))
        first = await rpc.get_block(0)
        terms = Terms(
            chain_id=chain.chain_id,
            network_id=first.hash,
            disputes=contracts.addresses.disputes,
            channels=contracts.addresses.channels,
            token=contracts.addresses.credit,
            token_name=CREDIT_NAME,
            token_version=CREDIT_VERSION,
        )
        yield Network(tmp_path, stack, rpc, contracts, sender, terms)
