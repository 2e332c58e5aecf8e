"""Checking an answer file with the network's chain, the model's files and one engine; never with the gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deaios.alignment.answer import ANSWER_BYTES_MAX, Answer, decode_answer
from deaios.alignment.attested import add_quote
from deaios.alignment.check import BatchView, ChainView, NetworkTerms
from deaios.alignment.evidence import prints_of
from deaios.alignment.examination import examine
from deaios.alignment.facts import Fact, Head, Outcome, Verification
from deaios.compute.attestation import Finding, Standing
from deaios.compute.embedding import RefusedEmbedding, is_embedding
from deaios.compute.embedding_check import verify_vector
from deaios.compute.engine import EmbeddingEngine
from deaios.compute.engines import EngineKind
from deaios.compute.fingerprints import owes_replay
from deaios.compute.masking import compile_mask
from deaios.compute.records import UNAUDITABLE, ModelRecord
from deaios.compute.sampling import seed_of
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.verification import Report, replay_output, verify_output
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.descriptor import NetworkDescriptor, decode_descriptor
from deaios.ledger.structs import FinishReason
from deaios.ledger.suite import COMPUTE
from deaios.node.attesting import QuoteFiles
from deaios.node.config import EngineConfig, load_config
from deaios.node.engines import open_checked_engine
from deaios.node.folder import StateFolder
from deaios.node.joining import read_descriptor, validate_network
from deaios.node.member import network_domain, open_rpc
from deaios.node.models import ModelFiles, adopt_served_source, ensure_language, ensure_model, fetch_record
from deaios.node.status import read_status
from deaios.primitives.errors import ConfigError, DeaiosError, Invalid
from deaios.runtime.client import HttpClient
from deaios.storage.client import StorageClient

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Attested:
    """A quote, and the SHA-256 of the image that its machine is said to run."""

    files: QuoteFiles
    image: bytes

    async def check(self, answer: Answer, world: "_World") -> tuple[Finding, ...]:
        """Findings about the quote, as one for the provider's key and the model that was ordered."""
        opening = answer.opening
        try:
            record = await world.fetch_record(opening.ask.model_record_id)
        except DeaiosError as error:  # what the answer's own check found stands all the same
            return (Finding("quote", Standing.UNCHECKED, str(error)),)
        return self.files.check_for(opening.request.provider, record.tensors_root, self.image)


