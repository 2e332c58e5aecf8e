"""Checking an answer file with the network's chain, the model's files and one engine; never with the gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deaios.alignment.answer import ANSWER_BYTES_MAX, Answer, decode_answer
from deaios.alignment.check import (
    BatchView,
    ChainView,
    Fact,
    Head,
    Outcome,
    check_binding,
    check_chain,
    check_delivery,
    check_question,
    check_tokens,
    collect,
    list_trusts,
)
from deaios.compute.engines import EngineKind
from deaios.compute.records import ModelRecord
from deaios.compute.sampling import seed_of
from deaios.compute.verification import Report, verify_output
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.descriptor import NetworkDescriptor, decode_descriptor
from deaios.ledger.structs import FinishReason
from deaios.ledger.suite import COMPUTE
from deaios.market.chat import read_chat_body
from deaios.node.config import EngineConfig, load_config
from deaios.node.engines import open_checked_engine
from deaios.node.folder import StateFolder
from deaios.node.joining import read_descriptor, validate_network
from deaios.node.member import network_domain
from deaios.node.models import ModelFiles, adopt_served_source, ensure_model, fetch_record
from deaios.node.status import read_status
from deaios.primitives.encoding import Json, decode_hex
from deaios.primitives.errors import ConfigError, DeaiosError, Invalid
from deaios.runtime.client import HttpClient
from deaios.storage.client import StorageClient

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check found; `headline` is its last line."""

    outcome: Outcome
    facts: tuple[Fact, ...]
    headline: str
    report: Report | None = None

    def by_head(self) -> list[tuple[Head, list[Fact]]]:
        """Facts under the heads that they rest on, in order."""
        return [(head, facts) for head in Head if (facts := [fact for fact in self.facts if fact.head is head])]

    def to_json(self) -> Json:
        """For scripts."""
        return {
            "outcome": self.outcome.name.lower(),
            "headline": self.headline,
            "tokensChecked": self.report.tokens_checked if self.report else 0,
            "marginMax": f"{self.report.margin_max:.6f}" if self.report else None,
            "facts": [
                {"rests_on": fact.head.value, "rule": fact.rule, "holds": fact.holds, "says": fact.says}
                for fact in self.facts
            ],
        }


async def verify_file(
    folder: StateFolder,
    file: Path,
    *,
    chain: str | None = None,
    descriptor: str | None = None,
    model: Path | None = None,
    engine: EngineKind | None = None,
    nonce: str | None = None,
    report: Tell = lambda _text: None,
) -> Verification:
    """Check a saved answer.

    Args:
        folder: state folder; need not belong to a network when `chain` or `descriptor` is given.
        file: the answer.
        chain: JSON-RPC URL to read from instead of the descriptor's.
        descriptor: file or URL of the network's descriptor.
        model: the model's shipped file, where it is at hand.
        engine: `llama` or `numpy` instead of the configured one.
        nonce: the nonce that the user sent, as hex.
        report: told of slow steps.

    Returns:
        Verified, violated, or unchecked with the reason; never an error for a bad file or an unreachable world.
    """
    try:
        answer = decode_answer(_read_bounded(file))
    except Invalid as error:
        fact = Fact(Head.PROVEN, "form", False, str(error))
        return Verification(Outcome.VIOLATED, (fact,), f"forgery or damage: {error}")
    try:
        user_nonce = None if nonce is None else decode_hex(nonce, 32)
        config = load_config(folder.root).engine
        async with _open_network(folder, chain, descriptor) as (http, rpc, network):
            return await _Check(folder, http, rpc, network, answer, config, engine, model, user_nonce, report).run()
    except DeaiosError as error:
        return Verification(Outcome.UNCHECKED, (), f"cannot be checked: {error}")


def _read_bounded(file: Path) -> bytes:
    try:
        with file.open("rb") as source:
            return source.read(ANSWER_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error}") from error


