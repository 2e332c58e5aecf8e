"""GF(2^16) as Leopard represents it: 16 bits over a Cantor basis, and how its symbols lie in bytes.

Random combinations of columns commute with the Reed-Solomon code only in this representation; the polynomial basis of
the same field does not. Knows nothing of rows, trees or proofs. Source of the constants: catid/leopard (BSD licence),
LeopardFF16.cpp, `kPolynomial` and `kCantorBasis`.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

ORDER = 1 << 16
MODULUS = ORDER - 1
POLYNOMIAL = 0x1002D
CANTOR_BASIS = (
    0x0001, 0xACCA, 0x3C0E, 0x163E, 0xC582, 0xED2E, 0x914C, 0x4012,
    0x6C98, 0x10D8, 0x6A72, 0xB900, 0xFDB8, 0xFB34, 0xFF38, 0x991E,
)  # fmt: skip

CHUNK_BYTES = 64
"""Symbols lie in chunks of 64 bytes: 32 low bytes, then 32 high bytes."""

SYMBOLS_PER_CHUNK = 32


@cache
def build_tables() -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Logarithms by element, and elements by logarithm, repeated so that a sum of two logarithms needs no modulus.

    Zero has a logarithm so large that every sum with it is that of zero.

    Returns:
        `log` (65536,), `exp` (262141,).
    """
    power_of = np.zeros(ORDER, np.int64)
    state = 1
    for exponent in range(MODULUS):
        power_of[state] = exponent
        state <<= 1
        if state >= ORDER:
            state ^= POLYNOMIAL
    element = np.zeros(ORDER, np.int64)
    for bit, basis in enumerate(CANTOR_BASIS):
        width = 1 << bit
        element[width : 2 * width] = element[:width] ^ basis
    log = power_of[element]
    exp = np.zeros(MODULUS, np.uint16)
    exp[log[1:]] = np.arange(1, ORDER)
    log[0] = 2 * MODULUS
    return log, np.concatenate([exp, exp, np.zeros(2 * MODULUS + 1, np.uint16)])


def multiply(left: NDArray[np.uint16], right: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Elementwise product, broadcasting as NumPy does."""
    log, exp = build_tables()
    product: NDArray[np.uint16] = exp[log[left] + log[right]]
    return product


def pack_symbols(symbols: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Symbols to bytes, chunk by chunk.

    Args:
        symbols: (rows, count) with count a multiple of 32.

    Returns:
        (rows, 2 * count) uint8.
    """
    rows, count = symbols.shape
    chunks = symbols.reshape(rows, count // SYMBOLS_PER_CHUNK, SYMBOLS_PER_CHUNK)
    packed = np.empty((rows, count // SYMBOLS_PER_CHUNK, 2, SYMBOLS_PER_CHUNK), np.uint8)
    packed[:, :, 0] = chunks & 0xFF
    packed[:, :, 1] = chunks >> 8
    return packed.reshape(rows, 2 * count)


def unpack_symbols(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Bytes to symbols: the inverse of `pack_symbols`."""
    rows, size_bytes = data.shape
    chunks = data.reshape(rows, size_bytes // CHUNK_BYTES, 2, SYMBOLS_PER_CHUNK).astype(np.uint16)
    return (chunks[:, :, 0] | (chunks[:, :, 1] << np.uint16(8))).reshape(rows, size_bytes // 2)
