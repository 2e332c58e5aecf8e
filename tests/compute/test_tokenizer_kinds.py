"""Every kind of tokenizer against llama.cpp's own, live, over drawn Unicode; other kinds are refused by name."""

import itertools
import random
import unicodedata

import pytest
from soak.llama_vocabulary import LlamaVocabulary, write_pair_vocabulary
from soak.tiny_models import write_tiny_model

from deaios.compute.gguf_file import Metadatum, ModelFile, ValueType, encode_header, read_model_file
from deaios.compute.sentencepiece import SPACE, WORD_CHARACTERS_MAX, PieceMerger
from deaios.compute.splitting import SPLITTINGS
from deaios.compute.tokenizer import InvalidText, InvalidTokenizer, Tokenizer

TEXTS = 120
BLOCKS = (
    *((0x20, 0x7F),) * 6,
    (0x01, 0x20), (0x80, 0x250), (0x300, 0x370), (0x370, 0x600), (0x660, 0x66A), (0x900, 0xE80), (0x2000, 0x2100),
    (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF), (0x10000, 0x10500), (0x1D400, 0x1D800),
    (0x1F300, 0x1F700),
)  # fmt: skip
WORDS = (
    "don't", "I'LL we've", " 12345 67", "\r\n\r\n", "  \n  x", "a\tb", "hello World HELLOworld", "$5,000.00", "été",
    "日本語テキスト", "Ünïcödé ", "'s'T'rE", "   ", "\n", "x+y=z|~`^<>", "१२३", "한국어", "<|im_end|>", "fooBar_baz",
    "...!?", "//path\n", "\u00a0x", "\u3000y", "\u200bz", "\u0085", " \u2028 ",
)  # fmt: skip
DISTINCT = sorted({kind.expressions: name for name, kind in sorted(SPLITTINGS.items())}.values())
"""One name for each way to cut."""


def draw_text(dice):
    """Text of assigned characters only: of newer ones, two libraries know different Unicode versions."""
    parts = []
    for _ in range(dice.randint(1, 14)):
        if dice.random() < 0.45:
            parts.append(dice.choice(WORDS))
        else:
            first, last = dice.choice(BLOCKS)
            letters = (chr(dice.randrange(first, last)) for _ in range(dice.randint(1, 4)))
            parts.append("".join(letter for letter in letters if unicodedata.category(letter) not in ("Cn", "Cs")))
    return "".join(parts)


@pytest.mark.parametrize("pre", DISTINCT)
def test_ids_equal_llama_cpp_for_every_way_to_cut(tmp_path, pre):
    path = write_pair_vocabulary(tmp_path / "pairs.gguf", pre)
    tokenizer, peer, dice = Tokenizer.from_gguf(path), LlamaVocabulary(path), random.Random(pre)
    for _ in range(TEXTS):
        text = draw_text(dice)
        assert tokenizer.encode_plain(text) == peer.encode(text), ascii(text)
        assert tokenizer.encode_prompt(text) == peer.encode(text, add_special=True)
    peer.close()


def test_every_name_is_one_that_llama_cpp_knows_and_begins_prompts_as_it_does(tmp_path):
    model = read_model_file(write_tiny_model(tmp_path / "tiny.gguf"))
    path = tmp_path / "language.gguf"
    for pre in sorted(SPLITTINGS):
        kind = Metadatum(ValueType.STRING, pre)
        path.write_bytes(encode_header({**model.metadata, "tokenizer.ggml.pre": kind}, []))
        peer = LlamaVocabulary(path)
        assert Tokenizer.from_gguf(path).encode_prompt("the fox") == peer.encode("the fox", add_special=True), pre
        peer.close()


def test_the_peer_would_notice_another_cut(tmp_path):
    path = write_pair_vocabulary(tmp_path / "pairs.gguf", "qwen2")
    wrong, dice = read_model_file(path), random.Random(3)
    metadata = {**wrong.metadata, "tokenizer.ggml.pre": Metadatum(ValueType.STRING, "llama-bpe")}
    tokenizer = Tokenizer(ModelFile(wrong.path, metadata, wrong.tensors, wrong._bytes))
    peer = LlamaVocabulary(path)
    texts = [draw_text(dice) for _ in range(TEXTS)]
    assert any(tokenizer.encode_plain(text) != peer.encode(text) for text in texts)
    peer.close()


def test_user_defined_words_are_cut_as_llama_cpp_cuts_them_and_control_tokens_never(tmp_path):
    more = {"a": ("<tool_call>", 4), "b": ("<tool", 4), "c": ("[unused]", 5), "d": ("<|eot_id|>", 4), "e": ("a b", 4)}
    path = write_pair_vocabulary(tmp_path / "pairs.gguf", "qwen2", **more)
    tokenizer, peer, dice = Tokenizer.from_gguf(path), LlamaVocabulary(path), random.Random(5)
    words = [
        "<tool_call>",
        "<tool",
        "_call>",
        "[unused]",
        "<|eot_id|>",
        "a b",
        "a",
        " b",
        "x",
        "<|im_end|>",
        "<|begin|>",
    ]
    for _ in range(400):
        text = "".join(dice.choice(words) for _ in range(dice.randint(1, 8)))
        ids = tokenizer.encode_plain(text)
        assert ids == peer.encode(text), text
        assert not set(ids) & set(tokenizer.special_ids.values())
    assert {"<|eot_id|>", "<|im_end|>", "<|begin|>"} == tokenizer.special_ids.keys()
    assert tokenizer.get_bytes(tokenizer.encode_plain("<tool_call>")[0]) == b"<tool_call>"
    peer.close()


