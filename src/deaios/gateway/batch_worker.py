"""Works batches off in the background: each line is bought as any request of its key, at the same price.

Invariant: no line is paid for twice, whenever the process dies. A line's nonces are on disk before it is bought, so
that its order after a restart is the same; what was bought of it then is found by that order, paid for once, and
answered from its papers; what was cut off was resolved by the buyer at no cost, or counts for the repetition.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from deaios.compute.logprobs import Ranking
from deaios.gateway.batch_records import BatchRecords, Line, OpenBatch
from deaios.gateway.budgets import Budgets
from deaios.gateway.chat import build_chat_completion
from deaios.gateway.completions import build_text_completion
from deaios.gateway.desk import NONCE_SIZE, Asked, Desk, Sale, off_loop
from deaios.gateway.embeddings import build_embeddings
from deaios.gateway.errors import RefusedKey, build_error, status_of
from deaios.gateway.file_records import FileRecord
from deaios.gateway.files_wire import LineFailure, LineResponse, LineResult
from deaios.gateway.keys import Draws
from deaios.gateway.openai_wire import ErrorAnswer
from deaios.gateway.purchasing import Delta, Purchase, Purchasing
from deaios.gateway.store import KeyStore
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import State
from deaios.market.chat import read_chat_body
from deaios.market.completion import read_completion_body
from deaios.market.embedding import read_embedding_body
from deaios.market.fields import InvalidParameter
from deaios.market.opening import Opening
from deaios.market.orders import Order
from deaios.market.question import Api, Part, Question
from deaios.primitives.errors import DeaiosError, Unavailable
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import RefusedBusy
from deaios.runtime.logs import get_logger

BATCHES_AT_ONCE = 8
LINES_AT_ONCE = 8
"""Of one batch: fewer than a key may have in the making, so that it can go on asking."""
ATTEMPTS_MAX = 3
LOOK_S = 5.0
PAUSE_S = 1.0
DRAWS_SIZE = 3 * NONCE_SIZE
FILE_ID_SIZE = 12
log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class _Ids:
    """All ids of an answer at once."""

    ids: tuple[int, ...]
    logprobs: tuple[Ranking, ...] | None = None


class _Recovered:
    """A purchase that ended in another process, out of its papers; log probabilities are in none."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    @property
    def request_digest(self) -> bytes:
        return hash_struct(self._opening.request)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        if self._opening.output_ids:
            yield _Ids(self._opening.output_ids)

    async def wait(self) -> Opening:
        return self._opening

    async def cancel(self) -> None:
        """It has ended."""


class _Resuming:
    """Buys what may have been bought before: first it looks, and waits for what is still open."""

    def __init__(self, buyer: Purchasing, clock: Clock) -> None:
        self._buyer = buyer
        self._clock = clock
        self.fetch_opening = buyer.fetch_opening
        self.fetch_outcome = buyer.fetch_outcome
        self.find_purchases = buyer.find_purchases
        self.fetch_proof = buyer.fetch_proof
        self.list_endpoints = buyer.list_endpoints

    async def purchase(self, order: Order) -> Purchase:
        """Find or buy; who waits has a bound of its own."""
        while True:
            is_open, openings = await self._buyer.find_purchases(order)
            served = next((opening for opening in openings if opening.receipt.state == State.SERVED), None)
            if served is not None:
                return _Recovered(served)
            if not is_open:
                return await self._buyer.purchase(order)
            await self._clock.sleep(PAUSE_S)


