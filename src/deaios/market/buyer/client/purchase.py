"""One purchase from one provider: a task of its own reads, checks and settles; the caller only follows.

Because the task does not depend on the caller, a caller that goes away leaves no charge unaccepted and no reservation
behind. Invariants: nothing is accepted unchecked; ids that were handed out never change when a broken stream is taken
up again; a purchase ends settled, released, or on disk as open, to be resolved later.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec

from deaios.compute.embedding import WORDS_MAX, is_embedding
from deaios.compute.logprobs import Ranking, find_fault
from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.structs import Cancel, Request, State, Voucher
from deaios.market.batches import SignedReceipt
from deaios.market.buyer.client.settings import BuyerSettings
from deaios.market.buyer.client.wallet import Account, Wallet
from deaios.market.buyer.errors import FailedPurchase, InvalidStream, RefusedPrefix, UnavailableProvider
from deaios.market.buyer.store import BuyerStore, OpenRow
from deaios.market.channel import RefusedDeposit, RefusedVoucher
from deaios.market.offers import SignedOffer, compute_quote
from deaios.market.opening import Opening
from deaios.market.orders import Papers
from deaios.market.receipts import validate_receipt
from deaios.market.sealing.client import post_sealed, stream_purchase
from deaios.market.terms import Terms
from deaios.market.wire import (
    Admitted,
    CancelBody,
    Finished,
    OutcomeAnswer,
    Tokens,
    decode_line,
    encode_papers,
    read_fingerprints,
    read_needed,
    read_outcome,
    read_receipt,
)
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import DeaiosError, Invalid, Refused, Unavailable
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.client import HttpClient, RefusedByPeer, UnavailablePeer
from deaios.runtime.clock import Clock
from deaios.runtime.errors import NotFound
from deaios.runtime.logs import get_logger

RESUME_WAIT_S = 0.2
RAISES_MAX = 2
"""How often a provider may ask for a higher voucher before one purchase."""

_log = get_logger("buyer")


@dataclass(frozen=True, slots=True)
class Delta:
    """The next ids of a purchase.

    Attributes:
        ids: at least one.
        logprobs: one ranking for each id, as the provider claims it; None where none were asked for, or where some were
            lost with a broken stream.
    """

    ids: tuple[int, ...]
    logprobs: tuple[Ranking, ...] | None = None


@dataclass(frozen=True, slots=True)
class Desk:
    """What every purchase of one buyer shares."""

    key: PrivateKey
    terms: Terms
    settings: BuyerSettings
    store: BuyerStore
    wallet: Wallet
    http: HttpClient
    clock: Clock


class Purchase:
    """Iterate for `Delta`s; afterwards `opening` holds everything that a check needs.

    Where its papers have a prefix, it stands after that from the beginning: the prefix was handed out by another
    purchase, which failed. Cancelled before a token of its own, it acknowledges nothing.

    Attributes:
        provider: who serves it.
        request_digest: what names it.
        waiting: purchases that waited at the provider when this one was admitted.
    """

    def __init__(
        self,
        desk: Desk,
        account: Account,
        offer: SignedOffer,
        request: Request,
        papers: Papers,
        *,
        resumes_max: int | None = None,
        when_ended: "Callable[[Purchase], None] | None" = None,
    ) -> None:
        """Begin.

        Args:
            desk: what it shares with others.
            account: whose channel pays.
            offer: under which it is bought.
            request: as signed.
            papers: without the voucher, which is signed when there is room for it.
            resumes_max: how often a broken stream is taken up again, if not as the settings have it.
            when_ended: called once its task is done with it, whoever followed it.
        """
        self._when_ended = when_ended
        self.provider: Address = request.provider
        self.request_digest = hash_struct(request)
        self.offer = offer
        self._desk = desk
        self._account = account
        self._papers = papers
        self._body = b""
        self._quote = compute_quote(offer.offer, papers.ask.prompt_count, papers.ask.params.max_tokens)
        self._began = len(papers.prefix)
        self._ids: list[int] = list(papers.prefix)
        self._resumes_max = desk.settings.resumes_max if resumes_max is None else resumes_max
        self._rankings: list[Ranking | None] = []
        self._handed_out = self._began
        self._acknowledged: int | None = None
        self._opening: Opening | None = None
        self._evidence: Opening | None = None
        self._violation: int | None = None
        self._fingerprints = b""
        self._is_abandoned = False
        self._is_forfeit = False
        self.waiting = 0
        self._error: DeaiosError | None = None
        self._is_over = False
        self._changed = asyncio.Event()
        self.sent_at_s: float | None = None
        self.first_at_s: float | None = None
        self.ended_at_s: float | None = None
        self._task = asyncio.create_task(self._run(), name=f"buy {self.request_digest.hex()[:16]}")
        self._task.add_done_callback(self._done)

    @property
    def opening(self) -> Opening:
        """The finished purchase; an assertion of ours that it is finished."""
        assert self._opening is not None, "a purchase has its opening only after its end"
        return self._opening

    @property
    def error(self) -> DeaiosError | None:
        """Why it failed, once it has."""
        return self._error

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come."""
        return self._is_over

    @property
    def is_abandoned(self) -> bool:
        """Whether the caller went away, which says nothing about the provider."""
        return self._is_abandoned

    @property
    def evidence(self) -> Opening | None:
        """The opening around the receipt that was received, accepted or not."""
        return self._evidence

    @property
    def has_begun(self) -> bool:
        """Whether a token came, or the end."""
        return self._is_over or self.tokens > 0

    @property
    def handed_out(self) -> int:
        """Ids that the caller has been given, the prefix included."""
        return self._handed_out

    @property
    def to_acknowledge(self) -> int:
        """What a cancel acknowledges: all that the caller has been given, once this provider gave some of it."""
        return 0 if self._is_forfeit or self._handed_out == self._began else self._handed_out

    @property
    def is_reserved(self) -> bool:
        """Whether its channel still holds room for it."""
        return self.request_digest in self._account.state.reservations

    @property
    def tokens(self) -> int:
        """Ids received so far from this provider."""
        return len(self._ids) - self._began

    @property
    def can_go_on(self) -> bool:
        """Whether another provider would give the same ids: answers are sampled from one seed, vectors are not."""
        return not is_embedding(self._papers.ask.params)

    @property
    def ids(self) -> tuple[int, ...]:
        """The output as far as it is known, the prefix included."""
        return tuple(self._ids)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Ids in order.

        Raises:
            UnavailableProvider: the provider failed after its first token; nothing was charged for it so far.
            Invalid…: the provider lied.
        """
        while True:
            changed = self._changed
            delta = self.take()
            if delta is not None:
                yield delta
            elif self._is_over:
                break
            else:
                await changed.wait()
        if self._error is not None:
            raise self._error

    def take(self) -> Delta | None:
        """The ids that are new to the caller, if there are any."""
        if len(self._ids) <= self._handed_out or self._acknowledged is not None:
            return None
        ids = tuple(self._ids[self._handed_out :])
        self._handed_out += len(ids)
        return Delta(ids, self._take_rankings())

    def _take_rankings(self) -> tuple[Ranking, ...] | None:
        """The rankings of the ids that are handed out now; they are kept no longer."""
        taken, self._rankings = self._rankings, []
        known = tuple(ranking for ranking in taken if ranking is not None)
        return known if self._papers.logprobs is not None and len(known) == len(taken) else None

    async def wait_changed(self) -> None:
        """Until something happens: sent, more ids, the end."""
        await self._changed.wait()

    async def wait_ended(self) -> None:
        """Until the end, of whatever kind, and until its task is done with it."""
        await asyncio.wait({self._task})
        while not self._is_over:
            await self._changed.wait()

    async def wait(self) -> Opening:
        """Until the end, whoever iterates.

        Raises:
            UnavailableProvider: as iteration does.
        """
        await self.wait_ended()
        if self._error is not None:
            raise self._error
        return self.opening

    async def cancel(self) -> None:
        """End it now, paying for what iteration handed out; returns when the receipt is in, or cannot be had now."""
        if self._is_over or self._acknowledged is not None:
            return
        self._acknowledged = self.to_acknowledge
        if self.sent_at_s is None:
            self._task.cancel()
        else:
            await self._desk.store.acknowledge(self.request_digest, self._acknowledged)
            try:
                await send_cancel(self._desk, self.offer, self.request_digest, self._acknowledged)
            except (UnavailablePeer, Refused, Invalid) as error:
                self._end(error=UnavailableProvider(f"cancel is not confirmed: {error}"))
                self._task.cancel()
        await self.wait_ended()

    def abandon(self, error: UnavailableProvider | None, *, is_forfeit: bool = False) -> None:
        """Stop following it; what became of it is learned later.

        Args:
            error: the provider's fault, None where the caller went away.
            is_forfeit: it acknowledges no token, because another purchase begins anew what this one did not end.
        """
        self._is_abandoned = error is None
        self._is_forfeit = self._is_forfeit or is_forfeit
        self._end(error=error or UnavailableProvider("the caller went away"))
        self._task.cancel()

    def open_row(self) -> OpenRow:
        """The purchase as the journal keeps it while it has no receipt."""
        acknowledged = self.to_acknowledge if self._acknowledged is None else self._acknowledged
        return OpenRow(self.request_digest, self.provider, self._body, self.offer, self._quote, acknowledged)

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _end(self, *, opening: Opening | None = None, error: DeaiosError | None = None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._opening, self._error = opening, error
        self.ended_at_s = self._desk.clock.monotonic_s()
        self._notify()

    def _done(self, task: "asyncio.Task[None]") -> None:
        """Whatever ended the task, nobody waits for ever."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, DeaiosError):
            self._end(error=error)
        elif error is not None:
            self._end(error=UnavailableProvider(f"purchase broke off by our own fault: {error!r}"))
        else:
            self._end(error=UnavailableProvider("purchase was given up"))
        if self._when_ended is not None:
            self._when_ended(self)

    async def _run(self) -> None:
        desk = self._desk
        await desk.wallet.reserve(self._account, self.request_digest, self._quote, self.offer, self._build)
        self.sent_at_s = desk.clock.monotonic_s()
        self._notify()
        entry = await self._receive()
        opening = self._evidence = build_opening(self._papers, self.offer, tuple(self._ids), entry, self._fingerprints)
        check_receipt(desk.terms, opening, self._acknowledged, complete=True, received=len(self._ids))
        desk.wallet.settle(self._account, opening)
        if opening.receipt.state in (State.SERVED, State.CANCELLED):
            self._end(opening=opening)
        elif self._violation is not None:
            self._end(error=RefusedPrefix(self._violation))
        else:
            self._end(error=FailedPurchase(opening.receipt.state))

    def _build(self, voucher: Voucher, signature: bytes) -> bytes:
        self._papers = replace(self._papers, voucher=voucher, voucher_signature=signature)
        self._body = encode_papers(self._papers)
        return self._body

    async def _receive(self) -> SignedReceipt:
        """Read the stream to its receipt; follow a provider that needs more signed; take up a broken stream."""
        desk = self._desk
        raises = resumes = 0
        while True:
            try:
                entry = await self._read_stream(is_resumed=resumes > 0)
                if entry is not None:
                    return entry
                error: Unavailable = UnavailableProvider("stream ended without a receipt")
            except RefusedByPeer as refusal:
                needed = read_needed(refusal.body) if refusal.status == 402 else None
                if needed is None or raises >= RAISES_MAX or self.tokens:
                    if not self.tokens:
                        await self._give_up()
                    raise
                raises += 1
                await self._raise(refusal, needed)
                continue
            except UnavailablePeer as broken:
                error = broken
            if not self.tokens or resumes >= self._resumes_max:
                self._is_forfeit = True  # nobody pays for a stream that broke
                raise UnavailableProvider(f"broke off after {self.tokens} tokens: {error}") from error
            resumes += 1
            await desk.clock.sleep(RESUME_WAIT_S * resumes)

    async def _raise(self, refusal: RefusedByPeer, needed: int) -> None:
        desk = self._desk
        try:
            if refusal.title == RefusedDeposit.__name__:
                await desk.wallet.deposit(self._account, needed)
            elif refusal.title == RefusedVoucher.__name__:
                await desk.wallet.raise_voucher(
                    self._account, self.request_digest, self._quote, self.offer, self._build, needed
                )
        except Refused:
            await self._give_up()
            raise

    async def _give_up(self) -> None:
        """Release refused papers once the provider promises never to admit them; otherwise they stay in doubt.

        Without that promise a copy that comes late, or that somebody on the way sends again, would be charged.
        """
        try:
            await send_cancel(self._desk, self.offer, self.request_digest, 0)
        except RefusedByPeer as refusal:
            if is_unknown_purchase(refusal):
                await self._desk.wallet.release(self._account, self.request_digest)
        except (Unavailable, Invalid) as error:
            _log.info("refused papers stay in doubt", request=self.request_digest.hex(), error=str(error))

    async def _read_stream(self, *, is_resumed: bool) -> SignedReceipt | None:
        desk = self._desk
        position = self._began
        url = f"{self.offer.offer.url.rstrip('/')}/purchases"
        lines = stream_purchase(desk.http, url, self._body, self.offer.sealing_key, idle_s=desk.settings.silence_s)
        async with aclosing(lines):
            async for data in lines:
                match decode_line(data):
                    case Admitted(prefix, waiting):
                        if prefix != self._began:
                            # Anybody on the way can take a hint out of the papers that no signature covers.
                            raise UnavailableProvider(f"stream begins after {prefix} ids, not after {self._began}")
                        self.waiting = max(self.waiting, waiting)
                    case Tokens() as tokens:
                        rankings = read_rankings(tokens, self._papers.logprobs, may_lack=is_resumed)
                        position = self._take(tokens.ids, rankings, position)
                    case Finished(receipt, signature, violation) as finished:
                        self._violation = None if violation is msgspec.UNSET else violation
                        self._fingerprints = read_fingerprints(finished)
                        return read_receipt(receipt, signature)
        return None

    def _take(self, ids: list[int], rankings: Sequence[Ranking | None], position: int) -> int:
        """Add ids, or compare them with those already received when a stream was taken up again."""
        params = self._papers.ask.params
        limit = WORDS_MAX if is_embedding(params) else params.max_tokens
        for token, ranking in zip(ids, rankings, strict=True):
            if not 0 <= token < 1 << 32 or position >= limit:
                raise InvalidStream(f"token {token} at position {position}, at most {limit} tokens were asked for")
            if position < len(self._ids):
                if self._ids[position] != token:
                    raise InvalidStream(f"token {position} was {self._ids[position]}, now it is {token}")
            else:
                self._ids.append(token)
                self._rankings.append(ranking)
            position += 1
        if self.first_at_s is None and self.tokens:
            self.first_at_s = self._desk.clock.monotonic_s()
        self._notify()
        return position


