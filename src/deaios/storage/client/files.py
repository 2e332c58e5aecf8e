"""Files as coded rows on several nodes: put, get, resume.

Invariant: a byte reaches the disk only after its row was verified, and the target appears only after the whole content
id was checked; a node can withhold, never alter. At most one segment and its rows are in memory.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import blake3

from deaios.coding.matrix import CodedMatrix, decode, encode
from deaios.coding.parameters import PROFILE_LOCAL, Profile
from deaios.coding.workers import ALONE, Workers
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import PrivateKey
from deaios.rows.attempts import Attempt
from deaios.rows.client import Nodes, Timings, UnavailableRows
from deaios.rows.manifest import MANIFEST_BYTES_MAX, SEGMENT_BYTES_MAX, Manifest, Segment, open_manifest
from deaios.rows.message import RowChecker, build_message, compute_message_bytes
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import Clock, SystemClock
from deaios.runtime.dice import Dice, SystemDice
from deaios.runtime.disk import PUBLIC, UnavailableDisk, fsync_folder
from deaios.runtime.errors import RefusedTooLarge
from deaios.storage.placement import order_attempts, order_nodes

HASH_PIECE_BYTES = 4 << 20
"""Bytes of a file hashed at once."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class InvalidContent(Invalid):
    """A file whose bytes are not what its manifest, or its own size, says."""


