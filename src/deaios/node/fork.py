"""The supervisor's side of the nursery: fork a role, hear of its end, signal it.

A nursery that is lost takes no role with it, but nobody would hear of their ends any more: they are asked to end, and
the next fork begins with a new nursery.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import msgspec

from deaios.node.folder import is_process_alive
from deaios.node.nursery import PROCESS, Answer, Request
from deaios.primitives.errors import Unavailable
from deaios.runtime.logs import get_logger

FORK_S = 60.0
"""Longest time for a fork, the nursery's own start included."""
ORPHAN_S = 20.0
"""How long a role may take to end once its nursery is lost; then it is killed."""
POLL_S = 0.05
LINE_BYTES_MAX = 64 << 10

_log = get_logger("supervisor")


class UnavailableNursery(Unavailable):
    """No role can be forked now."""


@dataclass(eq=False, slots=True)
class Role:
    """A forked process, as `asyncio.subprocess.Process` would show it.

    Attributes:
        pid: its number.
        stderr: what it says.
        returncode: None while it runs; negative for a signal.
    """

    pid: int
    stderr: asyncio.StreamReader
    _stdin: int
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    returncode: int | None = None

    async def wait(self) -> int:
        """Its exit code, once it has one."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal it, if it runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def end(self, code: int) -> None:
        """It has ended."""
        if self.returncode is None:
            self.returncode = code
            self.let_go()
            self._ended.set()

    def let_go(self) -> None:
        """Close its standard input: it ends by itself."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1


class Nursery:
    """One nursery at a time, started when it is needed."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._expected: tuple[str, ...] = ()
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._forked: deque[asyncio.Future[int]] = deque()
        self._roles: dict[int, Role] = {}
        self._early: dict[int, int] = {}
        self._lock = asyncio.Lock()

    def expect(self, modules: Iterable[str]) -> None:
        """Say which modules the roles will need; the next nursery loads them before it is asked."""
        self._expected = tuple(dict.fromkeys(modules))

    async def fork(self, name: str, arguments: Sequence[str], module: str = PROCESS) -> Role:
        """Start a role.

        Args:
            name: of the role.
            arguments: of its process.
            module: that it begins with; loaded once for all that name the same.

        Raises:
            UnavailableNursery: it could not be forked in time, or the nursery ended.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(FORK_S):
                    return await self._fork(Request(list(arguments), module, name))
            except (OSError, TimeoutError, ConnectionError) as error:
                await self._lose()
                raise UnavailableNursery(f"{name} could not be forked: {error!r}") from error

    async def close(self) -> None:
        """End the nursery; the roles have ended before."""
        async with self._lock:
            await self._lose()

    async def _fork(self, request: Request) -> Role:
        connection = await self._ensure()
        with ExitStack() as theirs, ExitStack() as undo:
            stdin_read, stdin_write = os.pipe()
            theirs.callback(os.close, stdin_read)
            # Where whoever asked is gone: without its standard input, a role that was forked ends.
            undo.callback(os.close, stdin_write)
            stderr_read, stderr_write = os.pipe()
            theirs.callback(os.close, stderr_write)
            reader, listening = await _open_reader(stderr_read)
            undo.callback(listening.close)
            forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._forked.append(forked)
            socket.send_fds(connection, [msgspec.json.encode(request)], [stdin_read, stderr_write])
            pid = await forked
            # Nothing is awaited from here on: a role that runs is one that is known.
            undo.pop_all()
        role = Role(pid, reader, stdin_write)
        self._roles[pid] = role
        if pid in self._early:
            self._end(pid, self._early.pop(pid))
        return role

    async def _ensure(self) -> socket.socket:
        if self._socket is not None and self._process is not None and self._process.returncode is None:
            return self._socket
        await self._lose()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "deaios.node.nursery",
                *self._expected,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
            )
        ours.setblocking(False)
        self._socket = ours
        self._hearing = asyncio.create_task(self._hear(ours), name="nursery")
        return ours

    async def _hear(self, connection: socket.socket) -> None:
        """Take in what the nursery says until it is gone."""
        loop, data = asyncio.get_running_loop(), b""
        try:
            while piece := await loop.sock_recv(connection, LINE_BYTES_MAX):
                *lines, data = (data + piece).split(b"\n")
                for line in lines:
                    answer = msgspec.json.decode(line, type=Answer)
                    if answer.pid:
                        forked = self._forked.popleft()
                        if not forked.done():  # else whoever asked is gone, and with it the role's standard input
                            forked.set_result(answer.pid)
                    else:
                        self._end(answer.ended, answer.code)
        except OSError as error:
            _log.warning("nursery cannot be heard", error=str(error))
        for forked in self._forked:
            if not forked.done():
                forked.set_exception(ConnectionResetError("the nursery ended"))
        self._forked.clear()
        await asyncio.gather(*(_await_orphan(role) for role in list(self._roles.values())))
        self._roles.clear()

    def _end(self, pid: int, code: int) -> None:
        role = self._roles.pop(pid, None)
        if role is None:  # it ended before we took note of its beginning
            self._early[pid] = code
        else:
            role.end(code)

    async def _lose(self) -> None:
        connection, self._socket = self._socket, None
        process, self._process = self._process, None
        hearing, self._hearing = self._hearing, None
        if connection is not None:
            connection.shutdown(socket.SHUT_RDWR)
        if hearing is not None:
            await asyncio.gather(hearing, return_exceptions=True)
        if connection is not None:
            connection.close()
        if process is not None:
            try:
                async with asyncio.timeout(ORPHAN_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _open_reader(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    with ExitStack() as undo:
        pipe = undo.enter_context(os.fdopen(descriptor, "rb", 0))
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        undo.pop_all()
    return reader, transport


async def _await_orphan(role: Role) -> None:
    """A role without a nursery ends because its standard input does; its exit code is nobody's any more."""
    role.let_go()
    waited_s = 0.0
    while is_process_alive(role.pid):
        if waited_s > ORPHAN_S:
            role.kill()
        waited_s += POLL_S
        await asyncio.sleep(POLL_S)
    role.end(-signal.SIGKILL)
