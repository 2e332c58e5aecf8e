"""The buyer: picks a provider, buys, fails over before the first token, and remembers who lied.

Invariants: one ask, whoever serves it, so the answer does not depend on who does; a provider that broke the protocol is
never bought from again; purchases that were cut off are resolved to a receipt or given back, after a restart too.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from deaios.ledger.eip712 import hash_struct, recover_signer, sign_struct
from deaios.ledger.structs import Ask, Request, Voucher
from deaios.market.batches import BatchProof
from deaios.market.buyer.client.proofs import GetBytes, Proofs
from deaios.market.buyer.client.purchase import (
    Desk,
    Purchase,
    build_opening,
    check_receipt,
    is_unknown_purchase,
    send_cancel,
)
from deaios.market.buyer.client.settings import BuyerSettings
from deaios.market.buyer.client.wallet import Wallet
from deaios.market.buyer.errors import (
    InvalidStream,
    RefusedByMarket,
    RefusedRepeat,
    UnavailableProvider,
    UnavailableProviders,
)
from deaios.market.buyer.store import AccountRow, BuyerStore, OpenRow
from deaios.market.channel import InvalidCharge
from deaios.market.novelty import Novelty
from deaios.market.offers import SignedOffer, compute_quote
from deaios.market.opening import Opening
from deaios.market.orders import Order, Papers, build_ask
from deaios.market.ports import BuyerChain, Observer
from deaios.market.receipts import InvalidReceipt
from deaios.market.routing import DRAW_SIZE, Candidate, ProviderStats, Wish, order_candidates, refuse_reason
from deaios.market.store import UnavailableJournal
from deaios.market.terms import Terms
from deaios.market.view import ChainView
from deaios.market.wire import decode_papers
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.client import HttpClient, RefusedByPeer
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.dice import Dice, SystemDice
from deaios.runtime.logs import get_logger

RESOLVE_WAIT_S_MAX = 60.0
REPEATS_MAX = 256
"""Purchases of one ask from one provider at one block; the chain moves on long before."""
SEEN_MAX = 1 << 16
"""Requests remembered so that the journal need not be asked whether one was made before."""
STATS_MAX = 4096
LIES = (InvalidReceipt, InvalidCharge, InvalidStream)
"""What shows a provider to be wrong by its own signature or its own words; anything less only counts as a failure."""

_log = get_logger("buyer")


class DirectoryPort(Protocol):
    """Who sells."""

    async def fetch_candidates(self) -> Sequence[Candidate]:
        """Providers with a valid offer, as known now."""

    async def refresh(self) -> None:
        """Look again at once."""


@dataclass(slots=True)
class _Doubt:
    """A purchase that was cut off, and when to ask about it next."""

    row: OpenRow
    wait_s: float
    next_at_s: float


class Buyer:
    """One key that buys; use as an async context manager."""

    def __init__(
        self,
        key: PrivateKey,
        terms: Terms,
        settings: BuyerSettings,
        journal: Path,
        chain: BuyerChain,
        directory: DirectoryPort,
        http: HttpClient,
        *,
        observer: Observer | None = None,
        get_bytes: GetBytes | None = None,
        clock: Clock | None = None,
        dice: Dice | None = None,
    ) -> None:
        self.address = key.address
        self._key = key
        self._terms = terms
        self._settings = settings
        self._clock = clock or SystemClock()
        self._dice = dice or SystemDice()
        self._store = BuyerStore(journal, settings.window)
        self.wallet = Wallet(key, terms, settings, self._store, chain, self._clock)
        self._chain = chain
        self._view = ChainView(chain, self._clock)
        self._directory = directory
        self._http = http
        self._observer = observer
        self._proofs = Proofs(terms, chain, http, self._clock, get_bytes)
        self._desk = Desk(key, terms, settings, self._store, self.wallet, http, self._clock)
        self._stats: dict[Address, ProviderStats] = {}
        self._excluded: dict[Address, str] = {}
        self._live: dict[bytes, Purchase] = {}
        self._in_doubt: dict[bytes, _Doubt] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._novelty = Novelty(SEEN_MAX)
        self._resolver: asyncio.Task[None] | None = None
        self._resolving: dict[Address, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        state = await self._store.open()
        self.wallet.load(state)
        self._excluded = dict(state.excluded)
        for row in state.open_purchases:
            self._doubt(row)
        await self._store.prune(self._clock.now_ms() - self._settings.opening_retention_ms)
        self._resolver = asyncio.create_task(self._resolve_for_ever(), name="resolver")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            resolver.cancel()
            await asyncio.wait({resolver})
        for purchase in list(self._live.values()):
            # A journal that failed does not take it; the purchase is then resolved as if nothing had been handed out.
            with contextlib.suppress(UnavailableJournal):
                await self._store.acknowledge(purchase.request_digest, purchase.handed_out)
            purchase.abandon(None)
        if self._watchers:
            await asyncio.wait(self._watchers)
        await self._store.close()

    async def watch(self) -> None:
        """Return only by raising: when the journal has failed, after which nothing can be bought before a restart.

        Raises:
            UnavailableJournal: what failed.
        """
        await self._store.watch()

    @property
    def accounts(self) -> tuple[AccountRow, ...]:
        """Every channel: deposit, signed, charged and reserved, per provider."""
        return self.wallet.accounts

    @property
    def excluded(self) -> dict[Address, str]:
        """Providers that are never bought from again, and why."""
        return dict(self._excluded)

    @property
    def stats(self) -> dict[Address, ProviderStats]:
        """What this buyer saw of each provider since it started."""
        return dict(self._stats)

    async def purchase(self, order: Order) -> Purchase:
        """Buy; returns once the first token is here, or a purchase that ended without one was served.

        Raises:
            RefusedByMarket: no provider fits the order.
            UnavailableProviders: those that fit failed before their first token.
        """
        ask = build_ask(order, self.address)
        failures: dict[Address, str] = {}
        refusals: dict[Address, str] = {}
        tried: dict[Address, bytes] = {}
        for _ in range(self._settings.providers_max):
            candidate, refusals = await self._pick(order, tried)
            if candidate is None and not tried:  # somebody who fits may have come since the last look
                await self._directory.refresh()
                candidate, refusals = await self._pick(order, tried)
            if candidate is None:
                break
            tried[candidate.provider] = candidate.signed_offer.digest
            try:
                return await self._attempt(order, ask, candidate)
            except (Unavailable, Refused, Invalid) as error:
                _log.info("provider failed before the first token", provider=candidate.provider.hex(), error=str(error))
                failures[candidate.provider] = str(error)
                if isinstance(error, RefusedByPeer):
                    await self._directory.refresh()
        if failures:
            raise UnavailableProviders(failures)
        raise RefusedByMarket(refusals)

    async def _pick(self, order: Order, tried: Mapping[Address, bytes]) -> tuple[Candidate | None, dict[Address, str]]:
        """The next provider to try: none twice under one offer."""
        wish = Wish(
            model_record_id=order.model_record_id,
            prompt_tokens=len(order.prompt_ids),
            max_tokens=order.params.max_tokens,
            min_level=order.min_level,
            withdraw_delay=self._settings.withdraw_delay,
            fee_max=min(self._settings.fee_max, self._settings.window),
            provider=order.provider,
            excluded=order.excluded | frozenset(self._excluded),
        )
        now_ms = self._clock.now_ms()
        reasons: dict[Address, str] = {}
        eligible: list[Candidate] = []
        for candidate in await self._directory.fetch_candidates():
            reason = refuse_reason(candidate, wish, now_ms)
            if tried.get(candidate.provider) == candidate.signed_offer.digest:
                continue
            if reason is None:
                eligible.append(candidate)
            else:
                reasons[candidate.provider] = self._excluded.get(candidate.provider, reason)
        if not eligible:
            return None, reasons
        rested = [candidate for candidate in eligible if not self._stat(candidate.provider).is_resting(now_ms)]
        eligible = rested or eligible
        stats = [self._stat(candidate.provider) for candidate in eligible]
        return order_candidates(eligible, wish, stats, self._dice.token_bytes(DRAW_SIZE))[0], reasons

    def _stat(self, provider: Address) -> ProviderStats:
        return self._stats.get(provider, ProviderStats())

    def _note(self, provider: Address, stats: ProviderStats) -> None:
        self._stats[provider] = stats
        if len(self._stats) > STATS_MAX:
            del self._stats[next(iter(self._stats))]

    async def _attempt(self, order: Order, ask: Ask, candidate: Candidate) -> Purchase:
        """Buy from one provider, up to its first token."""
        account = await self.wallet.fetch_account(candidate.provider)
        offer = candidate.signed_offer
        request = await self._build_request(ask, offer, account.row.channel_id)
        papers = Papers(
            ask=ask,
            salt=order.salt,
            prompt_ids=order.prompt_ids,
            request=request,
            request_signature=sign_struct(self._key, self._terms.protocol, request),
            channel=account.row.config,
            voucher=Voucher(channel_id=account.row.channel_id, max_claimable_amount=0),
            voucher_signature=b"",
            logprobs=order.logprobs,
            constraint=order.constraint,
        )
        purchase = Purchase(self._desk, account, offer, request, papers)
        self._live[purchase.request_digest] = purchase
        self._note(candidate.provider, self._stat(candidate.provider).begin())
        watcher = asyncio.create_task(self._watch(purchase), name="watch purchase")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        try:
            await self._wait_begun(purchase)
        except UnavailableProvider as error:
            purchase.abandon(error)
            raise
        except asyncio.CancelledError:  # the caller went away; the purchase is cancelled and resolved without it
            purchase.abandon(None)
            raise
        if purchase.error is not None and purchase.tokens == 0:
            raise purchase.error
        return purchase

    async def _build_request(self, ask: Ask, offer: SignedOffer, channel_id: bytes) -> Request:
        """A request never made before: equal asks at one block, as a user's fixed seed makes them, differ in deadline.

        Raises:
            RefusedRepeat: too many of them.
        """
        head = await self._view.fetch_head()
        request = Request(
            ask_digest=hash_struct(ask),
            provider=offer.offer.provider,
            offer_digest=offer.digest,
            channel_id=channel_id,
            max_fee=compute_quote(offer.offer, ask.prompt_count, ask.params.max_tokens),
            anchor_block_hash=head.block_hash,
            deadline_block=head.number + self._settings.request_blocks,
        )
        self._novelty.note_head(head.number)
        for _ in range(REPEATS_MAX):
            digest, deadline = hash_struct(request), request.deadline_block
            is_new = self._novelty.is_new(digest, head.number, deadline, head.number)
            if is_new or (digest not in self._live and not await self._store.has_purchase(digest)):
                self._novelty.note_seen(digest, deadline)
                return request
            request = replace(request, deadline_block=request.deadline_block + 1)
        raise RefusedRepeat(
            f"the same ask was bought {REPEATS_MAX} times at block {head.number}; wait for the next one"
        )

    async def _wait_begun(self, purchase: Purchase) -> None:
        while purchase.sent_at_s is None and not purchase.is_over:
            await purchase.wait_changed()
        try:
            async with asyncio.timeout(self._settings.first_token_s):
                while not purchase.has_begun:
                    await purchase.wait_changed()
        except TimeoutError as error:
            raise UnavailableProvider(f"no token within {self._settings.first_token_s} s") from error

    async def _watch(self, purchase: Purchase) -> None:
        """Draw the conclusions when a purchase ends, whoever followed it."""
        await purchase.wait_ended()
        self._live.pop(purchase.request_digest, None)
        if purchase.is_reserved:
            self._doubt(purchase.open_row())
        stats, error = self._stat(purchase.provider), purchase.error
        if error is None and purchase.sent_at_s is not None and purchase.first_at_s is not None:
            assert purchase.ended_at_s is not None, "a purchase that is over has an end"
            ttft_ms = (purchase.first_at_s - purchase.sent_at_s) * 1000
            duration_ms = (purchase.ended_at_s - purchase.first_at_s) * 1000
            stats = stats.succeed(ttft_ms, purchase.tokens, duration_ms)
        elif error is None or purchase.is_abandoned or purchase.sent_at_s is None or _is_our_fault(error):
            stats = stats.abandon()
        else:
            stats = stats.fail(self._clock.now_ms())
        self._note(purchase.provider, stats)
        if isinstance(error, LIES) and self._is_proven(purchase.provider, error, purchase.evidence):
            await self._exclude(purchase.provider, error, purchase.evidence)

    def _is_proven(self, provider: Address, error: Invalid, evidence: Opening | None) -> bool:
        """A receipt convicts only who signed it; anybody on the way could have put in another one."""
        if not isinstance(error, InvalidReceipt):
            return True
        if evidence is None:
            return False
        return recover_signer(self._terms.protocol, evidence.receipt, evidence.receipt_signature) == provider

    def _doubt(self, row: OpenRow) -> None:
        wait_s = self._settings.resolve_interval_s
        self._in_doubt[row.request_digest] = _Doubt(row, wait_s, self._clock.monotonic_s())

    async def _exclude(self, provider: Address, error: Invalid, evidence: Opening | None) -> None:
        _log.error("provider lied and is excluded", provider=provider.hex(), error=str(error))
        self._excluded[provider] = str(error)
        await self._store.exclude(provider, str(error), self._clock.now_ms())
        if self._observer is not None:
            self._observer.provider_lied(provider, error, evidence)

    async def _resolve_for_ever(self) -> None:
        try:
            while True:
                await self._clock.sleep(self._settings.resolve_interval_s)
                self._resolve_due()
                try:
                    await self._view.fetch_head(fresh=True)
                except (Unavailable, Refused, Invalid) as error:
                    _log.info("chain does not answer", error=str(error))
        finally:
            for task in self._resolving.values():
                task.cancel()
            await asyncio.gather(*self._resolving.values(), return_exceptions=True)

    def _resolve_due(self) -> None:
        """Ask each provider about its own purchases, side by side: one that hangs must not hold up the others."""
        now_s = self._clock.monotonic_s()
        due = {doubt.row.provider for doubt in self._in_doubt.values() if doubt.next_at_s <= now_s}
        for provider in sorted(due - self._resolving.keys()):
            task = asyncio.create_task(self._resolve_with(provider), name=f"resolve with {provider.hex()[:8]}")
            self._resolving[provider] = task
            task.add_done_callback(partial(self._resolved, provider))

    def _resolved(self, provider: Address, task: "asyncio.Task[None]") -> None:
        del self._resolving[provider]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("purchases stay open by our own fault", provider=provider.hex(), error=repr(error))

    async def _resolve_with(self, provider: Address) -> None:
        """Ask a provider what became of purchases that were cut off, cancelling those still open."""
        for digest, doubt in list(self._in_doubt.items()):
            now_s = self._clock.monotonic_s()
            if doubt.row.provider != provider or doubt.next_at_s > now_s:
                continue
            try:
                await self._resolve_one(doubt.row)
            except LIES as error:
                await self._exclude(doubt.row.provider, error, None)
            except (Unavailable, Refused, Invalid) as error:
                doubt.wait_s = min(doubt.wait_s * 2, RESOLVE_WAIT_S_MAX)
                doubt.next_at_s = now_s + doubt.wait_s
                _log.info("purchase stays open", request=digest.hex(), error=str(error))
                continue
            self._in_doubt.pop(digest, None)

    async def _resolve_one(self, row: OpenRow) -> None:
        account = await self.wallet.fetch_account(row.provider)
        if row.request_digest not in account.state.reservations:
            return
        acknowledged = row.acknowledged or 0
        await self._store.acknowledge(row.request_digest, acknowledged)
        try:
            ids, entry = await send_cancel(self._desk, row.offer, row.request_digest, acknowledged)
        except RefusedByPeer as refusal:
            if not is_unknown_purchase(refusal):
                raise
            await self.wallet.release(account, row.request_digest)
            return
        opening = build_opening(decode_papers(row.papers), row.offer, ids, entry)
        check_receipt(self._terms, opening, acknowledged, complete=True, received=len(ids))
        self.wallet.settle(account, opening)

    async def fetch_opening(self, provider: Address, counter: int) -> Opening | None:
        """An opening this buyer keeps, by the receipt's provider and counter."""
        return await self._store.fetch_opening(provider, counter)

    async def fetch_outcome(self, request_digest: bytes) -> tuple[bool, Opening | None]:
        """Whether a purchase is still open, and its opening once there is a receipt; None where it never began."""
        return await self._store.fetch_outcome(request_digest)

    async def find_purchases(self, order: Order) -> tuple[bool, list[Opening]]:
        """What became of an order that may have been bought before a restart: is one open, and all openings."""
        digest = hash_struct(build_ask(order, self.address))
        open_papers, openings = await self._store.find_openings(digest)
        return any(decode_papers(papers).request.ask_digest == digest for papers in open_papers), openings

    async def fetch_proof(self, opening: Opening, timeout_s: float) -> BatchProof:
        """Where on chain the receipt is: asks the provider, else rebuilds the proof from the stored batch.

        Raises:
            UnavailableProof: it is not there within the time.
            InvalidReceipt: the chain holds another receipt under this counter; the provider forked its receipts.
        """
        return await self._proofs.fetch(opening, timeout_s)


def _is_our_fault(error: BaseException) -> bool:
    """Refusals that say more about this buyer's papers than about the provider."""
    return isinstance(error, RefusedByPeer) and error.status != 429
