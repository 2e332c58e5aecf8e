#pragma version 0.4.3
"""
@title Draw by stake, without replacement
@notice deaios.ledger.selection is the same in Python; tests hold the two equal.
"""

MEMBERS_MAX: constant(uint256) = 256
JURORS_MAX: constant(uint256) = 64
ADDRESS_BITS: constant(uint256) = 160


@internal
@pure
def draw(
    beacon_value: bytes32, id: uint256, number: uint256, roster: DynArray[uint256, MEMBERS_MAX], count: uint256
) -> DynArray[address, JURORS_MAX]:
    """
    @notice Draw distinct members, each time with the chance of its power among those that are left.
    @param number How many juries were drawn in this dispute before.
    @param roster power << 160 | address; every power is above zero.
    @param count At most the length of the roster and 64.
    """
    pool: DynArray[uint256, MEMBERS_MAX] = roster
    total: uint256 = 0
    for entry: uint256 in pool:
        total += entry >> ADDRESS_BITS
    drawn: DynArray[address, JURORS_MAX] = []
    for seat: uint256 in range(count, bound=JURORS_MAX):
        digest: bytes32 = keccak256(abi_encode("deaios/jury/1", beacon_value, id, number, seat))
        # Powers sum to less than 2^104, so the bias of the remainder is below 2^-152.
        ticket: uint256 = convert(digest, uint256) % total
        for i: uint256 in range(len(pool), bound=MEMBERS_MAX):
            weight: uint256 = pool[i] >> ADDRESS_BITS
            if ticket < weight:
                drawn.append(convert(convert(pool[i] & (2**ADDRESS_BITS - 1), uint160), address))
                total -= weight
                pool[i] = 0
                break
            ticket -= weight
    return drawn
