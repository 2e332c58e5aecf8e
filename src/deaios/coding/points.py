"""Where rows stand as evaluations of one polynomial: why any k are enough, and which sums restore the others.

Leopard's code is a Reed-Solomon code over points that are the first elements of the field in the Cantor basis, so a
point is its own number and the difference of two is their exclusive or. With as many data as recovery rows, counted up
to a power of two, both layouts below give the same rows; otherwise the wheel's choice is the one here. Held against the
wheel by tests. Source: Lin, Chung, Han: Novel Polynomial Basis and Its Application to Reed-Solomon Erasure Codes, 2014.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deaios.coding.field import MODULUS, build_tables
from deaios.coding.parameters import Profile


@dataclass(frozen=True, slots=True)
class Points:
    """Points of a code.

    Attributes:
        rows: of row 0 to n - 1.
        zeros: where the polynomial is zero, because the number of data rows is no power of two.
        width: of the transforms that lead from data rows to recovery rows.
        data_parts: first points of the parts of `width` data rows.
        recovery_parts: the same of the recovery rows.
    """

    rows: tuple[int, ...]
    zeros: tuple[int, ...]
    width: int
    data_parts: tuple[int, ...]
    recovery_parts: tuple[int, ...]


@lru_cache(maxsize=64)
def find_points(profile: Profile) -> Points:
    """Points of a profile's rows."""
    data, recovery = profile.data_rows, profile.rows - profile.data_rows
    data_width, recovery_width = (1 << (count - 1).bit_length() for count in (data, recovery))
    if data_width < recovery_width:
        rows = (*range(data), *range(data_width, data_width + recovery))
        parts = tuple(range(data_width, data_width + recovery, data_width))
        return Points(rows, tuple(range(data, data_width)), data_width, (0,), parts)
    end = recovery_width + data
    return Points(
        rows=(*range(recovery_width, end), *range(recovery)),
        zeros=tuple(range(end, 1 << (end - 1).bit_length())),
        width=recovery_width,
        data_parts=tuple(range(recovery_width, end, recovery_width)),
        recovery_parts=(0,),
    )


def list_twists(width: int, first: int) -> list[NDArray[np.uint16]]:
    """Constants of a transform over the points from `first` on, by layer upwards, in each by run.

    A layer's constant is the vanishing polynomial of the subspace below it at the run's first point. Over a Cantor
    basis that polynomial shifts a point's number to the right.
    """
    return [
        np.array([first + start >> layer for start in range(0, width, 2 << layer)], np.uint16)
        for layer in range(width.bit_length() - 1)
    ]


def compute_constants(profile: Profile, targets: Sequence[int], known: Sequence[int]) -> NDArray[np.uint16]:
    """Constants by which rows follow from k others (Lagrange).

    Args:
        profile: of the code.
        targets: indices of the wanted rows.
        known: indices of k other rows.

    Returns:
        (targets, k) uint16.
    """
    assert len(known) == profile.data_rows
    assert not set(targets) & set(known)
    points = find_points(profile)
    nodes = np.array([*(points.rows[index] for index in known), *points.zeros])
    wanted = np.array([points.rows[index] for index in targets])[:, None]
    log, exp = build_tables()
    between = log[nodes[:, None] ^ nodes[None, :]]
    np.fill_diagonal(between, 0)
    to_nodes = log[wanted ^ nodes[None, :]]
    powers = to_nodes.sum(axis=1, keepdims=True) - to_nodes - between.sum(axis=1)[None, :]
    constants: NDArray[np.uint16] = exp[powers % MODULUS][:, : len(known)]
    return constants
