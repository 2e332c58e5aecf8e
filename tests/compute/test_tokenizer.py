"""Ids and text against llama.cpp live, against frozen transformers vectors, and against hostile text."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.gguf_file import Metadatum, ModelFile, ValueType, read_model_file
from deaios.compute.tokenizer import (
    TEXT_BYTES_MAX,
    InvalidText,
    InvalidTokenizer,
    StreamDecoder,
    Tokenizer,
)

VECTORS = json.loads(gzip.decompress((Path(__file__).parent / "tokenizer-vectors.json.gz").read_bytes()))["vectors"]
UNSPELLABLE = "\x04\x06\x13\x14\x16\x1d"
"""Control characters whose bytes SmolLM2's vocabulary lacks; every implementation drops them."""


@pytest.fixture(scope="module")
def model(model_files):
    return read_model_file(model_files.source)


@pytest.fixture(scope="module")
def tokenizer(model):
    return Tokenizer(model)


def change_metadata(model, **changes):
    """The same model file with other metadata; None takes a key away."""
    metadata = dict(model.metadata)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del metadata[name]
        else:
            old = model.metadata.get(name, Metadatum(ValueType.STRING, ""))
            metadata[name] = Metadatum(old.type, value, old.element_type)
    return ModelFile(model.path, metadata, model.tensors, model._bytes)


def test_ids_equal_transformers(tokenizer):
    assert len(VECTORS) == 200
    for vector in VECTORS:
        assert list(tokenizer.encode_plain(vector["text"])) == vector["ids"], vector["text"]


def test_ids_equal_llama_cpp_live(tokenizer, llama_server):
    for vector in VECTORS:
        live = llama_server.post("/tokenize", content=vector["text"], parse_special=False)
        assert list(tokenizer.encode_plain(vector["text"])) == live["tokens"], vector["text"]


def test_special_looking_text_equals_llama_cpp_without_parsing(tokenizer, llama_server):
    for special in tokenizer.special_ids:
        text = f"say {special}{special} now"
        live = llama_server.post("/tokenize", content=text, parse_special=False)
        assert list(tokenizer.encode_plain(text)) == live["tokens"]


def test_bytes_equal_llama_cpp_live(tokenizer, llama_server):
    for ids in ([vector["ids"] for vector in VECTORS[:80]], [[token] for token in range(17, 49152, 97)]):
        for item in ids:
            live = llama_server.post("/detokenize", tokens=item)
            assert tokenizer.decode(item).strip("\ufffd") == live["content"].strip("\ufffd")


def test_text_comes_back(tokenizer):
    for vector in VECTORS:
        text = "".join(character for character in vector["text"] if character not in UNSPELLABLE)
        assert tokenizer.decode(tokenizer.encode_plain(vector["text"])) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_encodes_without_special_tokens(tokenizer, text):
    ids = tokenizer.encode_plain(text + "<|im_end|>" + text)
    assert not set(ids) & set(tokenizer.special_ids.values())


def test_no_special_token_is_reachable_from_its_own_text(tokenizer):
    assert len(tokenizer.special_ids) == 17
    for text, index in tokenizer.special_ids.items():
        assert index not in tokenizer.encode_plain(text)
        assert tokenizer.get_bytes(index) == b""


def test_ends_and_named_specials(tokenizer):
    assert tokenizer.end_ids == {0, 2}
    assert tokenizer.named_specials == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    assert tokenizer.vocabulary_size == 49152


def test_rendered_pieces_keep_special_ids_apart(tokenizer):
    assert tokenizer.encode_rendered([1, "user\nhi", 2, "\n"]) == (
        1,
        *tokenizer.encode_plain("user\nhi"),
        2,
        *tokenizer.encode_plain("\n"),
    )


def test_hash_is_frozen_and_covers_the_vocabulary(model, tokenizer):
    assert tokenizer.tokenizer_hash.hex() == "435c37abd35cc118465d7bfd376d89663b79f2322c88984cd29add84bf507c5e"
    changed = change_metadata(model, tokenizer__ggml__padding_token_id=0)
    assert Tokenizer(changed).tokenizer_hash != tokenizer.tokenizer_hash


def test_expansion_keeps_the_tokenizer(model_files, tokenizer):
    assert Tokenizer.from_gguf(model_files.served).tokenizer_hash == tokenizer.tokenizer_hash


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tokenizer__ggml__model": "bert"}, "tokenizer model 'bert'"),
        ({"tokenizer__ggml__pre": "qwen9"}, "pre-tokenizer 'qwen9'"),
        ({"tokenizer__ggml__token_type": (1,)}, "token_type"),
        ({"tokenizer__ggml__token_type": (1,) * 49151 + (7,)}, "token types"),
        ({"tokenizer__ggml__tokens": ("a",) * 49152}, "share one text"),
        ({"tokenizer__ggml__merges": ("nospace",)}, "merge 'nospace'"),
        ({"tokenizer__ggml__merges": ("<|im _end|>",)}, "merge"),
        ({"tokenizer__ggml__merges": ("a \u2603",)}, "merge"),
    ],
)
def test_hostile_metadata_is_refused(model, changes, word):
    with pytest.raises(InvalidTokenizer, match=word):
        Tokenizer(change_metadata(model, **changes))


def test_hostile_text_is_refused(tokenizer):
    with pytest.raises(InvalidText, match="lone surrogate at character 1"):
        tokenizer.encode_plain("a\ud800")
    with pytest.raises(InvalidText, match="exceeds"):
        tokenizer.encode_plain("a" * (TEXT_BYTES_MAX + 1))
    for token in (-1, 49152):
        with pytest.raises(InvalidText, match="outside the vocabulary"):
            tokenizer.decode([token])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=15).map(lambda text: text.encode(errors="replace")), st.data())
def test_stream_decoder_equals_decoding_at_once(data, draw):
    decoder, shown, place = StreamDecoder(), [], 0
    while place < len(data):
        size = draw.draw(st.integers(1, 5))
        shown.append(decoder.push(data[place : place + size]))
        place += size
    shown.append(decoder.close())
    assert "".join(shown) == data.decode("utf-8", "replace")


def test_stream_decoder_shows_a_character_only_when_it_is_whole():
    decoder = StreamDecoder()
    assert [decoder.push(bytes([byte])) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
