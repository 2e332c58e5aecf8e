"""The market's view of the contracts: `ports.SellerChain` and `ports.BuyerChain` over any EVM network by URL.

What service is given for, and what is told to others as done, is read where no reorganisation takes it back; what
warns, at the latest block (docs/foreign.md).
"""

from collections.abc import Sequence

from deaios.ledger.client.channels import VoucherClaim
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import read_block
from deaios.ledger.structs import Batch, ChannelConfig, Receipt
from deaios.market.channel import ChainState
from deaios.market.ports import Authorization, Claim, Head, PublishedBatch
from deaios.primitives.encoding import encode_hex
from deaios.primitives.keys import Address


class LedgerChain:
    """Contracts and, for whoever writes, a sender."""

    def __init__(self, contracts: Contracts, sender: Sender | None = None) -> None:
        self._contracts = contracts
        self._sender = sender

    @property
    def sender(self) -> Sender:
        """Who writes; an assertion of ours that there is one."""
        assert self._sender is not None, "a reader's chain client was asked to write"
        return self._sender

    async def fetch_head(self) -> Head:
        """The newest settled block: a request is anchored in it, so both sides must go on knowing it."""
        block = await self._contracts.rpc.settled.fetch_latest()
        return Head(block.number, block.hash)

    async def fetch_block_number(self, block_hash: bytes) -> int | None:
        """Height of a block of this chain, None for an unknown hash."""
        answer = await self._contracts.rpc.call("eth_getBlockByHash", [encode_hex(block_hash), False])
        return None if answer is None else read_block(answer).number

    async def fetch_channel(self, channel_id: bytes) -> ChainState:
        """A channel's settled money, less what is being withdrawn or has just been; all zero for an unknown one."""
        channels, settled = self._contracts.channels, self._contracts.settled.channels
        # In this order: a withdrawal that is finalized in between is then subtracted twice, never not at all.
        pending = await channels.pending_withdrawal(channel_id)
        money = await settled.balance_of(channel_id)
        balance = money.balance
        if settled is not channels:
            balance = min(balance, (await channels.balance_of(channel_id)).balance)
        return ChainState(
            balance=balance,
            total_claimed=money.total_claimed,
            withdrawing=pending.amount,
            withdraw_started=pending.initiated_at != 0,
        )

    async def fetch_last_counter(self, provider: Address, *, settled: bool = True) -> int:
        """Counter of the last published receipt, 0 before the first; settled, or in the latest block."""
        contracts = self._contracts.settled if settled else self._contracts
        return await contracts.receipts.last_counter(provider)

    async def fetch_batch_count(self, provider: Address) -> int:
        """How many batches of a provider are settled."""
        return await self._contracts.settled.receipts.batch_count(provider)

    async def fetch_batch(self, provider: Address, index: int) -> PublishedBatch:
        """One settled batch."""
        record = await self._contracts.settled.receipts.batch_at(provider, index)
        batch = Batch(
            provider=provider,
            first_counter=record.first_counter,
            last_counter=record.last_counter,
            previous_root=record.previous_root,
            root=record.root,
            da_commitment=record.da_commitment,
        )
        return PublishedBatch(index, batch)

    async def publish_batch(self, batch: Batch) -> bytes:
        """Put a batch's root on chain."""
        assert batch.provider == self.sender.address, "providers publish their own batches only"
        outcome = await self._contracts.receipts.publish(
            self.sender,
            batch.first_counter,
            batch.last_counter,
            batch.previous_root,
            batch.root,
            batch.da_commitment,
        )
        return outcome.receipt.transaction_hash

    async def claim(self, claims: Sequence[Claim]) -> bytes:
        """Claim charged totals from channels."""
        rows = [VoucherClaim(claim.config, claim.signed, claim.voucher_signature, claim.total) for claim in claims]
        return (await self._contracts.channels.claim(self.sender, rows)).transaction_hash

    async def sweep(self) -> bytes:
        """Pay what was claimed out to the provider."""
        addresses = self._contracts.addresses
        receipt = await self._contracts.channels.settle(self.sender, self.sender.address, addresses.credit)
        return receipt.transaction_hash

    async def has_challenges(self) -> bool:
        """Whether anybody's claims are challenged now."""
        return await self._contracts.forks.deadline() != 0

    async def fetch_challenge(self, channel_id: bytes) -> int | None:
        """The total that a challenge wants a receipt for, None where there is none."""
        challenge = await self._contracts.forks.challenge_of(channel_id)
        return challenge.total if challenge.deadline else None

    async def show_receipt(self, receipt: Receipt, signature: bytes) -> bytes:
        """Answer the challenge of the receipt's channel."""
        shown = await self._contracts.forks.show_receipt(self.sender, receipt.channel_id, receipt, signature)
        return shown.transaction_hash

    async def deposit(self, config: ChannelConfig, amount: int, authorization: Authorization) -> bytes:
        """Put money into a channel."""
        receipt = await self._contracts.channels.deposit(
            self.sender,
            config,
            amount,
            valid_after=authorization.valid_after,
            valid_before=authorization.valid_before,
            salt=int.from_bytes(authorization.salt),
            signature=authorization.signature,
        )
        return receipt.transaction_hash

    async def initiate_withdraw(self, config: ChannelConfig, amount: int) -> bytes:
        """Ask for money back; it comes after the channel's delay."""
        return (await self._contracts.channels.initiate_withdraw(self.sender, config, amount)).transaction_hash

    async def finalize_withdraw(self, config: ChannelConfig) -> bytes:
        """Take it, when the delay is over."""
        return (await self._contracts.channels.finalize_withdraw(self.sender, config)).transaction_hash
