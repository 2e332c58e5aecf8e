"""Opening the engine that this machine's configuration asks for, and using it for checks."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deaios.alignment.evidence import Evidence
from deaios.compute.engine import Engine, RefusedEngine
from deaios.compute.engines import EngineKind, open_engine
from deaios.compute.records import ModelRecord
from deaios.compute.sampling import seed_of
from deaios.compute.selftest import read_known_answers, run_selftest
from deaios.compute.service import EngineService
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report
from deaios.ledger.structs import FinishReason
from deaios.node.config import EngineConfig
from deaios.node.models import ModelFiles


def count_threads(config: EngineConfig) -> int:
    """Threads for the arithmetic: as configured, or every core."""
    return config.threads or len(os.sched_getaffinity(0))


def open_configured_engine(
    config: EngineConfig, path: Path, *, sequences_max: int, kind: EngineKind | None = None
) -> Engine:
    """Load a model file, whatever it holds."""
    return open_engine(
        kind or config.kind,
        path,
        threads=count_threads(config),
        context_tokens=config.context_tokens,
        sequences_max=sequences_max,
    )


def open_checked_engine(
    config: EngineConfig, files: ModelFiles, *, sequences_max: int, kind: EngineKind | None = None
) -> Engine:
    """Load the served file of a record and refuse an engine whose numbers are off.

    Raises:
        RefusedEngine: the known-answer test failed.
    """
    answers = read_known_answers(files.record.tensors_root)
    if answers is None:
        raise RefusedEngine(
            f"no known answers of {files.record.name} to test an engine with; it cannot be verified here"
        )
    engine = open_configured_engine(config, files.served, sequences_max=sequences_max, kind=kind)
    try:
        run_selftest(engine, answers)
    except BaseException:
        engine.close()
        raise
    return engine


@asynccontextmanager
async def serving_engine(engine: Engine) -> AsyncIterator[EngineService]:
    """An engine on its own thread while the block runs."""
    service = EngineService(engine)
    try:
        yield service
    finally:
        await service.close()


class EngineRecheck:
    """Re-execution on an engine of this process."""

    def __init__(self, service: EngineService, record: ModelRecord, tokenizer: Tokenizer) -> None:
        self._service = service
        self._record = record
        self._tokenizer = tokenizer

    async def check(self, evidence: Evidence) -> Report:
        """One prefill over prompt and output; the margin of every token."""
        opening = evidence.opening
        return await self._service.verify(
            evidence.prompt_ids,
            opening.output_ids,
            opening.ask.params,
            seed_of(opening.ask),
            FinishReason(opening.receipt.finish_reason),
            opening.receipt.stop_index,
            self._record.thresholds,
            self._tokenizer,
        )

    async def replay(self, evidence: Evidence) -> bool | None:
        """Exact replay where this engine's profile is on the record's list; None elsewhere."""
        if self._service.engine.profile.digest() not in self._record.replay_profiles:
            return None
        opening = evidence.opening
        replay = await self._service.replay(
            evidence.prompt_ids, opening.output_ids, opening.ask.params, seed_of(opening.ask)
        )
        return replay.equal
