"""The deterministic rewrites, the roots that name them, and what hostile model files get."""

import hashlib
import struct

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.expansion import expand_to_f16, requantise_q4_0, requantise_q8_0
from deaios.compute.gguf_file import (
    InvalidModelFile,
    Metadatum,
    TensorPlan,
    TensorType,
    UnavailableModelFile,
    ValueType,
    decode_rows,
    encode_header,
    encode_rows,
    read_model_file,
    write_tensors,
)
from deaios.compute.roots import InvalidDigests, compute_file_digest, compute_model_root, compute_tensors_root

F16_SHA256 = "bf96b6ccd3424db8cd70940c4fed41eba58a605ac2cb3e9dea76b5d81143cdc6"
F16_TENSORS_ROOT = "05e6bf727c0861da57e19626f454bdb83c946f62c2f260db6c5c2adbce9b778d"


def write_model(path, *, value=-1.0, name="weights", extra=None, rotary=10000.0):
    """A tiny model: one matrix of 4 rows by 64, one vector."""
    metadata = {
        "general.architecture": Metadatum(ValueType.STRING, "llama"),
        "llama.rope.freq_base": Metadatum(ValueType.FLOAT32, rotary),
        "tokens": Metadatum(ValueType.ARRAY, ("a", "b", "ü"), ValueType.STRING),
        "scores": Metadatum(ValueType.ARRAY, (1, -2, 3), ValueType.INT32),
        "flag": Metadatum(ValueType.BOOL, True),
        **(extra or {}),
    }
    matrix = np.linspace(-1.0, 1.0, 256, dtype=np.float32).reshape(4, 64)
    matrix[0, 0] = value
    vector = np.arange(5, dtype=np.float32)
    plans = [TensorPlan(name, (4, 64), TensorType.F32), TensorPlan("vector", (5,), TensorType.F32)]
    with path.open("wb") as file:
        file.write(encode_header(metadata, plans))
        write_tensors(
            file,
            metadata,
            [
                (plans[0], iter([encode_rows(matrix, TensorType.F32)])),
                (plans[1], iter([encode_rows(vector, TensorType.F32)])),
            ],
        )
    return matrix, vector


def test_expansion_of_the_default_model_is_frozen(model_files, tmp_path):
    calls = []
    target = tmp_path / "again.gguf"
    expand_to_f16(model_files.source, target, lambda done, total: calls.append((done, total)))
    assert compute_file_digest(target).hex() == F16_SHA256
    assert compute_file_digest(model_files.served).hex() == F16_SHA256
    assert compute_tensors_root(target).hex() == F16_TENSORS_ROOT
    assert calls == sorted(calls)
    assert calls[-1] == (269100288, 269100288)
    assert [path.name for path in tmp_path.iterdir()] == ["again.gguf"]


def test_expansion_equals_what_the_gguf_package_reads(model_files):
    source, served = gguf.GGUFReader(model_files.source), gguf.GGUFReader(model_files.served)
    assert [tensor.name for tensor in source.tensors] == [tensor.name for tensor in served.tensors]
    for before, after in zip(source.tensors[:40], served.tensors[:40], strict=True):
        expected = gguf.dequantize(before.data, before.tensor_type)
        expected = expected if expected.ndim == 1 else expected.astype(np.float16)
        assert after.data.dtype == expected.dtype
        assert np.array_equal(expected, after.data)
    assert served.fields["general.file_type"].contents() == 1
    for key in ("tokenizer.ggml.merges", "tokenizer.chat_template", "llama.rope.freq_base"):
        assert source.fields[key].contents() == served.fields[key].contents()


def test_rewrites_read_back_as_the_nearest_values(tmp_path):
    source = tmp_path / "source.gguf"
    matrix, vector = write_model(source)
    for rewrite, encoding, step in (
        (expand_to_f16, TensorType.F16, 1 / 2048),
        (requantise_q8_0, TensorType.Q8_0, 1 / 127),
        (requantise_q4_0, TensorType.Q4_0, 1 / 8),
    ):
        target = tmp_path / f"{encoding.name}.gguf"
        rewrite(source, target)
        model = read_model_file(target)
        tensor = model.get_tensor("weights")
        assert (tensor.type, tensor.shape) == (encoding, (4, 64))
        assert np.abs(model.read_rows(tensor) - matrix).max() <= step
        assert np.array_equal(model.read_rows(model.get_tensor("vector"))[0], vector)
        assert model.get_texts("tokens") == ("a", "b", "ü")
        assert compute_tensors_root(target) != compute_tensors_root(source)
        twice = tmp_path / "twice.gguf"
        rewrite(source, twice)
        assert twice.read_bytes() == target.read_bytes()


@pytest.mark.parametrize("encoding", TensorType)
def test_every_encoding_of_weights_is_decoded_and_others_are_refused_by_name(encoding):
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType(encoding)]
    block = np.zeros((1, size), np.uint8)
    if encoding.name in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"):
        with pytest.raises(InvalidModelFile, match=encoding.name):
            decode_rows(block, encoding)
    else:
        assert decode_rows(block, encoding).shape == (1, values)


