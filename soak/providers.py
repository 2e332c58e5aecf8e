"""Providers killed, stopped, slow, corrupt and lying at random under 64 concurrent streams; or none of it, for leaks.

Usage: python -m soak.providers [--seconds 600] [--seed N] [--users 64] [--providers 4] [--folder DIR]
       python -m soak.providers --calm --seconds 1800

Everything is real but the size of the model: a chain, provider processes with llama.cpp over a tiny GGUF file, a
gateway with its buyer, users over HTTP who never retry. Half of the providers never lie, but are killed, stopped and
slowed, all but one at every moment. The others lie too; the gateway never comes back to one that it caught, so that one
joins again under another key. Afterwards money is recounted to the unit from the providers' receipts, and answers are
recomputed.
"""

import argparse
import asyncio
import collections
import contextlib
import gc
import json
import math
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import aiohttp
import psutil

from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import seed_of
from deaios.compute.verification import verify_output
from deaios.ledger.structs import FinishReason, State
from deaios.market.buyer.client import BuyerSettings
from deaios.market.chat import read_chat_body
from deaios.market.opening import Opening
from deaios.runtime.logs import configure_logs
from soak.provider_process import CONTEXT_TOKENS
from soak.providers_world import LIES, Provider, World, open_world
from soak.searches import Budget, Finding

FAULTS = ("killed", "stopped", "slow")
NEWCOMERS_MAX = 12
"""A caught liar comes back so often in a run, all of them together; each is a process."""
FAULT_S = (4.0, 20.0)
"""How long a provider stays as it is made."""
SUCCESS_MIN = 0.99
SAMPLE_S = 10.0
SETTLE_S = 180.0
VERIFIED_MAX = 400
TOKENS = (8, 48)
MB = 1 << 20
MEMORY_GROWTH_MAX = 24.0
"""MB that a process may grow in the judged part of a calm run, by the median of all slopes; journals' caches grow."""
NEIGHBOURS = 8
"""Ends of connections per user in one process: two of the user's own, five at providers and chain, one to spare."""
COUNT_GROWTH_MAX = 16.0
"""The same of descriptors, tasks and channels, with 64 users coming and going."""


@dataclass
class Asked:
    """What one request came to."""

    body: bytes
    began_s: float
    ended_s: float = 0.0
    status: int = 0
    error: str = ""
    text: str = ""
    extra: dict[str, object] | None = None
    first_s: float | None = None
    gap_s: float = 0.0

    @property
    def opening(self) -> Opening | None:
        """Its papers."""
        return None if self.extra is None else Opening.decode_json(self.extra["opening"])

    @property
    def is_served(self) -> bool:
        """Is the whole answer there, with its receipt?"""
        return not self.error and self.extra is not None


@dataclass
class Run:
    """One run's options and what it saw."""

    seconds: float
    seed: int
    users: int
    is_calm: bool
    asked: list[Asked] = field(default_factory=list)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    samples: list[dict[str, float]] = field(default_factory=list)
    served_count: int = 0

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m soak.providers --seconds {self.seconds:g} --seed {self.seed} --users {self.users}"


