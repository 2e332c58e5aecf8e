"""Room that kernels work in."""

import numpy as np
from numpy.typing import NDArray

LINE_BYTES = 64


def make_aligned(size: int) -> NDArray[np.uint8]:
    """Bytes, not set, that begin with a line of the cache: a vector in two lines costs twice the time."""
    room = np.empty(size + LINE_BYTES, np.uint8)
    return room[-room.ctypes.data % LINE_BYTES :][:size]
