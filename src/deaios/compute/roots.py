"""Names of models: one over the files that travel, one over the numbers that are served.

Invariant: `tensors_root` depends on tensor names, shapes, encodings, bytes and hyperparameters only, never on the
file's layout, tokenizer or descriptive metadata. Frozen with a vector in the tests. Knows nothing of records or offers.
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from deaios.compute.gguf_file import Metadatum, ModelFile, Tensor, ValueType, read_model_file
from deaios.primitives.encoding import Json, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import sha256
from deaios.primitives.merkle import build_root

TENSORS_TAG = "deaios/tensors/1"
HASH_BYTES = 1 << 22
"""Bytes of a tensor hashed at once."""


class InvalidDigests(Invalid):
    """A set of file digests that names no model."""


def compute_model_root(digests: Mapping[str, bytes]) -> bytes:
    """SHA-256 over the files' SHA-256 digests, ordered by path: the subject digest of OpenSSF model signing 1.0.

    Source: Payload in https://github.com/sigstore/model-transparency/blob/main/src/model_signing/_signing/signing.py.

    Args:
        digests: relative POSIX path to 32-byte digest.
    """
    if not digests:
        raise InvalidDigests("a model has at least one file")
    for name, digest in digests.items():
        path = PurePosixPath(name)
        if len(digest) != 32 or path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
            raise InvalidDigests(
                f"{name!r} is not a plain relative path with a 32-byte digest, but {len(digest)} bytes"
            )
    return sha256(b"".join(digests[name] for name in sorted(digests, key=PurePosixPath)))


def compute_file_digest(path: Path) -> bytes:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def compute_tensors_root(path: Path) -> bytes:
    """Merkle root over hyperparameters and tensors of a GGUF file.

    Leaf 0 is the canonical JSON of the architecture's metadata; the others are canonical JSON of name, shape (rows
    first), encoding and SHA-256 of the encoded bytes, ordered by name.

    Raises:
        UnavailableModelFile: the file cannot be opened.
        InvalidModelFile: it is not a supported GGUF file.
    """
    model = read_model_file(path, wants_vocabulary=False)
    prefix = model.get_text("general.architecture") + "."
    parameters: dict[str, Json] = {
        key: _encode_parameter(item)
        for key, item in model.metadata.items()
        if key == "general.architecture" or key.startswith(prefix)
    }
    leaves = [encode_canonical_json(parameters)]
    for _, tensor in sorted(model.tensors.items()):
        record: dict[str, Json] = {
            "encoding": tensor.type.name,
            "name": tensor.name,
            "sha256": encode_hex(_hash_tensor(model, tensor)),
            "shape": tensor.shape,
        }
        leaves.append(encode_canonical_json(record))
    return build_root(TENSORS_TAG, leaves)


def _hash_tensor(model: ModelFile, tensor: Tensor) -> bytes:
    digest = hashlib.sha256()
    rows = max(1, HASH_BYTES // tensor.row_bytes)
    for first in range(0, tensor.rows, rows):
        digest.update(model.map_bytes(tensor, first, min(first + rows, tensor.rows)).data)
    return digest.digest()


def _encode_parameter(item: Metadatum) -> Json:
    """Floats as the hex of their big-endian bytes, because canonical JSON has none."""
    kind = item.element_type or item.type
    if kind not in (ValueType.FLOAT32, ValueType.FLOAT64):
        return item.value  # type: ignore[return-value]  # not a float, by the line above
    layout = ">f" if kind is ValueType.FLOAT32 else ">d"
    if isinstance(item.value, float):
        return encode_hex(struct.pack(layout, item.value))
    assert not isinstance(item.value, int | str)
    return [encode_hex(struct.pack(layout, value)) for value in item.value]
