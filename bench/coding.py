"""The coding rows: encode, verify and decode against one SHA-256 pass over the same payload, and against KZG."""

import asyncio
import hashlib
import importlib.util
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.environment import AbsentPeer, install
from bench.processes import running
from bench.rows import Row, Run, compare, cpu_seconds, skip
from deaios.coding.kernels.tiers import TIER_VARIABLE, Tier, get_tier
from deaios.coding.matrix import RowVerifier, decode, encode, prove_row
from deaios.coding.parameters import Profile

MIB = 1 << 20
SIZE = 16 * MIB
PROFILE = Profile(64, 128)
PEER = "SHA-256, one pass"
UNIT = "MiB/CPU-s"
BLOB_BYTES = 128 << 10
SPIN_S = 0.3
SPINNERS_MIN = 1.8
"""Two idle spinners below this share a core with somebody; two of our threads would measure that somebody."""


def build_payload() -> bytes:
    return random.Random(1).randbytes(SIZE)


def measure(run: Run) -> Iterator[Row]:
    data = build_payload()
    yield from _measure_passes(run, data)
    if run.wants("coding.encode_commit_portable"):
        yield _measure_portable(run, data)
    if run.wants("coding.encode_commit_vs_kzg"):
        yield _measure_kzg(run, data)
    if run.wants("coding.two_threads"):
        yield _measure_threads(run, data)


def _measure_passes(run: Run, data: bytes) -> Iterator[Row]:
    matrix = encode(data, PROFILE)
    chosen = random.Random(2).sample(range(PROFILE.rows), PROFILE.data_rows)
    rows = {index: bytes(matrix.get_row(index)) for index in chosen}
    proofs = {index: prove_row(matrix, index) for index in chosen}

    def verify_all() -> None:
        verifier = RowVerifier(matrix.commitment, matrix.head)
        assert all(verifier.verify(index, rows[index], proofs[index]) for index in chosen)

    def decode_all() -> None:
        decode(matrix.head.parameters, rows)

    row_bytes = sum(map(len, rows.values()))
    works: tuple[tuple[str, Callable[[], object], int], ...] = (
        ("coding.encode_commit", lambda: encode(data, PROFILE), SIZE),
        ("coding.verify_row", verify_all, row_bytes),
        ("coding.decode_random", decode_all, SIZE),
    )
    for name, work, payload in works:
        if not run.wants(name):
            continue
        if name == "coding.encode_commit" and get_tier() == Tier.PORTABLE:
            yield skip(name, "this machine has no native tier: neither AVX2 nor AVX-512 with GFNI")
            continue
        both = {"ours": cpu_seconds(work), "peer": cpu_seconds(lambda: hashlib.sha256(data).digest())}
        found = asyncio.run(run.interleave(name, both, 9))
        ours = [payload / MIB / seconds for seconds in found["ours"]]
        theirs = [SIZE / MIB / seconds for seconds in found["peer"]]
        yield compare(name, UNIT, ours, PEER, theirs, f"the {get_tier()} tier")


def _measure_portable(run: Run, data: bytes) -> Row:
    name = "coding.encode_commit_portable"
    environment = os.environ | {TIER_VARIABLE: Tier.PORTABLE}
    with _worker([sys.executable, "-m", "bench.coding_worker"], environment) as code:

        async def ours() -> float:
            return code()

        works = {"ours": ours, "peer": cpu_seconds(lambda: hashlib.sha256(data).digest())}
        found = asyncio.run(run.interleave(name, works, 9))
    speeds = {who: [SIZE / MIB / seconds for seconds in found[who]] for who in works}
    return compare(name, UNIT, speeds["ours"], PEER, speeds["peer"])


def _measure_kzg(run: Run, data: bytes) -> Row:
    name = "coding.encode_commit_vs_kzg"
    try:
        python = install(run.say) / "python"
    except AbsentPeer as reason:
        return skip(name, str(reason))
    spec = importlib.util.find_spec("eth_account.typed_transactions")
    setup = None if spec is None or spec.origin is None else Path(spec.origin).parent
    setup = setup and setup / "blob_transactions" / "kzg_trusted_setup.txt"
    if setup is None or not setup.exists():
        return skip(name, "the ceremony's trusted setup is not there: the ckzg wheel ships none, eth-account does")
    # A field element holds 31 of our bytes below a zero byte: KZG cannot carry 32.
    elements = (b"\x00" + data[start : start + 31] for start in range(0, BLOB_BYTES // 32 * 31, 31))
    with _kzg(python, setup, b"".join(elements)) as prove:

        async def peer() -> float:
            return prove()

        works = {"ours": cpu_seconds(lambda: encode(data, PROFILE)), "peer": peer}
        found = asyncio.run(run.interleave(name, works, 5))
    ours = [SIZE / MIB / seconds for seconds in found["ours"]]
    payload = BLOB_BYTES // 32 * 31 / MIB
    theirs = [payload / seconds for seconds in found["peer"]]
    return compare(name, UNIT, ours, "ckzg, commitment and cell proofs", theirs, f"ours is the {get_tier()} tier")


@contextmanager
def _kzg(python: Path, setup: Path, blob: bytes) -> Iterator[Callable[[], float]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blob"
        path.write_bytes(blob)
        with _worker([python, Path(__file__).with_name("kzg_peer.py"), setup, path], os.environ) as prove:
            yield prove


@contextmanager
def _worker(command: Sequence[str | Path], environment: Mapping[str, str]) -> Iterator[Callable[[], float]]:
    """A process that works once for each line it is sent, and answers with its CPU seconds."""
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, environment=environment) as process:
        assert process.stdin
        assert process.stdout
        source, sink = process.stdout, process.stdin
        assert source.readline() == b"ready\n"

        def work() -> float:
            sink.write(b"\n")
            sink.flush()
            return float(source.readline())

        yield work


def _measure_threads(run: Run, data: bytes) -> Row:
    """Wall time of two encodings by one thread over that by two."""
    name = "coding.two_threads"
    spinners = _count_spinners()
    if spinners < SPINNERS_MIN:
        return skip(
            name, f"two idle spinners reach {spinners:.2f} of one, below {SPINNERS_MIN}: no two free cores here"
        )

    async def one() -> float:
        start = time.perf_counter()
        encode(data, PROFILE)
        encode(data, PROFILE)
        return 2 / (time.perf_counter() - start)

    async def two() -> float:
        threads = [threading.Thread(target=encode, args=(data, PROFILE)) for _ in range(2)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 2 / (time.perf_counter() - start)

    found = asyncio.run(run.interleave(name, {"two": two, "one": one}, 7))
    note = f"two idle spinners reach {spinners:.2f}"
    return compare(name, "encodings/s", found["two"], "one thread, the same work", found["one"], note)


def _count_spinners() -> float:
    """How much more two processes count than one in the same time."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_spin, [0.01, 0.01])
        alone = max(pool.apply(_spin, (SPIN_S,)) for _ in range(2))
        return max(sum(pool.map(_spin, [SPIN_S, SPIN_S], chunksize=1)) for _ in range(2)) / alone


def _spin(seconds: float) -> int:
    end = time.perf_counter() + seconds
    count = 0
    while time.perf_counter() < end:
        count += 1
    return count