async def verify_file(
    folder: StateFolder,
    file: Path,
    *,
    chain: str | None = None,
    descriptor: str | None = None,
    model: Path | None = None,
    engine: EngineKind | None = None,
    nonce: bytes | None = None,
    attested: "Attested | None" = None,
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
        nonce: the nonce that the user sent.
        attested: a quote of the provider's machine, whose facts are added to the others.
        report: told of slow steps.

    Returns:
        Verified, violated, or unchecked with the reason; never an error for a bad file or an unreachable world.
    """
    try:
        answer = decode_answer(_read_bounded(file))
    except Invalid as error:
        fact = Fact(Head.PROVEN, "form", False, str(error))
        return Verification(Outcome.VIOLATED, (fact,), f"forgery or damage: {error}")
    except ConfigError as error:
        return Verification(Outcome.UNCHECKED, (), f"cannot be checked: {error}")
    try:
        config = load_config(folder.root).engine
        async with _open_network(folder, chain, descriptor) as (http, rpc, network):
            world = _World(folder, http, rpc, network, config, engine, model, report)
            terms = NetworkTerms(network.network_id, network_domain(network), network.default_model_record_id)
            result = await examine(answer, terms, world, nonce)
            return result if attested is None else add_quote(result, await attested.check(answer, world))
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
        async with open_rpc(found, chain or running or None) as rpc:
            await validate_network(found, rpc)
            yield http, rpc, found


@dataclass(slots=True)
class _World:
    """Catalogue and chain behind one RPC, model files of a folder, an engine of this process."""

    folder: StateFolder
    http: HttpClient
    rpc: Rpc
    network: NetworkDescriptor
    config: EngineConfig
    engine: EngineKind | None
    model: Path | None
    report: Tell
    files: ModelFiles | None = None

    @property
    def contracts(self) -> Contracts:
        """The network's contracts, as of the newest block that no reorganisation takes back."""
        return Contracts(self.rpc, self.network.contracts).settled

    async def fetch_record(self, record_id: bytes) -> ModelRecord:
        """The record as the catalogue tells it."""
        return await fetch_record(self.contracts, record_id)

    async def open_model(self, record: ModelRecord) -> tuple[Tokenizer, ChatTemplate]:
        """Tokenizer and template of the record's files, which are fetched where they are missing."""
        if record.serving == UNAUDITABLE:
            return await ensure_language(self.folder, record, self._open_storage(), self.report)
        files = await self._ensure_files(record)
        return files.open_tokenizer(), files.open_template()

    async def _ensure_files(self, record: ModelRecord) -> ModelFiles:
        if self.files is None or self.files.record != record:
            self.files = await self._fetch_files(record)
        return self.files

    async def _fetch_files(self, record: ModelRecord) -> ModelFiles:
        if self.model is not None:
            await asyncio.to_thread(adopt_served_source, self.folder, record, self.model)
        return await ensure_model(self.folder, record, self._open_storage(), self.report)

    def _open_storage(self) -> StorageClient | None:
        if not self.network.storage_urls:
            return None
        return StorageClient(self.http, list(self.network.storage_urls), None, self.network.network_id)

    async def read_chain(self, answer: Answer) -> ChainView:
        """What the chain says, at or after its height when this began."""
        contracts, opening = self.contracts, answer.opening
        provider = opening.request.provider
        height = await self.rpc.settled.block_number()
        batch = None
        if answer.batch_index < await contracts.receipts.batch_count(provider):
            found = await contracts.receipts.batch_at(provider, answer.batch_index)
            batch = BatchView(found.first_counter, found.last_counter, found.root, found.block_time)
        anchor = await self.rpc.get_block_by_hash(opening.request.anchor_block_hash)
        return ChainView(
            height=height,
            batch=batch,
            anchor_height=None if anchor is None else anchor.number,
            provider_is_registered=await contracts.identities.agent_of(provider) != 0,
            provider_stake=await contracts.staking.slice_of(COMPUTE, provider),
            provider_slashed=await contracts.staking.slashed_of(COMPUTE, provider),
            provider_is_paused=await contracts.disputes.is_paused(provider),
            receipt_is_convicted=await contracts.disputes.is_convicted(opening.receipt_digest),
        )

    async def recompute(self, answer: Answer, record: ModelRecord, prompt_ids: Sequence[int]) -> Report:
        """One prefill on an engine that is opened for it."""
        self.report("recomputing every token")
        return await asyncio.to_thread(self._recompute, answer, await self._ensure_files(record), prompt_ids)

    def _recompute(self, answer: Answer, files: ModelFiles, prompt_ids: Sequence[int]) -> Report:
        opening = answer.opening
        tokenizer = files.open_tokenizer()
        mask = compile_mask(opening.constraint, opening.ask.params.mask_hash, tokenizer)
        engine = open_checked_engine(self.config, files, sequences_max=1, kind=self.engine)
        try:
            if is_embedding(opening.ask.params):
                if not isinstance(engine, EmbeddingEngine):
                    raise RefusedEmbedding(f"the {engine.profile.name} engine makes no embeddings; choose another")
                return verify_vector(engine, prompt_ids, opening.output_ids, files.record.noise_class)
            seed, prints = seed_of(opening.ask), prints_of(opening, files.record.noise_class)
            report = verify_output(
                engine,
                prompt_ids,
                opening.output_ids,
                opening.ask.params,
                seed,
                FinishReason(opening.receipt.finish_reason),
                opening.receipt.stop_index,
                files.record.thresholds,
                tokenizer,
                mask=mask,
                prints=prints,
            )
            if not owes_replay(opening.ask) or engine.profile.digest() != opening.receipt.engine_profile:
                return report
            self.report("replaying token by token")
            mask = compile_mask(opening.constraint, opening.ask.params.mask_hash, tokenizer)
            replay = replay_output(
                engine, prompt_ids, opening.output_ids, opening.ask.params, seed, mask=mask, prints=prints
            )
            return replace(report, replay=replay)
        finally:
            engine.close()
