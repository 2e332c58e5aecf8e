"""Publishing receipts, collecting money, answering challenges: loops that a crash may stop anywhere.

Invariants: a batch is planned in the journal, then sent, then marked; before sending, the chain is asked what it
already has, so nothing is published twice; it is marked once its root is settled. A claim is never above the charges
of journalled receipts. A withdrawal that a payer began is answered by a claim at the next look, which is far within the
channel's delay; so is a challenge of a claim by the receipt behind it, because silence would be slashed.
"""

import asyncio

from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import Batch
from deaios.market.batches import (
    BATCH_RECEIPTS_MAX,
    SignedReceipt,
    build_batch,
    encode_batch,
    is_batch_due,
)
from deaios.market.ports import Claim, PublishedBatch, PutBytes, SellerChain
from deaios.market.seller.service.desk import Desk
from deaios.market.seller.service.settings import SellerSettings
from deaios.market.seller.store import BatchRow, SellerStore
from deaios.market.terms import Terms
from deaios.market.view import ChainView
from deaios.primitives.errors import ConfigError, Invalid, Refused, Unavailable
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import PrivateKey
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

CLAIMS_MAX = 100
"""Channels per claim transaction, as x402 batches them."""
INDEX_SCAN_MAX = 64
"""How many of the newest batches on chain are looked through for one whose index was lost in a crash."""
BACKOFF_S_MAX = 30.0

_log = get_logger("seller")


class UnavailableSettlement(Unavailable):
    """A batch is on chain, but its block may still be taken back."""


class Publisher:
    """Puts receipts on chain in gap-free batches."""

    def __init__(
        self,
        key: PrivateKey,
        terms: Terms,
        settings: SellerSettings,
        store: SellerStore,
        chain: SellerChain,
        view: ChainView,
        put_bytes: PutBytes,
        clock: Clock,
    ) -> None:
        self._key = key
        self._terms = terms
        self._settings = settings
        self._store = store
        self._chain = chain
        self._view = view
        self._put_bytes = put_bytes
        self._clock = clock
        self._lock = asyncio.Lock()

    async def validate_journal(self, last_counter: int) -> None:
        """Refuse to sell from a journal that is older than what the chain holds: its counters would fork.

        Raises:
            ConfigError: the chain has receipts that the journal lacks.
        """
        on_chain = await self._chain.fetch_last_counter(self._key.address, settled=False)
        if on_chain > last_counter:
            raise ConfigError(
                f"the chain holds receipts up to {on_chain} of this key, the journal only up to {last_counter}; "
                "restore the newest journal, or sell under another key"
            )

    async def run(self) -> None:
        """Publish for ever; an unreachable chain or store is tried again, ever more slowly up to a bound."""
        tick_s = min(self._settings.batch_interval_s, 1.0)
        wait_s = tick_s
        while True:
            await self._clock.sleep(wait_s)
            try:
                if await self._is_due():
                    await self.publish()
                wait_s = tick_s
            except (Unavailable, Refused, Invalid) as error:
                wait_s = min(wait_s * 2, BACKOFF_S_MAX)
                _log.warning("batch is not published yet", error=str(error), retry_s=wait_s)

    async def _is_due(self) -> bool:
        if await self._store.fetch_planned_batch() is not None:
            return True
        last = await self._store.fetch_last_batch()
        first = 1 if last is None else last.batch.last_counter + 1
        waiting, oldest = await self._store.fetch_waiting(first)
        if oldest is None:
            return False
        head = await self._view.fetch_head(fresh=True)
        return is_batch_due(
            waiting,
            self._clock.now_ms() - oldest.finished_at_ms,
            int(self._settings.batch_interval_s * 1000),
            oldest.batch_deadline_block,
            head.number,
        )

    async def publish(self) -> BatchRow | None:
        """Publish the next batch now, or finish the one that was planned.

        Returns:
            The batch and its index on chain; None where no receipt waits.

        Raises:
            Unavailable…: chain or store, or the root is not settled yet; nothing is lost, call again.
            ConfigError: somebody else publishes under this key.
        """
        async with self._lock:
            planned = await self._store.fetch_planned_batch() or await self._plan()
            if planned is None:
                return None
            batch, transaction_hash = planned.batch, b""
            if not await self._is_on_chain(batch, settled=False):
                try:
                    transaction_hash = await self._chain.publish_batch(batch)
                except Refused as error:
                    # A transaction from before a crash may have been included meanwhile; the chain knows.
                    if not await self._is_on_chain(batch, settled=False):
                        raise
                    _log.info("batch was on chain already", first=batch.first_counter, error=str(error))
            if not transaction_hash and not await self._is_on_chain(batch, settled=True):
                raise UnavailableSettlement(f"the batch from counter {batch.first_counter} is not settled yet")
            published = await self._find_published(batch.first_counter)
            if published.batch != batch:
                raise ConfigError(
                    f"batch from counter {batch.first_counter} has root 0x{published.batch.root.hex()} on chain, "
                    f"0x{batch.root.hex()} in the journal; another process sells under this key"
                )
            await self._store.publish_batch(batch, published.index, transaction_hash)
            _log.info("batch published", index=published.index, first=batch.first_counter, last=batch.last_counter)
            await self._store.prune(self._clock.now_ms() - self._settings.retention_ms, batch.last_counter)
            return BatchRow(batch, published.index, transaction_hash)

    async def _is_on_chain(self, batch: Batch, *, settled: bool) -> bool:
        last = await self._chain.fetch_last_counter(self._key.address, settled=settled)
        return last >= batch.first_counter

    async def _plan(self) -> BatchRow | None:
        last = await self._store.fetch_last_batch()
        first = 1 if last is None else last.batch.last_counter + 1
        receipts = await self._store.fetch_receipts(first, BATCH_RECEIPTS_MAX)
        if not receipts:
            return None
        domain, provider = self._terms.protocol, self._key.address

        def encode() -> tuple[bytes, list[SignedReceipt]]:
            entries = [SignedReceipt(receipt, sign_struct(self._key, domain, receipt)) for receipt in receipts]
            return encode_batch(provider, entries), entries

        data, entries = await asyncio.to_thread(encode)
        commitment = await self._put_bytes(data)
        batch = build_batch(provider, entries, ZERO32 if last is None else last.batch.root, commitment)
        await self._store.plan_batch(batch)
        return BatchRow(batch, None, b"")

    async def _find_published(self, first_counter: int) -> PublishedBatch:
        provider = self._key.address
        count = await self._chain.fetch_batch_count(provider)
        for index in range(count - 1, max(-1, count - 1 - INDEX_SCAN_MAX), -1):
            published = await self._chain.fetch_batch(provider, index)
            if published.batch.first_counter == first_counter:
                return published
        raise ConfigError(f"no batch on chain begins at counter {first_counter}; another process sells under this key")


