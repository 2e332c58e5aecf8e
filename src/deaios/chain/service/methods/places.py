"""Which block a caller means, on one running chain; and the shape of a method table."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from deaios.chain.blocks import Block, BlockHeader
from deaios.chain.rpc import BlockRef, read_at, read_block_ref, read_hash, server_error
from deaios.chain.service.chain import ChainService

Method = Callable[[list[Any]], Awaitable[object]]
"""Any: JSON parameters, read by the method."""
Table = dict[str, tuple[int, int, Method]]
"""Name to (parameters that must be there, parameters at most, method)."""


class Places:
    """Finds blocks by what requests call them. State is kept of the newest block only."""

    def __init__(self, chain: ChainService) -> None:
        self._chain = chain

    async def find_number(self, ref: BlockRef) -> int | None:
        """The height that a reference names; None when there is no such block."""
        head = self._chain.head.number
        if ref.block_hash is not None:
            return await self._chain.block_number(ref.block_hash)
        if ref.is_earliest:
            return self._chain.oldest_block
        number = head if ref.number is None else ref.number
        return number if number <= head else None

    async def number_of(self, params: list[Any]) -> int | None:
        """The height of the block that the first parameter names: a tag, a number or a hash. Any: JSON values."""
        return await self.find_number(read_at(params, 0, read_block_ref))

    async def number_of_hash(self, params: list[Any]) -> int | None:
        """The height of the block whose hash is the first parameter. Any: JSON values."""
        return await self._chain.block_number(read_at(params, 0, read_hash, "block hash"))

    async def fetch(self, number: int | None) -> Block | None:
        """The block at a height."""
        return None if number is None else await self._chain.block(number)

    async def fetch_headers(self, first: int, last: int) -> list[BlockHeader]:
        """Headers of a range that is no further than the head, both ends included."""
        recent = self._chain.recent
        if first in recent:
            return [recent[number].header for number in range(first, last + 1)]
        return await self._chain.read(lambda store: store.fetch_headers(first, last))

    async def fetch_each(self, numbers: Sequence[int]) -> dict[int, BlockHeader]:
        """Headers of single heights that are no further than the head."""
        recent = self._chain.recent
        found = {number: recent[number].header for number in numbers if number in recent}
        if older := [number for number in numbers if number not in found]:
            headers = await self._chain.read(lambda store: [store.fetch_header(number) for number in older])
            for number, header in zip(older, headers, strict=True):
                assert header is not None, "heights have no gaps"
                found[number] = header
        return found

    async def need_newest(self, params: list[Any], index: int) -> BlockRef:
        """Accept, as one of the parameters, only the block whose state is kept: the newest. Any: JSON values.

        Raises:
            RpcFault: no such block, or an older one.
        """
        ref: BlockRef = read_at(params, index, read_block_ref)
        if ref.is_newest:
            return ref
        number, head = await self.find_number(ref), self._chain.head.number
        if number is None:
            raise server_error("header not found")
        if number != head:
            raise server_error(
                f"historical state is not available: block {number} asked, only the newest, {head}, is kept"
            )
        return ref
