"""One purchase in flight: what was sampled so far, who follows it, how it ended.

A run belongs to the desk, not to a connection: a buyer that loses its connection sends the same papers again and
follows from the first token, and nothing is computed or billed twice. Log probabilities live as long as the run does:
whoever follows it while it runs gets all of them, and a run that is over has none, because no journal keeps them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from deaios.compute.fingerprints import InvalidFingerprints, owes_fingerprints, split_leaves
from deaios.compute.generation import InvalidPrefix
from deaios.compute.logprobs import Ranking
from deaios.ledger.structs import FinishReason
from deaios.market.batches import SignedReceipt
from deaios.market.offers import SignedOffer
from deaios.market.orders import Papers
from deaios.market.ports import Piece
from deaios.primitives.errors import Unavailable

PORTION_TOKENS_MAX = 1024
"""Tokens in one line; with 21 log probabilities each that is at most half of what a client takes in one line."""

HEARTBEAT_S = 2.0
"""A follower hears something at least so often; buyers take four times that for the end of a provider."""


class UnavailableRun(Unavailable):
    """The purchase could not be brought to a receipt; the journal failed."""


class UnavailableLogprobs(Unavailable):
    """The generator cannot say what it was asked for."""


class UnavailableLeaf(Unavailable):
    """The generator gives no fingerprint where one is owed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a purchase ended: the receipt, the ids it covers and their fingerprints.

    `violation` says which id of a prefix was wrong, as long as that is known.
    """

    output_ids: tuple[int, ...]
    entry: SignedReceipt
    violation: int | None = None
    fingerprints: bytes = b""


@dataclass(frozen=True, slots=True)
class Portion:
    """The next ids of a run, with a ranking for each where there are any."""

    ids: tuple[int, ...]
    logprobs: tuple[Ranking, ...] | None


class Run:
    """State of one purchase, with any number of followers."""

    def __init__(self, papers: Papers, digest: bytes, offer: SignedOffer, quote: int, started_at_ms: int) -> None:
        self.papers = papers
        self.digest = digest
        self.offer = offer
        self.quote = quote
        self.started_at_ms = started_at_ms
        self.first_token_at_ms = 0
        self.ids: list[int] = []
        self.logprobs: list[Ranking] | None = None if papers.logprobs is None else []
        self.is_printed = owes_fingerprints(papers.ask)
        self.leaves = bytearray()
        self.finish: FinishReason | None = None
        self.stop_index = 0
        self.cached_tokens = 0
        self.cancel: tuple[int, bytes] | None = None
        self.violation: int | None = None
        self.is_admitted = False
        self.outcome: Outcome | None = None
        self.is_broken = False
        self._is_stopped = False
        self._on_stop: Callable[[], object] = lambda: None
        self._changed = asyncio.Event()

    @classmethod
    def ended(cls, papers: Papers, offer: SignedOffer, quote: int, outcome: Outcome) -> "Run":
        """A run that is over, to replay."""
        receipt = outcome.entry.receipt
        run = cls(papers, receipt.request_digest, offer, quote, receipt.started_at_ms)
        run.ids = list(outcome.output_ids)
        run.logprobs = None
        run.is_admitted = True
        run.outcome = outcome
        return run

    def mark_admitted(self) -> None:
        """The journal has it."""
        self.is_admitted = True
        self._notify()

    def push(self, piece: Piece, now_ms: int) -> None:
        """One more token.

        Raises:
            InvalidPrefix: it is not the one that the papers' prefix has in its place.
            UnavailableLogprobs, UnavailableLeaf: it came without what was asked for.
        """
        place, prefix = len(self.ids), self.papers.prefix
        has_ended_early = piece.finish is not None and place + 1 < len(prefix)
        if place < len(prefix) and (piece.token != prefix[place] or has_ended_early):
            raise InvalidPrefix(place, f"the model gives {piece.token} and finish {piece.finish}")
        if self.logprobs is not None:
            if piece.logprobs is None:
                raise UnavailableLogprobs("the generator gives no log probabilities, this purchase asked for them")
            self.logprobs.append(piece.logprobs)
        if self.is_printed:
            try:
                split_leaves(piece.leaf, 1)
            except InvalidFingerprints as error:
                raise UnavailableLeaf(f"the generator gives no fingerprint: {error}") from error
            self.leaves += piece.leaf
        if not self.ids:
            self.first_token_at_ms = now_ms
        self.ids.append(piece.token)
        self.finish, self.stop_index = piece.finish, piece.stop_index
        self.cached_tokens = piece.cached_tokens
        self._notify()

    def stop(self) -> None:
        """Sample no further."""
        self._is_stopped = True
        self._on_stop()

    def when_stopped(self, call: Callable[[], object]) -> None:
        """Have something called once it is stopped, at once where it is already."""
        self._on_stop = call
        if self._is_stopped:
            call()

    def end(self, outcome: Outcome) -> None:
        """The receipt is signed."""
        self.outcome = outcome
        self._notify()

    def break_off(self) -> None:
        """No receipt can come in this run of the process."""
        self.is_broken = True
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_admitted(self) -> None:
        """Until the journal has it.

        Raises:
            UnavailableRun: the journal failed.
        """
        while not self.is_admitted:
            if self.is_broken:
                raise UnavailableRun("purchase could not be journalled; nothing was charged")
            await self._changed.wait()

    async def wait_outcome(self) -> Outcome:
        """Until the receipt.

        Raises:
            UnavailableRun: there will be none before a restart.
        """
        while self.outcome is None:
            if self.is_broken:
                raise UnavailableRun("receipt could not be journalled; ask again after a restart of this provider")
            await self._changed.wait()
        return self.outcome

    async def follow(self) -> AsyncIterator[Portion]:
        """Ids after the prefix in order, in bounded portions of what came since the last look, until the receipt.

        An empty portion says that there was nothing for `HEARTBEAT_S`.

        Raises:
            UnavailableRun: there will be no receipt before a restart.
        """
        sent = len(self.papers.prefix)
        while True:
            changed = self._changed
            if len(self.ids) > sent:
                first, sent = sent, min(len(self.ids), sent + PORTION_TOKENS_MAX)
                logprobs = None if self.logprobs is None else tuple(self.logprobs[first:sent])
                yield Portion(tuple(self.ids[first:sent]), logprobs)
                continue
            if self.outcome is not None:
                return
            if self.is_broken:
                raise UnavailableRun("receipt could not be journalled; ask again after a restart of this provider")
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await changed.wait()
            except TimeoutError:
                yield Portion((), None)
