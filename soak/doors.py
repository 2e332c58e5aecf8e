"""Storms at every role's door, one after another as the seed says, until the time is over: `tests/doors`, at length.

After each storm the door must live, answer a good client, have logged no fault of its own, and have grown by no more
than its bound.
"""

import contextlib
import importlib.util
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from soak.searches import Budget, Finding

TESTS = Path(__file__).parents[1] / "tests/doors"
NOISE = 500
CROWD = 10_000
GROWTH_BYTES_MAX = 256 << 20
"""Above what a door had when the search began: the largest storm, and what an allocator keeps of earlier ones."""
WAIT_S = 60.0


def load(name: str) -> ModuleType:
    """A helper of the tests."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


client, storms = load("door_client"), load("storms")
Door = Any  # Any: `door_client.Door`, from a module that is loaded by its path


def noise(door: Door, rng: random.Random) -> None:
    for _ in range(NOISE):
        client.check_typed(door, door.send(storms.random_bytes(rng), half_close=True))


def malformed(door: Door, rng: random.Random) -> None:
    _, path = rng.choice(storms.routes_of(door))
    for data in storms.malformed_requests(path).values():
        client.check_typed(door, door.send(data))


def large(door: Door, rng: random.Random) -> None:
    method, path = rng.choice(storms.routes_of(door))
    for _, pieces in storms.large_bodies(door, method, path):
        client.check_typed(door, door.send(pieces), method=method)


def packed(door: Door, rng: random.Random) -> None:
    method, path = rng.choice(storms.routes_of(door))
    for _, request in storms.bombs(door, method, path):
        client.check_typed(door, door.send(request), method=method)


def hostile_json(door: Door, rng: random.Random) -> None:
    method, path = rng.choice(storms.routes_of(door))
    for body in storms.hostile_json().values():
        client.check_typed(door, door.send(storms.request_of(door, method, path, body)), method=method)


def wrong_types(door: Door, rng: random.Random) -> None:
    method, path = rng.choice(storms.routes_of(door))
    value = {"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [{"to": "0x"}], "model": "tiny", "messages": []}
    for changed in storms.sample(rng, value, NOISE):
        request = storms.request_of(door, method, path, storms.encode(changed))
        client.check_typed(door, door.send(request), method=method)


def slow(door: Door, rng: random.Random) -> None:
    method, path = rng.choice(storms.routes_of(door))
    head = client.build_head(method, path, [*storms.headers_of(door), "Content-Length: 100000"])
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(door.connect()) for _ in range(200)]
        for opened in crowd:
            opened.sendall((head + bytes(100))[: rng.randrange(1, len(head) + 100)])
        left = client.wait_closed(crowd, WAIT_S)
        assert left == 0, f"{left} slow peers were still served after {WAIT_S} s"


def crowd(door: Door, _rng: random.Random) -> None:
    client.raise_own_limit()
    with contextlib.ExitStack() as stack:
        for index in range(CROWD):
            opened = stack.enter_context(door.connect())
            if index % 2:
                opened.sendall(b"GET /he")
        door.check_alive()


STORMS: tuple[Callable[[Door, random.Random], None], ...] = (
    noise,
    malformed,
    large,
    packed,
    hostile_json,
    wrong_types,
    slow,
    crowd,
)


def search(budget: Budget) -> str:
    """Storm after storm; every kind at every door once before any comes again."""
    rng, deadline_s, done = random.Random(budget.seed), budget.deadline_s(), Counter[str]()
    command = f"python -m soak doors --seconds {budget.seconds:.0f} --seed {budget.seed} --rounds 1"
    with tempfile.TemporaryDirectory() as folder, client.running_doors(folder) as doors:
        before = {name: door.process.memory_info().rss for name, door in doors.items()}
        while time.monotonic() < deadline_s:
            plan = [(storm, door) for storm in STORMS for door in doors.values()]
            rng.shuffle(plan)
            for storm, door in plan:
                if time.monotonic() > deadline_s:
                    break
                try:
                    storm(door, rng)
                    door.check_alive()
                    growth = door.process.memory_info().rss - before[door.name]
                    assert growth <= GROWTH_BYTES_MAX, f"{door.name} grew by {growth >> 20} MiB"
                except AssertionError as error:
                    raise Finding(f"{storm.__name__} at {door.name}: {error}", command) from error
                done[storm.__name__] += 1
    return "doors: " + ", ".join(f"{name} {count} times" for name, count in sorted(done.items()))
