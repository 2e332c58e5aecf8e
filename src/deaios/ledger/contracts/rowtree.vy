#pragma version 0.4.3
"""
@title The tree over a coded matrix, and the commitment to it
@notice deaios.coding.tree and deaios.coding.head are the same in Python; docs/spec/coding.md is the format.
"""

LEAF_BYTES: constant(uint256) = 1024
# The longest path of any committee of 3 to 256 seats over 64 MiB.
PATH_MAX: constant(uint256) = 19
COUNT_BITS_MAX: constant(uint256) = 16


@internal
@pure
def hash_commitment(
    root: bytes32, combinations_hash: bytes32, data_rows: uint256, rows: uint256, length: uint64
) -> bytes32:
    """
    @notice The 32 bytes that name a matrix.
    """
    return sha256(
        concat(
            b"deaios/code/1",
            root,
            combinations_hash,
            convert(convert(data_rows, uint16), bytes2),
            convert(convert(rows, uint16), bytes2),
            convert(length, bytes8),
        )
    )


@internal
@pure
def leaves_per_row(length: uint256, data_rows: uint256) -> uint256:
    """
    @notice How many leaves each row has: as few as hold the payload in the data rows.
    """
    part: uint256 = LEAF_BYTES * data_rows
    return (length + part - 1) // part


@internal
@pure
def depth_of(count: uint256) -> uint256:
    """
    @notice Length of a path in a tree over so many leaves, at most 2^16.
    """
    for depth: uint256 in range(COUNT_BITS_MAX):
        if 2**depth >= count:
            return depth
    return COUNT_BITS_MAX


@internal
@pure
def root_of(
    leaf: Bytes[LEAF_BYTES], index: uint256, depth: uint256, row: uint256, path: DynArray[bytes32, PATH_MAX]
) -> bytes32:
    """
    @notice The root that a leaf leads to.
    @param depth How much of the path lies inside the row; the path is longer.
    """
    node: bytes32 = sha256(concat(leaf, b"\x00"))
    position: uint256 = index
    for i: uint256 in range(len(path), bound=PATH_MAX):
        if i == depth:
            node = sha256(concat(node, b"\x02"))
            position = row
        if position % 2 == 1:
            node = sha256(concat(path[i], node, b"\x01"))
        else:
            node = sha256(concat(node, path[i], b"\x01"))
        position //= 2
    return sha256(concat(node, b"\x03"))
