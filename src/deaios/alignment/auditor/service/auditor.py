"""The auditor as a whole: four loops over one journal.

It buys like a user and re-executes what it bought; the accuser, the juror and the beacon's member do the rest. Every
loop survives an unreachable peer and says so; what was begun is finished after a restart, because the journal comes
first.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from deaios.alignment.auditor.service.accuser import Accuser
from deaios.alignment.auditor.service.beacon import BeaconMember
from deaios.alignment.auditor.service.juror import Juror
from deaios.alignment.auditor.service.turns import Turns
from deaios.alignment.auditor.store import Audit, AuditorStore, Suspicion
from deaios.alignment.evidence import Evidence, build_evidence_root, encode_evidence, is_promised
from deaios.alignment.ports import Recheck, Shelf, Shop
from deaios.alignment.prompts import draw_input, draw_question
from deaios.compute.verification import Report
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.sender import Sender
from deaios.ledger.eip712 import Domain, hash_struct
from deaios.ledger.structs import Level
from deaios.market.orders import Order
from deaios.market.parts import read_part
from deaios.market.question import PLAIN_CHAT, Api, Part, Question
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

DUTY_INTERVAL_S = 0.5
CASE_INTERVAL_S = 1.0
RETRY_PAUSE_S = 2.0
RECENT_MS = 10 * 60 * 1000
"""Audits within this time decide whom to audit next."""
FAILED_TOKENS = 64
"""What a purchase that failed counts as: whoever never serves must not be the one who is due for ever."""
FAILURES_KEPT = 1024


@dataclass(frozen=True, slots=True)
class AuditedModel:
    """What is audited: its record's id and name, and how a question becomes prompt ids and a context."""

    record_id: bytes
    name: str
    context_tokens: int
    render: Callable[[Question], tuple[tuple[int, ...], bytes]]
    """Question to (prompt ids, context)."""


class Further(Protocol):
    """Models that can be audited beside the auditor's own."""

    async def draw(self, number: int) -> AuditedModel | None:
        """A model to audit next, by a random number; None for the auditor's own."""


@dataclass(frozen=True, slots=True)
class AuditorSettings:
    """How much an auditor does.

    Attributes:
        interval_s: mean pause between purchases; the real pause is drawn from one half to three halves of it.
        vectors_every: of so many purchases one is an embedding, by chance; 0 for answers only.
    """

    interval_s: float = 20.0
    vectors_every: int = 8


