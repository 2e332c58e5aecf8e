"""Reed-Solomon rows over GF(2^16), bit for bit as Leopard's algorithm gives them.

On native tiers all recovery rows come from transforms, and single ones are sums of k others times constants, which
costs the more the more rows are wanted. Single rows of sampled codes, and everything on the portable tier, are the
`reed-solomon-leopard` wheel's work, in strips that fit the cache. Knows no hashes and no proofs.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import reed_solomon_leopard
from numpy.typing import NDArray

from deaios.coding.kernels.tiers import Tier, get_multiplier, get_tier
from deaios.coding.kernels.transform import transform
from deaios.coding.parameters import Profile
from deaios.coding.points import compute_constants, find_points, list_twists
from deaios.coding.sums import sum_rows
from deaios.coding.tables import build_bases, build_tables

ENCODE_STRIP_BYTES = 16 << 10
"""Columns encoded at once: small enough that all strips of a (64, 96) code stay in the second-level cache."""

DECODE_STRIP_BYTES = 64 << 10
"""Columns decoded at once: large enough to hide the decoder's fixed cost of about 0.2 ms."""

SMALL = 256
"""Elements of GF(256) are those below."""

ALIGNED_BYTES = 256
"""Rows are a multiple of this."""


def extend_rows(data: NDArray[np.uint8], recovery: NDArray[np.uint8], profile: Profile) -> None:
    """Fill the recovery rows of a matrix in place.

    Args:
        data: (k, row_bytes), row_bytes a multiple of 256.
        recovery: (n - k, row_bytes), where the others are written.
        profile: gives k and n.
    """
    if get_multiplier() is not None:
        inverse, forward, bases = _build_encoder(profile)
        transform(data, recovery, inverse, forward, bases)
        return
    size = data.shape[1]
    for start in range(0, size, ENCODE_STRIP_BYTES):
        end = min(size, start + ENCODE_STRIP_BYTES)
        strips = [row[start:end].tobytes() for row in data]
        for index, strip in enumerate(reed_solomon_leopard.encode(strips, len(recovery))):
            recovery[index, start:end] = np.frombuffer(strip, np.uint8)


def restore_rows(
    target: NDArray[np.uint8], known: Mapping[int, NDArray[np.uint8]], missing: list[int], profile: Profile
) -> None:
    """Compute missing data rows in place from any k known rows.

    Args:
        target: (k, row_bytes), where the missing data rows are written.
        known: exactly k rows by index, data and recovery rows.
        missing: data row indices that `known` lacks.
        profile: gives k and n.
    """
    data_rows, size = profile.data_rows, target.shape[1]
    if _is_summed(profile):
        constants = compute_constants(profile, missing, list(known))
        sum_rows(list(known.values()), constants, [target[index] for index in missing])
        return
    for start in range(0, size, DECODE_STRIP_BYTES):
        end = min(size, start + DECODE_STRIP_BYTES)
        original = {index: row[start:end].tobytes() for index, row in known.items() if index < data_rows}
        recovery = {index - data_rows: row[start:end].tobytes() for index, row in known.items() if index >= data_rows}
        restored = reed_solomon_leopard.decode(data_rows, profile.rows - data_rows, original, recovery)
        for index in missing:
            target[index, start:end] = np.frombuffer(restored[index], np.uint8)


def encode_row(data: NDArray[np.uint8], index: int, profile: Profile) -> bytes:
    """One recovery row of a matrix from all its data rows.

    Args:
        data: (k, row_bytes).
        index: of the wanted row, k to n - 1.
        profile: gives k and n.
    """
    data_rows, size = profile.data_rows, data.shape[1]
    if _is_summed(profile):
        row = np.empty(size, np.uint8)
        sum_rows(list(data), compute_constants(profile, [index], range(data_rows)), [row])
        return row.tobytes()
    parts = []
    for start in range(0, size, ENCODE_STRIP_BYTES):
        strips = [row[start : start + ENCODE_STRIP_BYTES].tobytes() for row in data]
        parts.append(bytes(reed_solomon_leopard.encode(strips, profile.rows - data_rows)[index - data_rows]))
    return b"".join(parts)


def _is_summed(profile: Profile) -> bool:
    """Are single rows made as sums of k others here? Of a sampled code that would take time and memory in k squared."""
    return get_multiplier() is not None and not profile.is_sampled


@lru_cache(maxsize=8)
def _build_encoder(profile: Profile) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Tables of the transforms of all parts: of the data rows, upwards, and of the recovery rows, downwards.

    And of the basis, if in another one the constants are cheaper.
    """
    points = find_points(profile)
    inverse = [list_twists(points.width, first) for first in points.data_parts]
    forward = [list_twists(points.width, first)[::-1] for first in points.recovery_parts]
    both = [
        np.array([np.concatenate([np.zeros(0, np.uint16), *layers]) for layers in parts])
        for parts in (inverse, forward)
    ]
    is_small = get_tier() == Tier.AVX2 and all((twists < SMALL).all() for twists in both)
    return build_tables(both[0]), build_tables(both[1]), build_bases() if is_small else None
