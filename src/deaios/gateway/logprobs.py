"""Log probabilities of an answer in the OpenAI API's words, one entry for every token that its text shows.

A token is shown when at least one of its bytes is in the text: the token that ends an answer, special tokens and what a
stop string cuts off are not, and what is held back comes with the text that it becomes. Invariant: entries are in the
order of the text, and made once, as the JSON they are sent as. The numbers are the provider's claim; no signature
covers them (docs/spec/market.md, "Log probabilities").
"""

from collections import deque

import msgspec

from deaios.compute.logprobs import MICRO, Ranking
from deaios.compute.tokenizer import Tokenizer
from deaios.gateway import openai_wire as wire
from deaios.gateway.errors import InvalidOutput


class ShownTokens:
    """The tokens of one answer on their way into its text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: deque[tuple[int, Ranking]] = deque()  # bounded by the bytes that a Generation holds back
        self._bytes = 0

    def add(self, ranking: Ranking) -> None:
        """The next token that adds bytes to the answer.

        Raises:
            InvalidOutput: it ranks ids that the model does not have.
        """
        highest = max(token for token, _ in ranking)
        if highest >= self._tokenizer.vocabulary_size:
            raise InvalidOutput(
                f"the provider ranks token {highest}, the vocabulary has {self._tokenizer.vocabulary_size} ids"
            )
        size = len(self._tokenizer.get_bytes(ranking[0][0]))
        if size:
            self._waiting.append((self._bytes, ranking))
            self._bytes += size

    def take(self, shown_bytes: int) -> tuple[bytes, ...]:
        """Entries of the tokens that the first `shown_bytes` of the answer newly show."""
        entries = []
        while self._waiting and self._waiting[0][0] < shown_bytes:
            entries.append(msgspec.json.encode(self._build(self._waiting.popleft()[1])))
        return tuple(entries)

    def _build(self, ranking: Ranking) -> wire.TokenLogprob:
        (token, value), *top = ranking
        return wire.TokenLogprob(
            token=self._tokenizer.get_label(token),
            logprob=value / MICRO,
            bytes=self._bytes_of(token),
            top_logprobs=[
                wire.TopLogprob(self._tokenizer.get_label(rival), value / MICRO, self._bytes_of(rival))
                for rival, value in top
            ],
        )

    def _bytes_of(self, token: int) -> list[int] | None:
        """None for special tokens, which have a name and no bytes."""
        return list(self._tokenizer.get_bytes(token)) or None
