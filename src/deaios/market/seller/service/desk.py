"""The desk: admits purchases, runs the generator, numbers receipts.

Invariants: a purchase is on disk before it is acknowledged and its receipt is on disk before it is signed; every
admitted purchase ends with exactly one receipt, after a crash too; a request digest that was seen before is answered
from what is stored. State in memory changes between two awaits only, in the same order in which the journal gets it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from deaios.compute.embedding import WORDS_MAX, is_embedding
from deaios.compute.fingerprints import LEAF_BYTES, owes_fingerprints, owes_replay
from deaios.compute.generation import InvalidPrefix
from deaios.compute.sampling import seed_of
from deaios.ledger.eip712 import hash_struct, recover_signer, sign_struct
from deaios.ledger.structs import Cancel, FinishReason, Offer, Receipt, State
from deaios.market.admission import (
    RefusedPurchase,
    Shelf,
    validate_anchor,
    validate_ask,
    validate_channel,
    validate_price,
    validate_request,
    validate_voucher,
)
from deaios.market.batches import SignedReceipt
from deaios.market.channel import ChainState, RefusedDeposit, SellerChannel
from deaios.market.novelty import Novelty
from deaios.market.offers import SignedOffer, sign_offer
from deaios.market.orders import Papers
from deaios.market.ports import Assignment, Generate
from deaios.market.receipts import FIRST_LINK, Delivery, Link, build_receipt, compute_fee_due
from deaios.market.seller.service.pace import EndPace
from deaios.market.seller.service.runs import Outcome, Run
from deaios.market.seller.service.settings import SellerSettings
from deaios.market.seller.store import CHANNELS_MAX, VOIDED_MAX, ChannelRow, PurchaseRow, SellerState, SellerStore
from deaios.market.terms import Terms
from deaios.market.view import ChainView
from deaios.market.wire import decode_papers
from deaios.primitives.errors import DeaiosError, Invalid, Refused, Unavailable
from deaios.primitives.keys import Address, PrivateKey
from deaios.primitives.units import compute_fee
from deaios.runtime.clock import Clock
from deaios.runtime.errors import NotFound, RefusedBusy
from deaios.runtime.logs import get_logger

ENDED_RUNS_MAX = 256
"""Ended purchases kept in memory for retries; older ones come from the journal."""
SEEN_MAX = 1 << 16
"""Requests remembered so that the journal need not be asked about new ones."""
UNPAID_DIVISOR = 10
"""A channel that pays may leave this part of what it has paid unpaid: tokens on their way when users go away."""

_log = get_logger("seller")


class UnavailableGeneration(Unavailable):
    """The generator stopped without saying why the output ended."""


class InvalidCancel(Invalid):
    """A cancel that is not the buyer's, or acknowledges more tokens than were sampled."""


class RefusedCancel(Refused):
    """A cancel that leaves more unpaid than this provider forgives; the purchase goes on, and is charged."""


