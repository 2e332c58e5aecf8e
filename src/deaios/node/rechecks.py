"""What an auditor can re-execute beside its own model: any record that fits, one at a time.

Invariant: one further model is loaded at most, and none whose files exceed the bound; what cannot be had is an
`Unavailable…`, so that a juror abstains instead of acquitting. The auditor's own model stays loaded and is never waited
for.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from deaios.alignment.auditor.service import AuditedModel
from deaios.alignment.evidence import Evidence
from deaios.alignment.recheck.service import EngineRecheck
from deaios.compute.records import ModelRecord
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report
from deaios.market.directory.client import Directory
from deaios.market.question import Question
from deaios.node.config import EngineConfig
from deaios.node.engines import open_checked_engine, serving_engine
from deaios.node.folder import StateFolder
from deaios.node.member import Member
from deaios.node.models import ModelFiles, UnavailableModelFiles, ensure_model, fetch_record, sort_files
from deaios.node.network import open_storage
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import DeaiosError
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

RETRY_S: Final = 600.0
"""Before a model that could not be audited is drawn again."""
SKIPPED_MAX: Final = 1024

_log = get_logger("rechecks")


def describe_model(record_id: bytes, files: ModelFiles, tokenizer: Tokenizer) -> AuditedModel:
    """A model as auditors buy it."""
    template = files.open_template()

    def render(question: Question) -> tuple[tuple[int, ...], bytes]:
        ids = question.prompt_ids(
            lambda messages, tools: template.render_ids(messages, tokenizer, tools=tools), tokenizer
        )
        return ids, question.context(template.template_hash, tokenizer.tokenizer_hash)

    return AuditedModel(record_id, files.record.name, files.record.context_tokens, render)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A further model that is loaded now."""

    record_id: bytes
    model: AuditedModel
    recheck: EngineRecheck
    stack: AsyncExitStack


@dataclass(slots=True)
class Rechecks:
    """Re-execution by record: `alignment.ports.Recheck`, and a draw of what to audit next.

    Attributes:
        own_record_id: of the model that stays loaded.
        own: its recheck.
        bytes_max: largest model file that is fetched beside.
    """

    own_record_id: bytes
    own: EngineRecheck
    member: Member
    folder: StateFolder
    directory: Directory
    config: EngineConfig
    clock: Clock
    bytes_max: int
    sharing: int
    _loaded: _Loaded | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _skipped: dict[bytes, float] = field(default_factory=dict)

    async def close(self) -> None:
        """Unload the further model."""
        async with self._turn:
            await self._unload()

    async def check(self, evidence: Evidence) -> Report:
        """One prefill with the model that was ordered.

        Raises:
            Unavailable: it cannot be loaded here.
        """
        record_id = evidence.opening.ask.model_record_id
        if record_id == self.own_record_id:
            return await self.own.check(evidence)
        async with self._turn:
            return await (await self._load(record_id)).recheck.check(evidence)

    async def replay(self, evidence: Evidence) -> bool | None:
        """Exact replay with the model that was ordered, where it can be had.

        Raises:
            Unavailable: it cannot be loaded here.
        """
        record_id = evidence.opening.ask.model_record_id
        if record_id == self.own_record_id:
            return await self.own.replay(evidence)
        async with self._turn:
            return await (await self._load(record_id)).recheck.replay(evidence)

    async def draw(self, number: int) -> AuditedModel | None:
        """A model to audit next, each that is offered equally often; None for the own one.

        Args:
            number: a random number.
        """
        now_s = self.clock.monotonic_s()
        offered = {item.signed_offer.offer.model_record_id for item in await self.directory.fetch_candidates()}
        others = sorted(
            item for item in offered if item != self.own_record_id and now_s >= self._skipped.get(item, 0.0)
        )
        place = number % (len(others) + 1)
        if place == len(others):
            return None
        try:
            async with self._turn:
                return (await self._load(others[place])).model
        except DeaiosError as error:
            while len(self._skipped) >= SKIPPED_MAX:
                del self._skipped[next(iter(self._skipped))]
            self._skipped[others[place]] = now_s + RETRY_S
            _log.info("model not audited", record=encode_hex(others[place]), reason=str(error))
            return None

    async def _load(self, record_id: bytes) -> _Loaded:
        if self._loaded is not None and self._loaded.record_id == record_id:
            return self._loaded
        await self._unload()
        record = await fetch_record(self.member.contracts, record_id)
        self._validate_size(record)
        files = await ensure_model(self.folder, record, await open_storage(self.member, self.clock), _log.info)
        if not await asyncio.to_thread(lambda: files.open_template().source):
            raise UnavailableModelFiles(f"{record.name} has no chat template; auditors ask by chat only")
        tokenizer = await asyncio.to_thread(files.open_tokenizer)
        async with AsyncExitStack() as stack:
            engine = await asyncio.to_thread(
                open_checked_engine, self.config, files, sequences_max=1, sharing=self.sharing
            )
            service = await stack.enter_async_context(serving_engine(engine))
            model = describe_model(record_id, files, tokenizer)
            recheck = EngineRecheck(service, record, tokenizer)
            self._loaded = _Loaded(record_id, model, recheck, stack.pop_all())
        _log.info("model loaded", record=encode_hex(record_id), name=record.name)
        return self._loaded

    def _validate_size(self, record: ModelRecord) -> None:
        size_bytes = sort_files(record).model.size_bytes
        if size_bytes > self.bytes_max:
            raise UnavailableModelFiles(f"{record.name} has {size_bytes:,} bytes, {self.bytes_max:,} are audited here")

    async def _unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            await loaded.stack.aclose()
