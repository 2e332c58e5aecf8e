"""One engine on its own thread, shared by many requests: continuous batching for answers, and checks in between.

Invariant: only the engine's thread touches the engine; every accepted job ends exactly once, with its result, a typed
error, or its caller's cancellation, and gives back its sequence. Every turn gives each running answer an id and reads
at most PREFILL_TOKENS ids of prompts, the oldest first, so that neither waits for the other for longer than that.
Replay runs alone and from nothing, because bits depend on company; an answer that has to be replayed exactly shares no
step with others and no cache. Knows nothing of receipts or prices.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deaios.compute.embedding import RefusedEmbedding
from deaios.compute.embedding_check import compute_vector
from deaios.compute.engine import (
    EmbeddingEngine,
    Engine,
    InvalidStep,
    SavingEngine,
    Step,
    UnavailableEngine,
)
from deaios.compute.fingerprints import Hidden, encode_fingerprints
from deaios.compute.generation import Generation, InvalidPrefix
from deaios.compute.masking import MaskState
from deaios.compute.pacing import Pace
from deaios.compute.prefixes import PrefixCache
from deaios.compute.records import Thresholds
from deaios.compute.service.jobs import AnswerJob, AnyCheck, CheckJob, Job, Stream, outstanding_of
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import (
    PREFILL_TOKENS,
    Prints,
    Replay,
    Report,
    replay_output,
    require_hidden,
    verify_output,
)
from deaios.ledger.structs import FinishReason, Params
from deaios.primitives.errors import DeaiosError, Refused
from deaios.runtime.errors import RefusedBusy

WAITING_MAX = 64
"""Jobs that may wait for a sequence; at eight sequences this is some minutes of work."""
OVERTAKEN_MAX = 8
"""Later, smaller jobs that may begin before one for which there is no room yet; then all wait for it."""

_Result = TypeVar("_Result")


class RefusedLength(Refused):
    """Prompt and answer together are longer than this engine's context."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the service is doing now, and what it did since it started.

    Attributes:
        running: jobs that hold a sequence.
        waiting: jobs that do not yet.
        prompt_tokens: prompt ids that were read.
        sampled_tokens: ids that were sampled.
        cached_tokens: prompt ids that were not read, because they had been before.
        cache_bytes: memory of the prefix cache now.
        wait_s: how long a further answer of average size would wait before it begins, at the measured pace.
    """

    running: int
    waiting: int
    prompt_tokens: int
    sampled_tokens: int
    cached_tokens: int = 0
    cache_bytes: int = 0
    wait_s: float = 0.0


class EngineService:
    """Runs an engine for many callers of one event loop. Takes the engine over and closes it."""

    def __init__(
        self,
        engine: Engine,
        *,
        waiting_max: int = WAITING_MAX,
        cache_bytes_max: int = 0,
        read_time_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread.

        Args:
            engine: with all sequences empty.
            waiting_max: jobs that may wait.
            cache_bytes_max: memory for prefixes of prompts, outside the engine; 0 keeps none.
            read_time_s: any clock that only goes forward.
        """
        self.engine = engine
        self._cache = PrefixCache(cache_bytes_max) if cache_bytes_max and isinstance(engine, SavingEngine) else None
        self._pace = Pace()
        self._read_time_s = read_time_s
        self._cached_tokens = 0
        self._waiting_max = waiting_max
        self._wake = threading.Condition()
        self._waiting: deque[AnswerJob | AnyCheck] = deque()
        self._running: dict[int, AnswerJob] = {}
        self._checking: AnyCheck | None = None
        self._idle: list[Job] = []
        self._failure: Exception | None = None
        self._refusing = False
        self._closing = False
        self._prompt_tokens = 0
        self._sampled_tokens = 0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # ---- what callers use, on the event loop

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: Params,
        seed: bytes,
        tokenizer: Tokenizer,
        logprobs: int | None = None,
        mask: MaskState | None = None,
        *,
        owner: bytes | None = None,
        prefix_ids: Sequence[int] = (),
        thresholds: Thresholds | None = None,
        is_printed: bool = False,
        is_exact: bool = False,
    ) -> Stream:
        """Start an answer; it runs beside others as soon as a sequence is free.

        With `prefix_ids` the stream gives these first, each once it has been checked, and then what follows them.

        Args:
            prompt_ids: rendered prompt.
            params: of the ask.
            seed: of the ask.
            tokenizer: of the model.
            logprobs: how many of the most probable tokens come with each sampled one; None for none of it.
            mask: a new one for this answer, where the params name one.
            owner: whose earlier prompts may be gone on from, and who may go on from this one; None for nobody.
            prefix_ids: how another provider began this answer; nothing is believed of it.
            thresholds: of the model record; needed with a prefix.
            is_printed: have each id come with its fingerprint.
            is_exact: compute so that replay on the same engine gives the same bits, whatever runs beside it.

        Raises:
            InvalidParams, InvalidStep: the request cannot be run by any engine of this model.
            InvalidPrefix: the prefix is longer than an answer may be; where an id is wrong, the stream raises it.
            RefusedLength: it does not fit the context.
            RefusedBusy: too many jobs wait.
            UnavailableEngine: the engine failed, drains or is closed, or shows no hidden states to print.
        """
        self._validate_prompt(prompt_ids)
        if is_printed:
            require_hidden(self.engine)
        tokens = len(prompt_ids) + params.max_tokens - 1  # the last sampled id is never read back
        room = min(self.engine.context_tokens, self.engine.tokens_max)
        if tokens > room:
            raise RefusedLength(
                f"{len(prompt_ids)} prompt ids and max_tokens {params.max_tokens} exceed the context of {room}"
            )
        if len(prefix_ids) > params.max_tokens:
            raise InvalidPrefix(params.max_tokens, f"an answer has at most {params.max_tokens} ids")
        assert thresholds is not None or not prefix_ids, "a prefix is checked by its record's thresholds"
        job = AnswerJob(
            loop=asyncio.get_running_loop(),
            tokens=tokens,
            generation=Generation(len(prompt_ids), params, seed, tokenizer, logprobs, mask),
            prompt_ids=tuple(prompt_ids),
            allowed=params.max_tokens,
            owner=owner if self._cache is not None and not is_exact else None,
            prefix=deque(prefix_ids),
            thresholds=thresholds,
            is_printed=is_printed,
            is_exact=is_exact,
        )
        self._enqueue(job)
        return Stream(job, self._cancel)

    async def verify(
        self,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        params: Params,
        seed: bytes,
        finish_reason: FinishReason,
        stop_index: int,
        thresholds: Thresholds,
        tokenizer: Tokenizer,
        mask: MaskState | None = None,
        prints: Prints | None = None,
    ) -> Report:
        """`verification.verify_output` on this engine, between the turns of running answers.

        Raises:
            RefusedBusy, UnavailableEngine: as `generate`.
            InvalidPrompt, UnavailableCheck, InvalidParams, InvalidConstraint, InvalidLogits, InvalidFingerprints: as
                `verify_output`.
        """

        def run(engine: Engine, sequence: int) -> Report:
            return verify_output(
                engine,
                prompt_ids,
                output_ids,
                params,
                seed,
                finish_reason,
                stop_index,
                thresholds,
                tokenizer,
                sequence,
                mask,
                prints,
            )

        return await self._check(run, len(prompt_ids) + len(output_ids), alone=False)

    async def embed(self, prompt_ids: Sequence[int]) -> NDArray[np.float64]:
        """`embedding.compute_vector` on this engine, between the turns of running answers.

        Raises:
            RefusedEmbedding: this engine shows no hidden states.
            RefusedLength, InvalidStep, RefusedBusy, UnavailableEngine: as `generate`.
            InvalidVector: as `compute_vector`.
        """
        self._validate_prompt(prompt_ids)
        room = min(self.engine.context_tokens, self.engine.tokens_max)
        if len(prompt_ids) > room:
            raise RefusedLength(f"{len(prompt_ids)} prompt ids exceed the context of {room}")
        if not isinstance(self.engine, EmbeddingEngine):
            raise RefusedEmbedding(f"the {self.engine.profile.name} engine makes no embeddings")

        def run(engine: Engine, sequence: int) -> NDArray[np.float64]:
            assert isinstance(engine, EmbeddingEngine)
            return compute_vector(engine, prompt_ids, sequence)

        return await self._check(run, len(prompt_ids), alone=False)

    async def replay(
        self,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        params: Params,
        seed: bytes,
        mask: MaskState | None = None,
        prints: Prints | None = None,
        *,
        is_printed: bool = False,
    ) -> Replay:
        """`verification.replay_output` on this engine, alone: answers that came later wait until it is done.

        Raises:
            RefusedBusy, UnavailableEngine: as `generate`.
            InvalidPrompt, UnavailableCheck, InvalidParams, InvalidConstraint, InvalidLogits, InvalidFingerprints: as
                `replay_output`.
        """

        def run(engine: Engine, sequence: int) -> Replay:
            return replay_output(
                engine, prompt_ids, output_ids, params, seed, sequence, mask, prints, is_printed=is_printed
            )

        return await self._check(run, len(prompt_ids) + len(output_ids), alone=True)

    def get_load(self) -> Load:
        """Counters for metrics."""
        with self._wake:
            running = len(self._running) + (self._checking is not None)
            return Load(
                running,
                len(self._waiting),
                self._prompt_tokens,
                self._sampled_tokens,
                self._cached_tokens,
                0 if self._cache is None else self._cache.size_bytes,
                self._estimate_wait_s(self._waiting),
            )

    def _estimate_wait_s(self, ahead: Iterable[Job]) -> float:
        """Until a job behind those ahead would begin; called with the lock held."""
        running = [job.outstanding() for job in self._running.values()]
        if self._checking is not None:
            running.append(outstanding_of(self._checking))
        waiting = [outstanding_of(job) for job in ahead]
        wanted = max([1, *(job.tokens for job in (*running, *waiting))])
        return self._pace.estimate_wait_s(running, waiting, wanted, self.engine.sequences_max, self.engine.tokens_max)

    async def drain(self) -> None:
        """Refuse new jobs and return when all accepted ones have ended."""
        marker = Job(loop=asyncio.get_running_loop(), tokens=0)
        with self._wake:
            self._refusing = True
            if self._closing:
                return
            self._idle.append(marker)
            self._wake.notify()
        await marker.released.wait()

    async def close(self) -> None:
        """Fail what still runs, stop the thread and free the engine. Closing twice is harmless."""
        with self._wake:
            self._refusing = self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    async def _check(self, run: Callable[[Engine, int], _Result], tokens: int, *, alone: bool) -> _Result:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[_Result] = loop.create_future()
        room = min(self.engine.context_tokens, self.engine.tokens_max)
        job = CheckJob(loop=loop, tokens=min(tokens, room), run=run, alone=alone, result=result)
        self._enqueue(job)  # type: ignore[arg-type]  # the results a check can have
        try:
            return await result
        finally:
            self._cancel(job)

    def _validate_prompt(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids or min(prompt_ids) < 0 or max(prompt_ids) >= self.engine.vocabulary_size:
            raise InvalidStep(
                f"a prompt has at least one id and ids below {self.engine.vocabulary_size}; "
                f"this one has {len(prompt_ids)} ids up to {max(prompt_ids, default=None)}"
            )

    def _enqueue(self, job: AnswerJob | AnyCheck) -> None:
        with self._wake:
            if self._failure is not None:
                raise UnavailableEngine(f"the engine failed: {self._failure}")
            if self._refusing:
                raise UnavailableEngine("the engine is shutting down")
            if len(self._waiting) >= self._waiting_max:
                raise RefusedBusy(
                    f"{len(self._waiting)} jobs wait, at most {self._waiting_max} may",
                    retry_after_s=max(1, math.ceil(self._estimate_wait_s(()))),  # then the first of them begins
                )
            self._waiting.append(job)
            self._wake.notify()

    def _cancel(self, job: Job) -> None:
        """Drop a job that waits at once; one that runs is dropped before its next turn."""
        with self._wake:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)  # type: ignore[arg-type]  # it is in there, so it is one of these
                job.released.set()
            self._wake.notify()

    # ---- what runs on the engine's thread

    def _work(self) -> None:
        """The thread: turns until closed; whatever ends it is told to every job."""
        try:
            while self._wait_for_work():
                self._turn()
                self._run_check()
            self._end_all(UnavailableEngine("the engine is shutting down"))
        except Exception as error:  # noqa: BLE001  # the thread's outermost edge: callers must learn that it ended
            self._failure = error
            self._end_all(
                error if isinstance(error, DeaiosError) else UnavailableEngine(f"the engine failed: {error!r}")
            )
        finally:
            self.engine.close()

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._waiting or self._running or self._closing):
                self._tell_idle()
                self._wake.wait()
            return not self._closing

    def _tell_idle(self) -> None:
        for marker in self._idle:
            marker.tell(marker.released.set)
        self._idle.clear()

    def _turn(self) -> None:
        """One batch: an id for every running answer, and the next pieces of prompts that are being read."""
        for job in [job for job in self._running.values() if job.cancelled]:
            self._release(job)
        self._admit()
        steps: list[Step] = []
        jobs: list[AnswerJob] = []
        budget = PREFILL_TOKENS  # so that running answers never pause for longer than one such batch
        for job in self._running.values():  # in the order of admission: the oldest prompt is never passed over
            if job.pieces:
                if len(job.pieces[0][0]) > budget and budget < PREFILL_TOKENS:
                    continue
                budget -= len(job.pieces[0][0])
                ids, outputs = job.pieces.popleft()
                self._prompt_tokens += len(ids)
            else:
                ids, outputs = job.generation.output_ids[-1:], 1
            assert job.sequence is not None
            steps.append(Step(job.sequence, job.position, ids, outputs))
            jobs.append(job)
            job.position += len(ids)
        if steps:
            start = self._read_time_s()
            for job, logits, states in self._decode_apart(jobs, steps):
                for row, hidden in zip(logits, states, strict=True):
                    if job.sequence is not None:
                        self._sample(job, row, hidden)
            self._pace.observe_turn(self._read_time_s() - start, sum(len(step.ids) for step in steps))

    def _decode_apart(
        self, jobs: Sequence[AnswerJob], steps: Sequence[Step]
    ) -> list[tuple[AnswerJob, NDArray[np.float32], Sequence[Hidden | None]]]:
        """Logits and states of each step: those with fingerprints together, the rest together, exact ones alone.

        Everything is decoded before anything is sampled, because sampling may empty a sequence.
        """
        groups: dict[tuple[bool, int], tuple[list[AnswerJob], list[Step]]] = {}
        for number, (job, step) in enumerate(zip(jobs, steps, strict=True), 1):
            is_shown = job.is_printed and step.outputs > 0
            some, theirs = groups.setdefault((is_shown, number if job.is_exact else 0), ([], []))
            some.append(job)
            theirs.append(step)
        found: list[tuple[AnswerJob, NDArray[np.float32], Sequence[Hidden | None]]] = []
        for (is_shown, _), (some, theirs) in groups.items():
            if is_shown:
                shown = require_hidden(self.engine).decode_hidden(theirs)
                found += [(job, logits, list(states)) for job, (logits, states) in zip(some, shown, strict=True)]
            else:
                rows = self.engine.decode(theirs)
                found += [(job, logits, [None] * len(logits)) for job, logits in zip(some, rows, strict=True)]
        return found

    def _sample(self, job: AnswerJob, logits: NDArray[np.float32], hidden: Hidden | None) -> None:
        try:
            if job.prefix:
                assert job.thresholds is not None
                # Nothing but the replay's own pick will do where exact replay is owed.
                thresholds = Thresholds(0, 0) if job.is_exact else job.thresholds
                sampled = job.generation.take_over(logits, job.prefix.popleft(), thresholds)
                if sampled.finish is not None and job.prefix:
                    raise InvalidPrefix(len(job.generation.output_ids), "the answer had ended before it")
            else:
                sampled = job.generation.offer(logits)
            if job.is_printed and hidden is not None:
                sampled = replace(sampled, leaf=encode_fingerprints(hidden[None]))
        except DeaiosError as error:
            job.fail(error)
            job.owner = None  # nothing goes on from a sequence that gives such numbers
            self._release(job)
            return
        self._sampled_tokens += 1
        if sampled.finish is not None:
            self._pace.observe_answer(len(job.generation.output_ids), job.allowed)
            self._release(job)
        job.tell(lambda: job.events.put_nowait(sampled))

    def _admit(self) -> None:
        """Give sequences to waiting answers in order; one without room may be passed by a bounded number of others."""
        admitted: list[AnswerJob] = []
        with self._wake:
            if self._checking is not None and self._checking.alone:
                return
            passed: list[Job] = []
            for job in list(self._waiting):
                if isinstance(job, AnswerJob) and self._reserve(job):
                    assert job.sequence is not None
                    self._waiting.remove(job)
                    self._running[job.sequence] = job
                    admitted.append(job)
                    for other in passed:
                        other.overtaken += 1
                if job not in self._waiting:
                    continue
                # A check that is next in line runs right after this turn, and a replay waits for an empty engine.
                is_next = isinstance(job, CheckJob) and (job.alone or self._checking is None)
                if is_next or job.overtaken >= OVERTAKEN_MAX or len(self._running) >= self.engine.sequences_max:
                    break
                passed.append(job)
        for job in admitted:
            self._begin(job)

    def _begin(self, job: AnswerJob) -> None:
        """Take up the longest beginning of the prompt that its owner left here."""
        engine, cached = self.engine, 0
        if job.owner is not None and self._cache is not None and isinstance(engine, SavingEngine):
            assert job.sequence is not None
            found = self._cache.find(job.owner, job.prompt_ids)
            if found is not None and engine.restore(job.sequence, found.snapshot, found.tokens):
                cached = found.tokens
        self._cached_tokens += cached
        job.begin(cached)

    def _keep(self, job: AnswerJob) -> None:
        """Leave what an answer's sequence holds to its owner's next prompt."""
        engine = self.engine
        if job.owner is None or self._cache is None or not isinstance(engine, SavingEngine) or job.pieces:
            return
        assert job.sequence is not None
        ids = (job.prompt_ids + job.generation.output_ids)[: job.position]
        if self._cache.wants(job.owner, ids):
            self._cache.put(job.owner, ids, engine.save(job.sequence))

    def _reserve(self, job: Job) -> bool:
        """Find the lowest free sequence, if the tokens fit beside what is promised already."""
        promised: list[Job] = [*self._running.values(), *([self._checking] if self._checking else [])]
        taken = {other.sequence for other in promised}
        if sum(other.tokens for other in promised) + job.tokens > self.engine.tokens_max:
            return False
        job.sequence = next((index for index in range(self.engine.sequences_max) if index not in taken), None)
        return job.sequence is not None

    def _release(self, job: AnswerJob) -> None:
        assert job.sequence is not None
        self._keep(job)
        self.engine.forget(job.sequence)
        with self._wake:
            del self._running[job.sequence]
        job.sequence = None
        job.tell(job.released.set)

    def _run_check(self) -> None:
        """Run the check that is next in line, if there is one and the engine has room for it."""
        with self._wake:
            job = self._waiting[0] if self._waiting else None
            if not isinstance(job, CheckJob) or (job.alone and self._running) or not self._reserve(job):
                return
            self._waiting.popleft()
            self._checking = job
        assert job.sequence is not None
        guest = _Guest(self, job)
        try:
            outcome: Report | Replay | NDArray[np.float64] | DeaiosError = job.run(guest, job.sequence)
        except DeaiosError as error:
            outcome = error
        with self._wake:
            self._checking = None  # any other error leaves it in place, to be told with the rest when the thread ends
        job.end(outcome)
        if self._failure is not None:
            raise self._failure

    def _hidden_for(self, job: AnyCheck, step: Step) -> NDArray[np.float32]:
        """The same for hidden states."""
        assert isinstance(self.engine, EmbeddingEngine)
        hidden = self.engine.hidden
        return self._run_for(job, lambda: hidden(step))

    def _decode_hidden_for(
        self, job: AnyCheck, steps: Sequence[Step]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        engine = require_hidden(self.engine)
        return self._run_for(job, lambda: engine.decode_hidden(steps))

    def _decode_for(self, job: AnyCheck, steps: Sequence[Step]) -> list[NDArray[np.float32]]:
        return self._run_for(job, lambda: self.engine.decode(steps))

    def _run_for(self, job: AnyCheck, work: Callable[[], _Result]) -> _Result:
        """A check's own step, after a turn for the answers that run beside it."""
        if self._closing or job.cancelled:
            raise UnavailableEngine("the check was cancelled")
        try:
            if not job.alone:
                self._turn()
            return work()
        except UnavailableEngine as error:
            self._failure = error
            raise

    def _end_all(self, error: Exception) -> None:
        with self._wake:
            self._refusing = self._closing = True
            jobs = [*self._running.values(), *([self._checking] if self._checking else []), *self._waiting]
            self._checking = None
            self._running.clear()
            self._waiting.clear()
            self._tell_idle()
        for job in jobs:
            job.fail(error)
            job.tell(job.released.set)


class _Guest:
    """The engine as a check sees it: every batch of the check first lets running answers have a turn."""

    def __init__(self, service: EngineService, job: AnyCheck) -> None:
        engine = service.engine
        self.profile = engine.profile
        self.vocabulary_size = engine.vocabulary_size
        self.context_tokens = engine.context_tokens
        self.sequences_max = engine.sequences_max
        self.tokens_max = engine.tokens_max
        self.width = engine.width if isinstance(engine, EmbeddingEngine) else 0
        self._service = service
        self._job = job

    def decode(self, steps: Sequence[Step]) -> list[NDArray[np.float32]]:
        return self._service._decode_for(self._job, steps)  # one object in two faces

    def decode_hidden(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        return self._service._decode_hidden_for(self._job, steps)  # likewise

    def hidden(self, step: Step) -> NDArray[np.float32]:
        return self._service._hidden_for(self._job, step)  # likewise

    def forget(self, sequence: int) -> None:
        self._service.engine.forget(sequence)

    def close(self) -> None:
        """A guest never closes its host's engine."""
