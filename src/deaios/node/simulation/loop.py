"""An asyncio loop of virtual time, and processes on it that can die at any instant.

Everything that waits is ordered by a virtual clock, so that hours pass in milliseconds and one seed gives one history.
A process is a context that its tasks inherit. When it dies, nothing of it ever runs again: no callback, no `finally`,
no answer, as after `kill -9`. Work given to a thread pool runs at once, and its result arrives after a drawn delay.
Knows no disk, no network and no role.
"""

import asyncio
import contextlib
import contextvars
import heapq
from asyncio import base_events, events
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH_MS = 1_800_000_000_000
"""Wall time at virtual second 0."""
STEPS_MAX = 2_000_000
"""Callbacks of one world; more is a loop that does not end."""
THREAD_S_MAX = 0.004
"""Longest delay of a result from a thread, as long as nothing stalls it."""


class StuckWorld(Exception):
    """Nothing is left to run, or far too much."""


@dataclass(eq=False, slots=True)
class Process:
    """One life of one role: what happens in it, and whether it still lives.

    Attributes:
        name: the role's name; the next life has the same.
        skew_ms: how far its wall clock is off.
        stall_s: how long its threads' results are held back.
        on_thread: called before and after each job in a thread, as (process, when); may kill the process.
        on_death: called when it has died.
    """

    name: str
    skew_ms: int = 0
    stall_s: float = 0.0
    is_alive: bool = True
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list)  # Any: results of every type
    on_thread: "Callable[[Process, str], None] | None" = None
    on_death: "list[Callable[[], None]]" = field(default_factory=list)


WORLD = Process("world")
"""Where everything runs that belongs to no role: users, and the story itself."""
_PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process", default=WORLD)


def current_process() -> Process:
    """The process whose code runs now; the world itself outside of all."""
    return _PROCESS.get()


class _Handle(events.Handle):
    """A callback that runs only while its process lives."""

    __slots__ = ()

    def _run(self) -> None:
        if self._context.get(_PROCESS, WORLD).is_alive:  # type: ignore[attr-defined] # private slot of Handle
            super()._run()


class _TimerHandle(events.TimerHandle):
    """The same for a callback at a time."""

    __slots__ = ()

    def _run(self) -> None:
        if self._context.get(_PROCESS, WORLD).is_alive:  # type: ignore[attr-defined] # private slot of Handle
            super()._run()