@asynccontextmanager
async def _open_network(
    folder: StateFolder, chain: str | None, source: str | None
) -> AsyncIterator[tuple[HttpClient, Rpc, NetworkDescriptor]]:
    async with HttpClient() as http:
        if source is not None:
            found = decode_descriptor(await read_descriptor(http, source))
        elif folder.descriptor_path.exists():
            found = folder.load_descriptor()
        elif chain is not None:
            found = decode_descriptor(await read_descriptor(http, f"{chain.rstrip('/')}/descriptor"))
        else:
            found = folder.load_descriptor()
        running = (await read_status(folder)).chain.url if source is None else ""
        async with Rpc(chain or running or found.rpc_urls[0]) as rpc:
            await validate_network(found, rpc)
            yield http, rpc, found


@dataclass(slots=True)
class _Check:
    """One check, step by step, cheapest first; stops at the first broken fact."""

    folder: StateFolder
    http: HttpClient
    rpc: Rpc
    network: NetworkDescriptor
    answer: Answer
    config: EngineConfig
    engine: EngineKind | None
    model: Path | None
    user_nonce: bytes | None
    report: Tell

    async def run(self) -> Verification:
        contracts = Contracts(self.rpc, self.network.contracts)
        facts = collect(check_binding(self.answer, self.network.network_id, network_domain(self.network)))
        if _broken(facts):
            return _violated(facts)
        record = await fetch_record(contracts, self.answer.opening.ask.model_record_id)
        files = await self._open_model(record)
        tokenizer, template = files.open_tokenizer(), files.open_template()
        facts += collect(
            check_question(self.answer, record, tokenizer, template), check_delivery(self.answer, tokenizer)
        )
        if _broken(facts):
            return _violated(facts)
        facts += collect(check_chain(self.answer, await self._read_chain(contracts)))
        if _broken(facts):
            return _violated(facts)
        report = await asyncio.to_thread(self._recompute, record, files)
        facts += collect(check_tokens(report), list_trusts(self.answer, self.user_nonce))
        if _broken(facts):
            return _violated(facts, report)
        says = f"verified: {report.tokens_checked} tokens, largest margin {report.margin_max:.4f} logit"
        return Verification(Outcome.VERIFIED, tuple(facts), says, report)

    async def _open_model(self, record: ModelRecord) -> ModelFiles:
        if self.model is not None:
            await asyncio.to_thread(adopt_served_source, self.folder, record, self.model)
        storage = None
        if self.network.storage_urls:
            storage = StorageClient(self.http, list(self.network.storage_urls), None, self.network.network_id)
        return await ensure_model(self.folder, record, storage, self.report)

    async def _read_chain(self, contracts: Contracts) -> ChainView:
        provider, index = self.answer.opening.request.provider, self.answer.batch_index
        batch = None
        if index < await contracts.receipts.batch_count(provider):
            found = await contracts.receipts.batch_at(provider, index)
            batch = BatchView(found.first_counter, found.last_counter, found.root)
        return ChainView(
            batch=batch,
            provider_is_registered=await contracts.identities.agent_of(provider) != 0,
            provider_stake=await contracts.staking.slice_of(COMPUTE, provider),
            provider_is_paused=await contracts.disputes.is_paused(provider),
            height=await self.rpc.block_number(),
        )

    def _recompute(self, record: ModelRecord, files: ModelFiles) -> Report:
        self.report("recomputing every token")
        opening = self.answer.opening
        tokenizer, template = files.open_tokenizer(), files.open_template()
        prompt_ids = template.render_ids(read_chat_body(self.answer.body).message_objects(), tokenizer)
        engine = open_checked_engine(self.config, files, sequences_max=1, kind=self.engine)
        try:
            return verify_output(
                engine,
                prompt_ids,
                opening.output_ids,
                opening.ask.params,
                seed_of(opening.ask),
                FinishReason(opening.receipt.finish_reason),
                opening.receipt.stop_index,
                record.thresholds,
                tokenizer,
            )
        finally:
            engine.close()


def _broken(facts: list[Fact]) -> bool:
    return any(not fact.holds for fact in facts)


def _violated(facts: list[Fact], report: Report | None = None) -> Verification:
    first = next(fact for fact in facts if not fact.holds)
    return Verification(Outcome.VIOLATED, tuple(facts), f"violation: {first.rule}: {first.says}", report)
