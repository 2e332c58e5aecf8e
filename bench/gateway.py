"""The gateway rows: what payment, receipt and journals add to a fixed-delay engine, and how many requests a second.

The path is the product's: gateway, buyer, vouchers, provider, receipts, both journals with their syncs, a chain and
storage nodes behind them, each in its own process. Beside it, on the same engine: straight, through the least that a
Python pass-through can be, and through LiteLLM's proxy.
"""

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.caller import Caller, FailedCall, call_for
from bench.environment import AbsentPeer, install
from bench.litellm_peer import MODEL, serving_litellm
from bench.processes import AbsentServer, serving
from bench.rows import Row, Run, alone, compare, skip
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.founding import found_network
from deaios.node.ground import Ground
from deaios.node.keystore import open_keystore
from deaios.node.model_package import MODEL_NAME
from deaios.node.status import API_KEY_NAME
from deaios.node.supervisor import Supervisor
from deaios.runtime.clock import SystemClock

DELAY_MS = 10
CALLS = 40
"""Per path and round."""
FLOOD_S = 1.5
CONCURRENCY = (1, 8, 64)
SYNCS = 50
FIRST_ANSWER_S = 60.0
ADDED, TAIL, RATE, SYNC = (
    "gateway.added_latency_p50_ms",
    "gateway.added_latency_p99_ms",
    "gateway.requests_per_s",
    "gateway.fsync_ms",
)
AGAINST = "gateway.added_latency_vs_litellm"
PASSTHROUGH = "aiohttp pass-through, added"
ASK = {
    "messages": [{"role": "user", "content": "Describe a day in the life of a lighthouse keeper."}],
    "max_tokens": 16,
}


def measure(run: Run) -> Iterator[Row]:
    if run.wants(ADDED, TAIL, RATE, SYNC, AGAINST):
        yield from asyncio.run(_measure(run))


@dataclass
class _Path:
    """One way to the engine: a request, and what every single call took."""

    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    taken_ms: list[float] = field(default_factory=list)

    def build_caller(self) -> Caller:
        return Caller(f"{self.url}/v1/chat/completions", self.body, self.headers)

    def build_work(self) -> Callable[[], Awaitable[float]]:
        """Median milliseconds of some calls, one after the other."""
        caller = self.build_caller()
        is_warm = False

        async def work() -> float:
            nonlocal is_warm
            taken = [(await caller.call())[0] * 1000 for _ in range(CALLS)]
            self.taken_ms += taken if is_warm else []
            is_warm = True
            return statistics.median(taken)

        return work


async def _measure(run: Run) -> list[Row]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(serving("engine", str(DELAY_MS)))
        passing = stack.enter_context(serving("passthrough", engine.url))
        run.say("founding a network with a fixed-delay provider")
        url, key = await stack.enter_async_context(_network(folder / "network"))
        asked = json.dumps({"model": MODEL, **ASK}).encode()
        ours = _Path(url, json.dumps({"model": MODEL_NAME, **ASK}).encode(), {"Authorization": f"Bearer {key}"})
        paths = {"direct": _Path(engine.url, asked), "pass": _Path(passing.url, asked), "ours": ours}
        await _wait_for_answer(ours)
        absent = ""
        if run.wants(RATE, AGAINST):
            try:
                paths["litellm"] = _start_litellm(run, stack, folder, engine.url, asked)
            except (AbsentPeer, AbsentServer) as reason:
                absent = str(reason)
        rows = await _measure_latency(run, paths, folder, absent)
        return rows + await _measure_rates(run, paths, absent)


def _start_litellm(run: Run, stack: AsyncExitStack, folder: Path, upstream: str, body: bytes) -> _Path:
    run.say("starting LiteLLM's proxy")
    proxy, key = stack.enter_context(serving_litellm(install(run.say), folder, upstream))
    return _Path(proxy.url, body, {"Authorization": f"Bearer {key}"})


