"""Jurors that do not judge: each sits with an honest auditor's stake and seat, and does something else with it."""

from dataclasses import dataclass, field

from deaios.ledger.client.rpc import Reverted
from deaios.ledger.phases import DisputePhase
from deaios.ledger.structs import Judgement, Verdict
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.keys import Address
from deaios.primitives.keys import PrivateKey as Key


@dataclass
class Seat:
    """What every juror here has: a member's key and sender, its part in the beacon, the network."""

    world: object
    watcher: object

    @property
    def key(self) -> Key:
        return self.watcher.key

    @property
    def address(self) -> Address:
        return self.watcher.address

    async def tend(self):
        """The beacon as an honest member, then what this juror does where a jury sits that it belongs to."""
        disputes = self.world.contracts.disputes
        await self.watcher.auditor.beacon.tend()
        for dispute_id in range(await disputes.dispute_count(), 0, -1):
            phase = await disputes.phase_of(dispute_id)
            if phase == DisputePhase.CLOSED:
                return
            if phase in (DisputePhase.COMMIT, DisputePhase.REVEAL) and self.address in await disputes.jurors_of(
                dispute_id
            ):
                await self.sit(dispute_id, phase)

    async def has_committed(self, dispute_id):
        dispute = await self.world.contracts.disputes.dispute_of(dispute_id)
        return (
            await self.world.contracts.disputes.ballot_of(dispute_id, dispute.draws, self.address)
        ).commitment != ZERO32


@dataclass
class Blind(Seat):
    """Gives one judgement whatever the evidence is, and never looks at it."""

    judgement: Judgement

    async def sit(self, dispute_id, phase):
        verdict = Verdict(dispute_id, self.address, self.judgement, sha256(b"no margins"), sha256(b"salt"))
        disputes = self.world.contracts.disputes
        if phase == DisputePhase.COMMIT and not await self.has_committed(dispute_id):
            await disputes.commit_verdict(self.watcher.sender, verdict)
        elif phase == DisputePhase.REVEAL:
            dispute = await disputes.dispute_of(dispute_id)
            if not (await disputes.ballot_of(dispute_id, dispute.draws, self.address)).judgement:
                await disputes.reveal_verdict(self.watcher.sender, verdict)


@dataclass
class Copying(Seat):
    """Waits for somebody else's commitment and commits to the same; reveals what that one reveals."""

    refused: list = field(default_factory=list)

    async def sit(self, dispute_id, phase):
        disputes = self.world.contracts.disputes
        dispute = await disputes.dispute_of(dispute_id)
        others = [juror for juror in await disputes.jurors_of(dispute_id) if juror != self.address]
        ballots = [await disputes.ballot_of(dispute_id, dispute.draws, juror) for juror in others]
        if phase == DisputePhase.COMMIT and not await self.has_committed(dispute_id):
            seen = next((ballot.commitment for ballot in ballots if ballot.commitment != ZERO32), None)
            if seen is not None:
                await disputes.contract.send(self.watcher.sender, "commitVerdict", dispute_id, seen)
        elif phase == DisputePhase.REVEAL:
            shown = next((ballot for ballot in ballots if ballot.judgement), None)
            if shown is not None:
                verdict = (dispute_id, int(shown.judgement), shown.evidence_root, sha256(b"a salt that it cannot know"))
                try:
                    await disputes.contract.send(self.watcher.sender, "revealVerdict", *verdict)
                except Reverted as error:
                    self.refused.append(error.reason)


@dataclass
class Silent(Seat):
    """Never says anything."""

    async def sit(self, dispute_id, phase):
        """Nothing."""