async def ask(world: World, session: aiohttp.ClientSession, body: bytes) -> Asked:
    """One request, streamed or not, without a retry."""
    asked = Asked(body, time.monotonic())
    headers = {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"}
    last_s = asked.began_s
    try:
        async with session.post(f"{world.url}/v1/chat/completions", data=body, headers=headers) as response:
            asked.status = response.status
            async for line in response.content:
                now_s = time.monotonic()
                if line.startswith(b"data: {"):
                    asked.gap_s, last_s = max(asked.gap_s, now_s - last_s), now_s
                    asked.first_s = asked.first_s or now_s - asked.began_s
                    _take(asked, json.loads(line[6:]))
                elif line.startswith(b"{"):
                    _take(asked, json.loads(line))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        asked.error = repr(error)
    asked.ended_s = time.monotonic()
    if not asked.error and asked.extra is None:
        asked.error = f"status {asked.status} without papers"
    return asked


def _take(asked: Asked, value: dict[str, object]) -> None:
    if "error" in value:
        asked.error = str(value["error"])
        return
    for choice in value.get("choices", ()):  # type: ignore[attr-defined] # a list, as the API says
        said = choice.get("delta") or choice.get("message") or {}
        asked.text += said.get("content") or ""
    extra = value.get("deaios")
    if isinstance(extra, dict):
        asked.extra = extra


async def use(world: World, run: Run, number: int, until_s: float) -> None:
    """One user: question after question."""
    dice = random.Random(run.seed * 1000 + number)
    count = 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        while time.monotonic() < until_s:
            count += 1
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": f"user {number} question {count}"}],
                "max_tokens": dice.randint(*TOKENS),
                "temperature": dice.choice((0, 0.7, 1.0)),
                "stream": dice.random() < 0.7,
                "seed": dice.randrange(1 << 30),
            }
            asked = await ask(world, session, json.dumps(body).encode())
            run.served_count += asked.is_served
            if not run.is_calm:
                run.asked.append(asked)
            elif not asked.is_served:
                raise Finding(f"a calm network failed a request: {asked.error}", run.command)


async def abuse(world: World, run: Run, until_s: float) -> None:
    """Faults on all providers but one that never lies, which changes; each one's end before its next begin."""
    dice = random.Random(run.seed)
    for provider in world.providers[::2]:
        provider.may_lie = True

    async def torment(provider: Provider) -> None:
        while time.monotonic() < until_s:
            await asyncio.sleep(dice.uniform(*FAULT_S) / 2)
            others = [item for item in world.providers if item is not provider and not item.may_lie]
            if not any(item.mode == "honest" for item in others):
                continue
            what = dice.choice((*FAULTS, *LIES) if provider.may_lie else FAULTS)
            run.faults[what] += 1
            await provider.set_mode(what)
            await asyncio.sleep(dice.uniform(*FAULT_S))
            await provider.heal()
            if provider.address in world.buyer.excluded and run.faults["joined again"] < NEWCOMERS_MAX:
                run.faults["joined again"] += 1
                provider = await world.replace(provider)

    await asyncio.gather(*(torment(provider) for provider in world.providers))


async def watch(world: World, run: Run, until_s: float) -> None:
    """Memory, descriptors, tasks and channels, every few seconds."""
    ours = psutil.Process()
    while time.monotonic() < until_s:
        await asyncio.sleep(SAMPLE_S)
        gc.collect()
        connections = len(ours.net_connections("inet"))
        sample = {
            "gateway memory MB": ours.memory_full_info().uss / MB,
            "gateway connections": connections,
            "gateway other descriptors": ours.num_fds() - connections,
            "gateway tasks": len(asyncio.all_tasks()),
            "channels": len(world.buyer.accounts),
            "open purchases": sum(len(row.state.reservations) for row in world.buyer.accounts),
        }
        for provider in world.providers:
            with contextlib.suppress(psutil.NoSuchProcess):  # killed since the last look
                if provider.process is None:
                    continue
                process = psutil.Process(provider.process.pid)
                sample[f"{provider.name} memory MB"] = process.memory_full_info().uss / MB
                connections = len(process.net_connections("inet"))
                sample[f"{provider.name} connections"] = connections
                sample[f"{provider.name} other descriptors"] = process.num_fds() - connections
        run.samples.append(sample)


async def settle(world: World, run: Run) -> None:
    """Until no purchase is open and no charge waits for its receipt."""
    await asyncio.gather(*(provider.heal() for provider in world.providers))
    try:
        async with asyncio.timeout(SETTLE_S):
            while True:  # nobody tells when the last of several books is closed
                is_open = any(row.state.reserved for row in world.buyer.accounts)
                if not is_open and not world.keys.list_provisional(1):
                    return
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise Finding("purchases stay open although every provider lives", run.command) from None