async def _measure_latency(run: Run, paths: dict[str, _Path], folder: Path, absent: str) -> list[Row]:
    if not run.wants(ADDED, TAIL, SYNC, AGAINST):
        return []
    works = {name: path.build_work() for name, path in paths.items()}
    found = await run.interleave("gateway.added_latency, ms", works, 9)
    added = {
        name: [own - straight for own, straight in zip(values, found["direct"], strict=True)]
        for name, values in found.items()
    }
    syncs = [_time_sync(folder) for _ in range(SYNCS)]
    note = f"engine waits {DELAY_MS} ms; fsync here takes {statistics.median(syncs):.2f} ms"
    rows = [compare(ADDED, "ms", added["ours"], PASSTHROUGH, added["pass"], note), _compare_tails(paths, note)]
    if "litellm" in added:
        rows.append(compare(AGAINST, "ms", added["ours"], "LiteLLM's proxy, added", added["litellm"], note))
    else:
        rows.append(skip(AGAINST, absent))
    return [*rows, alone(SYNC, "ms", syncs, "4 KiB appended and synced, beside the journals")]


def _compare_tails(paths: dict[str, _Path], note: str) -> Row:
    """The 99th percentile over all calls of all rounds; too few in one round for one each."""
    tails = {name: statistics.quantiles(path.taken_ms, n=100)[98] for name, path in paths.items()}
    ours, peer = tails["ours"] - tails["direct"], tails["pass"] - tails["direct"]
    calls = len(paths["ours"].taken_ms)
    return Row(TAIL, ours, "ms", PASSTHROUGH, peer, calls // CALLS, note=f"over {calls} calls; {note}")


async def _measure_rates(run: Run, paths: dict[str, _Path], absent: str) -> list[Row]:
    if not run.wants(RATE):
        return []
    if "litellm" not in paths:
        return [skip(RATE, absent)]
    rows = []
    for concurrency in CONCURRENCY:
        works = {
            name: _build_flood([path.build_caller() for _ in range(concurrency)])
            for name, path in paths.items()
            if name != "direct"
        }
        name = RATE if concurrency == 8 else f"{RATE}.{concurrency}"
        found = await run.interleave(f"{name}, {concurrency} at once", works, 5)
        note = f"{concurrency} at once; the pass-through does {statistics.median(found['pass']):.0f}"
        workers = len(os.sched_getaffinity(0))
        rows.append(
            compare(name, "requests/s", found["ours"], f"LiteLLM's proxy, {workers} workers", found["litellm"], note)
        )
    return rows


def _build_flood(callers: list[Caller]) -> Callable[[], Awaitable[float]]:
    async def work() -> float:
        return await call_for(callers, FLOOD_S)

    return work


async def _wait_for_answer(path: _Path) -> None:
    """Until the gateway has found the provider and opened its channel."""
    caller, end = path.build_caller(), time.monotonic() + FIRST_ANSWER_S
    while True:
        try:
            await caller.call()
        except FailedCall:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)
        else:
            await caller.close()
            return


def _time_sync(folder: Path) -> float:
    with (folder / "synced").open("ab") as file:
        file.write(bytes(4096))
        file.flush()
        start = time.perf_counter()
        os.fsync(file.fileno())
        return (time.perf_counter() - start) * 1000


@asynccontextmanager
async def _network(root: Path) -> AsyncIterator[tuple[str, str]]:
    """A founded network's gateway URL and key: every role is the product's own process, but for the engine."""
    folder = StateFolder(root)
    folder.keys.mkdir(parents=True, exist_ok=True)
    storage = [RoleSpec(f"storage-{number}", "storage") for number in range(1, 4)]
    chain, gateway = RoleSpec("chain", "chain"), RoleSpec("gateway", "gateway")
    folder.save_roles((chain, *storage, gateway))
    supervisor = Supervisor(folder, SystemClock())
    try:
        for spec in (chain, *storage):
            await supervisor.start(spec)
        urls = await supervisor.wait_ready("chain", *(spec.name for spec in storage))
        chain_url = urls.pop("chain")
        ground = Ground(chain_url, chain_url)
        await found_network(folder, open_keystore(folder), ground, urls, 0, lambda _text: None)
        with ExitStack() as stack:
            provider = serving(root, str(DELAY_MS), module="bench.fixed_provider")
            await asyncio.to_thread(stack.enter_context, provider)
            await supervisor.start(gateway)
            url = (await supervisor.wait_ready("gateway"))["gateway"]
            key = folder.load_secret_text(API_KEY_NAME)
            assert key is not None
            yield url, key
    finally:
        await supervisor.stop()
