"""The chain as x402 payments need it: the canonical contract and one token, with this gateway's key."""

from collections.abc import Sequence

from deaios.ledger.client.channels import VoucherClaim
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.client.settlement import PaymentToken, Settlement, SettlementChannel
from deaios.ledger.eip712 import Domain, sign_struct
from deaios.ledger.structs import ChannelConfig
from deaios.ledger.x402 import TransferWithAuthorization
from deaios.market.x402 import Deposit
from deaios.primitives.keys import Address, PrivateKey


class SettlementChain:
    """`PaymentChain` over JSON-RPC."""

    def __init__(self, rpc: Rpc, sender: Sender, key: PrivateKey, token: Address, money: Domain) -> None:
        self._settlement = Settlement(rpc)
        self._token = PaymentToken(rpc, token)
        self._settled_token = PaymentToken(rpc.settled, token)
        self._sender = sender
        self._key = key
        self._money = money

    async def is_there(self) -> bool:
        """Does the chain carry x402's contracts?"""
        return await self._settlement.is_there()

    async def fetch_channels(self, channel_ids: Sequence[bytes]) -> list[SettlementChannel]:
        """The contract's side of channels."""
        return await self._settlement.fetch_channels(channel_ids)

    async def deposit(self, config: ChannelConfig, deposit: Deposit) -> bytes:
        """Put a payer's money into its channel."""
        receipt = await self._settlement.deposit(
            self._sender,
            config,
            deposit.amount,
            valid_after=deposit.valid_after,
            valid_before=deposit.valid_before,
            salt=deposit.salt,
            signature=deposit.signature,
        )
        return receipt.transaction_hash

    async def claim(self, claims: Sequence[VoucherClaim]) -> bytes:
        """Claim a batch."""
        return (await self._settlement.claim(self._sender, claims)).transaction_hash

    async def sweep(self) -> int:
        """Be paid what was claimed."""
        amount = await self._settlement.fetch_unsettled(self._key.address, self._token.address)
        if amount:
            await self._settlement.settle(self._sender, self._key.address, self._token.address)
        return amount

    async def refund(self, claims: Sequence[VoucherClaim], config: ChannelConfig, amount: int) -> bytes:
        """Claim what was earned and give back an amount, at once."""
        return (await self._settlement.refund(self._sender, claims, config, amount)).transaction_hash

    async def pay(self, authorization: TransferWithAuthorization, signature: bytes) -> bytes:
        """Carry out a signed transfer."""
        return (await self._token.transfer_with_authorization(self._sender, authorization, signature)).transaction_hash

    async def pay_back(self, authorization: TransferWithAuthorization) -> bytes:
        """Sign and carry out a transfer of this gateway's own."""
        return await self.pay(authorization, sign_struct(self._key, self._money, authorization))

    async def is_used(self, payer: Address, nonce: bytes) -> bool:
        """Was an authorization used or cancelled, for good?"""
        return await self._settled_token.is_used(payer, nonce)

    async def was_taken(self, authorization: TransferWithAuthorization) -> bool:
        """Did this very transfer happen, for good?"""
        return await self._settled_token.was_taken(authorization)
