"""A folder's chain as files: which one is here, out into an archive, in from one, checked, described.

A folder holds the chain that its network's operator makes (`roles/chain`), a copy that follows another
(`roles/follower`), or both. Archives are read into the copy only: a chain whose operator signs on needs its own file,
because an older state of it would be signed over twice.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

from deaios.chain.genesis import compute_genesis_hash
from deaios.chain.service.archive import Exported, Imported, Report, export_archive, import_archive
from deaios.chain.service.inspection import Checked, check_chain
from deaios.chain.store import ChainStore, holds_chain
from deaios.ledger.client.rpc import Rpc
from deaios.node.folder import StateFolder
from deaios.node.following import NAME, database_of, find_anchor, load_source
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, DeaiosError
from deaios.runtime.clock import SystemClock

Role = Literal["chain", "follower"]
THREADS = 4
PROBE_S = 3.0


class ChainFile(msgspec.Struct, frozen=True):
    """One chain of a folder.

    Attributes:
        oldest_block: the first whose transactions and logs are kept.
        unsigned: blocks at the end without a signature yet.
        url: JSON-RPC where it runs; empty when it is stopped.
        source: what a copy follows; empty for the operator's own.
        source_height: None when the source cannot be reached.
        trouble: why a follower ended last.
    """

    role: Role
    file: str
    size_bytes: int
    genesis_hash: str
    chain_id: int
    operator: str
    height: int
    hash: str
    timestamp: int
    state_commitment: str
    oldest_block: int
    unsigned: int
    url: str = ""
    source: str = ""
    source_height: int | None = None
    trouble: str = ""


def find_database(folder: StateFolder, role: Role | None) -> Path:
    """The file of a folder's chain.

    Args:
        folder: where it is looked for.
        role: which one; the operator's own where there is one, else the copy.

    Raises:
        ConfigError: there is none; says how to get one.
    """
    roles: tuple[Role, ...] = ("chain", "follower") if role is None else (role,)
    for name in roles:
        if holds_chain(path := folder.role(name) / "chain.db"):
            return path
    raise ConfigError(
        f"{folder.root} holds no {' or '.join(roles)}; `deaios up` makes a chain, `deaios chain follow URL` copies one"
    )


async def export_history(
    folder: StateFolder,
    target: Path,
    role: Role | None,
    *,
    first: int | None,
    last: int | None,
    is_state: bool,
    report: Report,
) -> Exported:
    """Write the folder's chain into an archive; see `export_archive`."""
    return await export_archive(
        find_database(folder, role), target, first=first, last=last, is_state=is_state, report=report
    )


async def import_history(folder: StateFolder, source: Path, genesis_hash: bytes | None, report: Report) -> Imported:
    """Read an archive into the folder's copy; see `import_archive`.

    Raises:
        RefusedRunning: a follower runs in this folder.
    """
    with folder.lock(NAME), ThreadPoolExecutor(THREADS, thread_name_prefix="import") as executor:
        return await import_archive(
            source,
            database_of(folder),
            find_anchor(folder, genesis_hash),
            executor=executor,
            clock=SystemClock(),
            report=report,
        )


async def check_history(folder: StateFolder, role: Role | None, *, is_executing: bool, report: Report) -> Checked:
    """Check the folder's chain; see `check_chain`."""
    return await check_chain(find_database(folder, role), is_executing=is_executing, report=report)


async def describe_chains(folder: StateFolder) -> list[ChainFile]:
    """Every chain of the folder."""
    found = []
    roles: tuple[Role, ...] = ("chain", "follower")
    for role in roles:
        path = folder.role(role) / "chain.db"
        if holds_chain(path):
            found.append(await _describe(folder, role, path))
    return found


async def _describe(folder: StateFolder, role: Role, path: Path) -> ChainFile:
    store = ChainStore(path)
    try:
        genesis, unsigned = store.load_genesis(), len(store.unsigned_heights())
        with store.snapshot():
            head, oldest = store.fetch_head(), store.oldest_block()
    finally:
        store.close()
    assert genesis is not None, "the caller saw a chain in it"
    assert head is not None, "a chain has a head"
    state = folder.load_run_state(role)
    is_running = state is not None and state.is_alive and state.state == "running"
    source = load_source(folder) if role == NAME else ""
    return ChainFile(
        role=role,
        file=str(path),
        size_bytes=sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*")),
        genesis_hash=encode_hex(compute_genesis_hash(genesis)),
        chain_id=genesis.chain_id,
        operator=encode_hex(genesis.operator),
        height=head.number,
        hash=encode_hex(head.hash),
        timestamp=head.timestamp,
        state_commitment=encode_hex(head.state_commitment),
        oldest_block=oldest,
        unsigned=unsigned,
        url=state.url if state is not None and is_running else "",
        source=source,
        source_height=await _fetch_height(source) if source else None,
        trouble=state.reason if state is not None and not is_running else "",
    )


async def _fetch_height(url: str) -> int | None:
    async with Rpc(url, attempts=1, total_s=PROBE_S) as rpc:
        try:
            return await rpc.block_number()
        except DeaiosError:
            return None
