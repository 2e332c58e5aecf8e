"""Read what was made available: certificate from the chain, rows from members, trust in none of them.

Data rows come first, since they need no decoding; a member that is slow gets company, one that fails or lies is asked
last from then on. Every row is verified before it is used. What cannot be had is said row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from deaios.coding.matrix import decode
from deaios.coding.parameters import Parameters
from deaios.da.client.committees import Committees, Roster
from deaios.da.dispersal import order_rows
from deaios.da.sampling import RANDOMNESS_BYTES, compute_confidence, count_samples, draw_rows
from deaios.ledger.client.availability import Certificate
from deaios.ledger.client.contracts import Contracts
from deaios.primitives.encoding import encode_hex
from deaios.rows.attempts import Attempt
from deaios.rows.client import UnavailableRows
from deaios.rows.message import RowChecker, RowMessage, compute_message_bytes
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.errors import NotFound, UnavailableGone

EPSILON = Fraction(1, 10**9)
"""Chance that a light client takes a lost blob for available."""


class UnavailableExpired(UnavailableGone):
    """The term is over; members may have let the rows go."""


@dataclass(slots=True)
class Sample:
    """What a light client saw of one matrix.

    Attributes:
        rows: that were had and verified.
        missing: that were asked for and not had, with the reason.
        received_bytes: what the rows took on the wire.
        is_available: enough rows were verified for the wanted confidence.
        confidence: of this claim, from the rows that were had; 1 where they suffice to decode.
    """

    certificate: Certificate
    rows: list[int] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)
    received_bytes: int = 0
    is_available: bool = False
    confidence: Fraction = Fraction(0)


class Reader:
    """Reads matrices by commitment."""

    def __init__(self, contracts: Contracts, committees: Committees, clock: Clock, dice: Dice) -> None:
        self._contracts = contracts
        self._committees = committees
        self._clock = clock
        self._dice = dice

    async def fetch_certificate(self, commitment: bytes) -> Certificate:
        """The certificate with the longest term.

        Raises:
            NotFound: the chain has none.
            UnavailableExpired: none is in force any more.
        """
        found = await self._contracts.availability.fetch_certificates(commitment)
        if not found:
            raise NotFound(f"no certificate of {encode_hex(commitment)} is on chain")
        newest = max(found, key=lambda item: item.attestation.expires_at)
        now_s = self._clock.now_ms() // 1000
        if newest.attestation.expires_at <= now_s:
            raise UnavailableExpired(
                f"{encode_hex(commitment)} was kept until {newest.attestation.expires_at}, it is {now_s} now"
            )
        return newest

    async def fetch_payload(self, certificate: Certificate) -> memoryview:
        """The payload from the first k rows that verify.

        Raises:
            UnavailableRows: too few can be had now; says which were, and why each other one was not.
        """
        rows = await self.fetch_rows(certificate)
        roster = await self._committees.fetch(certificate.attestation.epoch)
        return await roster.nodes.run(
            lambda: decode(certificate.parameters, {index: message.row for index, message in rows.items()})
        )

    async def fetch_rows(self, certificate: Certificate, avoid: Sequence[int] = ()) -> dict[int, RowMessage]:
        """Any k verified rows, those of some members (by place) not at all.

        Raises:
            UnavailableRows: as `fetch_payload`.
        """
        roster = await self._committees.fetch(certificate.attestation.epoch)
        committee, profile = roster.committee, certificate.parameters.profile
        ranges = {
            place: range(member.first_seat, member.first_seat + member.seats)
            for place, member in enumerate(committee.members)
            if place not in avoid
        }
        order = order_rows(ranges, profile.data_rows, roster.demoted)
        return await self._collect(roster, certificate, roster.order_attempts(order), profile.data_rows)

    async def sample(self, certificate: Certificate, epsilon: Fraction = EPSILON) -> Sample:
        """Take random rows until a lost matrix would have been noticed but for a chance of `epsilon`.

        Rows that cannot be had are not held against the matrix: others are drawn, and as soon as k rows are verified
        the payload is there for certain.
        """
        roster = await self._committees.fetch(certificate.attestation.epoch)
        profile = certificate.parameters.profile
        wanted = count_samples(profile, epsilon)
        sample = Sample(certificate)
        size = compute_message_bytes(certificate.parameters)
        for row in draw_rows(self._dice.token_bytes(RANDOMNESS_BYTES), profile.rows, profile.rows):
            place = roster.committee.members.index(roster.committee.owner_of(row))
            attempts = roster.order_attempts([(row, place)])
            try:
                if not attempts:
                    raise UnavailableRows("its member has no URL")
                await self._collect(roster, certificate, attempts, 1)
            except UnavailableRows as error:
                sample.missing[row] = str(error)
                wanted = profile.data_rows  # what fails is chosen by nobody at random: only certainty counts now
            else:
                sample.rows.append(row)
                sample.received_bytes += size
            if len(sample.rows) >= wanted:
                break
        sample.is_available = len(sample.rows) >= wanted
        sample.confidence = _confide(certificate.parameters, sample)
        return sample

    async def _collect(
        self, roster: Roster, certificate: Certificate, attempts: Sequence[Attempt], needed: int
    ) -> dict[int, RowMessage]:
        commitment, parameters = certificate.attestation.commitment, certificate.parameters
        return await roster.nodes.collect(
            lambda row: f"/rows/{encode_hex(commitment)}/{row}",
            attempts,
            needed,
            compute_message_bytes(parameters),
            RowChecker(commitment, parameters).check,
        )


def _confide(parameters: Parameters, sample: Sample) -> Fraction:
    if len(sample.rows) >= parameters.profile.data_rows:
        return Fraction(1)
    return Fraction(0) if sample.missing else compute_confidence(parameters.profile, len(sample.rows))
