"""What fees recent blocks asked and paid: eth_feeHistory, eth_gasPrice, eth_maxPriorityFeePerGas.

Keeps one small record per recent block. Source of the percentile rule: geth, eth/gasprice/feehistory.go.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from deaios.chain.blocks import Block, BlockHeader, next_base_fee

HISTORY_BLOCKS_MAX = 1024
"""As geth; older blocks are not in the answer."""
PERCENTILES_MAX = 100
SUGGESTED_TIP = 1_000_000
"""Wei per gas. Any tip is taken; this one is a habit that lets a fuller block prefer somebody."""


@dataclass(frozen=True, slots=True)
class BlockFees:
    """One block's record; `tips` are (tip, gas used) of its transactions, cheapest first."""

    header: BlockHeader
    tips: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class FeeHistory:
    """The answer of eth_feeHistory."""

    oldest: int
    base_fees: tuple[int, ...]
    gas_used_ratios: tuple[float, ...]
    rewards: tuple[tuple[int, ...], ...] | None


class FeeRecords:
    """The last `HISTORY_BLOCKS_MAX` blocks."""

    def __init__(self) -> None:
        self._records: deque[BlockFees] = deque(maxlen=HISTORY_BLOCKS_MAX)

    def append(self, block: Block) -> None:
        """Take the next block."""
        tips = sorted((receipt.price - block.header.base_fee, receipt.gas_used) for receipt in block.receipts)
        self._records.append(BlockFees(block.header, tuple(tips)))

    @property
    def oldest(self) -> int:
        """The first height that is remembered."""
        return self._records[0].header.number

    def history(self, count: int, newest: int, percentiles: Sequence[float]) -> FeeHistory:
        """Fees of up to `count` blocks that end with `newest`."""
        records = [record for record in self._records if newest - count < record.header.number <= newest]
        if not records:
            return FeeHistory(0, (), (), None)
        return FeeHistory(
            oldest=records[0].header.number,
            base_fees=(*(record.header.base_fee for record in records), next_base_fee(records[-1].header)),
            gas_used_ratios=tuple(record.header.gas_used / record.header.gas_limit for record in records),
            rewards=tuple(_rewards(record, percentiles) for record in records) if percentiles else None,
        )


def _rewards(record: BlockFees, percentiles: Sequence[float]) -> tuple[int, ...]:
    """The tip at each percentile of gas used; a block without transactions shows zeros."""
    rewards = []
    index = gas = 0
    for percentile in percentiles:
        threshold = record.header.gas_used * percentile / 100
        while index < len(record.tips) - 1 and gas + record.tips[index][1] < threshold:
            gas += record.tips[index][1]
            index += 1
        rewards.append(record.tips[index][0] if record.tips else 0)
    return tuple(rewards)


def suggest_gas_price(head: BlockHeader) -> int:
    """A price for wallets without EIP-1559: it stays payable while the base fee rises for one full block."""
    return next_base_fee(head) * 5 // 4 + SUGGESTED_TIP
