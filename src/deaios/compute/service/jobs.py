"""What waits for an engine: answers and checks, each with the caller's loop to which its end is told.

Invariant: nothing here touches an engine; whatever reaches a caller reaches it on the caller's own loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from deaios.compute.engine import Engine
from deaios.compute.generation import Generation, Sampled
from deaios.compute.pacing import Outstanding
from deaios.compute.records import Thresholds
from deaios.compute.verification import OUTPUTS_PER_STEP, Replay, Report, cut_prompt

_Result = TypeVar("_Result")


@dataclass(eq=False, kw_only=True)
class Job:
    """Anything that waits for the engine. `tokens` is the most it will hold in its sequence."""

    loop: asyncio.AbstractEventLoop
    tokens: int
    cancelled: bool = False
    overtaken: int = 0
    sequence: int | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, call: Callable[[], object]) -> None:
        """Run something on the caller's loop; a loop that is gone has nobody left to tell."""
        try:
            self.loop.call_soon_threadsafe(call)
        except RuntimeError:
            self.cancelled = True


@dataclass(eq=False, kw_only=True)
class AnswerJob(Job):
    """One answer being generated.

    Attributes:
        pieces: the parts of prompt and prefix that are still to be read, each with how many rows it must give.
        prefix: ids of another provider's answer that are still to be checked.
        thresholds: by which they are.
        is_printed: whether each id comes with its fingerprint.
        is_exact: whether exact replay has to give it: it shares no step with others and nothing is taken from a cache.
    """

    generation: Generation
    prompt_ids: tuple[int, ...]
    allowed: int
    owner: bytes | None
    pieces: deque[tuple[tuple[int, ...], int]] = field(default_factory=deque)
    cached: int = 0
    prefix: deque[int] = field(default_factory=deque)
    thresholds: Thresholds | None = None
    is_printed: bool = False
    is_exact: bool = False
    position: int = 0
    events: asyncio.Queue[Sampled | Exception] = field(default_factory=asyncio.Queue)  # bounded by max_tokens

    def begin(self, cached: int) -> None:
        """Cut what is left to read into pieces."""
        self.cached = self.position = cached
        # The last id that an answer can have is never read back.
        prefix = tuple(self.prefix)[: self.allowed - 1]
        self.pieces = _cut(self.prompt_ids[cached:], prefix, is_printed=self.is_printed, is_exact=self.is_exact)

    def outstanding(self) -> Outstanding:
        """What is still to be done for it."""
        sampled = self.generation.position - len(self.prompt_ids)
        unread = max(0, len(self.prompt_ids) - self.position)
        return Outstanding(unread, max(1, self.allowed - sampled), self.tokens)

    def fail(self, error: Exception) -> None:
        """Tell the caller why nothing more comes."""
        self.tell(lambda: self.events.put_nowait(error))


@dataclass(eq=False, kw_only=True)
class CheckJob(Job, Generic[_Result]):
    """One verification, replay or vector."""

    run: Callable[[Engine, int], _Result]
    alone: bool
    result: asyncio.Future[_Result]

    def end(self, outcome: object) -> None:
        """Hand over a result or an error and give the sequence back."""
        if isinstance(outcome, Exception):
            self.fail(outcome)
        else:
            # the caller's future has the type of what `run` returns
            self.tell(lambda: None if self.result.done() else self.result.set_result(outcome))  # type: ignore[arg-type]
        self.tell(self.released.set)

    def fail(self, error: Exception) -> None:
        """Tell the caller why nothing more comes."""
        self.tell(lambda: None if self.result.done() else self.result.set_exception(error))


AnyCheck = CheckJob[Report] | CheckJob[Replay] | CheckJob[NDArray[np.float64]]


class Stream:
    """The ids of one answer as they are sampled. `aclose` stops the answer and returns when its sequence is free."""

    def __init__(self, job: AnswerJob, cancel: Callable[[Job], None]) -> None:
        self._job = job
        self._cancel = cancel
        self._ended = False

    @property
    def cached_tokens(self) -> int:
        """Ids of the prompt that the prefix cache gave; certain from the first id on."""
        return self._job.cached

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Sampled:
        if self._ended:
            raise StopAsyncIteration
        try:
            item = await self._job.events.get()
        except asyncio.CancelledError:
            self._ended = True
            self._cancel(self._job)
            raise
        if isinstance(item, Sampled):
            self._ended = item.finish is not None
            return item
        self._ended = True
        raise item

    async def aclose(self) -> None:
        """Stop the answer, wherever it is. Harmless after its end."""
        self._ended = True
        self._cancel(self._job)
        await self._job.released.wait()


def outstanding_of(job: Job) -> Outstanding:
    """What a job asks; a check reads all that it holds."""
    return job.outstanding() if isinstance(job, AnswerJob) else Outstanding(job.tokens, 1, job.tokens)


def _cut(
    prompt_ids: Sequence[int], prefix_ids: Sequence[int], *, is_printed: bool, is_exact: bool
) -> deque[tuple[tuple[int, ...], int]]:
    """Prompt and prefix in the steps in which they are read: one row after the prompt, one after each prefix id.

    The prompt is cut as without a prefix; another cut would round differently. Replay reads a prefix id by id.
    """
    cuts = cut_prompt(prompt_ids, is_printed=is_printed)
    *silent, last = (tuple(prompt_ids[start:end]) for start, end in cuts)
    pieces = deque((ids, 0) for ids in silent)
    pieces.append((last, 1))
    size = 1 if is_exact else OUTPUTS_PER_STEP
    for start in range(0, len(prefix_ids), size):
        ids = tuple(prefix_ids[start : start + size])
        pieces.append((ids, len(ids)))
    return pieces
