"""The one hot loop of the portable tier, compiled by numba, free of the interpreter's lock.

Importing this module imports numba and loads (or compiles, once per machine) the kernel, so callers import it only when
they have rows to combine. It knows packed words, not the field: tables carry all arithmetic.
"""

import numpy as np
from numba import njit, types, uint64
from numpy.typing import NDArray

LANES = 16
"""Tests done in one pass: sixteen 16-bit lanes in four 64-bit words."""

WORDS = 4


def _combine(
    rows: NDArray[np.uint8],
    low: NDArray[np.uint64],
    high: NDArray[np.uint64],
    blocks: NDArray[np.uint64],
    groups: NDArray[np.uint64],
    out: NDArray[np.uint64],
) -> None:
    """Combine each row's symbols under sixteen coefficient vectors.

    Args:
        rows: (rows, size) uint8; size = groups * blocks * 64.
        low: (32, 256, 4) products of each position's coefficients and each low byte.
        high: (32, 256, 4) the same for high bytes.
        blocks: (blocks, 16, 4) products of each block's coefficients and each single bit.
        groups: (groups, 16, 4) products of each group's coefficients and each single bit.
        out: (rows, 4) the combinations, written.
    """
    ones = uint64(0x0001000100010001)
    full = uint64(0xFFFF)
    block_count = blocks.shape[0]
    for row in range(rows.shape[0]):
        a0 = a1 = a2 = a3 = uint64(0)
        for group in range(groups.shape[0]):
            b0 = b1 = b2 = b3 = uint64(0)
            for block in range(block_count):
                base = (group * block_count + block) * 64
                c0 = c1 = c2 = c3 = uint64(0)
                for position in range(32):
                    x = rows[row, base + position]
                    y = rows[row, base + 32 + position]
                    c0 ^= low[position, x, 0] ^ high[position, y, 0]
                    c1 ^= low[position, x, 1] ^ high[position, y, 1]
                    c2 ^= low[position, x, 2] ^ high[position, y, 2]
                    c3 ^= low[position, x, 3] ^ high[position, y, 3]
                # A product is the sum of the constant's products with the set bits: spread each bit over its lane.
                for bit in range(16):
                    shift = uint64(bit)
                    b0 ^= (((c0 >> shift) & ones) * full) & blocks[block, bit, 0]
                    b1 ^= (((c1 >> shift) & ones) * full) & blocks[block, bit, 1]
                    b2 ^= (((c2 >> shift) & ones) * full) & blocks[block, bit, 2]
                    b3 ^= (((c3 >> shift) & ones) * full) & blocks[block, bit, 3]
            for bit in range(16):
                shift = uint64(bit)
                a0 ^= (((b0 >> shift) & ones) * full) & groups[group, bit, 0]
                a1 ^= (((b1 >> shift) & ones) * full) & groups[group, bit, 1]
                a2 ^= (((b2 >> shift) & ones) * full) & groups[group, bit, 2]
                a3 ^= (((b3 >> shift) & ones) * full) & groups[group, bit, 3]
        out[row, 0] = a0
        out[row, 1] = a1
        out[row, 2] = a2
        out[row, 3] = a3


_TABLE = types.Array(types.uint64, 3, "C")
_SIGNATURE = types.void(
    types.Array(types.uint8, 2, "C", readonly=True),
    _TABLE,
    _TABLE,
    _TABLE,
    _TABLE,
    types.Array(types.uint64, 2, "C"),
)


def _compile() -> object:
    try:
        return njit(_SIGNATURE, nogil=True, cache=True)(_combine)
    except RuntimeError:  # numba's word for "nowhere to write the cache": a read-only installation
        return njit(_SIGNATURE, nogil=True)(_combine)


combine = _compile()
