"""Model files of a state folder: fetched over storage, expanded once, shared by the roles of this folder.

A file is used only after its content was checked: the shipped file against the record's SHA-256, the served one against
its tensors' root. Roles of one folder take a lock, so that one of them does the work and the others map the same pages.
"""

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from deaios.compute.calibration import EVIDENCE_BYTES_MAX, EVIDENCE_NAME, read_evidence
from deaios.compute.expansion import expand_to_f16, requantise_q4_0, requantise_q8_0
from deaios.compute.records import (
    DEFAULT_THRESHOLDS,
    UNAUDITABLE,
    Calibration,
    ModelRecord,
    NoiseClass,
    RecordFile,
    decode_record,
    encode_record,
)
from deaios.compute.records import record_id as compute_record_id
from deaios.compute.roots import compute_file_digest, compute_model_root, compute_tensors_root
from deaios.compute.selftest import DEVIATION_MAX, KnownAnswers, read_known_answers
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.client.contracts import Contracts
from deaios.node.folder import StateFolder
from deaios.node.model_package import MODEL_FILE, MODEL_NAME, MODEL_SHA256
from deaios.node.passed import PassedChecks
from deaios.primitives.errors import Unavailable
from deaios.storage.client import StorageClient

EXPANDED = "f16-expansion/1"
"""Serving form: the shipped file with every matrix as F16."""
AS_IS = "as-is/1"
"""Serving form: the shipped file itself."""
LANGUAGE_NAME = "tokenizer.gguf"
"""A file of the record with metadata only: all that somebody needs who renders prompts and runs no model."""
LANGUAGE_BYTES_MAX = 64 << 20
DISK_SPARE_BYTES = 1 << 28
"""Left free when a model is fetched, for journals and logs."""
SERVED_NAME = "served.f16.gguf"
CONTEXT_TOKENS = 2048
"""What is offered of the model's 8,192: a laptop's share per conversation."""
LICENCE = "Apache-2.0"
QUANTISATION = "Q4_1"
CALIBRATION = Calibration(2083, 2846, bytes.fromhex("81f010fe29bd03c16fc42906d6dbe52d49f096c826fe3e463227e11f58c05c67"))
"""Honest tokens across both engines, the largest margin among them, and the digest of docs/spec/calibration.json."""

Report = Callable[[str], None]


class UnavailableModelFiles(Unavailable):
    """The files of a record cannot be had, or are not what the record says."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Files of one record, checked.

    Attributes:
        source: the shipped file; has the tokenizer and the template.
        served: what honest providers compute with.
        evidence: its calibration, where the record ships one.
    """

    record: ModelRecord
    source: Path
    served: Path
    evidence: Path | None = None

    def open_tokenizer(self) -> Tokenizer:
        """The record's tokenizer."""
        return Tokenizer.from_gguf(self.source)

    def open_template(self) -> ChatTemplate:
        """The record's chat template."""
        return ChatTemplate.from_gguf(self.source)

    def read_known_answers(self) -> tuple[KnownAnswers, float] | None:
        """What an engine of this model is tested with, and how far off it may be; None where nobody says.

        Raises:
            InvalidEvidence: the calibration is not of this record.
        """
        packaged = read_known_answers(self.record.tensors_root)
        if packaged is not None:
            return packaged, DEVIATION_MAX
        if self.evidence is None:
            return None
        found = read_evidence(self.evidence.read_bytes(), self.record.tensors_root, self.record.noise_class)
        return found.known_answers, found.deviation_max


@dataclass(frozen=True, slots=True)
class Shipped:
    """The files of a record by what they are for."""

    model: RecordFile
    evidence: RecordFile | None
    language: RecordFile | None


def sort_files(record: ModelRecord) -> Shipped:
    """Which file of a record is which.

    Raises:
        UnavailableModelFiles: this program does not know how the model is served.
    """
    named = {file.name: file for file in record.files}
    evidence, language = named.pop(EVIDENCE_NAME, None), named.pop(LANGUAGE_NAME, None)
    if record.serving == UNAUDITABLE and language is not None and not named:
        return Shipped(language, None, language)
    if len(named) != 1 or record.serving not in (EXPANDED, AS_IS):
        raise UnavailableModelFiles(
            f"{record.name} is served as {record.serving!r} from {len(named)} files; this program knows {EXPANDED!r} "
            f"and {AS_IS!r} from one"
        )
    if evidence is not None and (
        evidence.sha256 != record.calibration.evidence or evidence.size_bytes > EVIDENCE_BYTES_MAX
    ):
        raise UnavailableModelFiles(f"{record.name} ships another {EVIDENCE_NAME} than its calibration names")
    return Shipped(next(iter(named.values())), evidence, language)


