"""Tiny real GGUF models with seeded random weights: what soaks and tests serve where a trained one would only be slow.

`python -m soak.tiny_models OUT.gguf [--architecture qwen2] [--vocabulary spm] [--encoding q8_0] [--seed 1]` writes one;
`write_tiny_model` does the same from Python. One call with the same arguments gives the same bytes on every machine.

The files are whole: llama.cpp and the NumPy engine load them, text goes in and out, answers are mostly printable and
end by themselves. They say nothing that means anything. Written by the `gguf` package, so that the project's own reader
is not tested with its own writer.
"""

import argparse
import collections
import itertools
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray

Architecture = Literal["llama", "qwen2"]
Vocabulary = Literal["bpe", "spm"]
Encoding = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0"]

ENCODINGS: Final[Mapping[str, gguf.GGMLQuantizationType]] = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
    "q5_0": gguf.GGMLQuantizationType.Q5_0,
}
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
MERGES = 240
END_BIAS = -2.5
"""Logits of the ending token against those of words: an answer ends after some hundred tokens."""
JUNK_BIAS = -9.0
"""Of bytes that are no printable ASCII, so that answers are mostly text."""
LOGITS_STD = 2.5

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPM_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
CORPUS = (
    "the quick brown fox jumps over the lazy dog and the other animals of the forest look at it in wonder. "
    "when the rain came down in the evening the people of the village went into their houses and told stories of the "
    "old times, of the river and the mountain, of the ships that left and of those that came back again. "
    "There is no reason to think that a machine of this kind would know what it is talking about, and it does not. "
    "def main(argument): return [value for value in range(10) if value % 2 == 0] # 1234567890\n"
    "What is the answer? It depends on the question, on who is asking, and on how much time there is. "
)


