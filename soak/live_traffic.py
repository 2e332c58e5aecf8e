"""Half an hour of compressed traffic: nothing may grow but what the work itself adds to the books.

Every 20 s each role is looked at: private memory, descriptors, threads, tasks of its loop, channels, open purchases,
the size of write-ahead logs, rows that are only there while something is open. After a warm-up the Theil-Sen slope
(median of the slopes of all pairs; it ignores a fifth of outliers) says how much a value grew over the rest of the run.
"""

import asyncio
import json
import re
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import aiohttp
import psutil

from deaios.primitives.errors import DeaiosError
from deaios.runtime.logs import configure_logs
from soak.live_load import Load, Record
from soak.live_network import LiveNetwork, Size, UnavailableNetwork, read_journal
from soak.live_recount import Unsettled, list_journals, recount, settle
from soak.searches import Finding

SAMPLE_S = 20.0
WARM_UP = 0.25
"""Share of the run in which caches may fill."""
SAMPLES_MIN = 8
CHATS = 6
PAUSE_S = 0.05
AUDIT_S = 6
MB = 1 << 20
GAUGES = (
    "asyncio_tasks",
    "buyer_channels",
    "buyer_open_purchases",
    "seller_channels",
    "seller_open_purchases",
    "gateway_answers_running",
)
OPEN_ROWS = {"buyer.db": ("open_purchases", "channels", "excluded"), "chain.db": ("waiting",), "seller.db": ("offers",)}
"""Tables whose rows must not add up."""
_GAUGE = re.compile(r"^deaios_(\w+) ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Allowance:
    """Growth over the judged part of the run that is noise, or the work's own trace."""

    amount: float
    share: float

    def permits(self, growth: float, median: float) -> bool:
        """Is a growth within it?"""
        return growth <= max(self.amount, self.share * median)


ALLOWANCES = {
    "memory": Allowance(8 * MB, 0.04),
    "wal": Allowance(6 * MB, 0.0),
    "descriptors": Allowance(6, 0.05),
    "threads": Allowance(3, 0.0),
    "asyncio_tasks": Allowance(8, 0.1),
}
"""By the last word of a series' name; for all others nothing is allowed but two."""
FEW = Allowance(2, 0.0)

Series = dict[str, list[tuple[float, float]]]
"""(seconds, value) by name."""


def compute_slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil-Sen estimate, units per second (Sen 1968, doi:10.1080/01621459.1968.10480934)."""
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in combinations(points, 2) if t > s]
    return statistics.median(slopes) if slopes else 0.0


async def sample(network: LiveNetwork, session: aiohttp.ClientSession) -> dict[str, float]:
    """Everything that can be seen of all roles now."""
    values: dict[str, float] = {}
    for role in network.roles:
        process = psutil.Process(network.pid(role))
        with process.oneshot():
            values[f"{role} memory"] = process.memory_full_info().uss
            values[f"{role} descriptors"] = process.num_fds()
            values[f"{role} threads"] = process.num_threads()
        try:
            async with session.get(network.url(role) + "/metrics") as response:
                found = dict(_GAUGE.findall(await response.text()))
        except (aiohttp.ClientError, TimeoutError):
            found = {}
        values |= {f"{role} {name}": float(found[name]) for name in GAUGES if name in found}
    for path in list_journals(network):
        role = path.relative_to(network.home / "roles").parts[0]
        wal = path.with_name(path.name + "-wal")
        values[f"{role} {path.name} wal"] = wal.stat().st_size if wal.exists() else 0
        for table in OPEN_ROWS.get(path.name, ()):
            with read_journal(path) as journal:
                values[f"{role} {table} rows"] = journal.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return values


def judge(series: Series) -> list[str]:
    """Series that grew beyond their allowance, in words."""
    found = []
    for name, points in series.items():
        growth, median = measure(points)
        if not ALLOWANCES.get(name.split()[-1], FEW).permits(growth, median):
            found.append(f"{name} grew by {growth:,.0f} around {median:,.0f}")
    return found


def measure(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Growth over the judged part, and the median there."""
    judged = list(points)[int(len(points) * WARM_UP) :]
    if len(judged) < 2:
        return 0.0, judged[-1][1] if judged else 0.0
    return compute_slope(judged) * (judged[-1][0] - judged[0][0]), statistics.median(value for _, value in judged)


def table(series: Series) -> str:
    """One line a series: first, median, last, growth."""
    lines = [f"{'series':<42}{'first':>13}{'median':>13}{'last':>13}{'growth':>12}"]
    for name, points in sorted(series.items()):
        growth, median = measure(points)
        scale, digits = (MB, 1) if name.endswith(("memory", "wal")) else (1, 0)
        shown = [points[0][1], median, points[-1][1], growth]
        if any(shown):
            cells = [f"{value / scale:,.{digits}f}" for value in shown]
            lines.append(f"{name:<42}{cells[0]:>13}{cells[1]:>13}{cells[2]:>13}{cells[3]:>12}")
    return "\n".join([*lines, "memory and wal in MiB"])


async def _run(home: Path, minutes: float, seed: int) -> tuple[Series, Record, str]:
    network = LiveNetwork(home, Size(audit_interval_s=AUDIT_S))
    configure_logs("soak", home / "soak.log", "info")
    record, series = Record(), Series()
    try:
        await network.start()
        await network.fill_purses()
        load = Load(network, record, seed, chats=CHATS, pause_s=PAUSE_S)
        await load.start()
        start_s = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0)) as session:
            while (now_s := time.monotonic() - start_s) < minutes * 60:
                for name, value in (await sample(network, session)).items():
                    series.setdefault(name, []).append((now_s, value))
                (home / "samples.json").write_text(json.dumps(series))
                await asyncio.sleep(SAMPLE_S - (time.monotonic() - start_s - now_s) % SAMPLE_S)
        await load.stop()
        await settle(network)
        result = await recount(network, record)
        figures = ", ".join(f"{name} {count:,}" for name, count in result.figures.items())
        for role in network.names_of("auditor"):
            network.signal(role, signal.SIGCONT)
        await network.stop()
    except (UnavailableNetwork, Unsettled, DeaiosError) as error:
        raise Finding(f"{error}, in {home}", f"python -m soak.live --traffic --minutes {minutes:g}") from error
    finally:
        await network.abort()
    if result.differences:
        raise Finding("; ".join(result.differences[:20]), f"python -m soak.live --traffic --minutes {minutes:g}")
    return series, record, figures


def run_traffic(folder: Path | None, minutes: float, seed: int, *, keep: bool) -> str:
    """Traffic without kills.

    Raises:
        Finding: something grew, or a sum differs.
    """
    home = folder or Path(tempfile.mkdtemp(prefix="deaios-traffic-"))
    series, record, figures = asyncio.run(_run(home, minutes, seed))
    print(table(series))
    print("recount: " + figures)
    print("clients: " + ", ".join(f"{name} {count}" for name, count in sorted(record.events.items())), flush=True)
    command = f"python -m soak.live --traffic --minutes {minutes:g}"
    if len(next(iter(series.values()))) < SAMPLES_MIN:
        return f"{minutes:g} minutes are too few to judge growth"
    if grown := judge(series):
        raise Finding("; ".join(grown), command)
    if not keep:
        shutil.rmtree(home)
    return f"{minutes:g} minutes of traffic, nothing grew"
