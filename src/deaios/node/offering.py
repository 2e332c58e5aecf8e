"""A user's own GGUF file on its way into the catalogue: looked at, calibrated, stored, published.

Every step looks first whether it was done, so it can be cut anywhere and started again: the same file with the same
choices gives the same record. The file stays where it is; the folder's `models` hold a link to it or a copy.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock

from deaios.compute.calibration import EVIDENCE_NAME, InvalidEvidence, Outcome, Subject, read_evidence
from deaios.compute.expansion import expand_to_f16
from deaios.compute.gguf_file import ModelFile, TensorType, encode_header, read_model_file
from deaios.compute.records import (
    CONTEXT_TOKENS_MAX,
    FILE_NAME_PATTERN,
    NAME_PATTERN,
    ModelRecord,
    NoiseClass,
    RecordFile,
    encode_record,
)
from deaios.compute.records import record_id as compute_record_id
from deaios.compute.roots import compute_file_digest, compute_model_root, compute_tensors_root
from deaios.compute.template import ChatTemplate
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.sender import Sender
from deaios.node.folder import StateFolder
from deaios.node.models import AS_IS, EXPANDED, LANGUAGE_BYTES_MAX, LANGUAGE_NAME, SERVED_NAME
from deaios.primitives.errors import ConfigError, Refused
from deaios.runtime.disk import write_atomic
from deaios.storage.client import StorageClient

HONEST_TOKENS_DEFAULT: Final = 256
"""Honest tokens measured from each engine before a file is sold, where more was not measured with `calibrate`."""
CONTEXT_TOKENS_DEFAULT: Final = 4096
"""Of what a model was trained for, the most that a record offers where nothing else is asked for."""
EXPANSION_BYTES_MAX: Final = 16 << 30
"""Largest F16 expansion; a larger model is served as it is, or on another machine."""
LICENCE_UNKNOWN: Final = "unknown"

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it so far, how much in all (0 when unknown)."""


class RefusedModel(Refused):
    """A model file that cannot be offered; says why."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator decides about a model; everything else follows from the file.

    Attributes:
        name: for users; from the file otherwise.
        noise_class: F serves float weights, of a quantised file its F16 expansion; Q serves the file as it is. None
            takes F where the file's weights are floats already and Q elsewhere.
        context_tokens: prompt and answer together; at most what the file says.
        licence: SPDX identifier; from the file otherwise.
        tokens: honest tokens measured from each engine.
        threads: for calibration; 0 for all cores.
    """

    name: str = ""
    noise_class: NoiseClass | None = None
    context_tokens: int = CONTEXT_TOKENS_DEFAULT
    licence: str = ""
    tokens: int = HONEST_TOKENS_DEFAULT
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is ready to be published.

    Attributes:
        name: as the record will say.
        source: the model file in the folder.
        served: what is computed with.
        language: metadata only.
        evidence: the calibration.
    """

    name: str
    source: Path
    served: Path
    language: Path
    evidence: Path
    outcome: Outcome
    digest: bytes
    tensors_root: bytes
    serving: str
    quantisation: str
    licence: str
    context_tokens: int
    tokenizer_hash: bytes
    template_hash: bytes
    has_template: bool


def prepare_model(folder: StateFolder, file: Path, choices: Choices, progress: Progress) -> Prepared:
    """Look at a model file, link it into the folder, and calibrate it where that was not done. Takes minutes.

    Raises:
        RefusedModel: it cannot be offered; says why.
        InvalidModelFile, InvalidTokenizer, InvalidTemplate: it is damaged, or of a kind that is not reproduced.
        RefusedCalibration: honest engines are too far apart for the class.
        ConfigError: a choice is out of bounds.
    """
    model = read_model_file(file)
    _refuse_pieces(model)
    tokenizer, template = Tokenizer(model), ChatTemplate.of_model(model)
    if not model.tensors:
        raise RefusedModel(f"{file.name} holds no weights")
    name, file_name = _choose_name(choices.name, model, file), _clean_file_name(file.name)
    progress(f"hashing {file.name}", 0, 0)
    digest = compute_file_digest(file)
    home = folder.models / digest.hex()
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        source = _take_in(file, home / file_name)
        encodings = _list_encodings(model)
        is_float = set(encodings) <= {TensorType.F32, TensorType.F16}
        noise_class = choices.noise_class or (NoiseClass.FLOAT if is_float else NoiseClass.QUANTISED)
        is_expanded = noise_class is NoiseClass.FLOAT and not is_float
        served = _expand(model, source, home / SERVED_NAME, progress) if is_expanded else source
        progress(f"hashing the weights of {file.name}", 0, 0)
        tensors_root = compute_tensors_root(served)
        language = _write_language(model, home / LANGUAGE_NAME)
        evidence = home / f"calibration-{noise_class.value}.json"
        subject = Subject(tensors_root, noise_class, tokenizer, template, choices.tokens)
        outcome = _ensure_evidence(evidence, served, subject, choices.threads, progress)
    return Prepared(
        name=name,
        source=source,
        served=served,
        language=language,
        evidence=evidence,
        outcome=outcome,
        digest=digest,
        tensors_root=tensors_root,
        serving=EXPANDED if is_expanded else AS_IS,
        quantisation="+".join(kind.name for kind in encodings),
        licence=choices.licence or _read_text(model, "general.license") or LICENCE_UNKNOWN,
        context_tokens=_choose_context(model, choices.context_tokens),
        tokenizer_hash=tokenizer.tokenizer_hash,
        template_hash=template.template_hash,
        has_template=bool(template.source),
    )


def _refuse_pieces(model: ModelFile) -> None:
    pieces = model.get_int("split.count", 0)
    if pieces > 1:
        raise RefusedModel(
            f"{model.path.name} is one of {pieces} pieces; join them with `llama-gguf-split --merge` first"
        )


def _read_text(model: ModelFile, key: str) -> str:
    found = model.metadata.get(key)
    text = found.value if found is not None and isinstance(found.value, str) else ""
    return text if text.isprintable() and len(text) <= 200 else ""


def _choose_name(wanted: str, model: ModelFile, file: Path) -> str:
    if wanted:
        if not NAME_PATTERN.fullmatch(wanted):
            raise ConfigError(f"model name {wanted[:100]!r} does not match {NAME_PATTERN.pattern}")
        return wanted
    told = _read_text(model, "general.name") or file.stem
    return re.sub(r"[^a-z0-9._-]+", "-", told.lower()).strip("-._")[:96] or "model"


def _clean_file_name(name: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-._")[-96:].lstrip("-._")
    if not FILE_NAME_PATTERN.fullmatch(cleaned) or cleaned in (LANGUAGE_NAME, EVIDENCE_NAME, SERVED_NAME):
        return "model.gguf"
    return cleaned


def _choose_context(model: ModelFile, wanted: int) -> int:
    trained = model.get_int(f"{model.get_text('general.architecture')}.context_length", wanted)
    if not 64 <= wanted <= CONTEXT_TOKENS_MAX:
        raise ConfigError(f"context of {wanted} tokens is outside 64 to {CONTEXT_TOKENS_MAX}")
    return min(wanted, trained)


def _list_encodings(model: ModelFile) -> tuple[TensorType, ...]:
    """Encodings of the matrices, in ggml's order."""
    return tuple(sorted({tensor.type for tensor in model.tensors.values() if len(tensor.shape) > 1}))