class _Task(asyncio.Task[T]):
    """A task with a hash that does not depend on where it lies in memory, so that sets keep one order."""

    _serial = count()

    def __init__(self, *arguments: Any, **options: Any) -> None:  # Any: those of asyncio.Task
        self._number = next(self._serial)
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedLoop(base_events.BaseEventLoop):
    """See the module."""

    def __init__(self, random: Random, start_s: float = 0.0) -> None:
        super().__init__()
        self._now_s = start_s
        self._steps = 0
        self._random = random
        self._own: list[asyncio.Task[Any]] = []
        self._selector = self
        self.faults: list[BaseException] = []
        self.after_step: Callable[[], None] | None = None
        self._outside = contextvars.copy_context()
        self._outside.run(_PROCESS.set, WORLD)
        self.set_task_factory(self._make_task)  # type: ignore[arg-type] # its protocol is private to typeshed
        self.set_exception_handler(self._note_fault)

    # What BaseEventLoop asks of its selector and of its platform

    def select(self, timeout: float | None) -> list[Any]:  # Any: a selector's events, of which there are none
        """Let virtual time pass instead of waiting."""
        if timeout is None:
            raise StuckWorld("nothing is left that could ever run")
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise StuckWorld(f"{STEPS_MAX} steps and no end")
        self._now_s += timeout
        return []

    def _process_events(self, _events: list[Any]) -> None:  # Any: as above
        if self.after_step is not None:
            self.after_step()

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    # Processes

    def run_in(self, process: Process, work: Coroutine[Any, Any, T], name: str = "") -> "asyncio.Task[T]":
        """Start work inside a process."""  # Any: what a coroutine yields and is sent
        context = contextvars.copy_context()
        context.run(_PROCESS.set, process)
        return self.create_task(work, name=name or process.name, context=context)

    def later(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Call something after a while, whatever dies meanwhile."""  # Any: the callback's own
        self.call_at(self._now_s + delay_s, callback, *arguments, context=self._outside.copy())

    def kill(self, process: Process) -> None:
        """End a process as `kill -9` does."""
        process.is_alive = False
        for tell in list(process.on_death):
            tell()

    def bury(self, process: Process | None = None) -> None:
        """Free what a dead process, or the world itself, left hanging; whatever that raises is nobody's concern."""
        tasks = self._own if process is None else process.tasks
        for task in tasks:
            if not task.done():
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
        tasks.clear()

    def call_soon_threadsafe(  # type: ignore[override] # as call_soon
        self, callback: Callable[..., object], *arguments: Any, context: contextvars.Context | None = None
    ) -> events.Handle:
        """There is one thread."""
        return self.call_soon(callback, *arguments, context=context)

    def _asyncgen_finalizer_hook(self, _generator: Any) -> None:  # Any: an asynchronous generator of any types
        """A generator that a dead process left is not run to its end."""

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T],
        **options: Any,  # Any: name and context of asyncio.Task
    ) -> "asyncio.Task[T]":
        context = options.get("context")
        process = _PROCESS.get() if context is None else context.get(_PROCESS, WORLD)
        task: asyncio.Task[T] = _Task(work, loop=loop, **options)
        task._log_destroy_pending = False  # type: ignore[attr-defined] # a dead process's tasks never end
        (self._own if process is WORLD else process.tasks).append(task)
        return task

    # Scheduling

    def call_soon(  # type: ignore[override] # typeshed ties the arguments to the callback by overloads
        self, callback: Callable[..., object], *arguments: Any, context: contextvars.Context | None = None
    ) -> events.Handle:
        """As asyncio, for the process that asks."""
        handle = _Handle(callback, arguments, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined] # private queue of BaseEventLoop
        return handle

    def call_at(  # type: ignore[override] # as above
        self, when: float, callback: Callable[..., object], *arguments: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        """As asyncio, for the process that asks."""
        timer = _TimerHandle(when, callback, arguments, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined] # private heap of BaseEventLoop
        timer._scheduled = True  # type: ignore[attr-defined] # private flag of TimerHandle
        return timer

    def run_in_executor(
        self, _executor: Executor | None, job: Callable[[*Ts], T], *arguments: *Ts
    ) -> "asyncio.Future[T]":
        """Run a job at once; its result arrives after a drawn delay, if its process lives to see it."""
        process = _PROCESS.get()
        future: asyncio.Future[T] = self.create_future()
        if process.on_thread is not None:
            process.on_thread(process, "before")
        if not process.is_alive:
            return future
        error: BaseException | None = None
        result: Any = None  # Any: the job's own type, known to the future
        try:
            result = job(*arguments)
        except Exception as raised:  # noqa: BLE001 # a thread hands on whatever its job raised
            error = raised
        if process.on_thread is not None:
            process.on_thread(process, "after")
        delay = self._random.random() * THREAD_S_MAX + process.stall_s
        self.call_later(delay, _deliver, future, result, error)
        return future

    def _note_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # Any: asyncio's dict
        error = context.get("exception")
        self.faults.append(error if error is not None else StuckWorld(str(context.get("message"))))


def _deliver(future: "asyncio.Future[T]", result: T, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class SimulatedClock:
    """A process's clocks: virtual time, its wall time skewed."""

    def __init__(self, loop: SimulatedLoop, process: Process) -> None:
        self._loop = loop
        self._process = process

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch, as this process believes."""
        return EPOCH_MS + int(self._loop.time() * 1000) + self._process.skew_ms

    def monotonic_s(self) -> float:
        """Virtual seconds."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(seconds)


class SimulatedDice:
    """Random bytes that a seed repeats."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def token_bytes(self, size: int) -> bytes:
        """`size` drawn bytes."""
        return self._random.randbytes(size)
