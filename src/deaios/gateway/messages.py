"""`POST /v1/messages` and `/v1/messages/count_tokens`: the Anthropic messages API for text.

The version header is read; betas change nothing here, because what they add to a body is refused by name. Errors come
in this API's own shape.
"""

from functools import partial

from aiohttp import web

from deaios.gateway.answer import Piece
from deaios.gateway.desk import Desk, Sale, off_loop
from deaios.gateway.errors import build_message_error, status_of
from deaios.gateway.keys import KeyRecord
from deaios.gateway.messages_wire import (
    AnswerMessage,
    BlockDelta,
    BlockStart,
    BlockStop,
    MessageDelta,
    MessageErrorAnswer,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopDelta,
    TextBlock,
    TextDelta,
    TokenCount,
)
from deaios.gateway.papers import build_proof, opening_of, text_of
from deaios.gateway.telling import encode_event, read_asked, tell
from deaios.ledger.structs import FinishReason
from deaios.market.fields import InvalidParameter
from deaios.market.messages import read_count_body, read_messages_body
from deaios.market.opening import Opening
from deaios.market.question import Api
from deaios.primitives.errors import DeaiosError
from deaios.runtime.http import json_response

VERSION_HEADER = "anthropic-version"
VERSIONS = ("2023-06-01", "2026-10-21")
"""What they differ in is refused in both, save sampling parameters, which are offered in both."""
_STOPS = {
    FinishReason.STOP_TOKEN: "end_turn",
    FinishReason.STOP_STRING: "stop_sequence",
    FinishReason.LENGTH: "max_tokens",
}


class MessagesDoor:
    """The routes' handlers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: web.Request, key: KeyRecord, key_text: str) -> web.StreamResponse:
        """Answer one request of an authenticated key."""
        _check_version(request)
        asked = await read_asked(request, key, key_text, self._desk)
        question = await off_loop(asked.body, partial(read_messages_body, asked.body))
        sale = self._desk.sell(asked, Api.MESSAGES, (question,))
        voice = partial(_MessageVoice, self._desk.network_id, sale)
        return await tell(
            request,
            self._desk,
            sale,
            lambda: json_response(_build_message(self._desk.network_id, sale)),
            voice if question.stream else None,
        )

    async def count_tokens(self, request: web.Request, key: KeyRecord, key_text: str) -> web.Response:
        """How many tokens the prompt of a body has; nothing is bought."""
        _check_version(request)
        asked = await read_asked(request, key, key_text, self._desk)
        question = await off_loop(asked.body, partial(read_count_body, asked.body))
        model = self._desk.find_model(key, question.model)
        ids = await off_loop(asked.body, partial(question.prompt_ids, model.render, model.tokenizer))
        return json_response(TokenCount(len(ids)))


def _check_version(request: web.Request) -> None:
    version = request.headers.get(VERSION_HEADER)
    if version is not None and version not in VERSIONS:
        spoken = " and ".join(VERSIONS)
        raise InvalidParameter(VERSION_HEADER, f"{VERSION_HEADER} is {version[:40]!r}, {spoken} are spoken here")


def _build_message(network_id: bytes, sale: Sale) -> AnswerMessage:
    wanted, opening = sale.first.wanted, opening_of(sale.first)
    stop = _stop_of(opening)
    return AnswerMessage(
        id=wanted.answer_id,
        model=wanted.model.record.name,
        content=[TextBlock(text_of(sale.first))],
        usage=_usage_of(opening),
        stop_reason=stop.stop_reason,
        stop_sequence=stop.stop_sequence,
        deaios=build_proof(network_id, sale.answers),
    )


def _usage_of(opening: Opening) -> MessageUsage:
    receipt = opening.receipt
    return MessageUsage(
        input_tokens=receipt.prompt_tokens - receipt.cached_tokens,
        output_tokens=receipt.completion_tokens,
        cache_read_input_tokens=receipt.cached_tokens,
    )


def _stop_of(opening: Opening) -> StopDelta:
    reason = FinishReason(opening.receipt.finish_reason)
    is_string = reason == FinishReason.STOP_STRING
    return StopDelta(_STOPS[reason], opening.ask.params.stop_strings[opening.receipt.stop_index] if is_string else None)


class _MessageVoice:
    """The events of one stream."""

    def __init__(self, network_id: bytes, sale: Sale) -> None:
        self._network_id = network_id
        self._sale = sale

    def first(self) -> bytes:
        """The frame; its counts are what is known by then, the last event has those that were paid for."""
        wanted = self._sale.first.wanted
        frame = AnswerMessage(
            wanted.answer_id, wanted.model.record.name, [], MessageUsage(self._sale.first.prompt_tokens, 0)
        )
        start = BlockStart(TextBlock(""))
        return encode_event(MessageStart(frame), "message_start") + encode_event(start, start.type)

    def piece(self, _index: int, piece: Piece) -> bytes:
        delta = BlockDelta(TextDelta(piece.text))
        return encode_event(delta, delta.type)

    def end(self, _index: int, opening: Opening, *, is_last: bool) -> bytes:
        assert is_last, "a message has one answer"
        proof = build_proof(self._network_id, self._sale.answers)
        events = (BlockStop(), MessageDelta(_stop_of(opening), _usage_of(opening), proof), MessageStop())
        return b"".join(encode_event(event, event.type) for event in events)

    def error(self, error: DeaiosError) -> bytes:
        return encode_event(MessageErrorAnswer(build_message_error(status_of(error), error)), "error")
