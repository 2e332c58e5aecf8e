"""Blobs of any size by id: put, get, prove, sample.

A content of at most `SINGLE_BYTES_MAX` bytes is one matrix; a longer one is cut into segments of one matrix each, and a
matrix with their manifest names it. Nothing is answered before its certificate is on chain; a put that was cut is taken
up by repeating it. A target appears only when the whole content was checked.
"""

import asyncio
import contextlib
import os
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import blake3

from deaios.coding.matrix import encode
from deaios.coding.parameters import Profile, build_committee_profile
from deaios.coding.workers import ALONE, Workers
from deaios.da.blob import (
    HEADER_BYTES,
    SINGLE_BYTES_MAX,
    BlobId,
    Bundle,
    InvalidBlob,
    Large,
    Payload,
    Single,
    decode_payload,
    encode_large,
    encode_single,
)
from deaios.da.client.committees import Committees
from deaios.da.client.disperser import Bill, Disperser
from deaios.da.client.reader import EPSILON, Reader, Sample, UnavailableExpired
from deaios.da.proof import BlobProof, Prover
from deaios.ledger.client.availability import Certificate
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.sender import Sender
from deaios.ledger.structs import availability_domain
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import PrivateKey
from deaios.rows.client import Timings
from deaios.rows.manifest import SEGMENT_BYTES_MAX, Manifest, Segment
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.dice import Dice, SystemDice
from deaios.runtime.disk import UnavailableDisk, fsync_folder
from deaios.runtime.errors import RefusedTooLarge