class Desk:
    """One provider's purchases."""

    def __init__(
        self,
        key: PrivateKey,
        terms: Terms,
        settings: SellerSettings,
        store: SellerStore,
        view: ChainView,
        generate: Generate,
        clock: Clock,
        ask_price: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self._ask_price = ask_price or (lambda: (settings.input_price, settings.output_price))
        self.address = key.address
        self._key = key
        self._terms = terms
        self._settings = settings
        self._shelf = Shelf(vocabulary_size=settings.vocabulary_size)
        self._store = store
        self._view = view
        self._generate = generate
        self._clock = clock
        self._channels: dict[bytes, ChannelRow] = {}
        self._charged: dict[bytes, int] = {}
        self._last: Link = FIRST_LINK
        # Not journalled: a restart forgives once more, which is bounded by how often this provider restarts.
        self._unpaid: dict[bytes, int] = {}
        self._runs: dict[bytes, Run] = {}
        self._ended: OrderedDict[bytes, Run] = OrderedDict()
        self._voided: OrderedDict[tuple[bytes, Address], None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(settings.streams_max)
        self._novelty = Novelty(SEEN_MAX)
        self._offer: SignedOffer | None = None
        self._is_closing = False
        self._pace = EndPace()

    @property
    def last_counter(self) -> int:
        """Counter of the newest receipt."""
        return self._last.counter

    @property
    def open_count(self) -> int:
        """Purchases admitted and not ended."""
        return len(self._runs)

    @property
    def waiting_count(self) -> int:
        """Purchases that wait for a stream."""
        return max(0, len(self._runs) - self._settings.streams_max)

    @property
    def channels(self) -> dict[bytes, ChannelRow]:
        """Every channel this provider was paid on, charged with what journalled receipts charge and no more."""
        return {
            channel_id: replace(row, state=replace(row.state, charged=self._charged.get(channel_id, 0)))
            for channel_id, row in self._channels.items()
        }

    async def open(self, state: SellerState) -> None:
        """Take over what the journal holds: purchases that a crash cut off fail, with receipts and without a fee."""
        self._channels = dict(state.channels)
        self._charged = {channel_id: row.state.charged for channel_id, row in state.channels.items()}
        self._last = state.last
        self._voided = OrderedDict.fromkeys(state.voided)
        for row in state.open_purchases:
            assert row.papers is not None, "an open purchase is never pruned"
            papers = decode_papers(row.papers)
            offer = await self._store.fetch_offer(row.offer_digest)
            assert offer is not None, "an offer is journalled before it is posted"
            run = Run(papers, row.request_digest, offer, row.quote, row.admitted_at_ms)
            run.mark_admitted()
            self._runs[run.digest] = run
            await self._number(run, self._fail(run, State.FAILED_PROVIDER))
            _log.warning("purchase cut off by a restart failed", counter=self._last.counter)

    async def close(self) -> None:
        """Let open purchases end for a while, then fail the rest; all get their receipts."""
        self._is_closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.drain_s)
        for run in self._runs.values():
            run.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def fetch_current_offer(self) -> SignedOffer:
        """The offer posted now: kept while its price stands and half its life is left; journalled before shown."""
        now_ms, settings = self._clock.now_ms(), self._settings
        prices = self._ask_price()
        current = self._offer
        is_fresh = current is not None and current.offer.valid_until - now_ms >= settings.offer_lifetime_ms // 2
        if current is not None and is_fresh and (current.offer.input_price, current.offer.output_price) == prices:
            return current
        offer = self._offer or await self._store.fetch_latest_offer()
        valid_until = now_ms + settings.offer_lifetime_ms
        wanted = Offer(
            provider=self.address,
            model_record_id=settings.model_record_id,
            engine_profile=settings.engine_profile,
            level=settings.level,
            input_price=prices[0],
            output_price=prices[1],
            context_tokens=settings.context_tokens,
            streams_max=settings.streams_max,
            withdraw_delay_min=settings.withdraw_delay_min,
            url=settings.url,
            valid_until=valid_until,
        )
        is_same = offer is not None and replace(offer.offer, valid_until=valid_until) == wanted
        if offer is None or not is_same or offer.offer.valid_until - now_ms < settings.offer_lifetime_ms // 2:
            offer = sign_offer(self._key, self._terms.protocol, wanted)
            await self._store.keep_offer(offer)
        self._offer = offer
        return offer

    async def purchase(self, body: bytes) -> Run:
        """Admit papers, or find the purchase they started before.

        Raises:
            Invalid…: the papers break a rule.
            Refused…: they are in order, and this provider does not serve them; the message names what it would.
            Unavailable…: the chain cannot be asked, or the journal cannot promise.
        """
        papers = decode_papers(body)
        validate_request(self._terms, papers, self.address)
        digest = papers.request_digest
        head = await self._view.fetch_head()
        anchor = await self._view.fetch_anchor(papers.request.anchor_block_hash)
        known = await self._find_known(papers, digest, anchor, head.number)
        if known is not None:
            return known
        offer = await self._find_offer(papers.request.offer_digest)
        quote = validate_price(papers, offer, self._clock.now_ms(), head.number)
        validate_channel(self._terms, papers, offer.offer, self._shelf)
        validate_ask(papers, offer.offer, self._shelf)
        validate_anchor(anchor, head.number)
        try:
            chain = await self._view.fetch_channel(papers.request.channel_id)
            return self._admit(papers, body, digest, offer, quote, chain)
        except RefusedDeposit:
            chain = await self._view.fetch_channel(papers.request.channel_id, fresh=True)
            return self._admit(papers, body, digest, offer, quote, chain)

    def _admit(
        self, papers: Papers, body: bytes, digest: bytes, offer: SignedOffer, quote: int, chain: ChainState
    ) -> Run:
        """Admit checked papers. Without an await, so that memory and journal keep one order."""
        known = self._runs.get(digest) or self._ended.get(digest)
        if known is not None:
            return known
        if (digest, papers.ask.buyer) in self._voided:
            raise RefusedPurchase("the buyer cancelled this request before it came")
        self._refuse_prefix(papers)
        settings = self._settings
        if self._is_closing or len(self._runs) >= settings.streams_max + settings.queue_max:
            raise RefusedBusy(
                f"{len(self._runs)} purchases are open here; try another provider, or again later",
                retry_after_s=self._pace.estimate_next_s(),
            )
        channel_id = papers.request.channel_id
        row = self._channels.get(channel_id)
        if row is None:
            if len(self._channels) >= CHANNELS_MAX:
                raise RefusedBusy(f"{CHANNELS_MAX} channels are tracked here, no new one is taken")
            row = ChannelRow(papers.channel, SellerChannel(), b"")
        amount = papers.voucher.max_claimable_amount
        if amount > row.state.signed:
            validate_voucher(self._terms, papers)
            row = replace(row, state=row.state.accept_voucher(amount), voucher_signature=papers.voucher_signature)
        row = replace(row, state=row.state.admit(digest, quote, chain))
        run = Run(papers, digest, offer, quote, self._clock.now_ms())
        purchase = PurchaseRow(digest, body, offer.digest, quote, run.started_at_ms, (), None)
        saved = self._store.admit(purchase, channel_id, row)
        self._channels[channel_id] = row
        self._runs[digest] = run
        self._novelty.note_seen(digest, papers.request.deadline_block)
        task = asyncio.create_task(self._serve(run, saved), name=f"purchase {digest.hex()[:16]}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._served(run, done))
        return run

    async def _find_known(self, papers: Papers, digest: bytes, anchor: int | None, head: int) -> Run | None:
        """The purchase that these papers started before; the journal is asked only where it may hold one."""
        self._novelty.note_head(head)
        deadline = papers.request.deadline_block
        if anchor is not None and self._novelty.is_new(digest, anchor, deadline, head):
            return None
        return await self._find(digest)

    async def _find(self, digest: bytes) -> Run | None:
        known = self._runs.get(digest) or self._ended.get(digest)
        if known is not None:
            return known
        row = await self._store.fetch_purchase(digest)
        if row is None or row.receipt is None:
            return self._runs.get(digest)
        if row.papers is None:
            raise NotFound(f"purchase ended with receipt {row.receipt.counter}; its output is no longer kept")
        offer = await self._store.fetch_offer(row.offer_digest)
        assert offer is not None, "an offer is journalled before it is posted"
        outcome = Outcome(row.output_ids, self._sign(row.receipt), None, row.fingerprints)
        return self._keep(Run.ended(decode_papers(row.papers), offer, row.quote, outcome))

    async def _find_offer(self, digest: bytes) -> SignedOffer:
        current = await self.fetch_current_offer()
        if digest == current.digest:
            return current
        older = await self._store.fetch_offer(digest)
        if older is None or not _is_still_true(older.offer, current.offer):
            raise RefusedPurchase(f"request is for another offer; the current one is 0x{current.digest.hex()}")
        return older

    async def cancel(self, digest: bytes, tokens: int, signature: bytes) -> Outcome:
        """End a purchase at the buyer's word.

        Returns:
            The outcome; that of an ordinary end when the cancel came too late.

        Raises:
            NotFound: no such purchase, and a promise on disk: papers of this request are not admitted later either.
            InvalidSignature: malformed.
            InvalidCancel: not signed by the buyer, or more tokens acknowledged than sampled.
            RefusedCancel: too much would stay unpaid on this channel.
        """
        signer = recover_signer(self._terms.protocol, Cancel(request_digest=digest, tokens=tokens), signature)
        run = await self._find(digest)
        if run is None:
            await self._void(digest, signer)
            raise NotFound("no purchase with this request digest was admitted here, and none will be")
        if signer != run.papers.ask.buyer:
            raise InvalidCancel(f"cancel is signed by 0x{signer.hex()}, the buyer is 0x{run.papers.ask.buyer.hex()}")
        if run.outcome is None and run.cancel is None:
            if tokens > len(run.ids):
                raise InvalidCancel(f"cancel acknowledges {tokens} tokens, {len(run.ids)} were sampled")
            self._forgive(run, tokens)
            run.cancel = (tokens, signature)
            run.stop()
        return await run.wait_outcome()

    async def _void(self, digest: bytes, signer: Address) -> None:
        """Keep a cancel that came before its request: papers may be late, or sent again by somebody on the way.

        Who signed it is not known to be the buyer before the papers come; they are then refused to that signer alone.
        """
        self._voided[digest, signer] = None
        if len(self._voided) > VOIDED_MAX:
            self._voided.popitem(last=False)
        await self._store.void(digest, signer)

    def _forgive(self, run: Run, tokens: int) -> None:
        """Let the buyer leave tokens unpaid that it does not acknowledge, up to a bound per channel.

        Without one, whoever reads to the last token but one and acknowledges none of them never pays.
        """
        channel_id, offer, prompt = run.papers.request.channel_id, run.offer.offer, run.papers.ask.prompt_count
        if is_embedding(run.papers.ask.params):
            unpaid = compute_fee(prompt, 0, offer.input_price, 0)  # for work without a token to show for it
        else:
            sampled = compute_fee_due(offer, State.CANCELLED, prompt, len(run.ids))
            unpaid = sampled - compute_fee_due(offer, State.CANCELLED, prompt, tokens)
        total = self._unpaid.get(channel_id, 0) + unpaid
        bound = self._settings.unpaid_max + self._channels[channel_id].state.charged // UNPAID_DIVISOR
        if unpaid > 0 and total > bound:
            raise RefusedCancel(
                f"this cancel leaves {unpaid} unpaid, {total} on this channel so far; at most {bound} are forgiven"
            )
        self._unpaid[channel_id] = total

    def _count_reading(self, run: Run) -> None:
        """A prefix that is wrong was read for nothing: what that is worth counts as left unpaid on its channel."""
        channel_id, papers = run.papers.request.channel_id, run.papers
        worth = compute_fee(papers.ask.prompt_count + len(papers.prefix), 0, run.offer.offer.input_price, 0)
        self._unpaid[channel_id] = self._unpaid.get(channel_id, 0) + worth

    def _refuse_prefix(self, papers: Papers) -> None:
        """Read no more prefixes of a channel that has left too much unpaid, wrong prefixes included."""
        channel_id = papers.request.channel_id
        row, unpaid = self._channels.get(channel_id), self._unpaid.get(channel_id, 0)
        bound = self._settings.unpaid_max + (0 if row is None else row.state.charged // UNPAID_DIVISOR)
        if papers.prefix and unpaid > bound:
            raise RefusedPurchase(f"{unpaid} was left unpaid on this channel, with more than {bound} no prefix is read")

    async def fetch_last_receipt(self, channel_id: bytes) -> SignedReceipt | None:
        """The receipt that charges most on a channel."""
        receipt = await self._store.fetch_last_receipt_of(channel_id)
        return None if receipt is None else self._sign(receipt)

    async def _serve(self, run: Run, saved: "asyncio.Future[None]") -> None:
        # The model starts while the disk writes; nothing of it is shown before the journal has the purchase.
        generation = asyncio.create_task(self._generate_into(run))
        run.when_stopped(generation.cancel)
        try:
            await saved
            run.mark_admitted()
            await asyncio.wait({generation}, timeout=self._settings.purchase_s_max)
        finally:
            if not generation.done():
                generation.cancel()
                await asyncio.wait({generation})
        await self._number(run, self._judge(run, generation))

    async def _generate_into(self, run: Run) -> None:
        papers = run.papers
        async with self._slots:
            assignment = Assignment(
                prompt_ids=papers.prompt_ids,
                params=papers.ask.params,
                seed=seed_of(papers.ask),
                logprobs=papers.logprobs,
                constraint=papers.constraint,
                prefix=papers.prefix,
                owner=papers.channel.payer,
                is_printed=owes_fingerprints(papers.ask),
                is_exact=owes_replay(papers.ask),
            )
            pieces = self._generate(assignment)
            try:
                async for piece in pieces:
                    if len(run.ids) >= (WORDS_MAX if is_embedding(papers.ask.params) else papers.ask.params.max_tokens):
                        break
                    run.push(piece, self._clock.now_ms())
                    if piece.finish is not None:
                        return
            finally:
                close = getattr(pieces, "aclose", None)
                if close is not None:
                    await close()
        raise UnavailableGeneration(f"generator stopped after {len(run.ids)} tokens without a finish reason")

    def _judge(self, run: Run, generation: "asyncio.Task[None]") -> Delivery:
        """How a purchase ended, seen from the generator's task."""
        error = None if generation.cancelled() else generation.exception()
        if error is None and run.finish is not None:
            return self._deliver(run, State.SERVED, run.finish, tuple(run.ids))
        if run.cancel is not None and generation.cancelled():
            kept = 0 if is_embedding(run.papers.ask.params) else run.cancel[0]
            return self._deliver(run, State.CANCELLED, FinishReason.CANCELLED, tuple(run.ids[:kept]))
        if error is not None and not isinstance(error, InvalidPrefix):
            ours = None if isinstance(error, DeaiosError) else error
            _log.error("generation failed", request=run.digest.hex(), error=repr(error), exc_info=ours)
        match error:
            case InvalidPrefix(position=position):
                run.violation = position
                self._count_reading(run)
                return self._fail(run, State.FAILED_CLIENT)
            case Refused():
                return self._fail(run, State.REFUSED)
            case Invalid():
                return self._fail(run, State.FAILED_CLIENT)
            case _:
                return self._fail(run, State.FAILED_PROVIDER)

    def _fail(self, run: Run, state: State) -> Delivery:
        return self._deliver(run, state, FinishReason.FAILED, ())

    def _deliver(self, run: Run, state: State, reason: FinishReason, ids: tuple[int, ...]) -> Delivery:
        return Delivery(
            state=state,
            finish_reason=reason,
            stop_index=run.stop_index if state == State.SERVED else 0,
            output_ids=ids,
            started_at_ms=run.started_at_ms,
            first_token_at_ms=run.first_token_at_ms,
            finished_at_ms=self._clock.now_ms(),
            cached_tokens=run.cached_tokens if ids else 0,
            fingerprints=bytes(run.leaves[: len(ids) * LEAF_BYTES]),
        )

    async def _number(self, run: Run, delivery: Delivery) -> None:
        """Give the next counter to a purchase's end: memory and journal first, then the signature."""
        channel_id = run.papers.request.channel_id
        row = self._channels[channel_id]
        receipt = build_receipt(
            run.papers.ask,
            run.papers.salt,
            run.papers.request,
            run.offer.offer,
            delivery,
            replace(self._last, charged=row.state.charged),
            self._view.known_head + self._settings.batch_deadline_blocks,
        )
        cancel = run.cancel if delivery.state == State.CANCELLED else None
        row = replace(row, state=row.state.settle(run.digest, receipt.fee))
        saved = self._store.finish(receipt, delivery.output_ids, cancel, row, delivery.fingerprints)
        self._channels[channel_id] = row
        self._pace.observe_end(delivery.finished_at_ms, is_full=len(self._runs) >= self._settings.streams_max)
        self._last = Link(receipt.counter, hash_struct(receipt), 0)
        await saved
        # Only now may it be claimed: a claim without a receipt on disk could not be answered for after a crash.
        self._charged[channel_id] = max(self._charged.get(channel_id, 0), receipt.charged_cumulative)
        outcome = Outcome(delivery.output_ids, self._sign(receipt), run.violation, delivery.fingerprints)
        run.end(outcome)
        del self._runs[run.digest]
        self._keep(Run.ended(run.papers, run.offer, run.quote, outcome))

    def _sign(self, receipt: Receipt) -> SignedReceipt:
        return SignedReceipt(receipt, sign_struct(self._key, self._terms.protocol, receipt))

    def _keep(self, run: Run) -> Run:
        kept = self._ended.setdefault(run.digest, run)
        if len(self._ended) > ENDED_RUNS_MAX:
            self._ended.popitem(last=False)
        return kept

    def _served(self, run: Run, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            _log.error("purchase has no receipt until a restart", request=run.digest.hex(), error=repr(error))
            run.break_off()


def _is_still_true(older: Offer, current: Offer) -> bool:
    """May an earlier offer still be served? Its price binds, but what it says of model and engine must hold."""
    return (
        replace(
            older,
            input_price=current.input_price,
            output_price=current.output_price,
            context_tokens=current.context_tokens,
            streams_max=current.streams_max,
            withdraw_delay_min=current.withdraw_delay_min,
            url=current.url,
            valid_until=current.valid_until,
        )
        == current
    )
