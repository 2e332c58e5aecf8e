"""Server processes of the benches: `python -m bench.servers KIND ARGUMENT...` prints its URL and serves.

Ours are the product's own applications; the others are what they are measured against. Ends with its standard input.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from bench.chain_load import GENESIS, OPERATOR
from deaios.chain.service import ChainService, build_application
from deaios.rows.store import RowStore
from deaios.runtime.clock import SystemClock
from deaios.runtime.garbage import spare_collector
from deaios.runtime.http import serve
from deaios.storage.service import build_storage_application

NETWORK = b"\x11" * 32
QUOTA_BYTES = 8 << 30
PIECE_BYTES = 1 << 20
BODY_BYTES_MAX = 1 << 30
ANSWER = "The lighthouse keeper rises before dawn and climbs."
"""What the fixed-delay engine says; sixteen tokens of the default model."""


@asynccontextmanager
async def serve_chain(folder: str) -> AsyncIterator[str]:
    """The embedded chain with the defaults of a local network."""
    with ThreadPoolExecutor(4) as executor:
        path = Path(folder) / "chain.db"
        chain = await ChainService.start(path, OPERATOR, GENESIS, executor=executor, clock=SystemClock())
        spare_collector()
        running = asyncio.create_task(chain.run())
        try:
            async with serve(build_application(chain)) as url:
                yield url
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await chain.close()


@asynccontextmanager
async def serve_storage(folder: str) -> AsyncIterator[str]:
    """A storage node."""
    store = RowStore(Path(folder), QUOTA_BYTES)
    try:
        async with serve(build_storage_application(store, network_id=NETWORK)) as url:
            yield url
    finally:
        store.close()


@asynccontextmanager
async def serve_plain(folder: str) -> AsyncIterator[str]:
    """Plain files over aiohttp: a PUT is hashed and synced before its answer, a GET goes out by sendfile."""
    home = Path(folder)

    async def put(request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        target = home / request.match_info["name"]
        with target.open("wb") as file:
            async for piece in request.content.iter_chunked(PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        return web.Response(text=digest.hexdigest())

    async def get(request: web.Request) -> web.FileResponse:
        return web.FileResponse(home / request.match_info["name"])

    application = web.Application(client_max_size=BODY_BYTES_MAX)
    application.router.add_put("/{name}", put)
    application.router.add_get("/{name}", get)
    async with _bare(application) as url:
        yield url


@asynccontextmanager
async def serve_engine(delay_ms: str) -> AsyncIterator[str]:
    """An OpenAI-compatible server that says one thing after a fixed delay."""
    delay_s = int(delay_ms) / 1000
    message = {"role": "assistant", "content": ANSWER}
    usage = {"prompt_tokens": 40, "completion_tokens": 16, "total_tokens": 56}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "fixed", "choices": [choice]}
    data = json.dumps({**body, "usage": usage}).encode()

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(delay_s)
        return web.Response(body=data, content_type="application/json")

    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    async with _bare(application) as url:
        yield url


@asynccontextmanager
async def serve_passthrough(upstream: str) -> AsyncIterator[str]:
    """The least that a gateway in Python can be: aiohttp in, aiohttp out, nothing looked at."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()
            async with session.post(upstream + request.path, data=body) as answer:
                return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)

        application = web.Application()
        application.router.add_post("/{path:.*}", forward)
        async with _bare(application) as url:
            yield url


@asynccontextmanager
async def serve_llama(model: str, threads: str, streams: str, context_tokens: str) -> AsyncIterator[str]:
    """llama.cpp's own HTTP server, as the wheel that our engine uses ships it."""
    import xllamacpp  # noqa: PLC0415  # loads all of llama.cpp, which the other kinds do not want

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.n_parallel = int(streams)
    params.n_ctx = int(streams) * int(context_tokens)
    params.cont_batching = True
    params.warmup = True
    params.verbosity = 1  # errors only, as our engine
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    server = xllamacpp.Server(params)
    yield server.listening_address


@asynccontextmanager
async def _bare(application: web.Application) -> AsyncIterator[str]:
    """Serve without any of our middleware."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


KINDS: dict[str, Callable[..., contextlib.AbstractAsyncContextManager[str]]] = {
    "chain": serve_chain,
    "storage": serve_storage,
    "plain": serve_plain,
    "engine": serve_engine,
    "passthrough": serve_passthrough,
    "llama": serve_llama,
}


async def run_until_orphaned(served: contextlib.AbstractAsyncContextManager[str]) -> None:
    """Print the URL, serve until standard input ends."""
    async with served as url:
        sys.stdout.write(url + "\n")
        sys.stdout.flush()
        await _wait_for_end()


def _wait_for_end() -> Awaitable[object]:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def read() -> None:
        if not os.read(0, 1024) and not ended.done():
            ended.set_result(None)

    loop.add_reader(0, read)
    return ended


if __name__ == "__main__":
    asyncio.run(run_until_orphaned(KINDS[sys.argv[1]](*sys.argv[2:])))
