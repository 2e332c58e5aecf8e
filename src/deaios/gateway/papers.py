"""What an answer carries beside its text, in the words of the doors: usage, how it ended, and its proofs.

Pure. Counts come from receipts alone.
"""

from collections.abc import Sequence

import msgspec

from deaios.gateway import openai_wire as wire
from deaios.gateway.answer import Answer, Piece, Wanted
from deaios.gateway.errors import InternalFault
from deaios.gateway.purchasing import ServedModel
from deaios.ledger.structs import FinishReason
from deaios.market.conduct import list_privacy
from deaios.market.opening import Opening
from deaios.market.tool_text import Event, Spoken, TextGrew, ToolText, read_calls
from deaios.market.tools import may_call
from deaios.primitives.encoding import Json, encode_hex

_FINISH = {
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.LENGTH: "length",
}


def opening_of(answer: Answer) -> Opening:
    """The papers of an answer that was served."""
    if answer.opening is None:
        raise InternalFault("an answer without papers")
    return answer.opening


def text_of(answer: Answer) -> str:
    """All that was released."""
    return "".join(piece.text for piece in answer.pieces)


def spoken_of(answer: Answer) -> Spoken:
    """All that was released as words and calls."""
    text, wanted = text_of(answer), answer.wanted
    if may_call(wanted.question):
        return read_calls(text, wanted.digest)
    return Spoken((text,) if text else ())


class Speech:
    """The same of an answer that grows."""

    def __init__(self, wanted: Wanted) -> None:
        self._calls = ToolText() if may_call(wanted.question) else None

    def push(self, text: str) -> list[Event]:
        """What more text brings."""
        return [TextGrew(text)] if self._calls is None else self._calls.push(text)

    def close(self) -> list[Event]:
        """What was held back."""
        return [] if self._calls is None else self._calls.close()


def is_calling(opening: Opening, spoken: Spoken) -> bool:
    """Does the answer end for its calls to be made: it has some, and all of them are whole?"""
    is_cut = opening.receipt.finish_reason == FinishReason.LENGTH
    return not is_cut and bool(spoken.calls) and spoken.is_whole


def finish_of(opening: Opening) -> str:
    """`stop` or `length`."""
    return _FINISH[FinishReason(opening.receipt.finish_reason)]


def usage_of(openings: Sequence[Opening]) -> wire.Usage:
    """What was paid for, summed over the purchases of a request."""
    receipts = [opening.receipt for opening in openings]
    prompt = sum(receipt.prompt_tokens for receipt in receipts)
    completion = sum(receipt.completion_tokens for receipt in receipts)
    cached = wire.PromptDetails(sum(receipt.cached_tokens for receipt in receipts))
    return wire.Usage(prompt, completion, prompt + completion, cached)


def fingerprint_of(model: ServedModel) -> str:
    """The record pins weights, tokenizer and template, so it is the backend configuration."""
    return "fp_" + model.record_id[:8].hex()


def logprobs_of(wanted: Wanted, pieces: Sequence[Piece]) -> wire.ChoiceLogprobs | None:
    """The entries of the tokens that these pieces show."""
    if wanted.question.top_logprobs is None:
        return None
    return wire.ChoiceLogprobs([msgspec.Raw(entry) for piece in pieces for entry in piece.logprobs])


def build_proof(network_id: bytes, answers: Sequence[Answer]) -> wire.Proof | wire.Proofs:
    """What a user needs to check the answers of one request without the gateway."""
    network, bought = encode_hex(network_id), [_bought(answer) for answer in answers]
    if len(bought) > 1:
        return wire.Proofs(network, bought)
    one = bought[0]
    return wire.Proof(network, one.client_nonce, one.opening, one.provider, one.privacy, one.part)


def _bought(answer: Answer) -> wire.Bought:
    wanted, opening = answer.wanted, opening_of(answer)
    part: dict[str, Json] | msgspec.UnsetType = msgspec.UNSET
    if not wanted.part.is_plain_chat:
        part = wanted.part.encode_json()
    return wire.Bought(
        client_nonce=encode_hex(wanted.client_nonce),
        opening=opening.encode_json(),
        provider=encode_hex(opening.request.provider),
        privacy=_privacy_of(opening),
        part=part,
    )


def _privacy_of(opening: Opening) -> dict[str, str]:
    """Each point and on what it rests: this gateway sealed the papers itself where there was a key."""
    points = list_privacy(opening.conduct, opening.receipt.finished_at_ms, has_sealed=True)
    return {point.fact: point.kind.value for point in points}
