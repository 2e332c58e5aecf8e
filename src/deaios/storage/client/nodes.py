"""Talk to a set of storage nodes, any of which may be missing, slow or lying.

Reads are raced: enough attempts to be done if all go well, one more whenever an attempt fails or nothing came for
`hedge_s`. What comes back is checked by the caller's check before it counts. A node that failed is asked last from then
on, until it serves again. Knows no files.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from deaios.primitives.errors import ConfigError, DeaiosError, Unavailable
from deaios.primitives.keys import PrivateKey
from deaios.runtime.authentication import NONCE_SIZE, sign_request
from deaios.runtime.client import HttpClient, RefusedByPeer
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.logs import get_logger
from deaios.storage.placement import Attempt

NODES_MAX = 256
REASONS_MAX = 8
"""Failures named in an error message."""

UPLOADS_MAX = 6
"""Bodies on their way at once: bounds memory to as many rows."""

_log = get_logger("storage.client")
T = TypeVar("T")


class UnavailableRows(Unavailable):
    """Too few nodes hold, or take, what is needed."""


@dataclass(frozen=True, slots=True)
class Timings:
    """How long to wait for a node.

    Attributes:
        transfer_s: longest time for one row in one direction.
        hedge_s: silence after which one more node is asked.
        rounds: times that the whole set of nodes is tried.
        pause_s: wait between rounds.
    """

    transfer_s: float = 30.0
    hedge_s: float = 2.0
    rounds: int = 3
    pause_s: float = 0.5


@dataclass(slots=True)
class _Race(Generic[T]):
    """Where one race stands."""

    attempts: list[Attempt]
    needed: int
    found: dict[int, T]
    active: dict["asyncio.Task[T]", Attempt]
    reasons: list[str]


class Nodes:
    """The nodes of one network, as one client sees them."""

    def __init__(
        self,
        http: HttpClient,
        urls: Sequence[str],
        key: PrivateKey | None,
        network_id: bytes,
        *,
        clock: Clock,
        dice: Dice,
        executor: Executor | None,
        timings: Timings,
    ) -> None:
        if not 1 <= len(urls) <= NODES_MAX:
            raise ConfigError(f"{len(urls)} storage nodes configured; 1 to {NODES_MAX} are needed")
        self._http = http
        self._urls = [url.rstrip("/") for url in urls]
        self._key = key
        self._network_id = network_id
        self._clock = clock
        self._dice = dice
        self._executor = executor
        self._timings = timings
        self._uploads = asyncio.Semaphore(UPLOADS_MAX)
        self._demoted: set[int] = set()

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def demoted(self) -> Collection[int]:
        """Nodes whose last answer failed."""
        return frozenset(self._demoted)

    def pardon(self) -> None:
        """Forget which nodes failed."""
        self._demoted.clear()

    async def run(self, work: Callable[[], T]) -> T:
        """Do heavy work on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def gather(self, works: Iterable[Coroutine[None, None, T]]) -> list[T]:
        """All results; the first failure cancels the rest and is raised once they have stopped."""
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def upload(self, path: str, order: Sequence[int], build_body: Callable[[], bytes]) -> int:
        """Store a body on the first node of `order` that takes it.

        Returns:
            The node.

        Raises:
            UnavailableRows: no node took it in any round.
        """
        reasons: list[str] = []
        async with self._uploads:
            body = await self.run(build_body)
            for turn in range(self._timings.rounds):
                if turn:
                    await self._clock.sleep(self._timings.pause_s * turn)
                for node in order:
                    if await self._try(node, partial(self._upload_to, node, path, body), reasons):
                        return node
        raise UnavailableRows(f"no storage node took {path}: {_join(reasons)}")

    async def upload_to(self, path: str, node: int, body: bytes) -> bool:
        """Store a body on one node; False when it did not take it."""
        async with self._uploads:
            return await self._try(node, partial(self._upload_to, node, path, body), [])

    async def _upload_to(self, node: int, path: str, body: bytes) -> bool:
        if self._key is None:
            raise ConfigError("this storage client has no key; writes are signed requests")
        url = self._urls[node] + path
        if await self._has(url):
            return True
        key, nonce, now_ms = self._key, self._dice.token_bytes(NONCE_SIZE), self._clock.now_ms()
        signed_path = urlsplit(url).path
        headers = await self.run(lambda: sign_request(key, self._network_id, "PUT", signed_path, body, now_ms, nonce))
        await self._http.put_bytes(url, body, headers)
        return True

    async def _has(self, url: str) -> bool:
        try:
            await self._http.request("HEAD", url)
        except RefusedByPeer as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _try(self, node: int, work: Callable[[], Coroutine[None, None, bool]], reasons: list[str]) -> bool:
        try:
            async with asyncio.timeout(self._timings.transfer_s):
                done = await work()
        except ConfigError:
            raise
        except (DeaiosError, TimeoutError) as error:
            self._blame(node, error, reasons)
            return False
        self._demoted.discard(node)
        return done

    async def collect(
        self,
        path_of: Callable[[int], str],
        attempts: Sequence[Attempt],
        needed: int,
        bytes_max: int,
        check: Callable[[int, bytes], T],
    ) -> dict[int, T]:
        """Race for `needed` different rows.

        Args:
            path_of: path of a row on any node.
            attempts: in the order to be made.
            needed: rows wanted.
            bytes_max: size of an answer.
            check: turns (row, bytes) into the result, on a thread; raises a typed error for bytes that are wrong.

        Raises:
            UnavailableRows: the attempts ran out in every round.
        """
        race: _Race[T] = _Race([], needed, {}, {}, [])

        async def fetch(attempt: Attempt) -> T:
            url = self._urls[attempt.node] + path_of(attempt.row)
            async with asyncio.timeout(self._timings.transfer_s):
                body = await self._http.get_bytes(url, bytes_max)
            return await self.run(lambda: check(attempt.row, body))

        try:
            for turn in range(self._timings.rounds):
                if turn:
                    await self._clock.sleep(self._timings.pause_s * turn)
                race.attempts = [attempt for attempt in attempts if attempt.row not in race.found]
                await self._run_race(race, fetch)
                if len(race.found) >= needed:
                    return race.found
        finally:
            for task in race.active:
                task.cancel()
            await asyncio.gather(*race.active, return_exceptions=True)
        raise UnavailableRows(
            f"{len(race.found)} of {needed} rows found on {len(self._urls)} nodes: {_join(race.reasons)}"
        )

    async def _run_race(self, race: _Race[T], fetch: Callable[[Attempt], Coroutine[None, None, T]]) -> None:
        extra = 0
        while len(race.found) < race.needed:
            while len(race.active) < race.needed - len(race.found) + extra and (attempt := _take(race)):
                race.active[asyncio.ensure_future(fetch(attempt))] = attempt
            if not race.active:
                return
            done, _ = await asyncio.wait(
                race.active, timeout=self._timings.hedge_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                extra += 1
                self._demoted.update(attempt.node for attempt in race.active.values())
            for task in done:
                self._settle(race, task)

    def _settle(self, race: _Race[T], task: "asyncio.Task[T]") -> None:
        attempt = race.active.pop(task)
        try:
            race.found[attempt.row] = task.result()
        except RefusedByPeer as error:
            race.reasons.append(str(error))
            if error.status != 404:  # an honest node may lack a row that was placed elsewhere
                self._demoted.add(attempt.node)
        except (DeaiosError, TimeoutError) as error:
            self._blame(attempt.node, error, race.reasons)
        else:
            self._demoted.discard(attempt.node)

    def _blame(self, node: int, error: Exception, reasons: list[str]) -> None:
        reason = str(error) or f"no answer within {self._timings.transfer_s} s"
        reasons.append(f"{self._urls[node]}: {reason}")
        self._demoted.add(node)
        _log.info("storage node failed", node=self._urls[node], error=reason)


def _take(race: _Race[T]) -> Attempt | None:
    """The next attempt: rows that nobody is fetching first, then a second source for one that is slow."""
    wanted = [attempt for attempt in race.attempts if attempt.row not in race.found]
    busy = {attempt.row for attempt in race.active.values()}
    chosen = next((attempt for attempt in wanted if attempt.row not in busy), wanted[0] if wanted else None)
    if chosen is not None:
        race.attempts.remove(chosen)
    return chosen


def _join(reasons: list[str]) -> str:
    shown = list(dict.fromkeys(reasons))
    more = f" and {len(shown) - REASONS_MAX} more" if len(shown) > REASONS_MAX else ""
    return "; ".join(shown[:REASONS_MAX]) + more
