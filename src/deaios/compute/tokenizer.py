"""Tokenizer built from a model file's own metadata: byte-level BPE of many kinds, and SentencePiece by scores.

Invariant: text that people write never becomes a special token; only a rendered template's exact names do. Ids and
bytes agree with llama.cpp and transformers (tests/compute/test_tokenizer.py, test_tokenizer_kinds.py). A file of a kind
that is not reproduced is refused by name. Knows nothing of messages or templates.
"""

import codecs
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import tokenizers
from tokenizers import models

from deaios.compute.gguf_file import ModelFile, read_model_file
from deaios.compute.sentencepiece import SPACE, InvalidWord, PieceMerger
from deaios.compute.splitting import InvalidTokenizer, Splitting, build_splitter, find_splitting
from deaios.primitives.encoding import Json, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256

TOKENIZER_TAG = "deaios/tokenizer/1"
TEXT_BYTES_MAX = 4 << 20
"""Longest text encoded in one call; four times the longest chat body."""

KNOWN_MAX = 256
"""Texts whose ids are remembered: what templates write around messages."""
KNOWN_CHARACTERS_MAX = 4096
"""Of one of them."""

BPE, SPM = "gpt2", "llama"
"""Kinds of tokenizers, as `tokenizer.ggml.model` names them."""
_REFUSED_KINDS: Final[Mapping[str, str]] = {
    "bert": "WordPiece, for embeddings",
    "t5": "SentencePiece by unigrams",
    "rwkv": "RWKV's greedy trie",
    "plamo2": "PLaMo-2's",
    "gemma4": "byte pairs over raw UTF-8",
    "none": "no tokenizer at all",
}

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""Token types of the GGUF format (llama.h, enum llama_token_type)."""

_END_NAMES: Final = frozenset(
    {
        "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>",
        "<|flush|>", "<end_of_turn>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
    }
)  # fmt: skip
"""Tokens that end an answer by name, beside those the metadata names (llama.cpp, src/llama-vocab.cpp); they are
control tokens whatever type the file gives them."""
_CHANNEL_ENDS: Final = (frozenset({"<|return|>", "<|call|>"}), frozenset({"<|call|>", "<|flush|>"}))
"""Vocabularies with these end a part of an answer with <|end|>, not the answer."""

_HASHED_KEYS: Final = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
)
"""Everything that decides ids, text or ends. The hash covers these and the scores of SPM, and nothing else."""
_SCORES_KEY: Final = "tokenizer.ggml.scores"
_BYTE_PATTERN: Final = re.compile(r"<0x([0-9A-F]{2})>", re.ASCII)


class InvalidText(Invalid):
    """Text that has no UTF-8 form, or is too long."""


def _byte_alphabet() -> Mapping[int, str]:
    """GPT-2's printable stand-in for every byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}


