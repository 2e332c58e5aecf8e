"""`/v1/batches`: files of requests, answered in the background within a day.

    POST /v1/batches                create, of a file of purpose `batch`
    GET  /v1/batches                list; `/v1/batches/{id}` one
    POST /v1/batches/{id}/cancel    begin no more lines

A batch whose file cannot be read fails at once and says which lines; what is wrong with a single body is said in the
error file. There is no discount: a line is bought at a provider's posted price like any other request, and the key pays
exactly what its receipt says.
"""

import asyncio
from collections.abc import Mapping
from functools import partial

import msgspec
from aiohttp import web

from deaios.gateway.batch_records import BatchRecords, Line
from deaios.gateway.batch_worker import BatchWorker, pack_draws, read_line_body
from deaios.gateway.desk import NONCE_SIZE
from deaios.gateway.file_records import FileRecords
from deaios.gateway.files import PURPOSE
from deaios.gateway.files_wire import Batch, BatchList, Counts, InputLine, LineError, LineErrors
from deaios.gateway.keys import Draws, KeyRecord, derive_draws
from deaios.gateway.queries import cut_page, read_limit, read_query
from deaios.market.fields import BODY_BYTES_MAX, JSON_DEPTH_MAX, InvalidParameter, Reader, read_parameters, read_text
from deaios.market.parts import count_choices
from deaios.market.question import Api, Part
from deaios.market.responses import read_metadata
from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import Invalid
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.http import json_response, read_body

LINES_MAX = 2048
LINE_DEPTH_MAX = JSON_DEPTH_MAX + 4
CUSTOM_ID_CHARS_MAX = 512
ERRORS_MAX = 50
WINDOW = "24h"
WINDOW_S = 24 * 3600
LIST_MAX = 100
LIST_DEFAULT = 20
ENDPOINTS = {
    "/v1/chat/completions": Api.CHAT,
    "/v1/completions": Api.COMPLETIONS,
    "/v1/embeddings": Api.EMBEDDINGS,
}
ID_SIZE = 12