def test_spm_equals_llama_cpp(tmp_path):
    path = write_tiny_model(tmp_path / "spm.gguf", vocabulary="spm")
    tokenizer, peer, dice = Tokenizer.from_gguf(path), LlamaVocabulary(path), random.Random(7)
    for _ in range(600):
        text = draw_text(dice)
        assert tokenizer.encode_plain(text) == peer.encode(text), ascii(text)
    assert tokenizer.encode_prompt("the fox") == peer.encode("the fox", add_special=True)
    assert tokenizer.encode_plain("") == peer.encode("") == ()
    for token in range(tokenizer.vocabulary_size):
        assert tokenizer.get_bytes(token) == peer.get_bytes(token)
        assert (token in tokenizer.end_ids) == peer.is_end(token)
    peer.close()


def test_spm_without_its_leading_space_equals_llama_cpp(tmp_path):
    path = write_tiny_model(tmp_path / "spm.gguf", vocabulary="spm", space_prefix=False)
    tokenizer, peer, dice = Tokenizer.from_gguf(path), LlamaVocabulary(path), random.Random(8)
    for _ in range(100):
        text = draw_text(dice)
        assert tokenizer.encode_plain(text) == peer.encode(text), ascii(text)
    peer.close()


def test_pieces_merge_by_score_and_place_even_across_words():
    """Against the definition: the best pair anywhere is joined, again and again."""
    dice = random.Random(11)
    for _ in range(60):
        letters = ["a", "b", SPACE, "é"]
        pieces = {letter: index for index, letter in enumerate(letters[:3])}
        for _ in range(30):
            piece = "".join(dice.choice(letters) for _ in range(dice.randint(2, 4)))
            pieces.setdefault(piece, len(pieces))
        scores = [float(dice.randint(-6, 0)) for _ in pieces]
        of_byte = [1000 + byte for byte in range(256)]
        merger = PieceMerger(pieces, scores, of_byte)
        for _ in range(10):
            text = "".join(dice.choice("ab é") for _ in range(dice.randint(0, 14)))
            assert merger.encode(text) == join_slowly(text.replace(" ", SPACE), pieces, scores, of_byte), text


def join_slowly(text, pieces, scores, of_byte):
    parts = list(text)
    while True:
        pairs = [
            (-scores[pieces[left + right]], place)
            for place, (left, right) in enumerate(itertools.pairwise(parts))
            if left + right in pieces
        ]
        if not pairs:
            break
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [
        token
        for part in parts
        for token in ([pieces[part]] if part in pieces else map(of_byte.__getitem__, part.encode()))
    ]


def test_a_run_that_would_take_long_is_refused(tmp_path):
    tokenizer = Tokenizer.from_gguf(write_tiny_model(tmp_path / "spm.gguf", vocabulary="spm"))
    with pytest.raises(InvalidText, match="without a space"):
        tokenizer.encode_plain("x" * (WORD_CHARACTERS_MAX + 1))
    assert len(tokenizer.encode_plain("the fox " * 20_000)) > 20_000


def change(path, **changes):
    model = read_model_file(path)
    metadata = dict(model.metadata)
    for key, value in changes.items():
        name = "tokenizer.ggml." + key
        old = metadata.get(name, Metadatum(ValueType.STRING, ""))
        metadata[name] = Metadatum(old.type, value, old.element_type)
    return ModelFile(model.path, metadata, model.tensors, model._bytes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": "bert"}, "'bert' .WordPiece, for embeddings"),
        ({"model": "t5"}, "unigrams"),
        ({"model": "nonesuch"}, "an unknown kind"),
        ({"scores": (1.0,)}, "scores is not a list"),
        ({"bos_token_id": 1 << 20}, "bos_token_id 1048576 is no token"),
    ],
)
def test_other_kinds_and_broken_ones_are_refused_by_name(tmp_path, changes, word):
    path = write_tiny_model(tmp_path / "spm.gguf", vocabulary="spm")
    with pytest.raises(InvalidTokenizer, match=word):
        Tokenizer(change(path, **changes))


def test_an_spm_vocabulary_without_all_bytes_is_refused(tmp_path):
    path = write_tiny_model(tmp_path / "spm.gguf", vocabulary="spm")
    types = list(read_model_file(path).get_value("tokenizer.ggml.token_type"))
    types[3] = 5
    with pytest.raises(InvalidTokenizer, match="255 byte tokens"):
        Tokenizer(change(path, token_type=tuple(types)))


def test_ends_of_channels_do_not_end_an_answer(tmp_path):
    more = {"a": ("<|end|>", 3), "b": ("<|return|>", 3), "c": ("<|call|>", 3)}
    path = write_pair_vocabulary(tmp_path / "pairs.gguf", "gpt-4o", **more)
    tokenizer, peer = Tokenizer.from_gguf(path), LlamaVocabulary(path)
    assert {index for index in range(peer.size) if peer.is_end(index)} == tokenizer.end_ids
    assert tokenizer.special_ids["<|end|>"] not in tokenizer.end_ids
    peer.close()
