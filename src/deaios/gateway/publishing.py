"""Puts of blobs: made and paid once, whoever waits for them, and charged to their keys.

A small content goes into a bundle with others that come at the same moment, a longer one is published alone. The
gateway's own key pays on chain; the key that asked is charged the same, or its share of a bundle.

Guaranteed:
- A put is answered once its certificates are on chain and its charge is on disk.
- The most it can cost is set aside before anything is sent; no budget is exceeded.
- Charges sum to what was paid, and for bundles to less than a unit for each content more. A put that fails on its way
  is charged for the segments that were certified; repeating it pays for the others.
- A client that leaves ends nothing. Its retry (same key, body, term and `Idempotency-Key`, if it sends one) joins the
  put, or has its answer for `WINDOW_S` after the end, and pays nothing.
- What is certified for as long already, by anybody, costs nothing, now and after a restart. Items of bundles are not
  looked for: after the window, or a restart, putting one again buys it again.

Not guaranteed: that a fee was charged if this process died between payment and charge, or never learned that its
transaction got into a block; the gateway bears it. Knows no HTTP.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from deaios.coding.parameters import LEAF_BYTES, build_committee_profile
from deaios.da.blob import BlobId
from deaios.da.client.blobs import BlobClient
from deaios.da.client.bundler import Bundler, Dispersed, bound_share
from deaios.da.client.disperser import BEGIN_SLACK_S, Bill
from deaios.gateway.budgets import Budgets, Reservation
from deaios.gateway.errors import UnavailableBlobs
from deaios.gateway.retries import WINDOW_S
from deaios.gateway.store import Charge
from deaios.ledger.client.availability import DataAvailability
from deaios.primitives.errors import Invalid, Refused
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import RefusedBusy
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

BUNDLED_BYTES_MAX = 64 << 10
"""Longest content that is bundled: a 64th of a bundle, which its reader may have to fetch whole."""
RECENT_MAX = 16_384
"""Answers kept for retries, some 300 bytes each."""
CLOSE_S = 10.0
"""Puts that have not ended so long after the gateway was told to stop are broken off."""

log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class BlobNetwork:
    """Data availability as the gateway has it: a client with the gateway's key, the contract, the longest term."""

    client: BlobClient
    contract: DataAvailability
    term_s_max: int


@dataclass(frozen=True, slots=True)
class PutLimits:
    """Bounds of what is being put; one key gets half of each.

    Attributes:
        puts_max: in the making.
        bytes_max: of their contents, which are kept until the end.
        large_max: contents too long for a bundle that are coded and sent at once, each in memory of two segments and
            their rows; the others wait.
        gather_s: how long the first content of a bundle waits for others.
    """

    puts_max: int = 2048
    bytes_max: int = 256 << 20
    large_max: int = 2
    gather_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Published:
    """A blob that is certified.

    Attributes:
        expires_at: end of its term in Unix seconds.
        fee: what the key was charged for it.
    """

    id: BlobId
    size_bytes: int
    expires_at: int
    fee: int


@dataclass(frozen=True, slots=True)
class _Put:
    """A put in the making."""

    key_id: str
    size_bytes: int
    task: asyncio.Task[Published]


