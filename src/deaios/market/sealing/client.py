"""The buyer's side: papers sealed to a provider's key, its answer opened line by line.

HPKE draws an ephemeral key for each body, so this is no rule. `cryptography` is loaded with the first sealed purchase.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar

import msgspec

from deaios.market.sealing.framing import (
    CHUNK_BYTES_MAX,
    ENCAPSULATED_KEY_HEADER,
    EXPORT_LABEL,
    REQUEST_INFO,
    RESPONSE_NONCE_HEADER,
    SECRET_SIZE,
    TAG_SIZE,
    ChunkReader,
    InvalidSealing,
    compute_nonce,
    derive_answer_keys,
    frame_chunk,
)
from deaios.runtime.client import JSON_BYTES_MAX, HttpClient, InvalidResponse, UnavailablePeer, split_lines

MEDIA_TYPE = "application/x-deaios-sealed"
"""Of a sealed body; what is inside is the business of who opens it."""
T = TypeVar("T")
_PIECE_BYTES = CHUNK_BYTES_MAX - TAG_SIZE


class SealedRequest:
    """One body sealed to one key.

    Attributes:
        encapsulated_key: 32 bytes, for the header.
        body: as it travels.
        headers: that go with it.
    """

    def __init__(self, sealing_key: bytes, plain: bytes) -> None:
        """Seal.

        Raises:
            InvalidSealing: the key is not one that can be sealed to.
        """
        from deaios.market.sealing.suite import open_sender  # noqa: PLC0415 - cryptography, 10 MiB, only who seals

        self.encapsulated_key, context = open_sender(sealing_key, REQUEST_INFO)
        pieces = (plain[start : start + _PIECE_BYTES] for start in range(0, len(plain), _PIECE_BYTES))
        self.body = b"".join(frame_chunk(context.seal(piece)) for piece in pieces)
        self.headers = {"Content-Type": MEDIA_TYPE, ENCAPSULATED_KEY_HEADER: self.encapsulated_key.hex()}
        self._exported = context.export(EXPORT_LABEL, SECRET_SIZE)

    async def open_answer(self, nonce_text: str | None, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """What the answer says, chunk by chunk.

        Args:
            nonce_text: value of the header `Ehbp-Response-Nonce`; None where it is missing.
            pieces: the answer's bytes as they come.

        Raises:
            InvalidSealing: it is not sealed, not for this request, or cut within a chunk.
        """
        from deaios.market.sealing.suite import open_chunk  # noqa: PLC0415 - loaded above

        try:
            nonce = bytes.fromhex(nonce_text or "")
        except ValueError as error:
            raise InvalidSealing("the answer's nonce is not hex") from error
        if len(nonce) != SECRET_SIZE:
            raise InvalidSealing("a sealed purchase was answered in the open")
        key, base = derive_answer_keys(self._exported, self.encapsulated_key, nonce)
        reader, index = ChunkReader(), 0
        async for piece in pieces:
            for chunk in reader.push(piece):
                yield open_chunk(key, compute_nonce(base, index), chunk)
                index += 1
        reader.finish()


async def stream_purchase(
    http: HttpClient, url: str, body: bytes, sealing_key: bytes | None, *, idle_s: float
) -> AsyncGenerator[bytes, None]:
    """Post papers and yield the answer's lines: sealed both ways where the provider has a key, else in the open.

    Args:
        http: connection pool.
        url: of the purchases of a provider.
        body: the papers.
        sealing_key: the provider's, signed by it; None where it has none.
        idle_s: longest silence.

    Raises:
        UnavailablePeer, RefusedByPeer, InvalidResponse: as `HttpClient.stream_lines`; refusals come in the open. Bytes
            that were not sealed for this purchase are the fault of whoever is on the way, not the provider's.
    """
    if sealing_key is None:
        lines = http.stream_lines(url, body, idle_s=idle_s)
    else:
        lines = _stream_sealed(http, url, SealedRequest(sealing_key, body), idle_s)
    try:
        async with aclosing(lines):
            async for line in lines:
                yield line
    except InvalidSealing as error:
        raise UnavailablePeer(f"{url}: changed on the way: {error}") from error


async def post_sealed(http: HttpClient, url: str, value: object, kind: type[T], sealing_key: bytes) -> T:
    """POST a JSON value sealed, and decode the answer, which is sealed to us.

    Raises:
        UnavailablePeer, RefusedByPeer, InvalidResponse: as `HttpClient.post_json`, or changed on the way.
    """
    sealed, told = SealedRequest(sealing_key, msgspec.json.encode(value)), bytearray()
    try:
        async with http.open_stream(url, sealed.body, sealed.headers) as (answered, pieces):
            async for chunk in sealed.open_answer(answered.get(RESPONSE_NONCE_HEADER), pieces):
                told += chunk
                if len(told) > JSON_BYTES_MAX:
                    raise InvalidResponse(f"{url}: answer exceeds {JSON_BYTES_MAX} bytes")
    except InvalidSealing as error:
        raise UnavailablePeer(f"{url}: changed on the way: {error}") from error
    try:
        return msgspec.json.decode(bytes(told), type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidResponse(f"{url}: answer is not a valid {kind.__name__}: {error}") from error


async def _stream_sealed(
    http: HttpClient, url: str, sealed: SealedRequest, idle_s: float
) -> AsyncGenerator[bytes, None]:
    async with http.open_stream(url, sealed.body, sealed.headers, idle_s=idle_s) as (answered, pieces):
        plain = sealed.open_answer(answered.get(RESPONSE_NONCE_HEADER), pieces)
        async with aclosing(plain):
            async for line in split_lines(url, plain):
                if line.strip():
                    yield line
