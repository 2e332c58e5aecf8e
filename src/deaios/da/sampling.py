"""How many rows a light client takes to see that a blob can be decoded, and which ones. Exact, in integers.

A blob is lost when fewer than k of its n rows can be had. The worst case is k - 1 of them: s distinct rows drawn
without the holders knowing are then all there with probability C(k-1, s) / C(n, s). Knows no rows and no dice: the
client brings fresh randomness that nobody else has, because holders who know the draw could serve just these rows.
"""

from bisect import bisect_left
from fractions import Fraction
from math import comb

import blake3

from deaios.coding.parameters import ROWS_MAX, Profile
from deaios.primitives.errors import Invalid

RANDOMNESS_BYTES = 32

REJECTIONS_MAX = 64
"""Words that may be drawn anew. Less than one is, on average, and 65 are with a chance below 1 / 65!."""

_TAG = b"deaios/sample/1"
_WORD_BYTES = 4
_WORDS = 1 << 8 * _WORD_BYTES


class InvalidSample(Invalid):
    """A sample that cannot be taken: more rows than there are, or a confidence that no sample gives."""


def compute_confidence(profile: Profile, samples: int) -> Fraction:
    """Least probability to notice that the rows at hand are fewer than the data rows, from distinct random rows.

    Raises:
        InvalidSample: more samples than rows.
    """
    _validate_count(profile.rows, samples)
    return 1 - Fraction(comb(profile.data_rows - 1, samples), comb(profile.rows, samples))


def count_samples(profile: Profile, epsilon: Fraction) -> int:
    """Fewest samples that miss a lost blob with a probability of at most `epsilon`; `data_rows` of them miss none.

    Raises:
        InvalidSample: epsilon is below 0 or not below 1.
    """
    if not 0 <= epsilon < 1:
        raise InvalidSample(f"epsilon is {epsilon}; 0 to below 1 allowed")
    candidates = range(profile.data_rows + 1)
    return bisect_left(candidates, 1 - epsilon, key=lambda samples: compute_confidence(profile, samples))


def draw_rows(randomness: bytes, rows: int, count: int) -> tuple[int, ...]:
    """Distinct rows in the order to ask for them; all orders are equally likely.

    Args:
        randomness: 32 fresh secret bytes.
        rows: of the matrix.
        count: how many of them to draw.

    Raises:
        InvalidSample: randomness of another size, or a count that does not fit.
    """
    if len(randomness) != RANDOMNESS_BYTES:
        raise InvalidSample(f"randomness has {len(randomness)} bytes, {RANDOMNESS_BYTES} expected")
    _validate_count(rows, count)
    stream = blake3.blake3(_TAG + randomness).digest(length=_WORD_BYTES * (count + REJECTIONS_MAX))
    words = iter(range(0, len(stream), _WORD_BYTES))
    # Fisher-Yates; only the places that were swapped are kept.
    moved: dict[int, int] = {}
    drawn = []
    for place in range(count):
        left = rows - place
        limit = _WORDS - _WORDS % left
        word = next(word for at in words if (word := int.from_bytes(stream[at : at + _WORD_BYTES])) < limit)
        other = place + word % left
        drawn.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return tuple(drawn)


def _validate_count(rows: int, count: int) -> None:
    if not 0 <= count <= rows <= ROWS_MAX:
        raise InvalidSample(f"{count} of {rows} rows; 0 to all of at most {ROWS_MAX} allowed")
