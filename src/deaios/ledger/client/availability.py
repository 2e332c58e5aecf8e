"""Client of `DataAvailability`: committees, certificates that rows are held, challenges and fees.

A certificate is known from its event alone: the contract keeps which seats of it still count, no more. Knows no rows
and no network of those who hold them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deaios.coding.parameters import Parameters, build_committee_profile
from deaios.ledger.abi import Value
from deaios.ledger.client.bound import BoundContract, ContractEvent, Outcome, to_tuple
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.committee import Committee, decode_committee
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.records import InvalidAnswer, TransactionReceipt
from deaios.ledger.structs import RowAttestation
from deaios.primitives.keys import Address

SETTLED_MAX = 16
"""Certificates that one transaction settles."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Two thirds of a committee say that they hold their rows.

    Attributes:
        signers: bit s is seat s, as it was certified; `signers_of` tells which still count.
        seats: how many seats the network has.
        fee: what the payer gave, shared when the term is over.
        block: number of the block that has it.
    """

    attestation: RowAttestation
    root: bytes
    combinations_hash: bytes
    length: int
    signers: int
    fee: int
    payer: Address
    block: int
    seats: int

    @property
    def digest(self) -> bytes:
        """The attestation's digest: what the contract knows the certificate by."""
        return hash_struct(self.attestation)

    @property
    def parameters(self) -> Parameters:
        """Parameters of the coded matrix."""
        return Parameters(build_committee_profile(self.seats), self.length)

    def has_seat(self, seat: int) -> bool:
        """Did the seat sign?"""
        return bool(self.signers >> seat & 1)


@dataclass(frozen=True, slots=True)
class Challenge:
    """Somebody doubts a seat; zero where nobody does. `round` is the beacon's, `deadline` in Unix seconds."""

    challenger: Address
    member: Address
    round: int
    deadline: int

    @property
    def is_open(self) -> bool:
        """Is it still to be answered or finalized?"""
        return self.deadline != 0


@dataclass(frozen=True, slots=True)
class OpenedChallenge:
    """The beginning of a challenge, as its event tells it; `digest` is that of the certificate's attestation."""

    id: bytes
    digest: bytes
    commitment: bytes
    seat: int
    challenger: Address
    member: Address
    round: int
    deadline: int
    block: int


@dataclass(frozen=True, slots=True)
class ChallengeEnd:
    """How a challenge ended: answered; or not, and what was slashed, 0 where the beacon never spoke."""

    is_answered: bool
    slashed: int


