"""A chain with a million storage words: what it takes on disk and in memory, and how long it starts after a kill."""

import statistics
import time
from pathlib import Path

import psutil

from bench.chain_load import CREDIT, GENESIS
from bench.processes import Server, serving
from deaios.chain.blocks import header_record
from deaios.chain.builder import Execution, next_context
from deaios.chain.evm import State
from deaios.chain.genesis import build_genesis_changes, build_genesis_commitment, build_genesis_header
from deaios.chain.store import ChainStore
from deaios.chain.strict import StrictEvm
from deaios.ledger.eip712 import hash_struct
from deaios.primitives.hashing import blake3_256

SLOTS = 1_000_000
STARTS = 3


def build_chain(path: Path, slots: int) -> None:
    """Block 0, and a block that writes so many words of one contract; places as random as those of a mapping."""
    changes = build_genesis_changes(GENESIS)
    commitment = build_genesis_commitment(changes)
    first = build_genesis_header(GENESIS, commitment)
    state, evm = State(), StrictEvm(GENESIS.chain_id, GENESIS.gas_limit)
    store = ChainStore(path)
    try:
        store.create(GENESIS, first, changes, commitment, hash_struct(header_record(first.hash, first)))
        state.apply(changes)
        evm.load(state)
        for number in range(slots):
            evm.put_slot(CREDIT, int.from_bytes(blake3_256(number.to_bytes(8))), 10**18 + number)
        built = Execution(evm, next_context(first, first.timestamp)).seal(state, commitment, first)
        digest = hash_struct(header_record(first.hash, built.block.header))
        store.append(built.block, built.changes, built.commitment, digest, ())
    finally:
        store.close()


def restart(folder: Path) -> tuple[float, float]:
    """Seconds until a server answers after its predecessor was killed, and its memory in MiB."""
    with serving("chain", folder) as server:
        server.process.kill()
        server.process.wait()
    started_s = time.monotonic()
    with serving("chain", folder) as server:
        return time.monotonic() - started_s, memory_mib(server)


def measure_restarts(folder: Path, slots: int = SLOTS) -> tuple[list[float], float, float]:
    """Seconds of each start, memory in MiB and bytes on disk per word."""
    folder.mkdir()
    build_chain(folder / "chain.db", slots)
    found = [restart(folder) for _ in range(STARTS)]
    size = sum(path.stat().st_size for path in folder.iterdir())
    return [seconds for seconds, _ in found], statistics.median(memory for _, memory in found), size / slots


def memory_mib(server: Server) -> float:
    """Resident memory of a server."""
    return psutil.Process(server.process.pid).memory_info().rss / 2**20