SEGMENTS_IN_FLIGHT = 2
"""One is coded while another travels; bounds memory to as many matrices and their copies."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class InvalidContent(InvalidBlob):
    """A content that changed while it was read, or that is not what its manifest says."""


@dataclass(frozen=True, slots=True)
class BlobStatus:
    """What the chain says of a blob, and when its own term ends (earlier than its bundle's, perhaps)."""

    id: BlobId
    certificate: Certificate
    kind: str
    size_bytes: int
    expires_at: int
    segments: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """A blob of which certificate and first matrix were read: what is known of it, and how to go on."""

    status: BlobStatus
    payload: Payload


class BlobClient:
    """Puts and gets blobs on one network. Without a sender it only reads."""

    def __init__(
        self,
        contracts: Contracts,
        http: HttpClient,
        network_id: bytes,
        chain_id: int,
        *,
        key: PrivateKey | None = None,
        sender: Sender | None = None,
        clock: Clock | None = None,
        dice: Dice | None = None,
        timings: Timings | None = None,
        workers: Workers = ALONE,
    ) -> None:
        """A client.

        Args:
            contracts: of the network.
            http: an entered `HttpClient`.
            network_id: genesis hash that writes name.
            chain_id: of the chain that certificates are on.
            key: signs writes to members.
            sender: certifies and pays, with the same key.
            clock: wall time.
            dice: nonces, and which rows are sampled.
            timings: how long to wait for a member.
            workers: who helps to code.
        """
        clock, dice = clock or SystemClock(), dice or SystemDice()
        self._clock = clock
        self._availability = contracts.availability
        committees = Committees(contracts, http, key, network_id, clock=clock, dice=dice, timings=timings)
        self.reader = Reader(contracts, committees, clock, dice)
        self._disperser = None
        if sender is not None:
            domain = availability_domain(chain_id, contracts.addresses.availability)
            self._disperser = Disperser(contracts, sender, committees, domain, clock, workers)

    # Put

    async def fetch_fee(self, size_bytes: int, term_s: int) -> int:
        """The most that putting a content of so many bytes costs: all of its matrices, none certified before."""
        profile = build_committee_profile(await self._availability.seats())
        lengths = Counter(_list_lengths(size_bytes, profile))
        fees = [await self._availability.fee_of(length, term_s) for length in lengths]
        return sum(fee * count for fee, count in zip(fees, lengths.values(), strict=True))

    async def disperse(self, payload: bytes | memoryview, term_s: int, bill: Bill | None = None) -> Certificate:
        """Make one payload available; see `Disperser.disperse`."""
        if self._disperser is None:
            raise ConfigError("this client only reads; a key that pays is needed to publish")
        return await self._disperser.disperse(payload, term_s, bill)

    async def put_bytes(
        self, content: bytes, term_s: int, progress: Progress | None = None, bill: Bill | None = None
    ) -> BlobId:
        """Publish bytes for `term_s` seconds.

        Args:
            content: at least one byte.
            term_s: as `Disperser.disperse`.
            progress: told after each matrix.
            bill: where certificates and fees are noted while the put goes on.

        Raises:
            InvalidBlob: no bytes at all.
            UnavailableQuorum, UnavailableCommittee, Reverted: as `Disperser.disperse`.
        """
        return await self._put(BytesIO(content), len(content), term_s, progress, bill)

    async def put_file(self, path: Path, term_s: int, progress: Progress | None = None) -> BlobId:
        """Publish a file; as `put_bytes`, in memory of a few segments.

        Raises:
            InvalidContent: the file changed while it was read.
            UnavailableDisk: it cannot be read.
        """
        try:
            with path.open("rb") as file:
                return await self._put(file, os.fstat(file.fileno()).st_size, term_s, progress)
        except OSError as error:
            raise UnavailableDisk(f"cannot read {path}: {error}") from error

    async def _put(
        self, file: BinaryIO, size_bytes: int, term_s: int, progress: Progress | None, bill: Bill | None = None
    ) -> BlobId:
        if size_bytes <= SINGLE_BYTES_MAX:
            content = await asyncio.to_thread(_read_exactly, file, size_bytes)
            certificate = await self.disperse(encode_single(content), term_s, bill)
            if progress:
                progress(size_bytes, size_bytes)
            return BlobId(certificate.attestation.commitment)
        hasher = blake3.blake3()
        segments: list[Segment] = []
        flying: deque[asyncio.Task[Certificate]] = deque()
        left, done = size_bytes, 0
        profile = None
        try:
            while left or flying:
                if left and len(flying) < SEGMENTS_IN_FLIGHT:
                    data = await asyncio.to_thread(_read_exactly, file, min(SEGMENT_BYTES_MAX, left))
                    await asyncio.to_thread(hasher.update, data)
                    left -= len(data)
                    flying.append(asyncio.create_task(self.disperse(data, term_s, bill)))
                    continue
                certificate = await flying.popleft()
                profile = profile or certificate.parameters.profile
                segments.append(Segment(certificate.attestation.commitment, certificate.length))
                done += certificate.length
                if progress:
                    progress(done, size_bytes)
        except asyncio.CancelledError:
            for task in flying:
                task.cancel()
            raise
        finally:
            # Where one failed, the others may be paid already; waited for, they are on the bill.
            await asyncio.gather(*flying, return_exceptions=True)
        assert profile is not None
        manifest = Manifest(profile, size_bytes, hasher.digest(), tuple(segments))
        return BlobId((await self.disperse(encode_large(manifest), term_s, bill)).attestation.commitment)

    # Get

    async def open(self, blob_id: BlobId) -> OpenBlob:
        """Read a blob's certificate and its first matrix: all of it, unless it is large.

        Raises:
            InvalidBlob: what is there is no blob, or has no item of this number.
            NotFound, UnavailableExpired, UnavailableRows: as `get_bytes`.
        """
        certificate = await self.reader.fetch_certificate(blob_id.commitment)
        data = await self.reader.fetch_payload(certificate)
        payload = await asyncio.to_thread(decode_payload, data)
        return OpenBlob(self._describe(blob_id, certificate, payload), payload)

    async def get_status(self, blob_id: BlobId) -> BlobStatus:
        """What is known of a blob without reading all of it; of a bundle too.

        Raises:
            InvalidBlob, NotFound, UnavailableExpired, UnavailableRows: as `open`.
        """
        return (await self.open(blob_id)).status

    async def stream(self, blob: OpenBlob, wanted: range | None = None) -> AsyncGenerator[memoryview, None]:
        """The bytes of a content, or a range of them: in order, of a large blob one segment at a time.

        Of a whole large blob the last piece comes only after the content id was checked; of a range, each segment
        is what the manifest says it is, and no more is known.

        Raises:
            InvalidBlob: a bundle, of which no item is named.
            NotFound, UnavailableExpired, UnavailableRows, InvalidContent: as `get_bytes`, also between two pieces.
        """
        everything = range(blob.status.size_bytes)
        wanted = everything if wanted is None else wanted
        if not isinstance(blob.payload, Large):
            yield _content_of(blob)[wanted.start : wanted.stop]
            return
        manifest, hasher, start = blob.payload.manifest, blake3.blake3(), 0
        for segment in manifest.segments:
            end = start + segment.size_bytes
            first, last = max(wanted.start, start), min(wanted.stop, end)
            if first < last:
                data = await self._fetch_segment(segment)
                if wanted == everything:
                    await asyncio.to_thread(hasher.update, data)
                    if end == manifest.size_bytes:
                        _validate_content_id(hasher.digest(), manifest)
                yield data[first - start : last - start]
            start = end

    async def get_bytes(self, blob_id: BlobId, bytes_max: int) -> bytes:
        """A blob's content in memory.

        Raises:
            NotFound: never certified, or the id names no item.
            UnavailableExpired: its term is over.
            UnavailableRows: too few rows can be had now; says which, and why.
            RefusedTooLarge: longer than `bytes_max`.
            InvalidContent: segments are not what the manifest says.
        """
        blob = await self.open(blob_id)
        if blob.status.size_bytes > bytes_max:
            raise RefusedTooLarge(f"blob has {blob.status.size_bytes} bytes, at most {bytes_max} wanted")
        return b"".join([piece async for piece in self.stream(blob)])

    async def get_file(self, blob_id: BlobId, target: Path, progress: Progress | None = None) -> int:
        """Fetch a blob; an interrupted fetch goes on where it stopped, and `target` appears whole or not at all.

        Returns:
            Its size in bytes.

        Raises:
            UnavailableDisk: the target cannot be written.
            NotFound, UnavailableExpired, UnavailableRows, InvalidContent: as `get_bytes`.
        """
        blob = await self.open(blob_id)
        partial = target.with_name(f".{target.name}.{blob_id.commitment.hex()[:16]}.part")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            kept = partial.stat().st_size if partial.exists() else 0
            try:
                with partial.open("r+b" if kept else "wb") as file:
                    size = await self._write(blob, file, kept, progress)
                    await asyncio.to_thread(_sync, file)
            except InvalidContent:
                partial.unlink()  # what an interrupted run left was damaged: once more, from nothing
                if not kept:
                    raise
                with partial.open("wb") as file:
                    size = await self._write(blob, file, 0, progress)
                    await asyncio.to_thread(_sync, file)
            partial.replace(target)
            await asyncio.to_thread(fsync_folder, target.parent)
        except OSError as error:
            raise UnavailableDisk(f"cannot write {target}: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                if partial.stat().st_size == 0:  # nothing came: nothing to go on from
                    partial.unlink()
        return size

    async def prove(self, blob_id: BlobId) -> BlobProof:
        """The proof that a content is what its id names, for who has neither members nor chain.

        Raises:
            InvalidBlob: a large blob, which is many matrices, or a number that names nothing, or a matrix that was
                not coded as committed: leaves of it would prove other bytes than reading gives.
            NotFound, UnavailableExpired, UnavailableRows: as `get_bytes`.
        """
        certificate = await self.reader.fetch_certificate(blob_id.commitment)
        data = await self.reader.fetch_payload(certificate)
        if isinstance(payload := await asyncio.to_thread(decode_payload, data), Large):
            count = len(payload.manifest.segments)
            raise InvalidBlob(f"{blob_id} is {count} segments and their manifest; one proof is of one matrix")

        def build() -> BlobProof:
            matrix = encode(data, certificate.parameters.profile)
            if matrix.commitment != blob_id.commitment:
                raise InvalidBlob(f"what {blob_id} decodes to has commitment {encode_hex(matrix.commitment)}")
            return Prover(matrix).prove(blob_id.number)

        return await asyncio.to_thread(build)

    async def sample(self, blob_id: BlobId, epsilon: Fraction = EPSILON) -> list[Sample]:
        """See with few rows that a blob can be had: one sample for each of its matrices.

        Raises:
            NotFound, UnavailableExpired: as `get_bytes`.
            UnavailableRows: a large blob's manifest cannot be read.
        """
        certificate = await self.reader.fetch_certificate(blob_id.commitment)
        samples = [await self.reader.sample(certificate, epsilon)]
        if not samples[0].is_available:
            return samples
        payload = decode_payload(await self.reader.fetch_payload(certificate))
        if isinstance(payload, Large):
            certificates = [
                await self.reader.fetch_certificate(segment.commitment) for segment in payload.manifest.segments
            ]
            samples += [await self.reader.sample(certificate, epsilon) for certificate in certificates]
        return samples

    async def _fetch_segment(self, segment: Segment) -> memoryview:
        data = await self.reader.fetch_payload(await self.reader.fetch_certificate(segment.commitment))
        if len(data) != segment.size_bytes:
            raise InvalidContent(f"segment of {len(data)} bytes, the manifest says {segment.size_bytes}")
        return data

    async def _write(self, blob: OpenBlob, target: BinaryIO, kept: int, progress: Progress | None) -> int:
        """Write a blob's content; the first `kept` bytes of `target` may be whole segments of it already."""
        if isinstance(blob.payload, Large):
            return await self._get_large(blob.payload.manifest, target, kept, progress)
        content = _content_of(blob)
        target.seek(0)
        target.write(content)
        target.truncate()
        if progress:
            progress(len(content), len(content))
        return len(content)

    def _describe(self, blob_id: BlobId, certificate: Certificate, payload: Payload) -> BlobStatus:
        until = certificate.attestation.expires_at
        match payload:
            case Bundle() if blob_id.number is not None:
                item, now_s = payload.get_item(blob_id.number), self._clock.now_ms() // 1000
                if item.expires_at <= now_s:
                    raise UnavailableExpired(f"{blob_id} was kept until {item.expires_at}, it is {now_s} now")
                return BlobStatus(blob_id, certificate, "item", len(item.content), min(until, item.expires_at), ())
            case _ if blob_id.number is not None:
                raise InvalidBlob(f"{blob_id} names an item, but the payload is no bundle")
            case Single(content):
                return BlobStatus(blob_id, certificate, "single", len(content), until, ())
            case Bundle():
                return BlobStatus(blob_id, certificate, "bundle", certificate.length, until, ())
            case Large(manifest):
                commitments = tuple(segment.commitment for segment in manifest.segments)
                return BlobStatus(blob_id, certificate, "large", manifest.size_bytes, until, commitments)

    async def _get_large(self, manifest: Manifest, target: BinaryIO, kept: int, progress: Progress | None) -> int:
        hasher = blake3.blake3()
        done = 0
        for segment in manifest.segments:
            if done + segment.size_bytes <= kept:
                target.seek(done)
                data: bytes | memoryview = await asyncio.to_thread(target.read, segment.size_bytes)
            else:
                data = await self._fetch_segment(segment)
                target.seek(done)
                await asyncio.to_thread(target.write, data)
            await asyncio.to_thread(hasher.update, data)
            done += len(data)
            if progress:
                progress(done, manifest.size_bytes)
        target.truncate(done)
        _validate_content_id(hasher.digest(), manifest)
        return done


def _list_lengths(size_bytes: int, profile: Profile) -> list[int]:
    """Bytes of each payload that a content is published in."""
    if size_bytes <= SINGLE_BYTES_MAX:
        return [HEADER_BYTES + size_bytes]
    whole, rest = divmod(size_bytes, SEGMENT_BYTES_MAX)
    sizes = [SEGMENT_BYTES_MAX] * whole + [rest] * (rest > 0)
    manifest = Manifest(profile, size_bytes, ZERO32, tuple(Segment(ZERO32, size) for size in sizes))
    return [*sizes, len(encode_large(manifest))]


def _content_of(blob: OpenBlob) -> memoryview:
    """The content of a single, or of an item.

    Raises:
        InvalidBlob: a bundle, of which no item is named.
    """
    match blob.payload:
        case Single(content):
            return content
        case Bundle() if blob.status.id.number is not None:
            return memoryview(blob.payload.get_item(blob.status.id.number).content)
        case Bundle(count=count):
            raise InvalidBlob(f"{blob.status.id} is a bundle of {count} blobs; name one, such as {blob.status.id}.0")
        case Large():
            raise AssertionError("a large blob is read by segments")


def _validate_content_id(found: bytes, manifest: Manifest) -> None:
    if found != manifest.content_id:
        raise InvalidContent(f"segments have content id {found.hex()}, not {manifest.content_id.hex()}")


def _read_exactly(file: BinaryIO, size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise InvalidContent(f"file ended {size_bytes - len(data)} bytes early")
    return data


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
