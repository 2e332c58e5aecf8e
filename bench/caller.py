"""A small HTTP caller over kept-alive connections: the same bytes again and again, with little time of its own."""

import asyncio
import time
from urllib.parse import urlsplit


class FailedCall(Exception):
    """A server answered something else than 200."""


class Caller:
    """One connection that repeats one request."""

    def __init__(self, url: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._host, self._port = parts.hostname, parts.port
        lines = {
            "Host": f"{parts.hostname}:{parts.port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._request = f"POST {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + body
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(self) -> tuple[float, bytes]:
        """Seconds until the whole answer was there, and its body.

        Raises:
            FailedCall: another status than 200.
        """
        if self._writer is not None:
            try:
                return await self._exchange()
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                if getattr(error, "partial", b""):
                    raise
                await self.close()  # the server ended an idle connection, as uvicorn does after five seconds
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return await self._exchange()

    async def _exchange(self) -> tuple[float, bytes]:
        assert self._reader is not None
        assert self._writer is not None
        start = time.perf_counter()
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        body = await self._read_body(head)
        spent = time.perf_counter() - start
        if not head.startswith(b"HTTP/1.1 200"):
            raise FailedCall(f"{self._host}:{self._port}: {head[:60]!r} {body[:300]!r}")
        if b"\r\nconnection: close" in head.lower():
            await self.close()
        return spent, body

    async def _read_body(self, head: bytes) -> bytes:
        assert self._reader is not None
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:-2])
        if b"content-length" in fields:
            return await self._reader.readexactly(int(fields[b"content-length"]))
        pieces = []
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            pieces.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return b"".join(pieces)

    async def close(self) -> None:
        """End the connection; the next call opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def call_for(callers: list[Caller], seconds: float) -> float:
    """All callers at once for a while: answers per second."""
    start = time.perf_counter()
    end = start + seconds

    async def repeat(caller: Caller) -> int:
        count = 0
        while time.perf_counter() < end:
            await caller.call()
            count += 1
        return count

    done = sum(await asyncio.gather(*(repeat(caller) for caller in callers)))
    return done / (time.perf_counter() - start)
