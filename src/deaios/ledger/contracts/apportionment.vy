#pragma version 0.4.3
"""
@title Seats by stake: largest remainders, nothing below one seat
@notice deaios.ledger.committee is the same in Python; tests hold the two equal.
"""

MEMBERS_MAX: constant(uint256) = 256
# An index below 256 stands behind each sorted number, turned over so that the earlier one wins a tie.
INDEX_BITS: constant(uint256) = 8
INDEX_MAX: constant(uint256) = 2**INDEX_BITS - 1
# 2^8 members are sorted after eight rounds of merging.
ROUNDS_MAX: constant(uint256) = 8


@internal
@pure
def apportion(powers: DynArray[uint256, MEMBERS_MAX], seats: uint256) -> DynArray[uint256, MEMBERS_MAX]:
    """
    @notice Seats of each power, in the same order: whole quotas first (Hare), then one each to the largest remainders.
    @dev Members below one seat get none: the weakest is left out until what is left of the stake gives it one.
    @param powers Above zero and below 2^96; at least one.
    @param seats 1 to 256.
    """
    ranked: DynArray[uint256, MEMBERS_MAX] = []
    total: uint256 = 0
    for i: uint256 in range(len(powers), bound=MEMBERS_MAX):
        ranked.append((powers[i] << INDEX_BITS) | (INDEX_MAX - i))
        total += powers[i]
    ranked = self.sort_descending(ranked)
    for _: uint256 in range(MEMBERS_MAX):
        weakest: uint256 = ranked[len(ranked) - 1] >> INDEX_BITS
        if weakest * seats >= total:
            break
        total -= weakest
        ranked.pop()
    given: DynArray[uint256, MEMBERS_MAX] = []
    for _: uint256 in powers:
        given.append(0)
    left: uint256 = seats
    remainders: DynArray[uint256, MEMBERS_MAX] = []
    for entry: uint256 in ranked:
        share: uint256 = (entry >> INDEX_BITS) * seats
        quota: uint256 = share // total
        given[INDEX_MAX - (entry & INDEX_MAX)] = quota
        left -= quota
        remainders.append(((share % total) << INDEX_BITS) | (entry & INDEX_MAX))
    remainders = self.sort_descending(remainders)
    for i: uint256 in range(left, bound=MEMBERS_MAX):
        given[INDEX_MAX - (remainders[i] & INDEX_MAX)] += 1
    return given


@internal
@pure
def sort_descending(numbers: DynArray[uint256, MEMBERS_MAX]) -> DynArray[uint256, MEMBERS_MAX]:
    """
    @notice Merge sort from runs of one upwards.
    """
    count: uint256 = len(numbers)
    runs: DynArray[uint256, MEMBERS_MAX] = numbers
    merged: DynArray[uint256, MEMBERS_MAX] = numbers
    width: uint256 = 1
    for _: uint256 in range(ROUNDS_MAX):
        if width >= count:
            break
        left: uint256 = 0
        left_end: uint256 = 0
        right: uint256 = 0
        right_end: uint256 = 0
        for i: uint256 in range(count, bound=MEMBERS_MAX):
            if i == right_end:
                left = i
                left_end = min(i + width, count)
                right = left_end
                right_end = min(i + 2 * width, count)
            if right == right_end or (left < left_end and runs[left] >= runs[right]):
                merged[i] = runs[left]
                left += 1
            else:
                merged[i] = runs[right]
                right += 1
        runs = merged
        width *= 2
    return runs
