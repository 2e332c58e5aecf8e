"""Client of `Channels`: x402 `batch-settlement` payment channels."""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.ledger.client.bound import BoundContract, to_tuple
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.commitments import encode_collector_data
from deaios.ledger.records import TransactionReceipt
from deaios.ledger.structs import ChannelConfig
from deaios.primitives.keys import Address

CLAIMS_MAX = 100
"""Claims in one transaction, as in x402."""


@dataclass(frozen=True, slots=True)
class ChannelBalance:
    """A channel's money: what was deposited and not withdrawn, and what of it was claimed so far."""

    balance: int
    total_claimed: int


@dataclass(frozen=True, slots=True)
class PendingWithdrawal:
    """A withdrawal the payer began; both zero when there is none. `initiated_at` in Unix seconds."""

    amount: int
    initiated_at: int


@dataclass(frozen=True, slots=True)
class ReceiverTotals:
    """What a receiver claimed from all channels, and what of it was paid out."""

    total_claimed: int
    total_settled: int


@dataclass(frozen=True, slots=True)
class Parties:
    """Whose channel it is, as recorded at the first deposit."""

    payer: Address
    payer_authorizer: Address
    receiver: Address


@dataclass(frozen=True, slots=True)
class VoucherClaim:
    """A claim: up to `total_claimed` in all, under a voucher for at most `max_claimable_amount`."""

    config: ChannelConfig
    max_claimable_amount: int
    signature: bytes
    total_claimed: int

    def to_abi(self) -> tuple[object, ...]:
        """As the contract takes it."""
        voucher = (to_tuple(self.config), self.max_claimable_amount)
        return (voucher, self.signature, self.total_claimed)


class Channels:
    """Payment channels by id."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Channels", address)
        self.address = address

    async def balance_of(self, channel_id: bytes) -> ChannelBalance:
        """A channel's money; zero for an unknown channel."""
        return ChannelBalance(*await self.contract.read("channels", channel_id))

    async def pending_withdrawal(self, channel_id: bytes) -> PendingWithdrawal:
        """The withdrawal that waits for its delay."""
        return PendingWithdrawal(*await self.contract.read("pendingWithdrawals", channel_id))

    async def receiver_totals(self, receiver: Address, token: Address) -> ReceiverTotals:
        """What a receiver claimed and was paid."""
        return ReceiverTotals(*await self.contract.read("receivers", receiver, token))

    async def refund_nonce(self, channel_id: bytes) -> int:
        """Nonce of the next signed refund."""
        return int(await self.contract.read_one("refundNonce", channel_id))

    async def parties_of(self, channel_id: bytes) -> Parties:
        """Payer, authoriser and receiver; zero addresses for an unknown channel."""
        return Parties(*await self.contract.read("partiesOf", channel_id))

    async def get_channel_id(self, config: ChannelConfig) -> bytes:
        """The id as the contract computes it."""
        return bytes(await self.contract.read_one("getChannelId", to_tuple(config)))

    async def deposit(
        self,
        sender: Sender,
        config: ChannelConfig,
        amount: int,
        *,
        valid_after: int,
        valid_before: int,
        salt: int,
        signature: bytes,
    ) -> TransactionReceipt:
        """Move money of the payer into a channel by its EIP-3009 authorisation; anyone may send it."""
        data = encode_collector_data(valid_after, valid_before, salt, signature)
        return await self.contract.send(sender, "deposit", to_tuple(config), amount, self.address, data)

    async def claim(self, sender: Sender, claims: Sequence[VoucherClaim]) -> TransactionReceipt:
        """Claim vouchers as their receiver; at most `CLAIMS_MAX`."""
        assert 0 < len(claims) <= CLAIMS_MAX
        return await self.contract.send(sender, "claim", tuple(claim.to_abi() for claim in claims))

    async def claim_with_signature(
        self, sender: Sender, claims: Sequence[VoucherClaim], signature: bytes
    ) -> TransactionReceipt:
        """Claim for a receiver whose authoriser signed the batch."""
        assert 0 < len(claims) <= CLAIMS_MAX
        return await self.contract.send(
            sender, "claimWithSignature", tuple(claim.to_abi() for claim in claims), signature
        )

    async def settle(self, sender: Sender, receiver: Address, token: Address) -> TransactionReceipt:
        """Pay out what a receiver claimed; anyone may send it."""
        return await self.contract.send(sender, "settle", receiver, token)

    async def initiate_withdraw(self, sender: Sender, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Begin to take money back, as the payer; the channel's delay starts now."""
        return await self.contract.send(sender, "initiateWithdraw", to_tuple(config), amount)

    async def finalize_withdraw(self, sender: Sender, config: ChannelConfig) -> TransactionReceipt:
        """Take it, after the delay."""
        return await self.contract.send(sender, "finalizeWithdraw", to_tuple(config))

    async def refund(self, sender: Sender, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Give unclaimed money back to the payer, as the receiver."""
        return await self.contract.send(sender, "refund", to_tuple(config), amount)

    async def refund_with_signature(
        self, sender: Sender, config: ChannelConfig, amount: int, nonce: int, signature: bytes
    ) -> TransactionReceipt:
        """Give money back for a receiver that signed it."""
        return await self.contract.send(sender, "refundWithSignature", to_tuple(config), amount, nonce, signature)
