"""Roles as processes: started in order, watched, restarted within bounds, stopped in reverse.

A child learns of its parent's death by the end of its standard input, so nothing outlives the supervisor, not even
when that is killed. Readiness is a condition (the role's own run file), never a pause. A role that ends because the
world is not as it needs it (its exit code says so: a full disk, a chain that does not answer) is started again for as
long as that lasts; one that keeps ending for another reason has failed.
"""

import asyncio
import os
import signal
from collections import deque
from dataclasses import dataclass, field

import msgspec

from deaios.node.config import SupervisorConfig
from deaios.node.folder import RoleSpec, RoleState, RunState, StateFolder, module_of
from deaios.node.fork import Nursery, Role
from deaios.primitives.errors import Unavailable
from deaios.runtime.clock import Clock
from deaios.runtime.disk import UnavailableDisk
from deaios.runtime.errors import exit_code
from deaios.runtime.logs import get_logger

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
STARTS_KEPT = 64
"""Starts remembered of each role, to count those within the window; also the most restarts a limit can allow."""
TAIL_LINES = 12
_EXIT_UNAVAILABLE = exit_code(Unavailable())
_FRUGAL = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Many roles share a machine: BLAS threads that wait for cores, and heaps per thread, cost more than they give."""


class UnavailableRole(Unavailable):
    """A role did not become ready, or failed for good; the message has its last words."""


@dataclass(slots=True)
class _Child:
    spec: RoleSpec
    process: Role | None = None
    starts: deque[float] = field(default_factory=lambda: deque(maxlen=STARTS_KEPT + 1))
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    watcher: asyncio.Task[None] | None = None
    stopping: bool = False
    failed: str = ""


class Supervisor:
    """Runs the roles of one state folder."""

    def __init__(
        self,
        folder: StateFolder,
        clock: Clock,
        environment: dict[str, str] | None = None,
        limits: SupervisorConfig | None = None,
    ) -> None:
        self._limits = limits or SupervisorConfig()
        self._folder = folder
        self._clock = clock
        self._nursery = Nursery({**_FRUGAL, **os.environ, **(environment or {})})
        self._children: dict[str, _Child] = {}
        self._log = get_logger("supervisor")
        self.failure = asyncio.Event()

    @property
    def failures(self) -> dict[str, str]:
        """Roles that failed for good, with the reason."""
        return {name: child.failed for name, child in self._children.items() if child.failed}

    @property
    def kinds(self) -> dict[str, str]:
        """Kinds of all roles that were started and not stopped, by name."""
        return {name: child.spec.kind for name, child in self._children.items()}

    def expect(self, *specs: RoleSpec) -> None:
        """Say which roles will be started, so that what they load is loaded while others begin."""
        self._nursery.expect(module_of(spec.kind) for spec in specs)

    async def start(self, spec: RoleSpec) -> None:
        """Start a role and go on watching it; does not wait until it is ready."""
        child = _Child(spec)
        self._children[spec.name] = child
        await self._spawn(child)
        child.watcher = asyncio.create_task(self._watch(child), name=f"watch {spec.name}")

    async def wait_ready(self, *names: str) -> dict[str, str]:
        """URLs of roles once they serve.

        Raises:
            UnavailableRole: a role failed, or was not ready within `READY_TIMEOUT_S`.
        """
        deadline = self._clock.monotonic_s() + READY_TIMEOUT_S
        urls: dict[str, str] = {}
        for name in names:
            while name not in urls:
                child = self._children[name]
                state = self._folder.load_run_state(name)
                if child.failed:
                    raise UnavailableRole(f"{name} failed: {child.failed}")
                process = child.process
                if state and process and state.pid == process.pid and state.state == "running":
                    urls[name] = state.url
                elif self._clock.monotonic_s() > deadline:
                    last = f" ({child.tail[-1]})" if child.tail else ""
                    raise UnavailableRole(
                        f"{name} was not ready within {READY_TIMEOUT_S:.0f} s{last}; see {self._folder.log(name)}"
                    )
                else:
                    await self._clock.sleep(POLL_S)
        return urls

    async def stop(self, *names: str) -> None:
        """Stop some roles, or all of them, in reverse order of their start."""
        chosen = [child for name, child in reversed(self._children.items()) if not names or name in names]
        for child in chosen:
            child.stopping = True
        kinds = dict.fromkeys(child.spec.kind for child in chosen)
        for kind in kinds:
            await asyncio.gather(*(self._terminate(child) for child in chosen if child.spec.kind == kind))
        for child in chosen:
            del self._children[child.spec.name]
        if not self._children:
            await self._nursery.close()

    def pid_of(self, name: str) -> int:
        """Process id of a role, for tests that kill it."""
        process = self._children[name].process
        assert process is not None
        return process.pid

    async def _spawn(self, child: _Child) -> None:
        spec = child.spec
        child.starts.append(self._clock.monotonic_s())
        arguments = [str(self._folder.root), msgspec.json.encode(spec).decode()]
        child.process = await self._nursery.fork(spec.name, arguments, module_of(spec.kind))

    async def _watch(self, child: _Child) -> None:
        while True:
            assert child.process is not None
            await self._collect_words(child)
            code = await child.process.wait()
            if child.stopping:
                return
            reason = child.tail[-1] if child.tail else f"exit code {code}"
            self._log.warning("role ended", name=child.spec.name, code=code, reason=reason)
            now = self._clock.monotonic_s()
            recent = [start for start in child.starts if now - start < self._limits.restart_window_s]
            is_spent = len(recent) > self._limits.restarts_max and code != _EXIT_UNAVAILABLE
            if is_spent or code == os.EX_USAGE:
                child.failed = reason
                self._publish(child, "failed", reason)
                self.failure.set()
                return
            self._publish(child, "restarting", reason)
            # A role that ran for longer than the window has no recent start: its pause is the first one.
            await self._clock.sleep(BACKOFF_S[min(max(len(recent), 1), len(BACKOFF_S)) - 1])
            if child.stopping:
                return
            await self._spawn(child)

    async def _collect_words(self, child: _Child) -> None:
        assert child.process is not None
        while True:
            try:
                line = await child.process.stderr.readline()
            except ValueError:  # a line beyond the stream's limit: not ours, drop it
                continue
            if not line:
                return
            child.tail.append(line.decode(errors="replace").rstrip()[:500])

    def _publish(self, child: _Child, state: RoleState, reason: str) -> None:
        known = self._folder.load_run_state(child.spec.name)
        value = RunState(
            child.spec.name,
            child.spec.kind,
            0 if state != "restarting" or child.process is None else child.process.pid,
            state,
            known.url if known else "",
            reason,
            known.started_at_ms if known else 0,
        )
        self._save(value)

    def _save(self, state: RunState) -> None:
        """Tell other commands; a full disk must not stop the watch over the role."""
        try:
            self._folder.save_run_state(state)
        except UnavailableDisk as error:
            self._log.warning("run file not written", name=state.name, error=str(error))

    async def _terminate(self, child: _Child) -> None:
        process = child.process
        if process is not None and process.returncode is None:
            try:
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                self._log.warning("role did not stop in time", name=child.spec.name)
                process.kill()
                await process.wait()
            except ProcessLookupError:
                pass
        if child.watcher is not None:
            child.watcher.cancel()
            await asyncio.gather(child.watcher, return_exceptions=True)
        if not child.failed:
            self._publish(child, "stopped", "")
