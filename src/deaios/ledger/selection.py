"""Draw of juries by stake, equal to `ledger/contracts/selection.vy` to the last bit.

With it anyone can recompute from the beacon's value and the frozen roster who sits on a jury. It does not know who is
eligible: the contract freezes the roster when it asks the beacon, and `Disputes.snapshotOf` shows it.
"""

from collections.abc import Sequence

from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ADDRESS_SIZE, Address

ROSTER_MAX = 256
"""SharedStaking seats at most this many members per service."""
JURORS_MAX = 64
APPEAL_FACTOR = 2
"""An appeal draws this many times the first jury, and one more."""
_ADDRESS_BITS = 8 * ADDRESS_SIZE
_POWER_BITS = 96
_TAG = b"deaios/jury/1"


class InvalidRoster(Invalid):
    """A roster or count that the contract could not have drawn from."""


def decode_snapshot(words: Sequence[int]) -> tuple[tuple[Address, int], ...]:
    """Read what `Disputes.snapshotOf` gives: words of power << 160 | address."""
    return tuple(
        (Address((word & ((1 << _ADDRESS_BITS) - 1)).to_bytes(ADDRESS_SIZE)), word >> _ADDRESS_BITS) for word in words
    )


def draw_jury(
    beacon_value: bytes, dispute_id: int, number: int, roster: Sequence[tuple[Address, int]], count: int
) -> tuple[Address, ...]:
    """Draw distinct members, each time with the chance of its power among those that are left.

    Args:
        beacon_value: 32 bytes.
        dispute_id: the dispute's id.
        number: how many juries were drawn in this dispute before.
        roster: (member, power) in the order of the snapshot; every power is above zero.
        count: how many jurors.

    Raises:
        InvalidRoster: more jurors than members, or a size or power out of range.
    """
    if not 0 <= count <= min(len(roster), JURORS_MAX) or len(roster) > ROSTER_MAX:
        raise InvalidRoster(f"{count} jurors from {len(roster)} members; at most {JURORS_MAX} from {ROSTER_MAX}")
    if any(not 0 < power < 1 << _POWER_BITS for _, power in roster):
        raise InvalidRoster(f"a power is outside 1 to 2^{_POWER_BITS} - 1")
    weights = [power for _, power in roster]
    jurors = []
    for seat in range(count):
        ticket = int.from_bytes(keccak256(_encode_ticket(beacon_value, dispute_id, number, seat))) % sum(weights)
        for index, weight in enumerate(weights):
            if ticket < weight:
                jurors.append(roster[index][0])
                weights[index] = 0
                break
            ticket -= weight
    return tuple(jurors)


def _encode_ticket(beacon_value: bytes, dispute_id: int, number: int, seat: int) -> bytes:
    """abi.encode(string, bytes32, uint256, uint256, uint256): the string's offset comes first, its bytes last."""
    head = (5 * 32).to_bytes(32) + beacon_value + b"".join(item.to_bytes(32) for item in (dispute_id, number, seat))
    return head + len(_TAG).to_bytes(32) + _TAG.ljust(32, b"\0")


def jury_size(jury_size_first: int, eligible: int, *, appealed: bool) -> int:
    """How many jurors a draw seats: the first size, or 2k + 1 for an appeal, where so many are eligible."""
    return min(APPEAL_FACTOR * jury_size_first + 1, eligible) if appealed else jury_size_first


def quorum(jurors: int) -> int:
    """Equal judgements needed for a verdict: two thirds of the jury, rounded up."""
    return -(-2 * jurors // 3)
