"""Reed-Solomon rows over GF(2^16), by Leopard's algorithm in the `reed-solomon-leopard` wheel.

The code works column by column on 64-byte chunks, so rows are fed in strips that fit the cache; the strip size never
changes the result. Knows no hashes and no proofs.
"""

from collections.abc import Mapping

import numpy as np
import reed_solomon_leopard
from numpy.typing import NDArray

from deaios.coding.parameters import Profile

ENCODE_STRIP_BYTES = 16 << 10
"""Columns encoded at once: small enough that all strips of a (64, 96) code stay in the second-level cache."""

DECODE_STRIP_BYTES = 64 << 10
"""Columns decoded at once: large enough to hide the decoder's fixed cost of about 0.2 ms."""


def extend_rows(rows: NDArray[np.uint8], profile: Profile) -> None:
    """Fill the recovery rows of a matrix in place.

    Args:
        rows: (n, row_bytes) with the first k rows set; row_bytes is a multiple of 64.
        profile: gives k and n.
    """
    data_rows, size = profile.data_rows, rows.shape[1]
    for start in range(0, size, ENCODE_STRIP_BYTES):
        end = min(size, start + ENCODE_STRIP_BYTES)
        strips = [rows[index, start:end].tobytes() for index in range(data_rows)]
        for index, strip in enumerate(reed_solomon_leopard.encode(strips, profile.rows - data_rows)):
            rows[data_rows + index, start:end] = np.frombuffer(strip, np.uint8)


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
    parts = []
    for start in range(0, size, ENCODE_STRIP_BYTES):
        strips = [row[start : start + ENCODE_STRIP_BYTES].tobytes() for row in data]
        parts.append(bytes(reed_solomon_leopard.encode(strips, profile.rows - data_rows)[index - data_rows]))
    return b"".join(parts)
