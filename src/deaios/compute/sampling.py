"""Seeded sampling and its check: which token the public noise picks, and how far a claimed token is from that pick.

Everything is a pure function of (logits row, params, seed, position); no state is carried between positions, so any
position can be recomputed alone. Frozen: docs/spec/sampling.md with vectors in docs/spec/sampling.json. Knows nothing
of text, engines or requests.

Sources: Gumbel-max sampling with a shared seed, DiFR (arXiv 2511.20621); Philox4x64-10, Salmon et al., SC 2011.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import (
    GREEDY,
    MAX_TOKENS_LIMIT,
    STOPS_MAX,
    TEMPERATURE_MILLI_MAX,
    TOP_K_OFF,
    TOP_P_OFF,
    Ask,
    Params,
)
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.units import MILLI

SEED_DOMAIN = b"deaios/seed/1"
SEED_SIZE = 32
STOP_STRING_BYTES_MAX = 256
"""Longest stop string in UTF-8; it bounds how much text an answer may hold back."""
VOCABULARY_MAX = 1 << 20
"""More token ids than any known model has; bounds the noise drawn per position."""
POSITION_MAX = 1 << 32

_UNIFORM_STEP = 1.0 / (1 << 24)
GUMBEL_MAX = -math.log(-math.log(1.0 - 0.5 * _UNIFORM_STEP))
"""Largest value the noise can take (about 17.33): no token gains more than temperature times this."""

Row = NDArray[np.float32]
"""Logits of one position, `(vocabulary,) float32`."""
Mask = NDArray[np.bool_]
"""Which ids are allowed, `(vocabulary,) bool`."""


class InvalidParams(Invalid):
    """Sampling parameters outside the protocol's bounds."""


class InvalidLogits(Invalid):
    """A logits row with a number that is not finite: the model or its engine is broken."""


class Rule(StrEnum):
    """What a margin was measured against, or which check a violation broke."""

    GREEDY = "greedy"
    """Temperature 0: the highest logit."""
    SEEDED = "seeded"
    """The highest logit plus temperature times noise."""
    TOP_K = "top_k"
    """The token is outside the top_k set by more than the edge allows."""
    TOP_P = "top_p"
    """The token is outside the nucleus by more than the edge allows."""
    MASK = "mask"
    """The mask forbids the token; a mask has no edge."""
    VOCABULARY = "vocabulary"
    """No such token id."""
    VECTOR = "vector"
    """An embedding is farther from the checker's own than honest arithmetic explains, or is no vector."""
    FINGERPRINT = "fingerprint"
    """A fingerprint is farther from the checker's own than honest arithmetic explains."""
    REPLAY = "replay"
    """Exact replay on the engine that the receipt names gives another id."""
    FINISH = "finish"
    """The output ends, or goes on, where the finish rules say otherwise."""
    LENGTH = "length"
    """More ids than the ask or the context allows."""


@dataclass(frozen=True, slots=True)
class Margin:
    """How many logits a claimed token is from the honest pick; 0.0 is the pick itself, infinity can never be one."""

    margin: float
    rule: Rule


def seed_of(ask: Ask) -> bytes:
    """The 32-byte seed of an ask: nothing in it is the provider's to choose."""
    return sha256(SEED_DOMAIN + hash_struct(ask))


def validate_params(params: Params) -> None:
    """Check the protocol's bounds, which the struct's integer types do not know.

    Raises:
        InvalidParams: names the parameter, its value and the bound.
    """
    if params.temperature_milli > TEMPERATURE_MILLI_MAX:
        raise InvalidParams(f"temperature_milli is {params.temperature_milli}, at most {TEMPERATURE_MILLI_MAX} allowed")
    if not 1 <= params.top_p_milli <= TOP_P_OFF:
        raise InvalidParams(f"top_p_milli is {params.top_p_milli}, 1 to {TOP_P_OFF} allowed")
    if params.top_k > VOCABULARY_MAX:
        raise InvalidParams(f"top_k is {params.top_k}, at most {VOCABULARY_MAX} allowed")
    if not 1 <= params.max_tokens <= MAX_TOKENS_LIMIT:
        raise InvalidParams(f"max_tokens is {params.max_tokens}, 1 to {MAX_TOKENS_LIMIT} allowed")
    if len(params.stop_ids) > STOPS_MAX or len(params.stop_strings) > STOPS_MAX:
        raise InvalidParams(
            f"{len(params.stop_ids)} stop ids and {len(params.stop_strings)} stop strings, at most {STOPS_MAX} of each"
        )
    for text in params.stop_strings:
        if not 1 <= len(text.encode()) <= STOP_STRING_BYTES_MAX:
            raise InvalidParams(f"stop string of {len(text.encode())} bytes, 1 to {STOP_STRING_BYTES_MAX} allowed")


