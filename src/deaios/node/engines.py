"""Opening the engine that this machine's configuration asks for, and using it for checks."""

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from deaios.compute.engine import Engine, RefusedEngine
from deaios.compute.engines import EngineKind, open_engine
from deaios.compute.selftest import run_selftest
from deaios.compute.service import EngineService
from deaios.node.config import EngineConfig
from deaios.node.folder import StateFolder
from deaios.node.models import ModelFiles
from deaios.node.passed import PassedChecks


def count_threads(config: EngineConfig, sharing: int = 1) -> int:
    """Threads for the arithmetic: as configured, or this process's share of the cores.

    Args:
        config: what the operator chose; 0 threads means no choice.
        sharing: engines that run on this machine at once; threads that wait for a core cost more than they give.
    """
    return config.threads or max(1, len(os.sched_getaffinity(0)) // sharing)


def count_engines(folder: StateFolder) -> int:
    """Engines among the roles of a folder."""
    return max(1, sum(role.kind in ("provider", "auditor") for role in folder.load_roles()))


def open_configured_engine(
    config: EngineConfig, path: Path, *, sequences_max: int, sharing: int = 1, kind: EngineKind | None = None
) -> Engine:
    """Load a model file, whatever it holds."""
    return open_engine(
        kind or config.kind,
        path,
        threads=count_threads(config, sharing),
        context_tokens=config.context_tokens,
        sequences_max=sequences_max,
        tokens_max=min(config.tokens_max, config.context_tokens * sequences_max),
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
async def serving_engine(engine: Engine) -> AsyncIterator[EngineService]:
    """An engine on its own thread while the block runs."""
    service = EngineService(engine)
    try:
        yield service
    finally:
        await service.close()
