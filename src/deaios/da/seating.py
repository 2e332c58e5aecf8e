"""Which rows a member of the committee takes, and which attestations it may sign. Pure."""

from dataclasses import dataclass

from deaios.coding.parameters import Parameters
from deaios.ledger.committee import Committee, CommitteeMember
from deaios.ledger.structs import RowAttestation
from deaios.primitives.errors import Refused
from deaios.primitives.keys import Address

BEGIN_S_MAX = 600
"""How far the begin of a term may lie from a member's clock, in either direction."""


class RefusedRow(Refused):
    """A row that is another seat's, or of another committee's code."""


class RefusedTerm(Refused):
    """A term outside what the network or this clock allows, or of an epoch that is over."""


@dataclass(frozen=True, slots=True)
class Seating:
    """One member's view of the committees that rows may be addressed to now.

    Attributes:
        me: the member.
        committees: the current epoch's first, the one before it next.
        term_s_max: longest term of the network.
    """

    me: Address
    committees: tuple[Committee, ...]
    term_s_max: int

    def find_seat(self, epoch: int) -> tuple[int, CommitteeMember] | None:
        """Own place and seats in an epoch's committee; None without a seat or for another epoch."""
        for committee in self.committees:
            if committee.epoch == epoch:
                for place, member in enumerate(committee.members):
                    if member.address == self.me:
                        return place, member
        return None

    def validate_row(self, parameters: Parameters, index: int) -> None:
        """May this row be left here?

        Raises:
            RefusedRow: no committee of now has such a code, or the row is another seat's.
        """
        owners = []
        for committee in self.committees:
            if committee.profile == parameters.profile:
                owner = committee.owner_of(index)
                if owner.address == self.me:
                    return
                owners.append(f"0x{owner.address.hex()} in epoch {committee.epoch}")
        if owners:
            raise RefusedRow(f"row {index} belongs to {', '.join(owners)}, not to 0x{self.me.hex()}")
        raise RefusedRow(f"no committee of now codes as {parameters.profile}")

    def validate_attestation(self, attestation: RowAttestation, now_s: int) -> tuple[int, CommitteeMember]:
        """May this be signed, as far as time and seats go?

        Returns:
            Own place in the epoch's committee, and the seats.

        Raises:
            RefusedTerm: says which rule is broken, with both values.
        """
        seat = self.find_seat(attestation.epoch)
        if seat is None:
            raise RefusedTerm(f"0x{self.me.hex()} has no seat in epoch {attestation.epoch}, or that epoch is over")
        if abs(attestation.begins_at - now_s) > BEGIN_S_MAX:
            raise RefusedTerm(
                f"term begins at {attestation.begins_at}, the clock here says {now_s}; {BEGIN_S_MAX} s apart at most"
            )
        term_s = attestation.expires_at - attestation.begins_at
        if attestation.expires_at <= now_s or term_s > self.term_s_max:
            raise RefusedTerm(
                f"term of {term_s} s that ends at {attestation.expires_at}; it is {now_s} now, and at most "
                f"{self.term_s_max} s are kept"
            )
        return seat
