"""Embeddings: what tells their purchases from others, and the one spelling of a vector as words.

A vector is the mean over all positions of the model's last hidden states (after its final norm), scaled to length one
and rounded to float16: what is signed is exactly what the user gets, bit by bit. On the wire, in journals and openings
it lies where an answer's ids lie, as unsigned 32-bit words: the dimension, then two float16 per word. Pure.

Invariant: `EMBEDDING_PARAMS` tell such a purchase from every other. They ask for no token, which no answer's do.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deaios.ledger.structs import GREEDY, TOP_K_OFF, TOP_P_OFF, Params
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.hashing import ZERO32

DIMENSIONS_MAX: Final = 16384
"""Above the width of every model known; half as many words fit every bound on an answer's ids."""
WORDS_MAX: Final = 1 + DIMENSIONS_MAX // 2
LENGTH_TOLERANCE: Final = 0.01
"""How far from one the length of a rounded vector may be; honest ones are within 0.0005."""
EMBEDDING_PARAMS: Final = Params(
    temperature_milli=GREEDY,
    top_k=TOP_K_OFF,
    top_p_milli=TOP_P_OFF,
    max_tokens=0,
    stop_ids=(),
    stop_strings=(),
    mask_hash=ZERO32,
)


class InvalidVector(Invalid):
    """Words that are no vector in its one spelling."""


class RefusedEmbedding(Refused):
    """This engine, or the server behind it, makes no vectors that can be checked."""


def is_embedding(params: Params) -> bool:
    """Is a vector what these parameters ask for?"""
    return params == EMBEDDING_PARAMS


def encode_vector(vector: NDArray[np.float64]) -> tuple[int, ...]:
    """The words of a vector `(dimensions,)` of length one."""
    halves = vector.astype("<f2")
    if len(halves) % 2:
        halves = np.append(halves, np.zeros(1, "<f2"))
    return (len(vector), *halves.view("<u4").tolist())


def decode_vector(words: Sequence[int]) -> NDArray[np.float32]:
    """A vector `(dimensions,) float32` from its words; exact, because float32 holds every float16.

    Raises:
        InvalidVector: another count of words, a number that is not finite, or another length than one.
    """
    dimensions = words[0] if words else 0
    if not 1 <= dimensions <= DIMENSIONS_MAX or len(words) != 1 + (dimensions + 1) // 2:
        raise InvalidVector(f"{len(words)} words are no vector of {dimensions} dimensions")
    if not all(0 <= word < 1 << 32 for word in words):
        raise InvalidVector("a word of a vector has 32 bits")
    halves = np.array(words[1:], "<u4").view("<f2")
    if dimensions % 2 and words[-1] >> 16:
        raise InvalidVector("the half word after the last number is not zero")
    vector = halves[:dimensions].astype(np.float32)
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not abs(length - 1.0) <= LENGTH_TOLERANCE:  # also where it is not a number
        raise InvalidVector(f"the vector's length is {length:.6g}, not 1")
    return vector