class Auditor:
    """One auditor; `run` until cancelled.

    Attributes:
        beacon: its part in the beacon.
        juror: its part in juries.
        accuser: its part in cases of its own.
    """

    def __init__(
        self,
        *,
        contracts: Contracts,
        sender: Sender,
        domain: Domain,
        store: AuditorStore,
        shop: Shop,
        shelf: Shelf,
        recheck: Recheck,
        model: AuditedModel,
        clock: Clock,
        dice: Dice,
        metrics: Metrics,
        settings: AuditorSettings,
        further: Further | None = None,
    ) -> None:
        self._store = store
        self._shop = shop
        self._recheck = recheck
        self._model = model
        self._further = further
        self._clock = clock
        self._dice = dice
        self._settings = settings
        self._failures: deque[tuple[Address, int]] = deque(maxlen=FAILURES_KEPT)
        self._log = get_logger("auditor")
        self._audited_tokens = metrics.counter("audited_tokens_total", "Output tokens re-executed")
        self._violations = metrics.counter("violations_total", "Audited answers that broke a rule")
        turns = Turns(sender.address, clock)
        self.beacon = BeaconMember(contracts, sender, store, dice, turns)
        self.juror = Juror(
            contracts=contracts,
            sender=sender,
            domain=domain,
            model_record_id=model.record_id if further is None else None,
            store=store,
            shelf=shelf,
            recheck=recheck,
            clock=clock,
            dice=dice,
            turns=turns,
            metrics=metrics,
        )
        self.accuser = Accuser(
            contracts=contracts, sender=sender, store=store, shelf=shelf, recheck=recheck, clock=clock
        )

    async def run(self) -> None:
        """All loops until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forever("beacon", DUTY_INTERVAL_S, self.beacon.tend))
                group.create_task(self._forever("juries", DUTY_INTERVAL_S, self.juror.tend))
                group.create_task(self._forever("cases", CASE_INTERVAL_S, self.accuser.tend))
                group.create_task(self._audit_forever())
        finally:
            await self.juror.close()

    async def _forever(self, name: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            pause = interval_s
            try:
                await work()
            except (Unavailable, Refused, Invalid) as error:
                self._log.warning("duty postponed", duty=name, error=str(error))
                pause = RETRY_PAUSE_S
            await self._clock.sleep(pause)

    async def _audit_forever(self) -> None:
        while True:
            share = 0.5 + int.from_bytes(self._dice.token_bytes(4)) / (1 << 32)
            await self._clock.sleep(self._settings.interval_s * share)
            try:
                await self.audit_once()
            except (Unavailable, Refused, Invalid) as error:
                self._log.warning("audit failed", error=str(error))

    async def audit_once(self) -> bool | None:
        """Buy one answer or vector and re-execute it: does it hold what was promised? None when nobody sells."""
        model = self._model
        if self._further is not None:
            model = await self._further.draw(int.from_bytes(self._dice.token_bytes(4))) or model
        provider = await self._choose_provider(model)
        if provider is None:
            return None
        part, body = self._draw_body(model)
        try:
            level = await self._draw_level(model, provider)
            evidence = await self._shop.buy(self._build_order(model, provider, level, part, body))
        except (Unavailable, Refused, Invalid):
            if part.api is not Api.EMBEDDINGS:  # who sells answers only refuses vectors, and is due as before
                self._failures.append((provider, self._clock.now_ms()))
            raise
        report = await self._recheck.check(evidence)
        return self._record(provider, evidence, report)

    def _record(self, provider: Address, evidence: Evidence, report: Report) -> bool:
        receipt = evidence.opening.receipt
        holds = report.ok or not is_promised(evidence.opening)
        suspicion = None
        if not holds:
            salt = self._dice.token_bytes(32)
            suspicion = Suspicion(encode_evidence(evidence), build_evidence_root(salt, report.margins), salt)
        tokens, margin = report.tokens_checked, report.margin_max
        audit = Audit(hash_struct(receipt), provider, self._clock.now_ms(), tokens, margin, holds)
        self._store.record_audit(audit, suspicion)
        self._audited_tokens.inc(tokens)
        log = self._log.bind(provider=encode_hex(provider), receipt=receipt.counter)
        if holds:
            log.info("answer holds", tokens=tokens, margin_max=round(margin, 5))
            return True
        self._violations.inc()
        first = report.violations[0]
        log.warning("answer violates", position=first.position, rule=str(first.rule), detail=first.detail)
        return False

    async def _choose_provider(self, model: AuditedModel) -> Address | None:
        providers = await self._shop.list_providers(model.record_id)
        if not providers:
            return None
        since = self._clock.now_ms() - RECENT_MS
        start = int.from_bytes(self._dice.token_bytes(4)) % len(providers)
        rotated = [*providers[start:], *providers[:start]]
        failed = Counter(provider for provider, at_ms in self._failures if at_ms >= since)
        return min(rotated, key=lambda it: self._store.tokens_audited(it, since) + FAILED_TOKENS * failed[it])

    async def _draw_level(self, model: AuditedModel, provider: Address) -> int:
        """What to order: every level that is sold and can be audited, equally often; what is owed follows from it."""
        highest = await self._shop.fetch_level(model.record_id, provider)
        levels = range(Level.SEEDED, max(highest, Level.SEEDED) + 1)
        return levels[int.from_bytes(self._dice.token_bytes(4)) % len(levels)]

    def _build_order(self, model: AuditedModel, provider: Address, level: int, part: Part, body: bytes) -> Order:
        question = read_part(part, body)
        prompt_ids, context = model.render(question)
        return Order(
            model_record_id=model.record_id,
            prompt_ids=prompt_ids,
            params=question.params(model.context_tokens, len(prompt_ids)),
            context=context,
            body=body,
            client_nonce=self._dice.token_bytes(32),
            nonce=self._dice.token_bytes(32),
            salt=self._dice.token_bytes(32),
            min_level=level,
            provider=provider,
            part=part,
        )

    def _draw_body(self, model: AuditedModel) -> tuple[Part, bytes]:
        """A body as a user's program would send it, and what it asks for: an answer, or now and then a vector."""
        every = self._settings.vectors_every
        if every and int.from_bytes(self._dice.token_bytes(4)) % every == 0:
            return Part(Api.EMBEDDINGS), draw_input(model.name, self._dice.token_bytes(32))
        return PLAIN_CHAT, draw_question(model.name, self._dice.token_bytes(32)).body
