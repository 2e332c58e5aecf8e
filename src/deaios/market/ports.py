"""What the market needs from outside: a chain to settle on, a generator, a place for batches.

Protocols only, each with a live version and a fake that tests run against. No I/O here.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from deaios.compute.logprobs import Ranking
from deaios.ledger.structs import Batch, ChannelConfig, FinishReason, Params, Receipt
from deaios.market.channel import ChainState
from deaios.market.opening import Opening
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class Head:
    """The newest block that no reorganisation takes back."""

    number: int
    block_hash: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """What a receiver may take: never above the highest receipt's charged total."""

    config: ChannelConfig
    signed: int
    voucher_signature: bytes
    total: int


@dataclass(frozen=True, slots=True)
class Authorization:
    """An EIP-3009 transfer into a channel, signed by the payer."""

    valid_after: int
    valid_before: int
    salt: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class PublishedBatch:
    """A batch as the chain holds it."""

    index: int
    batch: Batch


class ChainPort(Protocol):
    """What both sides read."""

    async def fetch_head(self) -> Head:
        """The newest settled block."""

    async def fetch_block_number(self, block_hash: bytes) -> int | None:
        """Height of a block of this chain, None for an unknown hash."""

    async def fetch_channel(self, channel_id: bytes) -> ChainState:
        """A channel's settled deposit and claims, and any withdrawal that has begun; all zero for an unknown one."""

    async def fetch_last_counter(self, provider: Address, *, settled: bool = True) -> int:
        """Counter of the last published receipt, 0 before the first; settled, or in the latest block."""

    async def fetch_batch_count(self, provider: Address) -> int:
        """How many batches of a provider are settled."""

    async def fetch_batch(self, provider: Address, index: int) -> PublishedBatch:
        """One settled batch."""


class SellerChain(ChainPort, Protocol):
    """What a provider also writes; every call returns the transaction hash, once it is in a block."""

    async def publish_batch(self, batch: Batch) -> bytes:
        """Put a batch's root on chain."""

    async def claim(self, claims: Sequence[Claim]) -> bytes:
        """Claim charged totals from channels."""

    async def sweep(self) -> bytes:
        """Pay what was claimed out to the provider."""

    async def has_challenges(self) -> bool:
        """Whether anybody's claims are challenged now."""

    async def fetch_challenge(self, channel_id: bytes) -> int | None:
        """The total that a challenge wants a receipt for, None where there is none."""

    async def show_receipt(self, receipt: Receipt, signature: bytes) -> bytes:
        """Answer the challenge of the receipt's channel."""


class BuyerChain(ChainPort, Protocol):
    """What a buyer also writes."""

    async def deposit(self, config: ChannelConfig, amount: int, authorization: Authorization) -> bytes:
        """Put money into a channel."""

    async def initiate_withdraw(self, config: ChannelConfig, amount: int) -> bytes:
        """Ask for money back; it comes after the channel's delay."""

    async def finalize_withdraw(self, config: ChannelConfig) -> bytes:
        """Take it, when the delay is over."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One sampled token; the last one says why it is the last. `logprobs` is there where it was asked for.

    `cached_tokens` is how many ids of the prompt the generator had read before, the same with every token. `leaf` is
    its fingerprint, where that was asked for.
    """

    token: int
    finish: FinishReason | None = None
    stop_index: int = 0
    logprobs: Ranking | None = None
    cached_tokens: int = 0
    leaf: bytes = b""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One answer that a generator is to sample.

    Attributes:
        prompt_ids: rendered prompt.
        params: of the ask.
        seed: of the ask.
        logprobs: how many of the most probable tokens come with each; None for none.
        constraint: canonical bytes of what the answer is held to, which the params bind; None for nothing.
        prefix: how another provider began this answer. The pieces then begin with these ids, each as soon as it has
            been checked against the model; who samples the whole answer anew may leave the prefix unread.
        is_printed: whether each piece has to come with its fingerprint.
        is_exact: whether exact replay on this engine has to give the answer.
        owner: who pays; what was read for one payer may be used again for the same one, and for nobody else.
    """

    prompt_ids: tuple[int, ...]
    params: Params
    seed: bytes
    logprobs: int | None = None
    constraint: bytes | None = None
    prefix: tuple[int, ...] = ()
    owner: bytes | None = None
    is_printed: bool = False
    is_exact: bool = False


class Generate(Protocol):
    """The model: prompt ids in, sampled ids out; closing the iterator early frees what it holds.

    It raises `Unavailable…` or `Refused…` where it cannot serve.
    """

    def __call__(self, assignment: Assignment, /) -> AsyncIterator[Piece]:
        """Start one generation.

        Raises:
            InvalidPrefix: while iterating; the model could not have sampled one of the prefix's ids.
        """


class PutBytes(Protocol):
    """Where batches are kept: returns the 32-byte id under which anybody can fetch them."""

    async def __call__(self, data: bytes) -> bytes:
        """Store bytes durably."""


class Observer(Protocol):
    """Who is told when a provider is caught lying."""

    def provider_lied(self, provider: Address, error: Invalid, opening: Opening | None) -> None:
        """A provider broke the protocol; `opening` is the evidence where there is a signed receipt."""