class Publisher:
    """All puts of one gateway process."""

    def __init__(
        self, network: BlobNetwork, budgets: Budgets, clock: Clock, dice: Dice, limits: PutLimits, metrics: Metrics
    ) -> None:
        self._network = network
        self._budgets = budgets
        self._clock = clock
        self._dice = dice
        self._limits = limits
        self._bundler = Bundler(self._disperse_bundle, clock, limits.gather_s)
        self._running: dict[bytes, _Put] = {}
        self._recent: OrderedDict[bytes, tuple[float, Published]] = OrderedDict()
        self._large = asyncio.Semaphore(limits.large_max)
        self._fees: dict[int, int] = {}
        metrics.gauge("gateway_puts_running", "Blobs being published").set_function(lambda: len(self._running))
        self._outcomes = metrics.counter("gateway_puts_total", "Blobs published by outcome", ("outcome",))

    async def close(self) -> None:
        """Wait a while for what is being put, then break it off; money is settled in any case."""
        tasks = [put.task for put in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._bundler.close()

    async def publish(self, key_id: str, request: bytes, content: bytes, term_s: int) -> Published:
        """Put a content, or join the put of the same request.

        Args:
            key_id: who is charged.
            request: identifies key, body and whatever else makes two requests the same.
            content: at least one byte.
            term_s: at most the network's longest term; of the very longest, the seconds that a certificate begins
                before our clock are lost.

        Raises:
            RefusedBusy: too much is being put.
            RefusedBudget: the key cannot pay the most that it may cost.
            Unavailable: the committee, the chain or the disk failed.
        """
        recent = self._find_recent(request)
        if recent is not None:
            return recent
        put = self._running.get(request)
        if put is None:
            self._admit(key_id, len(content))
            work = self._publish(key_id, content, term_s)
            put = _Put(key_id, len(content), asyncio.create_task(work, name="put"))
            self._running[request] = put
            put.task.add_done_callback(partial(self._note_end, request))
        return await asyncio.shield(put.task)

    def _find_recent(self, request: bytes) -> Published | None:
        oldest_s = self._clock.monotonic_s() - WINDOW_S
        while self._recent:
            ended_s, _ = next(iter(self._recent.values()))
            if ended_s >= oldest_s and len(self._recent) <= RECENT_MAX:
                break
            self._recent.popitem(last=False)
        found = self._recent.get(request)
        return None if found is None else found[1]

    def _admit(self, key_id: str, size_bytes: int) -> None:
        sizes = [put.size_bytes for put in self._running.values()]
        own = [put.size_bytes for put in self._running.values() if put.key_id == key_id]
        limits = self._limits
        for who, taken, share in (("this key", own, 2), ("all keys", sizes, 1)):
            if len(taken) >= limits.puts_max // share or sum(taken) + size_bytes > limits.bytes_max // share:
                raise RefusedBusy(
                    f"{len(taken)} blobs of {who} with {sum(taken)} bytes are being put; allowed are "
                    f"{limits.puts_max // share} with {limits.bytes_max // share}"
                )

    def _note_end(self, request: bytes, task: asyncio.Task[Published]) -> None:
        """A put has ended; one that failed may be tried anew at once."""
        del self._running[request]
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            self._outcomes.labels("Cancelled" if error is None else type(error).__name__).inc()
            return
        self._outcomes.labels("published").inc()
        self._recent[request] = self._clock.monotonic_s(), task.result()

    async def _publish(self, key_id: str, content: bytes, term_s: int) -> Published:
        is_small = len(content) <= BUNDLED_BYTES_MAX
        if is_small:
            most = await self._fetch_share_max(len(content))
        else:
            most = await self._network.client.fetch_fee(len(content), term_s)
        reservation = self._budgets.reserve(key_id, most)
        bill = Bill()
        try:
            blob_id = await (self._put_small if is_small else self._put_large)(content, term_s, bill)
        except (Invalid, Refused) as error:  # of the chain or a member: the request was read before anything was sent
            raise UnavailableBlobs(f"the blob could not be published: {error}") from error
        finally:
            await self._settle(reservation, bill.fee)
        assert bill.expires_at is not None
        return Published(blob_id, len(content), bill.expires_at, bill.fee)

    async def _put_small(self, content: bytes, term_s: int, bill: Bill) -> BlobId:
        expires_at = self._clock.now_ms() // 1000 - BEGIN_SLACK_S + term_s
        bundled = await self._bundler.put(content, expires_at)
        bill.fee, bill.expires_at = bundled.fee, expires_at
        return bundled.id

    async def _put_large(self, content: bytes, term_s: int, bill: Bill) -> BlobId:
        async with self._large:
            return await self._network.client.put_bytes(content, term_s, bill=bill)

    async def _disperse_bundle(self, payload: bytes, expires_at: int) -> Dispersed:
        bill = Bill()
        term_s = expires_at - (self._clock.now_ms() // 1000 - BEGIN_SLACK_S)
        certificate = await self._network.client.disperse(payload, term_s, bill)
        return Dispersed(certificate.attestation.commitment, bill.fee)

    async def _fetch_share_max(self, size_bytes: int) -> int:
        """The most that a small content can be charged, in whatever bundle it gets."""
        profile = build_committee_profile(await self._network.contract.seats())
        step = profile.data_rows * LEAF_BYTES
        length = -(-bound_share(size_bytes, profile) // step) * step  # payloads with as many leaves cost the same
        if length not in self._fees:
            self._fees[length] = await self._network.contract.fee_of(length, self._network.term_s_max)
        return self._fees[length] + 1

    async def _settle(self, reservation: Reservation, fee: int) -> None:
        if not fee:
            self._budgets.release(reservation)
            return
        if fee > reservation.amount:
            log.warning("fee above what was set aside", fee=fee, reserved=reservation.amount)
        charge = Charge(
            answer_id="blob-" + self._dice.token_bytes(16).hex(),
            key_id=reservation.key_id,
            amount=min(fee, reservation.amount),
            prompt_tokens=0,
            completion_tokens=0,
            at_ms=self._clock.now_ms(),
        )
        await self._budgets.settle(reservation, charge)
