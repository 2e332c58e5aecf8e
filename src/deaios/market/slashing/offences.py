"""Offences that signatures prove without a jury, and when a claim may be doubted.

Pure. Invariant: receipts, batches and claims of a provider that keeps to the protocol give no offence and no doubt.
Source: docs/spec/protocol.md §4; the keys are those of `Forks.vy`. It does not know where receipts come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.ledger.abi import encode_values
from deaios.ledger.eip712 import Domain, hash_struct, recover_signer
from deaios.ledger.structs import Offer, Request
from deaios.market.batches import SignedReceipt
from deaios.market.channel import BuyerChannel
from deaios.market.opening import Opening
from deaios.market.receipts import compute_fee_due
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address
from deaios.primitives.merkle import prove_leaf

KIND_COUNTER = 1
KIND_REQUEST = 2
KIND_FEE = 4


@dataclass(frozen=True, slots=True)
class DoubleCounter:
    """Two receipts of one key with one counter."""

    provider: Address
    first: SignedReceipt
    second: SignedReceipt

    @property
    def key(self) -> bytes:
        """The name of this lie in the contract."""
        return compute_offence_key(self.provider, KIND_COUNTER, self.first.receipt.counter.to_bytes(32))


@dataclass(frozen=True, slots=True)
class DoubleRequest:
    """Two receipts of one key for one request."""

    provider: Address
    first: SignedReceipt
    second: SignedReceipt

    @property
    def key(self) -> bytes:
        """The name of this lie in the contract."""
        return compute_offence_key(self.provider, KIND_REQUEST, self.first.receipt.request_digest)


@dataclass(frozen=True, slots=True)
class BatchMismatch:
    """A signed receipt, and the leaf that a published batch has at its counter."""

    provider: Address
    entry: SignedReceipt
    batch_index: int
    leaf: bytes
    path: tuple[bytes, ...]

    @property
    def key(self) -> bytes:
        """The name of this lie in the contract: the same as of two receipts with this counter."""
        return compute_offence_key(self.provider, KIND_COUNTER, self.entry.receipt.counter.to_bytes(32))


@dataclass(frozen=True, slots=True)
class WrongFee:
    """A signed fee that the offer named in its request does not give, or above what that request allows."""

    provider: Address
    entry: SignedReceipt
    request: Request
    offer: Offer

    @property
    def key(self) -> bytes:
        """The name of this lie in the contract: one for each request, however many fees are signed for it."""
        return compute_offence_key(self.provider, KIND_FEE, self.entry.receipt.request_digest)


Offence = DoubleCounter | DoubleRequest | BatchMismatch | WrongFee


def compute_offence_key(provider: Address, kind: int, subject: bytes) -> bytes:
    """Key of `Forks.proven`: keccak256(abi.encode(provider, kind, subject))."""
    return keccak256(encode_values(("address", "uint8", "bytes32"), (provider, kind, subject)))


def find_double(
    domain: Domain, provider: Address, first: SignedReceipt, second: SignedReceipt
) -> DoubleCounter | DoubleRequest | None:
    """What two receipts prove against a provider; None where both may stand, or one is not its own."""
    if first.digest == second.digest:
        return None
    is_counter = first.receipt.counter == second.receipt.counter
    if not is_counter and first.receipt.request_digest != second.receipt.request_digest:
        return None
    if not all(_is_signed_by(domain, provider, entry) for entry in (first, second)):
        return None
    return DoubleCounter(provider, first, second) if is_counter else DoubleRequest(provider, first, second)


def find_batch_offences(
    domain: Domain, provider: Address, index: int, batch: Sequence[SignedReceipt], held: Sequence[SignedReceipt]
) -> tuple[Offence, ...]:
    """Where a published batch excludes receipts that somebody holds.

    Args:
        domain: the network's protocol domain.
        provider: whose batch it is.
        index: of the batch on chain.
        batch: its entries, which were checked against the root on chain.
        held: receipts of this provider in any order.
    """
    found: list[Offence] = []
    first_counter = batch[0].receipt.counter
    by_request = {entry.receipt.request_digest: entry for entry in batch}
    digests: list[bytes] | None = None
    for entry in held:
        place = entry.receipt.counter - first_counter
        if 0 <= place < len(batch) and batch[place].receipt != entry.receipt:
            if _is_signed_by(domain, provider, entry):
                digests = digests or [item.digest for item in batch]
                path = tuple(prove_leaf(digests, place))
                found.append(BatchMismatch(provider, entry, index, digests[place], path))
            continue
        twin = by_request.get(entry.receipt.request_digest)
        if twin is not None and (double := find_double(domain, provider, entry, twin)) is not None:
            found.append(double)
    return tuple(found)


def find_wrong_fee(domain: Domain, opening: Opening) -> WrongFee | None:
    """What a purchase's receipt proves about its fee; None where it is the price of what it says was delivered.

    The provider's signature on the receipt binds request and offer by their digests; nobody else's is needed.
    """
    receipt, request, offer = opening.receipt, opening.request, opening.offer
    due = compute_fee_due(offer, receipt.state, receipt.prompt_tokens, receipt.completion_tokens)
    if receipt.fee == due and receipt.fee <= request.max_fee:
        return None
    if receipt.request_digest != hash_struct(request) or request.offer_digest != hash_struct(offer):
        return None
    entry = SignedReceipt(receipt, opening.receipt_signature)
    if request.provider != offer.provider or not _is_signed_by(domain, request.provider, entry):
        return None
    return WrongFee(request.provider, entry, request, offer)


def is_claim_unexplained(claimed: int, channel: BuyerChannel) -> bool:
    """Does a claim exceed all that receipts and open purchases of this buyer allow?

    Read the claim first, then the channel: a fee that moves from open to settled in between then counts all the time.
    """
    return claimed > channel.settled + channel.reserved


def _is_signed_by(domain: Domain, provider: Address, entry: SignedReceipt) -> bool:
    try:
        return recover_signer(domain, entry.receipt, entry.signature) == provider
    except Invalid:
        return False
