"""`/v1/files` and `/v1/uploads`: what batches read and write, kept for one key.

    POST   /v1/files                     a form of `file`, `purpose`, and `expires_after[seconds]`
    GET    /v1/files                     list; `/v1/files/{id}` one, `/v1/files/{id}/content` its bytes
    DELETE /v1/files/{id}
    POST   /v1/uploads                   begin; then `/parts`, `/complete`, `/cancel` below its id

The only purpose is `batch`.
"""

import asyncio
from collections.abc import Mapping

from aiohttp import web

from deaios.gateway.file_records import FILES_BYTES_MAX, FileRecord, FileRecords, UploadRecord
from deaios.gateway.files_wire import File, FileList, Upload, UploadPart
from deaios.gateway.keys import KeyRecord
from deaios.gateway.multipart import Field, read_form
from deaios.gateway.queries import LIMIT_MAX, cut_page, read_limit, read_order, read_query
from deaios.gateway.responses_wire import Deleted
from deaios.market.fields import (
    InvalidParameter,
    Reader,
    integers,
    read_fields,
    read_parameters,
    read_text,
    unknown,
    wrong_type,
)
from deaios.primitives.encoding import InvalidEncoding, decode_decimal
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.http import hold_bytes, json_response, read_body

FILE_BYTES_MAX = 16 << 20
FORM_SLACK_BYTES = 64 << 10
"""What a form adds to its file."""
BODY_S = 120.0
UPLOAD_S = 3600
"""As long as the OpenAI API keeps an upload open."""
EXPIRY_S_MIN, EXPIRY_S_MAX = 3600, 30 * 24 * 3600
EXPIRY_BITS = 32
FILENAME_CHARS_MAX = 255
PURPOSE = "batch"
PURPOSES = (PURPOSE, "batch_output")
ID_SIZE = 12


