"""Blobs over HTTP, for who runs no node.

    POST /blobs?term=SECONDS     the body is the content; once it is certified, 201 with id, size, end of term and fee
    GET, HEAD /blobs/{id}        the content, or one range of it
    GET /blobs/{id}/status       what the chain and the blob itself say, as JSON
    GET /blobs/{id}/proof        bytes for `da.proof.decode_proof`, for who has nothing but the id

What is guaranteed of puts and their price is said in `gateway.publishing`. Every row is verified before it is used; a
reader who does not trust this gateway asks for the proof. A large blob is read one segment at a time, and an answer
that breaks off is cut, never ended as if it were whole. Errors are problem details.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from aiohttp import web

from deaios.da.blob import BlobId, InvalidBlob, Large, parse_blob_id
from deaios.da.client.blobs import BlobStatus, OpenBlob
from deaios.da.client.disperser import TERM_SLACK_S
from deaios.da.proof import encode_proof
from deaios.gateway.budgets import Budgets
from deaios.gateway.errors import UnavailableBlobs
from deaios.gateway.keys import KeyRecord
from deaios.gateway.publishing import BUNDLED_BYTES_MAX, BlobNetwork, Publisher, PutLimits
from deaios.gateway.retries import identify
from deaios.primitives.encoding import InvalidEncoding, decode_decimal, encode_hex
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.hashing import sha256
from deaios.rows.manifest import SEGMENT_BYTES_MAX, InvalidManifest
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import NotFound
from deaios.runtime.http import hold_bytes, json_response, read_body
from deaios.runtime.metrics import Metrics
from deaios.runtime.ranges import decode_range
from deaios.runtime.slots import Slots

CONTENT_BYTES_MAX = 64 << 20
"""Longest content of one request; `deaios blob put` takes longer files."""
TERM_S = 3600
"""Where the request says nothing."""
TERM_S_MIN = 2 * TERM_SLACK_S
"""A certificate may end `TERM_SLACK_S` early; a shorter term would be mostly slack."""
TERM_BITS = 32
IDEMPOTENCY_HEADER = "Idempotency-Key"
IDEMPOTENCY_CHARACTERS_MAX = 255
PIECE_BYTES = 256 << 10
"""Written to a socket at once."""
_BYTES = "application/octet-stream"
T = TypeVar("T")


class InvalidPut(Invalid):
    """A request to publish that says something we do not understand, or no term that the network has."""


@dataclass(frozen=True, slots=True)
class BlobLimits:
    """Bounds of the blob door.

    Attributes:
        body_s: how long a content may take to arrive: 64 MiB at 2 Mbit/s.
        reads_max: matrices that are fetched, decoded or proven at once, each in memory of a segment and its rows.
        reads_waiting_max: reads that wait for that.
        write_s: how long one piece may wait for a client that does not read.
        puts: of what is being put.
    """

    body_s: float = 270.0
    reads_max: int = 8
    reads_waiting_max: int = 256
    write_s: float = 60.0
    puts: PutLimits = field(default_factory=PutLimits)


class PutAnswer(msgspec.Struct, frozen=True):
    """Answer to a put; the fee in smallest units, the end of the term in Unix seconds."""

    id: str
    size_bytes: int
    expires_at: int
    fee: int


class StatusAnswer(msgspec.Struct, frozen=True):
    """What is known of a blob; of a large one, `fee`, `payer` and seats are those of its manifest's matrix."""

    id: str
    kind: str
    size_bytes: int
    expires_at: int
    epoch: int
    data_rows: int
    rows: int
    seats_signed: list[int]
    fee: int
    payer: str
    segments: list[str]


