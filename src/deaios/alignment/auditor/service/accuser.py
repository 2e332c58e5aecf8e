"""An accuser's part: from a violation in the journal to a dispute on chain, one journalled step at a time.

A violation is taken to a jury only after exact replay has failed, too. A step whose outcome is not known after a crash
is looked up on chain before it is repeated, so that no bond is paid twice.
"""

from dataclasses import dataclass

from deaios.alignment.auditor.store import AuditorStore, Case, CaseState
from deaios.alignment.evidence import decode_evidence
from deaios.alignment.ports import Recheck, Shelf
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Reverted, UnavailableChain
from deaios.ledger.client.sender import Sender
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.runtime.clock import Clock
from deaios.runtime.logs import get_logger

OWN_DISPUTES_SEARCHED_MAX = 256
"""Newest disputes searched for one of our own after a crash."""
BOND_DOUBLINGS_MAX = 3
"""A bond this often doubled by earlier disputes over the receipt is worth no more than the bounty."""
RETRY_PAUSE_S = 5.0
ATTEMPTS_MAX = 200
"""Some quarter of an hour; what the contract refuses for longer is left."""
_HOPELESS = (
    "too late for this receipt",
    "provider has no stake",
    "was found guilty",
    "disputed too often",
    "accuser is the accused",
    "channel is unknown",
    "not signed by",
)
"""Reasons of the contract that no waiting mends; others, such as a missing bond, may pass."""


@dataclass(frozen=True, slots=True)
class _Delay:
    attempts: int
    until_s: float


