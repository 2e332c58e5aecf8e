"""Text from a server that says no ids, as ids of the record's own tokenizer.

The ids stand for the text and nothing else: they are not what the server sampled, and so are never more than level 0.
Cut only where a tokenizer of words cuts too, so that the ids do not depend on how the text arrived.
"""

from deaios.compute.tokenizer import Tokenizer

HELD_CHARACTERS_MAX = 256
"""Longest text without a space that is held back; scripts without spaces come out in pieces of this length."""


class Retokenizer:
    """Feed text, take ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = ""

    def push(self, text: str) -> tuple[int, ...]:
        """Ids of what can no longer change."""
        self._held += text
        cut = self._held.rfind(" ")
        if cut <= 0 and len(self._held) > HELD_CHARACTERS_MAX:
            cut = len(self._held)
        if cut <= 0:
            return ()
        certain, self._held = self._held[:cut], self._held[cut:]
        return self._tokenizer.encode_plain(certain)

    def close(self) -> tuple[int, ...]:
        """Ids of the rest."""
        rest, self._held = self._held, ""
        return self._tokenizer.encode_plain(rest) if rest else ()


def find_end_id(tokenizer: Tokenizer) -> int:
    """The id that stands for "the server says that its answer is over": the model's own end of text."""
    named = tokenizer.special_ids.get(tokenizer.named_specials.get("eos_token", ""), -1)
    return named if named in tokenizer.end_ids else min(tokenizer.end_ids)
