"""What `soak.providers` runs on: a chain, a gateway with its buyer, and providers as processes that can be abused."""

import asyncio
import itertools
import json
import math
import os
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits
from deaios.chain.service import build_application as build_chain_application
from deaios.compute.records import Calibration, ModelRecord, NoiseClass, RecordFile, Thresholds
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.gateway.desk import Limits as GatewayLimits
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import deploy_suite
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.eip712 import decode_json
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import Receipt
from deaios.ledger.suite import COMPUTE, CREDIT_NAME, CREDIT_VERSION
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.client import LedgerChain
from deaios.market.directory.client import Directory
from deaios.market.terms import Terms
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.keys import Address, PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve
from soak.provider_process import CONTEXT_TOKENS
from soak.tiny_models import write_tiny_model

PRICES = (1_000_000, 4_000_000)
START_S = 240.0
"""A busy machine may take so long over the start of a process."""
ANSWERS_MAX = 256
LIES = ("altered", "corrupt", "weights")
SLACK_S = 60.0
"""A purchase keeps the mode in which it began; it may end so much later."""
MODEL = "tiny"


PATIENCE = Patience(poll_min_s=0.05, poll_max_s=0.5)


def key_of(name: str) -> PrivateKey:
    """A key that is the same in every run."""
    return PrivateKey(sha256(b"soak providers " + name.encode()))


