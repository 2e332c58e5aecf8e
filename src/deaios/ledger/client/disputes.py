"""Client of `Disputes`: juries over single receipts."""

from dataclasses import dataclass

from deaios.ledger.client.bound import BoundContract, Outcome, to_tuple
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.commitments import commit_evidence
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.phases import Decision, DisputePhase
from deaios.ledger.records import TransactionReceipt
from deaios.ledger.structs import Judgement, Receipt, Request, Verdict
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute as the contract shows it; fields and order as in docs/contracts.md, times in Unix seconds."""

    accuser: Address
    provider: Address
    buyer: Address
    authorizer: Address
    receipt_digest: bytes
    evidence_root: bytes
    evidence_manifest: bytes
    fee: int
    bond: int
    appellant: Address
    appeal_bond: int
    opened_at: int
    round: int
    draws: int
    redrawn: bool
    commit_deadline: int
    reveal_deadline: int
    appeal_deadline: int
    jurors: int
    commits: int
    reveals: int
    guilty: int
    acquit: int
    stage: int
    verdict: int
    first_verdict: int
    slashed: int
    refunded: int
    bounty: int
    burned: int

    @property
    def decision(self) -> Decision:
        """The verdict as it stands."""
        return Decision(self.verdict)


@dataclass(frozen=True, slots=True)
class Ballot:
    """A juror's part in one draw; zero where it has not acted."""

    commitment: bytes
    judgement: int
    evidence_root: bytes


@dataclass(frozen=True, slots=True)
class DisputeSettings:
    """The contract's parameters."""

    jury_size: int
    open_blocks: int
    commit_seconds: int
    reveal_seconds: int
    appeal_seconds: int
    bond: int
    appeal_bond: int
    slash_floor: int
    juror_fee: int
    juror_penalty: int


class Disputes:
    """Disputes by id, from 1."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Disputes", address)
        self.address = address

    async def dispute_count(self) -> int:
        """How many were opened; ids are 1 to this."""
        return int(await self.contract.read_one("disputeCount"))

    async def dispute_of(self, dispute_id: int) -> Dispute:
        """All that the contract shows of a dispute."""
        return Dispute(*await self.contract.read_one("disputeOf", dispute_id))

    async def phase_of(self, dispute_id: int) -> DisputePhase:
        """Where a dispute stands now."""
        return DisputePhase(await self.contract.read_one("phaseOf", dispute_id))

    async def jurors_of(self, dispute_id: int) -> tuple[Address, ...]:
        """The jury as it sits."""
        return tuple(await self.contract.read_one("jurorsOf", dispute_id))

    async def jury_at(self, dispute_id: int, draw: int) -> tuple[Address, ...]:
        """The jury of one draw, from 1; the last one is `Dispute.draws`."""
        return tuple(await self.contract.read_one("juryAt", dispute_id, draw))

    async def ballot_of(self, dispute_id: int, draw: int, juror: Address) -> Ballot:
        """What a juror committed and revealed in a draw, numbered as in `jury_at`."""
        return Ballot(*await self.contract.read("ballotOf", dispute_id, draw, juror))

    async def is_paused(self, provider: Address) -> bool:
        """Does an open dispute pause a provider's offer?"""
        return bool(await self.contract.read_one("isPaused", provider))

    async def deadline(self) -> int:
        """Latest deadline of any open dispute, Unix seconds; 0 if none."""
        return int(await self.contract.read_one("deadline"))

    async def bond_of(self, receipt_digest: bytes) -> int:
        """What opening a dispute about a receipt costs until it is won; 0 allowance is not enough."""
        return int(await self.contract.read_one("bondOf", receipt_digest))

    async def open_dispute_of(self, receipt_digest: bytes) -> int | None:
        """The dispute about a receipt, if there is one."""
        return int(await self.contract.read_one("openDisputeOf", receipt_digest)) or None

    async def is_convicted(self, receipt_digest: bytes) -> bool:
        """Was a receipt found guilty, for good?"""
        return bool(await self.contract.read_one("convicted", receipt_digest))

    async def settings(self) -> DisputeSettings:
        """The contract's parameters."""
        return DisputeSettings(*await self.contract.read_one("settings"))

    async def request_digest(self, request: Request) -> bytes:
        """A request's digest as the contract computes it."""
        return bytes(await self.contract.read_one("requestDigest", to_tuple(request)))

    async def receipt_digest(self, receipt: Receipt) -> bytes:
        """A receipt's digest as the contract computes it."""
        return bytes(await self.contract.read_one("receiptDigest", to_tuple(receipt)))

    async def domain_separator(self) -> bytes:
        """The protocol domain's separator as the contract computes it."""
        return bytes(await self.contract.read_one("domainSeparator"))

    async def commit_evidence(self, sender: Sender, evidence_root: bytes, salt: bytes) -> TransactionReceipt:
        """Commit to evidence, at least one block before `open`."""
        commitment = commit_evidence(sender.address, evidence_root, salt)
        return await self.contract.send(sender, "commitEvidence", commitment)

    async def open(
        self,
        sender: Sender,
        request: Request,
        request_signature: bytes,
        receipt: Receipt,
        receipt_signature: bytes,
        evidence_root: bytes,
        evidence_manifest: bytes,
        salt: bytes,
    ) -> Outcome[int]:
        """Open a dispute about a receipt; gives its id. The token's allowance for `bond_of` comes first."""
        result = await self.contract.send(
            sender,
            "open",
            to_tuple(request),
            request_signature,
            to_tuple(receipt),
            receipt_signature,
            evidence_root,
            evidence_manifest,
            salt,
        )
        return Outcome(self.contract.find_event(result, "Opened").values["id"], result)

    async def draw(self, sender: Sender, dispute_id: int) -> TransactionReceipt:
        """Draw the jury, when the beacon has spoken; anyone may."""
        return await self.contract.send(sender, "draw", dispute_id)

    async def commit_verdict(self, sender: Sender, verdict: Verdict) -> TransactionReceipt:
        """Commit to a verdict, as a juror; keep it durably first, because silence is penalised."""
        return await self.contract.send(sender, "commitVerdict", verdict.dispute_id, hash_struct(verdict))

    async def reveal_verdict(self, sender: Sender, verdict: Verdict) -> TransactionReceipt:
        """Show the verdict."""
        judgement = Judgement(verdict.judgement)
        return await self.contract.send(
            sender, "revealVerdict", verdict.dispute_id, int(judgement), verdict.evidence_root, verdict.salt
        )

    async def tally(self, sender: Sender, dispute_id: int) -> TransactionReceipt:
        """Count the verdicts, when all are in or time is up; anyone may."""
        return await self.contract.send(sender, "tally", dispute_id)

    async def appeal(self, sender: Sender, dispute_id: int) -> TransactionReceipt:
        """Ask for a larger jury, as the loser, once; the allowance for the appeal bond comes first."""
        return await self.contract.send(sender, "appeal", dispute_id)

    async def finalize(self, sender: Sender, dispute_id: int) -> TransactionReceipt:
        """Carry out the verdict, after the appeal window; anyone may."""
        return await self.contract.send(sender, "finalize", dispute_id)
