"""`POST /v1/chat/completions`: from bytes to an answer that is bought once, streamed or whole.

Invariants: what is bought is what the exact body says; an answer is charged before its last bytes are sent; a client
that reads slowly holds back the purchase, and one that goes away ends it.

`logprobs` gives what the provider says the model thought of its tokens: a claim that no signature binds, that is not in
the answer file and that `deaios verify` does not look at. Tokens, counts and price are bound; these numbers are not.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import msgspec
from aiohttp import web

from deaios.gateway import openai_wire as wire
from deaios.gateway.answer import Answer, Patience, Piece, Prepared, Reader, Wanted
from deaios.gateway.budgets import Budgets
from deaios.gateway.errors import InternalFault, RefusedModel, build_error, status_of
from deaios.gateway.keys import Draws, KeyRecord, derive_draws
from deaios.gateway.purchasing import Purchasing, ServedModel, ServedModels
from deaios.gateway.retries import WINDOW_S, AnswerBook, identify
from deaios.ledger.structs import FinishReason
from deaios.market.chat import BODY_BYTES_MAX, ChatBody, InvalidParameter, context_of, read_chat_body
from deaios.market.opening import Opening
from deaios.market.orders import Order
from deaios.primitives.encoding import InvalidEncoding, decode_hex, encode_hex
from deaios.primitives.units import compute_fee
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import RefusedBusy
from deaios.runtime.http import json_response, read_body
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

NONCE_HEADER = "X-DeAIOS-Nonce"
RETRY_HEADER = "x-stainless-retry-count"
NONCE_SIZE = 32
WINDOW_MS = int(WINDOW_S * 1000)
HEAD_S = 1.0
"""For so long after a stream's head was sent, a client that is gone may not have had it."""
HEAVY_BODY_BYTES = 8 << 10
"""From this size on, reading and rendering go to a thread; below, the hop costs more than the work."""
_FINISH = {
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.LENGTH: "length",
}
log = get_logger("gateway")
_DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the chat door.

    Attributes:
        answers_max: answers in the making, of all keys.
        answers_per_key_max: the same of one key.
        body_s: how long a request body may take to arrive.
        hold_s: how long a stream's first byte is held back, so that a failure can still be an HTTP status.
        keep_alive_s: longest silence inside a stream.
        write_s: how long one write may wait for a client that does not read.
        reckon_s: between looks for receipts of purchases that were charged without one.
        patience: of the answers.
    """

    answers_max: int = 256
    answers_per_key_max: int = 64
    body_s: float = 30.0
    hold_s: float = 10.0
    keep_alive_s: float = 10.0
    write_s: float = 60.0
    reckon_s: float = 5.0
    patience: Patience = field(default_factory=Patience)


class ChatDoor:
    """The route's handler with everything it needs."""

    def __init__(
        self,
        *,
        network_id: bytes,
        buyer: Purchasing,
        models: ServedModels,
        budgets: Budgets,
        clock: Clock,
        dice: Dice,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._network_id = network_id
        self._buyer = buyer
        self._models = models
        self._budgets = budgets
        self._clock = clock
        self._dice = dice
        self._limits = limits
        self._book: AnswerBook[Answer] = AnswerBook()
        self._running: dict[Answer, str] = {}
        self._started_ms = clock.now_ms()
        self._given: dict[str, int] = {}
        metrics.gauge("gateway_answers_running", "Answers in the making").set_function(lambda: len(self._running))
        self._outcomes = metrics.counter("gateway_answers_total", "Purchases by outcome", ("outcome",))
        self._retries = metrics.counter("gateway_retries_joined_total", "Retries that joined an existing answer")
        self._tokens = metrics.counter("gateway_tokens_total", "Tokens of served answers", ("kind",))

    async def close(self) -> None:
        """End every purchase and wait until its money is settled."""
        await asyncio.gather(*(answer.stop() for answer in list(self._running)))

    async def complete(self, request: web.Request, key: KeyRecord, key_text: str) -> web.StreamResponse:
        """Answer one request of an authenticated key."""
        nonce = _read_nonce(request)
        body = await self._read_body(request)
        identity = identify(key.key_id, nonce, body)
        answer, repeats = None, None
        if _is_retry(request):
            answer, repeats = self._book.find(identity, self._clock.monotonic_s())
        if answer is None:
            chat = await _off_loop(body, partial(read_chat_body, body))
            if _is_retry(request):
                repeats = repeats or self._take_lost(identity)
            answer = self._start(identity, key, key_text, chat, nonce, body, repeats=repeats)
        else:
            self._retries.inc()
        reader = answer.join(is_streaming=answer.wanted.chat.stream)
        began_s: float | None = None
        try:
            if not answer.wanted.chat.stream:
                await reader.wait_for_end()
                return self._whole(answer)
            await self._hold(answer, reader)
            began_s = self._clock.monotonic_s()
            response = await self._open_stream(request, answer)
            try:
                await self._stream(request, response, answer, reader)
            except ConnectionError as error:
                log.info("client went away", answer=answer.wanted.answer_id, error=repr(error))
            return response
        finally:
            # SDKs do not send a request again once they have seen a stream begin; its head may have been lost.
            has_seen = began_s is not None and self._clock.monotonic_s() - began_s > HEAD_S
            answer.leave(reader, may_return=RETRY_HEADER in request.headers and not has_seen)

    async def _read_body(self, request: web.Request) -> bytes:
        body = await read_body(request, self._limits.body_s)
        assert len(body) <= BODY_BYTES_MAX
        return body

    def _take_lost(self, identity: bytes) -> str | None:
        """The charge of a process that ended, for an answer that is in no memory; each is given once."""
        now_ms = self._clock.now_ms()
        while self._given and next(iter(self._given.values())) < now_ms - WINDOW_MS:
            del self._given[next(iter(self._given))]
        if now_ms - WINDOW_MS > self._started_ms:
            return None
        for charge in self._budgets.find_charges(identity, now_ms - WINDOW_MS, self._started_ms):
            if charge.answer_id not in self._given:
                self._given[charge.answer_id] = now_ms
                return charge.answer_id
        return None

    def _start(
        self,
        identity: bytes,
        key: KeyRecord,
        key_text: str,
        chat: ChatBody,
        nonce: bytes | None,
        body: bytes,
        *,
        repeats: str | None,
    ) -> Answer:
        """Begin a purchase; nothing here waits, so that two retries cannot both begin one."""
        model = self._models.find(chat.model)
        if model is None or not key.may_use(*model.names):
            raise RefusedModel(f"the model {chat.model!r} does not exist or this key may not use it")
        own = sum(1 for key_id in self._running.values() if key_id == key.key_id)
        if len(self._running) >= self._limits.answers_max or own >= self._limits.answers_per_key_max:
            self._book.fail(identity, self._clock.monotonic_s(), repeats)
            raise RefusedBusy(
                f"{own} answers of this key and {len(self._running)} of all are in the making; allowed are "
                f"{self._limits.answers_per_key_max} and {self._limits.answers_max}"
            )
        draws = self._draw(key_text, chat, nonce, body)
        answer = Answer(
            Wanted(
                answer_id="chatcmpl-" + self._dice.token_bytes(16).hex(),
                created_s=self._clock.now_ms() // 1000,
                key_id=key.key_id,
                model=model,
                chat=chat,
                client_nonce=draws.client_nonce,
                request=identity,
                repeats=repeats,
            ),
            partial(self._prepare, key.key_id, model, chat, draws, body),
            buyer=self._buyer,
            budgets=self._budgets,
            clock=self._clock,
            patience=self._limits.patience,
        )
        serial = self._book.add(identity, answer)
        self._running[answer] = key.key_id
        answer.when_done(partial(self._note_end, answer, serial))
        return answer

    def _note_end(self, answer: Answer, serial: int) -> None:
        del self._running[answer]
        self._book.end(serial, self._clock.monotonic_s())
        self._outcomes.labels("served" if answer.error is None else type(answer.error).__name__).inc()
        if answer.opening is not None:
            self._tokens.labels("prompt").inc(answer.opening.receipt.prompt_tokens)
            self._tokens.labels("completion").inc(answer.opening.receipt.completion_tokens)

    def _draw(self, key_text: str, chat: ChatBody, nonce: bytes | None, body: bytes) -> Draws:
        if chat.seed is not None:
            draws = derive_draws(key_text, chat.seed, body)
        else:
            draws = Draws(*(self._dice.token_bytes(NONCE_SIZE) for _ in range(3)))
        return draws if nonce is None else Draws(nonce, draws.nonce, draws.salt)

    async def _prepare(self, key_id: str, model: ServedModel, chat: ChatBody, draws: Draws, body: bytes) -> Prepared:
        prompt_ids = await _off_loop(body, partial(model.render, chat.message_objects()))
        params = chat.params(model.record.context_tokens, len(prompt_ids))
        order = Order(
            model_record_id=model.record_id,
            prompt_ids=prompt_ids,
            params=params,
            context=context_of(chat, model.record.template_hash),
            body=body,
            client_nonce=draws.client_nonce,
            nonce=draws.nonce,
            salt=draws.salt,
            min_level=chat.min_level,
            audit_policy=chat.audit_policy,
            provider=chat.provider,
            logprobs=chat.top_logprobs,
        )
        most = compute_fee(len(prompt_ids), params.max_tokens, model.input_price, model.output_price)
        return Prepared(order, self._budgets.reserve(key_id, most))

    def _whole(self, answer: Answer) -> web.Response:
        if answer.error is not None:
            raise answer.error
        wanted, opening = answer.wanted, _opening_of(answer)
        completion = wire.ChatCompletion(
            id=wanted.answer_id,
            created=wanted.created_s,
            model=wanted.model.record.name,
            choices=[
                wire.Choice(
                    wire.AnswerMessage("".join(piece.text for piece in answer.pieces)),
                    _finish_of(opening),
                    logprobs=_logprobs_of(wanted, answer.pieces),
                )
            ],
            usage=_usage_of(opening),
            system_fingerprint=_fingerprint(wanted.model),
            deaios=self._proof(wanted, opening),
        )
        answer.is_delivered = True
        return json_response(completion)

    async def _hold(self, answer: Answer, reader: Reader) -> None:
        """Wait for the first piece, so that what fails before it fails with a status; not for ever."""
        try:
            async with asyncio.timeout(self._limits.hold_s):
                await reader.wait()
        except TimeoutError:
            return
        if answer.error is not None and not answer.pieces:
            raise answer.error

    async def _open_stream(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "X-Request-Id": answer.wanted.answer_id,
            }
        )
        await response.prepare(request)
        answer.is_shown = True
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse, answer: Answer, reader: Reader) -> None:
        """Send the answer as it grows.

        Raises:
            ConnectionError: the client left, or stopped reading.
        """
        events = _Events(answer.wanted)
        await self._write(request, response, events.first())
        while True:
            pieces = reader.take()
            if pieces:
                await self._write(request, response, b"".join(map(events.piece, pieces)))
                continue
            if answer.has_ended:
                break
            try:
                async with asyncio.timeout(self._limits.keep_alive_s):
                    await reader.wait()
            except TimeoutError:
                await self._write(request, response, _KEEP_ALIVE)
        if answer.error is not None:
            body = build_error(status_of(answer.error), answer.error)
            await self._write(request, response, _event(wire.ErrorAnswer(body)) + _DONE)
        else:
            opening = _opening_of(answer)
            await self._write(request, response, events.last(opening, self._proof(answer.wanted, opening)) + _DONE)
            answer.is_delivered = True
        await response.write_eof()

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        """Write, waiting for a slow client only so long."""
        try:
            async with asyncio.timeout(self._limits.write_s):
                await response.write(data)
        except TimeoutError as error:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("client stopped reading") from error

    def _proof(self, wanted: Wanted, opening: Opening) -> wire.Proof:
        return wire.Proof(
            network=encode_hex(self._network_id),
            client_nonce=encode_hex(wanted.client_nonce),
            opening=opening.encode_json(),
            provider=encode_hex(opening.request.provider),
        )