def recount(world: World, run: Run) -> dict[str, int]:
    """Hold every balance against the receipts; returns sums in units."""
    accounts = {row.provider: row.state.charged for row in world.buyer.accounts}
    receipts = {
        (provider.address, receipt.counter): receipt
        for provider in world.providers
        for receipt in provider.read_receipts()
    }
    wrong = []
    for provider in world.providers:
        due = sum(receipt.fee for (address, _), receipt in receipts.items() if address == provider.address)
        if accounts.get(provider.address, 0) != due:
            wrong.append(f"{provider.name}: {accounts.get(provider.address, 0)} charged, receipts say {due}")
    spent = 0
    seen: set[tuple[bytes, int]] = set()
    for asked in run.asked:
        opening = asked.opening if asked.is_served else None
        if opening is None:
            continue
        name = opening.request.provider, opening.receipt.counter
        if name in seen:
            wrong.append(f"two answers show one receipt {name[1]}")
        seen.add(name)
        if receipts.get(name) != opening.receipt:
            wrong.append(f"a receipt that was shown is not in its provider's journal: {name[1]}")
        spent += opening.receipt.fee
    record = world.keys.get(world.key_id)
    assert record is not None
    if record.spent != spent:
        wrong.append(f"the key was charged {record.spent}, served answers cost {spent}")
    if wrong:
        raise Finding("; ".join(wrong[:5]), run.command)
    paid = sum(accounts.values())
    return {"charged to users": spent, "paid to providers": paid, "borne by the gateway": paid - spent}


def verify(world: World, run: Run) -> tuple[int, int, int]:
    """Recompute answers: (checked, resumed among them or not, lies found); an honest one that fails is a finding."""
    engine = LlamaEngine(world.model, threads=1, context_tokens=CONTEXT_TOKENS, sequences_max=1)
    by_address = {provider.address: provider for provider in world.providers}
    checked = lies = suspected = 0
    try:
        for asked in [item for item in run.asked if item.is_served][-VERIFIED_MAX:]:
            opening = asked.opening
            assert opening is not None
            prompt = world.served.render(read_chat_body(asked.body).message_objects(), ())
            receipt = opening.receipt
            report = verify_output(
                engine,
                prompt,
                opening.output_ids,
                opening.ask.params,
                seed_of(opening.ask),
                FinishReason(receipt.finish_reason),
                receipt.stop_index,
                DEFAULT_THRESHOLDS,
                world.tokenizer,
            )
            may_lie = by_address[opening.request.provider].lied_between(asked.began_s, asked.ended_s)
            checked, suspected = checked + 1, suspected + may_lie
            lies += not report.ok
            if not report.ok and not may_lie:
                raise Finding(f"an honest answer does not verify: {report.violations[0].detail}", run.command)
    finally:
        engine.close()
    return checked, suspected, lies