def _take_in(file: Path, target: Path) -> Path:
    """A link to the file, or a copy where the folder is on another disk."""
    if not target.exists():
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(file.resolve())
        except OSError:
            shutil.copyfile(file, temporary)
        temporary.replace(target)
    return target


def _expand(model: ModelFile, source: Path, target: Path, progress: Progress) -> Path:
    values = sum(tensor.rows * tensor.shape[-1] for tensor in model.tensors.values())
    if 2 * values > EXPANSION_BYTES_MAX:
        raise RefusedModel(
            f"the F16 expansion of {source.name} would have {2 * values:,} bytes, at most {EXPANSION_BYTES_MAX:,} are "
            "made; serve it as it is with --class Q"
        )
    if not target.exists():
        expand_to_f16(source, target, lambda done, total: progress("expanding to F16", done, total))
    return target


def _write_language(model: ModelFile, target: Path) -> Path:
    """The file's metadata without its tensors; one spelling for one file."""
    kept = {key: item for key, item in model.metadata.items() if key.startswith(("tokenizer.", "general.architecture"))}
    data = encode_header(kept, [])
    if len(data) > LANGUAGE_BYTES_MAX:
        raise RefusedModel(f"tokenizer and template take {len(data):,} bytes, {LANGUAGE_BYTES_MAX:,} are allowed")
    write_atomic(target, data)
    return target


def _ensure_evidence(evidence: Path, served: Path, subject: Subject, threads: int, progress: Progress) -> Outcome:
    if evidence.exists():
        try:
            found = read_evidence(evidence.read_bytes(), subject.tensors_root, subject.noise_class)
        except InvalidEvidence:
            pass  # of an earlier version of this program; measured anew below
        else:
            if found.calibration.tokens >= 2 * subject.tokens:
                return found
    from deaios.node.calibrating import calibrate_served  # noqa: PLC0415 - engines only where something is measured

    journal = evidence.with_suffix(".part")
    cores = len(os.sched_getaffinity(0))
    outcome = calibrate_served(served, subject, journal, threads=threads or cores, progress=progress)
    write_atomic(evidence, outcome.evidence)
    return outcome


async def publish_model(
    prepared: Prepared, contracts: Contracts, sender: Sender, storage: StorageClient, progress: Progress
) -> bytes:
    """Store a model's files and publish its record; gives the record's id. What is there already is left alone.

    Raises:
        UnavailableRows: storage did not take the files.
        InvalidRecord: the record would break a bound.
    """
    files = []
    for name, path in sorted(
        {
            EVIDENCE_NAME: prepared.evidence,
            prepared.source.name: prepared.source,
            LANGUAGE_NAME: prepared.language,
        }.items()
    ):
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        manifest = await storage.put_file(path, lambda done, total, name=name: progress(f"storing {name}", done, total))  # type: ignore[misc]  # the default argument binds the name of this round
        digest = await asyncio.to_thread(compute_file_digest, path)
        files.append(RecordFile(name, digest, size_bytes, manifest))
    record = encode_record(build_record(prepared, tuple(files)))
    progress("publishing the record", 0, 0)
    record_id = compute_record_id(record)
    if await contracts.catalogue.publisher_of(record_id) is None:
        await contracts.catalogue.publish(sender, record)
    return record_id


def build_record(prepared: Prepared, files: tuple[RecordFile, ...]) -> ModelRecord:
    """The record of a prepared model."""
    outcome = prepared.outcome
    return ModelRecord(
        name=prepared.name,
        files=files,
        model_root=compute_model_root({file.name: file.sha256 for file in files}),
        tensors_root=prepared.tensors_root,
        serving=prepared.serving,
        tokenizer_hash=prepared.tokenizer_hash,
        template_hash=prepared.template_hash,
        quantisation=prepared.quantisation,
        licence=prepared.licence,
        parents=(),
        noise_class=outcome.noise_class,
        thresholds=outcome.thresholds,
        calibration=outcome.calibration,
        context_tokens=prepared.context_tokens,
        replay_profiles=outcome.replay_profiles,
    )
