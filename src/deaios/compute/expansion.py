"""One model file rewritten with another tensor encoding, the same bytes on every run and every machine.

Invariant: the target appears whole and synced to disk, or not at all. The F16 expansion is what the network serves
and what `tensors_root` names; the quantised rewrites exist so that tests and demonstrations have a real cheat to
catch. Knows nothing of who asked or where the source came from.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from deaios.compute.gguf_file import (
    InvalidModelFile,
    Metadatum,
    ModelFile,
    Tensor,
    TensorPlan,
    TensorType,
    ValueType,
    encode_header,
    encode_rows,
    read_model_file,
    write_tensors,
)

CHUNK_VALUES = 1 << 20
"""Values decoded at once: 4 MiB of float32, so that the largest tensor costs no more memory than the smallest."""

_FILE_TYPE_KEY = "general.file_type"
_FILE_TYPES: Mapping[TensorType, int] = {TensorType.F16: 1, TensorType.Q4_0: 2, TensorType.Q8_0: 7}
"""llama.cpp's LLAMA_FTYPE numbers."""

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in all."""


def expand_to_f16(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Write `source` with every matrix as F16 and every vector as F32.

    Raises:
        UnavailableModelFile: `source` cannot be opened.
        InvalidModelFile: it is not a supported GGUF file, or a value does not fit F16.
    """
    _rewrite(source, target, TensorType.F16, progress)


def requantise_q8_0(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Write `source` with 8-bit matrices: the cheapest dishonest provider, for tests and demonstrations."""
    _rewrite(source, target, TensorType.Q8_0, progress)


def requantise_q4_0(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Write `source` with 4-bit matrices: a coarser dishonest provider, for tests and demonstrations."""
    _rewrite(source, target, TensorType.Q4_0, progress)


def _rewrite(source: Path, target: Path, encoding: TensorType, progress: Progress | None) -> None:
    model = read_model_file(source)
    metadata = {key: item for key, item in model.metadata.items() if key != _FILE_TYPE_KEY}
    metadata[_FILE_TYPE_KEY] = Metadatum(ValueType.UINT32, _FILE_TYPES[encoding])
    plans = [
        TensorPlan(tensor.name, tensor.shape, encoding if len(tensor.shape) > 1 else TensorType.F32)
        for tensor in model.tensors.values()
    ]
    total = sum(plan.size_bytes for plan in plans)
    done = 0

    def counted(chunks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal done
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            if progress is not None:
                progress(done, total)

    sources = list(model.tensors.values())
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name + ".", suffix=".part", delete=False) as file:
        part = Path(file.name)
        try:
            file.write(encode_header(metadata, plans))
            encoded = (
                (plan, counted(_encode_tensor(model, tensor, plan.type)))
                for tensor, plan in zip(sources, plans, strict=True)
            )
            write_tensors(file, metadata, encoded)  # type: ignore[arg-type]  # typeshed's wrapper is a BinaryIO in fact
            file.flush()
            os.fsync(file.fileno())
            part.chmod(0o644)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)  # gone already when it became the target
    _sync_directory(target.parent)


def _encode_tensor(model: ModelFile, tensor: Tensor, encoding: TensorType) -> Iterator[bytes]:
    rows_per_chunk = max(1, CHUNK_VALUES // tensor.shape[-1])
    for first in range(0, tensor.rows, rows_per_chunk):
        rows = model.read_rows(tensor, first, min(first + rows_per_chunk, tensor.rows))
        largest = float(np.abs(rows).max())
        if not largest <= 65504.0:  # the largest finite F16; also false for NaN
            raise InvalidModelFile(f"tensor {tensor.name} holds {largest}, beyond the F16 range of 65504")
        yield encode_rows(rows, encoding)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
