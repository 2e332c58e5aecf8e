"""`POST /v1/completions`: raw prompts continued, without a chat template."""

from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web

from deaios.compute.tokenizer import StreamDecoder
from deaios.gateway.answer import Answer, Piece
from deaios.gateway.chat import DONE
from deaios.gateway.completions_wire import TextChoice, TextCompletion, TextLogprobs
from deaios.gateway.desk import Desk, Sale, off_loop
from deaios.gateway.errors import build_error, status_of
from deaios.gateway.keys import KeyRecord
from deaios.gateway.openai_wire import ErrorAnswer, Proof, Proofs, TokenLogprob, Usage
from deaios.gateway.papers import build_proof, fingerprint_of, finish_of, opening_of, text_of, usage_of
from deaios.gateway.telling import encode_event, read_asked, tell
from deaios.market.completion import read_completion_body
from deaios.market.opening import Opening
from deaios.market.question import Api
from deaios.primitives.errors import DeaiosError
from deaios.runtime.http import json_response


class CompletionsDoor:
    """The route's handler."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def complete(self, request: web.Request, key: KeyRecord, key_text: str) -> web.StreamResponse:
        """Answer one request of an authenticated key."""
        asked = await read_asked(request, key, key_text, self._desk)
        questions = await off_loop(asked.body, partial(read_completion_body, asked.body))
        sale = self._desk.sell(asked, Api.COMPLETIONS, questions)
        voice = partial(_TextVoice, self._desk.network_id, sale, include_usage=questions[0].include_usage)
        return await tell(
            request,
            self._desk,
            sale,
            lambda: json_response(build_text_completion(self._desk.network_id, sale)),
            voice if questions[0].stream else None,
        )


def build_text_completion(network_id: bytes, sale: Sale) -> TextCompletion:
    """The answer that is sent at once."""
    wanted, openings = sale.first.wanted, [opening_of(answer) for answer in sale.answers]
    return TextCompletion(
        id=wanted.answer_id,
        created=wanted.created_s,
        model=wanted.model.names[0],
        choices=[
            TextChoice(text_of(answer), index, finish_of(opening), _Ranks(answer).take(answer.pieces))
            for index, (answer, opening) in enumerate(zip(sale.answers, openings, strict=True))
        ],
        system_fingerprint=fingerprint_of(wanted.model),
        usage=usage_of(openings),
        deaios=build_proof(network_id, sale.answers),
    )


class _Ranks:
    """The log probabilities of one choice: the entries that chat completions show, in this API's four lists."""

    def __init__(self, answer: Answer) -> None:
        self._is_wanted = answer.wanted.question.top_logprobs is not None
        self._text = StreamDecoder()
        self._characters = 0

    def take(self, pieces: Sequence[Piece]) -> TextLogprobs | None:
        """Those of the next pieces; a token's offset counts the characters that were whole before it."""
        if not self._is_wanted:
            return None
        entries = [msgspec.json.decode(entry, type=TokenLogprob) for piece in pieces for entry in piece.logprobs]
        offsets = []
        for entry in entries:
            offsets.append(self._characters)
            self._characters += len(self._text.push(bytes(entry.bytes or ())))
        return TextLogprobs(
            tokens=[entry.token for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=[{top.token: top.logprob for top in entry.top_logprobs} for entry in entries],
            text_offset=offsets,
        )


class _TextVoice:
    """The events of one stream."""

    def __init__(self, network_id: bytes, sale: Sale, *, include_usage: bool) -> None:
        self._network_id = network_id
        self._sale = sale
        self._include_usage = include_usage
        self._blank_usage = None if include_usage else msgspec.UNSET
        self._ranks = [_Ranks(answer) for answer in sale.answers]

    def first(self) -> bytes:
        return b""

    def piece(self, index: int, piece: Piece) -> bytes:
        return self._event([TextChoice(piece.text, index, None, self._ranks[index].take([piece]))])

    def end(self, index: int, opening: Opening, *, is_last: bool) -> bytes:
        """The finish, and the usage where it is wanted; the proof rides on whichever is last."""
        choice = TextChoice("", index, finish_of(opening))
        if not is_last:
            return self._event([choice])
        proof = build_proof(self._network_id, self._sale.answers)
        if not self._include_usage:
            return self._event([choice], deaios=proof) + DONE
        usage = usage_of([opening_of(answer) for answer in self._sale.answers])
        return self._event([choice]) + self._event([], usage=usage, deaios=proof) + DONE

    def error(self, error: DeaiosError) -> bytes:
        return encode_event(ErrorAnswer(build_error(status_of(error), error))) + DONE

    def _event(
        self,
        choices: list[TextChoice],
        usage: Usage | None = None,
        deaios: Proof | Proofs | msgspec.UnsetType = msgspec.UNSET,
    ) -> bytes:
        wanted = self._sale.first.wanted
        return encode_event(
            TextCompletion(
                id=wanted.answer_id,
                created=wanted.created_s,
                model=wanted.model.names[0],
                choices=choices,
                system_fingerprint=fingerprint_of(wanted.model),
                usage=self._blank_usage if usage is None else usage,
                deaios=deaios,
            )
        )
