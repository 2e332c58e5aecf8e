"""A juror's part in disputes: judge, commit, reveal; and the common steps when it is this auditor's turn.

Judging runs beside the loop, so that slow storage or a long replay in one dispute never makes the juror late in
another. A verdict is in the journal before its commitment is sent. Evidence that cannot be had until shortly before
the deadline proves nothing: the juror acquits rather than stays silent. It judges, reveals and forgets a dispute only
when the draw, the end of the commit phase and the close are settled: under one number, a block taken back may leave
another dispute.
"""

import asyncio

from deaios.alignment.auditor.service.turns import Turns
from deaios.alignment.auditor.store import AuditorStore, KeptVerdict
from deaios.alignment.duty import DisputeDuty, DisputeView, dispute_duty
from deaios.alignment.evidence import EVIDENCE_BYTES_MAX, build_evidence_root
from deaios.alignment.judging import Charge, Finding, find
from deaios.alignment.ports import Recheck, Shelf
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.disputes import Ballot, Dispute
from deaios.ledger.client.rpc import Reverted, UnavailableChain
from deaios.ledger.client.sender import Sender
from deaios.ledger.eip712 import Domain, hash_struct
from deaios.ledger.phases import DisputePhase
from deaios.ledger.structs import Judgement, Verdict
from deaios.ledger.suite import AUDIT
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import RefusedTooLarge
from deaios.runtime.logs import get_logger
from deaios.runtime.metrics import Metrics

DISPUTES_WATCHED_MAX = 256
"""Newest disputes looked at; older ones have long been closed by anybody."""
JUDGING_MAX = 4
"""Disputes judged at one time; more wait."""
JUDGE_RETRY_S = 2.0
LAST_CALL_DIVISOR = 4
"""A juror without evidence acquits when this part of the commit window is left."""
NEEDS_SETTLED = frozenset({DisputeDuty.JUDGE, DisputeDuty.REVEAL})
"""What is written down under the dispute's number, or cannot be taken back: whoever reads it may use it."""
_NO_BALLOT = Ballot(ZERO32, 0, ZERO32)


