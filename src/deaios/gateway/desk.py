"""Where every door buys: a request read into questions becomes answers, each bought once.

Invariants: what is bought is what the exact body says; each answer of a request is a purchase and a charge of its own;
either all purchases of a request have their money set aside or none begins; a retry joins the answers that are there
and buys only those that failed. It knows no HTTP answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from deaios.compute.records import UNAUDITABLE
from deaios.compute.schema import InvalidConstraint
from deaios.gateway.answer import Answer, Fallback, Patience, Prepared, Reader, Wanted
from deaios.gateway.budgets import Budgets
from deaios.gateway.errors import RefusedModel
from deaios.gateway.keys import Draws, KeyRecord, derive_draws
from deaios.gateway.preparing import Together
from deaios.gateway.purchasing import Purchasing, ServedModel, ServedModels
from deaios.gateway.rates import Rates
from deaios.gateway.retries import WINDOW_S, AnswerBook, identify
from deaios.ledger.structs import Level
from deaios.market.fields import InvalidParameter
from deaios.market.orders import Order
from deaios.market.parts import count_choices
from deaios.market.preferences import add_policy
from deaios.market.question import Api, Message, Part, Question, hash_request
from deaios.market.tools import may_call
from deaios.primitives.errors import DeaiosError
from deaios.primitives.hashing import sha256, tagged_sha256
from deaios.primitives.units import compute_fee
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import RefusedBusy
from deaios.runtime.metrics import Metrics

NONCE_SIZE = 32
WINDOW_MS = int(WINDOW_S * 1000)
HEAVY_BODY_BYTES = 8 << 10
"""From this size on, reading and rendering go to a thread; below, the hop costs more than the work."""
AFFINITY_TOKENS = 256
"""Prompts that agree in so many ids are sent to one provider; a cache saves a step of prefill from there on."""
_PREFIXES = {
    Api.CHAT: "chatcmpl-",
    Api.COMPLETIONS: "cmpl-",
    Api.RESPONSES: "resp_",
    Api.MESSAGES: "msg_",
    Api.EMBEDDINGS: "embd-",
}
_FORMAT_NAMES = {Api.RESPONSES: "text.format", Api.MESSAGES: "output_config.format"}
"""What bodies call the form of an answer, where it is not `response_format`."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the doors that sell tokens.

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


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a key.

    Attributes:
        key: whose.
        key_text: the key itself, from which a seed's draws are derived.
        body: exact bytes.
        nonce: the user's own, where it sent one.
        is_retry: its client says that it sent this before.
    """

    key: KeyRecord
    key_text: str
    body: bytes
    nonce: bytes | None = None
    is_retry: bool = False


Draw = Callable[[Asked, Question, Part, bytes], Draws]
"""Nonces and salt of one purchase; the last argument is the client's nonce of the request."""