def prepare_default_model(folder: StateFolder, package_file: Path) -> tuple[Path, Path]:
    """Put the default model's shipped file into the folder and expand it; gives (source, served)."""
    home = folder.models / MODEL_SHA256
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        source, served = home / MODEL_FILE, home / SERVED_NAME
        if not source.exists():
            temporary = home / f".{MODEL_FILE}.{os.getpid()}"
            shutil.copyfile(package_file, temporary)
            temporary.replace(source)
        if not served.exists():
            expand_to_f16(source, served)
    return source, served


def build_default_record(source: Path, served: Path, manifest: bytes, replay_profiles: tuple[bytes, ...]) -> bytes:
    """The default model's record as canonical bytes."""
    digest = compute_file_digest(source)
    tokenizer, template = Tokenizer.from_gguf(source), ChatTemplate.from_gguf(source)
    return encode_record(
        ModelRecord(
            name=MODEL_NAME,
            files=(RecordFile(source.name, digest, source.stat().st_size, manifest),),
            model_root=compute_model_root({source.name: digest}),
            tensors_root=compute_tensors_root(served),
            serving=EXPANDED,
            tokenizer_hash=tokenizer.tokenizer_hash,
            template_hash=template.template_hash,
            quantisation=QUANTISATION,
            licence=LICENCE,
            parents=(),
            noise_class=NoiseClass.FLOAT,
            thresholds=DEFAULT_THRESHOLDS,
            calibration=CALIBRATION,
            context_tokens=CONTEXT_TOKENS,
            replay_profiles=tuple(sorted(replay_profiles)),
        )
    )


async def fetch_record(contracts: Contracts, record_id: bytes) -> ModelRecord:
    """A model record from the catalogue on chain.

    Raises:
        UnavailableModelFiles: the catalogue has no such record, or the chain's node made one up.
    """
    data = await contracts.catalogue.record_of(record_id)
    if data is None:
        raise UnavailableModelFiles(f"the catalogue has no model record 0x{record_id.hex()}")
    found = compute_record_id(data)
    if found != record_id:
        raise UnavailableModelFiles(f"asked for model record 0x{record_id.hex()}, the chain gave 0x{found.hex()}")
    return decode_record(data)


async def ensure_model(
    folder: StateFolder, record: ModelRecord, storage: StorageClient | None, report: Report
) -> ModelFiles:
    """The files of a record, fetched and expanded where they are missing.

    Args:
        folder: whose `models` they go to.
        record: which model.
        storage: where to fetch from; None when only local files may be used.
        report: told of slow steps.

    Raises:
        UnavailableModelFiles: not to be had, or not what the record says.
    """
    shipped = sort_files(record)
    if record.serving == UNAUDITABLE:
        raise UnavailableModelFiles(f"{record.name} is unauditable: its publisher says that nobody has its weights")
    file = shipped.model
    home = folder.models / file.sha256.hex()
    home.mkdir(parents=True, exist_ok=True)
    source = home / file.name
    served = source if record.serving == AS_IS else home / SERVED_NAME
    evidence = None if shipped.evidence is None else home / f"{shipped.evidence.sha256.hex()}.json"
    lock = FileLock(home / "lock")
    await asyncio.to_thread(lock.acquire)
    try:
        await _ensure_file(source, file, storage, record, report)
        if shipped.evidence is not None and evidence is not None:
            await _ensure_file(evidence, shipped.evidence, storage, record, report)
        if not served.exists():
            report(f"expanding {record.name} to F16")
            await asyncio.to_thread(expand_to_f16, source, served)
        await asyncio.to_thread(_check_served, served, record.tensors_root)
    finally:
        await asyncio.to_thread(lock.release)
    return ModelFiles(record, source, served, evidence)


