"""A member's part in the beacon: every round that is not over, not only the newest.

A secret is in the journal before its commitment is sent. A commitment that was sent in one attempt of a round may land
in the next, so a reveal tries this round's other secrets, too; one that was not committed to opens nothing. A secret is
shown only once the end of the commit phase is settled: a block taken back must not let others commit after they saw it.
"""

from collections.abc import Mapping

from deaios.alignment.auditor.service.turns import Turns
from deaios.alignment.auditor.store import AuditorStore
from deaios.alignment.duty import BeaconDuty, RoundView, beacon_duty
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.client.sender import Sender
from deaios.ledger.phases import BeaconPhase
from deaios.ledger.suite import AUDIT
from deaios.primitives.keys import Address
from deaios.runtime.dice import Dice
from deaios.runtime.logs import get_logger


class BeaconMember:
    """Commits, reveals, and takes the common step when it is its turn."""

    def __init__(self, contracts: Contracts, sender: Sender, store: AuditorStore, dice: Dice, turns: Turns) -> None:
        self._beacon = contracts.beacon
        self._settled = contracts.settled.beacon
        self._staking = contracts.staking
        self._sender = sender
        self._store = store
        self._dice = dice
        self._turns = turns
        self._log = get_logger("auditor")

    async def tend(self) -> None:
        """Do what is due in every open round."""
        rounds = await self._beacon.pending_rounds()
        if not rounds:
            return
        members = await self._staking.members(AUDIT)
        for round_id in reversed(rounds):
            try:
                await self._tend_round(round_id, members)
            except Reverted as error:  # another auditor was quicker, or the phase has just ended
                self._log.debug("beacon step came too late", round=round_id, reason=error.reason)

    async def _tend_round(self, round_id: int, members: tuple[Address, ...]) -> None:
        beacon, me = self._beacon, self._sender.address
        attempt = (await beacon.round_of(round_id)).attempt
        secrets = self._store.beacon_secrets(round_id)
        view = RoundView(
            phase=await beacon.phase(round_id),
            is_member=me in members,
            has_committed=await beacon.is_committed(round_id, me),
            has_revealed=await beacon.is_revealed(round_id, me),
            knows_secret=bool(secrets),
        )
        may_crank = self._turns.is_mine(("beacon", round_id, attempt, int(view.phase)), round_id, members)
        match beacon_duty(view, may_crank=may_crank):
            case BeaconDuty.COMMIT:
                secret = self._store.keep_beacon_secret(round_id, attempt, self._dice.token_bytes(32))
                await beacon.commit(self._sender, round_id, secret)
            case BeaconDuty.REVEAL:
                if await self._is_reveal_settled(round_id, attempt):
                    await self._reveal(round_id, secrets)
            case BeaconDuty.FINALIZE:
                await beacon.finalize(self._sender, round_id)
            case BeaconDuty.NOTHING:
                pass

    async def _is_reveal_settled(self, round_id: int, attempt: int) -> bool:
        if self._settled is self._beacon:
            return True
        known = await self._settled.round_of(round_id)
        return known.attempt == attempt and await self._settled.phase(round_id) == BeaconPhase.REVEAL

    async def _reveal(self, round_id: int, secrets: Mapping[int, bytes]) -> None:
        for attempt, secret in secrets.items():
            try:
                await self._beacon.reveal(self._sender, round_id, secret)
            except Reverted as error:
                self._log.info("secret opens nothing", round=round_id, attempt=attempt, reason=error.reason)
            else:
                return
