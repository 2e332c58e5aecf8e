"""The defender watches disputes against one provider and appeals a guilty verdict that its own replay refutes.

It looks at the evidence as soon as a dispute is open, because an appeal window is short. It appeals once and only what
it can show: a provider whose replay fails, or that has no listed engine, keeps its appeal bond. Nothing is journalled:
what it needs is on chain and in storage, and an appeal that was sent is seen there after a restart.
"""

from dataclasses import dataclass

from deaios.alignment.evidence import EVIDENCE_BYTES_MAX
from deaios.alignment.judging import Charge, read_charge
from deaios.alignment.ports import Recheck, Shelf
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.disputes import Dispute
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.client.sender import Sender
from deaios.ledger.eip712 import Domain
from deaios.ledger.phases import Decision, DisputePhase
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import ZERO_ADDRESS
from deaios.runtime.clock import Clock
from deaios.runtime.errors import RefusedTooLarge
from deaios.runtime.logs import get_logger

INTERVAL_S = 1.0
RETRY_PAUSE_S = 2.0
DISPUTES_WATCHED_MAX = 256
"""Newest disputes looked at while one is open against this provider."""


@dataclass(frozen=True, slots=True)
class Defence:
    """What this provider can show in one dispute, and in words why."""

    holds: bool
    reason: str


class Defender:
    """One provider's defender; the sender's key is the provider's. `run` until cancelled."""

    def __init__(
        self,
        *,
        contracts: Contracts,
        sender: Sender,
        domain: Domain,
        model_record_id: bytes,
        shelf: Shelf,
        recheck: Recheck,
        clock: Clock,
    ) -> None:
        self._disputes = contracts.disputes
        self._credit = contracts.credit
        self._sender = sender
        self._domain = domain
        self._model_record_id = model_record_id
        self._shelf = shelf
        self._recheck = recheck
        self._clock = clock
        self._defences: dict[tuple[int, bytes], Defence] = {}
        self._log = get_logger("defender")

    async def run(self) -> None:
        """Watch until cancelled; an unreachable peer makes it wait, not end."""
        while True:
            pause = INTERVAL_S
            try:
                await self.tend()
            except (Unavailable, Refused, Invalid) as error:
                self._log.warning("defence postponed", error=str(error))
                pause = RETRY_PAUSE_S
            await self._clock.sleep(pause)

    async def tend(self) -> None:
        """Do what is due in every dispute against this provider."""
        if not await self._disputes.is_paused(self._sender.address):
            self._defences.clear()
            return
        count = await self._disputes.dispute_count()
        for dispute_id in range(max(1, count - DISPUTES_WATCHED_MAX + 1), count + 1):
            phase = await self._disputes.phase_of(dispute_id)
            if phase == DisputePhase.CLOSED:
                continue
            dispute = await self._disputes.dispute_of(dispute_id)
            if dispute.provider == self._sender.address and dispute.appellant == ZERO_ADDRESS:
                await self._tend_dispute(dispute_id, dispute, phase)

    async def _tend_dispute(self, dispute_id: int, dispute: Dispute, phase: DisputePhase) -> None:
        try:
            # Under one number, a block taken back may leave another dispute.
            known = self._defences.get((dispute_id, dispute.receipt_digest))
            defence = known or await self._prepare(dispute_id, dispute)
            if defence.holds and phase == DisputePhase.APPEAL and dispute.verdict == Decision.GUILTY:
                await self._appeal(dispute_id, defence)
        except Reverted as error:
            self._log.error("appeal was refused", dispute=dispute_id, reason=error.reason)
        except (Unavailable, Refused) as error:
            self._log.warning("defence postponed", dispute=dispute_id, error=str(error))

    async def _prepare(self, dispute_id: int, dispute: Dispute) -> Defence:
        defence = await self._examine(dispute)
        self._defences[dispute_id, dispute.receipt_digest] = defence
        while len(self._defences) > DISPUTES_WATCHED_MAX:
            del self._defences[next(iter(self._defences))]
        self._log.warning(
            "accused",
            dispute=dispute_id,
            accuser=encode_hex(dispute.accuser),
            will_appeal=defence.holds,
            reason=defence.reason,
        )
        return defence

    async def _examine(self, dispute: Dispute) -> Defence:
        charge = Charge(self._domain, self._sender.address, dispute.receipt_digest, self._model_record_id)
        try:
            evidence = read_charge(await self._shelf.get_bytes(dispute.evidence_manifest, EVIDENCE_BYTES_MAX), charge)
        except (Invalid, RefusedTooLarge) as error:
            return Defence(True, f"the evidence proves nothing: {error}")
        try:
            equal = await self._recheck.replay(evidence)
        except Invalid as error:
            return Defence(False, f"own replay failed: {error}")
        if equal is None:
            return Defence(False, "exact replay cannot be had on this machine")
        return Defence(equal, "own replay gives the output" if equal else "own replay gives another output")

    async def _appeal(self, dispute_id: int, defence: Defence) -> None:
        bond = (await self._disputes.settings()).appeal_bond
        await self._credit.ensure_allowance(self._sender, self._disputes.address, bond)
        receipt = await self._disputes.appeal(self._sender, dispute_id)
        transaction = encode_hex(receipt.transaction_hash)
        self._log.warning("appealed", dispute=dispute_id, reason=defence.reason, transaction=transaction)
