"""The auditor at work: three loops over one journal.

It buys like a user and re-executes what it bought; it takes a violation that exact replay confirms to a jury; it does
its duties for the beacon and for the juries it is drawn for. Every loop survives an unreachable peer and says so; what
was begun is finished after a restart, because the journal comes first.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from deaios.alignment.auditor.store import AuditorStore, Case, KeptVerdict
from deaios.alignment.duty import (
    BeaconDuty,
    DisputeDuty,
    DisputeView,
    RoundView,
    beacon_duty,
    crank_delay_s,
    dispute_duty,
)
from deaios.alignment.evidence import (
    EVIDENCE_BYTES_MAX,
    Evidence,
    InvalidEvidence,
    build_evidence_root,
    decode_evidence,
    encode_evidence,
    judge,
    validate_evidence,
)
from deaios.alignment.prompts import draw_question
from deaios.compute.verification import Report
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.client.sender import Sender
from deaios.ledger.eip712 import Domain, hash_struct
from deaios.ledger.phases import DisputePhase
from deaios.ledger.structs import Judgement, Verdict
from deaios.ledger.suite import AUDIT
from deaios.market.chat import read_chat_body
from deaios.market.orders import Order
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
OPEN_DISPUTES_MAX = 256
"""Newest disputes looked at; older ones have long been closed by anybody."""
RECENT_MS = 10 * 60 * 1000
"""Audits within this time decide whom to audit next."""


class Recheck(Protocol):
    """Re-execution of one purchase; the live one is `node`'s engine."""

    async def check(self, evidence: Evidence) -> Report:
        """One prefill: does every token hold?"""

    async def replay(self, evidence: Evidence) -> bool | None:
        """Does exact replay give the output? None where it cannot be had."""


class Shop(Protocol):
    """Where an auditor buys; the live one is the market's buyer."""

    async def list_providers(self, model_record_id: bytes) -> Sequence[Address]:
        """Providers of a model that sell now."""

    async def buy(self, order: Order) -> Evidence:
        """Buy one answer to its end."""


class Shelf(Protocol):
    """Storage of evidence."""

    async def put_bytes(self, data: bytes) -> bytes:
        """Store; returns the manifest id."""

    async def get_bytes(self, manifest_id: bytes, bytes_max: int) -> bytes:
        """Fetch, verified."""


@dataclass(frozen=True, slots=True)
class AuditedModel:
    """What is audited: its record's id and name, and how a chat becomes prompt ids and a context."""

    record_id: bytes
    name: str
    context_tokens: int
    render: Callable[[bytes], tuple[tuple[int, ...], bytes]]
    """Chat body to (prompt ids, context)."""


@dataclass(frozen=True, slots=True)
class AuditorSettings:
    """How much an auditor does.

    Attributes:
        interval_s: mean pause between purchases; the real pause is drawn from one half to three halves of it.
    """

    interval_s: float = 20.0


