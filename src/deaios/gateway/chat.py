"""`POST /v1/chat/completions`: conversations, one answer or several, whole or streamed.

`logprobs` gives what the provider says the model thought of its tokens: a claim that no signature binds, that is not in
the answer file and that `deaios verify` does not look at. Tokens, counts and price are bound; these numbers are not.
"""

from functools import partial

import msgspec
from aiohttp import web

from deaios.gateway import openai_wire as wire
from deaios.gateway.answer import Piece
from deaios.gateway.desk import Desk, Sale, off_loop
from deaios.gateway.errors import build_error, status_of
from deaios.gateway.keys import KeyRecord
from deaios.gateway.papers import build_proof, fingerprint_of, finish_of, logprobs_of, opening_of, text_of, usage_of
from deaios.gateway.telling import encode_event, read_asked, tell
from deaios.market.chat import read_chat_body
from deaios.market.opening import Opening
from deaios.market.question import Api
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
        model=wanted.model.record.name,
        choices=[
            wire.Choice(
                wire.AnswerMessage(text_of(answer)),
                finish_of(opening),
                index,
                logprobs_of(answer.wanted, answer.pieces),
            )
            for index, (answer, opening) in enumerate(zip(sale.answers, openings, strict=True))
        ],
        usage=usage_of(openings),
        system_fingerprint=fingerprint_of(wanted.model),
        deaios=build_proof(network_id, sale.answers),
    )


class _ChatVoice:
    """The chunks of one stream."""

    def __init__(self, network_id: bytes, sale: Sale, *, include_usage: bool) -> None:
        self._network_id = network_id
        self._sale = sale
        self._wanted = sale.first.wanted
        self._include_usage = include_usage
        self._blank_usage = None if include_usage else msgspec.UNSET

    def first(self) -> bytes:
        roles = (
            self._chunk(index, wire.ChunkDelta(role="assistant", content=""))
            for index in range(len(self._sale.answers))
        )
        return b"".join(roles)

    def piece(self, index: int, piece: Piece) -> bytes:
        return self._chunk(index, wire.ChunkDelta(content=piece.text), logprobs=logprobs_of(self._wanted, [piece]))

    def end(self, index: int, opening: Opening, *, is_last: bool) -> bytes:
        """The finish, and the usage where it is wanted; the proof rides on whichever is last."""
        finish = finish_of(opening)
        if not is_last:
            return self._chunk(index, wire.ChunkDelta(), finish)
        proof = build_proof(self._network_id, self._sale.answers)
        if not self._include_usage:
            return self._chunk(index, wire.ChunkDelta(), finish, deaios=proof) + DONE
        usage = usage_of([opening_of(answer) for answer in self._sale.answers])
        last = encode_event(self._build([], usage=usage, deaios=proof))
        return self._chunk(index, wire.ChunkDelta(), finish) + last + DONE

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
        return wire.ChatChunk(
            id=self._wanted.answer_id,
            created=self._wanted.created_s,
            model=self._wanted.model.record.name,
            choices=choices,
            system_fingerprint=fingerprint_of(self._wanted.model),
            usage=usage,
            deaios=deaios,
        )
