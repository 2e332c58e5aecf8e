"""What a chain serves to its followers: its genesis, and blocks as they were sealed, in bounded batches.

    deaios_getGenesis()                    the genesis, as `chain.genesis.encode_genesis` writes it
    deaios_getBlocks(first, count, waitMs) {"head": quantity, "previous": {"header", "signature"} or null,
                                            "blocks": [{"header", "signature", "transactions": [raw, ...]}, ...]}

Headers are RLP in hex. `previous` is the block before `first`, so that a follower sees at every answer whether it is
still on this chain. Only signed blocks are shown. With `waitMs` the answer is held back until block `first` is there.
"""

from typing import Any

import msgspec

from deaios.chain import rpc
from deaios.chain.genesis import encode_genesis
from deaios.chain.rpc import RpcFault, bad_params
from deaios.chain.service.chain import ChainService, RefusedPruned
from deaios.chain.store import ChainStore
from deaios.chain.stored import StoredBlock
from deaios.primitives.encoding import encode_hex

BLOCKS_MAX = 1024
"""Blocks in one answer."""
BATCH_BYTES_MAX = 4 << 20
"""Raw bytes after which no further block is added; one block alone may be larger, but never than its gas allows."""
WAIT_MS_MAX = 15_000
"""Below the 20 s after which clients of ours give a node up."""
GENESIS_BYTES_MAX = 8 << 20
"""Of JSON. A larger genesis travels in an archive."""


class ReplicaMethods:
    """The methods that followers call."""

    def __init__(self, chain: ChainService) -> None:
        self._chain = chain

    def table(self) -> dict[str, tuple[int, int, Any]]:  # Any: the methods' own type lives in the module above
        """Least and most parameters, and the method, by name."""
        return {"deaios_getGenesis": (0, 0, self.genesis), "deaios_getBlocks": (1, 3, self.blocks)}

    async def genesis(self, _params: list[Any]) -> object:
        """The genesis as a JSON object."""
        encoded = encode_genesis(self._chain.genesis)
        if len(encoded) > GENESIS_BYTES_MAX:
            raise RpcFault(
                rpc.LIMIT_EXCEEDED,
                f"genesis has {len(encoded)} bytes, {GENESIS_BYTES_MAX} are served; start from an archive instead",
            )
        return msgspec.Raw(encoded)

    async def blocks(self, params: list[Any]) -> dict[str, object]:
        """Sealed blocks from a height on."""
        first = rpc.read_quantity(params[0], "first", 64)
        count = BLOCKS_MAX if params[1] is None else min(rpc.read_quantity(params[1], "count", 64), BLOCKS_MAX)
        wait_ms = 0 if params[2] is None else params[2]
        if not isinstance(wait_ms, int) or isinstance(wait_ms, bool) or not 0 <= wait_ms <= WAIT_MS_MAX:
            raise bad_params(f"wait {wait_ms!r} is not a number of milliseconds up to {WAIT_MS_MAX}")
        chain = self._chain
        await chain.sealed.wait_for(first, wait_ms / 1000)
        head = chain.sealed.number
        first_read = max(first - 1, 0)
        wanted = max(0, min(first + count, head + 1) - first_read)

        def read(store: ChainStore) -> tuple[list[StoredBlock], int]:
            # The bound is read last: what was pruned meanwhile is refused, never shown without its transactions.
            blocks = store.fetch_sealed(first_read, wanted, BATCH_BYTES_MAX) if wanted else []
            return blocks, store.oldest_block()

        found, oldest = await chain.read(read)
        if count and first < oldest:
            raise RefusedPruned(
                f"pruned history unavailable: blocks from {first} on asked, this node keeps blocks from {oldest} on; "
                "begin with an archive of its state (`deaios chain import`)"
            )
        if first == 0:
            previous = None
        else:
            previous, found = (found[0], found[1:]) if found and found[0].number == first - 1 else (None, [])
        return {
            "head": hex(head),
            "previous": None if previous is None else _render_header(previous),
            "blocks": [
                _render_header(block) | {"transactions": [encode_hex(raw) for raw in block.raws]} for block in found
            ],
        }


def _render_header(block: StoredBlock) -> dict[str, object]:
    assert block.signature is not None, "the watermark is below every height without a signature"
    return {"header": encode_hex(block.header), "signature": encode_hex(block.signature)}