class _Events:
    """The events of one stream."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._blank_usage = None if wanted.chat.include_usage else msgspec.UNSET

    def first(self) -> bytes:
        return self._chunk(wire.ChunkDelta(role="assistant", content=""))

    def piece(self, piece: Piece) -> bytes:
        return self._chunk(wire.ChunkDelta(content=piece.text), logprobs=_logprobs_of(self._wanted, [piece]))

    def last(self, opening: Opening, proof: wire.Proof) -> bytes:
        """The finish, and the usage where it is wanted; the proof rides on whichever is last."""
        finish = _finish_of(opening)
        if not self._wanted.chat.include_usage:
            return self._chunk(wire.ChunkDelta(), finish, deaios=proof)
        usage = self._build([], usage=_usage_of(opening), deaios=proof)
        return self._chunk(wire.ChunkDelta(), finish) + _event(usage)

    def _chunk(
        self,
        delta: wire.ChunkDelta,
        finish: str | None = None,
        deaios: wire.Proof | msgspec.UnsetType = msgspec.UNSET,
        logprobs: wire.ChoiceLogprobs | None = None,
    ) -> bytes:
        choice = wire.ChunkChoice(delta, finish, logprobs=logprobs)
        return _event(self._build([choice], usage=self._blank_usage, deaios=deaios))

    def _build(
        self,
        choices: list[wire.ChunkChoice],
        *,
        usage: wire.Usage | msgspec.UnsetType | None,
        deaios: wire.Proof | msgspec.UnsetType,
    ) -> wire.ChatChunk:
        return wire.ChatChunk(
            id=self._wanted.answer_id,
            created=self._wanted.created_s,
            model=self._wanted.model.record.name,
            choices=choices,
            system_fingerprint=_fingerprint(self._wanted.model),
            usage=usage,
            deaios=deaios,
        )


def _logprobs_of(wanted: Wanted, pieces: Sequence[Piece]) -> wire.ChoiceLogprobs | None:
    if wanted.chat.top_logprobs is None:
        return None
    return wire.ChoiceLogprobs([msgspec.Raw(entry) for piece in pieces for entry in piece.logprobs])


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _fingerprint(model: ServedModel) -> str:
    """The record pins weights, tokenizer and template, so it is the backend configuration."""
    return "fp_" + model.record_id[:8].hex()


def _opening_of(answer: Answer) -> Opening:
    if answer.opening is None:
        raise InternalFault("an answer without papers")
    return answer.opening


def _finish_of(opening: Opening) -> str:
    return _FINISH[FinishReason(opening.receipt.finish_reason)]


def _usage_of(opening: Opening) -> wire.Usage:
    receipt = opening.receipt
    return wire.Usage(
        prompt_tokens=receipt.prompt_tokens,
        completion_tokens=receipt.completion_tokens,
        total_tokens=receipt.prompt_tokens + receipt.completion_tokens,
        prompt_tokens_details=wire.PromptDetails(receipt.cached_tokens),
    )


def _read_nonce(request: web.Request) -> bytes | None:
    text = request.headers.get(NONCE_HEADER)
    if text is None:
        return None
    try:
        return decode_hex(text, NONCE_SIZE)
    except InvalidEncoding as error:
        raise InvalidParameter(NONCE_HEADER, f"{NONCE_HEADER}: {error}") from error


def _is_retry(request: web.Request) -> bool:
    return request.headers.get(RETRY_HEADER, "0").strip() != "0"


async def _off_loop(body: bytes, work: Callable[[], T]) -> T:
    """Run work whose cost grows with the body: here when it is small, else on a thread."""
    return work() if len(body) < HEAVY_BODY_BYTES else await asyncio.to_thread(work)