async def _ensure_file(
    target: Path, file: RecordFile, storage: StorageClient | None, record: ModelRecord, report: Report
) -> None:
    if not await asyncio.to_thread(target.exists):
        if storage is None:
            raise UnavailableModelFiles(f"{record.name} is not in {target.parent}; fetch it or pass its file")
        free = shutil.disk_usage(target.parent).free
        if file.size_bytes > free - DISK_SPARE_BYTES:
            raise UnavailableModelFiles(
                f"{file.name} of {record.name} has {file.size_bytes:,} bytes, the disk has {free:,} left"
            )
        manifest = await storage.fetch_manifest(file.manifest)
        if manifest.size_bytes != file.size_bytes:
            raise UnavailableModelFiles(
                f"{file.name} is stored with {manifest.size_bytes} bytes, the record says {file.size_bytes}"
            )
        report(f"fetching {file.name} of {record.name} ({file.size_bytes / 1e6:.1f} MB) from storage, row by row")
        await storage.get_file(file.manifest, target)
    await asyncio.to_thread(_check_source, target, file.sha256)


async def ensure_language(
    folder: StateFolder, record: ModelRecord, storage: StorageClient | None, report: Report
) -> tuple[Tokenizer, ChatTemplate]:
    """Tokenizer and template of a record without its weights, where it ships them by themselves.

    Raises:
        UnavailableModelFiles: not to be had, or not what the record says.
    """
    shipped = sort_files(record)
    if shipped.language is None:
        files = await ensure_model(folder, record, storage, report)
        return await asyncio.to_thread(lambda: (files.open_tokenizer(), files.open_template()))
    if shipped.language.size_bytes > LANGUAGE_BYTES_MAX:
        raise UnavailableModelFiles(
            f"{LANGUAGE_NAME} of {record.name} has {shipped.language.size_bytes} bytes, {LANGUAGE_BYTES_MAX} allowed"
        )
    home = folder.models / shipped.model.sha256.hex()
    home.mkdir(parents=True, exist_ok=True)
    target = home / LANGUAGE_NAME
    lock = FileLock(home / "lock")
    await asyncio.to_thread(lock.acquire)
    try:
        await _ensure_file(target, shipped.language, storage, record, report)
        found = await asyncio.to_thread(lambda: (Tokenizer.from_gguf(target), ChatTemplate.from_gguf(target)))
    finally:
        await asyncio.to_thread(lock.release)
    if (found[0].tokenizer_hash, found[1].template_hash) != (record.tokenizer_hash, record.template_hash):
        raise UnavailableModelFiles(f"{LANGUAGE_NAME} of {record.name} is not the language that its record names")
    return found


def _check_source(source: Path, wanted: bytes) -> None:
    with PassedChecks(source.parent).once("sha256", source, wanted.hex()) as is_wanted:
        if is_wanted and (found := compute_file_digest(source)) != wanted:
            source.unlink()
            raise UnavailableModelFiles(f"{source} has SHA-256 {found.hex()}, the record says {wanted.hex()}")


def _check_served(served: Path, wanted: bytes) -> None:
    with PassedChecks(served.parent).once("tensors", served, wanted.hex()) as is_wanted:
        if is_wanted and (found := compute_tensors_root(served)) != wanted:
            served.unlink()
            raise UnavailableModelFiles(f"{served} has tensors root 0x{found.hex()}, the record says 0x{wanted.hex()}")


def adopt_served_source(folder: StateFolder, record: ModelRecord, file: Path) -> None:
    """Use a model file that is at hand: copied into the folder when it is the record's.

    Raises:
        UnavailableModelFiles: another SHA-256.
    """
    wanted = sort_files(record).model
    found = compute_file_digest(file)
    if found != wanted.sha256:
        raise UnavailableModelFiles(f"{file} has SHA-256 {found.hex()}, the record says {wanted.sha256.hex()}")
    target = folder.models / wanted.sha256.hex() / wanted.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(file, temporary)
        temporary.replace(target)


def weaken_model(served: Path, target: Path, weights: str) -> Path:
    """Write the weights that a cheating provider computes with."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        {"q8_0": requantise_q8_0, "q4_0": requantise_q4_0}[weights](served, target)
    return target
