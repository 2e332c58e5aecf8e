"""The model record: which files, numbers and rules one served model stands for, named by one content id.

Invariant: a record has exactly one spelling, and its thresholds stay within the protocol's caps for its noise class,
so no publisher can sell a looser check. Knows nothing of where files are kept or who serves them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from deaios.primitives.encoding import InvalidEncoding, Json, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256

RECORD_TAG = "deaios/model-record/1"
RECORD_VERSION = 1
RECORD_BYTES_MAX = 8192
"""What the Catalogue contract stores."""
FILES_MAX = 32
PROFILES_MAX = 32
PARENTS_MAX = 16
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}", re.ASCII)
FILE_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
TEXT_CHARACTERS_MAX = 256
SIZE_BYTES_MAX = 1 << 48
CONTEXT_TOKENS_MAX = 1 << 24
CALIBRATION_TOKENS_MAX = 1 << 40
MICRO = 1_000_000


UNAUDITABLE: Final = "unauditable/1"
"""How a model is served whose weights nobody can fetch: its answers are of level 0, whatever they claim."""


class InvalidRecord(Invalid):
    """Bytes or values that are not a model record this version knows."""


class NoiseClass(StrEnum):
    """How much honest engines differ: float activations, or activations that are rounded to integers.

    bf16 on accelerators (B) has no decision rule in this version; a record of another class is refused.
    """

    FLOAT = "F"
    QUANTISED = "Q"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Decision numbers of a record, in millionths of a logit.

    Attributes:
        margin_micro: a token with a larger margin is a violation.
        epsilon_micro: largest honest difference of one logit near a top_k or top_p edge.
    """

    margin_micro: int
    epsilon_micro: int

    @property
    def margin(self) -> float:
        """In logits."""
        return self.margin_micro / MICRO

    @property
    def epsilon(self) -> float:
        """In logits."""
        return self.epsilon_micro / MICRO


THRESHOLD_CAPS: Final[Mapping[NoiseClass, Thresholds]] = {
    NoiseClass.FLOAT: Thresholds(50_000, 50_000),
    NoiseClass.QUANTISED: Thresholds(1_500_000, 600_000),
}
"""The loosest thresholds a record may claim per class. Q: honest engines of other kernels were seen 0.55 logit apart,
1.06 at the edge of a nucleus, never above 1.5; what hides below is for the cumulative test (compute/sequential.py)."""
DEFAULT_THRESHOLDS: Final = Thresholds(20_000, 20_000)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the thresholds were found: honest tokens measured, the largest margin seen, and a hash of the evidence."""

    tokens: int
    margin_max_micro: int
    evidence: bytes


@dataclass(frozen=True, slots=True)
class RecordFile:
    """One shipped file. `manifest` names it in storage: a claim until the content is checked against `sha256`."""

    name: str
    sha256: bytes
    size_bytes: int
    manifest: bytes


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Everything a buyer signs by signing one id.

    Attributes:
        name: what the API calls the model.
        files: what travels, in name order.
        model_root: OpenSSF model-signing digest of `files`.
        tensors_root: of what is served.
        serving: how served tensors come from the files, such as `f16-expansion/1`; `unauditable/1`: there are none.
        tokenizer_hash: of the tokenizer metadata.
        template_hash: of the chat template.
        quantisation: of the shipped file, for people.
        licence: SPDX identifier.
        parents: record ids this model is said to derive from.
        noise_class: decides which rule judges margins.
        thresholds: of that rule.
        calibration: where the thresholds come from.
        context_tokens: prompt and output together.
        replay_profiles: digests of engine profiles whose replay is bit-exact, in byte order.
    """

    name: str
    files: tuple[RecordFile, ...]
    model_root: bytes
    tensors_root: bytes
    serving: str
    tokenizer_hash: bytes
    template_hash: bytes
    quantisation: str
    licence: str
    parents: tuple[bytes, ...]
    noise_class: NoiseClass
    thresholds: Thresholds
    calibration: Calibration
    context_tokens: int
    replay_profiles: tuple[bytes, ...]


def record_id(data: bytes) -> bytes:
    """The id of canonical record bytes; the Catalogue contract computes the same."""
    return tagged_sha256(RECORD_TAG, data)


