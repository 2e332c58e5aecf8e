"""The JSON of files, uploads and batches. Struct definitions only."""

import msgspec


class File(msgspec.Struct, frozen=True):
    """One file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None
    status: str = "processed"
    object: str = "file"


class FileList(msgspec.Struct, frozen=True):
    """Some of a key's files."""

    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Upload(msgspec.Struct, frozen=True):
    """A file that comes in parts."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: File | None = None
    object: str = "upload"


class UploadPart(msgspec.Struct, frozen=True):
    """One part."""

    id: str
    created_at: int
    upload_id: str
    object: str = "upload.part"


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a batch's input; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineErrors(msgspec.Struct, frozen=True):
    """All that is wrong with it, up to a bound."""

    data: list[LineError]
    object: str = "list"


class Counts(msgspec.Struct, frozen=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, frozen=True):
    """A batch as it stands."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    errors: LineErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    object: str = "batch"


class BatchList(msgspec.Struct, frozen=True):
    """Some of a key's batches."""

    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class LineResponse(msgspec.Struct, frozen=True):
    """What the door of a line answered."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineFailure(msgspec.Struct, frozen=True):
    """Why a line was never asked."""

    code: str
    message: str


class LineResult(msgspec.Struct, frozen=True):
    """One line of an output or error file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineFailure | None


class InputLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a batch's input; the body is kept byte for byte."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw
