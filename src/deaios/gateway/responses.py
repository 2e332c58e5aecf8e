"""`/v1/responses`: one answer to turns of text, kept so that a later one may continue it.

    POST   /v1/responses                     create, whole or as events
    GET    /v1/responses/{id}                what was answered
    DELETE /v1/responses/{id}                forget it
    GET    /v1/responses/{id}/input_items    the turns that it answered
    POST   /v1/responses/input_tokens        how many tokens a body's prompt has

A response that continues another is bought with the whole conversation; its proof names the turns that came before the
body's, because the body does not hold them. With `store` false nothing is kept.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web

from deaios.gateway.answer import Piece
from deaios.gateway.desk import Desk, Sale, off_loop
from deaios.gateway.errors import build_error, status_of
from deaios.gateway.keys import KeyRecord
from deaios.gateway.papers import build_proof, finish_of, opening_of, text_of, usage_of
from deaios.gateway.queries import cut_page, read_limit, read_order, read_query
from deaios.gateway.records import RecordStore, ResponseRecord
from deaios.gateway.responses_wire import (
    ContentEvent,
    Deleted,
    DeltaEvent,
    Failure,
    Incomplete,
    InputDetails,
    InputItem,
    InputText,
    InputTokens,
    ItemEvent,
    ItemList,
    OutputDetails,
    OutputItem,
    OutputText,
    Response,
    ResponseEvent,
    ResponseUsage,
    TextEvent,
)
from deaios.gateway.telling import encode_event, read_asked, tell
from deaios.market.fields import InvalidParameter
from deaios.market.opening import Opening
from deaios.market.question import Api, Message
from deaios.market.responses import ResponseBody, read_response_body
from deaios.primitives.errors import DeaiosError
from deaios.primitives.units import MILLI
from deaios.runtime.errors import NotFound
from deaios.runtime.http import json_response

ITEMS_MAX = 100
ITEMS_DEFAULT = 20


class ResponsesDoor:
    """The routes' handlers."""

    def __init__(self, desk: Desk, records: RecordStore) -> None:
        self._desk = desk
        self._records = records

    async def create(self, request: web.Request, key: KeyRecord, key_text: str) -> web.StreamResponse:
        """Answer one request of an authenticated key."""
        asked = await read_asked(request, key, key_text, self._desk)
        body = await off_loop(asked.body, partial(read_response_body, asked.body))
        history = await self._fetch_history(key, body)
        question = body.continue_from(history)
        sale = self._desk.sell(asked, Api.RESPONSES, (question,), history=history)
        document = Document(self._desk, sale, body)

        async def keep() -> None:
            turns = (*history, *body.turns, Message("assistant", text_of(sale.first)))
            record = ResponseRecord(
                response_id=sale.first.wanted.answer_id,
                key_id=key.key_id,
                created_at_ms=self._desk.clock.now_ms(),
                document=msgspec.json.encode(document.build_final()),
                turns=msgspec.json.encode([(turn.role, turn.content) for turn in turns]),
            )
            await asyncio.to_thread(self._records.keep_response, record)

        return await tell(
            request,
            self._desk,
            sale,
            lambda: json_response(document.build_final()),
            partial(_ResponseVoice, document) if question.stream else None,
            keep if body.store else None,
        )

    async def count_tokens(self, request: web.Request, key: KeyRecord, key_text: str) -> web.Response:
        """How many tokens the prompt of a body has; nothing is bought."""
        asked = await read_asked(request, key, key_text, self._desk)
        body = await off_loop(asked.body, partial(read_response_body, asked.body))
        question = body.continue_from(await self._fetch_history(key, body))
        model = self._desk.find_model(key, question.model)
        ids = await off_loop(asked.body, partial(question.prompt_ids, model.render, model.tokenizer))
        return json_response(InputTokens(len(ids)))

    async def show(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """A response that was kept."""
        read_query(request, ())
        record = await self._find(key, request.match_info["id"])
        return web.Response(body=record.document, content_type="application/json")

    async def delete(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """Forget a response; those that continue it keep their conversation."""
        read_query(request, ())
        response_id = request.match_info["id"]
        if not await asyncio.to_thread(self._records.delete_response, key.key_id, response_id):
            raise _not_found(response_id)
        return json_response(Deleted(response_id, "response"))

    async def list_items(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """The turns that a response answered, instructions left out."""
        query = read_query(request, ("limit", "order", "after"))
        limit, is_newest_first = read_limit(query, ITEMS_DEFAULT, ITEMS_MAX), read_order(query)
        record = await self._find(key, request.match_info["id"])
        items = _build_items(record.response_id, _read_turns(record)[:-1])
        if is_newest_first:
            items.reverse()
        page, has_more = cut_page(items, [item.id for item in items], query.get("after"), limit)
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        return json_response(ItemList(page, first, last, has_more))

    async def _find(self, key: KeyRecord, response_id: str) -> ResponseRecord:
        record = await asyncio.to_thread(self._records.find_response, key.key_id, response_id)
        if record is None:
            raise _not_found(response_id)
        return record

    async def _fetch_history(self, key: KeyRecord, body: ResponseBody) -> tuple[Message, ...]:
        if body.previous is None:
            return ()
        record = await asyncio.to_thread(self._records.find_response, key.key_id, body.previous)
        if record is None:
            raise InvalidParameter(
                "previous_response_id",
                f"this key has no response {body.previous!r}; it was not stored, was deleted or is too old",
                "previous_response_not_found",
            )
        return _read_turns(record)


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"no response {response_id[:80]!r} of this key is kept")


def _read_turns(record: ResponseRecord) -> tuple[Message, ...]:
    return tuple(Message(*turn) for turn in msgspec.json.decode(record.turns, type=list[tuple[str, str]]))


def _build_items(response_id: str, turns: Sequence[Message]) -> list[InputItem | OutputItem]:
    items: list[InputItem | OutputItem] = []
    for index, turn in enumerate(turns):
        item_id = f"msg_{response_id.removeprefix('resp_')}_{index}"
        if turn.role == "assistant":
            items.append(OutputItem(item_id, [OutputText(turn.content)], "completed"))
        else:
            items.append(InputItem(item_id, turn.role, [InputText(turn.content)]))
    return items


class Document:
    """One response as it grows: what each event and the final answer show of it."""

    def __init__(self, desk: Desk, sale: Sale, body: ResponseBody) -> None:
        self._desk = desk
        self._sale = sale
        self._body = body
        self._final: Response | None = None

    @property
    def item_id(self) -> str:
        """Of the one item of its output."""
        return "msg_" + self._sale.first.wanted.answer_id.removeprefix("resp_")

    def build(self, status: str, error: DeaiosError | None = None) -> Response:
        """The response before it is whole, or where it failed."""
        wanted, question = self._sale.first.wanted, self._body.question
        return Response(
            id=wanted.answer_id,
            created_at=wanted.created_s,
            status=status,
            model=wanted.model.record.name,
            output=[],
            temperature=question.temperature_milli / MILLI,
            top_p=question.top_p_milli / MILLI,
            store=self._body.store,
            metadata=dict(self._body.metadata or {}),
            instructions=self._body.instructions,
            previous_response_id=self._body.previous,
            max_output_tokens=question.max_tokens,
            error=None if error is None else _describe(error),
        )

    def build_final(self) -> Response:
        """The response with its answer, usage and proof."""
        if self._final is None:
            opening = opening_of(self._sale.first)
            usage, is_whole = usage_of([opening]), finish_of(opening) == "stop"
            self._final = msgspec.structs.replace(
                self.build("completed" if is_whole else "incomplete"),
                output=[self.build_item("completed" if is_whole else "incomplete")],
                incomplete_details=None if is_whole else Incomplete("max_output_tokens"),
                completed_at=self._desk.clock.now_ms() // 1000 if is_whole else None,
                usage=ResponseUsage(
                    usage.prompt_tokens,
                    InputDetails(usage.prompt_tokens_details.cached_tokens),
                    usage.completion_tokens,
                    OutputDetails(),
                    usage.total_tokens,
                ),
                deaios=build_proof(self._desk.network_id, self._sale.answers),
            )
        return self._final

    def build_item(self, status: str) -> OutputItem:
        """The assistant's turn; without text while it is in progress."""
        content = [] if status == "in_progress" else [OutputText(text_of(self._sale.first))]
        return OutputItem(self.item_id, content, status)


def _describe(error: DeaiosError) -> Failure:
    said = build_error(status_of(error), error)
    return Failure("rate_limit_exceeded" if said.code == "rate_limit_exceeded" else "server_error", said.message)


class _ResponseVoice:
    """The events of one stream, in the order that the OpenAI API documents."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._sequence = 0

    def first(self) -> bytes:
        document = self._document
        response, item = document.build("in_progress"), document.build_item("in_progress")
        return b"".join(
            (
                self._event(ResponseEvent("response.created", self._next(), response)),
                self._event(ResponseEvent("response.in_progress", self._next(), response)),
                self._event(ItemEvent("response.output_item.added", self._next(), item)),
                self._event(
                    ContentEvent("response.content_part.added", self._next(), document.item_id, OutputText(""))
                ),
            )
        )

    def piece(self, _index: int, piece: Piece) -> bytes:
        return self._event(DeltaEvent(self._next(), self._document.item_id, piece.text))

    def end(self, _index: int, _opening: Opening, *, is_last: bool) -> bytes:
        assert is_last, "a response has one answer"
        final = self._document.build_final()
        item = final.output[0]
        part = item.content[0]
        return b"".join(
            (
                self._event(TextEvent(self._next(), item.id, part.text)),
                self._event(ContentEvent("response.content_part.done", self._next(), item.id, part)),
                self._event(ItemEvent("response.output_item.done", self._next(), item)),
                self._event(ResponseEvent(f"response.{final.status}", self._next(), final)),
            )
        )

    def error(self, error: DeaiosError) -> bytes:
        return self._event(ResponseEvent("response.failed", self._next(), self._document.build("failed", error)))

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def _event(self, event: ResponseEvent | ItemEvent | ContentEvent | DeltaEvent | TextEvent) -> bytes:
        return encode_event(event, event.type)
