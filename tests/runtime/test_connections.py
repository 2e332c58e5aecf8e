"""What all peers together may hold: who gives way to whom, and who is left alone."""

import asyncio
import contextlib
import json
import resource

import pytest
from aiohttp import web

from deaios.runtime import connections
from deaios.runtime.connections import Limits, count_connections_max, raise_descriptor_limit
from deaios.runtime.http import build_application, hold_bytes, json_response, read_body, serve

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
GIVE = b"GET /give HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
GIVEN = 24 << 20
"""More than the kernel's buffers take."""
BODY_BYTES_MAX = 4000


class World:
    """A server whose handlers wait for the test, and raw connections to it."""

    def __init__(self, port, stack, release, giving):
        self.port, self.stack, self.release, self.giving = port, stack, release, giving

    async def connect(self, data=b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=4096)
        self.stack.callback(writer.close)
        if data:
            writer.write(data)
            await writer.drain()
        return reader, writer

    async def ask(self, data):
        reader, _ = await self.connect(data)
        return await read_answer(reader)

    async def metric(self, name):
        _, body = await self.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return next((float(line.split()[-1]) for line in body.decode().splitlines() if line.startswith(name)), 0.0)

    async def wait_metric(self, name, value):
        while await self.metric(name) < value:
            await asyncio.sleep(0)


