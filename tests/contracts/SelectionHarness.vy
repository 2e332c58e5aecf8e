#pragma version 0.4.3
"""
@title The jury draw, callable by tests
"""
import selection


@external
@pure
def draw(
    beacon_value: bytes32, id: uint256, number: uint256, roster: DynArray[uint256, 256], count: uint256
) -> DynArray[address, 64]:
    """
    @notice As selection.draw.
    """
    return selection.draw(beacon_value, id, number, roster, count)
