"""`POST /v1/chat/completions`: conversations, one answer or several, whole or streamed.

`logprobs` gives what the provider says the model thought of its tokens: a claim that no signature binds, that is not in
the answer file and that `deaios verify` does not look at. Tokens, counts and price are bound; these numbers are not.
"""

from collections.abc import Sequence
from functools import partial
from typing import assert_never

import msgspec
from aiohttp import web

from deaios.gateway import openai_wire as wire
from deaios.gateway.answer import Answer, Piece
from deaios.gateway.desk import Desk, Sale, off_loop
from deaios.gateway.errors import build_error, status_of
from deaios.gateway.keys import KeyRecord
from deaios.gateway.papers import (
    Speech,
    build_proof,
    fingerprint_of,
    finish_of,
    is_calling,
    logprobs_of,
    opening_of,
    spoken_of,
    usage_of,
)
from deaios.gateway.telling import encode_event, read_asked, tell
from deaios.market.chat import read_chat_body
from deaios.market.opening import Opening
from deaios.market.question import Api
from deaios.market.tool_text import CallBegan, CallEnded, CallGrew, Event, Spoken, TextGrew, build_call_id
from deaios.primitives.errors import DeaiosError
from deaios.runtime.http import json_response

DONE = b"data: [DONE]\n\n"


class ChatDoor:
    """The route's handler."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def complete(self, request: web.Request, key: KeyRecord, key_text: str) -> web.StreamResponse:
        """Answer one request of an authenticated key."""
        asked = await read_asked(request, key, key_text, self._desk)
        question = await off_loop(asked.body, partial(read_chat_body, asked.body))
        sale = self._desk.sell(asked, Api.CHAT, (question,))
        whole = partial(build_chat_completion, self._desk.network_id, sale)
        voice = partial(_ChatVoice, self._desk.network_id, sale, include_usage=question.include_usage)
        return await tell(request, self._desk, sale, lambda: json_response(whole()), voice if question.stream else None)


def build_chat_completion(network_id: bytes, sale: Sale) -> wire.ChatCompletion:
    """The answer that is sent at once."""
    wanted, openings = sale.first.wanted, [opening_of(answer) for answer in sale.answers]
    return wire.ChatCompletion(
        id=wanted.answer_id,
        created=wanted.created_s,
        model=wanted.model.names[0],
        choices=[_build_choice(index, answer) for index, answer in enumerate(sale.answers)],
        usage=usage_of(openings),
        system_fingerprint=fingerprint_of(wanted.model),
        deaios=build_proof(network_id, sale.answers),
    )


def _build_choice(index: int, answer: Answer) -> wire.Choice:
    spoken = spoken_of(answer)
    calls = [wire.Call(call.id, wire.CalledFunction(call.name, call.arguments)) for call in spoken.calls]
    message = wire.AnswerMessage(
        content=None if calls and not spoken.text else spoken.text, tool_calls=calls or msgspec.UNSET
    )
    return wire.Choice(message, _finish_of(answer, spoken), index, logprobs_of(answer.wanted, answer.pieces))


def _finish_of(answer: Answer, spoken: Spoken) -> str:
    opening = opening_of(answer)
    return "tool_calls" if is_calling(opening, spoken) else finish_of(opening)


class _ChatVoice:
    """The chunks of one stream.

    Entries of log probabilities ride on the chunk that shows their text; those of markup on the next one.
    """

    def __init__(self, network_id: bytes, sale: Sale, *, include_usage: bool) -> None:
        self._network_id = network_id
        self._sale = sale
        self._include_usage = include_usage
        self._blank_usage = None if include_usage else msgspec.UNSET
        self._speeches = [Speech(answer.wanted) for answer in sale.answers]
        self._unranked: list[list[Piece]] = [[] for _ in sale.answers]

    def first(self) -> bytes:
        roles = (
            self._chunk(index, wire.ChunkDelta(role="assistant", content=""))
            for index in range(len(self._sale.answers))
        )
        return b"".join(roles)

    def piece(self, index: int, piece: Piece) -> bytes:
        self._unranked[index].append(piece)
        return self._tell(index, self._speeches[index].push(piece.text))

    def _tell(self, index: int, events: Sequence[Event]) -> bytes:
        deltas = (self._word(index, event) for event in events)
        return b"".join(
            self._chunk(index, delta, logprobs=self._take_logprobs(index)) for delta in deltas if delta is not None
        )

    def _word(self, index: int, event: Event) -> wire.ChunkDelta | None:
        match event:
            case TextGrew():
                return wire.ChunkDelta(content=event.text)
            case CallBegan():
                call_id = build_call_id(self._sale.answers[index].wanted.digest, event.index)
                began = wire.CallDelta(event.index, {"name": event.name, "arguments": ""}, call_id, "function")
                return wire.ChunkDelta(tool_calls=[began])
            case CallGrew():
                return wire.ChunkDelta(tool_calls=[wire.CallDelta(event.index, {"arguments": event.text})])
            case CallEnded():
                return None
            case _:
                assert_never(event)

    def _take_logprobs(self, index: int) -> wire.ChoiceLogprobs | None:
        pieces, self._unranked[index] = self._unranked[index], []
        return logprobs_of(self._sale.first.wanted, pieces)

    def end(self, index: int, _opening: Opening, *, is_last: bool) -> bytes:
        """The finish, and the usage where it is wanted; the proof rides on whichever is last."""
        answer = self._sale.answers[index]
        held = self._tell(index, self._speeches[index].close())
        left = self._take_logprobs(index) if self._unranked[index] else None
        finish = _finish_of(answer, spoken_of(answer))
        if not is_last:
            return held + self._chunk(index, wire.ChunkDelta(), finish, logprobs=left)
        proof = build_proof(self._network_id, self._sale.answers)
        if not self._include_usage:
            return held + self._chunk(index, wire.ChunkDelta(), finish, deaios=proof, logprobs=left) + DONE
        usage = usage_of([opening_of(answer) for answer in self._sale.answers])
        last = encode_event(self._build([], usage=usage, deaios=proof))
        return held + self._chunk(index, wire.ChunkDelta(), finish, logprobs=left) + last + DONE

    def error(self, error: DeaiosError) -> bytes:
        return encode_event(wire.ErrorAnswer(build_error(status_of(error), error))) + DONE

    def _chunk(
        self,
        index: int,
        delta: wire.ChunkDelta,
        finish: str | None = None,
        deaios: wire.Proof | wire.Proofs | msgspec.UnsetType = msgspec.UNSET,
        logprobs: wire.ChoiceLogprobs | None = None,
    ) -> bytes:
        choice = wire.ChunkChoice(delta, finish, index, logprobs)
        return encode_event(self._build([choice], usage=self._blank_usage, deaios=deaios))

    def _build(
        self,
        choices: list[wire.ChunkChoice],
        *,
        usage: wire.Usage | msgspec.UnsetType | None,
        deaios: wire.Proof | wire.Proofs | msgspec.UnsetType,
    ) -> wire.ChatChunk:
        wanted = self._sale.first.wanted
        return wire.ChatChunk(
            id=wanted.answer_id,
            created=wanted.created_s,
            model=wanted.model.names[0],
            choices=choices,
            system_fingerprint=fingerprint_of(wanted.model),
            usage=usage,
            deaios=deaios,
        )
