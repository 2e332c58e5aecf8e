"""The rows of data availability: files put and got, per CPU-second of all processes, beside plain aiohttp and SHA-256.

Ours are sixteen members and their chain, a process each: 3.2 times the bytes go out, each row is verified where it
arrives and synced before a member signs for it, and every 16 MiB are certified on chain. A get takes any five rows,
verified, with all members there. The peer is one server; see `bench.storage`.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from soak.da_network import running

from bench.processes import serving
from bench.rows import Row, Run, compare
from bench.storage import PEER, Plain, per_cpu
from deaios.da.blob import BlobId
from deaios.da.client.blobs import BlobClient
from deaios.node.joining import USER
from deaios.node.session import open_session

GET, PUT = "da.get_mib_s", "da.put_mib_s"
MEMBERS = 16
TERM_S = 3600
NOTE = "sixteen members, profile (5, 16); CPU time of client, members and chain"


def measure(run: Run) -> Iterator[Row]:
    if run.wants(GET, PUT):
        yield from asyncio.run(_measure(run))


async def _measure(run: Run) -> list[Row]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = await stack.enter_async_context(running(folder / "network", MEMBERS))
        session = await stack.enter_async_context(open_session(network.folder, USER))
        (folder / "plain").mkdir()
        plain = stack.enter_context(serving("plain", folder / "plain"))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        ours = _Ours(session.blobs(), folder / "target")
        peer = Plain(http, plain.url, folder / "plain-target")

        def members_cpu_s() -> float:
            return sum(use.cpu_s for use in network.uses().values())

        rows = []
        for name, works in ((PUT, (ours.put, peer.put)), (GET, (ours.get, peer.get))):
            timed = {
                "ours": per_cpu(works[0], members_cpu_s, folder / "source"),
                "peer": per_cpu(works[1], plain.cpu_s, folder / "plain-source"),
            }
            found = await run.interleave(f"{name}, MiB/CPU-s", timed, 5)
            if run.wants(name):
                rows.append(compare(name, "MiB/CPU-s", found["ours"], PEER, found["peer"], NOTE))
        return rows


class _Ours:
    """A blob on a committee."""

    def __init__(self, client: BlobClient, target: Path) -> None:
        self._client = client
        self._target = target
        self._id = BlobId(bytes(32))

    async def put(self, source: Path) -> None:
        self._id = await self._client.put_file(source, TERM_S)

    async def get(self, _source: Path) -> None:
        self._target.unlink(missing_ok=True)
        await self._client.get_file(self._id, self._target)