_LATIN_OF: Final = {ord(character): byte for byte, character in _byte_alphabet().items()}
"""Code point of a stand-in to its byte, which is also a Latin-1 code point."""


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocabulary_size: number of ids.
        special_ids: id of every special token by its text.
        end_ids: ids that end an answer.
        begin_id: the id that a prompt of plain text begins with, or None.
        tokenizer_hash: 32 bytes over all metadata that decides ids, text or ends.
        named_specials: `bos_token`, `eos_token`, ... as templates know them.
        special_pattern: finds special tokens in rendered text, longest first.
        special_starts: every first character of a special token.
        special_ends: every last character.
        special_characters_max: of the longest special token.
    """

    def __init__(self, model: ModelFile) -> None:
        kind = model.get_text("tokenizer.ggml.model")
        if kind not in (BPE, SPM):
            what = _REFUSED_KINDS.get(kind, "an unknown kind")
            raise InvalidTokenizer(
                f"tokenizer model {kind[:40]!r} ({what}) is not supported; gpt2 (byte-level BPE) and llama "
                f"(SentencePiece by scores) are"
            )
        tokens, types = _read_vocabulary(model)
        self.vocabulary_size = len(tokens)
        self.special_ids: Mapping[str, int] = {
            text: index
            for index, (text, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (_CONTROL, _UNKNOWN)
        }
        self._special_names: Mapping[int, str] = {index: text for text, index in self.special_ids.items()}
        self.named_specials: Mapping[str, str] = _read_named(model, tokens)
        self.end_ids: frozenset[int] = _read_end_ids(model, self.special_ids)
        self.tokenizer_hash = _compute_hash(model, kind)
        longest_first = sorted(self.special_ids, key=lambda text: (-len(text), text))
        self.special_pattern: re.Pattern[str] = re.compile("|".join(map(re.escape, longest_first)))
        self.special_starts = "".join(sorted({text[0] for text in self.special_ids}))
        self.special_ends = "".join(sorted({text[-1] for text in self.special_ids}))
        self.special_characters_max = max(map(len, self.special_ids), default=0)
        self._known: dict[str, tuple[int, ...]] = {}
        # Whole words that text may hold, such as <tool_call>: looked for before anything is split, the longest first.
        self._whole_words = {
            text: index for index, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == _USER_DEFINED
        }
        self._whole_words_by_length = sorted(self._whole_words, key=lambda text: -len(text.encode()))
        add_bos: bool
        if kind == SPM:
            self._bytes = _read_piece_bytes(tokens, types)
            self._encode_words = _build_merger(model, tokens, types)
            add_bos = True
        else:
            splitting = find_splitting(_read_pre(model))
            self._bytes = _read_alphabet_bytes(tokens, types)
            core = _build_core(model, tokens, types, splitting)
            self._encode_words = lambda text: core.encode(text, add_special_tokens=False).ids
            add_bos = splitting.add_bos
        self.begin_id: int | None = _read_begin_id(model, add_bos, self._special_names)

    @classmethod
    def from_gguf(cls, path: Path) -> "Tokenizer":
        """Build from a model file.

        Raises:
            UnavailableModelFile: it cannot be opened.
            InvalidModelFile: it is not a GGUF file.
            InvalidTokenizer: its tokenizer is of another kind or inconsistent.
        """
        return cls(read_model_file(path))

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Ids of text in which nothing is special, whatever it looks like, and without a beginning.

        Raises:
            InvalidText: lone surrogates, longer than `TEXT_BYTES_MAX`, or a run that takes too long.
        """
        validate_text(text)
        ids: list[int] = []
        try:
            for piece in self._cut_whole_words(text):
                if isinstance(piece, int):
                    ids.append(piece)
                else:
                    ids.extend(self._encode_words(piece))
        except InvalidWord as error:
            raise InvalidText(str(error)) from error
        return tuple(ids)

    def encode_often(self, text: str) -> tuple[int, ...]:
        """The same of a text that comes again and again; a bounded number of short ones are remembered.

        Raises:
            InvalidText: as in `encode_plain`.
        """
        known = self._known.get(text)
        if known is None:
            known = self.encode_plain(text)
            if len(text) <= KNOWN_CHARACTERS_MAX:
                if len(self._known) >= KNOWN_MAX:
                    self._known = {}  # rather than to evict by age: threads share it, and it is full again at once
                self._known[text] = known
        return known

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Ids of a prompt that is plain text: with the model's own beginning, where it has one.

        Raises:
            InvalidText: as in `encode_plain`.
        """
        begin = () if self.begin_id is None else (self.begin_id,)
        return begin + self.encode_plain(text)

    def _cut_whole_words(self, text: str) -> list[str | int]:
        """Text cut at user-defined tokens, as llama.cpp cuts it: every place of the longest first."""
        pieces: list[str | int] = [text] if text else []
        for word in self._whole_words_by_length:
            if word not in text:
                continue
            cut: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    cut.append(piece)
                    continue
                for place, part in enumerate(piece.split(word)):
                    if place:
                        cut.append(self._whole_words[word])
                    if part:
                        cut.append(part)
            pieces = cut
        return pieces

    def encode_rendered(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        """Ids of rendered pieces: text is encoded plainly, an int is a special token's id."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                assert piece in self._special_names
                ids.append(piece)
            else:
                ids.extend(self.encode_plain(piece))
        return tuple(ids)

    def get_bytes(self, token: int) -> bytes:
        """The bytes a token adds to the text; none for special tokens.

        Raises:
            InvalidText: no such id.
        """
        if not 0 <= token < self.vocabulary_size:
            raise InvalidText(f"token id {token} is outside the vocabulary of {self.vocabulary_size}")
        return self._bytes[token]

    def get_label(self, token: int) -> str:
        """How a token is shown by itself: a special token's name, else its bytes as text, U+FFFD where they are none.

        Raises:
            InvalidText: no such id.
        """
        data = self.get_bytes(token)
        return self._special_names.get(token) or data.decode("utf-8", "replace")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.get_bytes(token) for token in ids).decode("utf-8", "replace")


