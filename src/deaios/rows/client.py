"""Talk to a set of nodes that keep rows, any of which may be missing, slow or lying.

Reads are raced: enough attempts to be done if all go well, one more whenever an attempt fails or nothing came for
`hedge_s`. What comes back is checked by the caller's check before it counts. A node that failed is asked last from then
on, until it serves again. A race that is lost says of every row what each node answered. Knows neither files nor blobs,
nor where a row belongs.
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
from deaios.rows.attempts import REASON_CHARACTERS_MAX, Attempt, Findings, MissingRow, describe_race, join_reasons
from deaios.runtime.authentication import NONCE_SIZE, sign_request
from deaios.runtime.client import HttpClient, RefusedByPeer
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.logs import get_logger

NODES_MAX = 256

UPLOADS_MAX = 6
"""Bodies on their way at once: bounds memory to as many rows."""

_log = get_logger("rows.client")
T = TypeVar("T")


class UnavailableRows(Unavailable):
    """Too few nodes hold, or take, what is needed.

    Attributes:
        found: rows that were found and are right, ascending; empty where the error is about writing.
        missing: every row that was asked for and not found, ascending.
    """

    def __init__(self, message: str, found: Sequence[int] = (), missing: Sequence[MissingRow] = ()) -> None:
        super().__init__(message)
        self.found = tuple(found)
        self.missing = tuple(missing)


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
    findings: Findings


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
        uploads_max: int = UPLOADS_MAX,
    ) -> None:
        if not 1 <= len(urls) <= NODES_MAX:
            raise ConfigError(f"{len(urls)} nodes configured; 1 to {NODES_MAX} are needed")
        self._http = http
        self._urls = [url.rstrip("/") for url in urls]
        self._key = key
        self._network_id = network_id
        self._clock = clock
        self._dice = dice
        self._executor = executor
        self._timings = timings
        self._uploads = asyncio.Semaphore(uploads_max)
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
        raise UnavailableRows(f"no node took {path}: {join_reasons(reasons)}")

    async def upload_to(self, path: str, node: int, body: bytes) -> bool:
        """Store a body on one node; False when it did not take it."""
        async with self._uploads:
            return await self._try(node, partial(self._upload_to, node, path, body), [])

    async def _upload_to(self, node: int, path: str, body: bytes) -> bool:
        if not await self._has(self._urls[node] + path):
            await self._http.put_bytes(self._urls[node] + path, body, await self._sign("PUT", node, path, body))
        return True

    async def store(self, path: str, node: int, build_body: Callable[[], bytes], *, looks_first: bool = True) -> None:
        """Store a body on one node, and no other.

        Args:
            path: where.
            node: on which.
            build_body: makes the body, on a thread.
            looks_first: ask whether it is there, and send nothing if so.

        Raises:
            Refused, Unavailable, Invalid: as the node or the way to it says.
            TimeoutError: not within `transfer_s`.
        """
        async with self._uploads, asyncio.timeout(self._timings.transfer_s):
            if looks_first and await self._has(self._urls[node] + path):
                return
            body = await self.run(build_body)
            await self._http.put_bytes(self._urls[node] + path, body, await self._sign("PUT", node, path, body))

    async def post(self, path: str, node: int, body: bytes, kind: type[T]) -> T:
        """Send one node a signed JSON body and decode its answer; raises as `store`."""
        async with asyncio.timeout(self._timings.transfer_s):
            headers = await self._sign("POST", node, path, body)
            return await self._http.post_body(self._urls[node] + path, body, kind, headers)

    async def _sign(self, method: str, node: int, path: str, body: bytes) -> dict[str, str]:
        if self._key is None:
            raise ConfigError("this client has no key; writes are signed requests")
        key, nonce, now_ms = self._key, self._dice.token_bytes(NONCE_SIZE), self._clock.now_ms()
        signed_path = urlsplit(self._urls[node] + path).path
        return await self.run(lambda: sign_request(key, self._network_id, method, signed_path, body, now_ms, nonce))

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
            reasons.append(f"{self._urls[node]}: {self._word(error)}"[:REASON_CHARACTERS_MAX])
            self._blame(node, error)
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
            UnavailableRows: the attempts ran out in every round; says which rows were found, and of every other one
                what each node answered.
        """
        race: _Race[T] = _Race([], needed, {}, {}, Findings(self._urls))

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
        missing = race.findings.list_missing(race.found)
        message = describe_race(race.found, missing, needed, len(self._urls))
        raise UnavailableRows(message, sorted(race.found), missing)

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
            race.findings.note(attempt, f"refused: {error.status} {error.title}: {error.detail}")
            if error.status != 404:  # an honest node may lack a row that was placed elsewhere
                self._demoted.add(attempt.node)
        except (DeaiosError, TimeoutError) as error:
            race.findings.note(attempt, self._word(error).removeprefix(self._urls[attempt.node]))
            self._blame(attempt.node, error)
        else:
            self._demoted.discard(attempt.node)

    def _blame(self, node: int, error: Exception) -> None:
        self._demoted.add(node)
        _log.info("node failed", node=self._urls[node], error=self._word(error))

    def _word(self, error: Exception) -> str:
        return str(error) or f"no answer within {self._timings.transfer_s:g} s"


def _take(race: _Race[T]) -> Attempt | None:
    """The next attempt: rows that nobody is fetching first, then a second source for one that is slow."""
    busy = {attempt.row for attempt in race.active.values()}
    chosen: Attempt | None = None
    for attempt in race.attempts:
        if attempt.row in race.found:
            continue
        if attempt.row not in busy:
            chosen = attempt
            break
        chosen = chosen or attempt
    if chosen is not None:
        race.attempts.remove(chosen)
    return chosen
