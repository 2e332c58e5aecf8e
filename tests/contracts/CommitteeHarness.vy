#pragma version 0.4.3
"""
@title Apportionment and the tree over rows, callable by tests
"""
import apportionment
import rowtree


@external
@pure
def apportion(powers: DynArray[uint256, 256], seats: uint256) -> DynArray[uint256, 256]:
    """
    @notice As apportionment.apportion.
    """
    return apportionment.apportion(powers, seats)


@external
@pure
def sort_descending(numbers: DynArray[uint256, 256]) -> DynArray[uint256, 256]:
    """
    @notice As apportionment.sort_descending.
    """
    return apportionment.sort_descending(numbers)


@external
@pure
def leaves_per_row(length: uint256, data_rows: uint256) -> uint256:
    """
    @notice As rowtree.leaves_per_row.
    """
    return rowtree.leaves_per_row(length, data_rows)


@external
@pure
def depths(length: uint256, data_rows: uint256, rows: uint256) -> (uint256, uint256):
    """
    @notice Depth inside a row and above the rows.
    """
    return rowtree.depth_of(rowtree.leaves_per_row(length, data_rows)), rowtree.depth_of(rows)


@external
@pure
def path_max() -> uint256:
    """
    @notice As rowtree.PATH_MAX.
    """
    return rowtree.PATH_MAX
