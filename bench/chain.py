"""The chain row: signed ERC-20 transfers through JSON-RPC, durable, per CPU-second of the server, against anvil.

anvil keeps its state in memory and syncs nothing; that is in its favour. It runs under the same rules (Cancun), with
the same block time and gas limit, quiet, and without history, which is where it is fastest.
"""

import asyncio
import importlib.util
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import msgspec

from bench.chain_load import GENESIS, OPERATOR, USERS, Load, build_setup
from bench.chain_state import measure_restarts, memory_mib
from bench.processes import ROOT, Server, running, serving, wait_until
from bench.rows import Row, Run, alone, compare, skip
from deaios.chain.service import Limits
from deaios.primitives.hashing import keccak256

NAME = "chain.erc20_tx_per_cpu_s"
PER_SENDER = 200
BATCH = 100
CONNECTIONS = 2
POLL_S = 0.1
INCLUSION_S = 120.0
INCLUSION_P50, INCLUSION_P99 = "chain.inclusion_p50_ms", "chain.inclusion_p99_ms"
BYTES, MEMORY = "chain.bytes_per_tx", "chain.memory_mib"
RESTART, SLOT_BYTES = "chain.restart_1m_slots_s", "chain.memory_1m_slots_mib"
LONE_SENDS = 60
LONE_POLL_S = 0.01


def measure(run: Run) -> Iterator[Row]:
    if run.wants(NAME, INCLUSION_P50, INCLUSION_P99, BYTES, MEMORY):
        yield from _measure_race(run)
    if run.wants(RESTART, SLOT_BYTES):
        yield from _measure_restart()


