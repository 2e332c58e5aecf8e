"""Which ids may come next: the mask of each position, as a state machine that is fed with the answer's ids.

Invariant: the mask is a function of the constraint's bytes, the tokenizer and the ids accepted so far; it does not
matter whether masks in between were asked for. Ids that end an answer are allowed exactly when the text so far is
complete; when nothing else can follow, only they are. The masker's own bounds end a state machine with a typed error:
a grammar that is too costly, or that leads where nothing can follow, is the buyer's fault and nobody's guilt.
"""

import functools
from typing import TYPE_CHECKING, Final

import numpy as np

from deaios.compute.constraint import decode_constraint, validate_constraint_hash
from deaios.compute.grammar import build_grammar
from deaios.compute.sampling import Mask
from deaios.compute.schema import InvalidConstraint
from deaios.compute.tokenizer import Tokenizer
from deaios.primitives.errors import Unavailable

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

TRIES_MAX: Final = 4
"""Tokenizers whose prefix trees are kept, some 15 MiB each."""

_LEXER_FUEL_START: Final = 1_000_000
"""Work to build a grammar's lexer; some 20 ms at 50,000 a millisecond."""
_LEXER_FUEL_STEP: Final = 200_000
"""Work of the lexer at one position; some 14 ms."""
_ITEMS_STEP: Final = 50_000
"""Items of the parser at one position; some 2.5 ms."""
_ITEMS_ROW: Final = 8_192
"""Of these, how many at one byte; a thousand optional properties need four thousand."""
_LEXER_STATES: Final = 16_384
"""Of one answer, at 1 to 2 kB."""
_GRAMMAR_SYMBOLS: Final = 100_000


class UnavailableMasker(Unavailable):
    """The constraint is for another masker than this program has; says nothing about the answer."""


class MaskState:
    """The masks of one answer.

    Attributes:
        mask_hash: what the parameters must carry.
    """

    def __init__(self, matcher: "LLMatcher", vocabulary_size: int, end_ids: frozenset[int], mask_hash: bytes) -> None:
        self.mask_hash = mask_hash
        self._matcher = matcher
        self._size = vocabulary_size
        self._ends = np.zeros(vocabulary_size, np.bool_)
        self._ends[sorted(end_ids)] = True
        self._words = np.zeros((vocabulary_size + 31) // 32, np.uint32)
        self._mask: Mask | None = None
        self._has_ended = False
        self._accepted = 0

    def mask(self) -> Mask:
        """The ids that may come next, `(vocabulary,) bool`, at least one.

        Raises:
            InvalidConstraint: nothing may, or it costs more than is given to find out.
        """
        if self._mask is None:
            self._mask = self._compute()
        return self._mask

    def accept(self, token: int) -> None:
        """Take the next id, which the mask allows.

        Raises:
            InvalidConstraint: it does not, or taking it costs more than is given.
        """
        self._mask = None
        if self._ends[token]:
            if not self._has_ended and not self._matcher.is_accepting():
                raise InvalidConstraint("", f"id {token} ends a text that is not complete")
            self._has_ended = True
        elif self._has_ended or not self._matcher.consume_token(token):
            reason = "after the end" if self._has_ended else self._reason()
            raise InvalidConstraint("", f"id {token} cannot stand at place {self._accepted}: {reason}")
        self._accepted += 1

    @property
    def is_complete(self) -> bool:
        """Is the text so far all that the constraint wants?"""
        return self._has_ended or bool(self._matcher.is_accepting())

    def _compute(self) -> Mask:
        if self._has_ended or self._matcher.is_stopped():
            if self._matcher.is_error():
                raise InvalidConstraint("", f"no mask for place {self._accepted}: {self._reason()}")
            return self._ends
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._matcher.is_error():
            raise InvalidConstraint("", f"no mask for place {self._accepted}: {self._reason()}")
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        mask: Mask = bits[: self._size].view(np.bool_)
        if not mask.any():
            raise InvalidConstraint("", f"no id of this vocabulary can stand at place {self._accepted}")
        return mask

    def _reason(self) -> str:
        return f"{self._matcher.stop_reason()}: {self._matcher.get_error().partition(chr(10))[0]:.200}"


def compile_mask(constraint: bytes | None, mask_hash: bytes, tokenizer: Tokenizer) -> MaskState | None:
    """Begin the masks of an answer. Takes milliseconds, the first time for a tokenizer some tenths of a second.

    Args:
        constraint: canonical bytes as they came with the purchase; None where there are none.
        mask_hash: as the parameters have it.
        tokenizer: of the model.

    Returns:
        None where the parameters name no mask.

    Raises:
        InvalidConstraint: the bytes are not what the hash names, or do not compile within the bounds.
        UnavailableMasker: they are for another masker; the message names it.
    """
    validate_constraint_hash(constraint, mask_hash)
    if constraint is None:
        return None
    decoded = decode_constraint(constraint)
    trie = _trie_of(tokenizer)
    if decoded.masker != _installed_masker():
        raise UnavailableMasker(f"this answer needs {decoded.masker[:80]}, this program has {_installed_masker()}")
    from llguidance import LLMatcher  # noqa: PLC0415 - only who masks loads it

    matcher = LLMatcher(trie, build_grammar(decoded.form), log_level=0, limits=_limits())
    if matcher.is_error():
        raise InvalidConstraint(
            "", f"the constraint does not compile: {matcher.get_error().partition(chr(10))[0]:.300}"
        )
    return MaskState(matcher, tokenizer.vocabulary_size, tokenizer.end_ids, mask_hash)


def _limits() -> "LLParserLimits":
    from llguidance import LLParserLimits  # noqa: PLC0415 - as above

    return LLParserLimits(
        max_items_in_row=_ITEMS_ROW,
        initial_lexer_fuel=_LEXER_FUEL_START,
        step_lexer_fuel=_LEXER_FUEL_STEP,
        step_max_items=_ITEMS_STEP,
        max_lexer_states=_LEXER_STATES,
        max_grammar_size=_GRAMMAR_SYMBOLS,
        precompute_large_lexemes=True,
        verbose_errors=False,
    )


@functools.cache
def _installed_masker() -> str:
    import llguidance  # noqa: PLC0415 - as above

    return f"llguidance {llguidance.__version__}"


class _Vocabulary:
    """A tokenizer in the shape that the masker asks for (llguidance, TokenizerWrapper)."""

    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()
    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.end_ids)
        self.tokens = [tokenizer.get_bytes(token) for token in range(tokenizer.vocabulary_size)]

    def __call__(self, text: str) -> list[int]:
        """Ids of a text; only the masker's own set-up asks."""
        return list(self._tokenizer.encode_plain(text))


@functools.lru_cache(maxsize=TRIES_MAX)
def _trie_of(tokenizer: Tokenizer) -> "LLTokenizer":
    from llguidance import LLTokenizer, TokenizerWrapper  # noqa: PLC0415 - as above

    return LLTokenizer(
        TokenizerWrapper(_Vocabulary(tokenizer)),
        n_vocab=tokenizer.vocabulary_size,
        eos_token=sorted(tokenizer.end_ids),
        slices=LLTokenizer.general_slices(),
    )
