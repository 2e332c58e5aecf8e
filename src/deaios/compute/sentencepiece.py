"""SentencePiece byte-pair merging by score, as llama.cpp does it for tokenizers of kind `llama`.

Invariant: equal ids with llama.cpp for every text in which no special token's own letters merge into that token; here
none ever does. Knows nothing of special tokens, templates or files.

Algorithm: the pair whose joined text is a piece of the highest score is joined first, of equal scores the leftmost;
what is no piece in the end is spelled in bytes (Kudo and Richardson, arXiv:1808.06226; llm_tokenizer_spm_session in
src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, MIT).
"""

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from deaios.primitives.errors import Invalid

SPACE: Final = "\u2581"
"""Stands for a space in pieces."""
WORD_CHARACTERS_MAX: Final = 1 << 17
"""Longest run that is merged as one; it costs about a second."""
WORDS_KEPT_MAX: Final = 1 << 15
"""Words whose ids are remembered; text repeats itself."""
WORD_KEPT_CHARACTERS_MAX: Final = 32

_WORDS: Final = re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")


class InvalidWord(Invalid):
    """Text that would take too long to encode."""


class PieceMerger:
    """Merges characters to pieces of a vocabulary."""

    def __init__(self, pieces: Mapping[str, int], scores: Sequence[float], bytes_ids: Sequence[int]) -> None:
        """Build a merger.

        Args:
            pieces: id of every piece that text may become.
            scores: by id.
            bytes_ids: id of every byte, 256 of them.
        """
        assert len(bytes_ids) == 256
        self._pieces = pieces
        self._scores = scores
        self._bytes_ids = bytes_ids
        self._kept: dict[str, tuple[int, ...]] = {}
        # Where no piece holds a space after another character, no merge crosses the beginning of a word.
        self._words_are_apart = not any(SPACE in piece.lstrip(SPACE) for piece in pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of text in which spaces are spaces.

        Raises:
            InvalidWord: a run without a place to cut is longer than `WORD_CHARACTERS_MAX`.
        """
        escaped = text.replace(" ", SPACE)
        words: Iterable[str] = _WORDS.findall(escaped) if self._words_are_apart else (escaped,)
        ids: list[int] = []
        for word in words:
            found = self._kept.get(word)
            if found is None:
                found = tuple(self._merge(word))
                if len(word) <= WORD_KEPT_CHARACTERS_MAX:
                    if len(self._kept) >= WORDS_KEPT_MAX:
                        self._kept.clear()
                    self._kept[word] = found
            ids.extend(found)
        return ids

    def _merge(self, word: str) -> list[int]:
        if len(word) > WORD_CHARACTERS_MAX:
            raise InvalidWord(f"a run of {len(word)} characters without a space exceeds {WORD_CHARACTERS_MAX}")
        size = len(word)
        lengths = [1] * size
        after = [*range(1, size), -1]
        before = list(range(-1, size - 1))
        queue: list[tuple[float, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            length = lengths[left] + lengths[right]
            found = self._pieces.get(word[left : left + length])
            if found is not None:
                heapq.heappush(queue, (-self._scores[found], left, right, length))

        for place in range(1, size):
            consider(place - 1, place)
        while queue:
            _, left, right, length = heapq.heappop(queue)
            if not lengths[left] or not lengths[right] or lengths[left] + lengths[right] != length:
                continue
            lengths[left], lengths[right] = length, 0
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            consider(before[left], left)
            consider(left, after[left])
        return self._read_pieces(word, lengths, after)

    def _read_pieces(self, word: str, lengths: Sequence[int], after: Sequence[int]) -> list[int]:
        ids: list[int] = []
        place = 0
        while 0 <= place < len(word):
            piece = word[place : place + lengths[place]]
            found = self._pieces.get(piece)
            if found is not None:
                ids.append(found)
            else:
                ids.extend(self._bytes_ids[byte] for byte in piece.encode())
            place = after[place]
        return ids