def validate_record(record: ModelRecord) -> None:
    """Check every bound and cap.

    Raises:
        InvalidRecord: names the field, its value and the rule.
    """
    if not NAME_PATTERN.fullmatch(record.name):
        raise InvalidRecord(f"name {record.name[:100]!r} is not {NAME_PATTERN.pattern}")
    for field in ("serving", "quantisation", "licence"):
        text: str = getattr(record, field)
        if not text.isprintable() or not 1 <= len(text) <= TEXT_CHARACTERS_MAX:
            raise InvalidRecord(f"{field} is not 1 to {TEXT_CHARACTERS_MAX} printable characters")
    for field in ("model_root", "tensors_root", "tokenizer_hash", "template_hash"):
        _validate_digest(field, getattr(record, field))
    names = [file.name for file in record.files]
    if not 1 <= len(names) <= FILES_MAX or names != sorted(set(names)):
        raise InvalidRecord(f"{len(names)} files; 1 to {FILES_MAX}, in name order without repeats, expected")
    for file in record.files:
        _validate_file(file)
    _validate_digests("parents", record.parents, PARENTS_MAX)
    _validate_digests("replay_profiles", record.replay_profiles, PROFILES_MAX)
    _validate_range("context_tokens", record.context_tokens, 2, CONTEXT_TOKENS_MAX)
    _validate_thresholds(record)


def _validate_thresholds(record: ModelRecord) -> None:
    caps = THRESHOLD_CAPS[record.noise_class]
    _validate_range("margin_micro", record.thresholds.margin_micro, 1, caps.margin_micro)
    _validate_range("epsilon_micro", record.thresholds.epsilon_micro, 0, caps.epsilon_micro)
    _validate_range("calibration tokens", record.calibration.tokens, 0, CALIBRATION_TOKENS_MAX)
    # A calibration that saw honest tokens above the limit contradicts the record that cites it.
    _validate_range(
        "calibration margin_max_micro", record.calibration.margin_max_micro, 0, record.thresholds.margin_micro
    )
    _validate_digest("calibration evidence", record.calibration.evidence)


def _validate_file(file: RecordFile) -> None:
    if not FILE_NAME_PATTERN.fullmatch(file.name):
        raise InvalidRecord(f"file name {file.name[:100]!r} is not {FILE_NAME_PATTERN.pattern}")
    _validate_digest(f"{file.name} sha256", file.sha256)
    _validate_digest(f"{file.name} manifest", file.manifest)
    _validate_range(f"{file.name} size_bytes", file.size_bytes, 1, SIZE_BYTES_MAX)


def _validate_digest(field: str, value: bytes) -> None:
    if len(value) != 32:
        raise InvalidRecord(f"{field} has {len(value)} bytes, 32 expected")


def _validate_digests(field: str, values: Sequence[bytes], count_max: int) -> None:
    for value in values:
        _validate_digest(field, value)
    if len(values) > count_max or list(values) != sorted(set(values)):
        raise InvalidRecord(f"{field}: {len(values)} digests; at most {count_max}, in order without repeats, expected")


