"""Sums of rows, and of a row's chunks, times constants: on native tiers, in the way of the tier.

With Galois-field instructions products are as cheap as sums. Without, sums of values (`evaluation`) take half the
look-ups that sums of products take.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deaios.coding.evaluation import build_closings, build_maps, build_pairs
from deaios.coding.kernels.fold import fold
from deaios.coding.kernels.mix import mix
from deaios.coding.kernels.tiers import Tier, get_tier
from deaios.coding.kernels.values import CONSTANTS, fold_values, mix_values
from deaios.coding.tables import build_passes

_ONE = np.array(1, np.uint16)


def sum_rows(
    sources: Sequence[NDArray[np.uint8]], constants: NDArray[np.uint16], targets: Sequence[NDArray[np.uint8]]
) -> None:
    """Let each target be the sum of all sources, each times its constant for that target.

    Args:
        sources: rows of one size, a multiple of 256 bytes, each in one piece.
        constants: (targets, sources).
        targets: rows to write, of the same size, each in one piece.
    """
    if get_tier() == Tier.AVX2:
        mix_values(sources, build_maps(), build_pairs(constants.T), build_closings(_ONE), targets)
    else:
        mix(sources, build_passes(np.ascontiguousarray(constants.T)), targets)


class Folds:
    """Sums over the chunks of rows: group coefficient times sum of block coefficient times chunk, test by test."""

    __slots__ = ("_blocks", "_groups")

    def __init__(self, blocks: NDArray[np.uint16], groups: NDArray[np.uint16]) -> None:
        """Make tables of coefficients: (blocks, tests) and (groups, tests)."""
        self._blocks: NDArray[np.uint8]
        self._groups: NDArray[np.uint8]
        if get_tier() == Tier.AVX2:
            self._blocks = build_pairs(blocks)
            tests = self._blocks.shape[1] * CONSTANTS
            self._groups = build_closings(np.pad(groups, ((0, 0), (0, tests - groups.shape[1]))))
        else:
            self._blocks, self._groups = build_passes(blocks), build_passes(groups)

    def fold(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The sums of each row: (rows, size) to (rows, tests and some more, 64); size = groups * blocks * 64."""
        if get_tier() == Tier.AVX2:
            return fold_values(rows, build_maps(), self._blocks, self._groups)
        return fold(rows, self._blocks, self._groups)
