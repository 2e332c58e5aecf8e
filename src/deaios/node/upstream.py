"""Selling what somebody else's server computes: opened, tried against the record's weights, and served.

Invariant: an offer of level 1 or 2 is posted only after an answer of the server passed the check that buyers and juries
run, on this machine and with the record's own weights. What fails it would be slashed later.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from deaios.alignment.evidence import Evidence
from deaios.alignment.recheck.service import EngineRecheck
from deaios.compute.embedding import RefusedEmbedding, is_embedding
from deaios.compute.engine import Engine
from deaios.compute.engines.upstream.client import Upstream, UpstreamChoice, open_upstream
from deaios.compute.engines.upstream.dialects import Dialect, RefusedUpstream
from deaios.compute.records import UNAUDITABLE, ModelRecord
from deaios.compute.service import EngineService
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report, verify_output
from deaios.ledger.structs import GREEDY, FinishReason, Level, Params
from deaios.market.ports import Assignment, Generate, Piece
from deaios.node.config import EngineConfig
from deaios.node.engines import open_checked_engine, serving_engine
from deaios.node.folder import UpstreamSpec
from deaios.node.models import ModelFiles
from deaios.primitives.errors import ConfigError
from deaios.primitives.hashing import ZERO32
from deaios.runtime.client import STREAM_S, HttpClient

TRIAL_TEXT = "The lighthouse keeper's log, first page. Weather:"
TRIAL_TOKENS = 32
TRIAL_SEED = bytes(range(32))
TRIAL_TEMPERATURE_MILLI = 800
KEY_BYTES_MAX = 4096

FetchFiles = Callable[[], Awaitable[ModelFiles]]
"""Where the record's weights come from, for those who need them."""


def read_choice(spec: UpstreamSpec) -> UpstreamChoice:
    """What the operator said, with the key from its file.

    Raises:
        ConfigError: the key file or the dialect.
    """
    if spec.dialect and spec.dialect not in set(Dialect):
        raise ConfigError(f"--upstream-dialect {spec.dialect!r} is not known; known: {', '.join(Dialect)}")
    return UpstreamChoice(
        url=spec.url,
        model=spec.model,
        api_key=_read_key(Path(spec.key_file)) if spec.key_file else "",
        dialect=Dialect(spec.dialect) if spec.dialect else None,
        level=None if spec.level is None else Level(spec.level),
    )


def _read_key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            key = file.read(KEY_BYTES_MAX + 1).strip().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--upstream-key-file {path} cannot be read: {error}") from error
    if not key or not key.isprintable() or len(key) > KEY_BYTES_MAX:
        raise ConfigError(f"--upstream-key-file {path} holds no API key on one line")
    return key


@asynccontextmanager
async def serving_upstream(
    spec: UpstreamSpec, record: ModelRecord, tokenizer: Tokenizer, fetch_files: FetchFiles, config: EngineConfig
) -> AsyncIterator[tuple[Upstream, "LateRecheck"]]:
    """A tried server while the block runs, and the means to defend its answers.

    Raises:
        ConfigError: the operator's to mend; says how.
        UnavailableUpstream: it cannot be reached.
    """
    async with HttpClient(total_s=STREAM_S) as http, contextlib.AsyncExitStack() as stack:
        upstream = await open_upstream(http, read_choice(spec), tokenizer)
        if upstream.level > Level.SIGNED:
            if record.serving == UNAUDITABLE:
                raise ConfigError(f"nobody can check answers of {record.name}, which is unauditable: offer --level 0")
            report = await _try_answer(upstream, await fetch_files(), tokenizer, config)
            if not report.ok:
                found = report.violations[0]
                raise ConfigError(
                    f"--upstream fails the check that buyers run, at token {found.position}: {found.detail}; it does "
                    f"not compute {record.name} as its record says. Offer it with --level 0, or serve the "
                    "record's own file"
                )
        yield upstream, LateRecheck(fetch_files, tokenizer, config, stack)


async def _try_answer(upstream: Upstream, files: ModelFiles, tokenizer: Tokenizer, config: EngineConfig) -> Report:
    """One short answer, checked with the record's weights as a buyer would."""
    prompt = tokenizer.encode_plain(TRIAL_TEXT)
    temperature = TRIAL_TEMPERATURE_MILLI if upstream.level >= Level.SEEDED else GREEDY
    params = Params(temperature, 0, 1000, TRIAL_TOKENS, (), (), ZERO32)
    ids: list[int] = []
    finish, stop_index = FinishReason.FAILED, 0
    async with aclosing(upstream.generate(prompt, params, TRIAL_SEED)) as answer:
        async for sampled in answer:
            ids.append(sampled.token)
            if sampled.finish is not None:
                finish, stop_index = sampled.finish, sampled.stop_index

    def check() -> Report:
        engine = open_checked_engine(config, files, sequences_max=1)
        try:
            return verify_output(
                engine, prompt, ids, params, TRIAL_SEED, finish, stop_index, files.record.thresholds, tokenizer
            )
        finally:
            engine.close()

    return await asyncio.to_thread(check)


def sell(upstream: Upstream) -> Generate:
    """The server behind the seller's port."""

    async def generate(wanted: Assignment) -> AsyncIterator[Piece]:
        # a prefix is not read: the server samples the whole answer anew, and the desk compares
        if is_embedding(wanted.params):
            raise RefusedEmbedding("the server behind this provider makes no embeddings that can be checked")
        if wanted.constraint is not None:
            raise RefusedUpstream("the server behind this provider cannot hold an answer to a schema or to tools")
        stream = upstream.generate(wanted.prompt_ids, wanted.params, wanted.seed, wanted.logprobs)
        async with aclosing(stream):
            async for sampled in stream:
                yield Piece(sampled.token, sampled.finish, sampled.stop_index)

    return generate


class LateRecheck:
    """Re-execution with an engine that is loaded when a dispute first asks for it: weights cost memory."""

    def __init__(
        self, fetch_files: FetchFiles, tokenizer: Tokenizer, config: EngineConfig, stack: contextlib.AsyncExitStack
    ) -> None:
        self._fetch_files = fetch_files
        self._tokenizer = tokenizer
        self._config = config
        self._stack = stack
        self._lock = asyncio.Lock()
        self._recheck: EngineRecheck | None = None

    async def _open(self) -> EngineRecheck:
        async with self._lock:
            if self._recheck is None:
                files = await self._fetch_files()
                engine: Engine = await asyncio.to_thread(open_checked_engine, self._config, files, sequences_max=1)
                service: EngineService = await self._stack.enter_async_context(serving_engine(engine))
                self._recheck = EngineRecheck(service, files.record, self._tokenizer)
            return self._recheck

    async def check(self, evidence: Evidence) -> Report:
        """As `EngineRecheck.check`."""
        return await (await self._open()).check(evidence)

    async def replay(self, evidence: Evidence) -> bool | None:
        """As `EngineRecheck.replay`."""
        return await (await self._open()).replay(evidence)