class BlobDoor:
    """The routes' handlers with everything they need."""

    def __init__(
        self, network: BlobNetwork, budgets: Budgets, *, clock: Clock, dice: Dice, limits: BlobLimits, metrics: Metrics
    ) -> None:
        self._network = network
        self._clock = clock
        self._limits = limits
        self._publisher = Publisher(network, budgets, clock, dice, limits.puts, metrics)
        self._slots = Slots(limits.reads_max, limits.reads_waiting_max)

    async def close(self) -> None:
        """Wait for what is being put, a while."""
        await self._publisher.close()

    async def put(self, request: web.Request, key: KeyRecord, _text: str) -> web.Response:
        """`POST /blobs`."""
        term_s = self._read_term(request)
        label = _read_label(request)
        content = await read_body(request, self._limits.body_s, bytes_max=CONTENT_BYTES_MAX)
        if not content:
            raise InvalidPut("the body is the blob, and it has 0 bytes; at least 1 expected")

        def identify_put() -> bytes:
            return sha256(identify(key.key_id, label, content) + term_s.to_bytes(TERM_BITS // 8))

        is_small = len(content) <= BUNDLED_BYTES_MAX
        identity = identify_put() if is_small else await asyncio.to_thread(identify_put)
        published = await self._publisher.publish(key.key_id, identity, content, term_s)
        answer = PutAnswer(str(published.id), published.size_bytes, published.expires_at, published.fee)
        return json_response(answer, 201, {"Location": f"/blobs/{published.id}"})

    async def get(self, request: web.Request, _key: KeyRecord, _text: str) -> web.StreamResponse:
        """`GET` and `HEAD /blobs/{id}`."""
        blob_id = parse_blob_id(request.match_info["id"])
        blob = await self._read(blob_id, lambda: self._network.client.open(blob_id))
        if blob.status.kind == "bundle":
            raise NotFound(f"{blob_id} is a bundle of blobs; name one of them, such as {blob_id}.0")
        size, headers = blob.status.size_bytes, self._build_headers(blob.status)
        if any(tag.value in ("*", str(blob_id)) for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        if request.method == "HEAD":
            return web.Response(headers=headers | {"Content-Length": str(size), "Content-Type": _BYTES})
        status, wanted = 200, range(size)
        if "Range" in request.headers and request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            asked = decode_range(request.headers["Range"], size)
            if asked is not None:
                status, wanted = 206, asked
                headers["Content-Range"] = f"bytes {asked.start}-{asked.stop - 1}/{size}"
        is_large = isinstance(blob.payload, Large)
        hold_bytes(request, blob.status.certificate.length + (SEGMENT_BYTES_MAX if is_large else 0))
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type, response.content_length = _BYTES, len(wanted)
        await self._send(request, response, blob, wanted)
        return response

    async def status(self, request: web.Request, _key: KeyRecord, _text: str) -> web.Response:
        """`GET /blobs/{id}/status`."""
        blob_id = parse_blob_id(request.match_info["id"])
        status = await self._read(blob_id, lambda: self._network.client.get_status(blob_id))
        return json_response(_describe(status))

    async def prove(self, request: web.Request, _key: KeyRecord, _text: str) -> web.Response:
        """`GET /blobs/{id}/proof`."""
        blob_id = parse_blob_id(request.match_info["id"])
        proof = await self._read(blob_id, lambda: self._network.client.prove(blob_id))
        body = await asyncio.to_thread(encode_proof, proof)
        hold_bytes(request, len(body))
        return web.Response(body=body, content_type=_BYTES)

    async def _send(self, request: web.Request, response: web.StreamResponse, blob: OpenBlob, wanted: range) -> None:
        """Stream what is wanted; what fails before the first byte still fails with a status."""
        blob_id = blob.status.id
        async with aclosing(self._network.client.stream(blob, wanted)) as stream:
            piece = await self._read(blob_id, lambda: anext(stream, None))
            await response.prepare(request)
            while piece is not None:
                for start in range(0, len(piece), PIECE_BYTES):
                    async with asyncio.timeout(self._limits.write_s):
                        await response.write(piece[start : start + PIECE_BYTES])
                piece = await self._read(blob_id, lambda: anext(stream, None), is_admitted=True)
        await response.write_eof()

    async def _read(self, blob_id: BlobId, work: Callable[[], Awaitable[T]], *, is_admitted: bool = False) -> T:
        """Do one piece of reading when there is a place for it; whoever asked is at fault for the id alone."""
        async with self._slots.take(is_admitted=is_admitted):
            try:
                return await work()
            except NotFound:
                raise
            except (InvalidBlob, InvalidManifest) as error:
                raise NotFound(f"{blob_id} names nothing here: {error}") from error
            except (Invalid, Refused) as error:  # of the chain or a member
                raise UnavailableBlobs(f"{blob_id} could not be read: {error}") from error

    def _build_headers(self, status: BlobStatus) -> dict[str, str]:
        left_s = max(0, status.expires_at - self._clock.now_ms() // 1000)
        return {
            "ETag": f'"{status.id}"',
            "Cache-Control": f"private, max-age={left_s}, immutable",
            "Accept-Ranges": "bytes",
        }

    def _read_term(self, request: web.Request) -> int:
        unknown = sorted(set(request.query) - {"term"})
        if unknown:
            raise InvalidPut(f"the query has {unknown[0][:80]!r}; only 'term' is known")
        texts, most = request.query.getall("term", [str(TERM_S)]), self._network.term_s_max
        try:
            term_s = decode_decimal(texts[0], TERM_BITS)
        except InvalidEncoding as error:
            raise InvalidPut(f"term: {error}") from error
        if len(texts) > 1 or not TERM_S_MIN <= term_s <= most:
            raise InvalidPut(f"{len(texts)} terms, of {term_s} s; one of {TERM_S_MIN} to {most} s is allowed")
        return term_s


def _read_label(request: web.Request) -> bytes | None:
    """What a client calls its request, if it does."""
    text = request.headers.get(IDEMPOTENCY_HEADER)
    if text is None:
        return None
    if not 0 < len(text) <= IDEMPOTENCY_CHARACTERS_MAX:
        raise InvalidPut(
            f"{IDEMPOTENCY_HEADER} has {len(text)} characters; 1 to {IDEMPOTENCY_CHARACTERS_MAX} are allowed"
        )
    return text.encode(errors="surrogateescape")


def _describe(status: BlobStatus) -> StatusAnswer:
    certificate = status.certificate
    profile = certificate.parameters.profile
    return StatusAnswer(
        id=str(status.id),
        kind=status.kind,
        size_bytes=status.size_bytes,
        expires_at=status.expires_at,
        epoch=certificate.attestation.epoch,
        data_rows=profile.data_rows,
        rows=profile.rows,
        seats_signed=[seat for seat in range(certificate.seats) if certificate.has_seat(seat)],
        fee=certificate.fee,
        payer=encode_hex(certificate.payer),
        segments=[encode_hex(segment) for segment in status.segments],
    )
