"""Random linear combinations of a matrix's columns, with coefficients drawn from its root (Fiat-Shamir).

The symbol in group g, 64-byte block b, quarter q, place l has the coefficient r1[b] r2[g] r3[q] r4[l] in each test: a
product of four levels, so that set-up stays small and each test misses a fault with probability at most 4 / 2^16. The
layout is frozen in docs/spec/coding.md; every kernel gives the same bits.
"""

from typing import Protocol

import blake3
import numpy as np
from numpy.typing import NDArray

from deaios.coding.field import CHUNK_BYTES, SYMBOLS_PER_CHUNK, multiply
from deaios.coding.kernels.combine import LANES, combine
from deaios.coding.kernels.tiers import get_multiplier
from deaios.coding.kernels.weigh import Weights
from deaios.coding.parameters import Parameters
from deaios.coding.sums import Folds
from deaios.primitives.hashing import sha256

SEED_TAG = b"deaios/code/seed/1"
BLOCKS_MAX = 64
"""Blocks in a group: the largest divisor of a row's block count up to this."""

QUARTERS = 4
PLACES = 8
_SINGLE_BITS = (1 << np.arange(16)).astype(np.uint16)


def compute_geometry(row_bytes: int) -> tuple[int, int]:
    """Blocks in a group and groups in a row.

    The first is the largest divisor of the row's number of 64-byte blocks that is at most 64.
    """
    count = row_bytes // CHUNK_BYTES
    blocks = next(size for size in range(min(BLOCKS_MAX, count), 0, -1) if count % size == 0)
    return blocks, count // blocks


def draw_coefficients(root: bytes, parameters: Parameters) -> tuple[NDArray[np.uint16], ...]:
    """Coefficients of all tests, from root and parameters alone.

    Returns:
        r1 (blocks, tests), r2 (groups, tests), r3 (4, tests), r4 (8, tests).
    """
    blocks, groups = compute_geometry(parameters.row_bytes)
    tests = parameters.profile.tests
    sizes = (blocks, groups, QUARTERS, PLACES)
    seed = sha256(SEED_TAG + root + parameters.encode())
    stream = np.frombuffer(blake3.blake3(seed).digest(length=2 * tests * sum(sizes)), "<u2").astype(np.uint16)
    levels = []
    start = 0
    for size in sizes:
        levels.append(stream[start : start + size * tests].reshape(size, tests))
        start += size * tests
    return tuple(levels)


class Combiner:
    """The tests of one matrix, ready to run on any of its rows."""

    __slots__ = ("_work",)

    def __init__(self, root: bytes, parameters: Parameters) -> None:
        r1, r2, r3, r4 = draw_coefficients(root, parameters)
        places = multiply(r3[:, None, :], r4[None, :, :]).reshape(SYMBOLS_PER_CHUNK, -1)
        self._work: _Work = (_LookUps if get_multiplier() is None else _Chunks)(r1, r2, places)

    def combine(self, rows: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Combinations of each row.

        Args:
            rows: (count, row_bytes) uint8, C order.

        Returns:
            (count, tests) uint16.
        """
        return self._work.combine(rows)


class _Work(Protocol):
    def combine(self, rows: NDArray[np.uint8]) -> NDArray[np.uint16]: ...


class _Chunks:
    """Native tiers: whole chunks times constants; the 32 symbols that are left of each row and test are few."""

    __slots__ = ("_folds", "_weights")

    def __init__(self, r1: NDArray[np.uint16], r2: NDArray[np.uint16], places: NDArray[np.uint16]) -> None:
        self._folds = Folds(r1, r2)
        self._weights = Weights(multiply(places.T[:, None, :], self._folds.bits[:, None]))

    def combine(self, rows: NDArray[np.uint8]) -> NDArray[np.uint16]:
        return self._weights.weigh(self._folds.fold(rows))


class _LookUps:
    """The portable tier: all tests of a pass side by side, each byte of a row one look-up."""

    __slots__ = ("_passes", "_tests")

    def __init__(self, r1: NDArray[np.uint16], r2: NDArray[np.uint16], places: NDArray[np.uint16]) -> None:
        self._tests = tests = r1.shape[1]
        lanes = next((lanes for lanes in LANES if lanes >= tests), LANES[-1])
        self._passes = [
            _Tables(r1[:, first : first + lanes], r2[:, first : first + lanes], places[:, first : first + lanes], lanes)
            for first in range(0, tests, lanes)
        ]

    def combine(self, rows: NDArray[np.uint8]) -> NDArray[np.uint16]:
        parts = [combine(rows, tables.low, tables.high, tables.blocks, tables.groups) for tables in self._passes]
        return np.concatenate(parts, axis=1)[:, : self._tests]


class _Tables:
    """Products of one pass's coefficients, all its tests side by side."""

    __slots__ = ("blocks", "groups", "high", "low")

    def __init__(self, r1: NDArray[np.uint16], r2: NDArray[np.uint16], places: NDArray[np.uint16], lanes: int) -> None:
        self.blocks = _bit_products(r1, lanes)
        self.groups = _bit_products(r2, lanes)
        bits = _bit_products(places, lanes)
        self.low = _byte_products(bits[:, :8])
        self.high = _byte_products(bits[:, 8:])


def _bit_products(coefficients: NDArray[np.uint16], lanes: int) -> NDArray[np.uint16]:
    """Products of each coefficient and each single bit: (size, tests) to (size, 16, lanes)."""
    size, tests = coefficients.shape
    products = np.zeros((size, 16, lanes), np.uint16)
    products[:, :, :tests] = multiply(coefficients[:, None, :], _SINGLE_BITS[None, :, None])
    return products


def _byte_products(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Products of each coefficient and each byte, from those with its eight bits: (size, 8, n) to (size, 256, n)."""
    size, _, lanes = bits.shape
    products = np.zeros((size, 256, lanes), np.uint16)
    for bit in range(8):
        width = 1 << bit
        products[:, width : 2 * width] = products[:, :width] ^ bits[:, bit : bit + 1]
    return products