@dataclass
class Provider:
    """A provider's process and what is being done to it."""

    name: str
    key: PrivateKey
    config: Path
    journal: Path
    mode: str = "honest"
    process: asyncio.subprocess.Process | None = None
    may_lie: bool = False
    """Of a bad character: a buyer that notices never comes back, so the honest ones must never lie."""
    restarts: int = 0
    lying: list[tuple[float, float]] = field(default_factory=list)
    """When it lied, in monotonic seconds; the last span is open while its end is infinite."""

    @property
    def address(self) -> Address:
        """Whom buyers pay."""
        return self.key.address

    async def start(self) -> None:
        """Start, and wait until it serves."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "soak.provider_process",
            str(self.config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_S):
            line = await self.process.stdout.readline()
        if line.strip() != b"ready":
            raise RuntimeError(f"{self.name} ended before it was ready; see {self.config.with_suffix('.log')}")
        self.mode = "honest"

    async def set_mode(self, mode: str) -> None:
        """Tell the process, or send it a signal."""
        assert self.process is not None
        assert self.process.stdin is not None
        if self.mode == "stopped":
            os.kill(self.process.pid, signal.SIGCONT)
        self.mode = mode
        now_s = time.monotonic()
        if self.lying and self.lying[-1][1] == math.inf:
            self.lying[-1] = self.lying[-1][0], now_s
        if mode in LIES:
            self.lying.append((now_s, math.inf))
        match mode:
            case "killed":
                self.process.kill()
                await self.process.wait()
            case "stopped":
                os.kill(self.process.pid, signal.SIGSTOP)
            case _:
                self.process.stdin.write(f"{mode}\n".encode())
                await self.process.stdin.drain()

    def lied_between(self, from_s: float, to_s: float) -> bool:
        """Did it lie at some time then?"""
        return any(begin <= to_s and end + SLACK_S >= from_s for begin, end in self.lying)

    async def heal(self) -> None:
        """Honest and alive again."""
        if self.mode == "killed":
            self.restarts += 1
            await self.start()
        elif self.mode != "honest":
            await self.set_mode("honest")

    async def end(self) -> None:
        """Stop it for good; what it owes is on disk."""
        if self.process is not None and self.process.returncode is None:
            if self.mode == "stopped":
                os.kill(self.process.pid, signal.SIGCONT)
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                async with asyncio.timeout(START_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    def read_receipts(self) -> list[Receipt]:
        """Every receipt in its journal."""
        with sqlite3.connect(f"file:{self.journal}?mode=ro", uri=True) as connection:
            rows = connection.execute("SELECT receipt FROM receipts ORDER BY counter").fetchall()
        return [decode_json(Receipt, json.loads(text)) for (text,) in rows]


@dataclass
class World:
    """Everything that runs."""

    model: Path
    tokenizer: Tokenizer
    served: ServedModel
    buyer: Buyer
    keys: KeyStore
    key: str
    key_id: str
    url: str
    join: Callable[[], Awaitable[Provider]]
    """Let a newcomer stake, register and serve."""
    providers: list[Provider] = field(default_factory=list)

    async def replace(self, liar: Provider) -> Provider:
        """A liar that was caught comes back as somebody else; what it was keeps its books open."""
        provider = await self.join()
        provider.may_lie = liar.may_lie
        self.providers.append(provider)
        return provider


def build_served(path: Path) -> ServedModel:
    """The tiny model as the gateway offers it."""
    tokenizer, template = Tokenizer.from_gguf(path), ChatTemplate.from_gguf(path)
    data = path.read_bytes()
    record = ModelRecord(
        name=MODEL,
        files=(RecordFile("model.gguf", sha256(data), len(data), ZERO32),),
        model_root=ZERO32,
        tensors_root=ZERO32,
        serving="as-is/1",
        tokenizer_hash=tokenizer.tokenizer_hash,
        template_hash=template.template_hash,
        quantisation="F16",
        licence="Apache-2.0",
        parents=(),
        noise_class=NoiseClass.FLOAT,
        thresholds=Thresholds(20_000, 20_000),
        calibration=Calibration(0, 0, ZERO32),
        context_tokens=CONTEXT_TOKENS,
        replay_profiles=(),
    )
    inputs, outputs = PRICES
    return ServedModel.build(
        record, tokenizer, template, input_price=inputs, output_price=outputs, created_s=0, owned_by="soak"
    )


@dataclass(frozen=True)
class _Ledger:
    """A chain with contracts, and an operator with money."""

    url: str
    rpc: Rpc
    contracts: Contracts
    terms: Terms
    funder: Sender
    stack: AsyncExitStack

    async def join(self, key: PrivateKey, credit: int) -> Sender:
        """Fund a key."""
        await self.funder.send(key.address, value=ETHER)
        await self.contracts.credit.transfer(self.funder, key.address, credit)
        sender = Sender(self.rpc, key, self.terms.chain_id, patience=PATIENCE)
        self.stack.push_async_callback(sender.close)
        return sender


@asynccontextmanager
async def _open_ledger(path: Path) -> AsyncIterator[_Ledger]:
    operator, clock = key_of("operator"), SystemClock()
    genesis = Genesis(
        seed=sha256(b"soak providers"),
        operator=operator.address,
        timestamp=clock.now_ms() // 1000,
        allocations=(Allocation(operator.address, 1000 * ETHER),),
    )
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(4))
        limits = Limits(block_ms=250, gather_ms=5)
        chain = await ChainService.start(path, operator, genesis, executor=executor, clock=clock, limits=limits)
        stack.push_async_callback(chain.close)
        running = asyncio.create_task(chain.run())
        stack.callback(running.cancel)
        url = await stack.enter_async_context(serve(build_chain_application(chain)))
        rpc = await stack.enter_async_context(Rpc(url))
        funder = Sender(rpc, operator, chain.chain_id, patience=PATIENCE)
        stack.push_async_callback(funder.close)
        contracts = Contracts(rpc, await deploy_suite(funder, rpc, LOCAL))
        first = await rpc.get_block(0)
        assert first is not None
        terms = Terms(
            chain_id=chain.chain_id,
            network_id=first.hash,
            disputes=contracts.addresses.disputes,
            channels=contracts.addresses.channels,
            token=contracts.addresses.credit,
            token_name=CREDIT_NAME,
            token_version=CREDIT_VERSION,
        )
        yield _Ledger(url, rpc, contracts, terms, funder, stack)


async def _add_provider(ledger: _Ledger, folder: Path, number: int, record_id: bytes) -> Provider:
    """Stake, register, and write down what the process needs."""
    name, key = f"provider-{number}", key_of(f"provider {number}")
    stake, port, contracts = 50 * CREDIT, _free_port(), ledger.contracts
    sender = await ledger.join(key, stake)
    await contracts.credit.approve(sender, contracts.staking.address, stake)
    await contracts.staking.stake(sender, stake)
    await contracts.staking.opt_in(sender, COMPUTE, 10_000)
    await contracts.identities.ensure_registered(sender, f"http://127.0.0.1:{port}", "provider")
    addresses = {name: encode_hex(address) for name, address in contracts.addresses.by_field().items()}
    said = {
        "secret": encode_hex(key.secret),
        "rpc": ledger.url,
        "chain_id": str(ledger.terms.chain_id),
        "network_id": encode_hex(ledger.terms.network_id),
        "contracts": json.dumps(addresses),
        "token_name": ledger.terms.token_name,
        "token_version": ledger.terms.token_version,
        "port": str(port),
        "record_id": encode_hex(record_id),
        "model": str(folder / "model.gguf"),
        "cheap_model": str(folder / "cheap.gguf"),
        "vault": str(folder / "vault"),
        "journal": str(folder / f"{name}.db"),
        "log": str(folder / f"{name}.log"),
    }
    config = folder / f"{name}.json"
    config.write_text(json.dumps(said))
    return Provider(name, key, config, folder / f"{name}.db")


@asynccontextmanager
async def open_world(folder: Path, count: int, settings: BuyerSettings) -> AsyncIterator[World]:
    """A network of `count` providers and one gateway; all of it ends with the block."""
    model = write_tiny_model(folder / "model.gguf", seed=1, end_bias=-30.0)
    write_tiny_model(folder / "cheap.gguf", seed=1, end_bias=-30.0, encoding="q8_0")
    served, clock = build_served(model), SystemClock()
    (folder / "vault").mkdir()
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(_open_ledger(folder / "chain.db"))
        providers = [await _add_provider(ledger, folder, number, served.record_id) for number in range(count)]
        for provider in providers:
            stack.push_async_callback(provider.end)
        await asyncio.gather(*(provider.start() for provider in providers))
        key = key_of("gateway")
        chain = LedgerChain(ledger.contracts, await ledger.join(key, 1000 * CREDIT))
        http = await stack.enter_async_context(HttpClient())
        directory = Directory(ledger.contracts, ledger.terms, http)
        stack.push_async_callback(directory.close)
        buyer = Buyer(key, ledger.terms, settings, folder / "buyer.db", chain, directory, http)
        await stack.enter_async_context(buyer)
        keys = KeyStore.open(folder / "keys.db", b"p" * 32)
        stack.callback(keys.close)
        text, record = keys.create(SystemDice(), clock.now_ms(), name="soak")
        application = build_gateway_application(
            network_id=ledger.terms.network_id,
            buyer=buyer,
            models=ServedModels((served,)),
            keys=keys,
            clock=clock,
            dice=SystemDice(),
            limits=GatewayLimits(answers_max=ANSWERS_MAX, answers_per_key_max=ANSWERS_MAX, reckon_s=1.0),
        )
        url = await stack.enter_async_context(serve(application))

        numbers = itertools.count(count)

        async def join() -> Provider:
            provider = await _add_provider(ledger, folder, next(numbers), served.record_id)
            stack.push_async_callback(provider.end)
            await provider.start()
            return provider

        yield World(model, served.tokenizer, served, buyer, keys, text, record.key_id, url, join, providers)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
