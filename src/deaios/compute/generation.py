"""One answer as a machine: ids go in one by one, text and the end of the answer come out.

Invariant: the ids alone decide everything. Whoever feeds the same ids gets the same text, the same finish reason at
the same id and the same stop index, so a provider, a buyer and a verifier cannot disagree. Text is held back while it
might become a stop string. Frozen: docs/spec/sampling.md, "Finish". Knows nothing of engines, clocks or sockets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deaios.compute.logprobs import LOGPROBS_MAX, Ranking, rank_tokens
from deaios.compute.masking import MaskState
from deaios.compute.records import Thresholds
from deaios.compute.sampling import InvalidParams, Mask, Row, sample, score, validate_mask_hash, validate_params
from deaios.compute.tokenizer import StreamDecoder, Tokenizer
from deaios.ledger.structs import FinishReason, Params
from deaios.primitives.errors import Invalid


class InvalidPrefix(Invalid):
    """Ids that are said to begin an answer, and that this model could not have sampled.

    Attributes:
        position: index into the prefix of the first id that is wrong.
    """

    def __init__(self, position: int, detail: str) -> None:
        super().__init__(f"prefix violates at {position}: {detail}")
        self.position = position


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one id brought.

    Attributes:
        token: the id.
        text_delta: text that is now certain to be part of the answer; often empty or more than this id's own.
        finish: why the answer ends here, or None while it goes on.
        stop_index: which stop string ended it; 0 otherwise.
        logprobs: how probable the model found it and others, where that was asked for.
        leaf: fingerprint of the position that it was sampled from, where that was asked for.
    """

    token: int
    text_delta: str
    finish: FinishReason | None
    stop_index: int
    logprobs: Ranking | None = None
    leaf: bytes = b""


class Generation:
    """The state of one answer. Feed it with `offer` or `accept` until `finish` is set."""

    def __init__(
        self,
        prompt_count: int,
        params: Params,
        seed: bytes,
        tokenizer: Tokenizer,
        logprobs: int | None = None,
        mask: MaskState | None = None,
    ) -> None:
        """Begin an answer.

        Args:
            prompt_count: ids of the prompt.
            params: of the ask.
            seed: of the ask.
            tokenizer: of the model.
            logprobs: how many of the most probable tokens `offer` ranks beside each sampled one; None for no ranking.
            mask: a new one for this answer; whoever only reads ids needs none.

        Raises:
            InvalidParams: outside the protocol's bounds.
        """
        validate_params(params)
        if logprobs is not None and not 0 <= logprobs <= LOGPROBS_MAX:
            raise InvalidParams(f"{logprobs} log probabilities per token are asked for, 0 to {LOGPROBS_MAX} are given")
        self._prompt_count = prompt_count
        self._params = params
        self._seed = seed
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._mask = mask
        self._ends = tokenizer.end_ids | set(params.stop_ids)
        self._stops = tuple(text.encode() for text in params.stop_strings)
        self._decoder = StreamDecoder()
        self._decoded_bytes = 0
        self._held = b""
        self._ids: list[int] = []
        self.finish: FinishReason | None = None
        self.stop_index = 0

    @property
    def output_ids(self) -> tuple[int, ...]:
        """Ids so far, the stopping one included."""
        return tuple(self._ids)

    @property
    def position(self) -> int:
        """Absolute position of the next id."""
        return self._prompt_count + len(self._ids)

    @property
    def shown_bytes(self) -> int:
        """How many of the output's bytes are in the text given so far; the rest is held back, incomplete or cut off."""
        return self._decoded_bytes - self._decoder.pending_bytes

    def offer(self, logits: Row) -> Sampled:
        """Sample the next id from its logits and take it.

        Raises:
            InvalidLogits: a number is not finite.
            InvalidParams: the parameters name a mask, and this is not it.
            InvalidConstraint: no id can follow, or it costs too much to find out.
        """
        return self._take(logits, sample(logits, self._params, self._seed, self.position, self._allowed()))

    def take_over(self, logits: Row, token: int, thresholds: Thresholds) -> Sampled:
        """Take an id that another provider sampled for the same ask, if this row could have led to it.

        The rule is the one by which answers are verified, so what is taken here passes there.

        Raises:
            InvalidPrefix: its margin exceeds the threshold.
            InvalidLogits: a number is not finite.
            InvalidParams, InvalidConstraint: as `offer`.
        """
        place, allowed = len(self._ids), self._allowed()
        found = score(logits, self._params, self._seed, self.position, token, thresholds.epsilon, allowed)
        if found.margin > thresholds.margin:
            raise InvalidPrefix(
                place, f"margin {found.margin:.6f} logits exceeds {thresholds.margin:.6f} ({found.rule})"
            )
        return self._take(logits, token)

    def _allowed(self) -> Mask | None:
        """The mask of the next id."""
        validate_mask_hash(self._params, None if self._mask is None else self._mask.mask_hash)
        return None if self._mask is None else self._mask.mask()

    def _take(self, logits: Row, token: int) -> Sampled:
        if self._mask is not None:
            self._mask.accept(token)
        sampled = self.accept(token)
        if self._logprobs is None:
            return sampled
        return replace(sampled, logprobs=rank_tokens(logits, token, self._logprobs))

    def accept(self, token: int) -> Sampled:
        """Take an id that was sampled elsewhere.

        Raises:
            InvalidText: no such id.
        """
        assert self.finish is None, "the answer has ended"
        data = self._tokenizer.get_bytes(token)
        self._ids.append(token)
        if token in self._ends:
            return self._end(token, self._held, FinishReason.STOP_TOKEN)
        self._held += data
        found = _find_stop(self._held, self._stops)
        if found is not None:
            start, self.stop_index = found
            return self._end(token, self._held[:start], FinishReason.STOP_STRING)
        if len(self._ids) == self._params.max_tokens:
            return self._end(token, self._held, FinishReason.LENGTH)
        certain = len(self._held) - _count_forming(self._held, self._stops)
        text = self._decode(self._held[:certain])
        self._held = self._held[certain:]
        return Sampled(token, text, None, 0)

    def close(self) -> str:
        """Text still held back, when the answer is cut off (cancelled or failed) instead of finished."""
        text = self._decode(self._held) + self._decoder.close()
        self._held = b""
        return text

    def _decode(self, data: bytes) -> str:
        self._decoded_bytes += len(data)
        return self._decoder.push(data)

    def _end(self, token: int, rest: bytes, reason: FinishReason) -> Sampled:
        self.finish = reason
        text = self._decode(rest) + self._decoder.close()
        self._held = b""
        return Sampled(token, text, reason, self.stop_index)


