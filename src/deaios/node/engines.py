"""Opening the engine that this machine's configuration asks for, and using it for checks."""

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from deaios.compute.engine import Engine, RefusedEngine
from deaios.compute.engines import EngineKind, open_engine
from deaios.compute.gguf_file import read_model_file
from deaios.compute.room import compute_token_bytes, plan_room
from deaios.compute.selftest import run_selftest
from deaios.compute.service import EngineService
from deaios.node.config import EngineConfig
from deaios.node.folder import StateFolder
from deaios.node.models import ModelFiles
from deaios.node.passed import PassedChecks

CACHE_DIVISOR = 8
"""One engine on a machine takes an eighth of its memory for keys and values: the model and its users need the rest."""
SHARED_CACHE_DIVISOR = 32
"""Several engines are a whole local network beside other programs: together they take a thirty-second part."""


def count_threads(config: EngineConfig, sharing: int = 1) -> int:
    """Threads for the arithmetic: as configured, or this process's share of the cores.

    Args:
        config: what the operator chose; 0 threads means no choice.
        sharing: engines that run on this machine at once; threads that wait for a core cost more than they give.
    """
    return config.threads or max(1, len(os.sched_getaffinity(0)) // sharing)


def count_memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its control group's."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # cgroup v2; https://docs.kernel.org/admin-guide/cgroup-v2.html
    text = limit.read_text().strip() if limit.exists() else "max"
    return machine if text == "max" else min(machine, int(text))


def count_engines(folder: StateFolder) -> int:
    """Engines among the roles of a folder."""
    return max(1, sum(role.kind in ("provider", "auditor") for role in folder.load_roles()))


def open_configured_engine(
    config: EngineConfig, path: Path, *, sequences_max: int, sharing: int = 1, kind: EngineKind | None = None
) -> Engine:
    """Load a model file, whatever it holds; `sequences_max` 0 takes as many as the machine has room for."""
    threads = count_threads(config, sharing)
    room = plan_room(
        token_bytes=compute_token_bytes(read_model_file(path, wants_vocabulary=False)) if path.is_file() else 0,
        memory_bytes=count_memory_bytes() // (CACHE_DIVISOR if sharing == 1 else SHARED_CACHE_DIVISOR * sharing),
        threads=threads,
        context_tokens=config.context_tokens,
        sequences_max=sequences_max,
        tokens_max=config.tokens_max,
    )
    return open_engine(
        kind or config.kind,
        path,
        threads=threads,
        context_tokens=room.context_tokens,
        sequences_max=room.sequences_max,
        tokens_max=room.tokens_max,
    )


def open_checked_engine(
    config: EngineConfig, files: ModelFiles, *, sequences_max: int, sharing: int = 1, kind: EngineKind | None = None
) -> Engine:
    """Load the served file of a record and refuse an engine whose numbers are off; tested once per boot.

    Raises:
        RefusedEngine: the known-answer test failed.
    """
    known = files.read_known_answers()
    if known is None:
        raise RefusedEngine(
            f"no known answers of {files.record.name} to test an engine with; it cannot be verified here"
        )
    answers, deviation_max = known
    engine = open_configured_engine(config, files.served, sequences_max=sequences_max, sharing=sharing, kind=kind)
    with ExitStack() as stack:
        stack.callback(engine.close)
        shape = (
            engine.profile.digest().hex(),
            answers.tensors_root.hex(),
            engine.sequences_max,
            count_threads(config, sharing),
        )
        with PassedChecks(files.served.parent).once("selftest", files.served, *shape) as is_wanted:
            if is_wanted:
                run_selftest(engine, answers, deviation_max)
        stack.pop_all()
    return engine


@asynccontextmanager
async def serving_engine(engine: Engine, *, cache_bytes_max: int = 0) -> AsyncIterator[EngineService]:
    """An engine on its own thread while the block runs, with so much memory for beginnings of prompts."""
    service = EngineService(engine, cache_bytes_max=cache_bytes_max)
    try:
        yield service
    finally:
        await service.close()