class Auditor:
    """One auditor; `run` until cancelled."""

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
    ) -> None:
        self._contracts = contracts
        self._sender = sender
        self._domain = domain
        self._store = store
        self._shop = shop
        self._shelf = shelf
        self._recheck = recheck
        self._model = model
        self._clock = clock
        self._dice = dice
        self._settings = settings
        self._log = get_logger("auditor")
        self._first_seen: dict[tuple[str, int, int], float] = {}
        self._audited_tokens = metrics.counter("audited_tokens_total", "Output tokens re-executed")
        self._violations = metrics.counter("violations_total", "Audited answers that broke a rule")
        self._verdicts = metrics.counter("verdicts_total", "Verdicts committed", ("judgement",))

    async def run(self) -> None:
        """All loops until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forever("beacon", DUTY_INTERVAL_S, self._tend_beacon))
            group.create_task(self._forever("juries", DUTY_INTERVAL_S, self._tend_disputes))
            group.create_task(self._forever("cases", CASE_INTERVAL_S, self._tend_cases))
            group.create_task(self._audit_forever())

    async def _forever(self, name: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            pause = interval_s
            try:
                await work()
            except (Unavailable, Refused, Invalid) as error:
                self._log.warning("duty postponed", duty=name, error=str(error))
                pause = RETRY_PAUSE_S
            await self._clock.sleep(pause)

    # -- audits ------------------------------------------------------------------------------------------------------

    async def _audit_forever(self) -> None:
        while True:
            share = 0.5 + int.from_bytes(self._dice.token_bytes(4)) / (1 << 32)
            await self._clock.sleep(self._settings.interval_s * share)
            try:
                await self.audit_once()
            except (Unavailable, Refused, Invalid) as error:
                self._log.warning("audit failed", error=str(error))

    async def audit_once(self) -> bool | None:
        """Buy one answer and re-execute it; None when nobody sells."""
        provider = await self._choose_provider()
        if provider is None:
            return None
        evidence = await self._shop.buy(self._build_order(provider))
        report = await self._recheck.check(evidence)
        digest = hash_struct(evidence.opening.receipt)
        self._audited_tokens.inc(report.tokens_checked)
        self._store.record_audit(
            digest, provider, self._clock.now_ms(), report.tokens_checked, report.margin_max, holds=report.ok
        )
        log = self._log.bind(provider=encode_hex(provider), receipt=evidence.opening.receipt.counter)
        if report.ok:
            log.info("answer holds", tokens=report.tokens_checked, margin_max=round(report.margin_max, 5))
            return True
        self._violations.inc()
        first = report.violations[0]
        log.warning("answer violates", position=first.position, margin=round(first.margin, 4), rule=str(first.rule))
        if await self._recheck.replay(evidence) is not False:
            log.warning("exact replay acquits")
            return False
        salt = self._dice.token_bytes(32)
        root = build_evidence_root(salt, report.margins)
        self._store.begin_case(digest, encode_evidence(evidence), root, salt)
        return False

    async def _choose_provider(self) -> Address | None:
        providers = await self._shop.list_providers(self._model.record_id)
        if not providers:
            return None
        since = self._clock.now_ms() - RECENT_MS
        start = int.from_bytes(self._dice.token_bytes(4)) % len(providers)
        rotated = [*providers[start:], *providers[:start]]
        return min(rotated, key=lambda provider: self._store.tokens_audited(provider, since))

    def _build_order(self, provider: Address) -> Order:
        question = draw_question(self._model.name, self._dice.token_bytes(32))
        chat = read_chat_body(question.body)
        prompt_ids, context = self._model.render(question.body)
        return Order(
            model_record_id=self._model.record_id,
            prompt_ids=prompt_ids,
            params=chat.params(self._model.context_tokens, len(prompt_ids)),
            context=context,
            body=question.body,
            client_nonce=self._dice.token_bytes(32),
            nonce=self._dice.token_bytes(32),
            salt=self._dice.token_bytes(32),
            provider=provider,
        )

    # -- accusing ----------------------------------------------------------------------------------------------------

    async def _tend_cases(self) -> None:
        for case in self._store.unopened_cases():
            try:
                await self._advance(case)
            except Reverted as error:
                if await self._contracts.disputes.open_dispute_of(case.receipt_digest) is None:
                    self._log.warning("dispute refused by the contract", error=str(error))
                self._store.advance_case(case.receipt_digest, "dropped")

    async def _advance(self, case: Case) -> None:
        disputes = self._contracts.disputes
        if await disputes.open_dispute_of(case.receipt_digest) is not None:
            self._store.advance_case(case.receipt_digest, "dropped")
            return
        if case.state == "found":
            await disputes.commit_evidence(self._sender, case.evidence_root, case.salt)
            self._store.advance_case(case.receipt_digest, "committed")
            return
        evidence = decode_evidence(case.evidence)
        manifest = await self._shelf.put_bytes(case.evidence)
        bond = await disputes.bond_of(case.receipt_digest)
        await self._contracts.credit.ensure_allowance(self._sender, disputes.address, bond)
        opening = evidence.opening
        outcome = await disputes.open(
            self._sender,
            opening.request,
            opening.request_signature,
            opening.receipt,
            opening.receipt_signature,
            case.evidence_root,
            manifest,
            case.salt,
        )
        self._store.advance_case(case.receipt_digest, "opened", outcome.value)
        self._log.warning(
            "dispute opened", dispute=outcome.value, transaction=encode_hex(outcome.receipt.transaction_hash)
        )

    # -- beacon ------------------------------------------------------------------------------------------------------

    async def _tend_beacon(self) -> None:
        beacon, me = self._contracts.beacon, self._sender.address
        round_id = await beacon.open_round()
        if round_id is None:
            return
        phase = await beacon.phase(round_id)
        attempt = (await beacon.round_of(round_id)).attempt
        members = await self._contracts.staking.members(AUDIT)
        secret = self._store.beacon_secret(round_id, attempt)
        view = RoundView(
            phase=phase,
            is_member=me in members,
            has_committed=await beacon.is_committed(round_id, me),
            has_revealed=await beacon.is_revealed(round_id, me),
            knows_secret=secret is not None,
        )
        may_crank = self._may_crank("beacon", round_id, int(phase), members)
        with contextlib.suppress(Reverted):  # another auditor was quicker, or the phase has just ended
            match beacon_duty(view, may_crank=may_crank):
                case BeaconDuty.COMMIT:
                    kept = self._store.keep_beacon_secret(round_id, attempt, self._dice.token_bytes(32))
                    await beacon.commit(self._sender, round_id, kept)
                case BeaconDuty.REVEAL:
                    assert secret is not None
                    await beacon.reveal(self._sender, round_id, secret)
                case BeaconDuty.FINALIZE:
                    await beacon.finalize(self._sender, round_id)
                case BeaconDuty.NOTHING:
                    pass

    # -- juries ------------------------------------------------------------------------------------------------------

    async def _tend_disputes(self) -> None:
        count = await self._contracts.disputes.dispute_count()
        for dispute_id in range(count, max(0, count - OPEN_DISPUTES_MAX), -1):
            if ("closed", dispute_id, 0) in self._first_seen:
                continue
            phase = await self._contracts.disputes.phase_of(dispute_id)
            if phase == DisputePhase.CLOSED:
                self._first_seen["closed", dispute_id, 0] = 0.0
                continue
            with contextlib.suppress(Reverted):  # another auditor was quicker, or the phase has just ended
                await self._tend_dispute(dispute_id, phase)

    async def _tend_dispute(self, dispute_id: int, phase: DisputePhase) -> None:
        disputes, me = self._contracts.disputes, self._sender.address
        dispute = await disputes.dispute_of(dispute_id)
        jurors = await disputes.jurors_of(dispute_id)
        kept = self._store.verdict(dispute_id, dispute.draws)
        ballot = await disputes.ballot_of(dispute_id, dispute.draws, me) if me in jurors else None
        view = DisputeView(
            phase=phase,
            is_juror=ballot is not None,
            has_committed=ballot is not None and ballot.commitment != bytes(32),
            has_revealed=ballot is not None and ballot.judgement != 0,
            knows_verdict=kept is not None,
        )
        members = await self._contracts.staking.members(AUDIT)
        match dispute_duty(view, may_crank=self._may_crank("dispute", dispute_id, int(phase), members)):
            case DisputeDuty.DRAW:
                await disputes.draw(self._sender, dispute_id)
            case DisputeDuty.JUDGE:
                verdict = kept or await self._judge(dispute_id, dispute.draws, dispute.provider)
                await disputes.commit_verdict(self._sender, self._verdict(dispute_id, verdict))
                self._verdicts.labels(Judgement(verdict.judgement).name.lower()).inc()
            case DisputeDuty.REVEAL:
                assert kept is not None
                await disputes.reveal_verdict(self._sender, self._verdict(dispute_id, kept))
            case DisputeDuty.TALLY:
                await disputes.tally(self._sender, dispute_id)
            case DisputeDuty.FINALIZE:
                await disputes.finalize(self._sender, dispute_id)
            case DisputeDuty.NOTHING:
                pass

    def _verdict(self, dispute_id: int, kept: KeptVerdict) -> Verdict:
        return Verdict(dispute_id, self._sender.address, kept.judgement, kept.evidence_root, kept.salt)

    async def _judge(self, dispute_id: int, draw: int, provider: Address) -> KeptVerdict:
        dispute = await self._contracts.disputes.dispute_of(dispute_id)
        salt = self._dice.token_bytes(32)
        margins: Sequence[float] = ()
        try:
            data = await self._shelf.get_bytes(dispute.evidence_manifest, EVIDENCE_BYTES_MAX)
            evidence = decode_evidence(data)
            validate_evidence(evidence, self._domain, provider, dispute.receipt_digest)
            if evidence.opening.ask.model_record_id != self._model.record_id:
                raise InvalidEvidence("evidence is about a model that this auditor does not audit")
            report = await self._recheck.check(evidence)
            margins = report.margins
            replay = None if report.ok else await self._recheck.replay(evidence)
            judgement = judge(margins_hold=report.ok, replay_equal=replay)
        except Invalid as error:
            self._log.warning("evidence proves nothing", dispute=dispute_id, error=str(error))
            judgement = Judgement.ACQUIT
        root = build_evidence_root(salt, margins)
        self._log.info("judged", dispute=dispute_id, judgement=judgement.name.lower())
        return self._store.keep_verdict(dispute_id, draw, KeptVerdict(int(judgement), root, salt))

    def _may_crank(self, kind: str, subject: int, phase: int, members: tuple[Address, ...]) -> bool:
        now = self._clock.monotonic_s()
        seen = self._first_seen.setdefault((kind, subject, phase), now)
        return now - seen >= crank_delay_s(self._sender.address, members, subject)
