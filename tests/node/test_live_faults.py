"""One running network and what can happen to it: roles killed, stopped, and left without disk, always under load.

The tests run in file order on one network; the last one counts everything again, to the unit.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import psutil
import pytest

from deaios.node.model_package import MODEL_NAME
from deaios.primitives.encoding import encode_hex
from deaios.runtime.client import HttpClient
from deaios.storage.client import StorageClient, UnavailableRows

sys.path.insert(0, str(Path(__file__).parents[2]))
from soak.live_load import Load, Record
from soak.live_network import LiveNetwork, Size, read_journal
from soak.live_recount import Voucher, read_vouchers, recount, settle

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

SIZE = Size(audit_interval_s=600, claim_interval_s=5, silence_s=3)
WAIT_S = 120.0
TINY_FILE_BYTES = 4096
"""A file may not grow beyond this: no journal of a running network can be written any more."""


@dataclass
class Running:
    """The network, and everything that clients were told by it."""

    network: LiveNetwork
    record: Record = field(default_factory=Record)
    vouchers: list[Voucher] = field(default_factory=list)
    loads: int = 0

    @contextlib.asynccontextmanager
    async def load(self) -> AsyncIterator[Record]:
        """Clients at work while the block runs; they end what they have begun."""
        self.loads += 1
        self.vouchers += read_vouchers(self.network)
        load = Load(self.network, self.record, seed=self.loads, chats=2)
        await load.start()
        try:
            yield self.record
        finally:
            await load.stop()

    async def until_more(self, event: str, count: int = 1) -> None:
        """Until clients have seen something so many times more."""
        wanted = self.record.events[event] + count
        async with asyncio.timeout(WAIT_S):
            while self.record.events[event] < wanted:
                await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def stopped(self, name: str) -> AsyncIterator[None]:
        """A role that neither runs nor ends while the block runs."""
        process = psutil.Process(self.network.signal(name, signal.SIGSTOP))
        try:
            async with asyncio.timeout(WAIT_S):
                while process.status() != psutil.STATUS_STOPPED:
                    await asyncio.sleep(0.01)
            yield
        finally:
            self.network.signal(name, signal.SIGCONT)

    @contextlib.contextmanager
    def no_room(self, *names: str) -> Iterator[None]:
        """Roles whose files cannot grow, as on a full disk, while the block runs and they live."""
        processes = [psutil.Process(self.network.pid(name)) for name in names]
        before = [process.rlimit(psutil.RLIMIT_FSIZE) for process in processes]
        for process, (_, hard) in zip(processes, before, strict=True):
            process.rlimit(psutil.RLIMIT_FSIZE, (TINY_FILE_BYTES, hard))
        try:
            yield
        finally:
            for process, limits in zip(processes, before, strict=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.rlimit(psutil.RLIMIT_FSIZE, limits)

    def provider_address(self, name: str) -> str:
        """How a request names a provider."""
        return encode_hex(self.network.open_key(name).address)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    network = LiveNetwork(tmp_path_factory.mktemp("faults"), SIZE)

    async def start() -> None:
        await network.start()
        await network.fill_purses()

    asyncio.run(start())
    try:
        yield Running(network)
        asyncio.run(network.stop())
    finally:
        asyncio.run(network.abort())


class Chat:
    """One streamed answer, read by hand."""

    def __init__(self, network: LiveNetwork, **extra: object) -> None:
        self._network = network
        self._body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": "Write a long story about a lighthouse."}],
            "max_tokens": 160,
            "stream": True,
            **extra,
        }
        self.chunks: list[dict[str, object]] = []

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[aiohttp.StreamReader]:
        """The answer's bytes; where there was no answer, it is asked for again, as SDKs do."""
        url, headers = self._network.url("gateway"), {"Authorization": f"Bearer {self._network.api_key}"}
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.post(f"{url}/v1/chat/completions", json=self._body, headers=headers) as response:
                    if response.status == 503:
                        continue
                    assert response.status == 200, await response.text()
                    yield response.content
                    return

    async def read(self, lines: aiohttp.StreamReader, texts: int | None = None) -> None:
        """Read chunks: so many with text, or to the end."""
        async for line in lines:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                self.chunks.append(chunk)
                if any(choice["delta"].get("content") for choice in chunk.get("choices", [])) and texts is not None:
                    texts -= 1
                    if not texts:
                        return

    @property
    def is_done(self) -> bool:
        """Whether the whole answer came, with its papers."""
        return any("deaios" in chunk for chunk in self.chunks)

    @property
    def error(self) -> dict[str, str] | None:
        """What the stream said went wrong."""
        return next((chunk["error"] for chunk in self.chunks if "error" in chunk), None)  # type: ignore[return-value]