class StreamDecoder:
    """Text out of bytes that arrive in any portions; a character comes out only when it is whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """Text that is complete after these bytes."""
        return self._decoder.decode(data)

    @property
    def pending_bytes(self) -> int:
        """Bytes of a character that is not whole yet."""
        return len(self._decoder.getstate()[0])

    def close(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", True)


def validate_text(text: str) -> None:
    """Check that text has a UTF-8 form of bounded length.

    Raises:
        InvalidText: it has not.
    """
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidText(f"text holds a lone surrogate at character {error.start}") from error
    if size_bytes > TEXT_BYTES_MAX:
        raise InvalidText(f"text of {size_bytes} bytes exceeds {TEXT_BYTES_MAX}")


def _read_vocabulary(model: ModelFile) -> tuple[Sequence[str], Sequence[int]]:
    """Texts and types; what the metadata or its name makes a special token is one whatever its type."""
    tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(model.get_texts("tokenizer.ggml.tokens"))]
    found = model.get_value("tokenizer.ggml.token_type")
    if isinstance(found, str) or not isinstance(found, Sequence) or len(found) != len(tokens):
        raise InvalidTokenizer(f"token_type is not a list of {len(tokens)} numbers")
    if len(set(tokens)) != len(tokens):
        raise InvalidTokenizer("two token ids share one text")
    strange = sorted({str(item) for item in found if item not in range(_NORMAL, _BYTE + 1)})
    if strange:
        raise InvalidTokenizer(f"token types {strange[:8]} are not supported; 1 to 6 are")
    types = [int(item) for item in found]
    for index, text in enumerate(tokens):
        if text in _END_NAMES:
            types[index] = _CONTROL
    for name in ("bos", "eos", "eot", "eom"):
        index = model.get_int(f"tokenizer.ggml.{name}_token_id", -1)
        if 0 <= index < len(tokens):
            types[index] = _CONTROL
    if any(kind in (_CONTROL, _UNKNOWN) and len(text) < 2 for text, kind in zip(tokens, types, strict=True)):
        raise InvalidTokenizer("a control token has fewer than two characters")
    return tokens, types


def _read_pre(model: ModelFile) -> str:
    return model.get_text("tokenizer.ggml.pre") if "tokenizer.ggml.pre" in model.metadata else "default"


def _read_byte(text: str) -> bytes:
    found = _BYTE_PATTERN.fullmatch(text)
    if found is None:
        raise InvalidTokenizer(f"byte token {text[:40]!r} is not spelled <0x00> to <0xFF>")
    return bytes([int(found[1], 16)])


def _read_alphabet_bytes(tokens: Sequence[str], types: Sequence[int]) -> tuple[bytes, ...]:
    """Bytes of each token of a byte-level vocabulary."""
    pairs = list(zip(tokens, types, strict=True))
    strange = set[str]().union(*(text for text, kind in pairs if kind == _NORMAL)) - {chr(point) for point in _LATIN_OF}
    if strange:
        text = next(text for text, kind in pairs if kind == _NORMAL and strange & set(text))
        raise InvalidTokenizer(f"token {text[:40]!r} is not spelled in the byte alphabet")

    def spell(text: str, kind: int) -> bytes:
        if kind == _NORMAL:
            return text.translate(_LATIN_OF).encode("latin-1")
        if kind == _BYTE:
            return _read_byte(text)
        return text.encode() if kind == _USER_DEFINED else b""

    return tuple(spell(text, kind) for text, kind in pairs)


def _read_piece_bytes(tokens: Sequence[str], types: Sequence[int]) -> tuple[bytes, ...]:
    """Bytes of each token of an SPM vocabulary."""

    def spell(text: str, kind: int) -> bytes:
        if kind == _BYTE:
            return _read_byte(text)
        if kind == _NORMAL:
            return text.replace(SPACE, " ").encode()
        return text.encode() if kind == _USER_DEFINED else b""

    return tuple(spell(text, kind) for text, kind in zip(tokens, types, strict=True))


def _build_core(
    model: ModelFile, tokens: Sequence[str], types: Sequence[int], splitting: Splitting
) -> tokenizers.Tokenizer:
    """The merging core; only normal tokens are in its vocabulary, so no text can reach another."""
    vocabulary = {text: index for index, text in enumerate(tokens) if types[index] == _NORMAL}
    merges: list[tuple[str, str]] = []
    for line in model.get_texts("tokenizer.ggml.merges"):
        left, separator, right = line.partition(" ")
        is_known = left in vocabulary and right in vocabulary and left + right in vocabulary
        if not separator or not is_known:
            raise InvalidTokenizer(f"merge {line[:80]!r} names a token that is not a normal one")
        merges.append((left, right))
    # Without an unknown token, bytes the vocabulary lacks are dropped, as llama.cpp and transformers do.
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.ignore_merges))
    core.pre_tokenizer = build_splitter(splitting)
    return core


def _build_merger(model: ModelFile, tokens: Sequence[str], types: Sequence[int]) -> Callable[[str], Sequence[int]]:
    """Encodes one run of text of an SPM vocabulary, with the space that such a run begins with."""
    scores = _read_scores(model, len(tokens))
    of_byte = {_read_byte(text)[0]: index for index, text in enumerate(tokens) if types[index] == _BYTE}
    if len(of_byte) != 256:
        raise InvalidTokenizer(f"an SPM vocabulary with {len(of_byte)} byte tokens is not supported; 256 are needed")
    pieces = {text: index for index, text in enumerate(tokens) if types[index] in (_NORMAL, _USER_DEFINED, _UNUSED)}
    merger = PieceMerger(pieces, scores, [of_byte[byte] for byte in range(256)])
    prefix = " " if _read_flag(model, "add_space_prefix", True) else ""
    return lambda text: merger.encode(prefix + text)


def _read_scores(model: ModelFile, count: int) -> Sequence[float]:
    scores = model.get_value(_SCORES_KEY)
    if isinstance(scores, str) or not isinstance(scores, Sequence) or len(scores) != count:
        raise InvalidTokenizer(f"scores is not a list of {count} numbers")
    if not all(isinstance(item, float) and item == item for item in scores):  # noqa: PLR0124 - NaN is not itself
        raise InvalidTokenizer("scores are not all numbers")
    return [float(item) for item in scores]


def _read_flag(model: ModelFile, name: str, default: bool) -> bool:
    key = f"tokenizer.ggml.{name}"
    if key not in model.metadata:
        return default
    value = model.get_value(key)
    if not isinstance(value, bool):
        raise InvalidTokenizer(f"{key} is {type(value).__name__}, true or false expected")
    return value


def _read_begin_id(model: ModelFile, default: bool, specials: Mapping[int, str]) -> int | None:
    if not _read_flag(model, "add_bos_token", default):
        return None
    index = model.get_int("tokenizer.ggml.bos_token_id", -1)
    if index not in specials:
        raise InvalidTokenizer(f"prompts begin with the BOS token, but bos_token_id {index} is no token")
    return index


def _read_named(model: ModelFile, tokens: Sequence[str]) -> Mapping[str, str]:
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {}
    for name, key in keys.items():
        index = model.get_int(f"tokenizer.ggml.{key}_token_id", -1)
        if 0 <= index < len(tokens):
            named[f"{name}_token"] = tokens[index]
    return named


def _read_end_ids(model: ModelFile, special: Mapping[str, int]) -> frozenset[int]:
    found = {index for text, index in special.items() if text in _END_NAMES}
    for key in ("eos", "eot", "eom"):
        index = model.get_int(f"tokenizer.ggml.{key}_token_id", -1)
        if index in special.values():
            found.add(index)
    if any(names <= special.keys() for names in _CHANNEL_ENDS):
        found.discard(special.get("<|end|>", -1))
    if not found:
        raise InvalidTokenizer("no control token ends an answer")
    return frozenset(found)


def _compute_hash(model: ModelFile, kind: str) -> bytes:
    values: dict[str, Json] = {}
    for key in _HASHED_KEYS:
        if key in model.metadata:
            value = model.get_value(key)
            values[key] = value if isinstance(value, str | int) else list(value)  # type: ignore[arg-type]  # no key holds floats
    if kind == SPM:
        scores = _read_scores(model, len(model.get_texts("tokenizer.ggml.tokens")))
        values[_SCORES_KEY] = encode_hex(struct.pack(f">{len(scores)}f", *scores))
    return tagged_sha256(TOKENIZER_TAG, encode_canonical_json(values))