def read_rankings(tokens: Tokens, count: int | None, *, may_lack: bool) -> Sequence[Ranking | None]:
    """The log probabilities in a line of tokens, as far as they can be judged without the model.

    Args:
        tokens: the line.
        count: how many of the most probable tokens were asked for; None where no log probabilities were.
        may_lack: whether the stream may be that of a purchase that ended before it, which has none.

    Raises:
        InvalidStream: some that were not asked for, none where they were, or impossible ones.
    """
    given = tokens.logprobs
    if given is msgspec.UNSET:
        if count is not None and not may_lack:
            raise InvalidStream("tokens came without the log probabilities that the purchase asked for")
        return (None,) * len(tokens.ids)
    if count is None:
        raise InvalidStream("log probabilities came, none were asked for")
    if len(given) != len(tokens.ids):
        raise InvalidStream(f"log probabilities of {len(given)} tokens came with {len(tokens.ids)} ids")
    for token, ranking in zip(tokens.ids, given, strict=True):
        fault = find_fault(ranking, token, count)
        if fault is not None:
            raise InvalidStream(fault)
    return given


def build_opening(
    papers: Papers, offer: SignedOffer, ids: tuple[int, ...], entry: SignedReceipt, fingerprints: bytes
) -> Opening:
    """The opening around a receipt; of the ids, those that the receipt counts."""
    return Opening(
        ask=papers.ask,
        salt=papers.salt,
        offer=offer.offer,
        offer_signature=offer.signature,
        request=papers.request,
        request_signature=papers.request_signature,
        output_ids=ids[: _count_covered(papers, ids, entry)],
        receipt=entry.receipt,
        receipt_signature=entry.signature,
        constraint=papers.constraint,
        conduct=offer.conduct,
        fingerprints=fingerprints,
    )


