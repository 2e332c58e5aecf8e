"""Client of x402's `batch-settlement` contract at its canonical address, and of EIP-3009 payments, for a receiver."""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.ledger.client.bound import BoundContract, to_tuple
from deaios.ledger.client.channels import CLAIMS_MAX, VoucherClaim
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.commitments import encode_collector_data
from deaios.ledger.records import TransactionReceipt
from deaios.ledger.structs import ChannelConfig
from deaios.ledger.x402 import COLLECTOR, SETTLEMENT, TransferWithAuthorization
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class SettlementChannel:
    """A channel as the contract holds it; times in Unix seconds, zero for no withdrawal."""

    balance: int = 0
    total_claimed: int = 0
    withdrawing: int = 0
    withdraw_started_at: int = 0
    refund_nonce: int = 0

    @property
    def available(self) -> int:
        """The highest cumulative amount that the deposit still backs."""
        return max(0, self.balance - self.withdrawing)


class Settlement:
    """Channels of x402 by id."""

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self.contract = BoundContract(rpc, "BatchSettlement", SETTLEMENT)

    async def is_there(self) -> bool:
        """Does the chain carry both contracts, ours or x402's own?"""
        return all(await self.rpc.get_codes([SETTLEMENT, COLLECTOR]))

    async def fetch_channels(self, channel_ids: Sequence[bytes]) -> list[SettlementChannel]:
        """Channels' money and pending withdrawals, in one exchange; zeros for unknown ones."""
        views = ("channels", "pendingWithdrawals", "refundNonce")
        calls = [(view, (channel_id,)) for channel_id in channel_ids for view in views]
        answers = await self.contract.read_many(calls)
        grouped = (answers[place : place + len(views)] for place in range(0, len(answers), len(views)))
        return [SettlementChannel(*money, *withdrawal, *nonce) for money, withdrawal, nonce in grouped]

    async def fetch_unsettled(self, receiver: Address, token: Address) -> int:
        """What a receiver claimed and was not paid yet."""
        claimed, settled = await self.contract.read("receivers", receiver, token)
        return int(claimed) - int(settled)

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
        return await self.contract.send(sender, "deposit", to_tuple(config), amount, COLLECTOR, data)

    async def claim(self, sender: Sender, claims: Sequence[VoucherClaim]) -> TransactionReceipt:
        """Claim vouchers as their receiver; at most `CLAIMS_MAX`."""
        assert 0 < len(claims) <= CLAIMS_MAX
        return await self.contract.send(sender, "claim", tuple(claim.to_abi() for claim in claims))

    async def settle(self, sender: Sender, receiver: Address, token: Address) -> TransactionReceipt:
        """Pay out what a receiver claimed; anyone may send it."""
        return await self.contract.send(sender, "settle", receiver, token)

    async def refund(
        self, sender: Sender, claims: Sequence[VoucherClaim], config: ChannelConfig, amount: int
    ) -> TransactionReceipt:
        """Claim what was earned and give unclaimed money back, in one transaction, as the receiver."""
        functions = self.contract.abi.get_function
        calls = [functions("refund").encode_call((to_tuple(config), amount))]
        if claims:
            calls.insert(0, functions("claim").encode_call((tuple(claim.to_abi() for claim in claims),)))
        return await self.contract.send(sender, "multicall", tuple(calls))

    async def initiate_withdraw(self, sender: Sender, config: ChannelConfig, amount: int) -> TransactionReceipt:
        """Begin to take money back, as the payer; the channel's delay starts now."""
        return await self.contract.send(sender, "initiateWithdraw", to_tuple(config), amount)

    async def finalize_withdraw(self, sender: Sender, config: ChannelConfig) -> TransactionReceipt:
        """Take it, after the delay."""
        return await self.contract.send(sender, "finalizeWithdraw", to_tuple(config))


class PaymentToken:
    """An EIP-3009 token that is taken as money."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Credit", address)
        self.address = address

    async def is_used(self, payer: Address, nonce: bytes) -> bool:
        """Was this authorisation used or cancelled?"""
        return bool(await self.contract.read_one("authorizationState", payer, nonce))

    async def was_taken(self, authorization: TransferWithAuthorization) -> bool:
        """Did this very transfer happen?

        A nonce is also used up by a cancellation, or by another transfer that its owner signed with it. What moved is
        what the token logs next (EIP-3009 marks the nonce, then moves the money).
        """
        payer, nonce = authorization.from_, authorization.nonce
        used = await self.contract.fetch_events("AuthorizationUsed", authorizer=payer, nonce=nonce)
        for event in used:
            receipt = await self.contract.rpc.get_receipt(event.log.transaction_hash)
            moved = self.contract.decode_logs(receipt.logs) if receipt is not None else ()
            for item in moved:
                follows = item.name == "Transfer" and item.log.log_index == event.log.log_index + 1
                if follows and tuple(item.values.values()) == (payer, authorization.to, authorization.value):
                    return True
        return False

    async def transfer_with_authorization(
        self, sender: Sender, authorization: TransferWithAuthorization, signature: bytes
    ) -> TransactionReceipt:
        """Carry out a transfer that its owner signed; anyone may send it."""
        terms = to_tuple(authorization)
        return await self.contract.send(
            sender, "transferWithAuthorization", *terms, signature[64], signature[:32], signature[32:64]
        )