async def read_answer(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    size = next(int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-length"))
    return head, await reader.readexactly(size)


@contextlib.asynccontextmanager
async def open_world(**limits):
    release, giving = asyncio.Event(), []
    application = build_application("test", body_bytes_max=BODY_BYTES_MAX)

    async def work(_request: web.Request) -> web.Response:
        await release.wait()
        return json_response({})

    async def take(request: web.Request) -> web.Response:
        return json_response({"size": len(await read_body(request))})

    async def give(request: web.Request) -> web.StreamResponse:
        giving.append(request.protocol)
        hold_bytes(request, 1000)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(GIVEN >> 16):
            await response.write(bytes(1 << 16))
        return response

    async def late(_request: web.Request) -> web.Response:
        raise TimeoutError

    application.router.add_get("/work", work)
    application.router.add_post("/take", take)
    application.router.add_get("/give", give)
    application.router.add_get("/late", late)
    async with contextlib.AsyncExitStack() as stack, serve(application, limits=Limits(**limits)) as url:
        try:
            yield World(int(url.rsplit(":", 1)[1]), stack, release, giving)
        finally:
            release.set()


def post(size, sent):
    return f"POST /take HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(sent)


async def test_the_longest_silent_peer_gives_way_to_a_new_one():
    async with open_world(connections_max=3) as world:
        silent = [await world.connect() for _ in range(3)]
        head, _ = await world.ask(GET)
        assert head.startswith("HTTP/1.1 200")
        assert await silent[0][0].read() == b""
        silent[2][1].write(GET)
        head, _ = await read_answer(silent[2][0])
        assert head.startswith("HTTP/1.1 200")
        assert await world.metric('deaios_http_connections_dismissed_total{reason="crowded"}') > 0


async def test_a_peer_that_was_answered_waits_behind_those_that_never_asked():
    async with open_world(connections_max=2) as world:
        asking, silent = await world.connect(), await world.connect()
        asking[1].write(GET)
        await read_answer(asking[0])
        head, _ = await world.ask(GET)
        assert head.startswith("HTTP/1.1 200")
        assert await silent[0].read() == b""
        asking[1].write(GET)
        assert (await read_answer(asking[0]))[0].startswith("HTTP/1.1 200")


@pytest.mark.parametrize("started", [b"GET /hea", post(100, 1)])
async def test_a_peer_in_the_middle_of_something_is_told_that_it_gives_way(started):
    async with open_world(connections_max=1) as world:
        slow = await world.connect(started)
        await asyncio.sleep(0.05)  # the server reads what was sent; nothing tells a peer when
        await world.ask(GET)
        head, body = await read_answer(slow[0])
        assert head.startswith("HTTP/1.1 503")
        assert "retry-after: 1" in head.lower()
        assert json.loads(body)["title"] == "UnavailableConnection"


async def test_when_all_are_at_work_a_new_peer_is_refused_in_words():
    async with open_world(connections_max=3) as world:
        working = [await world.connect(b"GET /work HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        third = await world.connect(GET)
        await read_answer(third[0])  # by now the others are at work
        third[1].write(b"GET /work HTTP/1.1\r\nHost: x\r\n\r\n")
        refused = None
        while refused is None:  # until the third is at work as well, a new peer takes its place
            head, body = await world.ask(GET)
            if head.startswith("HTTP/1.1 503"):
                refused = json.loads(body)
            else:
                third = await world.connect(b"GET /work HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (refused["title"], refused["status"]) == ("UnavailableConnection", 503)
        world.release.set()
        for reader, _ in working:
            assert (await read_answer(reader))[0].startswith("HTTP/1.1 200")


async def test_the_longest_waited_for_body_gives_way_when_bytes_run_out():
    async with open_world(held_bytes_max=3000) as world:
        slow = await world.connect(post(4000, 2000))
        await world.wait_metric("deaios_http_held_bytes", 2000)
        head, body = await world.ask(post(2000, 2000))
        assert (head[:12], json.loads(body)) == ("HTTP/1.1 200", {"size": 2000})
        head, _ = await read_answer(slow[0])
        assert head.startswith("HTTP/1.1 503")
        assert await world.metric("deaios_http_held_bytes") == 0


async def test_a_body_that_no_other_can_make_room_for_is_refused():
    async with open_world(held_bytes_max=1000) as world:
        head, body = await world.ask(post(2000, 2000))
        assert head.startswith("HTTP/1.1 429")
        assert "retry-after: 1" in head.lower()
        assert json.loads(body)["title"] == "RefusedBusy"
        assert await world.metric("deaios_http_held_bytes") == 0


async def test_deadlines_of_head_and_body_are_answered(monkeypatch):
    monkeypatch.setattr(connections, "SWEEP_S", 0.05)
    async with open_world(head_s=0.05, body_s=0.05) as world:
        for data in (b"GET /hea", b"\r\n", post(100, 1)):
            head, body = await world.ask(data)
            assert head.startswith("HTTP/1.1 408"), (data, head)
            assert json.loads(body)["title"] == "UnavailableBody"


async def test_a_long_head_is_refused_however_its_lines_are_cut():
    async with open_world(head_bytes_max=2000) as world:
        head, body = await world.ask(b"GET / HTTP/1.1\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 55)
        assert head.startswith("HTTP/1.1 431")
        assert json.loads(body)["title"] == "RefusedHead"


async def test_work_that_takes_too_long_is_a_typed_refusal():
    async with open_world() as world:
        head, body = await world.ask(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.startswith("HTTP/1.1 503")
        assert json.loads(body)["title"] == "Unavailable"


async def test_a_reader_that_stops_is_cut_and_one_that_is_slow_is_not(monkeypatch):
    """On a clock of the test's own: the slow one takes a few packets in each half of a deadline."""
    monkeypatch.setattr(connections, "SWEEP_S", 3600)
    async with open_world() as world:
        slow = await world.connect(GIVE)
        deaf = await world.connect(GIVE)
        while len(world.giving) < 2 or not all(map(is_backed_up, world.giving)):
            await asyncio.sleep(0.01)  # the kernel's buffers fill; nothing tells when
        crowd = world.giving[0].crowd
        time_s = crowd.now_s()
        crowd.now_s = lambda: time_s
        size = len(await slow[0].readexactly(1 << 18))
        for _ in range(20):
            size += len(await slow[0].readexactly(1 << 18))
            time_s += crowd.limits.read_s / 2
            crowd.sweep()
        assert [connection.transport is None for connection in world.giving] == [False, True]
        size += len(await slow[0].read(-1))
        assert size > GIVEN
        assert len(await deaf[0].read(-1)) < GIVEN


def is_backed_up(connection):
    return connection.transport.get_write_buffer_size() > 0


def test_descriptors_leave_a_reserve(monkeypatch):
    for soft, expected in ((1024, 512), (4096, 2560), (20_000, 12_000), (resource.RLIM_INFINITY, 12_000)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert count_connections_max() == expected


def test_descriptors_are_asked_for_up_to_the_hard_limit(monkeypatch):
    asked = []
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in ((1024, 4096), (1024, resource.RLIM_INFINITY), (50_000, 50_000)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, limits=limits: limits)
        raise_descriptor_limit()
    assert asked == [(4096, 4096), (13_536, resource.RLIM_INFINITY)]
