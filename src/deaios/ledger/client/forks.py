"""Client of `Forks`: slashing by signatures alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.ledger.abi import Value
from deaios.ledger.client.bound import BoundContract, to_tuple
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import TransactionReceipt
from deaios.ledger.structs import ChannelConfig, Offer, Receipt, Request
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class ClaimChallenge:
    """A provider was asked to show the receipt behind a claim; zero where nobody asked. Deadline in Unix seconds."""

    challenger: Address
    provider: Address
    total: int
    deadline: int


def to_offer_tuple(offer: Offer) -> tuple[Value, ...]:
    """An offer as the contract takes it: its URL as EIP-712 hashes it."""
    *head, url, valid_until = to_tuple(offer)
    assert isinstance(url, str), "the last field but one of an offer is its URL"
    return (*head, keccak256(url.encode()), valid_until)


class Forks:
    """Proofs of what no honest provider signs."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Forks", address)
        self.address = address

    async def is_proven(self, key: bytes) -> bool:
        """Was this offence proven before?"""
        return bool(await self.contract.read_one("proven", key))

    async def challenge_of(self, channel_id: bytes) -> ClaimChallenge:
        """The open challenge of a channel's claim."""
        return ClaimChallenge(*await self.contract.read("challengeOf", channel_id))

    async def shown_up_to(self, channel_id: bytes) -> int:
        """The highest charged total that a receipt was shown for."""
        return int(await self.contract.read_one("shownUpTo", channel_id))

    async def deadline(self) -> int:
        """Latest deadline of an open challenge, Unix seconds; 0 if none."""
        return int(await self.contract.read_one("deadline"))

    async def prove_double_counter(
        self, sender: Sender, first: Receipt, first_signature: bytes, second: Receipt, second_signature: bytes
    ) -> TransactionReceipt:
        """Two receipts with one counter."""
        return await self.contract.send(
            sender, "proveDoubleCounter", to_tuple(first), first_signature, to_tuple(second), second_signature
        )

    async def prove_double_request(
        self, sender: Sender, first: Receipt, first_signature: bytes, second: Receipt, second_signature: bytes
    ) -> TransactionReceipt:
        """Two receipts for one request."""
        return await self.contract.send(
            sender, "proveDoubleRequest", to_tuple(first), first_signature, to_tuple(second), second_signature
        )

    async def prove_batch_mismatch(
        self,
        sender: Sender,
        receipt: Receipt,
        signature: bytes,
        batch_index: int,
        leaf_digest: bytes,
        path: Sequence[bytes],
    ) -> TransactionReceipt:
        """A published batch holds another leaf at a signed receipt's counter."""
        return await self.contract.send(
            sender, "proveBatchMismatch", to_tuple(receipt), signature, batch_index, leaf_digest, tuple(path)
        )

    async def prove_wrong_fee(
        self, sender: Sender, receipt: Receipt, signature: bytes, request: Request, offer: Offer
    ) -> TransactionReceipt:
        """A signed fee is above the request's maximum, or is not the offer's price of the receipt's own counts."""
        return await self.contract.send(
            sender, "proveWrongFee", to_tuple(receipt), signature, to_tuple(request), to_offer_tuple(offer)
        )

    async def challenge_claim(self, sender: Sender, config: ChannelConfig) -> TransactionReceipt:
        """Ask for the receipt behind a claim; the allowance for the bond comes first."""
        return await self.contract.send(sender, "challengeClaim", to_tuple(config))

    async def show_receipt(
        self, sender: Sender, channel_id: bytes, receipt: Receipt, signature: bytes
    ) -> TransactionReceipt:
        """Answer a challenge."""
        return await self.contract.send(sender, "showReceipt", channel_id, to_tuple(receipt), signature)

    async def finalize_claim(self, sender: Sender, channel_id: bytes) -> TransactionReceipt:
        """Slash for a challenge that nobody answered in time; anyone may."""
        return await self.contract.send(sender, "finalizeClaim", channel_id)