class BatchWorker:
    """One per gateway process."""

    def __init__(
        self,
        desk: Desk,
        records: BatchRecords,
        keys: KeyStore,
        buyer: Purchasing,
        budgets: Budgets,
        clock: Clock,
        dice: Dice,
    ) -> None:
        self._desk = desk
        self._records = records
        self._keys = keys
        self._buyer = buyer
        self._budgets = budgets
        self._clock = clock
        self._dice = dice
        self._woken = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """A batch came, or one was cancelled."""
        self._woken.set()

    async def run(self) -> None:
        """For ever; what ends with an error is tried again at the next look."""
        try:
            while True:
                self._woken.clear()
                for batch in await self._list_open():
                    if batch.batch_id not in self._tasks and len(self._tasks) < BATCHES_AT_ONCE:
                        task = asyncio.create_task(self._work(batch), name=f"batch {batch.batch_id}")
                        self._tasks[batch.batch_id] = task
                        task.add_done_callback(partial(self._note_end, batch.batch_id))
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _list_open(self) -> list[OpenBatch]:
        try:
            return await asyncio.to_thread(self._records.list_open)
        except sqlite3.Error as error:
            log.warning("batches wait for the disk", error=str(error))
            return []

    def _note_end(self, batch_id: str, task: "asyncio.Task[None]") -> None:
        del self._tasks[batch_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("batch stopped, and is taken up again", batch=batch_id, error=repr(error))
        elif not task.cancelled():
            self._woken.set()

    async def _work(self, batch: OpenBatch) -> None:
        """Work off all lines of a batch, several at once, and end it."""
        lines = _Lines(self._records, batch.batch_id)
        async with asyncio.TaskGroup() as group:
            for _ in range(LINES_AT_ONCE):
                group.create_task(self._take_lines(batch, lines))
        now_ms = self._clock.now_ms()
        left = await asyncio.to_thread(self._records.find_open, batch.batch_id)
        if left is None:
            return
        status = "completed"
        if left.status == "cancelling":
            status = "cancelled"
        elif now_ms >= batch.expires_at_ms and await self._expire(batch):
            status = "expired"
        output, errors = (self._build_file(batch, kind, now_ms) for kind in ("output", "error"))
        await asyncio.to_thread(self._records.finish, batch.batch_id, status, now_ms, output, errors)
        log.info("batch ended", batch=batch.batch_id, status=status)

    def _build_file(self, batch: OpenBatch, kind: str, now_ms: int) -> FileRecord:
        file_id = "file-" + self._dice.token_bytes(FILE_ID_SIZE).hex()
        return FileRecord(file_id, batch.key_id, now_ms, None, f"{batch.batch_id}_{kind}.jsonl", "batch_output", 0)

    async def _take_lines(self, batch: OpenBatch, lines: "_Lines") -> None:
        while self._clock.now_ms() < batch.expires_at_ms:
            state = await asyncio.to_thread(self._records.find_open, batch.batch_id)
            if state is None or state.status != "in_progress":
                return
            line = await lines.take()
            if line is None:
                return
            await self._answer(batch, line)

    async def _expire(self, batch: OpenBatch) -> bool:
        """Say of every line that is left that its time is over; was there any?"""
        failure = LineFailure("batch_expired", "this request was not executed before the batch expired")
        found, after = False, -1
        while left := await asyncio.to_thread(self._records.list_waiting, batch.batch_id, after, 64):
            found, after = True, left[-1].number
            for line in left:
                result = msgspec.json.encode(LineResult(_line_id(batch, line), line.custom_id, None, failure))
                await asyncio.to_thread(self._end, batch, line, result, is_good=False)
        return found

    def _end(self, batch: OpenBatch, line: Line, result: bytes, *, is_good: bool) -> None:
        self._records.end_line(batch.batch_id, line.number, result, is_good=is_good)

    async def _answer(self, batch: OpenBatch, line: Line) -> None:
        """Buy a line's answers, or say why not; failures that may pass are tried again."""
        attempt = 0
        while True:
            try:
                await self._buy(batch, line, attempt)
            except RefusedBusy:
                await self._clock.sleep(PAUSE_S)
            except DeaiosError as error:
                attempt += 1
                if isinstance(error, Unavailable) and attempt < ATTEMPTS_MAX:
                    await self._clock.sleep(PAUSE_S * 2**attempt)
                    continue
                status = status_of(error)
                body = msgspec.Raw(msgspec.json.encode(ErrorAnswer(build_error(status, error))))
                response = LineResponse(status, _line_id(batch, line), body)
                result = msgspec.json.encode(LineResult(_line_id(batch, line), line.custom_id, response, None))
                await asyncio.to_thread(self._end, batch, line, result, is_good=False)
                return
            else:
                return
            if self._clock.now_ms() >= batch.expires_at_ms:
                return

    async def _buy(self, batch: OpenBatch, line: Line, attempt: int) -> None:
        key = self._keys.get(batch.key_id)
        reason = key.refuse_reason(self._clock.now_ms())
        if reason is not None:
            raise RefusedKey(reason)
        api = Api(batch.api)
        questions = await off_loop(line.body, partial(read_line_body, api, line.body))
        is_resumed = line.is_started or attempt > 0
        if not is_resumed:
            await asyncio.to_thread(self._records.start_line, batch.batch_id, line.number)
        sale = self._desk.sell(
            Asked(key, "", line.body, line.draws[:NONCE_SIZE], is_retry=attempt > 0),
            api,
            questions,
            draw=partial(_draw, line.draws),
            buyer=_Resuming(self._buyer, self._clock) if is_resumed else self._buyer,
            find_lost=self._find_lost if is_resumed else None,
        )
        try:
            await sale.wait_whole()
            body = msgspec.Raw(msgspec.json.encode(_build(api, self._desk.network_id, sale)))
            response = LineResponse(200, sale.first.wanted.answer_id, body)
            result = msgspec.json.encode(LineResult(_line_id(batch, line), line.custom_id, response, None))
            await asyncio.to_thread(self._end, batch, line, result, is_good=True)
            sale.note_delivered()
        finally:
            sale.leave(may_return=False)

    def _find_lost(self, identity: bytes) -> str | None:
        """What this line was charged for an answer that did not become its result."""
        charges = self._budgets.find_charges(identity, 0, self._clock.now_ms() + 1)
        return charges[0].answer_id if charges else None


class _Lines:
    """Lines of one batch, each given once; a few at a time are in memory."""

    def __init__(self, records: BatchRecords, batch_id: str) -> None:
        self._records = records
        self._batch_id = batch_id
        self._lock = asyncio.Lock()
        self._waiting: list[Line] = []
        self._after = -1

    async def take(self) -> Line | None:
        """The next line, None at the end."""
        async with self._lock:
            if not self._waiting:
                self._waiting = await asyncio.to_thread(
                    self._records.list_waiting, self._batch_id, self._after, LINES_AT_ONCE
                )
                self._waiting.reverse()
            if not self._waiting:
                return None
            line = self._waiting.pop()
            self._after = line.number
            return line


def read_line_body(api: Api, body: bytes) -> tuple[Question, ...]:
    """What a line asks for.

    Raises:
        InvalidBody, InvalidParameter: as its door would; and streams are refused.
    """
    if api == Api.EMBEDDINGS:
        return read_embedding_body(body)
    questions = (read_chat_body(body),) if api == Api.CHAT else read_completion_body(body)
    if questions[0].stream:
        raise InvalidParameter("stream", "stream is not supported in batches", "unsupported_parameter")
    if questions[0].fallbacks:  # what a line bought before a crash is found by its one order
        raise InvalidParameter("models", "a line of a batch has one model", "unsupported_parameter")
    return questions


def _build(api: Api, network_id: bytes, sale: Sale) -> object:
    if api == Api.CHAT:
        return build_chat_completion(network_id, sale)
    if api == Api.EMBEDDINGS:
        return build_embeddings(network_id, sale)
    return build_text_completion(network_id, sale)


def _draw(draws: bytes, _asked: Asked, _question: Question, part: Part, _client_nonce: bytes) -> Draws:
    place = part.index * DRAWS_SIZE
    values = [draws[place + at : place + at + NONCE_SIZE] for at in range(0, DRAWS_SIZE, NONCE_SIZE)]
    return Draws(*values)


def pack_draws(draws: Sequence[Draws]) -> bytes:
    """Draws of a line's purchases, end to end."""
    return b"".join(item.client_nonce + item.nonce + item.salt for item in draws)


def _line_id(batch: OpenBatch, line: Line) -> str:
    return f"batch_req_{batch.batch_id.removeprefix('batch_')}_{line.number}"
