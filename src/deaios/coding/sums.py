"""Sums of rows, and of a row's chunks, times constants: on native tiers, in the way of the tier.

With Galois-field instructions products are as cheap as sums. Without, sums of values (`evaluation`) take half the
look-ups that sums of products take.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deaios.coding.evaluation import build_basis, build_closings, build_maps, build_multiples, build_pairs, build_steps
from deaios.coding.kernels.fold import fold
from deaios.coding.kernels.mix import mix
from deaios.coding.kernels.tiers import Tier, get_tier
from deaios.coding.kernels.values import CONSTANTS, ValueFolds, mix_values
from deaios.coding.tables import build_passes

_ONE = np.array(1, np.uint16)
_SINGLE_BITS = (1 << np.arange(16)).astype(np.uint16)


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
    """Sums over the chunks of rows: group coefficient times sum of block coefficient times chunk, test by test.

    Attributes:
        bits: what each bit of a sum's symbols counts, (16,) uint16.
    """

    __slots__ = ("_blocks", "_groups", "_values", "bits")

    def __init__(self, blocks: NDArray[np.uint16], groups: NDArray[np.uint16]) -> None:
        """Make tables of coefficients: (blocks, tests) and (groups, tests)."""
        self._values: ValueFolds | None = None
        if get_tier() == Tier.AVX2:
            pairs = build_pairs(blocks)
            tests = pairs.shape[1] * CONSTANTS
            steps = build_steps(np.pad(groups, ((0, 0), (0, tests - groups.shape[1]))))
            self._values = ValueFolds(build_maps(), pairs, build_multiples(), steps)
            self.bits = build_basis()
        else:
            self.bits = _SINGLE_BITS
            self._blocks, self._groups = build_passes(blocks), build_passes(groups)

    def fold(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The sums of each row: (rows, size) to (rows, tests and some more, 64); size = groups * blocks * 64."""
        if self._values is not None:
            return self._values.fold(rows)
        return fold(rows, self._blocks, self._groups)
