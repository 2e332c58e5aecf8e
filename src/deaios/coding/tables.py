"""Tables of field constants for the kernels of this process's tier.

A table depends on its constant bit by bit, so that of any constant is the sum of two that are kept, one for each byte.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from deaios.coding.field import multiply
from deaios.coding.kernels.multipliers import TABLE_BYTES, GaloisMultiplier
from deaios.coding.kernels.tiers import get_multiplier

_SINGLE_BITS = (1 << np.arange(16)).astype(np.uint16)


def build_tables(constants: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Tables of constants: (...) to (..., 128), on a native tier."""
    low, high = _build_byte_tables()
    tables: NDArray[np.uint8] = low[constants & 0xFF] ^ high[constants >> 8]
    return tables


def build_passes(constants: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Tables for sums with Galois-field instructions: (size, count) to (passes, size, constants in a pass, 128).

    The last pass is filled with zeros.
    """
    size, count = constants.shape
    width = GaloisMultiplier.constants
    passes = -(-count // width)
    padded = np.zeros((size, passes * width), np.uint16)
    padded[:, :count] = constants
    return build_tables(np.ascontiguousarray(padded.reshape(size, passes, width).swapaxes(0, 1)))


@cache
def _build_byte_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Tables of all constants with only a low byte, and with only a high byte: (256, 128) each."""
    multiplier = get_multiplier()
    assert multiplier is not None, "the portable tier has no tables"
    bits = multiplier.build_tables(multiply(_SINGLE_BITS[:, None], _SINGLE_BITS))
    halves = []
    for half in (bits[:8], bits[8:]):
        tables = np.zeros((256, TABLE_BYTES), np.uint8)
        for bit, table in enumerate(half):
            width = 1 << bit
            tables[width : 2 * width] = tables[:width] ^ table
        halves.append(tables)
    return halves[0], halves[1]


@cache
def build_bases() -> NDArray[np.uint8]:
    """Tables of the changes to and from the basis in which a symbol is two elements of GF(256): (2, 2, 2, 16).

    A symbol is x + y t with x and y in GF(256), the first 256 elements, and t the first element outside of it. Its high
    byte depends on y alone. Tables say what is added to the low byte, and what the high byte becomes, by its low and
    its high half.
    """
    products = multiply(np.arange(256, dtype=np.uint16), np.array(256, np.uint16))
    low, high = (products & 0xFF).astype(np.uint8), (products >> 8).astype(np.uint8)
    back = np.argsort(high).astype(np.uint8)
    changes = np.array([[low[back], back], [low, high]])
    halves = (changes[..., :16], changes[..., ::16])
    return np.ascontiguousarray(np.stack(halves, axis=2))