class Collector:
    """Claims what was earned: at intervals, at once when a payer withdraws, and when the service stops; defends it."""

    def __init__(self, desk: Desk, settings: SellerSettings, chain: SellerChain, clock: Clock) -> None:
        self._desk = desk
        self._settings = settings
        self._chain = chain
        self._clock = clock
        self._claimed: dict[bytes, int] = {}
        # Not known at start: the last run may have died between a claim and its payout.
        self._is_paid_out = False
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Watch and claim for ever; what fails is tried again at the next look."""
        claimed_at_s = self._clock.monotonic_s()
        while True:
            await self._clock.sleep(self._settings.watch_interval_s)
            is_due = self._clock.monotonic_s() - claimed_at_s >= self._settings.claim_interval_s
            try:
                await self.answer_challenges()
                await self.claim(only_withdrawing=not is_due)
            except (Unavailable, Refused, Invalid) as error:
                _log.warning("claim failed, next try at the next look", error=str(error))
                continue
            if is_due:
                claimed_at_s = self._clock.monotonic_s()

    async def claim(self, *, only_withdrawing: bool = False) -> int:
        """Claim now.

        Args:
            only_withdrawing: only from channels whose payer asked for money back.

        Returns:
            Smallest units claimed.
        """
        async with self._lock:
            claims: list[tuple[bytes, Claim, int]] = []
            for channel_id, row in self._desk.channels.items():
                if row.state.charged <= self._claimed.get(channel_id, 0):
                    continue
                chain = await self._chain.fetch_channel(channel_id)
                self._claimed[channel_id] = chain.total_claimed
                total = row.state.claimable(chain)
                if total is None or (only_withdrawing and not chain.withdraw_started):
                    continue
                claim = Claim(row.config, row.state.signed, row.voucher_signature, total)
                claims.append((channel_id, claim, total - chain.total_claimed))
            earned = 0
            for start in range(0, len(claims), CLAIMS_MAX):
                self._is_paid_out = False
                earned += await self._send(claims[start : start + CLAIMS_MAX])
            if not self._is_paid_out and any(self._claimed.values()):
                await self._chain.sweep()
                self._is_paid_out = True
            if earned:
                _log.info("claimed", amount=earned, channels=len(claims))
            return earned

    async def answer_challenges(self) -> int:
        """Show the receipt behind every claim that somebody challenged.

        Returns:
            How many were answered.
        """
        if not await self._chain.has_challenges():
            return 0
        answered = 0
        for channel_id in self._desk.channels:
            total = await self._chain.fetch_challenge(channel_id)
            if total is None:
                continue
            entry = await self._desk.fetch_last_receipt(channel_id)
            if entry is None or entry.receipt.charged_cumulative < total:
                _log.error("no receipt answers a challenge", channel=channel_id.hex(), total=total)
                continue
            await self._chain.show_receipt(entry.receipt, entry.signature)
            _log.info("challenge answered", channel=channel_id.hex(), total=total)
            answered += 1
        return answered

    async def _send(self, claims: list[tuple[bytes, Claim, int]]) -> int:
        """Send one transaction; where the contract refuses it, each channel alone, so that one bad cannot block all."""
        try:
            await self._chain.claim([claim for _, claim, _ in claims])
        except Refused as error:
            if len(claims) == 1:
                _log.error("claim refused", channel=claims[0][0].hex(), error=str(error))
                return 0
            return sum([await self._send([claim]) for claim in claims])
        for channel_id, claim, _ in claims:
            self._claimed[channel_id] = claim.total
        return sum(amount for _, _, amount in claims)