async def test_each_role_killed_in_turn_under_load(running: Running) -> None:
    """One falls while others still come up, and what depends on it is done again before the next one falls."""
    async with running.load() as record:
        await running.until_more("chat: answered")
        killed = {}
        for name, event in (
            ("provider-1", "chat: answered"),
            ("storage-1", "file got"),
            ("da-1", "chat: answered"),
            ("auditor-1", "chat: answered"),
            ("chain", "transfer"),
            ("gateway", "chat: answered"),
        ):
            killed |= running.network.kill(name)
            await running.until_more(event)
        assert len(killed) == 6
        await running.network.wait_ready(killed)
    assert not record.faults


async def test_all_roles_killed_at_once_under_load(running: Running) -> None:
    async with running.load() as record:
        await running.until_more("chat: answered")
        killed = running.network.kill(*running.network.roles)
        assert set(killed) == set(running.network.roles)
        await running.network.wait_ready(killed)
        await running.until_more("chat: answered")
    assert not record.faults


async def test_a_provider_that_hangs_in_mid_stream_costs_nothing_and_others_serve(running: Running) -> None:
    """A stopped process keeps its connections and says nothing: the worst kind of hang."""
    network = running.network
    pinned = Chat(network, deaios={"provider": running.provider_address("provider-1")})
    async with pinned.open() as lines:
        await pinned.read(lines, texts=2)
        async with running.stopped("provider-1"):
            free = [Chat(network, max_tokens=6) for _ in range(4)]

            async def whole(chat: Chat) -> None:
                """Ask until there is an answer; a slow machine may call the other provider silent, too."""
                while not chat.is_done:
                    chat.chunks.clear()
                    async with chat.open() as stream:
                        await chat.read(stream)

            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*(whole(chat) for chat in free))
                await pinned.read(lines)
    assert pinned.error is not None
    assert pinned.error["code"] == "service_unavailable", pinned.error
    await network.until(lambda: count_open(network) == 0, WAIT_S, "a purchase stays open")


async def test_a_chain_that_stops_for_a_while_loses_nothing(running: Running) -> None:
    """What has begun goes on to its end; what begins must know a head of the last seconds, and may have to wait."""
    async with running.load() as record:
        await running.until_more("chat: answered")
        chat = Chat(running.network)
        async with chat.open() as lines:
            await chat.read(lines, texts=2)
            async with running.stopped("chain"), asyncio.timeout(WAIT_S):
                await chat.read(lines)
        assert chat.is_done, chat.error
        await running.until_more("chat: answered")
        await running.until_more("sender: paid")
        await running.until_more("transfer", 2)
    assert not record.faults


async def test_a_gateway_killed_in_mid_stream_resolves_what_it_had_bought(running: Running) -> None:
    chat = Chat(running.network)
    async with chat.open() as lines:
        await chat.read(lines, texts=2)
        assert count_open(running.network) > 0
        killed = running.network.kill("gateway")
        with pytest.raises(aiohttp.ClientPayloadError):
            await chat.read(lines)
    await running.network.wait_ready(killed)
    await running.network.until(lambda: count_open(running.network) == 0, WAIT_S, "a purchase stays open")