class Juror:
    """One auditor as a juror."""

    def __init__(
        self,
        *,
        contracts: Contracts,
        sender: Sender,
        domain: Domain,
        model_record_id: bytes | None,
        store: AuditorStore,
        shelf: Shelf,
        recheck: Recheck,
        clock: Clock,
        dice: Dice,
        turns: Turns,
        metrics: Metrics,
    ) -> None:
        self._contracts = contracts
        self._disputes = contracts.disputes
        self._settled = contracts.settled.disputes
        self._sender = sender
        self._domain = domain
        self._model_record_id = model_record_id
        self._store = store
        self._shelf = shelf
        self._recheck = recheck
        self._clock = clock
        self._dice = dice
        self._turns = turns
        self._verdicts = metrics.counter("verdicts_total", "Verdicts decided", ("judgement",))
        self._log = get_logger("auditor")
        self._closed: set[int] = set()
        self._judging: dict[tuple[int, int], asyncio.Task[None]] = {}

    async def tend(self) -> None:
        """Do what is due in every open dispute; what fails in one leaves the others alone."""
        self._reap()
        count = await self._disputes.dispute_count()
        watched = range(max(1, count - DISPUTES_WATCHED_MAX + 1), count + 1)
        self._closed.intersection_update(watched)
        members: tuple[Address, ...] | None = None
        for dispute_id in watched:
            if dispute_id in self._closed:
                continue
            members = members or await self._contracts.staking.members(AUDIT)
            try:
                await self._tend_dispute(dispute_id, members)
            except UnavailableChain:
                raise
            except Reverted as error:  # another auditor was quicker, or the phase has just ended
                self._log.debug("dispute step came too late", dispute=dispute_id, reason=error.reason)
            except (Unavailable, Refused, Invalid) as error:
                self._log.warning("dispute postponed", dispute=dispute_id, error=str(error))

    async def settle(self) -> None:
        """Wait until nothing is being judged."""
        while self._judging:
            await asyncio.wait(self._judging.values())
            self._reap()

    async def close(self) -> None:
        """Give up what is being judged; the journal holds what was decided."""
        tasks = list(self._judging.values())
        self._judging.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tend_dispute(self, dispute_id: int, members: tuple[Address, ...]) -> None:
        disputes, me = self._disputes, self._sender.address
        phase = await disputes.phase_of(dispute_id)
        if phase == DisputePhase.CLOSED:
            if self._settled is disputes or await self._settled.phase_of(dispute_id) == DisputePhase.CLOSED:
                self._closed.add(dispute_id)
            return
        dispute = await disputes.dispute_of(dispute_id)
        draw = dispute.draws  # juries are numbered from 1 (docs/contracts.md)
        is_juror = draw > 0 and me in await disputes.jurors_of(dispute_id)
        ballot = await disputes.ballot_of(dispute_id, draw, me) if is_juror else _NO_BALLOT
        committed = self._find_committed(dispute_id, ballot)
        view = DisputeView(
            phase=phase,
            is_juror=is_juror,
            has_committed=ballot.commitment != ZERO32,
            has_revealed=ballot.judgement != 0,
            knows_verdict=committed is not None,
        )
        step = ("dispute", dispute_id, dispute.draws, int(phase))
        duty = dispute_duty(view, may_crank=self._turns.is_mine(step, dispute_id, members))
        if duty in NEEDS_SETTLED and not await self._is_settled(dispute_id, dispute, phase):
            return
        match duty:
            case DisputeDuty.DRAW:
                await disputes.draw(self._sender, dispute_id)
            case DisputeDuty.JUDGE:
                kept = await self._obtain_verdict(dispute_id, draw, dispute)
                if kept is not None:
                    await disputes.commit_verdict(self._sender, self._verdict(dispute_id, kept))
            case DisputeDuty.REVEAL:
                assert committed is not None
                await disputes.reveal_verdict(self._sender, self._verdict(dispute_id, committed))
            case DisputeDuty.TALLY:
                await disputes.tally(self._sender, dispute_id)
            case DisputeDuty.FINALIZE:
                await disputes.finalize(self._sender, dispute_id)
            case DisputeDuty.NOTHING:
                pass

    async def _is_settled(self, dispute_id: int, dispute: Dispute, phase: DisputePhase) -> bool:
        """Is it this very dispute, this jury and this phase that no reorganisation takes back?"""
        if self._settled is self._disputes:
            return True
        if await self._settled.dispute_count() < dispute_id:
            return False
        known = await self._settled.dispute_of(dispute_id)
        is_same = (known.receipt_digest, known.accuser, known.draws, known.evidence_manifest) == (
            dispute.receipt_digest,
            dispute.accuser,
            dispute.draws,
            dispute.evidence_manifest,
        )
        return is_same and await self._settled.phase_of(dispute_id) == phase

    def _find_committed(self, dispute_id: int, ballot: Ballot) -> KeptVerdict | None:
        """The kept verdict that the chain's commitment is of, whichever draw it was decided in."""
        if ballot.commitment == ZERO32:
            return None
        kept = self._store.verdicts(dispute_id).values()
        return next((one for one in kept if hash_struct(self._verdict(dispute_id, one)) == ballot.commitment), None)

    def _verdict(self, dispute_id: int, kept: KeptVerdict) -> Verdict:
        return Verdict(dispute_id, self._sender.address, kept.judgement, kept.evidence_root, kept.salt)

    async def _obtain_verdict(self, dispute_id: int, draw: int, dispute: Dispute) -> KeptVerdict | None:
        """The verdict of this draw, when there is one already; begins to judge otherwise."""
        kept = self._store.verdicts(dispute_id).get(draw)
        if kept is not None:
            return kept
        if await self._is_last_call(dispute):
            return self._keep(dispute_id, draw, Finding(Judgement.ACQUIT, (), "nothing was proven in time"))
        key = (dispute_id, draw)
        if key not in self._judging and len(self._judging) < JUDGING_MAX:
            self._judging[key] = asyncio.create_task(self._judge(dispute_id, draw, dispute), name=f"judge {dispute_id}")
        return None

    async def _is_last_call(self, dispute: Dispute) -> bool:
        window = (await self._disputes.settings()).commit_seconds
        latest = await self._contracts.rpc.get_block("latest")
        return latest is not None and dispute.commit_deadline - latest.timestamp <= window // LAST_CALL_DIVISOR

    async def _judge(self, dispute_id: int, draw: int, dispute: Dispute) -> None:
        try:
            finding = await self._find(dispute)
        except (Unavailable, Refused) as error:
            self._log.warning("judging postponed", dispute=dispute_id, error=str(error))
            await self._clock.sleep(JUDGE_RETRY_S)
        else:
            self._keep(dispute_id, draw, finding)

    async def _find(self, dispute: Dispute) -> Finding:
        charge = Charge(self._domain, dispute.provider, dispute.receipt_digest, self._model_record_id)
        try:
            data = await self._shelf.get_bytes(dispute.evidence_manifest, EVIDENCE_BYTES_MAX)
        except RefusedTooLarge as error:
            return Finding(Judgement.ACQUIT, (), f"the evidence proves nothing: {error}")
        except Invalid as error:
            return Finding(Judgement.ACQUIT, (), f"the evidence is not what was stored: {error}")
        return await find(data, charge, self._recheck)

    def _keep(self, dispute_id: int, draw: int, finding: Finding) -> KeptVerdict:
        salt = self._dice.token_bytes(32)
        verdict = KeptVerdict(int(finding.judgement), build_evidence_root(salt, finding.margins), salt)
        kept = self._store.keep_verdict(dispute_id, draw, verdict)
        name = Judgement(kept.judgement).name.lower()
        self._verdicts.labels(name).inc()
        self._log.info("judged", dispute=dispute_id, draw=draw, judgement=name, reason=finding.reason)
        return kept

    def _reap(self) -> None:
        """Forget what has been judged; an error that nobody foresaw ends this auditor."""
        for key in [key for key, task in self._judging.items() if task.done()]:
            self._judging.pop(key).result()
