"""`POST /v1/messages` and `/v1/messages/count_tokens`: the Anthropic messages API for text and tools.

The version header is read; betas change nothing here, because what they add to a body is refused by name. Errors come
in this API's own shape.
"""

from functools import partial
from typing import assert_never

import msgspec
from aiohttp import web

from deaios.compute.tools import ToolCall
from deaios.gateway.answer import Piece
from deaios.gateway.desk import Desk, Sale, off_loop
from deaios.gateway.errors import build_message_error, status_of
from deaios.gateway.keys import KeyRecord
from deaios.gateway.messages_wire import (
    AnswerMessage,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputDelta,
    MessageDelta,
    MessageErrorAnswer,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopDelta,
    TextBlock,
    TextDelta,
    TokenCount,
    ToolUseBlock,
)
from deaios.gateway.papers import Speech, build_proof, is_calling, opening_of, spoken_of
from deaios.gateway.telling import encode_event, read_asked, tell
from deaios.ledger.structs import FinishReason
from deaios.market.fields import InvalidParameter
from deaios.market.messages import read_count_body, read_messages_body
from deaios.market.opening import Opening
from deaios.market.question import Api
from deaios.market.tool_text import (
    CallBegan,
    CallEnded,
    CallGrew,
    Event,
    Spoken,
    TextGrew,
    build_call_id,
    cut_to_members,
)
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
    wanted, opening, spoken = sale.first.wanted, opening_of(sale.first), spoken_of(sale.first)
    stop = _stop_of(opening, spoken)
    return AnswerMessage(
        id=wanted.answer_id,
        model=wanted.model.names[0],
        content=[_build_block(part) for part in spoken.parts or ("",)],
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


def _build_block(part: str | ToolCall) -> TextBlock | ToolUseBlock:
    if isinstance(part, str):
        return TextBlock(part)
    return ToolUseBlock(_use_id(part.id), part.name, msgspec.Raw(cut_to_members(part.arguments).encode()))


def _use_id(call_id: str) -> str:
    """The call's name in this API's spelling."""
    return "toolu_" + call_id.removeprefix("call_")


def _stop_of(opening: Opening, spoken: Spoken) -> StopDelta:
    if is_calling(opening, spoken):
        return StopDelta("tool_use", None)
    reason = FinishReason(opening.receipt.finish_reason)
    is_string = reason == FinishReason.STOP_STRING
    return StopDelta(_STOPS[reason], opening.ask.params.stop_strings[opening.receipt.stop_index] if is_string else None)


class _MessageVoice:
    """The events of one stream."""

    def __init__(self, network_id: bytes, sale: Sale) -> None:
        self._network_id = network_id
        self._sale = sale
        self._speech = Speech(sale.first.wanted)
        self._blocks = 0
        self._is_open = self._is_text = False

    def first(self) -> bytes:
        """The frame; its counts are what is known by then, the last event has those that were paid for."""
        wanted = self._sale.first.wanted
        frame = AnswerMessage(
            wanted.answer_id, wanted.model.names[0], [], MessageUsage(self._sale.first.prompt_tokens, 0)
        )
        return encode_event(MessageStart(frame), "message_start")

    def piece(self, _index: int, piece: Piece) -> bytes:
        return b"".join(map(self._tell, self._speech.push(piece.text)))

    def _tell(self, event: Event) -> bytes:
        match event:
            case TextGrew():
                began = b"" if self._is_open and self._is_text else self._begin(TextBlock(""))
                return began + self._grow(TextDelta(event.text))
            case CallBegan():
                call_id = build_call_id(self._sale.first.wanted.digest, event.index)
                return self._begin(ToolUseBlock(_use_id(call_id), event.name, msgspec.Raw(b"{}")))
            case CallGrew():
                return self._grow(InputDelta(event.text))
            case CallEnded():
                return b""
            case _:
                assert_never(event)

    def _begin(self, block: TextBlock | ToolUseBlock) -> bytes:
        ended = self._close()
        self._is_open, self._is_text = True, isinstance(block, TextBlock)
        start = BlockStart(block, self._blocks)
        return ended + encode_event(start, start.type)

    def _grow(self, grown: TextDelta | InputDelta) -> bytes:
        delta = BlockDelta(grown, self._blocks)
        return encode_event(delta, delta.type)

    def _close(self) -> bytes:
        if not self._is_open:
            return b""
        stop = BlockStop(self._blocks)
        self._is_open = False
        self._blocks += 1
        return encode_event(stop, stop.type)

    def end(self, _index: int, opening: Opening, *, is_last: bool) -> bytes:
        assert is_last, "a message has one answer"
        proof = build_proof(self._network_id, self._sale.answers)
        held = b"".join(map(self._tell, self._speech.close()))
        if not self._is_open and not self._blocks:
            held += self._begin(TextBlock(""))
        held += self._close()
        stop = _stop_of(opening, spoken_of(self._sale.first))
        events = (MessageDelta(stop, _usage_of(opening), proof), MessageStop())
        return held + b"".join(encode_event(event, event.type) for event in events)

    def error(self, error: DeaiosError) -> bytes:
        return encode_event(MessageErrorAnswer(build_message_error(status_of(error), error)), "error")
