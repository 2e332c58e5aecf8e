"""A door as its peers see it: raw sockets, its process measured from outside, and what a refusal must look like.

Not a test module; `soak/doors.py` uses it too.
"""

import contextlib
import json
import resource
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
NAMES = ("auditor", "chain", "da", "gateway", "provider", "storage")
LIMITS = {"head_s": 2.0, "body_s": 3.0, "read_s": 3.0}
"""Deadlines short enough to be waited for; everything else as in production."""
ANSWER_S = 60.0
PIECE = 1 << 16
MIB = 1 << 20
INTERNAL_ERROR = -32603


@dataclass
class Answer:
    """What came back on one connection before it ended."""

    raw: bytes
    is_broken: bool = False

    @property
    def status(self):
        return int(self.raw.split(b" ", 2)[1]) if self.raw.startswith(b"HTTP/") else 0

    @property
    def body(self):
        body = self.raw.partition(b"\r\n\r\n")[2]
        size = self.headers.get("content-length", "")
        return body[: int(size)] if size.isdigit() else body

    @property
    def is_whole(self):
        """Whether the body that the answer announces is there."""
        size = self.headers.get("content-length", "")
        return b"\r\n\r\n" in self.raw and size.isdigit() and len(self.body) == int(size)

    @property
    def headers(self):
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


@dataclass
class Door:
    """One running role."""

    name: str
    folder: Path
    process: psutil.Process
    port: int
    seen: dict = field(default_factory=dict)
    """How often each status came; 0 stands for a connection that ended without an answer."""

    @property
    def key(self):
        return (self.folder / "key").read_text()

    def connect(self, receive_bytes=None):
        """A socket to the door; a small receive buffer makes a reader that blocks soon."""
        opened = socket.socket()
        if receive_bytes is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        opened.settimeout(ANSWER_S)
        opened.connect(("127.0.0.1", self.port))
        return opened

    def send(self, data, *, half_close=False):
        """Send bytes, or an iterable of them, while reading, until a whole answer is there or the door has closed."""
        pieces = iter([data] if isinstance(data, bytes) else data)
        with self.connect() as opened:
            answer = _exchange(opened, pieces, half_close)
        self.seen[answer.status] = self.seen.get(answer.status, 0) + 1
        return answer

    def ask(self, method, path, body=b"", headers=()):
        """One well-formed request on a connection of its own."""
        return self.send(build_request(method, path, body, headers))

    def check_alive(self):
        """The process is there and answers a good client."""
        assert self.process.is_running(), f"{self.name} has ended"
        assert self.process.status() != psutil.STATUS_ZOMBIE, f"{self.name} has ended"
        answer = self.ask("GET", "/healthz")
        assert (answer.status, json.loads(answer.body)["status"]) == (200, "ok"), answer.raw[:300]
        log = (self.folder / "log.json").read_text(errors="replace")
        assert "internal fault" not in log, log[log.index("internal fault") - 500 :][:3000]

    def metric(self, name):
        """A metric's value; 0 while it has none."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    def wait_metric(self, name, value, timeout_s):
        """Until a metric has reached a value."""
        deadline = time.monotonic() + timeout_s
        while self.metric(name) < value:
            assert time.monotonic() < deadline, f"{self.name}: {name} is below {value} after {timeout_s} s"

    @contextlib.contextmanager
    def bounded(self, growth_bytes_max):
        """Hold the peak of memory inside the block to so many bytes above the memory before."""
        before = self.process.memory_info().rss
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # the peak begins anew: man 5 proc
        yield
        growth = self.peak_bytes - before
        assert growth <= growth_bytes_max, f"{self.name} grew by {growth / MIB:.0f} MiB"

    @property
    def peak_bytes(self):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10


@contextlib.contextmanager
def running_doors(folder, names=NAMES, limits=LIMITS):
    """Several roles by name, each in a process of its own, until the block ends."""
    command = [sys.executable, str(HERE / "door_process.py"), str(folder), json.dumps(limits), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            doors = {}
            for _ in names:
                line = parent.stdout.readline()
                assert line, f"the doors did not start, exit {parent.wait()}"
                name, process_id, url = line.split()
                process = psutil.Process(int(process_id))
                doors[name] = Door(name, Path(folder) / name, process, int(url.rsplit(":", 1)[1]))
            yield doors
        finally:
            parent.terminate()


def raise_own_limit():
    """As many descriptors as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def build_head(method, path, headers=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def build_request(method, path, body=b"", headers=()):
    return build_head(method, path, [f"Content-Length: {len(body)}", "Connection: close", *headers]) + body


def check_typed(door, answer, *, method="GET"):
    """A refusal is in the door's words, never a 500, never a trace; silence counts where the connection was cut."""
    assert b"Traceback" not in answer.raw, answer.raw[:2000]
    assert b'File "' not in answer.raw, answer.raw[:2000]
    assert answer.status != 500, answer.raw[:2000]
    if answer.status == 0:
        assert not answer.raw, answer.raw[:300]
        return
    if method == "HEAD" or answer.status < 400:
        return
    try:
        found = json.loads(answer.body)
    except ValueError:
        raise AssertionError(f"{door.name}: {answer.raw[:500]!r}") from None
    if door.name == "gateway":
        assert found["error"].keys() == {"message", "type", "param", "code"}, answer.raw
        assert all(isinstance(found["error"][name], str) for name in ("message", "type", "code")), answer.raw
    elif door.name == "chain":
        assert isinstance(found["error"]["code"], int), answer.raw
        assert found["error"]["code"] != INTERNAL_ERROR, answer.raw
    else:
        assert found.keys() >= {"type", "title", "status", "detail"}, answer.raw
        assert found["status"] == answer.status
        assert answer.headers["content-type"].startswith("application/problem+json")


def wait_closed(sockets, timeout_s):
    """Read and drop until the door has closed every one of these; says how many it did not within the time."""
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for opened in sockets:
            opened.setblocking(False)
            selector.register(opened, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.2):
                try:
                    is_over = not key.fileobj.recv(PIECE)
                except BlockingIOError:
                    continue
                except OSError:
                    is_over = True
                if is_over:
                    selector.unregister(key.fileobj)
        return len(selector.get_map())


def _exchange(opened, pieces, half_close):
    """Write while the door takes bytes, read what it says, until it has said all."""
    received, waiting = [], next(pieces, None)
    opened.setblocking(False)
    deadline = time.monotonic() + ANSWER_S
    with selectors.DefaultSelector() as selector:
        selector.register(opened, selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0))
        while time.monotonic() < deadline:
            for _, events in selector.select(0.5):
                try:
                    if events & selectors.EVENT_READ:
                        piece = opened.recv(PIECE)
                        if not piece:
                            return Answer(b"".join(received))
                        received.append(piece)
                        if (answer := Answer(b"".join(received))).is_whole:
                            return answer
                    if events & selectors.EVENT_WRITE and waiting is not None:
                        waiting = waiting[opened.send(waiting) :] or next(pieces, None)
                        if waiting is None:
                            selector.modify(opened, selectors.EVENT_READ)
                            if half_close:
                                opened.shutdown(socket.SHUT_WR)
                except (ConnectionError, BrokenPipeError):
                    # A door that answers and closes while bytes still come makes the kernel reset the connection.
                    return Answer(b"".join(received), is_broken=True)
    raise AssertionError(f"the door neither answered nor closed within {ANSWER_S} s: {b''.join(received)[:300]!r}")
