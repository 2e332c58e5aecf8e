"""What a transaction may use and cost: gas limit, tip, and the most that a gas unit may cost (EIP-1559).

Policy is a value; only `fetch_quote` asks a node. Knows no key and no nonce.
"""

from dataclasses import dataclass
from typing import Any

from deaios.ledger.client.rpc import RefusedByChain, Rpc, encode_call_object
from deaios.ledger.records import InvalidAnswer, read_block, read_quantity
from deaios.primitives.errors import Refused
from deaios.primitives.keys import Address

GWEI = 10**9
GAS_MARGIN_PERCENT = 100
GAS_MARGIN = 100_000
"""Added to an estimate: who comes last in a phase pays for the step to the next one, which the estimate did not see."""
GAS_MAX = 1 << 24
"""Most that one transaction may use since Osaka (EIP-7825); a margin never reaches beyond it."""
METHOD_NOT_FOUND = -32601


class RefusedFee(Refused):
    """Gas costs more now than this operator wants to pay."""


@dataclass(frozen=True, slots=True)
class FeePolicy:
    """What this side pays for gas, in wei a unit.

    Attributes:
        fee_max: never more than this, also for a replacement; while the base fee alone exceeds it, nothing is sent.
        tip_max: what of it may go to who orders the blocks.
        base_fee_multiple: room for the base fee to rise while a transaction waits; it can double in six full blocks.
        replacement_percent: of the old fees, what a replacement offers; pools want at least 110.
    """

    fee_max: int = 1000 * GWEI
    tip_max: int = 100 * GWEI
    base_fee_multiple: int = 2
    replacement_percent: int = 125

    def price(self, base_fee: int, tip: int) -> tuple[int, int]:
        """Most per unit, and the tip within it, at a base fee and a suggested tip.

        Raises:
            RefusedFee: the base fee alone exceeds `fee_max`.
        """
        if base_fee > self.fee_max:
            raise RefusedFee(f"a unit of gas costs {base_fee} wei now, at most {self.fee_max} is paid here")
        tip = min(tip, self.tip_max)
        fee = min(self.base_fee_multiple * base_fee + tip, self.fee_max)
        return fee, min(tip, fee)

    def raise_price(self, fee: int, tip: int) -> tuple[int, int] | None:
        """Fees of a replacement; None where `fee_max` leaves no room for one that a pool takes."""
        raised = fee * self.replacement_percent // 100 + 1, tip * self.replacement_percent // 100 + 1
        return raised if raised[0] <= self.fee_max else None


@dataclass(frozen=True, slots=True)
class Quote:
    """What a transaction needs at this moment."""

    gas: int
    max_fee: int
    tip: int


async def fetch_quote(
    rpc: Rpc, policy: FeePolicy, sender: Address, to: Address | None, data: bytes, value: int, gas: int | None
) -> Quote:
    """Ask a node what a transaction needs now; the gas limit is estimated when it is not given.

    Raises:
        Reverted: the contract would refuse.
        RefusedFee: gas is too dear now.
        RefusedByChain: the node declines to estimate, for want of money for example.
        InvalidAnswer: the chain has no base fee.
    """
    calls: list[tuple[str, list[Any]]] = [("eth_getBlockByNumber", ["latest", False])]  # Any: JSON of many shapes
    if gas is None:
        calls.append(("eth_estimateGas", [encode_call_object(to, data, sender, value)]))
    try:
        answers = await rpc.batch([*calls, ("eth_maxPriorityFeePerGas", [])])
        tip = read_quantity(answers[-1], "priority fee")
    except RefusedByChain as error:
        if error.code != METHOD_NOT_FOUND:
            raise
        # Not every node suggests a tip. Its gas price is base fee and tip together.
        answers = await rpc.batch([*calls, ("eth_gasPrice", [])])
        tip = max(read_quantity(answers[-1], "gas price") - _read_base_fee(answers[0])[0], 0)
    base_fee, block_gas_limit = _read_base_fee(answers[0])
    fee, tip = policy.price(base_fee, tip)
    if gas is None:
        estimate = read_quantity(answers[1], "gas estimate")
        wanted = estimate * (100 + GAS_MARGIN_PERCENT) // 100 + GAS_MARGIN
        gas = min(wanted, block_gas_limit if estimate > GAS_MAX else min(GAS_MAX, block_gas_limit))
    return Quote(gas, fee, tip)


async def fetch_fee(rpc: Rpc, policy: FeePolicy) -> int:
    """Most that a unit of gas may cost a transaction that is sent now, in wei."""
    base_fee, _ = _read_base_fee(await rpc.call("eth_getBlockByNumber", ["latest", False]))
    try:
        tip = read_quantity(await rpc.call("eth_maxPriorityFeePerGas"), "priority fee")
    except RefusedByChain as error:
        if error.code != METHOD_NOT_FOUND:
            raise
        tip = max(read_quantity(await rpc.call("eth_gasPrice"), "gas price") - base_fee, 0)
    return policy.price(base_fee, tip)[0]


def _read_base_fee(answer: object) -> tuple[int, int]:
    """Base fee and gas limit of a block."""
    block = read_block(answer)
    if block.base_fee is None:
        raise InvalidAnswer(f"block {block.number} has no base fee; this client needs a chain with EIP-1559")
    return block.base_fee, block.gas_limit
