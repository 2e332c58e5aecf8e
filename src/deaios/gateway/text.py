"""Sampled ids to the text that a user may see: whole characters, nothing from a stop string on.

Pure. Invariant: the pieces joined are the decoded output up to the first stop string, and no piece is ever taken back:
text that may be the beginning of a stop string is held until it is known not to be.
"""

import codecs
from collections.abc import Sequence

from deaios.gateway.purchasing import Vocabulary


class AnswerText:
    """The text of one answer as it grows."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self._is_stopped = False

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids release.

        Raises:
            Invalid: an id is outside the vocabulary.
        """
        return self._release(self._decoder.decode(b"".join(map(self._vocabulary.get_bytes, ids))), final=False)

    def close(self) -> str:
        """What was held; U+FFFD for a character that never became whole."""
        return self._release(self._decoder.decode(b"", True), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        if self._is_stopped:
            return ""
        text = self._held + text
        self._held = ""
        found = [place for place in map(text.find, self._stops) if place >= 0]
        if found:
            self._is_stopped = True
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
