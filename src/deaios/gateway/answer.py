"""One answer in the making: a task buys it, any number of readers follow it from its beginning.

Invariants: the purchase is made once and charged at most once, whoever comes and goes; what readers get is always the
same text; while streaming readers lag, the purchase waits, so memory is bounded by the answer's own length. An answer
that everybody left is cancelled, at once or after a grace in which an SDK's retry may return. It knows no HTTP.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from deaios.compute.embedding import is_embedding
from deaios.compute.generation import Generation
from deaios.compute.sampling import SEED_SIZE
from deaios.gateway.budgets import Budgets, Reservation
from deaios.gateway.errors import (
    InternalFault,
    InvalidOutput,
    UnavailableAnswer,
    UnavailableLogprobs,
    UnavailableMarket,
)
from deaios.gateway.logprobs import ShownTokens
from deaios.gateway.purchasing import Delta, Purchase, Purchasing, ServedModel
from deaios.gateway.retries import TOKEN_BYTES
from deaios.gateway.store import Charge
from deaios.ledger.structs import FinishReason, Receipt, State
from deaios.market.opening import Opening
from deaios.market.orders import Order
from deaios.market.question import Part, Question
from deaios.primitives.errors import DeaiosError, Invalid, Refused
from deaios.primitives.units import compute_fee
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

log = get_logger("gateway")

LAG_PIECES_MAX = 256
"""How far the purchase may run ahead of the fastest streaming reader."""
CANCEL_S = 10.0
"""A purchase that cannot be cancelled within this time is left to its own deadline."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who asked for what.

    Attributes:
        question: what for.
        part: which purchase of the request.
        request: identifies the purchase among requests, as `retries.identify` does.
        digest: the ask's client digest where the answer may hold calls, which it names; empty otherwise.
        repeats: charge for an answer to the same request that never reached its client; this one costs only what it
            is above that, and the gateway bears the rest.
    """

    answer_id: str
    created_s: int
    key_id: str
    model: ServedModel
    question: Question
    part: Part
    client_nonce: bytes
    request: bytes
    digest: bytes
    repeats: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A wish turned into an order, with the money set aside."""

    order: Order
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Fallback:
    """Another model that may answer, and how its order is made."""

    model: ServedModel
    prepare: Callable[[], Awaitable[Prepared]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for what.

    Attributes:
        answer_s: the whole answer, whichever models are tried for it; OpenAI SDKs give up after 600 s.
        grace_s: how long an answer lives on without a reader when its client is one that retries by itself.
    """

    answer_s: float = 600.0
    grace_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that was released at once, and the entries of the tokens that it newly shows, where they are wanted."""

    text: str
    logprobs: tuple[bytes, ...] = ()


class Reader:
    """One client's place in an answer."""

    def __init__(self, answer: "Answer", moved: asyncio.Event, *, is_streaming: bool) -> None:
        self._answer = answer
        self.moved = moved
        self.is_streaming = is_streaming
        self.position = 0

    def take(self) -> list[Piece]:
        """The pieces that are new to this reader."""
        pieces = self._answer.pieces[self.position :]
        self.position = len(self._answer.pieces)
        self._answer.note_progress()
        return pieces

    @property
    def is_behind(self) -> bool:
        """Is there something that it has not taken?"""
        return self.position < len(self._answer.pieces)


class Answer:
    """The purchase of one answer and its readers."""

    def __init__(
        self,
        wanted: Wanted,
        prepare: Callable[[], Awaitable[Prepared]],
        *,
        buyer: Purchasing,
        budgets: Budgets,
        clock: Clock,
        patience: Patience,
        fallbacks: Sequence[Fallback] = (),
    ) -> None:
        self.wanted = wanted
        self.pieces: list[Piece] = []
        self.opening: Opening | None = None
        self.error: DeaiosError | None = None
        self.has_ended = False
        self.is_delivered = False
        self.is_shown = False
        self.is_abandoned = False
        self.tokens = 0
        self.prompt_tokens = 0
        self._text: Generation | None = None
        self._words = 0
        self._shown = ShownTokens(wanted.model.tokenizer)
        self._prepare = prepare
        self._buyer = buyer
        self._budgets = budgets
        self._clock = clock
        self._patience = patience
        self._fallbacks = deque(fallbacks)
        self._late_at_s = asyncio.get_running_loop().time() + patience.answer_s
        self._readers: set[Reader] = set()
        self._progressed = asyncio.Event()
        self._is_closing = False
        self._on_end: Callable[[], None] = lambda: None
        self._grace: asyncio.Task[None] | None = None
        self._unproven: bytes | None = None
        self._is_charged = False
        self._task = asyncio.create_task(self._run(), name=f"answer {wanted.answer_id}")
        self._task.add_done_callback(self._end_if_broken)

    @property
    def is_orphan(self) -> bool:
        """Nobody follows it, and nobody has had all of it."""
        return not self._readers and not self.is_delivered

    @property
    def is_settled(self) -> bool:
        """Is it known which model answers? Nothing that names one may be shown before."""
        return not self._fallbacks or bool(self.pieces) or self.has_ended

    @property
    def counts_for(self) -> str | None:
        """The charge that a repetition may count on: none once a client has seen some of this answer."""
        if self.is_shown:
            return None
        return self.wanted.answer_id if self._is_charged else self.wanted.repeats

    @property
    def weight(self) -> int:
        """Memory that keeping it takes, in sampled tokens."""
        return (
            self.tokens
            + self._words
            + sum(len(entry) for piece in self.pieces for entry in piece.logprobs) // TOKEN_BYTES
        )

    def when_done(self, call: Callable[[], None]) -> None:
        """Have something called when the answer has ended, before its readers know."""
        assert not self.has_ended
        self._on_end = call

    def join(self, moved: asyncio.Event, *, is_streaming: bool) -> Reader:
        """Follow the answer from its beginning.

        Args:
            moved: set when there is a new piece, and when the answer has ended.
            is_streaming: the reader takes pieces as they come.
        """
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        reader = Reader(self, moved, is_streaming=is_streaming)
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader, *, may_return: bool) -> None:
        """Stop following; the last to leave an unfinished answer ends it.

        Args:
            reader: who leaves.
            may_return: the client is one that sends a failed request again by itself.
        """
        self._readers.discard(reader)
        self.note_progress()
        if self._readers or self.has_ended:
            return
        if may_return:
            self._grace = asyncio.create_task(self._abandon_later())
        else:
            self.abandon()

    def abandon(self) -> None:
        """Cancel the purchase, unless it is being charged already."""
        if not self._is_closing and not self.has_ended:
            self._is_closing = self.is_abandoned = True
            self._task.cancel()

    async def stop(self) -> None:
        """Abandon, and wait until money and papers are settled."""
        if self._grace is not None:
            self._grace.cancel()
        self.abandon()
        await self.wait_end()

    async def wait_end(self) -> None:
        """Return when money and papers are settled."""
        await asyncio.wait([self._task])

    def note_progress(self) -> None:
        """A reader has moved or left."""
        self._progressed.set()

    async def _abandon_later(self) -> None:
        await self._clock.sleep(self._patience.grace_s)
        if not self._readers:
            self.abandon()

    async def _run(self) -> None:
        try:
            error = await self._buy_from_any()
        except asyncio.CancelledError:
            error = UnavailableAnswer("the request was abandoned")
        self._end(error)

    def _end_if_broken(self, task: asyncio.Task[None]) -> None:
        """A fault of ours, or a cancel before the first step, leaves no reader waiting."""
        if task.cancelled():
            self._end(UnavailableAnswer("the request was abandoned"))
        elif (fault := task.exception()) is not None:
            log.error("internal fault", answer=self.wanted.answer_id, exc_info=fault)
            self._end(InternalFault("the answer failed"))

    async def _buy_from_any(self) -> DeaiosError | None:
        """Buy from the first model that gives an answer; returns what went wrong with the last that was tried."""
        while True:
            try:
                error = await self._buy(await self._prepare())
            except DeaiosError as failure:
                error = failure
            if error is None or not self._may_fall_back(error):
                return error
            self._fall_back(error)

    def _may_fall_back(self, error: DeaiosError) -> bool:
        """Is there another model, and time, and has nobody had a token? As with OpenRouter, any error counts."""
        is_late = asyncio.get_running_loop().time() >= self._late_at_s
        has_begun = self.tokens > 0 or self._is_closing
        return bool(self._fallbacks) and not (has_begun or is_late or isinstance(error, InternalFault))

    def _fall_back(self, error: DeaiosError) -> None:
        """Let the next model answer."""
        fallback, failed = self._fallbacks.popleft(), self.wanted.model
        log.info("model failed", answer=self.wanted.answer_id, model=failed.names[0], error=str(error))
        self.wanted = replace(self.wanted, model=fallback.model)
        self._prepare = fallback.prepare
        self._shown = ShownTokens(fallback.model.tokenizer)
        self._text = self.opening = self._unproven = None
        self._notify()

    async def _buy(self, prepared: Prepared) -> DeaiosError | None:
        """Purchase, then charge or release; on no path does money stay set aside. Returns what went wrong."""
        self.prompt_tokens = len(prepared.order.prompt_ids)
        with ExitStack() as undo:
            undo.callback(self._budgets.release, prepared.reservation)
            amount, error = await self._purchase(prepared)
            if error is not None and not amount and self._may_fall_back(error):
                return error
            undo.pop_all()
        self._is_closing = True
        await self._settle(prepared, amount)
        return error

    async def _purchase(self, prepared: Prepared) -> tuple[int, DeaiosError | None]:
        """Buy to the end; returns what the key owes, and what went wrong."""
        purchase: Purchase | None = None
        try:
            async with asyncio.timeout_at(self._late_at_s):
                purchase = await self._buyer.purchase(prepared.order)
                await self._follow(purchase, prepared.order)
                self.opening = await purchase.wait()
        except asyncio.CancelledError:
            if not self._is_closing:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            return await self._cancel(purchase, prepared), UnavailableAnswer("the request was abandoned")
        except TimeoutError:
            late = UnavailableAnswer(f"no complete answer within {self._patience.answer_s:g} s")
            return await self._cancel(purchase, prepared), late
        except Refused as refusal:
            return 0, UnavailableMarket(str(refusal))
        except Invalid as lie:
            # It came from the provider: the user's request was read before anything was bought. Nobody pays for it.
            log.warning("purchase failed", answer=self.wanted.answer_id, error=str(lie), kind=type(lie).__name__)
            await self._cancel(purchase, prepared)
            return 0, UnavailableAnswer(f"the provider broke the protocol: {lie}")
        except UnavailableLogprobs as lost:
            await self._cancel(purchase, prepared)
            return 0, lost
        except DeaiosError as failure:
            return 0, failure
        return self._judge(prepared.reservation)

    async def _follow(self, purchase: Purchase, order: Order) -> None:
        if is_embedding(order.params):
            async for delta in purchase:
                self._words += len(delta.ids)
            return
        # The finish rules need ids only; the seed is the sampler's, and nothing is sampled here.
        self._text = Generation(len(order.prompt_ids), order.params, bytes(SEED_SIZE), self.wanted.model.tokenizer)
        async for delta in purchase:
            self._add(delta)
            await self._wait_for_readers()

    def _add(self, delta: Delta) -> None:
        """Take more tokens: the text that they release, and entries for those that it shows."""
        assert self._text is not None
        text = "".join(map(self._accept, delta.ids))
        entries: tuple[bytes, ...] = ()
        if self.wanted.question.top_logprobs is not None:
            if delta.logprobs is None:
                raise UnavailableLogprobs("the provider's stream broke and log probabilities were lost; ask again")
            shown = delta.logprobs[:-1] if self._text.finish == FinishReason.STOP_TOKEN else delta.logprobs
            for ranking in shown:
                self._shown.add(ranking)
            entries = self._shown.take(self._text.shown_bytes)
        if text:
            self.pieces.append(Piece(text, entries))
            self._notify()

    def _accept(self, token: int) -> str:
        """The text that one more token releases."""
        assert self._text is not None
        if self._text.finish is not None:
            raise InvalidOutput("the provider sent tokens after the end of the answer")
        self.tokens += 1
        return self._text.accept(token).text_delta

    async def _wait_for_readers(self) -> None:
        """Do not run ahead of those who stream: what they never read should not be bought."""
        while places := [reader.position for reader in self._readers if reader.is_streaming]:
            if len(self.pieces) - max(places) <= LAG_PIECES_MAX or len(places) < len(self._readers):
                return
            self._progressed.clear()
            await self._progressed.wait()

    def _judge(self, reservation: Reservation) -> tuple[int, DeaiosError | None]:
        """What an ended purchase costs the key, and what is wrong with it."""
        assert self.opening is not None
        receipt = self.opening.receipt
        if receipt.state != State.SERVED:
            return 0, UnavailableAnswer(f"the provider ended the purchase as {State(receipt.state).name.lower()}")
        if not self._ends_as_said(receipt):
            said = FinishReason(receipt.finish_reason).name.lower()
            return 0, UnavailableAnswer(f"the provider broke the protocol: its tokens do not end by {said}")
        if receipt.fee > reservation.amount:
            log.warning(
                "fee above the listed price", answer=self.wanted.answer_id, fee=receipt.fee, reserved=reservation.amount
            )
        return min(receipt.fee, reservation.amount), None

    def _ends_as_said(self, receipt: Receipt) -> bool:
        """Do the ids end where the receipt says? Of a vector the buyer has checked that, with all of its papers."""
        if self.wanted.question.vector is not None:
            return True
        text = self._text
        return text is not None and (text.finish, text.stop_index) == (receipt.finish_reason, receipt.stop_index)

    async def _cancel(self, purchase: Purchase | None, prepared: Prepared) -> int:
        """Cancel at the market; returns what the key owes for what it had received: for now, if there is no receipt."""
        if purchase is None:
            return 0
        try:
            async with asyncio.timeout(CANCEL_S):
                await purchase.cancel()
                self.opening = await purchase.wait()
        except (DeaiosError, TimeoutError) as error:
            log.info("cancelled without a receipt", answer=self.wanted.answer_id, error=repr(error))
        if self.opening is not None:
            fee = self.opening.receipt.fee
        else:
            self._unproven = purchase.request_digest
            model = self.wanted.model
            fee = compute_fee(len(prepared.order.prompt_ids), self.tokens, model.input_price, model.output_price)
            fee = fee if self.tokens else 0
        return min(fee, prepared.reservation.amount)

    async def _settle(self, prepared: Prepared, amount: int) -> None:
        if not amount:
            self._budgets.release(prepared.reservation)
            return
        receipt = self.opening.receipt if self.opening is not None else None
        charge = Charge(
            answer_id=self.wanted.answer_id,
            key_id=self.wanted.key_id,
            amount=amount,
            prompt_tokens=receipt.prompt_tokens if receipt is not None else len(prepared.order.prompt_ids),
            completion_tokens=receipt.completion_tokens if receipt is not None else self.tokens,
            at_ms=self._clock.now_ms(),
            provider=self.opening.request.provider if self.opening is not None else None,
            counter=receipt.counter if receipt is not None else None,
            request=self.wanted.request,
            purchase=self._unproven,
            repeats=self.wanted.repeats,
        )
        self._is_charged = await self._budgets.settle(prepared.reservation, charge)

    def _end(self, error: DeaiosError | None) -> None:
        self.error = error
        self.has_ended = True
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._on_end()
        self._notify()

    def _notify(self) -> None:
        for reader in self._readers:
            reader.moved.set()
