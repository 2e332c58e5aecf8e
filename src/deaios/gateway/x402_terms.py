"""What a gateway asks of x402 payers, and what it needs of the chain. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deaios.ledger.client.channels import VoucherClaim
from deaios.ledger.client.settlement import SettlementChannel
from deaios.ledger.eip712 import Domain
from deaios.ledger.structs import ChannelConfig
from deaios.ledger.x402 import (
    WITHDRAW_DELAY_MAX_S,
    WITHDRAW_DELAY_MIN_S,
    TransferWithAuthorization,
    network_name,
    settlement_domain,
)
from deaios.market.x402 import Deposit
from deaios.primitives.keys import Address
from deaios.primitives.units import CREDIT

BPS = 10_000
CLOCK_SLACK_S = 6
"""An authorization that ends sooner is not worth a transaction; x402's own facilitator asks for as much."""


@dataclass(frozen=True, slots=True)
class TillTerms:
    """What this gateway asks of payers.

    Attributes:
        chain_id: of the chain that the money is on.
        receiver: this gateway: who is paid, and who claims and refunds.
        token: the money.
        token_name: of its EIP-712 domain.
        token_version: the same.
        withdraw_delay: seconds that a payer's withdrawal takes: the time to claim.
        deposit_min: least deposit; each costs this gateway gas.
        payment_min: least exact payment; each costs this gateway gas.
        markup_bps: what is added to what providers ask, in hundredths of a per cent.
        timeout_s: how long a payment may take to arrive.
    """

    chain_id: int
    receiver: Address
    token: Address
    token_name: str
    token_version: str
    withdraw_delay: int = WITHDRAW_DELAY_MIN_S
    deposit_min: int = CREDIT // 10
    payment_min: int = 0
    markup_bps: int = 0
    timeout_s: int = 600

    def __post_init__(self) -> None:
        assert WITHDRAW_DELAY_MIN_S <= self.withdraw_delay <= WITHDRAW_DELAY_MAX_S
        assert 0 <= self.markup_bps <= BPS

    @property
    def network(self) -> str:
        """The chain, in CAIP-2."""
        return network_name(self.chain_id)

    @property
    def domain(self) -> Domain:
        """Domain of channels and vouchers."""
        return settlement_domain(self.chain_id)

    @property
    def money(self) -> Domain:
        """Domain of the token."""
        return Domain(self.token_name, self.token_version, self.chain_id, self.token)

    def price(self, cost: int) -> int:
        """What a payer pays for what providers are paid; rounded up."""
        return -(-cost * (BPS + self.markup_bps) // BPS)

    def cover(self, amount: int) -> int:
        """The most that may be paid to providers out of what a payer pays; `price` of it is within the amount."""
        return amount * BPS // (BPS + self.markup_bps)


class PaymentChain(Protocol):
    """What is read from and sent to the chain."""

    async def fetch_channels(self, channel_ids: Sequence[bytes]) -> list[SettlementChannel]:
        """The contract's side of channels."""

    async def deposit(self, config: ChannelConfig, deposit: Deposit) -> bytes:
        """Put a payer's money into its channel; gives the transaction's hash."""

    async def claim(self, claims: Sequence[VoucherClaim]) -> bytes:
        """Claim a batch."""

    async def sweep(self) -> int:
        """Be paid what was claimed; gives how much that was."""

    async def refund(self, claims: Sequence[VoucherClaim], config: ChannelConfig, amount: int) -> bytes:
        """Claim what was earned and give back an amount, at once."""

    async def pay(self, authorization: TransferWithAuthorization, signature: bytes) -> bytes:
        """Carry out a signed transfer."""

    async def pay_back(self, authorization: TransferWithAuthorization) -> bytes:
        """Sign and carry out a transfer of this gateway's own."""

    async def is_used(self, payer: Address, nonce: bytes) -> bool:
        """Was an authorization used or cancelled, for good?"""

    async def was_taken(self, authorization: TransferWithAuthorization) -> bool:
        """Did this very transfer happen, for good?"""
