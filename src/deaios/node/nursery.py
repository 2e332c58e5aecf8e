"""The process that all roles of a folder are forked from: what they share is loaded once.

A role loads a second of modules before it does anything; a dozen roles on two cores would take as many seconds, and as
many copies in memory. This process loads them, stays single-threaded and forks. What a role needs is loaded when the
first of its kind is asked for, or before, while nothing is asked: its arguments name what will be wanted. Its parent,
the supervisor, asks over a Unix socket, which is this process's standard input, and passes each role its standard input
and error:

    request   a JSON line {"arguments": [...], "module": text, "name": text} with two descriptors
    answers   JSON lines {"pid": n} and {"ended": n, "code": n}, the code as `subprocess` has it

It ends when the supervisor's end of the socket is closed; the roles, which watch their own standard input, end too.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections import deque

import msgspec

REQUEST_BYTES_MAX = 64 << 10
DESCRIPTORS = 2
PROCESS = "deaios.node.process"
"""What every role begins with."""
_SET_NAME = 15
"""prctl(2), PR_SET_NAME."""
_NAME_BYTES = 15


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """A role to fork: its process's arguments, the module it will load, and the name it shows."""

    arguments: list[str]
    module: str
    name: str


class Answer(msgspec.Struct, omit_defaults=True):
    """What became of a role: forked (`pid`), or ended with a code."""

    pid: int = 0
    ended: int = 0
    code: int = 0


def main(expected: list[str]) -> int:
    """Fork whatever is asked for until the supervisor is gone.

    Args:
        expected: modules that will be asked for, loaded while nothing else is to be done.
    """
    gc.disable()  # modules are no garbage
    _load(PROCESS)
    waiting = deque(expected)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    for number in (signal.SIGINT, signal.SIGTERM):  # the supervisor decides when roles end, and closes the socket
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as supervisor:
        while True:
            ready, _, _ = select.select([supervisor.fileno(), wake_read], [], [], 0 if waiting else None)
            if not ready:
                _load(waiting.popleft())
            if wake_read in ready:
                os.read(wake_read, 4096)
                _report_ends(supervisor)
            if supervisor.fileno() in ready and not _take_request(supervisor, (wake_read, wake_write)):
                return 0


def _load(module: str) -> None:
    with contextlib.suppress(ImportError):  # the role, which tries it again, says why and ends
        importlib.import_module(module)


def _take_request(supervisor: socket.socket, own: tuple[int, int]) -> bool:
    """Fork one role; False when the supervisor is gone."""
    data, descriptors, _, _ = socket.recv_fds(supervisor, REQUEST_BYTES_MAX, DESCRIPTORS)
    if not data:
        return False
    request = msgspec.json.decode(data, type=Request)
    _load(request.module)
    gc.freeze()  # so that no collection in a child touches, and thereby copies, what all share
    pid = os.fork()
    if pid == 0:
        _become(request, descriptors, (supervisor.fileno(), *own))
    for descriptor in descriptors:
        os.close(descriptor)
    _say(supervisor, Answer(pid=pid))
    return True


def _report_ends(supervisor: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(supervisor, Answer(ended=pid, code=os.waitstatus_to_exitcode(status)))


def _say(supervisor: socket.socket, answer: Answer) -> None:
    with contextlib.suppress(OSError):  # a supervisor that is gone is noticed at the next look
        supervisor.sendall(msgspec.json.encode(answer) + b"\n")


def _become(request: Request, descriptors: list[int], inherited: tuple[int, ...]) -> None:
    """Be the role, to its end; never returns."""
    code = 70
    try:
        gc.enable()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for source, target in ((descriptors[0], 0), (nowhere, 1), (descriptors[1], 2)):
            os.dup2(source, target)
        for descriptor in (*descriptors, nowhere, *inherited):
            os.close(descriptor)
        ctypes.CDLL(None).prctl(_SET_NAME, request.name.encode()[:_NAME_BYTES], 0, 0, 0)
        process = importlib.import_module(PROCESS)
        code = process.main(request.arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:  # noqa: BLE001 # the outermost edge of a process that was forked
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