class FilesDoor:
    """The routes' handlers."""

    def __init__(self, records: FileRecords, clock: Clock, dice: Dice) -> None:
        self._records = records
        self._clock = clock
        self._dice = dice

    async def create(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """Keep a file that comes as a form."""
        fields = await _read_form(request)
        for name in fields:
            if name not in ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]"):
                raise unknown(name)
        file, purpose = fields.get("file"), fields.get("purpose")
        if file is None or file.filename is None:
            raise InvalidParameter("file", "missing required parameter: 'file'", "missing_required_parameter")
        if purpose is None:
            raise InvalidParameter("purpose", "missing required parameter: 'purpose'", "missing_required_parameter")
        _read_purpose("purpose", purpose.read_text("purpose"))
        if len(file.content) > FILE_BYTES_MAX:
            raise InvalidParameter("file", f"the file has {len(file.content)} bytes, at most {FILE_BYTES_MAX} are kept")
        now_ms = self._clock.now_ms()
        record = FileRecord(
            file_id=self._draw_id("file-"),
            key_id=key.key_id,
            created_at_ms=now_ms,
            expires_at_ms=_read_expiry(fields, now_ms),
            filename=_read_filename("file", file.filename),
            purpose=PURPOSE,
            size_bytes=len(file.content),
        )
        await asyncio.to_thread(self._records.add_file, record, file.content)
        return json_response(describe_file(record))

    async def show_all(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """List."""
        query = read_query(request, ("after", "limit", "order", "purpose"))
        purpose = query.get("purpose")
        if purpose is not None and purpose not in PURPOSES:
            raise InvalidParameter("purpose", f"purpose is {purpose[:80]!r}, allowed are {', '.join(PURPOSES)}")
        limit, is_newest_first = read_limit(query, LIMIT_MAX, LIMIT_MAX), read_order(query)
        records = await asyncio.to_thread(self._records.list_files, key.key_id, self._clock.now_ms())
        files = [describe_file(record) for record in records if purpose in (None, record.purpose)]
        if is_newest_first:
            files.reverse()
        page, has_more = cut_page(files, [file.id for file in files], query.get("after"), limit)
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        return json_response(FileList(page, first, last, has_more))

    async def show(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """What is known of one file."""
        read_query(request, ())
        now_ms = self._clock.now_ms()
        record = await asyncio.to_thread(self._records.find_file, key.key_id, request.match_info["id"], now_ms)
        return json_response(describe_file(record))

    async def read(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """A file's bytes."""
        read_query(request, ())
        now_ms, file_id = self._clock.now_ms(), request.match_info["id"]
        record = await asyncio.to_thread(self._records.find_file, key.key_id, file_id, now_ms)
        hold_bytes(request, record.size_bytes)
        content = await asyncio.to_thread(self._records.read_content, key.key_id, file_id, now_ms)
        return web.Response(body=content, content_type="application/octet-stream")

    async def delete(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """Forget a file."""
        read_query(request, ())
        file_id = request.match_info["id"]
        await asyncio.to_thread(self._records.delete_file, key.key_id, file_id)
        return json_response(Deleted(file_id, "file"))

    async def begin_upload(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """Say what will come in parts."""
        found = read_parameters(await read_body(request), _UPLOAD_READERS, {}, ("bytes", "filename", "purpose"))
        now_ms = self._clock.now_ms()
        size, filename = found["bytes"], found["filename"]
        assert isinstance(size, int)
        assert isinstance(filename, str)
        record = UploadRecord(
            upload_id=self._draw_id("upload_"),
            key_id=key.key_id,
            created_at_ms=now_ms,
            expires_at_ms=now_ms + UPLOAD_S * 1000,
            filename=filename,
            purpose=PURPOSE,
            size_bytes=size,
        )
        await asyncio.to_thread(self._records.add_upload, record)
        return json_response(_describe_upload(record))

    async def add_part(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """One part of an upload, as a form of `data`."""
        upload = await self._find_upload(request, key)
        fields = await _read_form(request)
        for name in fields:
            if name != "data":
                raise unknown(name)
        if "data" not in fields:
            raise InvalidParameter("data", "missing required parameter: 'data'", "missing_required_parameter")
        part_id, now_ms = self._draw_id("part_"), self._clock.now_ms()
        await asyncio.to_thread(self._records.add_part, upload, part_id, fields["data"].content, now_ms)
        return json_response(UploadPart(part_id, now_ms // 1000, upload.upload_id))

    async def complete_upload(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """Make a file of the parts in the order named."""
        upload = await self._find_upload(request, key)
        found = read_parameters(await read_body(request), _COMPLETE_READERS, {}, ("part_ids",))
        part_ids, md5 = found["part_ids"], found.get("md5")
        assert md5 is None or isinstance(md5, str)
        assert isinstance(part_ids, list)
        record = FileRecord(
            file_id=self._draw_id("file-"),
            key_id=key.key_id,
            created_at_ms=self._clock.now_ms(),
            expires_at_ms=None,
            filename=upload.filename,
            purpose=upload.purpose,
            size_bytes=upload.size_bytes,
        )
        await asyncio.to_thread(self._records.complete, upload, part_ids, record, md5)
        return json_response(_describe_upload(upload, "completed", describe_file(record)))

    async def cancel_upload(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """Let the parts go."""
        upload = await self._find_upload(request, key)
        await asyncio.to_thread(self._records.cancel, upload)
        return json_response(_describe_upload(upload, "cancelled"))

    async def _find_upload(self, request: web.Request, key: KeyRecord) -> UploadRecord:
        upload_id, now_ms = request.match_info["id"], self._clock.now_ms()
        return await asyncio.to_thread(self._records.find_upload, key.key_id, upload_id, now_ms)

    def _draw_id(self, prefix: str) -> str:
        return prefix + self._dice.token_bytes(ID_SIZE).hex()


def describe_file(record: FileRecord) -> File:
    """A file in the API's words."""
    return File(
        id=record.file_id,
        bytes=record.size_bytes,
        created_at=record.created_at_ms // 1000,
        filename=record.filename,
        purpose=record.purpose,
        expires_at=None if record.expires_at_ms is None else record.expires_at_ms // 1000,
    )


def _describe_upload(record: UploadRecord, status: str = "pending", file: File | None = None) -> Upload:
    return Upload(
        id=record.upload_id,
        bytes=record.size_bytes,
        created_at=record.created_at_ms // 1000,
        expires_at=record.expires_at_ms // 1000,
        filename=record.filename,
        purpose=record.purpose,
        status=status,
        file=file,
    )


async def _read_form(request: web.Request) -> Mapping[str, Field]:
    body = await read_body(request, BODY_S, bytes_max=FILE_BYTES_MAX + FORM_SLACK_BYTES)
    return await asyncio.to_thread(read_form, request.headers.get("Content-Type", ""), body)


def _read_expiry(fields: Mapping[str, Field], now_ms: int) -> int | None:
    seconds, anchor = fields.get("expires_after[seconds]"), fields.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return None
    if anchor is None or anchor.read_text("expires_after[anchor]") != "created_at" or seconds is None:
        raise InvalidParameter("expires_after", "expires_after needs the anchor 'created_at' and seconds")
    try:
        wanted = decode_decimal(seconds.read_text("expires_after[seconds]"), EXPIRY_BITS)
    except InvalidEncoding as error:
        raise InvalidParameter("expires_after[seconds]", f"expires_after[seconds]: {error}") from error
    if not EXPIRY_S_MIN <= wanted <= EXPIRY_S_MAX:
        raise InvalidParameter(
            "expires_after[seconds]", f"seconds is {wanted}, allowed are {EXPIRY_S_MIN} to {EXPIRY_S_MAX}"
        )
    return now_ms + wanted * 1000


def _read_purpose(param: str, value: object) -> str:
    purpose = read_text(param, value)
    if purpose != PURPOSE:
        raise InvalidParameter(param, f"purpose is {purpose[:80]!r}, only {PURPOSE!r} is supported")
    return purpose


def _read_filename(param: str, value: object) -> str:
    name = read_text(param, value)
    if not 0 < len(name) <= FILENAME_CHARS_MAX:
        raise InvalidParameter(
            param, f"a file's name has {len(name)} characters, 1 to {FILENAME_CHARS_MAX} are allowed"
        )
    return name


def _read_part_ids(param: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise wrong_type(param, "an array", value)
    return [read_text(f"{param}[{index}]", item) for index, item in enumerate(value)]


def _read_no_expiry(param: str, value: object) -> None:
    read_fields(param, value)
    raise InvalidParameter(param, f"{param} is not supported for uploads", "unsupported_parameter")


_UPLOAD_READERS: Mapping[str, Reader] = {
    "bytes": integers(1, min(FILES_BYTES_MAX, 64 << 20)),
    "expires_after": _read_no_expiry,
    "filename": _read_filename,
    "mime_type": read_text,
    "purpose": _read_purpose,
}
_COMPLETE_READERS: Mapping[str, Reader] = {"md5": read_text, "part_ids": _read_part_ids}
