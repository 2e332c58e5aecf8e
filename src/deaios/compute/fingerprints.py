"""Fingerprints: what the last layer made of each position, in 18 bytes, comparable between engines of one class.

    leaf   16 int8, then a float16 scale, little-endian: the hidden state before the vocabulary's matrix, projected by a
           fixed matrix of +1 and -1 and rounded; the largest of the 16 is 127 or -127
    root   Merkle root over the leaves under FINGERPRINTS_TAG, one leaf per output id, in order

Pure. Invariant: a distance is a function of the leaf and the checker's own hidden state, and no choice of the scale
makes it smaller. A fingerprint shows that the model read the final text, not that it chose it: only the margins of
`verification` show that. Form after Activation-DiFR; figures in docs/engines.md. Knows nothing of engines or receipts.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deaios.compute.embedding import is_embedding
from deaios.compute.records import NoiseClass
from deaios.ledger.structs import Ask, Level
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32, tagged_sha256
from deaios.primitives.merkle import build_root

FINGERPRINTS_TAG: Final = "deaios/fingerprints/1"
PROJECTION_TAG: Final = "deaios/fingerprint-projection/1"
DIMENSIONS: Final = 16
LEAF_BYTES: Final = DIMENSIONS + 2
LEAVES_MAX: Final = 16384
"""Longest answer with fingerprints: all leaves fit one line of a purchase, sealed too."""
STEPS_MAX: Final = 127
"""Absolute value of the largest rounded number of every leaf, so that nobody can hide behind a coarse scale."""
SCALE_MIN: Final = 2.0**-14
"""Smallest scale: float16 keeps its eleven bits down to here."""
ROUNDING_STEPS: Final = 0.5625
"""How many steps rounding may move a number: a half, and a sixteenth where the rounded scale clips the largest."""
DISTANCES_MAX: Final[Mapping[NoiseClass, float]] = {NoiseClass.FLOAT: 0.005, NoiseClass.QUANTISED: 0.2}
"""Largest distance of one position between honest engines, by the record's class (docs/engines.md)."""

Hidden = NDArray[np.float32]


class InvalidFingerprints(Invalid):
    """Leaves that are no fingerprints of this output, or hidden states that have none."""


def owes_fingerprints(ask: Ask) -> bool:
    """Whether a receipt for this ask names the fingerprints of its ids: whoever asks for level 3 or 4 is owed them."""
    return ask.min_level >= Level.FINGERPRINTED and not is_embedding(ask.params)


def owes_replay(ask: Ask) -> bool:
    """Whether exact replay has to give this ask's ids: whoever asks for level 4 is owed that."""
    return ask.min_level >= Level.REPLAYABLE and not is_embedding(ask.params)


@lru_cache(maxsize=8)
def build_projection(width: int) -> Hidden:
    """The protocol's matrix `(DIMENSIONS, width) float32` of +1 and -1: bits of SHA-256 blocks, high bit first."""
    count = -(-DIMENSIONS * width // 256)
    stream = b"".join(tagged_sha256(PROJECTION_TAG, width.to_bytes(4) + number.to_bytes(4)) for number in range(count))
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))[: DIMENSIONS * width].reshape(DIMENSIONS, width)
    matrix = np.where(bits == 1, np.float32(1), np.float32(-1))
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=8)
def _scaled_projection(width: int) -> NDArray[np.float64]:
    """The same, transposed and divided by the root of the width."""
    matrix = np.ascontiguousarray(build_projection(width).T.astype(np.float64) / np.sqrt(width))
    matrix.flags.writeable = False
    return matrix


def project(hidden: Hidden) -> NDArray[np.float64]:
    """Hidden states `(positions, width)` as `(positions, DIMENSIONS)`, divided by the root of the width.

    In float64, so that the sum's order does not matter to any digit that is kept.
    """
    return np.asarray(hidden.astype(np.float64) @ _scaled_projection(hidden.shape[1]))


def encode_fingerprints(hidden: Hidden) -> bytes:
    """One leaf per hidden state `(positions, width)`, one after another.

    Raises:
        InvalidFingerprints: numbers that are not finite, all zero, or outside what a float16 scale reaches.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = project(hidden)
        scales = (np.abs(values).max(axis=1, initial=0.0) / STEPS_MAX).astype("<f2")
    if not (np.isfinite(values).all() and np.isfinite(scales).all() and (scales >= SCALE_MIN).all()):
        raise InvalidFingerprints("hidden states are not finite, all zero, or too large or small for a fingerprint")
    steps = np.clip(np.rint(values / scales.astype(np.float64)[:, None]), -STEPS_MAX, STEPS_MAX).astype(np.int8)
    return np.concatenate([steps.view(np.uint8), scales.view(np.uint8).reshape(-1, 2)], axis=1).tobytes()


def split_leaves(data: bytes, count: int) -> tuple[bytes, ...]:
    """The leaves of an output of `count` ids.

    Raises:
        InvalidFingerprints: not so many leaves, or one that no encoder makes.
    """
    steps, scales = _read_leaves(data, count)
    well_formed = np.isfinite(scales) & (scales >= SCALE_MIN) & (np.abs(steps).max(axis=1, initial=0) == STEPS_MAX)
    if not well_formed.all():
        place = int(np.argmin(well_formed))
        leaf = data[place * LEAF_BYTES : (place + 1) * LEAF_BYTES]
        raise InvalidFingerprints(f"fingerprint {place} is {leaf.hex()}, which no hidden state gives")
    return tuple(data[place : place + LEAF_BYTES] for place in range(0, len(data), LEAF_BYTES))


def _read_leaves(data: bytes, count: int) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Rounded numbers `(count, DIMENSIONS)` and scales `(count,)`, whatever they are."""
    if not 0 <= count <= LEAVES_MAX or len(data) != count * LEAF_BYTES:
        says = f"{LEAF_BYTES} for each of {count} ids are expected, of {LEAVES_MAX} at most"
        raise InvalidFingerprints(f"{len(data)} bytes of fingerprints, {says}")
    table = np.frombuffer(data, np.uint8).reshape(count, LEAF_BYTES)
    scales = np.ascontiguousarray(table[:, DIMENSIONS:]).view("<f2").reshape(count).astype(np.float64)
    return table[:, :DIMENSIONS].view(np.int8).astype(np.int16), scales


def build_fingerprint_root(data: bytes, count: int) -> bytes:
    """What a receipt's `fingerprintRoot` is, for an output of `count` ids; 32 zero bytes for one without ids.

    Raises:
        InvalidFingerprints: as `split_leaves`.
    """
    leaves = split_leaves(data, count)
    return build_root(FINGERPRINTS_TAG, leaves) if leaves else ZERO32


def measure_distances(data: bytes, hidden: Hidden) -> NDArray[np.float64]:
    """Relative distance of each leaf from the checker's own projection, beyond what rounding alone explains.

    0 is what the same arithmetic gives, 1 is about as far as the leaf of another text.

    Raises:
        InvalidFingerprints: as `split_leaves`.
    """
    split_leaves(data, len(hidden))
    steps, scales = _read_leaves(data, len(hidden))
    own = project(hidden)
    beyond = np.maximum(np.abs(steps * scales[:, None] - own) - ROUNDING_STEPS * scales[:, None], 0.0)
    return np.asarray(np.linalg.norm(beyond, axis=1) / np.linalg.norm(own, axis=1))