class StorageClient:
    """Put and get files on a set of nodes, of which one in three may be missing, slow or lying."""

    def __init__(
        self,
        http: HttpClient,
        node_urls: Sequence[str],
        key: PrivateKey | None,
        network_id: bytes,
        *,
        profile: Profile = PROFILE_LOCAL,
        clock: Clock | None = None,
        dice: Dice | None = None,
        executor: Executor | None = None,
        timings: Timings | None = None,
        workers: Workers = ALONE,
    ) -> None:
        """A client over an open HTTP pool.

        Args:
            http: an entered `HttpClient`.
            node_urls: base URLs, in the descriptor's order: it decides where rows belong.
            key: signs writes; None for a client that only reads.
            network_id: genesis hash that writes name.
            profile: of files put by this client; files got carry their own.
            clock: wall time for signatures, pauses between rounds.
            dice: nonces of signatures.
            executor: threads for coding, hashing and disk; the loop's own by default.
            timings: how long to wait for a node.
            workers: who helps to code.
        """
        self._workers = workers
        self._profile = profile
        self._nodes = Nodes(
            http,
            node_urls,
            key,
            network_id,
            clock=clock or SystemClock(),
            dice=dice or SystemDice(),
            executor=executor,
            timings=timings or Timings(),
        )

    async def put_file(self, path: Path, progress: Progress | None = None) -> bytes:
        """Store a file; rows that are already there are not sent again.

        Returns:
            The manifest id, 32 bytes.

        Raises:
            UnavailableRows: too few nodes took rows or the manifest.
            InvalidContent: the file changed while it was read.
            UnavailableDisk: the file cannot be read.
        """
        try:
            with path.open("rb") as file:
                return await self._put(file, os.fstat(file.fileno()).st_size, progress)
        except OSError as error:
            raise UnavailableDisk(f"cannot read {path}: {error}") from error

    async def put_bytes(self, data: bytes, progress: Progress | None = None) -> bytes:
        """Store bytes as a file; as `put_file`."""
        return await self._put(BytesIO(data), len(data), progress)

    async def fetch_manifest(self, manifest_id: bytes) -> Manifest:
        """A file's manifest, checked against its id.

        Raises:
            UnavailableRows: no node has it.
        """
        attempts = [Attempt(0, attempt.node) for attempt in order_attempts(manifest_id, 1, len(self._nodes), ())]
        attempts.sort(key=lambda attempt: attempt.node in self._nodes.demoted)
        found = await self._nodes.collect(
            lambda _row: f"/manifests/{encode_hex(manifest_id)}",
            attempts,
            1,
            MANIFEST_BYTES_MAX,
            lambda _row, data: open_manifest(manifest_id, data),
        )
        return found[0]

    async def get_file(self, manifest_id: bytes, target: Path, progress: Progress | None = None) -> Manifest:
        """Fetch a file; an interrupted fetch goes on where it stopped.

        Args:
            manifest_id: names the file.
            target: appears, whole and checked, only at the end. Left alone when it has the right content already.
            progress: called after each segment.

        Raises:
            UnavailableRows: too few rows can be had now.
            InvalidContent: the manifest's content id is not that of its segments.
            UnavailableDisk: the target cannot be written.
        """
        manifest = await self.fetch_manifest(manifest_id)
        try:
            if await self._nodes.run(lambda: _has_content(target, manifest)):
                if progress:
                    progress(manifest.size_bytes, manifest.size_bytes)
                return manifest
            partial = target.with_name(f".{target.name}.{manifest_id.hex()[:16]}.part")
            resumed = await self._fill(manifest, partial, progress)
            published = await self._nodes.run(lambda: _publish(partial, target, manifest))
            if resumed and not published:  # what an interrupted run left was damaged: once more, from nothing
                await self._fill(manifest, partial, progress)
                published = await self._nodes.run(lambda: _publish(partial, target, manifest))
        except OSError as error:
            raise UnavailableDisk(f"cannot write {target}: {error}") from error
        if not published:
            raise InvalidContent(f"segments do not have content id {manifest.content_id.hex()}")
        return manifest

    async def get_bytes(self, manifest_id: bytes, bytes_max: int) -> bytes:
        """Fetch a small file into memory.

        Raises:
            RefusedTooLarge: its manifest says more than `bytes_max`; nothing was fetched.
            UnavailableRows: too few rows can be had now.
            InvalidContent: the content id is wrong.
        """
        manifest = await self.fetch_manifest(manifest_id)
        if manifest.size_bytes > bytes_max:
            raise RefusedTooLarge(f"file has {manifest.size_bytes} bytes, at most {bytes_max} wanted")
        parts = [bytes(await self._fetch_segment(manifest, index)) for index in range(len(manifest.segments))]
        data = b"".join(parts)
        if blake3.blake3(data).digest() != manifest.content_id:
            raise InvalidContent(f"segments do not have content id {manifest.content_id.hex()}")
        return data

    async def _put(self, file: BinaryIO, size_bytes: int, progress: Progress | None) -> bytes:
        hasher = blake3.blake3()
        segments: list[Segment] = []
        done = 0

        def read_segment() -> CodedMatrix:
            data = file.read(min(SEGMENT_BYTES_MAX, size_bytes - done))
            if not data:
                raise InvalidContent(f"file ended after {done} bytes, its size was {size_bytes}")
            hasher.update(data)
            return encode(data, self._profile, self._workers)

        while done < size_bytes:
            matrix = await self._nodes.run(read_segment)
            await self._put_rows(matrix)
            segments.append(Segment(matrix.commitment, matrix.head.parameters.length))
            done += segments[-1].size_bytes
            if progress:
                progress(done, size_bytes)
        manifest = Manifest(self._profile, size_bytes, hasher.digest(), tuple(segments))
        await self._put_manifest(manifest)
        return manifest.manifest_id

    async def _put_rows(self, matrix: CodedMatrix) -> None:
        """Place every row, on so many nodes that one in three may be lost."""
        placed = await self._place(matrix)
        if len(placed) < self._spread_min:
            # Nodes that failed lately were asked last, which here means not at all; they may have come back.
            self._nodes.pardon()
            placed = await self._place(matrix)
        self._require_spread(placed, "rows")

    async def _place(self, matrix: CodedMatrix) -> set[int]:
        """Send every row to the first node that takes it; gives the nodes that hold some."""
        commitment, count = matrix.commitment, len(self._nodes)

        def upload(row: int) -> "Callable[[], bytes]":
            return lambda: build_message(matrix, row).encode()

        placed = await self._nodes.gather(
            self._nodes.upload(
                f"/rows/{encode_hex(commitment)}/{row}",
                order_nodes(commitment, row, count, self._nodes.demoted),
                upload(row),
            )
            for row in range(self._profile.rows)
        )
        return set(placed)

    async def _put_manifest(self, manifest: Manifest) -> None:
        body, path = manifest.encode(), f"/manifests/{encode_hex(manifest.manifest_id)}"
        taken = await self._nodes.gather(self._nodes.upload_to(path, node, body) for node in range(len(self._nodes)))
        self._require_spread({node for node, took in enumerate(taken) if took}, "the manifest")

    @property
    def _spread_min(self) -> int:
        return min(self._profile.data_rows, len(self._nodes))

    def _require_spread(self, nodes: set[int], what: str) -> None:
        if len(nodes) < self._spread_min:
            raise UnavailableRows(
                f"{what} lie on {len(nodes)} nodes, at least {self._spread_min} are needed to survive a loss"
            )

    async def _fetch_segment(self, manifest: Manifest, index: int) -> memoryview:
        """A segment's payload from the first k rows that verify."""
        parameters = manifest.get_parameters(index)
        commitment = manifest.segments[index].commitment
        rows = await self._nodes.collect(
            lambda row: f"/rows/{encode_hex(commitment)}/{row}",
            order_attempts(commitment, manifest.profile.rows, len(self._nodes), self._nodes.demoted),
            manifest.profile.data_rows,
            compute_message_bytes(parameters),
            RowChecker(commitment, parameters).check,
        )
        return await self._nodes.run(
            lambda: decode(parameters, {index: message.row for index, message in rows.items()})
        )

    async def _fill(self, manifest: Manifest, partial: Path, progress: Progress | None) -> bool:
        """Append the missing segments; True when earlier ones were already there."""
        file, first, done = await self._nodes.run(lambda: _open_partial(manifest, partial))
        with file:
            if progress and done:
                progress(done, manifest.size_bytes)
            for index in range(first, len(manifest.segments)):
                data = await self._fetch_segment(manifest, index)
                await self._nodes.run(functools.partial(_write, file, data))
                done += len(data)
                if progress:
                    progress(done, manifest.size_bytes)
            await self._nodes.run(lambda: os.fsync(file.fileno()))
        return first > 0


def _open_partial(manifest: Manifest, path: Path) -> tuple[BinaryIO, int, int]:
    """Open what an earlier run left, cut to whole segments: the file, the first missing segment, the bytes kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, PUBLIC), "r+b")
    size = os.fstat(file.fileno()).st_size
    first, done = 0, 0
    while first < len(manifest.segments) and done + manifest.segments[first].size_bytes <= size:
        done += manifest.segments[first].size_bytes
        first += 1
    file.truncate(done)
    file.seek(done)
    return file, first, done


def _write(file: BinaryIO, data: memoryview) -> None:
    file.write(data)
    file.flush()


def _has_content(path: Path, manifest: Manifest) -> bool:
    if not path.is_file() or path.stat().st_size != manifest.size_bytes:
        return False
    hasher = blake3.blake3()
    with path.open("rb") as file:
        while piece := file.read(HASH_PIECE_BYTES):
            hasher.update(piece)
    return hasher.digest() == manifest.content_id


def _publish(partial: Path, target: Path, manifest: Manifest) -> bool:
    """Check the whole content, then let the target appear at once; remove what is not that content."""
    if not _has_content(partial, manifest):
        partial.unlink()
        return False
    partial.replace(target)
    fsync_folder(target.parent)
    return True