class Accuser:
    """One auditor as an accuser."""

    def __init__(
        self,
        *,
        contracts: Contracts,
        sender: Sender,
        store: AuditorStore,
        shelf: Shelf,
        recheck: Recheck,
        clock: Clock,
    ) -> None:
        self._disputes = contracts.disputes
        self._settled = contracts.settled.disputes
        self._credit = contracts.credit
        self._sender = sender
        self._store = store
        self._shelf = shelf
        self._recheck = recheck
        self._clock = clock
        self._delays: dict[bytes, _Delay] = {}
        self._log = get_logger("auditor")

    async def tend(self) -> None:
        """Take every open case one step further; what stops one leaves the others alone."""
        for case in self._store.open_cases():
            delay = self._delays.get(case.receipt_digest)
            if delay is not None and self._clock.monotonic_s() < delay.until_s:
                continue
            try:
                await self._advance(case)
            except UnavailableChain:
                raise
            except Reverted as error:
                self._take_refusal(case, error)
            except (Unavailable, Refused) as error:
                self._put_off(case, str(error))
            except Invalid as error:
                self._drop(case, str(error))

    async def _advance(self, case: Case) -> None:
        match case.state:
            case CaseState.SUSPECTED:
                await self._replay(case)
            case CaseState.FOUND:
                await self._commit(case)
            case CaseState.COMMITTED:
                await self._open(case)
            case CaseState.OPENING:
                await self._look_up(case)
            case CaseState.OPENED | CaseState.CLEARED | CaseState.DROPPED:
                raise AssertionError("an ended case is not open")

    async def _replay(self, case: Case) -> None:
        equal = await self._recheck.replay(decode_evidence(case.evidence))
        if equal is None:
            self._drop(case, "exact replay cannot be had on this machine, and nobody is accused without it")
        elif equal:
            self._log.warning("exact replay acquits", receipt=encode_hex(case.receipt_digest))
            self._store.advance_case(case.receipt_digest, CaseState.CLEARED)
        else:
            self._store.advance_case(case.receipt_digest, CaseState.FOUND)

    async def _commit(self, case: Case) -> None:
        if await self._is_worth_it(case):
            await self._disputes.commit_evidence(self._sender, case.evidence_root, case.salt)
            self._store.advance_case(case.receipt_digest, CaseState.COMMITTED)

    async def _is_worth_it(self, case: Case) -> bool:
        if await self._settled.is_convicted(case.receipt_digest):
            self._drop(case, "the receipt was found guilty already")
            return False
        open_id = await self._disputes.open_dispute_of(case.receipt_digest)
        if open_id is not None:
            await self._meet_dispute(case, open_id)
            return False
        bond, base = await self._disputes.bond_of(case.receipt_digest), (await self._disputes.settings()).bond
        if bond > base << BOND_DOUBLINGS_MAX:
            self._drop(case, f"the bond is {bond}, more than {base} doubled {BOND_DOUBLINGS_MAX} times")
            return False
        return True

    async def _meet_dispute(self, case: Case, dispute_id: int) -> None:
        """A dispute over the receipt is open: our own, sent before and landed late, or somebody else's."""
        if (await self._disputes.dispute_of(dispute_id)).accuser == self._sender.address:
            if await self._settled.open_dispute_of(case.receipt_digest) != dispute_id:
                self._wait(case, "our dispute over this receipt is not settled yet")
                return
            self._store.advance_case(case.receipt_digest, CaseState.OPENED, dispute_id)
            self._log.warning("dispute was opened by what was sent before", dispute=dispute_id)
        else:
            self._wait(case, "somebody else's dispute over this receipt is open")

    async def _open(self, case: Case) -> None:
        if not await self._is_worth_it(case):
            return
        opening = decode_evidence(case.evidence).opening
        manifest = await self._shelf.put_bytes(case.evidence)
        bond = await self._disputes.bond_of(case.receipt_digest)
        await self._credit.ensure_allowance(self._sender, self._disputes.address, bond)
        self._store.advance_case(case.receipt_digest, CaseState.OPENING)
        outcome = await self._disputes.open(
            self._sender,
            opening.request,
            opening.request_signature,
            opening.receipt,
            opening.receipt_signature,
            case.evidence_root,
            manifest,
            case.salt,
        )
        self._store.advance_case(case.receipt_digest, CaseState.OPENED, outcome.value)
        transaction = encode_hex(outcome.receipt.transaction_hash)
        self._log.warning("dispute opened", dispute=outcome.value, transaction=transaction)

    async def _look_up(self, case: Case) -> None:
        """Was the dispute opened by what was sent before the crash? Taken for opened once that is settled."""
        count = await self._disputes.dispute_count()
        for dispute_id in range(count, max(0, count - OWN_DISPUTES_SEARCHED_MAX), -1):
            dispute = await self._disputes.dispute_of(dispute_id)
            if dispute.receipt_digest == case.receipt_digest and dispute.accuser == self._sender.address:
                if await self._settled.dispute_count() < dispute_id:
                    self._wait(case, "our dispute over this receipt is not settled yet")
                    return
                self._store.advance_case(case.receipt_digest, CaseState.OPENED, dispute_id)
                self._log.warning("dispute was opened by what was sent before", dispute=dispute_id)
                return
        self._store.advance_case(case.receipt_digest, CaseState.COMMITTED)

    def _take_refusal(self, case: Case, error: Reverted) -> None:
        if any(reason in error.reason for reason in _HOPELESS):
            self._drop(case, error.reason)
            return
        if case.state in (CaseState.COMMITTED, CaseState.OPENING):
            # The refused transaction opened nothing. Evidence that the chain does not know is committed again.
            lost = "evidence was not committed" in error.reason
            self._store.advance_case(case.receipt_digest, CaseState.FOUND if lost else CaseState.COMMITTED)
        self._put_off(case, error.reason)

    def _put_off(self, case: Case, reason: str) -> None:
        before = self._delays.get(case.receipt_digest)
        attempts = 1 + (before.attempts if before else 0)
        if attempts >= ATTEMPTS_MAX:
            self._drop(case, f"given up after {attempts} attempts: {reason}")
            return
        self._wait(case, reason, attempts)

    def _wait(self, case: Case, reason: str, attempts: int = 0) -> None:
        """Look again later; without attempts, the contract's window for opening disputes is what ends the waiting."""
        self._delays[case.receipt_digest] = _Delay(attempts, self._clock.monotonic_s() + RETRY_PAUSE_S)
        self._log.warning("case postponed", receipt=encode_hex(case.receipt_digest), state=case.state, reason=reason)

    def _drop(self, case: Case, reason: str) -> None:
        self._delays.pop(case.receipt_digest, None)
        self._store.advance_case(case.receipt_digest, CaseState.DROPPED)
        self._log.warning("case dropped", receipt=encode_hex(case.receipt_digest), reason=reason)
