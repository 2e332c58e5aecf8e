"""eth_* reads of the newest state. Older state is not kept, and saying so is better than another block's numbers."""

from typing import Any

from deaios.chain.rendering import hex_data
from deaios.chain.rpc import BlockRef, read_address, read_at, read_word
from deaios.chain.service.chain import ChainService
from deaios.chain.service.methods.places import Places, Table
from deaios.primitives.keys import Address


class StateMethods:
    """See the module."""

    def __init__(self, chain: ChainService, places: Places) -> None:
        self._chain = chain
        self._places = places

    def table(self) -> Table:
        """The methods by name."""
        return {
            "eth_getBalance": (1, 2, self._balance),
            "eth_getTransactionCount": (1, 2, self._nonce),
            "eth_getCode": (1, 2, self._code),
            "eth_getStorageAt": (2, 3, self._storage),
        }

    async def _balance(self, params: list[Any]) -> str:
        address, _ = await self._read(params, 1)
        return hex(self._chain.state.account(address).balance)

    async def _nonce(self, params: list[Any]) -> str:
        address, ref = await self._read(params, 1)
        if ref.is_pending:
            return hex(self._chain.pool.pending_nonce(address, self._chain.state))
        return hex(self._chain.state.account(address).nonce)

    async def _code(self, params: list[Any]) -> str:
        address, _ = await self._read(params, 1)
        return hex_data(self._chain.state.account(address).code)

    async def _storage(self, params: list[Any]) -> str:
        slot = read_at(params, 1, read_word, "storage key")
        address, _ = await self._read(params, 2)
        return hex_data(self._chain.state.slot(address, slot).to_bytes(32))

    async def _read(self, params: list[Any], block: int) -> tuple[Address, BlockRef]:
        address: Address = read_at(params, 0, read_address, "address")
        return address, await self._places.need_newest(params, block)
