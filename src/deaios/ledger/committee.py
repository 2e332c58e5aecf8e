"""Committees of the `da` service: seats by stake, equal to `ledger/contracts/apportionment.vy` to the last bit.

One seat is one row of every blob and one vote. With this anyone can recompute a committee from the roster, and read
the one that the DataAvailability contract keeps. It does not know whether a member answers.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from deaios.coding.parameters import Profile, build_committee_profile
from deaios.ledger.settings import SEATS_MAX, SEATS_MIN
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import ADDRESS_SIZE, Address

MEMBERS_MAX = 256
"""SharedStaking seats at most this many members per service."""
_POWER_BITS = 96
_ADDRESS_BITS = 8 * ADDRESS_SIZE
_FIRST_SEAT_SHIFT = _ADDRESS_BITS
_SEATS_SHIFT = 176
_FIELD_MASK = (1 << 16) - 1


class InvalidCommittee(Invalid):
    """Powers, or words of a committee, that the contract cannot hold."""


@dataclass(frozen=True, slots=True)
class CommitteeMember:
    """A member and its seats, which lie side by side."""

    address: Address
    first_seat: int
    seats: int

    @property
    def rows(self) -> range:
        """The seats, each the index of a row."""
        return range(self.first_seat, self.first_seat + self.seats)


@dataclass(frozen=True, slots=True)
class Committee:
    """Who holds which rows in an epoch; `begun_at` in Unix seconds. A member's place is its index in `members`."""

    epoch: int
    begun_at: int
    members: tuple[CommitteeMember, ...]
    seats: int

    @property
    def quorum(self) -> int:
        """Seats that must sign: two thirds, rounded up."""
        return -(-2 * self.seats // 3)

    @property
    def profile(self) -> Profile:
        """The code whose rows are this committee's seats."""
        return build_committee_profile(self.seats)

    def owner_of(self, seat: int) -> CommitteeMember:
        """Who holds a seat.

        Raises:
            InvalidCommittee: there is no such seat.
        """
        if not 0 <= seat < self.seats:
            raise InvalidCommittee(f"seat {seat} outside {self.seats} seats")
        return self.members[bisect_right(self.members, seat, key=lambda member: member.first_seat) - 1]

    def find_place(self, address: Address) -> int | None:
        """A member's place; None for who has no seat."""
        return next((place for place, member in enumerate(self.members) if member.address == address), None)


def apportion(powers: Sequence[int], seats: int) -> tuple[int, ...]:
    """Seats of each power, in the same order: whole quotas first (Hare), then one each to the largest remainders.

    Members below one seat get none: the weakest, of equals the last, is left out until what is left of the stake gives
    it one. Of equal remainders the first gets the seat.

    Args:
        powers: 1 to 2^96 - 1 each, 1 to 256 of them.
        seats: how many there are to give, 3 to 256.

    Raises:
        InvalidCommittee: anything out of range.
    """
    if not 0 < len(powers) <= MEMBERS_MAX or not SEATS_MIN <= seats <= SEATS_MAX:
        raise InvalidCommittee(
            f"{seats} seats for {len(powers)} members; {SEATS_MIN} to {SEATS_MAX} for 1 to {MEMBERS_MAX} allowed"
        )
    if any(not 0 < power < 1 << _POWER_BITS for power in powers):
        raise InvalidCommittee(f"a power is outside 1 to 2^{_POWER_BITS} - 1")
    kept = sorted(range(len(powers)), key=lambda index: -powers[index])
    total = sum(powers)
    while powers[kept[-1]] * seats < total:
        total -= powers[kept.pop()]
    given = [0] * len(powers)
    for index in kept:
        given[index] = powers[index] * seats // total
    by_remainder = sorted(kept, key=lambda index: (-(powers[index] * seats % total), index))
    for index in by_remainder[: seats - sum(given)]:
        given[index] += 1
    return tuple(given)


def build_committee(epoch: int, begun_at: int, roster: Sequence[tuple[Address, int]], seats: int) -> Committee:
    """The committee that the contract lays out: seated members in the roster's order, turned by the epoch's number.

    Args:
        epoch: its number, from 1.
        begun_at: Unix seconds.
        roster: (member, power) in the order of SharedStaking.
        seats: how many seats the network has.

    Raises:
        InvalidCommittee: as `apportion`.
    """
    given = apportion([power for _, power in roster], seats)
    seated = [(address, count) for (address, _), count in zip(roster, given, strict=True) if count]
    turn = epoch % len(seated)
    members, first = [], 0
    for address, count in seated[turn:] + seated[:turn]:
        members.append(CommitteeMember(address, first, count))
        first += count
    return Committee(epoch, begun_at, tuple(members), seats)


def decode_committee(epoch: int, begun_at: int, words: Sequence[int], seats: int) -> Committee:
    """Read what `DataAvailability.committeeOf` gives: words of address | first seat << 160 | seats << 176.

    Raises:
        InvalidCommittee: the seats do not follow one another, or are not as many as the network has.
    """
    members, first = [], 0
    for word in words:
        member = CommitteeMember(
            Address((word & ((1 << _ADDRESS_BITS) - 1)).to_bytes(ADDRESS_SIZE)),
            (word >> _FIRST_SEAT_SHIFT) & _FIELD_MASK,
            word >> _SEATS_SHIFT,
        )
        if member.first_seat != first or member.seats == 0:
            raise InvalidCommittee(f"{member.seats} seats from {member.first_seat} on, seats from {first} on expected")
        members.append(member)
        first += member.seats
    if first != seats:
        raise InvalidCommittee(f"members have {first} seats, {seats} expected")
    return Committee(epoch, begun_at, tuple(members), seats)
