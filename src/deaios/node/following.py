"""A follower in the foreground of a command: a copy of another chain, kept up to date and served read-only.

The copy is in `roles/follower`. Which chain is trusted comes from the hash that the caller gives, else from the
network that the folder has joined, else from the copy itself. A source that diverges ends the command; the reason stays
in `run/follower.json`, the evidence in `roles/follower/evidence`.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deaios.chain.service import ChainService, build_application
from deaios.chain.service.archive import EVIDENCE
from deaios.chain.service.follower import Follower, Progress, start_follower
from deaios.chain.service.source import Source
from deaios.ledger.client.rpc import Rpc
from deaios.node.config import load_config
from deaios.node.folder import RoleState, RunState, StateFolder
from deaios.node.ports import HOST, keep_port
from deaios.primitives.errors import ConfigError, DeaiosError
from deaios.runtime.clock import SystemClock
from deaios.runtime.disk import write_atomic
from deaios.runtime.http import serve
from deaios.runtime.logs import configure_logs

NAME = "follower"
THREADS = 4


@dataclass(frozen=True, slots=True)
class Following:
    """A follower that runs.

    Attributes:
        url: where it serves JSON-RPC.
        chain: its copy.
    """

    url: str
    chain: ChainService
    _work: asyncio.Task[None]
    _stopping: asyncio.Event = field(repr=False)

    async def wait_until_stopped(self) -> None:
        """Return on SIGINT, SIGTERM or `deaios down`.

        Raises:
            Diverged: the source is not on this chain.
        """
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([stopping, self._work], return_when=asyncio.FIRST_COMPLETED)
            if self._work.done():
                self._work.result()
        finally:
            stopping.cancel()


def database_of(folder: StateFolder) -> Path:
    """The file of a folder's copy."""
    return folder.role(NAME) / "chain.db"


def find_anchor(folder: StateFolder, genesis_hash: bytes | None) -> bytes | None:
    """The trusted hash of block 0: what the caller gives, else what the joined network's descriptor says, else None.

    Raises:
        ConfigError: both, and they differ.
    """
    joined = folder.load_descriptor().network_id if folder.descriptor_path.exists() else None
    if joined is not None and genesis_hash not in (None, joined):
        raise ConfigError(f"{folder.root} belongs to network 0x{joined.hex()}; use another folder with --dir")
    return joined if genesis_hash is None else genesis_hash


@asynccontextmanager
async def follow_chain(
    folder: StateFolder,
    url: str,
    *,
    genesis_hash: bytes | None = None,
    port: int = 0,
    is_forwarding: bool = True,
    report: Callable[[Progress], None] = lambda _progress: None,
) -> AsyncIterator[Following]:
    """Follow the chain at a URL and serve the copy until the block ends.

    Args:
        folder: where the copy is.
        url: JSON-RPC of a chain or of another follower.
        genesis_hash: the trusted hash of block 0.
        port: wanted TCP port; 0 keeps the one of last time.
        is_forwarding: hand transactions to the source; refuse them otherwise.
        report: called whenever the copy or the source's height changed.

    Raises:
        RefusedRunning: a follower, or a whole network, runs in this folder already.
        ConfigError: nothing says which chain is trusted, or it is not the folder's.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no http:// or https:// URL of a chain's JSON-RPC")
    clock, stopping, data = SystemClock(), asyncio.Event(), folder.role(NAME)
    with folder.lock(NAME), _on_signals(stopping):
        configure_logs(NAME, folder.log(NAME), load_config(folder.root).log_level)
        data.mkdir(parents=True, exist_ok=True)
        anchor = find_anchor(folder, genesis_hash)

        def publish(state: RoleState, served: str, reason: str = "") -> None:
            folder.save_run_state(RunState(NAME, NAME, os.getpid(), state, served, reason, clock.now_ms()))

        with ThreadPoolExecutor(THREADS, thread_name_prefix=NAME) as executor:
            async with Rpc(url, attempts=1) as rpc:
                source = Source(rpc)
                chain = await start_follower(
                    database_of(folder),
                    source,
                    anchor,
                    executor=executor,
                    clock=clock,
                    is_forwarding=is_forwarding,
                )
                write_atomic(data / "source", url.encode())
                follower = Follower(
                    chain, source, executor=executor, clock=clock, evidence=data / EVIDENCE, report=report
                )
                work: asyncio.Task[None] = asyncio.create_task(follower.run())
                served = ""
                try:
                    async with serve(build_application(chain), HOST, keep_port(data, port)) as served:
                        publish("running", served)
                        yield Following(served, chain, work, stopping)
                    publish("stopped", served)
                except DeaiosError as error:
                    publish("failed", served, str(error))
                    raise
                finally:
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    await chain.close()


def load_source(folder: StateFolder) -> str:
    """The URL that the folder's copy followed last; empty where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return (folder.role(NAME) / "source").read_text()
    return ""


@contextlib.contextmanager
def _on_signals(event: asyncio.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set an event while the block runs."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, event.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
