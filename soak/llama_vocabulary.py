"""llama.cpp's own tokenizer, read from a model file without its weights: the peer that ids are compared with."""

import random
from pathlib import Path
from typing import Any

import gguf

from deaios.compute.engines.llama import _Library
from deaios.compute.tokenizer import _LATIN_OF

_LETTERS = {byte: chr(point) for point, byte in _LATIN_OF.items()}
"""The byte alphabet."""

_MORE = """
int32_t llama_tokenize(const void * vocab, const char * text, int32_t text_len, int32_t * tokens, int32_t n_tokens_max,
                       bool add_special, bool parse_special);
int32_t llama_token_to_piece(const void * vocab, int32_t token, char * buf, int32_t length, int32_t lstrip,
                             bool special);
bool llama_vocab_is_eog(const void * vocab, int32_t token);
"""
PAIRS = 8_000
"""Of 65,536 pairs of bytes, those that may merge: enough for every cut to show in some of a hundred texts."""


class LlamaVocabulary:
    """A model file's vocabulary in llama.cpp. Raises ValueError with the library's words when it refuses the file."""

    def __init__(self, path: Path) -> None:
        self._library = _Library.load()
        self._library.ffi.cdef(_MORE, override=True)  # once more changes nothing
        self._api: Any = self._library.api
        params = self._api.llama_model_default_params()
        params.vocab_only = True
        self._library.log.clear()
        self._model = self._api.llama_model_load_from_file(str(path).encode(), params)
        if self._model == self._library.ffi.NULL:
            raise ValueError(self._library.explain())
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.size = self._api.llama_vocab_n_tokens(self._vocab)

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> tuple[int, ...]:
        data = text.encode()
        room = len(data) + 8
        ids = self._library.ffi.new("int32_t[]", room)
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        assert count >= 0
        return tuple(ids[0:count])

    def get_bytes(self, token: int) -> bytes:
        buffer = self._library.ffi.new("char[]", 256)
        count = self._api.llama_token_to_piece(self._vocab, token, buffer, 256, 0, False)
        assert count >= 0
        return bytes(self._library.ffi.buffer(buffer, count))

    def is_end(self, token: int) -> bool:
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def close(self) -> None:
        self._api.llama_model_free(self._model)


def write_pair_vocabulary(path: Path, pre: str, **more: tuple[str, int]) -> Path:
    """A byte-level vocabulary in which any two bytes may merge, in a drawn order: where text is cut shows in the ids.

    Args:
        path: file to write; it holds no tensors.
        pre: kind of pre-tokenizer.
        more: further tokens as text and type, by any name.
    """
    alphabet = [_LETTERS[byte] for byte in range(256)]
    pairs = [(left, right) for left in alphabet for right in alphabet]
    pairs = random.Random(7).sample(pairs, PAIRS)
    tokens = ["<|begin|>", "<|im_end|>", *alphabet, *(left + right for left, right in pairs)]
    types = [3, 3] + [1] * (len(tokens) - 2)
    for text, kind in more.values():
        tokens.append(text)
        types.append(kind)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in pairs])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
