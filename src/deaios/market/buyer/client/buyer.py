"""The buyer: picks a provider, buys, fails over before the first token and after it, and remembers who lied.

Invariants: one ask, whoever serves it, so the answer does not depend on who does; a provider that broke the protocol is
never bought from again; purchases that were cut off are resolved to a receipt or given back, after a restart too.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from deaios.ledger.eip712 import hash_struct, recover_signer, sign_struct
from deaios.ledger.structs import Ask, Request, State, Voucher
from deaios.market.batches import BatchProof
from deaios.market.buyer.client.proofs import GetBytes, Proofs
from deaios.market.buyer.client.purchase import (
    Desk,
    Purchase,
)
from deaios.market.buyer.client.resolving import LIES, Resolver
from deaios.market.buyer.client.resuming import Resumable
from deaios.market.buyer.client.router import DirectoryPort, Router
from deaios.market.buyer.client.settings import BuyerSettings
from deaios.market.buyer.client.wallet import Wallet
from deaios.market.buyer.endpoints import Endpoint
from deaios.market.buyer.errors import (
    FailedPurchase,
    RefusedByMarket,
    RefusedPrefix,
    RefusedRepeat,
    UnavailableContinuation,
    UnavailableProvider,
    UnavailableProviders,
)
from deaios.market.buyer.store import AccountRow, BuyerStore
from deaios.market.novelty import Novelty
from deaios.market.offers import SignedOffer, compute_quote
from deaios.market.opening import Opening
from deaios.market.orders import Order, Papers, build_ask
from deaios.market.ports import BuyerChain, Observer
from deaios.market.receipts import InvalidReceipt
from deaios.market.routing import Candidate, ProviderStats
from deaios.market.slashing.offences import find_wrong_fee
from deaios.market.store import UnavailableJournal
from deaios.market.terms import Terms
from deaios.market.view import ChainView
from deaios.market.wire import decode_papers
from deaios.primitives.errors import DeaiosError, Invalid, Refused, Unavailable
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.client import HttpClient, RefusedByPeer
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.dice import Dice, SystemDice
from deaios.runtime.logs import get_logger

DISPUTES_MAX = 2
"""So many providers that agree against one are believed; a single one may lie, too."""
TOO_MANY = 429
"""Too Many Requests (RFC 6585)."""
REPEATS_MAX = 256
"""Purchases of one ask from one provider at one block; the chain moves on long before."""
SEEN_MAX = 1 << 16
"""Requests remembered so that the journal need not be asked whether one was made before."""
RETRY_S = 1.0
"""Pause before providers that failed are asked once more, because nobody else is left."""

_log = get_logger("buyer")


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
        self._http = http
        self._observer = observer
        self._proofs = Proofs(terms, chain, http, self._clock, get_bytes)
        self._desk = Desk(key, terms, settings, self._store, self.wallet, http, self._clock)
        self.continued = 0
        """Answers that another purchase went on with."""
        self.router = Router(settings, directory, self._clock, self._dice, journal)
        self._hedges: set[asyncio.Task[None]] = set()
        self._live: dict[bytes, Purchase] = {}
        self._exclusions: set[asyncio.Task[None]] = set()
        self._novelty = Novelty(SEEN_MAX)
        self._resolver = Resolver(self._desk, self._view, self.router, self._exclude)
        self._resolving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        state = await self._store.open()
        self.wallet.load(state)
        self.router.excluded = dict(state.excluded)
        await self.router.open()
        for row in state.open_purchases:
            self._resolver.add(row)
        await self._store.prune(self._clock.now_ms() - self._settings.opening_retention_ms)
        self._resolving = asyncio.create_task(self._resolver.run(), name="resolver")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        resolving, self._resolving = self._resolving, None
        if resolving is not None:
            resolving.cancel()
            await asyncio.wait({resolving})
        live = list(self._live.values())
        for purchase in live:
            # A journal that failed does not take it; the purchase is then resolved as if nothing had been handed out.
            with contextlib.suppress(UnavailableJournal):
                await self._store.acknowledge(purchase.request_digest, purchase.handed_out)
            purchase.abandon(None)
        for purchase in live:
            await purchase.wait_ended()
        if self._exclusions or self._hedges:
            await asyncio.wait(self._exclusions | self._hedges)
        await self.router.close()
        await self._store.close()

    async def watch(self) -> None:
        """Return only by raising: when the journal has failed, after which nothing can be bought before a restart.

        Raises:
            UnavailableJournal: what failed.
        """
        await self._store.watch()

    @property
    def store(self) -> BuyerStore:
        """The journal: for who compares what is in it."""
        return self._store

    @property
    def accounts(self) -> tuple[AccountRow, ...]:
        """Every channel: deposit, signed, charged and reserved, per provider."""
        return self.wallet.accounts

    @property
    def excluded(self) -> dict[Address, str]:
        """Providers that are never bought from again, and why."""
        return dict(self.router.excluded)

    @property
    def stats(self) -> dict[Address, ProviderStats]:
        """What this buyer saw of each provider since it started."""
        return self.router.stats

    async def purchase(self, order: Order) -> Resumable:
        """Buy; returns once the first token is here, or a purchase that ended without one was served.

        Raises:
            RefusedByMarket: no provider fits the order.
            UnavailableProviders: those that fit failed before their first token.
        """
        ask = build_ask(order, self.address)
        try:
            first = await self._buy(order, ask, {})
        except UnavailableProviders as failure:
            if not failure.may_pass:
                raise
            await self._clock.sleep(RETRY_S)  # a crash or a burst is often over a moment later
            await self.router.refresh()
            try:
                first = await self._buy(order, ask, {})
            except RefusedByMarket:
                raise failure from None
        # Who asks for one provider wants to know how that one does.
        hops_max = 0 if order.provider is not None else self._settings.hops_max
        return Resumable(first, partial(self._continue, order, ask), self.router.patience_s, hops_max)

    async def _continue(self, order: Order, ask: Ask, failed: Purchase, ids: tuple[int, ...], kept: int) -> Purchase:
        """Buy the rest of an answer from somebody else, or from the same provider where nobody else is left."""
        tried = {failed.provider: failed.offer.digest}
        try:
            purchase = await self._buy(order, ask, tried, ids, kept)
        except (RefusedByMarket, UnavailableProviders) as failure:
            if not isinstance(failed.error, Unavailable) or isinstance(failure, UnavailableContinuation):
                raise
            await self._clock.sleep(RETRY_S)
            await self.router.refresh()
            purchase = await self._buy(order, ask, {}, ids, kept)
        self.continued += 1
        return purchase

    async def _buy(
        self, order: Order, ask: Ask, tried: dict[Address, bytes], prefix: tuple[int, ...] = (), kept: int = 0
    ) -> Purchase:
        """One purchase up to its first token, from whoever gives it.

        Args:
            order: what.
            ask: the same, as it is signed.
            tried: offers that are not tried again.
            prefix: ids with which an answer began.
            kept: how many of them cannot be taken back.
        """
        failures: dict[Address, str] = {}
        refusals: dict[Address, str] = {}
        disputes, may_pass = 0, True
        for _ in range(self._settings.providers_max):
            candidate, refusals = await self.router.pick(order, tried)
            if candidate is None and not failures:  # somebody who fits may have come since the last look
                await self.router.refresh()
                candidate, refusals = await self.router.pick(order, tried)
            if candidate is None:
                break
            tried[candidate.provider] = candidate.signed_offer.digest
            try:
                purchase = await self._attempt_hedged(order, ask, candidate, tried, prefix)
            except RefusedPrefix as disputed:
                failures[candidate.provider] = str(disputed)
                self._note_disputed(ask, candidate.provider, disputed)
                if disputed.position >= kept:  # nobody has seen what is wrong: it is sampled anew
                    prefix = prefix[: disputed.position]
                    del tried[candidate.provider]
                    continue
                disputes += 1
                if disputes >= DISPUTES_MAX:
                    break
            except (Unavailable, Refused, Invalid) as error:
                _log.info("provider failed before the first token", provider=candidate.provider.hex(), error=str(error))
                failures[candidate.provider] = str(error)
                may_pass = may_pass and isinstance(error, Unavailable) and not isinstance(error, FailedPurchase)
                if isinstance(error, RefusedByPeer):
                    await self.router.refresh()
            else:
                self.router.favour(order, purchase.provider)
                return purchase
        if disputes:
            raise UnavailableContinuation(failures)
        if failures:
            raise UnavailableProviders(failures, may_pass=may_pass)
        raise RefusedByMarket(refusals)

    def _note_disputed(self, ask: Ask, provider: Address, disputed: RefusedPrefix) -> None:
        """One provider's word against another's: for people who look into it, and no proof."""
        digest = hash_struct(ask).hex()
        _log.warning("a beginning is disputed", ask=digest, provider=provider.hex(), position=disputed.position)

    async def _attempt_hedged(
        self, order: Order, ask: Ask, candidate: Candidate, tried: dict[Address, bytes], prefix: tuple[int, ...]
    ) -> Purchase:
        """One attempt; where the order wants it and the first token is late, a second one beside it."""
        if not order.is_hedged:
            return await self._attempt(order, ask, candidate, prefix)
        racing = {asyncio.create_task(self._attempt(order, ask, candidate, prefix), name="attempt")}
        try:
            done, _ = await asyncio.wait(racing, timeout=self.router.hedge_after_s(candidate.provider))
            second = None if done else (await self.router.pick(order, tried))[0]
            if second is not None:
                tried[second.provider] = second.signed_offer.digest
                racing.add(asyncio.create_task(self._attempt(order, ask, second, prefix), name="hedge"))
            return await self._first_of(racing)
        finally:
            for task in racing:
                loser = asyncio.create_task(_leave(task), name="leave the slower")
                self._hedges.add(loser)
                loser.add_done_callback(self._hedges.discard)

    async def _first_of(self, racing: "set[asyncio.Task[Purchase]]") -> Purchase:
        """The first purchase that has begun, which is taken out of the race.

        Raises:
            DeaiosError: all failed; of the last one.
        """
        while True:
            done, _ = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
            task = min(done, key=lambda item: item.get_name())
            racing.discard(task)
            if task.exception() is None or not racing:
                return task.result()

    async def _attempt(self, order: Order, ask: Ask, candidate: Candidate, prefix: tuple[int, ...]) -> Purchase:
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
            prefix=prefix,
        )
        purchase = Purchase(self._desk, account, offer, request, papers, when_ended=self._conclude)
        self._live[purchase.request_digest] = purchase
        self.router.note(candidate.provider, self.router.stat(candidate.provider).begin())
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

    def _conclude(self, purchase: Purchase) -> None:
        """Draw the conclusions when a purchase has ended, whoever followed it."""
        self._live.pop(purchase.request_digest, None)
        if purchase.is_reserved:
            self._resolver.add(purchase.open_row())
        error = purchase.error
        self._observe(purchase, error)
        if isinstance(error, LIES) and self._is_proven(purchase.provider, error, purchase.evidence):
            excluding = asyncio.create_task(
                self._exclude(purchase.provider, error, purchase.evidence), name="exclude provider"
            )
            self._exclusions.add(excluding)
            excluding.add_done_callback(self._exclusions.discard)

    def _observe(self, purchase: Purchase, error: DeaiosError | None) -> None:
        """What the end of a purchase says about its provider."""
        provider, now_ms = purchase.provider, self._clock.now_ms()
        stats = self.router.stat(provider).queue(purchase.waiting, now_ms)
        if error is None and purchase.sent_at_s is not None and purchase.first_at_s is not None:
            assert purchase.ended_at_s is not None, "a purchase that is over has an end"
            ttft_ms = (purchase.first_at_s - purchase.sent_at_s) * 1000
            duration_ms = (purchase.ended_at_s - purchase.first_at_s) * 1000
            rate = (purchase.tokens - 1) * 1000 / duration_ms if purchase.tokens > 1 and duration_ms > 0 else None
            stats = stats.succeed(ttft_ms, purchase.tokens, duration_ms)
            record = self.router.record(provider)
            record.note_attempt(now_ms, is_success=True)
            record.note_served(now_ms, ttft_ms, rate)
        elif _is_no_place(error):
            stats = stats.turn_away(now_ms)
        elif error is None or purchase.is_abandoned or purchase.sent_at_s is None or _is_our_fault(error):
            stats = stats.abandon()
        else:
            stats = stats.fail(now_ms)
            self.router.record(provider).note_attempt(now_ms, is_success=False)
        self.router.note(provider, stats)
        self.router.record(provider).states[_name_state(purchase, error)] += 1

    def _is_proven(self, provider: Address, error: Invalid, evidence: Opening | None) -> bool:
        """A receipt convicts only who signed it; anybody on the way could have put in another one."""
        if not isinstance(error, InvalidReceipt):
            return True
        if evidence is None:
            return False
        return recover_signer(self._terms.protocol, evidence.receipt, evidence.receipt_signature) == provider

    async def _exclude(self, provider: Address, error: Invalid, evidence: Opening | None) -> None:
        _log.error("provider lied and is excluded", provider=provider.hex(), error=str(error))
        self.router.excluded[provider] = str(error)
        if evidence is not None and find_wrong_fee(self._terms.protocol, evidence) is not None:
            _ = self._store.keep_refused(evidence, self._clock.now_ms())
        await self._store.exclude(provider, str(error), self._clock.now_ms())
        if self._observer is not None:
            self._observer.provider_lied(provider, error, evidence)

    async def list_endpoints(self, model_record_id: bytes) -> Sequence[Endpoint]:
        """Everybody who sells a model, and what this buyer saw of them."""
        return await self.router.list_endpoints(model_record_id)

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
    """Refusals that say more about this buyer's papers, or another provider's tokens, than about the provider."""
    return isinstance(error, RefusedByPeer | RefusedPrefix)


def _is_no_place(error: BaseException | None) -> bool:
    """Was the purchase turned away only because the provider is full?"""
    return isinstance(error, RefusedByPeer) and error.status == TOO_MANY


def _name_state(purchase: Purchase, error: DeaiosError | None) -> str:
    """How a purchase ended, by the names of the receipts' states."""
    if isinstance(error, FailedPurchase):
        return error.state.name.lower()
    if isinstance(error, Refused):
        return State.REFUSED.name.lower()
    if purchase.is_abandoned:
        return State.CANCELLED.name.lower()
    if error is not None:
        return State.FAILED_PROVIDER.name.lower()
    return State(purchase.opening.receipt.state).name.lower()


async def _leave(task: "asyncio.Task[Purchase]") -> None:
    """End the slower of two attempts, for nothing: no token of it was handed out."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        await task.result().cancel()