async def test_storage_without_room_refuses_before_it_acknowledges(running: Running) -> None:
    descriptor, key = running.network.descriptor, running.network.open_key("user")
    async with HttpClient() as http:
        client = StorageClient(http, list(descriptor.storage_urls), key, descriptor.network_id)
        before = await client.put_bytes(b"before")
        with running.no_room(*running.network.names_of("storage")):
            with pytest.raises(UnavailableRows):
                await client.put_bytes(os.urandom(50_000))
            assert await client.get_bytes(before, 100) == b"before"
        after = await client.put_bytes(b"after")
        assert await client.get_bytes(after, 100) == b"after"
    for name in running.network.names_of("storage"):
        assert running.network.is_ready(name)


async def test_a_seller_without_room_signs_nothing_and_comes_back(running: Running) -> None:
    providers = running.network.names_of("provider")
    pids = {name: running.network.pid(name) for name in providers}
    async with running.load() as record:
        await running.until_more("chat: answered")
        with running.no_room(*providers):
            await running.network.wait_ready(pids, WAIT_S)
        await running.until_more("chat: answered", 2)
    assert not record.faults


async def test_a_chain_without_room_refuses_and_recovers_when_there_is_some(running: Running) -> None:
    network = running.network
    first = network.pid("chain")
    supervisor = psutil.Process(first).parent()
    assert supervisor is not None
    async with running.load() as record:
        await running.until_more("transfer")
        with running.no_room("chain"):
            # What the supervisor starts meanwhile has no room either.
            soft, hard = supervisor.rlimit(psutil.RLIMIT_FSIZE)
            supervisor.rlimit(psutil.RLIMIT_FSIZE, (TINY_FILE_BYTES, hard))
            try:
                pids = {first}
                await network.until(
                    lambda: len(pids) > 2 or pids.add(network.pid("chain")) is not None, WAIT_S, "the chain goes on"
                )
                assert not network.is_ready("chain")
            finally:
                supervisor.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
        await network.wait_ready({"chain": first})
        await running.until_more("transfer", 2)
        await running.until_more("chat: answered")
    assert not record.faults


async def test_at_the_end_everything_adds_up(running: Running) -> None:
    await settle(running.network, WAIT_S)
    result = await recount(running.network, running.record, running.vouchers)
    assert result.differences == []
    for what in (
        "receipts",
        "batches",
        "batches read",
        "answers",
        "deposits",
        "transfers",
        "files",
        "vouchers",
        "claimed",
    ):
        assert result.figures[what] > 0, what


async def test_the_recount_misses_nothing(running: Running) -> None:
    """Were any one thing lost that somebody was told of, it would be said."""
    record, (answered, other) = running.record, running.record.answers[-2:]
    receipt = answered.opening.receipt
    lost_transfer, payment = b"\x01" * 32, next(iter(record.transfers.values()))
    forged = Record(
        answers=[
            replace(answered, opening=replace(answered.opening, receipt=replace(receipt, fee=receipt.fee + 1))),
            replace(other, client_digest=b"\x02" * 32),
        ],
        transfers={lost_transfer: payment},
        maybe_sent=[],
        files={b"\x03" * 32: b"\x04" * 32},
        proofs={(answered.opening.request.provider, receipt.counter + 10_000): 0},
    )
    voucher = replace(running.vouchers[-1], signed=running.vouchers[-1].signed + 10**12)
    result = await recount(running.network, forged, [voucher])
    resume_auditors(running.network)
    told = "\n".join(result.differences)
    for words in (
        f"acknowledged receipt {receipt.counter} of",
        f"answer {answered.answer_id}: its charge",
        f"answer {other.answer_id}: paid for its request: found 0, expected {other.opening.receipt.fee}",
        f"blocks that hold acknowledged transaction {encode_hex(lost_transfer)}: found 0",
        f"acknowledged file {'03' * 32} cannot be had",
        f"receipt {receipt.counter + 10_000} is in batch 0",
        f"{voucher.signed} was signed",
    ):
        assert words in told, told


def resume_auditors(network: LiveNetwork) -> None:
    """What `settle` froze."""
    for name in network.names_of("auditor"):
        network.signal(name, signal.SIGCONT)


def count_open(network: LiveNetwork) -> int:
    """Purchases of the gateway without a receipt."""
    with read_journal(network.database("gateway", "buyer.db")) as journal:
        return int(journal.execute("SELECT count(*) FROM open_purchases").fetchone()[0])
