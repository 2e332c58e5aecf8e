"""The client between roles, at servers that want to hurt it."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest

from deaios.runtime.client import (
    JSON_BYTES_MAX,
    LINE_BYTES_MAX,
    PIECE_BYTES,
    HttpClient,
    InvalidResponse,
    UnavailablePeer,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ENDLESS = HEAD + b"Connection: close\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


class HostileServer:
    """Sends what it was told to whoever connects, then `more` as long as it is read; keeps what it was sent."""

    def __init__(self, answer, more=b""):
        self.answer, self.more, self.asked, self.url = answer, more, [], ""

    async def serve(self, reader, writer):
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            while self.more:
                writer.write(self.more)
                await writer.drain()
                await asyncio.sleep(0)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def hostile(answer, more=b""):
    server = HostileServer(answer, more)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()


async def read_lines(http, url, **options):
    async with aclosing(http.stream_lines(url, b"{}", **options)) as lines:
        return [line async for line in lines]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status):
    async with hostile(b"") as elsewhere, HttpClient() as http:
        head = f"HTTP/1.1 {status} Go\r\nLocation: {elsewhere.url}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        async with hostile(head.encode()) as server:
            with pytest.raises(InvalidResponse, match="redirects are not followed"):
                await http.post_json(server.url, {}, dict)
            with pytest.raises(InvalidResponse, match="redirects are not followed"):
                await http.get_bytes(server.url, 100)
            with pytest.raises(InvalidResponse, match="redirects are not followed"):
                await read_lines(http, server.url)
        assert elsewhere.asked == []


async def test_cookies_are_neither_kept_nor_sent():
    async with (
        hostile(HEAD + b"Set-Cookie: a=b; Path=/\r\nContent-Length: 2\r\n\r\n{}") as server,
        HttpClient() as http,
    ):
        for _ in range(2):
            assert await http.get_json(server.url.replace("127.0.0.1", "localhost"), dict) == {}
    assert len(server.asked) == 2
    assert b"cookie" not in b"".join(server.asked).lower()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 9999999999\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % (JSON_BYTES_MAX + 1) + bytes(JSON_BYTES_MAX + 1),
        ENDLESS + bytes(JSON_BYTES_MAX + 1),
        HEAD + b"Content-Length: 1000000\r\n\r\n" + b"[" * 1_000_000,
        HEAD + b"Content-Length: 4\r\n\r\n\xff\xfe{}",
        HEAD + b"Content-Length: 2\r\n\r\n[]",
    ],
)
async def test_answers_that_are_too_much_are_refused(answer):
    async with hostile(answer) as server, HttpClient() as http:
        with pytest.raises(InvalidResponse):
            await http.get_json(server.url, dict)


async def test_nothing_is_unpacked_whatever_it_is_called():
    async with hostile(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}") as server, HttpClient() as http:
        assert await http.get_json(server.url, dict) == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00" * 100,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: 10\r\n\r\n{}",
        b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\n\xff\xff\xff",
        b"HTTP/1.1 503 No\r\n\r\n" + b"[" * 70_000,
    ],
)
async def test_broken_answers_are_the_peers_fault(answer):
    async with hostile(answer) as server, HttpClient() as http:
        with pytest.raises(UnavailablePeer):
            await http.get_json(server.url, dict)
        with pytest.raises(UnavailablePeer):
            await read_lines(http, server.url)


@pytest.mark.parametrize("more", [b"\n" * 1000, b"{}\n", b" "])
async def test_a_stream_that_never_ends_is_ended(more):
    async with hostile(ENDLESS, more) as server, HttpClient() as http:
        with pytest.raises((UnavailablePeer, InvalidResponse)):
            await read_lines(http, server.url, total_s=0.5)


async def test_a_line_that_never_ends_is_refused():
    async with hostile(ENDLESS, b"a" * 65_536) as server, HttpClient() as http:
        with pytest.raises(InvalidResponse, match="a line exceeds"):
            await read_lines(http, server.url)


async def test_a_long_line_in_single_bytes_is_read_whole():
    """Quadratic reading would need minutes for this; the suite's limit is the bound."""
    size = LINE_BYTES_MAX // 2
    answer = CHUNKED + b"1\r\na\r\n" * size + b"1\r\n\n\r\n2\r\nb\n\r\n1\r\nc\r\n0\r\n\r\n"
    async with hostile(answer) as server, HttpClient() as http:
        lines = await read_lines(http, server.url)
    assert [len(lines[0]), *lines[1:]] == [size, b"b", b"c"]


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * PIECE_BYTES + 7])
async def test_a_body_arrives_whole_with_its_length_also_when_the_first_connection_was_lost(size):
    body, arrived = bytes(range(256)) * (size // 256) + bytes(size % 256), []

    async def serve(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            if not arrived:  # a kept connection, of which the server has lost all memory when it is used again
                arrived.append(head)
                writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
                await reader.read(1)
                writer.transport.abort()
                return
            lines = head.lower().split(b"\r\n")
            assert b"transfer-encoding: chunked" not in lines
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
            arrived.append(await reader.readexactly(length))
            writer.write(HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")
            writer.close()
            return

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        async with HttpClient() as http:
            assert await http.get_json(url, dict) == {}
            assert await http.put_bytes(url, body) == b"{}"
    finally:
        listener.close()
    assert arrived[1:] == [body]