def validate_mask_hash(params: Params, mask_hash: bytes | None) -> None:
    """Check that the masks at hand are those that the parameters name.

    Args:
        params: of the ask.
        mask_hash: what the masks stand for; None for none.

    Raises:
        InvalidParams: they name other masks, or none.
    """
    found = ZERO32 if mask_hash is None else mask_hash
    if params.mask_hash != found:
        raise InvalidParams(f"mask_hash is 0x{params.mask_hash.hex()}, the masks at hand are 0x{found.hex()}")


def draw_words(seed: bytes, position: int, count: int) -> NDArray[np.uint32]:
    """One 32-bit word per token id, `(count,) uint32`.

    Philox4x64-10 under the key (seed[0:8], seed[8:16]), both little-endian; block b has the counter (b + 1, 0, 0,
    position) and gives the words of ids 8b to 8b + 7, low half of each 64-bit lane first.
    """
    assert len(seed) == SEED_SIZE
    assert 0 <= position <= POSITION_MAX
    assert 0 < count <= VOCABULARY_MAX
    key = np.frombuffer(seed[:16], "<u8").astype(np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, 0, position], np.uint64))
    lanes: NDArray[np.uint64] = philox.random_raw((count + 1) // 2)
    return lanes.astype("<u8", copy=False).view("<u4")[:count].astype(np.uint32, copy=False)


def gumbel_of(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Standard Gumbel noise from words: their upper 24 bits are a uniform at the middle of its step."""
    uniform = ((words >> np.uint32(8)).astype(np.float64) + 0.5) * _UNIFORM_STEP
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def sample(logits: Row, params: Params, seed: bytes, position: int, mask: Mask | None = None) -> int:
    """The token that the seed picks at an absolute position (prompt and output counted together, from 0).

    Raises:
        InvalidLogits: a number is not finite.
    """
    rivals = _Rivals.of(logits, mask)
    if params.temperature_milli == GREEDY:
        return rivals.highest()
    temperature = params.temperature_milli / MILLI
    words = draw_words(seed, position, logits.size)
    rivals = rivals.at_least(_top_k_edge(rivals.row, params.top_k))
    nucleus = _Nucleus.of(rivals.row, params) if params.top_p_milli < TOP_P_OFF else None
    pick, _ = rivals.noised_highest(words, temperature)
    if nucleus is None or nucleus.holds(float(logits[pick])):
        return pick
    # The nucleus is closed upwards: the winner among all, when it is inside, is the winner within.
    pick, _ = rivals.at_least(nucleus.lowest()).noised_highest(words, temperature)
    return pick


def score(
    logits: Row, params: Params, seed: bytes, position: int, token: int, epsilon: float, mask: Mask | None = None
) -> Margin:
    """How far `token` is from the pick, over every row that differs from `logits` by at most `epsilon` at the filters.

    A token that some such row keeps counts as kept when it is the claimed one, and a rival that some such row drops
    counts as dropped; so an honest token at a top_k or top_p edge has the margin of the reading that favours it.

    Args:
        logits: the checker's own row.
        params: as the ask has them.
        seed: of the ask.
        position: absolute, as in `sample`.
        token: the claimed id.
        epsilon: largest honest difference of one logit, from the model record.
        mask: allowed ids; exact, because no logit enters it.
    """
    rivals = _Rivals.of(logits, mask)
    if not 0 <= token < logits.size:
        return Margin(math.inf, Rule.VOCABULARY)
    if mask is not None and not mask[token]:
        return Margin(math.inf, Rule.MASK)
    own = float(logits[token])
    if params.temperature_milli == GREEDY:
        return Margin(float(rivals.row.max()) - own, Rule.GREEDY)
    temperature = params.temperature_milli / MILLI
    words = draw_words(seed, position, logits.size)
    has_filters = TOP_K_OFF < params.top_k < rivals.row.size or params.top_p_milli < TOP_P_OFF
    filters = _Filters(rivals.row, params, epsilon) if has_filters else None
    own_score = own + temperature * float(gumbel_of(words[token : token + 1])[0])
    margin = max(0.0, _best_certain_score(filters, rivals, words, temperature) - own_score)
    outside = filters.distance_outside(own) if filters is not None else None
    if outside is None:
        return Margin(margin, Rule.SEEDED)
    rule, distance = outside
    return Margin(max(margin, distance), rule)


def _best_certain_score(
    filters: "_Filters | None", rivals: "_Rivals", words: NDArray[np.uint32], temperature: float
) -> float:
    """Highest noised score among tokens that every row within epsilon keeps; minus infinity when there is none."""
    pick, best = rivals.noised_highest(words, temperature)
    if filters is None or filters.is_certain(float(rivals.logits[pick])):
        return best
    # Certainty grows with the logit, so the pick and all below it are out, and the lowest certain logit is a bisection.
    higher = np.sort(rivals.above(float(rivals.logits[pick])).row)
    first = bisect_left(higher, True, key=lambda logit: filters.is_certain(float(logit)))
    if first == higher.size:
        return -math.inf
    _, best = rivals.at_least(float(higher[first])).noised_highest(words, temperature)
    return best


@dataclass(frozen=True, slots=True)
class _Rivals:
    """The tokens that may still win: `row` holds their logits, `ids` their ids, or None when it is all of them."""

    logits: Row
    row: Row
    ids: NDArray[np.intp] | None

    @staticmethod
    def of(logits: Row, mask: Mask | None) -> "_Rivals":
        if not np.isfinite(logits).all():
            raise InvalidLogits("a logits row holds a number that is not finite")
        if mask is None:
            return _Rivals(logits, logits, None)
        assert mask.shape == logits.shape
        assert mask.any()
        ids = np.flatnonzero(mask)
        return _Rivals(logits, logits[ids], ids)

    def above(self, logit: float) -> "_Rivals":
        """Those with a higher logit."""
        return self._pick(self.row > np.float32(logit))

    def at_least(self, logit: float) -> "_Rivals":
        """Those with this logit or a higher one."""
        return self if logit == -math.inf else self._pick(self.row >= np.float32(logit))

    def _pick(self, keep: Mask) -> "_Rivals":
        places = np.flatnonzero(keep)
        return _Rivals(self.logits, self.row[places], places if self.ids is None else self.ids[places])

    def highest(self) -> int:
        """The id of the highest logit; the lowest such id."""
        place = int(np.argmax(self.row))
        return place if self.ids is None else int(self.ids[place])

    def noised_highest(self, words: NDArray[np.uint32], temperature: float) -> tuple[int, float]:
        """The id with the highest logit plus temperature times noise, the lowest such id, and that score.

        Noise is computed only for tokens that can still beat the highest logit's own score.
        """
        top = self.highest()
        top_noise = float(gumbel_of(words[top : top + 1])[0])
        reach = float(self.logits[top]) + temperature * (top_noise - GUMBEL_MAX)
        candidates = self.at_least(np.nextafter(np.float32(reach - _REACH_SLACK), np.float32(-np.inf))).ids
        assert candidates is not None
        scores = self.logits[candidates].astype(np.float64) + temperature * gumbel_of(words[candidates])
        best = int(np.argmax(scores))
        return int(candidates[best]), float(scores[best])


_REACH_SLACK = 1e-6
"""Covers the rounding of three float64 operations, so that the shortcut never drops the true maximum."""


def _top_k_edge(row: Row, top_k: int) -> float:
    """The k-th highest logit; all that tie with it stay. Minus infinity when top_k keeps everything."""
    if top_k == TOP_K_OFF or top_k >= row.size:
        return -math.inf
    return float(np.partition(row, -top_k)[-top_k])


def _weights_of(row: Row, temperature: float) -> NDArray[np.float64]:
    shifted = row.astype(np.float64)
    shifted -= shifted.max()
    shifted /= temperature
    return np.exp(shifted, out=shifted)


def _mass_of(weights: NDArray[np.float64], chosen: Mask) -> float:
    return float(np.add.reduce(weights, where=chosen))


@dataclass(frozen=True, slots=True)
class _Nucleus:
    """The top_p set of a row: a token is in when the mass strictly above its logit is below p of all."""

    row: Row
    temperature: float
    weights: NDArray[np.float64]
    limit: float

    @staticmethod
    def of(row: Row, params: Params) -> "_Nucleus":
        temperature = params.temperature_milli / MILLI
        weights = _weights_of(row, temperature)
        return _Nucleus(row, temperature, weights, params.top_p_milli / MILLI * float(weights.sum()))

    def holds(self, logit: float) -> bool:
        """Is a token of this logit in?"""
        return _mass_of(self.weights, self.row > np.float32(logit)) < self.limit

    def lowest(self) -> float:
        """The lowest logit that is in."""
        row = np.sort(self.row)[::-1]
        above = np.cumsum(_weights_of(row, self.temperature))
        count = int(np.searchsorted(above, self.limit, side="left"))  # full tokens whose mass stays below the limit
        return float(row[min(count, row.size - 1)])


class _Filters:
    """top_k and top_p seen through noise of at most epsilon per logit: what may be kept, what certainly is.

    Both answers depend on a token's logit alone and grow with it. Derivation: docs/spec/sampling.md, "Edges".
    """

    def __init__(self, row: Row, params: Params, epsilon: float) -> None:
        temperature = params.temperature_milli / MILLI
        self._params = params
        self._share = params.top_p_milli / MILLI
        self._slack = 2.0 * epsilon
        self._shrink = math.exp(-self._slack / temperature)
        self._edge, self._certain_edge = -math.inf, -math.inf
        if TOP_K_OFF < params.top_k < row.size:
            after, edge = np.partition(row, (-params.top_k - 1, -params.top_k))[-params.top_k - 1 :][:2]
            self._edge, self._certain_edge = float(edge), max(float(edge), float(after) + self._slack)
        possible = row[row.astype(np.float64) >= self._edge - self._slack] if self._edge > -math.inf else row
        self._row: NDArray[np.float64] = possible.astype(np.float64)
        self._weights = _weights_of(possible, temperature)
        self._top = float(self._row.max())
        self._temperature = temperature
        self._has_top_p = params.top_p_milli < TOP_P_OFF

    def distance_outside(self, logit: float) -> tuple[Rule, float] | None:
        """None when a token of this logit may be kept; else the filter that drops it and its distance in logits."""
        if logit < self._edge - self._slack:
            return Rule.TOP_K, self._edge - logit
        if self._has_top_p and not self._may_be_in_nucleus(logit):
            return Rule.TOP_P, self._lowest_in_nucleus() - logit
        return None

    def is_certain(self, logit: float) -> bool:
        """Is a token of this logit kept by every row within epsilon?"""
        return logit >= self._certain_edge and (not self._has_top_p or self._is_certain_in_nucleus(logit))

    def _weight_of(self, logit: float) -> float:
        return math.exp((logit - self._top) / self._temperature)

    def _may_be_in_nucleus(self, logit: float) -> bool:
        """The kindest row: this token up by epsilon, those out of its reach down, the others up to its side at most."""
        in_reach = (self._row > logit) & (self._row <= logit + self._slack)
        above = _mass_of(self._weights, self._row > logit + self._slack) * self._shrink
        rest = _mass_of(self._weights, self._row <= logit) + int(in_reach.sum()) * self._weight_of(logit)
        return above < self._share * (above + rest)

    def _is_certain_in_nucleus(self, logit: float) -> bool:
        """The harshest row: this token down by epsilon, all that can pass it up by epsilon, certain others down."""
        cut = logit - self._slack
        above = _mass_of(self._weights, self._row > cut)
        rest = _mass_of(self._weights, (self._row <= cut) & (self._row >= self._certain_edge))
        if self._slack > 0.0:
            above, rest = above - self._weight_of(logit), rest + self._weight_of(logit)
        return above < self._share * (above + rest * self._shrink)

    def _lowest_in_nucleus(self) -> float:
        """The lowest logit of the nucleus of the checker's own row."""
        return _Nucleus.of(self._row[self._row >= self._edge].astype(np.float32), self._params).lowest()