def _find_stop(text: bytes, stops: Sequence[bytes]) -> tuple[int, int] | None:
    """Start and index of the stop string that starts first; of two at one place the lower index."""
    found = [(start, index) for index, stop in enumerate(stops) if (start := text.find(stop)) >= 0]
    return min(found, default=None)


def _count_forming(text: bytes, stops: Sequence[bytes]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    for length in range(min(len(text), max(map(len, stops), default=1) - 1), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def read_output(output_ids: Sequence[int], params: Params, tokenizer: Tokenizer) -> str:
    """The text that output ids stand for, cut where the finish rules cut it.

    Raises:
        InvalidText: an id is outside the vocabulary.
    """
    generation = Generation(0, params, bytes(32), tokenizer)
    texts = []
    for token in output_ids:
        if generation.finish is not None:
            break
        texts.append(generation.accept(token).text_delta)
    return "".join(texts) if generation.finish is not None else "".join(texts) + generation.close()


def check_finish(
    output_ids: Sequence[int], params: Params, tokenizer: Tokenizer, reason: FinishReason, stop_index: int
) -> str | None:
    """What is wrong with a claimed finish, or None when it is what the ids say.

    A cancelled or failed answer may stop anywhere, but never goes on after an end.
    """
    generation = Generation(0, params, bytes(32), tokenizer)
    for place, token in enumerate(output_ids):
        if generation.finish is not None:
            return (
                f"the answer ended at id {place - 1} ({generation.finish.name}), yet {len(output_ids)} ids are claimed"
            )
        if not 0 <= token < tokenizer.vocabulary_size:
            return f"id {token} at {place} is outside the vocabulary of {tokenizer.vocabulary_size}"
        generation.accept(token)
    if reason in (FinishReason.CANCELLED, FinishReason.FAILED):
        return None if stop_index == 0 else f"stop index is {stop_index} without a stop string"
    if generation.finish is not reason:
        actual = "not ended" if generation.finish is None else f"ended by {generation.finish.name}"
        return f"finish reason {reason.name} is claimed, but the ids have {actual}"
    if generation.stop_index != stop_index:
        return f"stop index {stop_index} is claimed, but stop string {generation.stop_index} ended the answer"
    return None