class Sale:
    """The answers to one request, and one client's place in each."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._moved = asyncio.Event()
        self.answers = tuple(answers)
        streams = [answer.wanted.question.stream for answer in answers]
        self.readers: tuple[Reader, ...] = tuple(
            answer.join(self._moved, is_streaming=is_streaming)
            for answer, is_streaming in zip(answers, streams, strict=True)
        )

    @property
    def first(self) -> Answer:
        """The answer that names the request."""
        return self.answers[0]

    @property
    def error(self) -> DeaiosError | None:
        """Why the request fails: the first answer that failed is enough."""
        return next((answer.error for answer in self.answers if answer.error is not None), None)

    @property
    def is_settled(self) -> bool:
        """Is it known of every answer which model gives it?"""
        return all(answer.is_settled for answer in self.answers)

    @property
    def has_ended(self) -> bool:
        """Have all answers ended?"""
        return all(answer.has_ended for answer in self.answers)

    async def wait(self, is_there: Callable[[], bool]) -> None:
        """Return once something holds that changes with the answers."""
        while not is_there():
            self._moved.clear()
            await self._moved.wait()

    async def wait_whole(self) -> None:
        """Return when all answers are there.

        Raises:
            DeaiosError: why one of them failed.
        """
        await self.wait(lambda: self.has_ended or self.error is not None)
        if self.error is not None:
            raise self.error

    def note_shown(self) -> None:
        """A client has seen that there is an answer."""
        for answer in self.answers:
            answer.is_shown = True

    def note_delivered(self) -> None:
        """A client has been given all of it."""
        for answer in self.answers:
            answer.is_delivered = True

    def leave(self, *, may_return: bool) -> None:
        """Stop following."""
        for answer, reader in zip(self.answers, self.readers, strict=True):
            answer.leave(reader, may_return=may_return)


class Desk:
    """Starts answers and keeps those that a retry may come back for."""

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
        self.network_id = network_id
        self.rates = Rates(clock)
        self.limits = limits
        self.clock = clock
        self._buyer = buyer
        self._models = models
        self._budgets = budgets
        self._dice = dice
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

    async def wait_abandoned(self, key: KeyRecord) -> None:
        """Let answers that everybody left come to their end, each a cancel and a charge away.

        A retry joins what is on its way, and an answer that is being cancelled is not; what it is charged counts for
        the retry where nobody saw it, and that is known at its end.
        """
        own = [answer for answer, key_id in self._running.items() if key_id == key.key_id and answer.is_abandoned]
        await asyncio.gather(*(answer.wait_end() for answer in own))

    def find_model(self, key: KeyRecord, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            RefusedModel: there is none, or not for this key.
        """
        model = self._models.find(name)
        if model is None or not key.may_use(*model.names):
            raise RefusedModel(f"the model {name[:128]!r} does not exist or this key may not use it")
        return model

    def find_models(self, key: KeyRecord, questions: Sequence[Question]) -> tuple[ServedModel, ...]:
        """The models of a request, in the order in which they are tried; no model twice.

        Raises:
            RefusedModel: one of them does not exist, or not for this key.
            InvalidParameter: several answers are wanted, which come from one model.
        """
        first = questions[0]
        if first.fallbacks and count_choices(questions) > 1:
            raise InvalidParameter("models", "several answers come from one model: send one model, or ask for one")
        found = [self.find_model(key, name) for name in (first.model, *first.fallbacks)]
        return tuple({model.record_id: model for model in found}.values())

    def sell(
        self,
        asked: Asked,
        api: Api,
        questions: Sequence[Question],
        *,
        history: tuple[Message, ...] = (),
        draw: Draw | None = None,
        buyer: Purchasing | None = None,
        find_lost: Callable[[bytes], str | None] | None = None,
    ) -> Sale:
        """Begin a request's purchases, or join those that a retry left; nothing here waits, so none begins twice.

        Args:
            asked: by whom, and how.
            api: the door.
            questions: what the body asks, one per prompt; each wants the same number of answers.
            history: turns that came before the body's.
            draw: where nonces and salts come from, if not from dice or the body's seed.
            buyer: another than the desk's.
            find_lost: the charge of an earlier attempt that nobody saw, by the identity of a purchase.

        Raises:
            RefusedModel: no such model for this key.
            RefusedBusy: too many answers are in the making.
            RefusedRate: the key's minute is used up.
        """
        models = self.find_models(asked.key, questions)
        answers: dict[int, Answer] = {}
        missing: list[_Missing] = []
        for index in range(count_choices(questions)):
            part = Part(api, index, history)
            identity, repeats = _identify(asked, part), None
            if asked.is_retry:
                answer, repeats = self._book.find(identity, self.clock.monotonic_s())
                if answer is not None:
                    self._retries.inc()
                    answers[index] = answer
                    continue
                repeats = repeats or self._take_lost(identity)
            elif find_lost is not None:
                repeats = find_lost(identity)
            missing.append(_Missing(questions[index // questions[0].n], part, identity, repeats))
        if missing:
            self._admit(asked.key, missing)
            for answer in self._begin(asked, models, missing, draw or self._draw, buyer or self._buyer):
                answers[answer.wanted.part.index] = answer
        return Sale([answers[index] for index in sorted(answers)])

    def _take_lost(self, identity: bytes) -> str | None:
        """The charge of a process that ended, for an answer that is in no memory; each is given once."""
        now_ms = self.clock.now_ms()
        while self._given and next(iter(self._given.values())) < now_ms - WINDOW_MS:
            del self._given[next(iter(self._given))]
        if now_ms - WINDOW_MS > self._started_ms:
            return None
        for charge in self._budgets.find_charges(identity, now_ms - WINDOW_MS, self._started_ms):
            if charge.answer_id not in self._given:
                self._given[charge.answer_id] = now_ms
                return charge.answer_id
        return None

    def _admit(self, key: KeyRecord, missing: "Sequence[_Missing]") -> None:
        own = sum(1 for running in self._running.values() if running == key.key_id)
        count, limits = len(missing), self.limits
        try:
            if len(self._running) + count > limits.answers_max or own + count > limits.answers_per_key_max:
                raise RefusedBusy(
                    f"{own} answers of this key and {len(self._running)} of all are in the making; allowed are "
                    f"{limits.answers_per_key_max} and {limits.answers_max}"
                )
            self.rates.admit(key)
        except RefusedBusy:
            for item in missing:
                self._book.fail(item.identity, self.clock.monotonic_s(), item.repeats)
            raise

    def _begin(
        self,
        asked: Asked,
        models: Sequence[ServedModel],
        missing: "Sequence[_Missing]",
        draw: Draw,
        buyer: Purchasing,
    ) -> list[Answer]:
        model = models[0]
        client_nonce = asked.nonce or self._dice.token_bytes(NONCE_SIZE)
        wishes = [
            _Wish(item.question, item.part, draw(asked, item.question, item.part, client_nonce)) for item in missing
        ]
        takes: list[Callable[[], Awaitable[Prepared]]]
        others: list[Fallback] = []
        if len(wishes) == 1:
            others = [Fallback(other, partial(self._prepare, asked, other, wishes[0])) for other in models[1:]]
            takes = [partial(self._prepare, asked, model, wishes[0])]
        else:
            together = Together(partial(self._order_all, asked, model, wishes), asked.key.key_id, self._budgets)
            takes = [partial(together.take, place) for place in range(len(wishes))]
        answers = []
        for item, wish, take in zip(missing, wishes, takes, strict=True):
            answer = Answer(
                Wanted(
                    answer_id=_PREFIXES[item.part.api] + self._dice.token_bytes(16).hex(),
                    created_s=self.clock.now_ms() // 1000,
                    key_id=asked.key.key_id,
                    model=model,
                    question=item.question,
                    part=item.part,
                    client_nonce=wish.draws.client_nonce,
                    request=item.identity,
                    digest=_digest(asked, wish) if may_call(wish.question) else b"",
                    repeats=item.repeats,
                ),
                take,
                buyer=buyer,
                budgets=self._budgets,
                clock=self.clock,
                patience=self.limits.patience,
                fallbacks=others,
            )
            serial = self._book.add(item.identity, answer)
            self._running[answer] = asked.key.key_id
            answer.when_done(partial(self._note_end, answer, serial))
            answers.append(answer)
        return answers

    def _note_end(self, answer: Answer, serial: int) -> None:
        del self._running[answer]
        self._book.end(serial, self.clock.monotonic_s())
        self._outcomes.labels("served" if answer.error is None else type(answer.error).__name__).inc()
        self.rates.count(
            answer.wanted.key_id, answer.prompt_tokens + answer.tokens if answer.tokens or answer.error is None else 0
        )
        if answer.opening is not None:
            self._tokens.labels("prompt").inc(answer.opening.receipt.prompt_tokens)
            self._tokens.labels("completion").inc(answer.opening.receipt.completion_tokens)

    def _draw(self, asked: Asked, question: Question, part: Part, client_nonce: bytes) -> Draws:
        """From the body's seed, where it has one; the client's nonce is its own, if it sent one."""
        if question.seed is None:
            return Draws(client_nonce, *(self._dice.token_bytes(NONCE_SIZE) for _ in range(2)))
        draws = derive_draws(asked.key_text, question.seed, asked.body, part)
        return draws if asked.nonce is None else replace(draws, client_nonce=asked.nonce)

    async def _prepare(self, asked: Asked, model: ServedModel, wish: "_Wish") -> Prepared:
        prompt_ids = await off_loop(asked.body, partial(wish.question.prompt_ids, model.render, model.tokenizer))
        order = _order(asked, model, wish, prompt_ids)
        await _validate_constraint(model, wish.question, order)
        return Prepared(order, self._budgets.reserve(asked.key.key_id, _most_of(order, model)))

    async def _order_all(self, asked: Asked, model: ServedModel, wishes: "Sequence[_Wish]") -> list[tuple[Order, int]]:
        """The orders of several purchases with the most that each may cost; a prompt is rendered once."""
        rendered: dict[int, tuple[int, ...]] = {}
        priced = []
        for wish in wishes:
            place = wish.part.index // wish.question.n
            if place not in rendered:
                make = partial(wish.question.prompt_ids, model.render, model.tokenizer)
                rendered[place] = await off_loop(asked.body, make)
            order = _order(asked, model, wish, rendered[place])
            await _validate_constraint(model, wish.question, order)
            priced.append((order, _most_of(order, model)))
        return priced


def _digest(asked: Asked, wish: "_Wish") -> bytes:
    return hash_request(wish.part, wish.draws.client_nonce, asked.body)


@dataclass(frozen=True, slots=True)
class _Missing:
    """A part of a request that nobody has bought yet."""

    question: Question
    part: Part
    identity: bytes
    repeats: str | None


@dataclass(frozen=True, slots=True)
class _Wish:
    """A part with its draws."""

    question: Question
    part: Part
    draws: Draws


def _identify(asked: Asked, part: Part) -> bytes:
    whole = identify(asked.key.key_id, asked.nonce, asked.body)
    if part.is_plain_chat:
        return whole
    return sha256(whole + sha256(part.api.encode()) + part.index.to_bytes(8))


def _order(asked: Asked, model: ServedModel, wish: _Wish, prompt_ids: tuple[int, ...]) -> Order:
    question = wish.question
    if model.record.serving == UNAUDITABLE and question.min_level > Level.SIGNED:
        says = f"nobody can check answers of {model.record.name}, whose record is unauditable; only 0 is allowed"
        raise InvalidParameter("deaios.min_level", f"deaios.min_level is {question.min_level}; {says}")
    return Order(
        model_record_id=model.record_id,
        prompt_ids=prompt_ids,
        params=question.params(model.record.context_tokens, len(prompt_ids)),
        context=question.context(model.record.template_hash, model.record.tokenizer_hash),
        body=asked.body,
        client_nonce=wish.draws.client_nonce,
        nonce=wish.draws.nonce,
        salt=wish.draws.salt,
        min_level=question.min_level,
        audit_policy=question.audit_policy,
        provider=question.provider,
        logprobs=question.top_logprobs,
        part=wish.part,
        constraint=None if question.constraint is None else question.constraint.encode(),
        preferences=add_policy(question.preferences, asked.key.data_policy),
        quantisation=model.record.quantisation,
        affinity=_affinity(asked.key, model, question.cache_key, prompt_ids),
        is_hedged=question.hedge,
    )


async def _validate_constraint(model: ServedModel, question: Question, order: Order) -> None:
    """Refuse what does not compile before any money is set aside; a provider would, and by then it is on a receipt."""
    if order.constraint is None:
        return
    try:
        await model.masks.validate(order.constraint, order.params.mask_hash)
    except InvalidConstraint as error:
        param = "tools" if may_call(question) else _FORMAT_NAMES.get(order.part.api, "response_format")
        raise InvalidParameter(param, str(error)) from error


def _affinity(key: KeyRecord, model: ServedModel, cache_key: str | None, prompt_ids: tuple[int, ...]) -> bytes | None:
    """What requests share whose prompts a provider may have in its cache: the user's own name, or a long beginning.

    Both count per key, so that nobody learns from timing what others ask.
    """
    own = sha256(key.key_id.encode()) + model.record_id
    if cache_key is not None:
        return tagged_sha256("deaios/affinity/name/1", own, cache_key.encode())
    if len(prompt_ids) < AFFINITY_TOKENS:
        return None
    beginning = b"".join(token.to_bytes(4) for token in prompt_ids[:AFFINITY_TOKENS])
    return tagged_sha256("deaios/affinity/prompt/1", own, beginning)


def _most_of(order: Order, model: ServedModel) -> int:
    return compute_fee(len(order.prompt_ids), order.params.max_tokens, model.input_price, model.output_price)


async def off_loop(body: bytes, work: Callable[[], T]) -> T:
    """Run work whose cost grows with the body: here when it is small, else on a thread."""
    return work() if len(body) < HEAVY_BODY_BYTES else await asyncio.to_thread(work)
