"""web3_*, net_*, and the eth_* methods about the node and its prices."""

from typing import Any

from deaios import __version__
from deaios.chain.blocks import next_base_fee
from deaios.chain.fees import HISTORY_BLOCKS_MAX, PERCENTILES_MAX, SUGGESTED_TIP, suggest_gas_price
from deaios.chain.rendering import hex_data
from deaios.chain.rpc import BlockRef, bad_params, read_at, read_block_ref, read_data, read_quantity, server_error
from deaios.chain.service.chain import ChainService
from deaios.chain.service.methods.places import Places, Table
from deaios.primitives.hashing import keccak256


class NodeMethods:
    """See the module."""

    def __init__(self, chain: ChainService, places: Places) -> None:
        self._chain = chain
        self._places = places

    def table(self) -> Table:
        """The methods by name."""
        return {
            "web3_clientVersion": (0, 0, self._client_version),
            "web3_sha3": (1, 1, self._sha3),
            "net_version": (0, 0, self._net_version),
            "net_listening": (0, 0, self._listening),
            "net_peerCount": (0, 0, self._peer_count),
            "eth_chainId": (0, 0, self._chain_id),
            "eth_syncing": (0, 0, self._syncing),
            "eth_accounts": (0, 0, self._accounts),
            "eth_coinbase": (0, 0, self._coinbase),
            "eth_blockNumber": (0, 0, self._block_number),
            "eth_gasPrice": (0, 0, self._gas_price),
            "eth_baseFee": (0, 0, self._base_fee),
            "eth_maxPriorityFeePerGas": (0, 0, self._tip),
            "eth_feeHistory": (2, 3, self._fee_history),
        }

    async def _client_version(self, _params: list[Any]) -> str:
        return f"deaios/{__version__}/embedded"

    async def _sha3(self, params: list[Any]) -> str:
        return hex_data(keccak256(read_at(params, 0, read_data, "data")))

    async def _net_version(self, _params: list[Any]) -> str:
        return str(self._chain.chain_id)

    async def _listening(self, _params: list[Any]) -> bool:
        return True

    async def _peer_count(self, _params: list[Any]) -> str:
        return "0x0"

    async def _chain_id(self, _params: list[Any]) -> str:
        return hex(self._chain.chain_id)

    async def _syncing(self, _params: list[Any]) -> bool:
        return False

    async def _accounts(self, _params: list[Any]) -> list[str]:
        return []

    async def _coinbase(self, _params: list[Any]) -> str:
        return hex_data(self._chain.head.coinbase)

    async def _block_number(self, _params: list[Any]) -> str:
        return hex(self._chain.head.number)

    async def _gas_price(self, _params: list[Any]) -> str:
        return hex(suggest_gas_price(self._chain.head))

    async def _base_fee(self, _params: list[Any]) -> str:
        return hex(next_base_fee(self._chain.head))

    async def _tip(self, _params: list[Any]) -> str:
        return hex(SUGGESTED_TIP)

    async def _fee_history(self, params: list[Any]) -> dict[str, object]:
        count = min(read_at(params, 0, read_quantity, "blockCount", 64), HISTORY_BLOCKS_MAX)
        ref: BlockRef = read_at(params, 1, read_block_ref, "newestBlock")
        percentiles = read_at(params, 2, _read_percentiles)
        newest = await self._places.find_number(ref)
        if newest is None:
            raise server_error(f"request beyond head block: requested {ref.number}, head {self._chain.head.number}")
        history = self._chain.fees.history(count, newest, percentiles)
        if count and not history.base_fees:
            raise server_error(f"fee history of block {newest} is not kept, only from {self._chain.fees.oldest} on")
        answer: dict[str, object] = {
            "oldestBlock": hex(history.oldest),
            "baseFeePerGas": [hex(fee) for fee in history.base_fees],
            "gasUsedRatio": list(history.gas_used_ratios),
        }
        if history.rewards is not None:
            answer["reward"] = [[hex(reward) for reward in rewards] for rewards in history.rewards]
        return answer


def _read_percentiles(value: object) -> list[float]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
        raise bad_params("reward percentiles are not a list of numbers")
    if any(isinstance(item, bool) for item in value):
        raise bad_params("reward percentiles are not a list of numbers")
    if len(value) > PERCENTILES_MAX:
        raise server_error(f"invalid reward percentile: over the query limit {PERCENTILES_MAX}")
    for index, item in enumerate(value):
        if not 0 <= item <= 100:
            raise server_error(
                f"invalid reward percentile: {item:f}" if abs(item) < 1e9 else "invalid reward percentile"
            )
        if index and item <= value[index - 1]:
            raise server_error(f"invalid reward percentile: #{index - 1}:{value[index - 1]:f} >= #{index}:{item:f}")
    return value