class DataAvailability:
    """Epochs from 1; seats and places from 0."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "DataAvailability", address)
        self.address = address
        self._seats: int | None = None

    async def seats(self) -> int:
        """How many seats a committee has; it never changes, and is asked for once."""
        if self._seats is None:
            self._seats = int(await self.contract.read_one("seatCount"))
        return self._seats

    async def current_epoch(self) -> int:
        """The newest epoch; 0 before the first."""
        return int(await self.contract.read_one("currentEpoch"))

    async def committee(self, epoch: int) -> Committee:
        """Who holds which seats in an epoch.

        Raises:
            InvalidCommittee: no such epoch has begun.
        """
        begun, words = await self.contract.read_many([("epochOf", (epoch,)), ("committeeOf", (epoch,))])
        return decode_committee(epoch, int(begun[0]), words[0], await self.seats())

    async def fee_of(self, length: int, term_s: int) -> int:
        """What certifying a blob of so many bytes for so long costs."""
        return int(await self.contract.read_one("feeOf", length, term_s))

    async def signers_of(self, digest: bytes) -> int:
        """Seats of a certificate that still count, bit s for seat s; 0 before certifying and after settling."""
        return int(await self.contract.read_one("signersOf", digest))

    async def challenge_of(self, challenge_id: bytes) -> Challenge:
        """An open challenge."""
        return Challenge(*await self.contract.read("challengeOf", challenge_id))

    async def ends_at(self, challenge_id: bytes) -> int:
        """From when on an open challenge can be finalized, as far as is known now, Unix seconds; 0 when not open."""
        return int(await self.contract.read_one("endsAt", challenge_id))

    async def open_challenges(self, digest: bytes) -> int:
        """How many challenges of a certificate are open; it is settled when there is none."""
        return int(await self.contract.read_one("openChallenges", digest))

    async def picks_of(self, challenge_id: bytes, length: int) -> tuple[int, ...]:
        """Leaves of the challenged row that must be shown; none before the beacon's value, or when it is closed."""
        return tuple(await self.contract.read_one("picksOf", challenge_id, length))

    async def earned_of(self, member: Address) -> int:
        """What a member can withdraw."""
        return int(await self.contract.read_one("earnedOf", member))

    async def deadline(self) -> int:
        """Latest deadline of an open challenge, Unix seconds; 0 if none."""
        return int(await self.contract.read_one("deadline"))

    async def begin_epoch(self, sender: Sender) -> Outcome[int]:
        """Apportion the seats anew; gives the epoch. Anyone may, when the epoch before has lasted its time."""
        receipt = await self.contract.send(sender, "beginEpoch")
        return Outcome(int(self.contract.find_event(receipt, "EpochBegun").values["epoch"]), receipt)

    async def certify(
        self,
        sender: Sender,
        attestation: RowAttestation,
        root: bytes,
        combinations_hash: bytes,
        length: int,
        signatures: Sequence[tuple[int, bytes]],
    ) -> Outcome[Certificate]:
        """Record a certificate; the allowance for the fee comes first.

        Args:
            sender: who pays.
            attestation: what was signed.
            root: of the coded matrix.
            combinations_hash: SHA-256 of its head's `y`.
            length: bytes of the payload.
            signatures: (place in the committee, 65 bytes), places ascending.
        """
        seats, head = await self.seats(), (root, combinations_hash, length)
        receipt = await self.contract.send(sender, "certify", to_tuple(attestation), head, tuple(signatures))
        return Outcome(_read_certificate(self.contract.find_event(receipt, "Certified"), seats), receipt)

    async def challenge(self, sender: Sender, attestation: RowAttestation, seat: int) -> Outcome[bytes]:
        """Doubt a seat that signed; gives the challenge's id. The allowance for the bond comes first."""
        receipt = await self.contract.send(sender, "challenge", to_tuple(attestation), seat)
        return Outcome(bytes(self.contract.find_event(receipt, "Challenged").values["id"]), receipt)

    async def answer(
        self,
        sender: Sender,
        certificate: Certificate,
        seat: int,
        leaves: Sequence[bytes | memoryview],
        paths: Sequence[Sequence[bytes]],
    ) -> TransactionReceipt:
        """Show the picked leaves of a challenged row, in the order of `picks_of`; earns the bond.

        Args:
            sender: who is paid.
            certificate: the one that was doubted.
            seat: the doubted seat.
            leaves: 1 KiB each.
            paths: sibling hashes from each leaf to the root (`coding.matrix.prove_leaf`).
        """
        shown = tuple(bytes(leaf) for leaf in leaves), tuple(tuple(path) for path in paths)
        return await self.contract.send(sender, "answer", *_to_tuples(certificate), seat, *shown)

    async def finalize(self, sender: Sender, challenge_id: bytes) -> Outcome[int]:
        """End a challenge that nobody answered in time; gives what was slashed. Anyone may."""
        receipt = await self.contract.send(sender, "finalize", challenge_id)
        convicted = [event for event in self.contract.decode_logs(receipt.logs) if event.name == "Convicted"]
        return Outcome(int(convicted[0].values["slashed"]) if convicted else 0, receipt)

    async def settle(self, sender: Sender, certificates: Sequence[Certificate]) -> TransactionReceipt:
        """Share the fees of expired certificates of one epoch, at most 16; anyone may."""
        return await self.contract.send(sender, "settle", tuple(_to_tuples(item) for item in certificates))

    async def withdraw(self, sender: Sender) -> Outcome[int]:
        """Take what the sender's seats earned; gives the amount."""
        receipt = await self.contract.send(sender, "withdraw")
        return Outcome(int(self.contract.find_event(receipt, "Withdrawn").values["amount"]), receipt)

    async def fetch_certificates(self, commitment: bytes) -> tuple[Certificate, ...]:
        """All certificates of a blob, oldest first."""
        seats = await self.seats()
        events = await self.contract.fetch_events("Certified", commitment=commitment)
        return tuple(_read_certificate(event, seats) for event in events)

    async def fetch_certified(self, from_block: int, to_block: int | None = None) -> tuple[Certificate, ...]:
        """Certificates of a range of blocks, up to the latest by default, oldest first."""
        seats = await self.seats()
        events = await self.contract.fetch_events("Certified", from_block=from_block, to_block=to_block)
        return tuple(_read_certificate(event, seats) for event in events)

    async def fetch_challenges(self, from_block: int, to_block: int | None = None) -> tuple[OpenedChallenge, ...]:
        """Challenges that began in a range of blocks, open or not, oldest first."""
        events = await self.contract.fetch_events("Challenged", from_block=from_block, to_block=to_block)
        return tuple(_read_challenge(event) for event in events)

    async def fetch_challenges_of(
        self, member: Address, from_block: int = 0, to_block: int | None = None
    ) -> tuple[OpenedChallenge, ...]:
        """Challenges of one member's seats; as `fetch_challenges`."""
        events = await self.contract.fetch_events("Challenged", from_block=from_block, to_block=to_block, member=member)
        return tuple(_read_challenge(event) for event in events)

    async def fetch_end(self, challenge_id: bytes) -> ChallengeEnd | None:
        """How the last challenge of this id ended; None while none did."""
        found: list[ContractEvent] = []
        for name in ("Answered", "Convicted", "Voided"):
            found += await self.contract.fetch_events(name, id=challenge_id)
        if not found:
            return None
        last = max(found, key=lambda event: (event.log.block_number, event.log.log_index))
        return ChallengeEnd(last.name == "Answered", int(last.values.get("slashed", 0)))


def _to_tuples(certificate: Certificate) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Attestation and head as the contract takes them."""
    head = (certificate.root, certificate.combinations_hash, certificate.length)
    return to_tuple(certificate.attestation), head


def _read_challenge(event: ContractEvent) -> OpenedChallenge:
    return OpenedChallenge(**event.values, block=event.log.block_number)


def _read_certificate(event: ContractEvent, seats: int) -> Certificate:
    values = event.values
    attestation = RowAttestation(values["commitment"], values["epoch"], values["beginsAt"], values["expiresAt"])
    if values["signers"] >> seats:
        raise InvalidAnswer(f"certificate of epoch {values['epoch']} is signed by seats beyond {seats}")
    return Certificate(
        attestation=attestation,
        root=values["root"],
        combinations_hash=values["combinationsHash"],
        length=values["length"],
        signers=values["signers"],
        fee=values["fee"],
        payer=values["payer"],
        block=event.log.block_number,
        seats=seats,
    )
