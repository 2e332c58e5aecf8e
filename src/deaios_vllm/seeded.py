"""Which token a seed picks from rows of logits, in torch: docs/spec/sampling.md word for word, for a whole batch.

Invariant: the words are those of `deaios.compute.sampling`, bit by bit, on every device; noise, weights and scores are
float64. Logarithms may differ in the last place between libraries, as the specification allows. An id whose logit is
minus infinity is masked. Knows nothing of vLLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MILLI = 1000
TOP_P_OFF = 1000
IDS_PER_BLOCK = 8
ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
"""Constants of Philox4x64 (Salmon et al., SC 2011; Random123, philox.h)."""
_LOW = 0xFFFFFFFF
_WORD = 1 << 64


@dataclass(frozen=True, slots=True)
class Draw:
    """How one request draws its tokens.

    Attributes:
        key: the first 16 bytes of its seed as two unsigned 64-bit words.
        temperature_milli: thousandths; 0 takes the highest logit.
        top_k: 0 for off.
        top_p_milli: thousandths; 1000 for off.
    """

    key: tuple[int, int]
    temperature_milli: int
    top_k: int
    top_p_milli: int


def pick_tokens(logits: torch.Tensor, draws: Sequence[Draw], positions: torch.Tensor) -> torch.Tensor:
    """The id that each row's seed picks.

    Args:
        logits: `(rows, vocabulary)` float32 without NaN; every row has a finite value.
        draws: one per row.
        positions: `(rows,)` int64, absolute: prompt and output counted together, from 0.

    Returns:
        `(rows,)` int64.
    """
    temperatures = [draw.temperature_milli / MILLI for draw in draws]
    kept = logits
    for place, draw in enumerate(draws):
        if draw.temperature_milli and (draw.top_k or draw.top_p_milli < TOP_P_OFF):
            if kept is logits:
                kept = logits.clone()
            kept[place] = filter_row(logits[place], draw)
    scale = torch.tensor(temperatures, dtype=torch.float64, device=logits.device)
    noise = gumbel_of(draw_words([draw.key for draw in draws], positions, logits.shape[1]))
    scores = kept.to(torch.float64) + scale[:, None] * noise
    return scores.argmax(dim=1)  # of equal ones the first, as torch documents


def filter_row(row: torch.Tensor, draw: Draw) -> torch.Tensor:
    """One row with everything outside top_k and the nucleus at minus infinity; ties stay or go together."""
    allowed = int((row > -torch.inf).sum())
    if 0 < draw.top_k < allowed:
        edge = row.topk(draw.top_k).values[-1]
        row = row.masked_fill(row < edge, -torch.inf)
    if draw.top_p_milli < TOP_P_OFF:
        ordered = row.sort(descending=True).values
        weights = (ordered.to(torch.float64) - ordered[0].to(torch.float64)).div_(draw.temperature_milli / MILLI).exp_()
        above = weights.cumsum(0)
        limit = draw.top_p_milli / MILLI * above[-1]
        # so many whole tokens lie above the limit's tail; the next one is the lowest that stays
        count = torch.searchsorted(above, limit, side="left").clamp_(max=row.numel() - 1)
        row = row.masked_fill(row < ordered[count], -torch.inf)
    return row


def gumbel_of(words: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float64, from the upper 24 bits of each word."""
    uniform = ((words >> 8).to(torch.float64) + 0.5) * (1.0 / (1 << 24))
    return -torch.log(-torch.log(uniform))


def draw_words(keys: Sequence[tuple[int, int]], positions: torch.Tensor, count: int) -> torch.Tensor:
    """One 32-bit word per row and token id: `(rows, count)` int64 with values below 2^32.

    Philox4x64-10; block b has the counter (b + 1, 0, 0, position) and gives the words of ids 8b to 8b + 7, the low half
    of each lane first.
    """
    device = positions.device
    blocks = -(-count // IDS_PER_BLOCK)
    first = torch.arange(1, blocks + 1, dtype=torch.int64, device=device)[None, :]
    rows = len(keys)
    zero = torch.zeros((rows, blocks), dtype=torch.int64, device=device)
    lanes = (first.expand(rows, blocks), zero, zero, positions.to(torch.int64)[:, None].expand(rows, blocks))
    key = [[pair[half] for pair in keys] for half in (0, 1)]
    for _ in range(ROUNDS):
        words = [
            torch.tensor([_signed(word) for word in half], dtype=torch.int64, device=device)[:, None] for half in key
        ]
        high0, low0 = _multiply(lanes[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(lanes[2], _MULTIPLIERS[1])
        lanes = (high1 ^ lanes[1] ^ words[0], low1, high0 ^ lanes[3] ^ words[1], low0)
        key = [[(word + step) % _WORD for word in half] for half, step in zip(key, _WEYL, strict=True)]
    halves = [part for lane in lanes for part in (lane & _LOW, _shift(lane))]
    return torch.stack(halves, dim=2).reshape(rows, blocks * IDS_PER_BLOCK)[:, :count]


def _multiply(left: torch.Tensor, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 64 bits of an unsigned product, in signed words that wrap."""
    left_high, left_low = _shift(left), left & _LOW
    right_high, right_low = right >> 32, right & _LOW
    low_low, low_high = left_low * right_low, left_low * right_high
    high_low, high_high = left_high * right_low, left_high * right_high
    middle = _shift(low_low) + (low_high & _LOW) + (high_low & _LOW)
    return high_high + _shift(low_high) + _shift(high_low) + _shift(middle), left * _signed(right)


def _shift(word: torch.Tensor) -> torch.Tensor:
    """The upper 32 bits; torch's own shift copies the sign."""
    return (word >> 32) & _LOW


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word