def _validate_range(field: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise InvalidRecord(f"{field} is {value}, {lowest} to {highest} allowed")


def encode_record(record: ModelRecord) -> bytes:
    """The record's one spelling: canonical JSON.

    Raises:
        InvalidRecord: a bound or cap is broken.
    """
    validate_record(record)
    value: dict[str, Json] = {
        "calibration": {
            "evidence": encode_hex(record.calibration.evidence),
            "marginMaxMicro": record.calibration.margin_max_micro,
            "tokens": record.calibration.tokens,
        },
        "contextTokens": record.context_tokens,
        "files": [
            {
                "manifest": encode_hex(file.manifest),
                "name": file.name,
                "sha256": encode_hex(file.sha256),
                "sizeBytes": file.size_bytes,
            }
            for file in record.files
        ],
        "licence": record.licence,
        "modelRoot": encode_hex(record.model_root),
        "name": record.name,
        "noiseClass": record.noise_class.value,
        "parents": [encode_hex(parent) for parent in record.parents],
        "quantisation": record.quantisation,
        "replayProfiles": [encode_hex(profile) for profile in record.replay_profiles],
        "serving": record.serving,
        "templateHash": encode_hex(record.template_hash),
        "tensorsRoot": encode_hex(record.tensors_root),
        "thresholds": {
            "epsilonMicro": record.thresholds.epsilon_micro,
            "marginMicro": record.thresholds.margin_micro,
        },
        "tokenizerHash": encode_hex(record.tokenizer_hash),
        "version": RECORD_VERSION,
    }
    data = encode_canonical_json(value)
    if len(data) > RECORD_BYTES_MAX:
        raise InvalidRecord(f"record of {len(data)} bytes exceeds {RECORD_BYTES_MAX}")
    return data


class _Reader:
    """A JSON object whose keys are taken one by one; a key left over or missing is refused."""

    def __init__(self, where: str, value: object, keys: str) -> None:
        if not isinstance(value, dict):
            raise InvalidRecord(f"{where} is not an object")
        expected = set(keys.split())
        if value.keys() != expected:
            missing, unknown = sorted(expected - value.keys()), sorted(value.keys() - expected)
            raise InvalidRecord(f"{where}: missing keys {missing}, unknown keys {[key[:40] for key in unknown[:8]]}")
        self._where = where
        self._value: dict[str, object] = value

    def any(self, key: str) -> object:
        return self._value[key]

    def integer(self, key: str) -> int:
        value = self._value[key]
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidRecord(f"{self._where}.{key} is not an integer")
        return value

    def text(self, key: str) -> str:
        value = self._value[key]
        if not isinstance(value, str):
            raise InvalidRecord(f"{self._where}.{key} is not text")
        return value

    def digest(self, key: str) -> bytes:
        return _read_digest(f"{self._where}.{key}", self._value[key])

    def items(self, key: str, count_max: int) -> list[object]:
        value = self._value[key]
        if not isinstance(value, list) or len(value) > count_max:
            raise InvalidRecord(f"{self._where}.{key} is not a list of at most {count_max} items")
        return value

    def digests(self, key: str, count_max: int) -> tuple[bytes, ...]:
        return tuple(_read_digest(f"{self._where}.{key}", item) for item in self.items(key, count_max))


def _read_digest(where: str, value: object) -> bytes:
    try:
        return decode_hex(value, 32)  # type: ignore[arg-type]  # decode_hex refuses what is not text
    except InvalidEncoding as error:
        raise InvalidRecord(f"{where}: {error}") from error


def decode_record(data: bytes) -> ModelRecord:
    """Read a record from its canonical bytes.

    Raises:
        InvalidRecord: too long, not JSON, unknown version or class, a bound broken, or a second spelling.
    """
    if len(data) > RECORD_BYTES_MAX:
        raise InvalidRecord(f"record of {len(data)} bytes exceeds {RECORD_BYTES_MAX}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"record is not JSON: {error}") from error
    top = _Reader(
        "record",
        value,
        "calibration contextTokens files licence modelRoot name noiseClass parents quantisation replayProfiles serving "
        "templateHash tensorsRoot thresholds tokenizerHash version",
    )
    if top.integer("version") != RECORD_VERSION:
        raise InvalidRecord(f"record version is {top.integer('version')}, {RECORD_VERSION} expected")
    record = ModelRecord(
        name=top.text("name"),
        files=tuple(_read_file(item) for item in top.items("files", FILES_MAX)),
        model_root=top.digest("modelRoot"),
        tensors_root=top.digest("tensorsRoot"),
        serving=top.text("serving"),
        tokenizer_hash=top.digest("tokenizerHash"),
        template_hash=top.digest("templateHash"),
        quantisation=top.text("quantisation"),
        licence=top.text("licence"),
        parents=top.digests("parents", PARENTS_MAX),
        noise_class=_read_class(top.text("noiseClass")),
        thresholds=_read_thresholds(top.any("thresholds")),
        calibration=_read_calibration(top.any("calibration")),
        context_tokens=top.integer("contextTokens"),
        replay_profiles=top.digests("replayProfiles", PROFILES_MAX),
    )
    if encode_record(record) != data:
        raise InvalidRecord("record is not in its canonical spelling")
    return record


def _read_class(text: str) -> NoiseClass:
    try:
        return NoiseClass(text)
    except ValueError as error:
        known = ", ".join(item.value for item in NoiseClass)
        raise InvalidRecord(
            f"noise class {text[:20]!r} has no decision rule in this version; known: {known}"
        ) from error


def _read_file(value: object) -> RecordFile:
    reader = _Reader("file", value, "manifest name sha256 sizeBytes")
    return RecordFile(
        reader.text("name"), reader.digest("sha256"), reader.integer("sizeBytes"), reader.digest("manifest")
    )


def _read_thresholds(value: object) -> Thresholds:
    reader = _Reader("thresholds", value, "epsilonMicro marginMicro")
    return Thresholds(reader.integer("marginMicro"), reader.integer("epsilonMicro"))


def _read_calibration(value: object) -> Calibration:
    reader = _Reader("calibration", value, "evidence marginMaxMicro tokens")
    return Calibration(reader.integer("tokens"), reader.integer("marginMaxMicro"), reader.digest("evidence"))
