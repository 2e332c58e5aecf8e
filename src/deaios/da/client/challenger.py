"""Call a member to account: bet a bond that it cannot show the row that its seat signed for."""

from dataclasses import dataclass

from deaios.ledger.client.availability import Certificate
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.client.sender import Sender
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock
from deaios.runtime.errors import NotFound

POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Bet:
    """An open challenge: its id, and who is asked."""

    id: bytes
    member: Address


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a challenge ended.

    Attributes:
        member: who was asked.
        is_answered: the leaves were shown, and the bond paid for it.
        slashed: what the member lost; 0 with no answer means that the beacon never spoke, and the bond came back.
    """

    member: Address
    is_answered: bool
    slashed: int


class Challenger:
    """Challenges for one key, which lays down the bonds."""

    def __init__(self, contracts: Contracts, sender: Sender, bond: int, clock: Clock) -> None:
        self._contracts = contracts
        self._availability = contracts.availability
        self._settled = contracts.settled.availability
        self._sender = sender
        self._bond = bond
        self._clock = clock

    async def open(self, certificate: Certificate, seat: int) -> Bet:
        """Challenge a seat.

        Raises:
            NotFound: the seat did not sign.
            Reverted: the term is over, the seat was convicted before, or a challenge of it is open.
        """
        if not certificate.has_seat(seat):
            raise NotFound(f"seat {seat} did not sign this certificate")
        await self._contracts.credit.ensure_allowance(self._sender, self._availability.address, self._bond)
        outcome = await self._availability.challenge(self._sender, certificate.attestation, seat)
        committee = await self._availability.committee(certificate.attestation.epoch)
        return Bet(outcome.value, committee.owner_of(seat).address)

    async def wait(self, bet: Bet) -> Verdict:
        """Wait for the answer, or for the deadline and then finalize."""
        while True:
            ends_at = await self._settled.ends_at(bet.id)
            if ends_at == 0:
                end = await self._settled.fetch_end(bet.id)
                assert end is not None, "a challenge that is not open has ended"
                return Verdict(bet.member, end.is_answered, end.slashed)
            block = await self._contracts.rpc.fetch_latest()
            if max(block.timestamp, self._clock.now_ms() // 1000) >= ends_at:
                try:
                    outcome = await self._availability.finalize(self._sender, bet.id)
                except Reverted:  # answered or finalized by others meanwhile, or the chain's clock is a little behind
                    await self._clock.sleep(POLL_S)
                    continue
                return Verdict(bet.member, is_answered=False, slashed=outcome.value)
            await self._clock.sleep(POLL_S)