class BatchesDoor:
    """The routes' handlers."""

    def __init__(
        self, records: BatchRecords, files: FileRecords, worker: BatchWorker, clock: Clock, dice: Dice
    ) -> None:
        self._records = records
        self._files = files
        self._worker = worker
        self._clock = clock
        self._dice = dice

    async def create(self, request: web.Request, key: KeyRecord, key_text: str) -> web.Response:
        """Read a file of lines and begin, or say what is wrong with it."""
        required = ("input_file_id", "endpoint", "completion_window")
        found = read_parameters(await read_body(request), _READERS, {"output_expires_after": ()}, required)
        file_id, endpoint = str(found["input_file_id"]), str(found["endpoint"])
        now_ms = self._clock.now_ms()
        file = await asyncio.to_thread(self._files.find_file, key.key_id, file_id, now_ms)
        if file.purpose != PURPOSE:
            raise InvalidParameter("input_file_id", f"the file is for {file.purpose!r}, {PURPOSE!r} is needed")
        content = await asyncio.to_thread(self._files.read_content, key.key_id, file_id, now_ms)
        read = partial(self._read_lines, key_text, endpoint, content)
        lines, errors = await asyncio.to_thread(read)
        now_s = now_ms // 1000
        metadata = found.get("metadata")
        batch = Batch(
            id="batch_" + self._dice.token_bytes(ID_SIZE).hex(),
            endpoint=endpoint,
            input_file_id=file_id,
            completion_window=WINDOW,
            status="failed" if errors else "in_progress",
            created_at=now_s,
            expires_at=now_s + WINDOW_S,
            metadata=metadata,  # type: ignore[arg-type] # its reader returns this type
            errors=LineErrors(errors) if errors else None,
            in_progress_at=None if errors else now_s,
            failed_at=now_s if errors else None,
            request_counts=Counts(0 if errors else len(lines)),
        )
        api = ENDPOINTS[endpoint]
        await asyncio.to_thread(self._records.add, key.key_id, api, batch, () if errors else lines)
        self._worker.wake()
        return json_response(batch)

    def _read_lines(self, key_text: str, endpoint: str, content: bytes) -> tuple[list[Line], list[LineError]]:
        lines: list[Line] = []
        errors: list[LineError] = []
        seen: set[str] = set()
        texts = content.split(b"\n")
        if texts[-1].strip() == b"":
            texts.pop()
        if not 0 < len(texts) <= LINES_MAX:
            message = f"the file has {len(texts)} lines, allowed are 1 to {LINES_MAX}"
            return [], [LineError("invalid_line_count", message)]
        for number, text in enumerate(texts):
            try:
                item = self._read_line(text, endpoint)
                if item.custom_id in seen:
                    raise InvalidParameter("custom_id", f"custom_id {item.custom_id[:80]!r} comes twice")
            except InvalidParameter as error:
                errors.append(LineError(error.code, str(error), number + 1, error.param))
                if len(errors) == ERRORS_MAX:
                    break
                continue
            seen.add(item.custom_id)
            body = bytes(item.body)
            draws = self._draw(key_text, ENDPOINTS[endpoint], body)
            lines.append(Line(number, item.custom_id, body, draws))
        return lines, errors

    def _read_line(self, text: bytes, endpoint: str) -> InputLine:
        if len(text) > BODY_BYTES_MAX:
            raise InvalidParameter("body", f"the line has {len(text)} bytes, at most {BODY_BYTES_MAX} are read")
        try:
            validate_json_depth(text, LINE_DEPTH_MAX)
            item = msgspec.json.decode(text, type=InputLine)
        except (msgspec.DecodeError, UnicodeError, InvalidEncoding) as error:
            raise InvalidParameter("line", f"the line is not a request: {error}", "invalid_json_line") from error
        if not 0 < len(item.custom_id) <= CUSTOM_ID_CHARS_MAX:
            raise InvalidParameter(
                "custom_id", f"custom_id has {len(item.custom_id)} characters, allowed are 1 to {CUSTOM_ID_CHARS_MAX}"
            )
        if item.method != "POST":
            raise InvalidParameter("method", f"method is {item.method[:20]!r}, only 'POST' is supported")
        if item.url != endpoint:
            raise InvalidParameter("url", f"url is {item.url[:80]!r}, the batch is for {endpoint!r}", "mismatched_url")
        return item

    def _draw(self, key_text: str, api: Api, body: bytes) -> bytes:
        """Nonces and salts of a line's purchases, by its seed as any request's; none where its body is refused."""
        try:
            questions = read_line_body(api, body)
        except Invalid:
            return self._dice.token_bytes(NONCE_SIZE)
        parts = [Part(api, index) for index in range(count_choices(questions))]
        seed = questions[0].seed
        if seed is not None:
            return pack_draws([derive_draws(key_text, seed, body, part) for part in parts])
        client_nonce = self._dice.token_bytes(NONCE_SIZE)
        return pack_draws(
            [Draws(client_nonce, self._dice.token_bytes(NONCE_SIZE), self._dice.token_bytes(NONCE_SIZE)) for _ in parts]
        )

    async def show(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """One batch as it stands."""
        read_query(request, ())
        return json_response(await asyncio.to_thread(self._records.find, key.key_id, request.match_info["id"]))

    async def show_all(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """List, newest first."""
        query = read_query(request, ("after", "limit"))
        limit = read_limit(query, LIST_DEFAULT, LIST_MAX)
        batches = await asyncio.to_thread(self._records.list_batches, key.key_id)
        page, has_more = cut_page(batches, [batch.id for batch in batches], query.get("after"), limit)
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        return json_response(BatchList(page, first, last, has_more))

    async def cancel(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """Begin no more lines; those that run are finished and paid for."""
        batch = await asyncio.to_thread(self._records.find, key.key_id, request.match_info["id"])
        if batch.status == "in_progress":
            await asyncio.to_thread(self._records.cancel, batch.id, self._clock.now_ms() // 1000)
            self._worker.wake()
            batch = await asyncio.to_thread(self._records.find, key.key_id, batch.id)
        if batch.status not in ("cancelling", "cancelled"):
            raise InvalidParameter("batch_id", f"the batch is {batch.status}; only one in progress can be cancelled")
        return json_response(batch)


def _read_endpoint(param: str, value: object) -> str:
    endpoint = read_text(param, value)
    if endpoint not in ENDPOINTS:
        raise InvalidParameter(param, f"{param} is {endpoint[:80]!r}, allowed are {', '.join(ENDPOINTS)}")
    return endpoint


def _read_window(param: str, value: object) -> str:
    window = read_text(param, value)
    if window != WINDOW:
        raise InvalidParameter(param, f"{param} is {window[:20]!r}, only {WINDOW!r} is supported")
    return window


_READERS: Mapping[str, Reader] = {
    "completion_window": _read_window,
    "endpoint": _read_endpoint,
    "input_file_id": read_text,
    "metadata": read_metadata,
}
