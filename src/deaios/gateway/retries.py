"""Which answer a repeated request belongs to, so that an SDK's retry is never bought twice.

OpenAI SDKs send a failed request again by themselves, with the same bytes and no idempotency key; they do say how often
they tried (`x-stainless-retry-count`). Pure: time is an argument. Invariants: an answer is found only by the same key,
nonce and exact body; a request that is no retry never meets an old answer, so asking twice on purpose buys twice; what
is kept is bounded in number, size and age.

Bodies are compared byte for byte, not in a canonical form: the answer's papers bind the exact bytes, so a body spelled
otherwise could not be checked against them. SDKs resend the same bytes.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deaios.primitives.hashing import sha256

WINDOW_S = 120.0
"""How long an ended answer can be had again: longer than the last retry of any SDK with default settings."""
ANSWERS_MAX = 1024
WEIGHT_MAX = 1 << 20
"""Of all ended answers kept."""
TOKEN_BYTES = 40
"""What a sampled token takes with its text and papers: the unit of weight."""


class Kept(Protocol):
    """What the book needs of an answer."""

    @property
    def weight(self) -> int:
        """Memory that keeping it takes, in sampled tokens of `TOKEN_BYTES`."""

    @property
    def error(self) -> object | None:
        """Why it failed, if it did."""

    @property
    def is_orphan(self) -> bool:
        """Nobody follows it, and nobody has had all of it."""

    @property
    def counts_for(self) -> str | None:
        """Which charge a repetition of it may count on: what its key has paid for nothing."""


def identify(key_id: str, client_nonce: bytes | None, body: bytes) -> bytes:
    """What makes two requests the same: the key, the nonce header and the exact body."""
    nonce = sha256(client_nonce) if client_nonce is not None else bytes(32)
    return sha256(sha256(key_id.encode()) + nonce + sha256(body))


T = TypeVar("T", bound=Kept)


@dataclass(slots=True)
class _Entry(Generic[T]):
    """One request: its answer, or None where it failed, with the charge that its repetition may count on.

    `ended_s` is None while it runs.
    """

    identity: bytes
    answer: T | None
    ended_s: float | None = None
    counts_for: str | None = None


class AnswerBook(Generic[T]):
    """Recent answers by the request they belong to.

    Running answers are never dropped; who starts them bounds their number.
    """

    def __init__(
        self, *, window_s: float = WINDOW_S, answers_max: int = ANSWERS_MAX, weight_max: int = WEIGHT_MAX
    ) -> None:
        self._window_s = window_s
        self._answers_max = answers_max
        self._weight_max = weight_max
        self._entries: dict[int, _Entry[T]] = {}
        self._ended: OrderedDict[int, _Entry[T]] = OrderedDict()
        self._by_identity: dict[bytes, list[int]] = {}
        self._serial = 0
        self._weight = 0

    @property
    def running(self) -> int:
        """How many answers are in the making."""
        return len(self._entries) - len(self._ended)

    def add(self, identity: bytes, answer: T) -> int:
        """Keep a new answer; returns the serial by which `end` knows it."""
        return self._insert(_Entry(identity, answer))

    def end(self, serial: int, now_s: float) -> None:
        """An answer has ended; a failed one is forgotten, but not that it failed."""
        entry = self._entries[serial]
        assert entry.answer is not None
        if entry.answer.error is not None:
            entry.counts_for = entry.answer.counts_for
            entry.answer = None
        else:
            self._weight += entry.answer.weight
        entry.ended_s = now_s
        self._ended[serial] = entry
        self._evict(now_s)

    def fail(self, identity: bytes, now_s: float, counts_for: str | None = None) -> None:
        """A request failed before there was an answer; the charge that it could have counted on is left."""
        serial = self._insert(_Entry(identity, None, now_s, counts_for))
        self._ended[serial] = self._entries[serial]
        self._evict(now_s)

    def find(self, identity: bytes, now_s: float) -> tuple[T | None, str | None]:
        """The answer that a retry continues; where there is none, the charge that a new one may count on, if any.

        An answer that everybody left comes first: it is most likely this client's. Then a failure is used up, because
        its client must be served anew. Then comes an answer whose last bytes the client may have missed.
        """
        self._evict(now_s)
        serials = self._by_identity.get(identity, [])
        answers = [answer for serial in reversed(serials) if (answer := self._entries[serial].answer) is not None]
        good = [answer for answer in answers if answer.error is None]
        orphan = next((answer for answer in good if answer.is_orphan), None)
        if orphan is not None:
            return orphan, None
        failed = next((serial for serial in serials if self._entries[serial].answer is None), None)
        if failed is not None:
            counts_for = self._entries[failed].counts_for
            self._drop(failed)
            return None, counts_for
        return good[0] if good else None, None

    def _insert(self, entry: _Entry[T]) -> int:
        self._serial += 1
        self._entries[self._serial] = entry
        self._by_identity.setdefault(entry.identity, []).append(self._serial)
        return self._serial

    def _evict(self, now_s: float) -> None:
        while self._ended:
            serial, entry = next(iter(self._ended.items()))
            assert entry.ended_s is not None
            is_old = now_s - entry.ended_s > self._window_s
            if not is_old and len(self._ended) <= self._answers_max and self._weight <= self._weight_max:
                return
            self._drop(serial)

    def _drop(self, serial: int) -> None:
        entry = self._entries.pop(serial)
        del self._ended[serial]
        if entry.answer is not None:
            self._weight -= entry.answer.weight
        serials = self._by_identity[entry.identity]
        serials.remove(serial)
        if not serials:
            del self._by_identity[entry.identity]