def _measure_race(run: Run) -> Iterator[Row]:
    peers = _load_peers()
    try:
        anvil = peers.install_peers().anvil
    except peers.AbsentPeers as reason:
        for name in (NAME, INCLUSION_P50, INCLUSION_P99, BYTES, MEMORY):
            yield skip(name, f"anvil cannot be had: {reason}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving("chain", folder) as ours, _anvil(anvil, folder) as theirs:
            found, waits, sent = asyncio.run(_race(run, ours, theirs))
            memory = memory_mib(ours), memory_mib(theirs)
        # Closed by now, so that what was in the write-ahead log is in the file.
        size = sum(path.stat().st_size for path in folder.glob("chain.db*"))
    note = "ours durable (SQLite, synchronous=FULL), anvil in memory; CPU time of the server process"
    peer = "anvil, Cancun"
    yield compare(NAME, "tx/CPU-s", found["ours"], peer, found["anvil"], note)
    note = f"one transfer at a time, {LONE_SENDS} of them, from sending to receipt; block time {Limits().block_ms} ms"
    for name, place in ((INCLUSION_P50, 49), (INCLUSION_P99, 98)):
        values = {node: statistics.quantiles(times, n=100)[place] * 1000 for node, times in waits.items()}
        yield compare(name, "ms", [values["ours"]], peer, [values["anvil"]], note)
    yield alone(BYTES, "bytes", [size / sent], f"{sent} signed ERC-20 transfers, everything in the folder")
    yield compare(MEMORY, "MiB", [memory[0]], peer, [memory[1]], f"resident after {sent} transfers")


def _measure_restart() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        seconds, memory, size = measure_restarts(Path(folder) / "state")
    note = f"kill -9, then from exec to the first answer; {size:.0f} bytes on disk a word"
    yield alone(RESTART, "s", seconds, note)
    yield alone(SLOT_BYTES, "MiB", [memory], "resident memory of the whole server after that start")


async def _race(run: Run, ours: Server, anvil: Server) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Transfers per CPU-second of every round, seconds to inclusion one by one, and how many transfers ours had."""
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector) as session:
        nodes = {"ours": _Node(session, ours), "anvil": _Node(session, anvil)}
        for address in (OPERATOR.address, *(user.address for user in USERS)):
            await nodes["anvil"].call("anvil_setBalance", f"0x{address.hex()}", hex(10**21))
        for node in nodes.values():
            await node.include(build_setup(), {f"0x{OPERATOR.address.hex()}": 1 + len(USERS)})
        found = await run.interleave(NAME, {name: node.build_work() for name, node in nodes.items()}, 5)
        waits: dict[str, list[float]] = {name: [] for name in nodes}
        for _ in range(LONE_SENDS):
            for name, node in nodes.items():
                waits[name].append(await node.time_inclusion())
        return found, waits, nodes["ours"].sent


class _Node:
    """One server and the load that it alone consumes; both get the same bytes in the same order."""

    def __init__(self, session: aiohttp.ClientSession, server: Server) -> None:
        self._session = session
        self._server = server
        self._load = Load(PER_SENDER)
        self._nonce = 0
        self._lone: list[bytes] = []
        self.sent = 0

    async def time_inclusion(self) -> float:
        """Seconds from sending one transfer until its receipt is there."""
        if not self._lone:
            self._lone = list(reversed(self._load.sign_round()))
        raw = self._lone.pop()
        self.sent += 1
        started_s = time.monotonic()
        found = await self.call("eth_sendRawTransaction", f"0x{raw.hex()}")
        while await self.call("eth_getTransactionReceipt", found) is None:
            assert time.monotonic() - started_s < INCLUSION_S, f"{self._server.url}: not included"
            await asyncio.sleep(LONE_POLL_S)
        return time.monotonic() - started_s

    def build_work(self) -> Callable[[], Awaitable[float]]:
        async def work() -> float:
            raws = self._load.sign_round()
            self._nonce += PER_SENDER
            self.sent += len(raws)
            before = self._server.cpu_s()
            await self.include(raws, {f"0x{user.address.hex()}": self._nonce for user in USERS})
            spent = self._server.cpu_s() - before
            receipt = await self.call("eth_getTransactionReceipt", f"0x{keccak256(raws[-1]).hex()}")
            assert receipt["status"] == "0x1", f"{self._server.url}: a transfer failed: {receipt}"
            assert receipt["logs"], f"{self._server.url}: nothing was transferred: {receipt}"
            return len(raws) / spent

        return work

    async def include(self, raws: Sequence[bytes], nonces: dict[str, int]) -> None:
        """Send transactions and wait until every sender's count says that they are in blocks."""
        batches = [raws[start : start + BATCH] for start in range(0, len(raws), BATCH)]
        for batch in batches:
            answers = await self._post([("eth_sendRawTransaction", f"0x{raw.hex()}") for raw in batch])
            assert all("result" in answer for answer in answers), f"{self._server.url}: {answers[0]}"
        end = time.monotonic() + INCLUSION_S
        while True:
            answers = await self._post([("eth_getTransactionCount", address, "latest") for address in nonces])
            found = {answer["id"]: int(answer["result"], 16) for answer in answers}
            if [found[place] for place in range(len(nonces))] == list(nonces.values()):
                return
            assert time.monotonic() < end, f"{self._server.url}: not included within {INCLUSION_S} s"
            await asyncio.sleep(POLL_S)

    async def call(self, method: str, *params: object) -> Any:  # Any: JSON
        (answer,) = await self._post([(method, *params)])
        assert "error" not in answer, f"{self._server.url}: {answer}"
        return answer["result"]

    async def _post(self, calls: Sequence[tuple[object, ...]]) -> list[dict[str, object]]:
        body = [
            {"jsonrpc": "2.0", "id": place, "method": method, "params": params}
            for place, (method, *params) in enumerate(calls)
        ]
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._server.url, data=msgspec.json.encode(body), headers=headers) as answer:
            return msgspec.json.decode(await answer.read())


@contextmanager
def _anvil(program: Path, folder: Path) -> Iterator[Server]:
    block_s = Limits().block_ms / 1000
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(program, "--port", str(port), "--hardfork", "cancun", "--order", "fifo", "--prune-history", "--quiet"),
        *("--chain-id", str(GENESIS.chain_id), "--gas-limit", str(GENESIS.gas_limit), "--block-time", str(block_s)),
        *("--block-base-fee-per-gas", "1000000000"),
    ]
    with running(command, cwd=folder) as process:

        def listens() -> bool:
            assert process.poll() is None, "anvil ended at once"
            with socket.socket() as caller:
                return caller.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, "anvil")
        yield Server(process, f"http://127.0.0.1:{port}")


def _load_peers() -> ModuleType:
    """The tests' installer of foreign programs; tests are no package, so it is loaded by its path."""
    path = ROOT / "tests" / "peers" / "peers.py"
    spec = importlib.util.spec_from_file_location("bench_peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_peers"] = module
    spec.loader.exec_module(module)
    return module