def _count_covered(papers: Papers, ids: tuple[int, ...], entry: SignedReceipt) -> int:
    """Ids that a receipt covers: a vector, which bills no token, whole or not at all."""
    if is_embedding(papers.ask.params):
        return len(ids) if entry.receipt.state == State.SERVED else 0
    return entry.receipt.completion_tokens


def check_receipt(terms: Terms, opening: Opening, acknowledged: int | None, *, complete: bool, received: int) -> None:
    """Everything a buyer checks before it accepts a charge.

    Args:
        terms: the network.
        opening: around the receipt.
        acknowledged: tokens of the cancel this buyer signed, if it did.
        complete: whether a served receipt must count every id received.
        received: ids received.

    Raises:
        InvalidReceipt: the rule and both values.
        InvalidStream: more was sent than the receipt counts.
    """
    validate_receipt(terms.protocol, opening, -1 if acknowledged is None else acknowledged)
    if complete and opening.receipt.state == State.SERVED and received != len(opening.output_ids):
        raise InvalidStream(f"{received} ids were sent, the receipt counts {len(opening.output_ids)}")


def is_unknown_purchase(refusal: RefusedByPeer) -> bool:
    """Does the provider say that it never admitted this purchase, and never will?"""
    return refusal.status == 404 and refusal.title == NotFound.__name__


async def send_cancel(
    desk: Desk, offer: SignedOffer, request_digest: bytes, tokens: int
) -> tuple[tuple[int, ...], SignedReceipt, bytes]:
    """Tell a provider to stop, acknowledging so many tokens.

    Returns:
        The ids its receipt covers, the receipt, and their fingerprints.
    """
    signature = sign_struct(desk.key, desk.terms.protocol, Cancel(request_digest=request_digest, tokens=tokens))
    url = f"{offer.offer.url.rstrip('/')}/purchases/{encode_hex(request_digest)}/cancel"
    body = CancelBody(tokens=tokens, signature=encode_hex(signature))
    if offer.sealing_key is None:
        answer = await desk.http.post_json(url, body, OutcomeAnswer)
    else:
        answer = await post_sealed(desk.http, url, body, OutcomeAnswer, offer.sealing_key)
    return *read_outcome(answer), read_fingerprints(answer)