def judge_leaks(run: Run) -> dict[str, float]:
    """How much each value grew after the warm-up, by the median slope of all pairs (Theil-Sen).

    Kept connections rise to the largest crowd that ever was and stay, as aiohttp takes the one that waited longest; so
    they have a bound: a user's own two ends, and one for each user at each neighbour of the process.
    """
    samples = run.samples[len(run.samples) // 4 :]
    grown = {}
    for name, value in ((name, value) for sample in samples for name, value in sample.items()):
        if "connections" in name and value > NEIGHBOURS * run.users:
            raise Finding(f"{value:.0f} {name}", run.command)
    for name in sorted(set.intersection(*(set(sample) for sample in samples)) if samples else ()):
        values = [sample[name] for sample in samples]
        slopes = [(late - early) / (j - i) for (i, early), (j, late) in combinations(enumerate(values), 2)]
        growth = statistics.median(slopes) * (len(values) - 1) if slopes else 0.0
        grown[name] = round(growth, 2)
        if "connections" in name:
            continue
        if growth > (MEMORY_GROWTH_MAX if "memory" in name else COUNT_GROWTH_MAX):
            raise Finding(f"{name} grew by {growth:.1f} in {len(values) * SAMPLE_S:.0f} s: {values}", run.command)
    return grown


def describe(run: Run, world: World) -> dict[str, object]:
    """Figures of a run."""
    served = [asked for asked in run.asked if asked.is_served]
    firsts = sorted(asked.first_s for asked in served if asked.first_s is not None)
    gaps = sorted(asked.gap_s for asked in served if asked.first_s is not None)
    states: collections.Counter[str] = collections.Counter()
    for provider in world.providers:
        states.update(State(receipt.state).name.lower() for receipt in provider.read_receipts())
    return {
        "requests": len(run.asked),
        "served": len(served),
        "success": round(len(served) / max(1, len(run.asked)), 5),
        "faults": dict(run.faults),
        "restarts": sum(provider.restarts for provider in world.providers),
        "answers continued elsewhere": world.buyer.continued,
        "first chunk s p50/p95": _ranks(firsts),
        "longest gap s p50/p95/max": [*_ranks(gaps), round(gaps[-1], 2) if gaps else None],
        "receipts": dict(states),
        "excluded for lies": len(world.buyer.excluded),
        "errors": dict(collections.Counter(asked.error[:160] for asked in run.asked if asked.error).most_common(6)),
    }


def _ranks(values: list[float]) -> list[float | None]:
    if not values:
        return [None, None]
    return [round(values[math.floor(share * (len(values) - 1))], 3) for share in (0.5, 0.95)]


async def run_all(run: Run, folder: Path, providers: int) -> dict[str, object]:
    """One run; a finding where a bar is missed."""
    # All processes share the cores of one machine, with whatever else runs there: silence means less than between two.
    settings = BuyerSettings(resolve_interval_s=1.0, window_wait_s=120.0, silence_s=20.0, stall_s=20.0)
    async with open_world(folder, providers, settings) as world:
        until_s = time.monotonic() + run.seconds
        async with asyncio.TaskGroup() as group:
            for number in range(run.users):
                group.create_task(use(world, run, number, until_s))
            group.create_task(watch(world, run, until_s))
            if not run.is_calm:
                group.create_task(abuse(world, run, until_s))
        await settle(world, run)
        if run.is_calm:
            return {"served": run.served_count, "growth": judge_leaks(run), "last": run.samples[-1]}
        found = describe(run, world) | recount(world, run)
        checked, suspected, lies = await asyncio.to_thread(verify, world, run)
        found |= {"recomputed": checked, "of liars": suspected, "lies found": lies}
        if found["success"] < SUCCESS_MIN:  # type: ignore[operator] # a float
            raise Finding(f"success below {SUCCESS_MIN}: {json.dumps(found)}", run.command)
        return found


def search(budget: Budget) -> str:
    """For `python -m soak providers`."""
    run = Run(budget.seconds, budget.seed, 64, is_calm=False)
    with tempfile.TemporaryDirectory(prefix="soak-providers-") as folder:
        configure_logs("soak", Path(folder) / "soak.log", "info")
        return json.dumps(asyncio.run(run_all(run, Path(folder), 4)))


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(prog="python -m soak.providers", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--providers", type=int, default=4)
    parser.add_argument("--calm", action="store_true", help="no faults: nothing may leak")
    parser.add_argument("--folder", type=Path, help="keep journals and logs here")
    options = parser.parse_args()
    run = Run(options.seconds, options.seed, options.users, options.calm)
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-providers-")))
        folder.mkdir(parents=True, exist_ok=True)
        configure_logs("soak", folder / "soak.log", "info")
        try:
            found = asyncio.run(run_all(run, folder, options.providers))
        except Finding as finding:
            sys.stderr.write(f"FOUND: {finding}\nrepeat with: {finding.command}\n")
            return 1
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
