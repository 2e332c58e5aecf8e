"""Byte-pair tokenizer built from a model file's own metadata.

Invariant: text that people write never becomes a special token; only `encode_special` by exact name does. Ids and
bytes agree with llama.cpp and transformers (tests/compute/test_tokenizer.py). Knows nothing of messages or templates.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import tokenizers
from tokenizers import models, pre_tokenizers

from deaios.compute.gguf_file import ModelFile, read_model_file
from deaios.primitives.encoding import Json, encode_canonical_json
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256

TOKENIZER_TAG = "deaios/tokenizer/1"
TEXT_BYTES_MAX = 4 << 20
"""Longest text encoded in one call; four times the longest chat body."""

_NORMAL, _CONTROL = 1, 3
"""Token types of the GGUF format (llama.h, enum llama_token_type)."""

_END_NAMES: Final = frozenset({"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>"})
"""Control tokens that end an answer by name, beside those the metadata names."""

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
"""Everything that decides ids, text or ends; the hash covers these and nothing else."""


class InvalidTokenizer(Invalid):
    """Model metadata that does not describe a tokenizer this version can reproduce."""


class InvalidText(Invalid):
    """Text that has no UTF-8 form, or is too long."""


def _byte_alphabet() -> Mapping[int, str]:
    """GPT-2's printable stand-in for every byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}


_LATIN_OF: Final = {ord(character): byte for byte, character in _byte_alphabet().items()}
"""Code point of a stand-in to its byte, which is also a Latin-1 code point."""


def _build_splitter(pre: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before merging, per `tokenizer.ggml.pre` (llama.cpp, src/llama-vocab.cpp)."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    raise InvalidTokenizer(f"pre-tokenizer {pre[:40]!r} is not supported; smollm is")


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocabulary_size: number of ids.
        special_ids: id of every special token by its text.
        end_ids: ids that end an answer.
        tokenizer_hash: 32 bytes over all metadata that decides ids, text or ends.
        named_specials: `bos_token`, `eos_token`, ... as templates know them.
        special_pattern: finds special tokens in rendered text, longest first.
        special_starts: every first character of a special token.
        special_ends: every last character.
    """

    def __init__(self, model: ModelFile) -> None:
        tokens, types = _read_vocabulary(model)
        self.vocabulary_size = len(tokens)
        self.special_ids: Mapping[str, int] = {
            text: index for index, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == _CONTROL
        }
        self._special_names: Mapping[int, str] = {index: text for text, index in self.special_ids.items()}
        _validate_alphabet(tokens, types)
        self._bytes: tuple[bytes, ...] = tuple(
            b"" if kind == _CONTROL else text.translate(_LATIN_OF).encode("latin-1")
            for text, kind in zip(tokens, types, strict=True)
        )
        self._core = _build_core(model, tokens, self.special_ids)
        self.named_specials: Mapping[str, str] = _read_named(model, tokens)
        self.end_ids: frozenset[int] = _read_end_ids(model, self.special_ids)
        self.tokenizer_hash = _compute_hash(model)
        longest_first = sorted(self.special_ids, key=lambda text: (-len(text), text))
        self.special_pattern: re.Pattern[str] = re.compile("|".join(map(re.escape, longest_first)))
        self.special_starts = "".join(sorted({text[0] for text in self.special_ids}))
        self.special_ends = "".join(sorted({text[-1] for text in self.special_ids}))

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
        """Ids of text in which nothing is special, whatever it looks like.

        Raises:
            InvalidText: lone surrogates, or longer than `TEXT_BYTES_MAX`.
        """
        validate_text(text)
        return tuple(self._core.encode(text, add_special_tokens=False).ids)

    def encode_rendered(self, pieces: Iterable[str | int]) -> tuple[int, ...]:
        """Ids of rendered pieces: text is encoded plainly, an int is a special token's id."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                assert piece in self.special_ids.values()
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
    kind = model.get_text("tokenizer.ggml.model")
    if kind != "gpt2":
        raise InvalidTokenizer(f"tokenizer model {kind[:40]!r} is not supported; gpt2 (byte-level BPE) is")
    tokens = model.get_texts("tokenizer.ggml.tokens")
    types = model.get_value("tokenizer.ggml.token_type")
    if isinstance(types, str) or not isinstance(types, Sequence) or len(types) != len(tokens):
        raise InvalidTokenizer(f"token_type is not a list of {len(tokens)} numbers")
    if len(set(tokens)) != len(tokens):
        raise InvalidTokenizer("two token ids share one text")
    if any(kind == _CONTROL and len(text) < 2 for text, kind in zip(tokens, types, strict=True)):
        raise InvalidTokenizer("a control token has fewer than two characters")
    strange = sorted({str(item) for item in types if item not in (_NORMAL, _CONTROL)})
    if strange:
        raise InvalidTokenizer(f"token types {strange[:8]} are not supported; normal (1) and control (3) are")
    return tokens, [int(item) for item in types]


def _validate_alphabet(tokens: Sequence[str], types: Sequence[int]) -> None:
    strange = set[str]().union(*(text for text, kind in zip(tokens, types, strict=True) if kind == _NORMAL))
    strange -= {chr(point) for point in _LATIN_OF}
    if strange:
        text = next(text for text, kind in zip(tokens, types, strict=True) if kind == _NORMAL and strange & set(text))
        raise InvalidTokenizer(f"token {text[:40]!r} is not spelled in the byte alphabet")


def _build_core(model: ModelFile, tokens: Sequence[str], special: Mapping[str, int]) -> tokenizers.Tokenizer:
    """The merging core; special tokens are left out of its vocabulary, so no text can reach them."""
    vocabulary = {text: index for index, text in enumerate(tokens) if text not in special}
    merges: list[tuple[str, str]] = []
    for line in model.get_texts("tokenizer.ggml.merges"):
        left, separator, right = line.partition(" ")
        if not separator or not {left, right, left + right} <= vocabulary.keys():
            raise InvalidTokenizer(f"merge {line[:80]!r} names a token that is not a normal one")
        merges.append((left, right))
    # Without an unknown token, bytes the vocabulary lacks are dropped, as llama.cpp and transformers do.
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = _build_splitter(model.get_text("tokenizer.ggml.pre"))
    return core


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
    if not found:
        raise InvalidTokenizer("no control token ends an answer")
    return frozenset(found)


def _compute_hash(model: ModelFile) -> bytes:
    values: dict[str, Json] = {}
    for key in _HASHED_KEYS:
        if key in model.metadata:
            value = model.get_value(key)
            values[key] = value if isinstance(value, str | int) else list(value)  # type: ignore[arg-type]  # no key holds floats
    return tagged_sha256(TOKENIZER_TAG, encode_canonical_json(values))