def test_a_value_beyond_f16_is_refused_and_leaves_nothing(tmp_path):
    source = tmp_path / "source.gguf"
    for value in (70000.0, float("inf")):
        write_model(source, value=value)
        with pytest.raises(InvalidModelFile, match="beyond the F16 range"):
            expand_to_f16(source, tmp_path / "target.gguf")
        assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_an_interrupted_rewrite_keeps_the_old_target(tmp_path):
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_model(source)
    target.write_bytes(b"old")

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expand_to_f16(source, target, interrupt)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.gguf", "target.gguf"]


def test_tensors_root_names_numbers_and_hyperparameters_only(tmp_path):
    base, other = tmp_path / "base.gguf", tmp_path / "other.gguf"
    write_model(base)
    root = compute_tensors_root(base)
    assert root.hex() == "9e264c92145f5240daf9415eeccc26359ba134d69e60a15781cdf1201b982db6"
    write_model(other, extra={"general.name": Metadatum(ValueType.STRING, "another name")})
    assert compute_tensors_root(other) == root
    for change in ({"value": 2.0}, {"name": "heavies"}, {"rotary": 10001.0}):
        write_model(other, **change)
        assert compute_tensors_root(other) != root


def test_model_root_is_the_digest_of_ordered_digests():
    one, two, three = (hashlib.sha256(bytes([value])).digest() for value in range(3))
    assert compute_model_root({"model.gguf": one}) == hashlib.sha256(one).digest()
    # paths are ordered part by part, so "a/x" comes before "a-b"; as texts they would not
    expected = hashlib.sha256(two + one + three).digest()
    assert compute_model_root({"a-b": one, "a/x": two, "b": three}) == expected
    assert compute_model_root({"b": three, "a/x": two, "a-b": one}) == expected


@pytest.mark.parametrize(
    "digests", [{}, {"a": b"short"}, {"/a": bytes(32)}, {"../a": bytes(32)}, {"a//b": bytes(32)}, {".": bytes(32)}]
)
def test_digests_that_name_no_model_are_refused(digests):
    with pytest.raises(InvalidDigests):
        compute_model_root(digests)


def test_missing_and_short_files_are_refused(tmp_path):
    with pytest.raises(UnavailableModelFile, match="cannot be opened"):
        read_model_file(tmp_path / "missing")
    with pytest.raises(UnavailableModelFile, match="cannot be opened"):
        read_model_file(tmp_path)
    (tmp_path / "short").write_bytes(b"GGUF")
    with pytest.raises(InvalidModelFile, match="4 bytes"):
        read_model_file(tmp_path / "short")


@pytest.fixture(scope="module")
def tiny_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_model(path)
    return path.read_bytes()


@pytest.mark.parametrize("wants_vocabulary", [True, False])
def test_every_truncation_is_refused(tiny_bytes, tmp_path, wants_vocabulary):
    path = tmp_path / "cut.gguf"
    end = len(tiny_bytes) - 12  # the vector's padding
    for size in range(0, end, 3):
        path.write_bytes(tiny_bytes[:size])
        with pytest.raises(InvalidModelFile):
            read_model_file(path, wants_vocabulary=wants_vocabulary)


def test_a_vocabulary_that_is_not_wanted_is_passed_over_and_counted(tmp_path):
    path = tmp_path / "model.gguf"
    tokens = Metadatum(ValueType.ARRAY, ("one", "", "drei ü", "4"), ValueType.STRING)
    write_model(path, extra={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.model": Metadatum(ValueType.STRING, "x")})
    whole, brief = read_model_file(path), read_model_file(path, wants_vocabulary=False)
    assert whole.get_texts("tokenizer.ggml.tokens") == ("one", "", "drei ü", "4")
    assert brief.get_texts("tokenizer.ggml.tokens") == ("",) * 4
    assert {**whole.metadata, "tokenizer.ggml.tokens": None} == {**brief.metadata, "tokenizer.ggml.tokens": None}
    assert brief.tensors == whole.tensors
    data = path.read_bytes()
    last = data.index(b"drei") - 8
    for length in (1 << 20, 1 << 62):
        path.write_bytes(data[:last] + struct.pack("<Q", length) + data[last + 8 :])
        with pytest.raises(InvalidModelFile, match=r"tokenizer\.ggml\.tokens"):
            read_model_file(path, wants_vocabulary=False)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_read_or_refused_but_never_crash(tiny_bytes, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    changed = bytearray(tiny_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 420))
        changed[place] = data.draw(st.sampled_from([0, 1, 2, 9, 0x7F, 0x80, 0xFF]))
    path.write_bytes(changed)
    try:
        model = read_model_file(path)
    except InvalidModelFile:
        return
    for tensor in model.tensors.values():
        assert model.map_bytes(tensor).size == tensor.size_bytes


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (8, struct.pack("<Q", 1 << 40), "tensors and"),
        (16, struct.pack("<Q", 1 << 40), "keys, at most"),
        (24, struct.pack("<Q", 1 << 62), "metadata key has"),
        (4, struct.pack("<I", 4), "version 4"),
    ],
)
def test_claims_beyond_the_bounds_are_refused_before_memory_is_taken(tiny_bytes, tmp_path, place, value, message):
    path = tmp_path / "claims.gguf"
    path.write_bytes(tiny_bytes[:place] + value + tiny_bytes[place + len(value) :])
    with pytest.raises(InvalidModelFile, match=message):
        read_model_file(path)
