"""GGUF model files: read by memory map, written in one fixed layout.

Invariant: nothing a file says is believed before it is compared with the file's size, so a hostile file costs a typed
refusal and no more memory than it has bytes. Knows nothing of architectures, tokenizers or engines.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian; written as 3).
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from deaios.primitives.errors import Invalid, Unavailable

MAGIC = b"GGUF"
VERSION = 3
READ_VERSIONS = (2, 3)
"""Version 3 only added big-endian files."""
ALIGNMENT_DEFAULT = 32
ALIGNMENT_MAX = 1 << 16
"""Larger alignments would let a small file ask for large padding."""
METADATA_KEYS_MAX = 4096
TENSORS_MAX = 1 << 16
NAME_BYTES_MAX = 1 << 16
"""Longest key or tensor name; the format itself stops at 2**16 - 1."""
DIMENSIONS_MAX = 4
VOCABULARY_PREFIX = "tokenizer."
"""Of the keys that say how text becomes ids."""

Scalar = int | float | bool | str
Value = Scalar | Sequence[Scalar]


class InvalidModelFile(Invalid):
    """A model file that breaks the format or uses a part of it that is not supported."""


class UnavailableModelFile(Unavailable):
    """A model file that cannot be opened."""


class ValueType(IntEnum):
    """Types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_SCALAR_FORMATS: Mapping[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


class TensorType(IntEnum):
    """Tensor encodings that files may hold; the numbers are ggml's."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39


FLOAT_TYPES = frozenset({TensorType.F32, TensorType.F16, TensorType.BF16})
"""Encodings that engines compute with float activations."""
_UNDECODABLE = frozenset(
    {
        TensorType.Q8_1,
        TensorType.Q8_K,
        TensorType.I8,
        TensorType.I16,
        TensorType.I32,
        TensorType.I64,
        TensorType.F64,
    }
)
"""No weights: ggml's activations and plain numbers, which the gguf package knows by their sizes only."""
_BLOCKS: Mapping[TensorType, tuple[int, int]] = {
    kind: GGML_QUANT_SIZES[GGMLQuantizationType(kind)] for kind in TensorType
}
"""Values per block and bytes per block (ggml-common.h)."""


@dataclass(frozen=True, slots=True)
class Metadatum:
    """One metadata value with its type, kept so that a rewritten file has the same bytes."""

    type: ValueType
    value: Value
    element_type: ValueType | None = None


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """Name, shape (rows first) and encoding of a tensor, before it has a place in a file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def row_bytes(self) -> int:
        """Encoded size of one row (the last dimension)."""
        values, size_bytes = _BLOCKS[self.type]
        return self.shape[-1] // values * size_bytes

    @property
    def rows(self) -> int:
        """Number of rows: the product of all dimensions but the last."""
        count = 1
        for dimension in self.shape[:-1]:
            count *= dimension
        return count

    @property
    def size_bytes(self) -> int:
        """Encoded size of the whole tensor."""
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Tensor(TensorPlan):
    """A tensor in a file; `offset` counts from the file's first byte."""

    offset: int


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An open GGUF file; tensor bytes stay on disk until they are asked for."""

    path: Path
    metadata: Mapping[str, Metadatum]
    tensors: Mapping[str, Tensor]
    _bytes: NDArray[np.uint8]

    def get_value(self, key: str) -> Value:
        """The value of a metadata key.

        Raises:
            InvalidModelFile: the key is missing.
        """
        found = self.metadata.get(key)
        if found is None:
            raise InvalidModelFile(f"{self.path.name}: metadata key {key} is missing")
        return found.value

    def get_int(self, key: str, default: int | None = None) -> int:
        """An integer metadata value; `default` stands in for a missing key."""
        if key not in self.metadata and default is not None:
            return default
        value = self.get_value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidModelFile(f"{self.path.name}: {key} is {type(value).__name__}, an integer expected")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        """A float metadata value; `default` stands in for a missing key."""
        if key not in self.metadata and default is not None:
            return default
        value = self.get_value(key)
        if not isinstance(value, float):
            raise InvalidModelFile(f"{self.path.name}: {key} is {type(value).__name__}, a float expected")
        return value

    def get_text(self, key: str) -> str:
        """A text metadata value."""
        value = self.get_value(key)
        if not isinstance(value, str):
            raise InvalidModelFile(f"{self.path.name}: {key} is {type(value).__name__}, text expected")
        return value

    def get_texts(self, key: str) -> Sequence[str]:
        """A metadata array of texts."""
        found = self.metadata.get(key)
        if found is None or found.element_type is not ValueType.STRING:
            raise InvalidModelFile(f"{self.path.name}: {key} is not an array of texts")
        return found.value  # type: ignore[return-value]  # the element type was checked when the file was read

    def get_tensor(self, name: str) -> Tensor:
        """A tensor by name.

        Raises:
            InvalidModelFile: no such tensor.
        """
        found = self.tensors.get(name)
        if found is None:
            raise InvalidModelFile(f"{self.path.name}: tensor {name} is missing")
        return found

    def map_bytes(self, tensor: Tensor, first_row: int = 0, last_row: int | None = None) -> NDArray[np.uint8]:
        """Encoded rows `(rows, row_bytes) uint8`, a view of the mapped file."""
        last_row = tensor.rows if last_row is None else last_row
        start = tensor.offset + first_row * tensor.row_bytes
        end = tensor.offset + last_row * tensor.row_bytes
        return self._bytes[start:end].reshape(last_row - first_row, tensor.row_bytes)

    def read_rows(self, tensor: Tensor, first_row: int = 0, last_row: int | None = None) -> NDArray[np.float32]:
        """Decoded rows `(rows, last dimension) float32`."""
        return decode_rows(self.map_bytes(tensor, first_row, last_row), tensor.type)


def decode_rows(data: NDArray[np.uint8], encoding: TensorType) -> NDArray[np.float32]:
    """Decode encoded rows to float32: one product and one sum per value, each rounded, alike on every platform."""
    if encoding is TensorType.F32:
        return np.ascontiguousarray(data).view(np.float32)
    if encoding is TensorType.F16:
        return np.ascontiguousarray(data).view(np.float16).astype(np.float32)
    if encoding in _UNDECODABLE:
        raise InvalidModelFile(f"tensors encoded as {encoding.name} cannot be decoded here")
    return np.asarray(quants.dequantize(np.ascontiguousarray(data), GGMLQuantizationType(encoding)), np.float32)


def encode_rows(rows: NDArray[np.float32], encoding: TensorType) -> bytes:
    """Encode float32 rows; ties round to even for F16, as ggml's reference code does for the quantised types."""
    if encoding is TensorType.F32:
        return rows.astype("<f4", copy=False).tobytes()
    if encoding is TensorType.F16:
        return rows.astype("<f2").tobytes()
    return bytes(quants.quantize(rows, GGMLQuantizationType(encoding)).tobytes())


class _Cursor:
    """Reads forward through mapped bytes and refuses to pass their end."""

    def __init__(self, data: memoryview, name: str, *, wants_vocabulary: bool = True) -> None:
        self._data = data
        self._name = name
        self._wants_vocabulary = wants_vocabulary
        self.position = 0

    def claim(self, size_bytes: int, what: str) -> int:
        """Reserve the next bytes and return where they start."""
        start = self.position
        if size_bytes > len(self._data) - start:
            raise InvalidModelFile(
                f"{self._name}: {what} needs {size_bytes} bytes at {start}, the file has {len(self._data)}"
            )
        self.position = start + size_bytes
        return start

    def number(self, code: str, what: str) -> int:
        """One little-endian integer."""
        layout = "<" + code
        value: int = struct.unpack_from(layout, self._data, self.claim(struct.calcsize(layout), what))[0]
        return value

    def text(self, what: str, bytes_max: int | None = None) -> str:
        """One length-prefixed UTF-8 text."""
        size_bytes = self.number("Q", what)
        if bytes_max is not None and size_bytes > bytes_max:
            raise InvalidModelFile(f"{self._name}: {what} has {size_bytes} bytes, at most {bytes_max} allowed")
        start = self.claim(size_bytes, what)
        try:
            return str(self._data[start : start + size_bytes], "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidModelFile(f"{self._name}: {what} is not UTF-8 at byte {start + error.start}") from error

    def value_type(self, what: str) -> ValueType:
        """One value type number."""
        number = self.number("I", what)
        try:
            return ValueType(number)
        except ValueError as error:
            raise InvalidModelFile(f"{self._name}: {what} has unknown value type {number}") from error

    def scalars(self, kind: ValueType, count: int, what: str) -> tuple[Scalar, ...]:
        """`count` values of one type."""
        if kind is ValueType.STRING:
            self.claim(8 * count, what)  # each text has at least its length; refused before anything is built
            self.position -= 8 * count
            is_wanted = self._wants_vocabulary or count == 1 or not what.startswith(VOCABULARY_PREFIX)
            return self._texts(count, what) if is_wanted else self._pass_texts(count, what)
        size_bytes = struct.calcsize("<" + _SCALAR_FORMATS[kind])
        start = self.claim(size_bytes * count, what)
        return struct.unpack_from(f"<{count}{_SCALAR_FORMATS[kind]}", self._data, start)

    def _texts(self, count: int, what: str) -> tuple[str, ...]:
        """`count` texts: what `text` reads one by one, without a call for each of a hundred thousand."""
        data, position, end, length = self._data, self.position, len(self._data), struct.Struct("<Q").unpack_from
        texts: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + length(data, position)[0]
                if position > end:
                    break
                texts.append(str(data[start:position], "utf-8"))
        except (struct.error, UnicodeDecodeError):
            pass
        if len(texts) < count:
            # Read the text that failed once more, for the exact refusal.
            self.position += sum(8 + len(text.encode()) for text in texts)
            self.text(what)
            raise AssertionError("a text that could not be read was read")
        self.position = position
        return tuple(texts)

    def _pass_texts(self, count: int, what: str) -> tuple[str, ...]:
        """`count` empty texts in place of those that are passed over."""
        data, position, end, length = self._data, self.position, len(self._data), struct.Struct("<Q").unpack_from
        for _ in range(count):
            text, position = position, position + 8
            if position > end:
                break
            position += length(data, text)[0]
        self.claim(position - self.position, what)
        return ("",) * count

    def metadatum(self, key: str) -> Metadatum:
        """One typed value."""
        kind = self.value_type(key)
        if kind is not ValueType.ARRAY:
            return Metadatum(kind, self.scalars(kind, 1, key)[0])
        element = self.value_type(key)
        if element is ValueType.ARRAY:
            raise InvalidModelFile(f"{self._name}: {key} is an array of arrays, which is not supported")
        return Metadatum(kind, self.scalars(element, self.number("Q", key), key), element)


def read_model_file(path: Path, *, wants_vocabulary: bool = True) -> ModelFile:
    """Open a GGUF file and check its whole structure against its size.

    Args:
        path: of the file.
        wants_vocabulary: False leaves the texts of the tokenizer's arrays empty: they take longer to read than all else
            together, and who looks at tensors and numbers does not need them.

    Raises:
        UnavailableModelFile: it cannot be opened.
        InvalidModelFile: it is not a supported GGUF file.
    """
    try:
        if path.stat().st_size < 24:
            raise InvalidModelFile(f"{path.name}: {path.stat().st_size} bytes, a GGUF header has 24")
        data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise UnavailableModelFile(f"model file {path} cannot be opened: {error.strerror or error}") from error
    cursor = _Cursor(data.data, path.name, wants_vocabulary=wants_vocabulary)
    magic = bytes(data[cursor.claim(4, "magic") : 4])
    version = cursor.number("I", "version")
    if magic != MAGIC or version not in READ_VERSIONS:
        raise InvalidModelFile(f"{path.name}: magic {magic!r} version {version}, {MAGIC!r} version 2 or 3 expected")
    tensor_count = cursor.number("Q", "tensor count")
    key_count = cursor.number("Q", "key count")
    if tensor_count > TENSORS_MAX or key_count > METADATA_KEYS_MAX:
        raise InvalidModelFile(
            f"{path.name}: {tensor_count} tensors and {key_count} keys, "
            f"at most {TENSORS_MAX} and {METADATA_KEYS_MAX} allowed"
        )
    metadata: dict[str, Metadatum] = {}
    for _ in range(key_count):
        key = cursor.text("metadata key", NAME_BYTES_MAX)
        if key in metadata:
            raise InvalidModelFile(f"{path.name}: metadata key {key} appears twice")
        metadata[key] = cursor.metadatum(key)
    tensors = _read_tensors(cursor, tensor_count, _read_alignment(metadata, path.name), len(data), path.name)
    return ModelFile(path, metadata, tensors, data)


def _read_alignment(metadata: Mapping[str, Metadatum], name: str) -> int:
    found = metadata.get("general.alignment")
    if found is None:
        return ALIGNMENT_DEFAULT
    value = found.value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= ALIGNMENT_MAX or value & (value - 1):
        raise InvalidModelFile(f"{name}: alignment {value!r} is not a power of two up to {ALIGNMENT_MAX}")
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int, size_bytes: int, name: str) -> dict[str, Tensor]:
    plans: list[tuple[TensorPlan, int]] = []
    for _ in range(count):
        tensor = cursor.text("tensor name", NAME_BYTES_MAX)
        dimensions = cursor.number("I", tensor)
        if not 1 <= dimensions <= DIMENSIONS_MAX:
            raise InvalidModelFile(
                f"{name}: tensor {tensor} has {dimensions} dimensions, 1 to {DIMENSIONS_MAX} allowed"
            )
        shape = tuple(reversed([cursor.number("Q", tensor) for _ in range(dimensions)]))
        number = cursor.number("I", tensor)
        try:
            encoding = TensorType(number)
        except ValueError as error:
            raise InvalidModelFile(f"{name}: tensor {tensor} has unsupported encoding {number}") from error
        if min(shape) < 1 or shape[-1] % _BLOCKS[encoding][0]:
            raise InvalidModelFile(f"{name}: tensor {tensor} of shape {shape} does not fit {encoding.name} blocks")
        plans.append((TensorPlan(tensor, shape, encoding), cursor.number("Q", tensor)))
    base = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for plan, relative in plans:
        if plan.name in tensors:
            raise InvalidModelFile(f"{name}: tensor {plan.name} appears twice")
        if relative % alignment or base + relative + plan.size_bytes > size_bytes:
            raise InvalidModelFile(
                f"{name}: tensor {plan.name} of {plan.size_bytes} bytes at {base + relative} is unaligned "
                f"or ends after the file's {size_bytes} bytes"
            )
        tensors[plan.name] = Tensor(plan.name, plan.shape, plan.type, base + relative)
    return tensors


def _encode_text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _encode_scalars(kind: ValueType, values: Sequence[Scalar]) -> bytes:
    if kind is ValueType.STRING:
        return b"".join(_encode_text(str(value)) for value in values)
    return struct.pack(f"<{len(values)}{_SCALAR_FORMATS[kind]}", *values)


def _encode_metadatum(key: str, item: Metadatum) -> bytes:
    head = _encode_text(key) + struct.pack("<I", item.type)
    if item.element_type is None:
        assert not isinstance(item.value, Sequence) or isinstance(item.value, str)
        return head + _encode_scalars(item.type, [item.value])
    assert isinstance(item.value, Sequence)
    return (
        head + struct.pack("<IQ", item.element_type, len(item.value)) + _encode_scalars(item.element_type, item.value)
    )


def encode_header(metadata: Mapping[str, Metadatum], plans: Sequence[TensorPlan]) -> bytes:
    """Everything before the first tensor's bytes, padded; tensors follow in order, each padded to the alignment."""
    alignment = _read_alignment(metadata, "header")
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(plans), len(metadata))]
    parts += [_encode_metadatum(key, item) for key, item in metadata.items()]
    offset = 0
    for plan in plans:
        parts.append(_encode_text(plan.name) + struct.pack("<I", len(plan.shape)))
        parts.append(struct.pack(f"<{len(plan.shape)}Q", *reversed(plan.shape)))
        parts.append(struct.pack("<IQ", plan.type, offset))
        offset += -(-plan.size_bytes // alignment) * alignment
    data = b"".join(parts)
    return data + bytes(-len(data) % alignment)


def write_tensors(
    output: BinaryIO, metadata: Mapping[str, Metadatum], tensors: Iterable[tuple[TensorPlan, Iterator[bytes]]]
) -> None:
    """Write tensor bytes after the header that `encode_header` built from the same metadata and plans."""
    alignment = _read_alignment(metadata, "header")
    for plan, chunks in tensors:
        written = 0
        for chunk in chunks:
            written += output.write(chunk)
        assert written == plan.size_bytes, f"{plan.name}: {written} bytes written, {plan.size_bytes} planned"
        output.write(bytes(-written % alignment))
