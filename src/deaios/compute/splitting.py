"""How text is cut into words before byte pairs are merged, per `tokenizer.ggml.pre` of a model file.

Invariant: every kind listed here cuts as llama.cpp does, which tests hold against the live library over Unicode; a kind
that is not listed is refused by name, never approximated. Knows nothing of vocabularies.

The expressions are those that the models' authors published in their tokenizer.json, in the form that
src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp (MIT) gives them, where kinds are named and grouped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, pre_tokenizers

from deaios.primitives.errors import Invalid


class InvalidTokenizer(Invalid):
    """Model metadata that does not describe a tokenizer this version can reproduce."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """One kind of pre-tokenizer.

    Attributes:
        expressions: applied one after the other; matches and what lies between them become pieces of their own.
        ignore_merges: a piece that is a token is that token, whatever the merges say.
        add_bos: a prompt begins with the BOS token unless the file says otherwise.
    """

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SHORT: Final = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2: Final = rf"{_SHORT}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
_UPPER: Final = r"((?=[\p{L}])([^a-z]))"
_LOWER: Final = r"((?=[\p{L}])([^A-Z]))"
_LEAD: Final = r"[^\r\n\p{L}\p{N}]?"
_SLASHED: Final = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_CJK: Final = "[一-龥\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3: Final = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES
)
_PUNCTUATED: Final = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_KINDS: Final[tuple[tuple[str, Splitting], ...]] = (
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        Splitting((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe glm4 chatglm-bpe", Splitting((_LLAMA3,))),
    ("qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan grok-2", Splitting((_QWEN2,))),
    (
        "qwen35",
        Splitting((rf"{_SHORT}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",)),
    ),
    ("gpt-2 phi-2 gigachat mpt olmo jais trillion exaone4 a.x-4.0 mellum granite-docling", Splitting((_GPT2,))),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b", Splitting((r"\p{N}", _GPT2))),
    ("falcon", Splitting((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    ("default", Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    ("deepseek-coder", Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿&&[^\s]]+", r"\p{N}"))),
    ("deepseek-v3 hunyuan-dense joyai-llm", Splitting((r"\p{N}{1,3}", _CJK, _DEEPSEEK3))),
    ("bloom gpt3-finnish poro-chat", Splitting((_PUNCTUATED,))),
    ("viking", Splitting((_PUNCTUATED, r"\p{N}"))),
    (
        "tekken",
        Splitting(
            (rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}",),
            ignore_merges=True,
            add_bos=True,
        ),
    ),
    (
        "gpt-4o llama4 minimax-m2",
        Splitting(
            (rf"{_LEAD}{_UPPER}*{_LOWER}+{_SHORT}?|{_LEAD}{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}|{_SLASHED}",)
        ),
    ),
    (
        "bailingmoe bailingmoe2 llada-moe",
        Splitting((rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",)),
    ),
    ("seed-coder", Splitting((rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",))),
)

SPLITTINGS: Final[Mapping[str, Splitting]] = {name: kind for names, kind in _KINDS for name in names.split()}
"""Every supported kind by its name in the file."""


def find_splitting(pre: str) -> Splitting:
    """The kind of that name.

    Raises:
        InvalidTokenizer: it is not supported; names it.
    """
    found = SPLITTINGS.get(pre)
    if found is None:
        raise InvalidTokenizer(f"pre-tokenizer {pre[:40]!r} is not supported; {len(SPLITTINGS)} others are")
    return found


def build_splitter(kind: Splitting) -> pre_tokenizers.PreTokenizer:
    """Cut text as the kind says, then spell the pieces in GPT-2's byte alphabet."""
    cuts: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(expression), "isolated") for expression in kind.expressions
    ]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
