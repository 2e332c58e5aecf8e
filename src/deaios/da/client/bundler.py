"""Gather small contents for a moment and disperse them as one matrix: each keeps its own id, proof and term.

What a bundle costs is shared by the bytes that each content takes in it, rounded up: shares sum to the fee or to a
little more, less than a unit for each content. A bundle is kept until the last of its contents expires, and all of them
pay for that.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deaios.coding.parameters import LEAF_BYTES, Profile
from deaios.da.blob import BUNDLE_HEADER_BYTES, ENTRY_BYTES, ITEMS_MAX, BlobId, InvalidBlob, Item, encode_bundle
from deaios.runtime.clock import Clock

GATHER_S = 0.25
"""How long the first content of a bundle waits for others."""
BUNDLE_BYTES_MAX = 4 << 20
"""Contents of one bundle; a reader of one of them may have to fetch it all."""
WAITING_MAX = 8
"""Bundles on their way; more contents than fit into these wait."""


@dataclass(frozen=True, slots=True)
class Dispersed:
    """The commitment under which a payload is certified, and what that cost: 0 where it was certified before."""

    commitment: bytes
    fee: int


@dataclass(frozen=True, slots=True)
class Bundled:
    """A content's own id, and its share of what its bundle cost."""

    id: BlobId
    fee: int


Disperse = Callable[[bytes, int], Awaitable[Dispersed]]
"""Certify a payload until a moment in Unix seconds."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: Item
    bundled: "asyncio.Future[Bundled]"


def compute_share(fee: int, content_bytes: int, payload_bytes: int) -> int:
    """A content's share of the fee for a bundle, rounded up."""
    return -(-fee * (ENTRY_BYTES + content_bytes) // (payload_bytes - BUNDLE_HEADER_BYTES))


def bound_share(content_bytes: int, profile: Profile) -> int:
    """A length whose fee for the longest term, and one unit, no share of a content exceeds, whatever is beside it.

    A row of L bytes of payload has fewer than L / k + LEAF_BYTES bytes, and w of L - H are the content's; that is most
    where L = w + H. One more leaf in each row than this payload needs is no less, and the unit is for rounding.
    """
    return BUNDLE_HEADER_BYTES + ENTRY_BYTES + content_bytes + profile.data_rows * LEAF_BYTES


class Bundler:
    """One bundle being filled, others on their way."""

    def __init__(self, disperse: Disperse, clock: Clock, gather_s: float = GATHER_S) -> None:
        self._disperse = disperse
        self._clock = clock
        self._gather_s = gather_s
        self._filling: list[_Waiting] = []
        self._filling_bytes = 0
        self._closing: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(WAITING_MAX)

    async def put(self, content: bytes, expires_at: int) -> Bundled:
        """Publish a content of at most `BUNDLE_BYTES_MAX` bytes until `expires_at`; returns once it is certified.

        Raises:
            InvalidBlob: an empty content, or a longer one.
            Refused, Unavailable: as the dispersal of its bundle says; the content is not published.
        """
        if not 1 <= len(content) <= BUNDLE_BYTES_MAX:  # one that cannot be encoded must not cost the others
            raise InvalidBlob(f"content of {len(content)} bytes; 1 to {BUNDLE_BYTES_MAX} in a bundle")
        if self._filling_bytes + len(content) > BUNDLE_BYTES_MAX or len(self._filling) >= ITEMS_MAX:
            self._send()
        waiting = _Waiting(Item(content, expires_at), asyncio.get_running_loop().create_future())
        self._filling.append(waiting)
        self._filling_bytes += len(content)
        if self._closing is None:
            self._closing = asyncio.create_task(self._send_later(), name="bundle")
        return await waiting.bundled

    async def close(self) -> None:
        """Send what waits, and wait for what is on its way."""
        self._send()
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def _send_later(self) -> None:
        await self._clock.sleep(self._gather_s)
        self._closing = None
        self._send()

    def _send(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        if self._filling:
            task = asyncio.create_task(self._disperse_all(self._filling), name="bundle on its way")
            self._filling, self._filling_bytes = [], 0
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _disperse_all(self, waiting: list[_Waiting]) -> None:
        try:
            async with self._slots:
                payload = await asyncio.to_thread(encode_bundle, [one.item for one in waiting])
                dispersed = await self._disperse(payload, max(one.item.expires_at for one in waiting))
        except BaseException as error:  # cancellation too: whoever waits for the bundle hears what became of it
            for one in waiting:
                if not one.bundled.done():
                    one.bundled.set_exception(error)
                    one.bundled.exception()  # a caller that went away never asks, and that is not a fault
            if not isinstance(error, Exception):
                raise
            return
        for number, one in enumerate(waiting):
            if not one.bundled.done():
                fee = compute_share(dispersed.fee, len(one.item.content), len(payload))
                one.bundled.set_result(Bundled(BlobId(dispersed.commitment, number), fee))
