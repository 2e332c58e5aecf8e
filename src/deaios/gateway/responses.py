"""`/v1/responses`: one answer to turns of text and calls, kept so that a later one may continue it.

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
from dataclasses import replace
from functools import partial
from typing import assert_never

import msgspec
from aiohttp import web

from deaios.compute.tools import ToolCall
from deaios.gateway.answer import Piece, Wanted
from deaios.gateway.desk import Desk, Sale, off_loop
from deaios.gateway.errors import build_error, status_of
from deaios.gateway.keys import KeyRecord
from deaios.gateway.papers import Speech, build_proof, finish_of, opening_of, spoken_of, usage_of
from deaios.gateway.queries import cut_page, read_limit, read_order, read_query
from deaios.gateway.records import RecordStore, ResponseRecord
from deaios.gateway.responses_wire import (
    ArgumentsDeltaEvent,
    ArgumentsEvent,
    CallItem,
    CallOutputItem,
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
from deaios.market.tool_text import CallBegan, CallEnded, CallGrew, Event, TextGrew, build_call_id
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
            spoken = spoken_of(sale.first)
            turns = (*history, *body.turns, Message("assistant", spoken.text, spoken.whole_calls))
            record = ResponseRecord(
                response_id=sale.first.wanted.answer_id,
                key_id=key.key_id,
                created_at_ms=self._desk.clock.now_ms(),
                document=msgspec.json.encode(document.build_final()),
                turns=msgspec.json.encode(turns),
            )
            await asyncio.to_thread(self._records.keep_response, record)

        return await tell(
            request,
            self._desk,
            sale,
            lambda: json_response(document.build_final()),
            partial(_ResponseVoice, document, sale.first.wanted) if question.stream else None,
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


_Item = InputItem | OutputItem | CallItem | CallOutputItem


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"no response {response_id[:80]!r} of this key is kept")


def _read_turns(record: ResponseRecord) -> tuple[Message, ...]:
    return tuple(msgspec.json.decode(record.turns, type=list[Message]))


def _build_items(response_id: str, turns: Sequence[Message]) -> list[_Item]:
    items: list[_Item] = []
    for index, turn in enumerate(turns):
        place = f"{response_id.removeprefix('resp_')}_{index}"
        if turn.role == "tool":
            items.append(CallOutputItem(f"fco_{place}", turn.tool_call_id or "", turn.content))
        elif turn.role != "assistant":
            items.append(InputItem(f"msg_{place}", turn.role, [InputText(turn.content)]))
        elif turn.content or not turn.tool_calls:
            items.append(OutputItem(f"msg_{place}", [OutputText(turn.content)], "completed"))
        items += [
            CallItem(f"fc_{place}_{number}", call.id, call.name, call.arguments, "completed")
            for number, call in enumerate(turn.tool_calls)
        ]
    return items


class Document:
    """One response as it grows: what each event and the final answer show of it."""

    def __init__(self, desk: Desk, sale: Sale, body: ResponseBody) -> None:
        self._desk = desk
        self._sale = sale
        self._body = body
        self._final: Response | None = None

    def build(self, status: str, error: DeaiosError | None = None) -> Response:
        """The response before it is whole, or where it failed."""
        wanted, question = self._sale.first.wanted, self._body.question
        return Response(
            id=wanted.answer_id,
            created_at=wanted.created_s,
            status=status,
            model=wanted.model.names[0],
            output=[],
            temperature=question.temperature_milli / MILLI,
            top_p=question.top_p_milli / MILLI,
            store=self._body.store,
            metadata=dict(self._body.metadata or {}),
            instructions=self._body.instructions,
            previous_response_id=self._body.previous,
            max_output_tokens=question.max_tokens,
            error=None if error is None else _describe(error),
            **self._body.shown,  # type: ignore[arg-type] # the fields that repeat the body's
        )

    def build_final(self) -> Response:
        """The response with its answer, usage and proof."""
        if self._final is None:
            opening = opening_of(self._sale.first)
            usage, is_whole = usage_of([opening]), finish_of(opening) == "stop"
            self._final = msgspec.structs.replace(
                self.build("completed" if is_whole else "incomplete"),
                output=self._build_output(is_whole=is_whole),
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

    def _build_output(self, *, is_whole: bool) -> list[OutputItem | CallItem]:
        """Words and calls as items; only the last may be cut off."""
        parts = spoken_of(self._sale.first).parts or ("",)
        states = ["completed"] * (len(parts) - 1) + ["completed" if is_whole else "incomplete"]
        return [self.build_item(index, *pair) for index, pair in enumerate(zip(parts, states, strict=True))]

    def build_item(self, index: int, part: str | ToolCall, status: str) -> OutputItem | CallItem:
        """One item of the output; words and arguments are not in it while it is in progress."""
        suffix = self._sale.first.wanted.answer_id.removeprefix("resp_")
        begins = status == "in_progress"
        if isinstance(part, str):
            return OutputItem(f"msg_{suffix}_{index}", [] if begins else [OutputText(part)], status)
        return CallItem(f"fc_{suffix}_{index}", part.id, part.name, "" if begins else part.arguments, status)


def _describe(error: DeaiosError) -> Failure:
    said = build_error(status_of(error), error)
    return Failure("rate_limit_exceeded" if said.code == "rate_limit_exceeded" else "server_error", said.message)


_Event = ResponseEvent | ItemEvent | ContentEvent | DeltaEvent | TextEvent | ArgumentsDeltaEvent | ArgumentsEvent


class _ResponseVoice:
    """The events of one stream, in the order that the OpenAI API documents."""

    def __init__(self, document: Document, wanted: Wanted) -> None:
        self._document = document
        self._digest = wanted.digest
        self._speech = Speech(wanted)
        self._sequence = 0
        self._items = 0
        self._open: str | ToolCall | None = None

    def first(self) -> bytes:
        response = self._document.build("in_progress")
        return b"".join(
            (
                self._event(ResponseEvent("response.created", self._next(), response)),
                self._event(ResponseEvent("response.in_progress", self._next(), response)),
            )
        )

    def piece(self, _index: int, piece: Piece) -> bytes:
        return b"".join(map(self._tell, self._speech.push(piece.text)))

    def _tell(self, event: Event) -> bytes:
        match event:
            case TextGrew():
                began = b"" if isinstance(self._open, str) else self._close("completed") + self._begin("")
                assert isinstance(self._open, str)
                self._open += event.text
                delta = DeltaEvent(self._next(), self._item_id, event.text, output_index=self._items)
                return began + self._event(delta)
            case CallBegan():
                call = ToolCall(build_call_id(self._digest, event.index), event.name, "")
                return self._close("completed") + self._begin(call)
            case CallGrew():
                assert isinstance(self._open, ToolCall)
                self._open = replace(self._open, arguments=self._open.arguments + event.text)
                return self._event(ArgumentsDeltaEvent(self._next(), self._item_id, event.text, self._items))
            case CallEnded():
                return b""
            case _:
                assert_never(event)

    @property
    def _item_id(self) -> str:
        assert self._open is not None
        return self._document.build_item(self._items, self._open, "in_progress").id

    def _begin(self, part: str | ToolCall) -> bytes:
        self._open = part
        item = self._document.build_item(self._items, part, "in_progress")
        added = self._event(ItemEvent("response.output_item.added", self._next(), item, self._items))
        if isinstance(part, ToolCall):
            return added
        text = ContentEvent("response.content_part.added", self._next(), item.id, OutputText(""), self._items)
        return added + self._event(text)

    def _close(self, status: str) -> bytes:
        """The item that is open is whole, or as much of it as there is."""
        part, index = self._open, self._items
        if part is None:
            return b""
        item = self._document.build_item(index, part, status)
        if isinstance(part, ToolCall):
            said = self._event(ArgumentsEvent(self._next(), item.id, part.name, part.arguments, index))
        else:
            text = self._event(TextEvent(self._next(), item.id, part, output_index=index))
            whole = ContentEvent("response.content_part.done", self._next(), item.id, OutputText(part), index)
            said = text + self._event(whole)
        self._open = None
        self._items += 1
        return said + self._event(ItemEvent("response.output_item.done", self._next(), item, index))

    def end(self, _index: int, _opening: Opening, *, is_last: bool) -> bytes:
        assert is_last, "a response has one answer"
        final = self._document.build_final()
        held = b"".join(map(self._tell, self._speech.close()))
        if self._open is None and not self._items:
            held += self._begin("")
        held += self._close(final.status)
        return held + self._event(ResponseEvent(f"response.{final.status}", self._next(), final))

    def error(self, error: DeaiosError) -> bytes:
        return self._event(ResponseEvent("response.failed", self._next(), self._document.build("failed", error)))

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def _event(self, event: _Event) -> bytes:
        return encode_event(event, event.type)