@dataclass(frozen=True, slots=True)
class _Words:
    """A vocabulary: texts as the format spells them, types, scores (SPM) or merges (BPE), and logit biases."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    biases: NDArray[np.float32]
    begin: int
    end: int
    unknown: int | None


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}


def _train_merges(count: int) -> list[tuple[str, str]]:
    """The most frequent pairs of the corpus, ties by spelling, as in Sennrich et al. (arXiv:1508.07909)."""
    alphabet = _byte_alphabet()
    words = collections.Counter(
        tuple(alphabet[byte] for byte in word.encode())
        for word in re.findall(r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|\s", CORPUS)
    )
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined: collections.Counter[tuple[str, ...]] = collections.Counter()
        for word, times in words.items():
            joined[_join(word, best)] += times
        words = joined
    return merges


def _join(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts: list[str] = []
    place = 0
    while place < len(word):
        if word[place : place + 2] == pair:
            parts.append(pair[0] + pair[1])
            place += 2
        else:
            parts.append(word[place])
            place += 1
    return tuple(parts)


def _is_printable(byte: int) -> bool:
    return 0x20 <= byte < 0x7F or byte == 0x0A


def _build_bpe() -> _Words:
    alphabet = _byte_alphabet()
    merges = _train_merges(MERGES)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    letters = [alphabet[byte] for byte in range(256)]
    tokens = (*special, *letters, *(left + right for left, right in merges))
    assert len(set(tokens)) == len(tokens)
    biases = np.zeros(len(tokens), np.float32)
    biases[:2] = JUNK_BIAS
    for byte in range(256):
        if not _is_printable(byte):
            biases[len(special) + byte] = JUNK_BIAS
    types = (CONTROL,) * len(special) + (NORMAL,) * (len(tokens) - len(special))
    return _Words(tokens, types, (), tuple(f"{left} {right}" for left, right in merges), biases, 1, 2, None)


def _build_spm() -> _Words:
    """Pieces of the corpus with falling scores, single characters last, and a token for every byte."""
    pieces: list[str] = []
    back = {character: byte for byte, character in _byte_alphabet().items()}
    for left, right in _train_merges(MERGES):
        text = bytes(back[character] for character in left + right).decode("ascii").replace(" ", "\u2581")
        if text not in pieces:
            pieces.append(text)
    pieces += [
        character
        for character in ["\u2581", *map(chr, range(0x21, 0x7F)), *"äöüßéñçøλπжя中文語日本"]
        if character not in pieces
    ]
    head = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
    tokens = (*head, *pieces)
    types = (UNKNOWN, CONTROL, CONTROL, *(BYTE,) * 256, *(NORMAL,) * len(pieces))
    scores = (*(0.0,) * len(head), *(-float(rank) for rank in range(len(pieces))))
    biases = np.zeros(len(tokens), np.float32)
    biases[: len(head)] = JUNK_BIAS
    return _Words(tokens, types, scores, (), biases, 1, 2, 0)


def write_tiny_model(
    path: Path,
    *,
    architecture: Architecture = "llama",
    vocabulary: Vocabulary = "bpe",
    pre: str = "smollm",
    encoding: Encoding = "f16",
    seed: int = 0,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    context_tokens: int = 4096,
    template: str | None = "default",
    name: str = "tiny",
    end_bias: float = END_BIAS,
    space_prefix: bool = True,
) -> Path:
    """Write a tiny model; some 300 kB and 50 microseconds a token at the defaults.

    Args:
        path: file to write; appears whole or not at all.
        architecture: `llama` (the NumPy engine takes it too) or `qwen2`.
        vocabulary: `bpe` (byte-level, ChatML) or `spm` (scores and byte fallback).
        pre: pre-tokenizer of the byte-level vocabulary, as llama.cpp names it.
        encoding: of the matrices; vectors are F32.
        seed: of the weights.
        layers, width, heads: size; heads are even; width is a multiple of heads, and of 32 for quantised encodings.
        context_tokens: said to be trained for.
        template: chat template; "default" for the vocabulary's own, None for a model that only completes.
        name: `general.name`.
        end_bias: logits of the ending token against those of words; at -30 answers do not end by themselves.
        space_prefix: whether a run of text of an SPM vocabulary begins with a space.

    Returns:
        `path`.
    """
    words = _build_bpe() if vocabulary == "bpe" else _build_spm()
    words.biases[words.end] = end_bias
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tiny-") as folder:
        part = Path(folder) / path.name
        writer = gguf.GGUFWriter(part, architecture)
        writer.add_name(name)
        writer.add_context_length(context_tokens)
        writer.add_embedding_length(width)
        writer.add_block_count(layers)
        writer.add_feed_forward_length(2 * width)
        writer.add_head_count(heads)
        writer.add_head_count_kv(heads // 2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        if architecture == "llama":
            writer.add_rope_dimension_count(width // heads)
            writer.add_vocab_size(len(words.tokens))
        _add_vocabulary(writer, words, vocabulary, pre, space_prefix)
        if template is not None:
            chosen = {"bpe": CHATML, "spm": SPM_CHAT}[vocabulary] if template == "default" else template
            writer.add_chat_template(chosen)
        _add_tensors(writer, words, ENCODINGS[encoding], seed, layers, width, heads, has_bias=architecture == "qwen2")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
    return path


def _add_vocabulary(
    writer: gguf.GGUFWriter, words: _Words, vocabulary: Vocabulary, pre: str, space_prefix: bool
) -> None:
    writer.add_tokenizer_model("gpt2" if vocabulary == "bpe" else "llama")
    writer.add_token_list(list(words.tokens))
    writer.add_token_types(list(words.types))
    if vocabulary == "bpe":
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(list(words.merges))
    else:
        writer.add_token_scores(list(words.scores))
        writer.add_add_space_prefix(space_prefix)
        writer.add_add_bos_token(True)
    writer.add_bos_token_id(words.begin)
    writer.add_eos_token_id(words.end)
    if words.unknown is not None:
        writer.add_unk_token_id(words.unknown)


def _add_tensors(
    writer: gguf.GGUFWriter,
    words: _Words,
    encoding: gguf.GGMLQuantizationType,
    seed: int,
    layers: int,
    width: int,
    heads: int,
    *,
    has_bias: bool,
) -> None:
    """Random weights. Dimension 0 of the residual stream is constant, so that `output` can give tokens a bias."""
    dice = np.random.Generator(np.random.PCG64(seed))
    key_width = width // heads * (heads // 2)

    def draw(rows: int, columns: int, std: float) -> NDArray[np.float32]:
        return (dice.standard_normal((rows, columns)) * std).astype(np.float32)

    def add(tensor: str, values: NDArray[np.float32]) -> None:
        if values.ndim == 1 or encoding is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor, values)
        elif encoding is gguf.GGMLQuantizationType.F16:
            writer.add_tensor(tensor, values.astype(np.float16))
        else:
            writer.add_tensor(tensor, quantize(values, encoding), raw_dtype=encoding)

    embedding = draw(len(words.tokens), width, 1.0)
    embedding[:, 0] = 1.0
    add("token_embd.weight", embedding)
    for layer in range(layers):
        block = f"blk.{layer}."
        returning: list[tuple[str, NDArray[np.float32]]] = [
            ("attn_output.weight", draw(width, width, 0.5 / width**0.5)),
            ("ffn_down.weight", draw(width, 2 * width, 0.5 / (2 * width) ** 0.5)),
        ]
        for _name, values in returning:
            values[0] = 0.0
        add(block + "attn_norm.weight", np.ones(width, np.float32))
        add(block + "attn_q.weight", draw(width, width, 1.0 / width**0.5))
        add(block + "attn_k.weight", draw(key_width, width, 1.0 / width**0.5))
        add(block + "attn_v.weight", draw(key_width, width, 1.0 / width**0.5))
        if has_bias:
            for tensor, size in (("attn_q", width), ("attn_k", key_width), ("attn_v", key_width)):
                add(f"{block}{tensor}.bias", draw(1, size, 0.1)[0])
        add(block + "ffn_norm.weight", np.ones(width, np.float32))
        add(block + "ffn_gate.weight", draw(2 * width, width, 1.0 / width**0.5))
        add(block + "ffn_up.weight", draw(2 * width, width, 1.0 / width**0.5))
        for tensor, values in returning:
            add(block + tensor, values)
    add("output_norm.weight", np.ones(width, np.float32))
    output = draw(len(words.tokens), width, LOGITS_STD / width**0.5)
    output[:, 0] = words.biases
    add("output.weight", output)


def main() -> None:
    """Write one model from the command line."""
    parser = argparse.ArgumentParser(description="write a tiny real GGUF model with seeded random weights")
    parser.add_argument("path", type=Path)
    parser.add_argument("--architecture", choices=("llama", "qwen2"), default="llama")
    parser.add_argument("--vocabulary", choices=("bpe", "spm"), default="bpe")
    parser.add_argument("--pre", default="smollm")
    parser.add_argument("--encoding", choices=tuple(ENCODINGS), default="f16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--name", default="tiny")
    chosen = parser.parse_args()
    write_tiny_model(**vars(chosen))
    print(f"{chosen.path}: {chosen.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
