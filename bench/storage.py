"""The storage rows: files put and got, verified, per CPU-second of all processes, against plain aiohttp and SHA-256.

Ours are three nodes with the local profile (any two of three rows), so a put sends half as many bytes again, and each
row is verified where it arrives. The peer is one node: its put is hashed by both sides and synced, its get goes out by
sendfile and is hashed by the reader. Both write the file that they fetch.
"""

import asyncio
import hashlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

from bench.processes import serving
from bench.rows import Row, Run, compare
from bench.servers import NETWORK, PIECE_BYTES
from deaios.primitives.keys import PrivateKey
from deaios.runtime.client import HttpClient
from deaios.storage.client import StorageClient

GET, PUT = "storage.get", "storage.put"
SIZE = 64 << 20
MIB = 1 << 20
NODES = 3
PEER = "plain aiohttp + SHA-256"
NOTE = "three nodes, profile (2, 3); CPU time of client and nodes"


def measure(run: Run) -> Iterator[Row]:
    if run.wants(GET, PUT):
        yield from asyncio.run(_measure(run))


async def _measure(run: Run) -> list[Row]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nodes = []
        for number in range(NODES):
            (folder / f"node{number}").mkdir()
            nodes.append(stack.enter_context(serving("storage", folder / f"node{number}")))
        (folder / "plain").mkdir()
        plain = stack.enter_context(serving("plain", folder / "plain"))
        http = await stack.enter_async_context(HttpClient())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        key = PrivateKey(hashlib.sha256(b"bench storage").digest())
        ours = _Ours(StorageClient(http, [node.url for node in nodes], key, NETWORK), folder / "target")
        peer = Plain(session, plain.url, folder / "plain-target")
        rows = []
        for name, works in ((PUT, (ours.put, peer.put)), (GET, (ours.get, peer.get))):
            timed = {
                "ours": per_cpu(works[0], lambda: sum(node.cpu_s() for node in nodes), folder / "source"),
                "peer": per_cpu(works[1], plain.cpu_s, folder / "plain-source"),
            }
            found = await run.interleave(f"{name}, MiB/CPU-s", timed, 5)
            if run.wants(name):
                rows.append(compare(name, "MiB/CPU-s", found["ours"], PEER, found["peer"], NOTE))
        return rows


def per_cpu(
    work: Callable[[Path], Awaitable[None]], servers_cpu_s: Callable[[], float], source: Path
) -> Callable[[], Awaitable[float]]:
    """MiB per CPU-second, of this process and its servers, of one work on a new source file."""
    dice = random.Random(source.name)

    async def timed() -> float:
        await asyncio.to_thread(source.write_bytes, dice.randbytes(SIZE))
        start = time.process_time() + servers_cpu_s()
        await work(source)
        return SIZE / MIB / (time.process_time() + servers_cpu_s() - start)

    return timed


class _Ours:
    """Coded rows on three nodes."""

    def __init__(self, client: StorageClient, target: Path) -> None:
        self._client = client
        self._target = target
        self._manifest = b""

    async def put(self, source: Path) -> None:
        self._manifest = await self._client.put_file(source)

    async def get(self, _source: Path) -> None:
        self._target.unlink(missing_ok=True)
        await self._client.get_file(self._manifest, self._target)


class Plain:
    """One file on one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, target: Path) -> None:
        self._session = session
        self._url = f"{url}/file"
        self._target = target
        self._digest = ""

    async def put(self, source: Path) -> None:
        digest = hashlib.sha256()

        async def read() -> AsyncIterator[bytes]:
            with source.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
                    yield piece

        async with self._session.put(self._url, data=read()) as answer:
            self._digest = await answer.text()
        assert self._digest == digest.hexdigest(), "the plain server stored other bytes"

    async def get(self, _source: Path) -> None:
        digest = hashlib.sha256()
        async with self._session.get(self._url) as answer:
            with self._target.open("wb") as file:
                async for piece in answer.content.iter_chunked(PIECE_BYTES):
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        assert digest.hexdigest() == self._digest, "the plain server sent other bytes"
