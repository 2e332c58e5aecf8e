"""Client of `Beacon`: randomness by commit and reveal among auditors."""

from dataclasses import dataclass

from deaios.ledger.client.bound import BoundContract, Outcome
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.commitments import commit_secret
from deaios.ledger.phases import BeaconPhase
from deaios.ledger.records import TransactionReceipt
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import Address


@dataclass(frozen=True, slots=True)
class BeaconRound:
    """The current attempt of a round; deadlines in Unix seconds."""

    attempt: int
    commit_deadline: int
    reveal_deadline: int
    commits: int
    reveals: int


class Beacon:
    """Rounds by number, from 1."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Beacon", address)
        self.address = address

    async def value(self, round_id: int) -> bytes | None:
        """The round's random value; None until it is final."""
        value = bytes(await self.contract.read_one("value", round_id))
        return None if value == ZERO32 else value

    async def phase(self, round_id: int) -> BeaconPhase:
        """Where a round stands now."""
        return BeaconPhase(await self.contract.read_one("phase", round_id))

    async def open_round(self) -> int | None:
        """The round that is not over, if any."""
        return int(await self.contract.read_one("openRound")) or None

    async def pending_rounds(self) -> tuple[int, ...]:
        """Rounds that are not over, the newest first, among the newest 16."""
        return tuple(await self.contract.read_one("pendingRounds"))

    async def round_of(self, round_id: int) -> BeaconRound:
        """A round's attempt, deadlines and counts."""
        return BeaconRound(*await self.contract.read("roundOf", round_id))

    async def deadline(self) -> int:
        """Latest time at which an open round can need a block; 0 if none is open."""
        return int(await self.contract.read_one("deadline"))

    async def is_committed(self, round_id: int, member: Address) -> bool:
        """Has a member committed in the current attempt?"""
        return bool(await self.contract.read_one("committed", round_id, member))

    async def is_revealed(self, round_id: int, member: Address) -> bool:
        """Has a member revealed in the current attempt?"""
        return bool(await self.contract.read_one("revealed", round_id, member))

    async def request(self, sender: Sender) -> Outcome[int]:
        """Ask for randomness; gives the round that will hold it."""
        receipt = await self.contract.send(sender, "request")
        return Outcome(self.contract.find_event(receipt, "Requested").values["round"], receipt)

    async def commit(self, sender: Sender, round_id: int, secret: bytes) -> TransactionReceipt:
        """Commit to a secret, as a member; keep it durably first, because silence is penalised."""
        commitment = commit_secret(round_id, sender.address, secret)
        return await self.contract.send(sender, "commit", round_id, commitment)

    async def reveal(self, sender: Sender, round_id: int, secret: bytes) -> TransactionReceipt:
        """Show the secret."""
        return await self.contract.send(sender, "reveal", round_id, secret)

    async def finalize(self, sender: Sender, round_id: int) -> TransactionReceipt:
        """Go on after a deadline; anyone may."""
        return await self.contract.send(sender, "finalize", round_id)
