"""eth_* and debug_getRaw* reads of blocks, transactions and receipts."""

from typing import Any

from deaios.chain.blocks import Block, Receipt, compute_bloom, next_base_fee
from deaios.chain.rendering import hex_data, render_block, render_header, render_receipt, render_transaction
from deaios.chain.rpc import BlockRef, read_at, read_block_ref, read_flag, read_hash, read_quantity, server_error
from deaios.chain.service.chain import ChainService
from deaios.chain.service.methods.places import Places, Table
from deaios.ledger.rlp import Decoded, decode_rlp, encode_integer, encode_rlp
from deaios.ledger.transactions import LEGACY, Transaction


class BlockMethods:
    """See the module."""

    def __init__(self, chain: ChainService, places: Places) -> None:
        self._chain = chain
        self._places = places

    def table(self) -> Table:
        """The methods by name."""
        return {
            "eth_getBlockByNumber": (1, 2, self._block_by_number),
            "eth_getBlockByHash": (1, 2, self._block_by_hash),
            "eth_getHeaderByNumber": (1, 1, self._header_by_number),
            "eth_getHeaderByHash": (1, 1, self._header_by_hash),
            "eth_getBlockTransactionCountByNumber": (1, 1, self._count_by_number),
            "eth_getBlockTransactionCountByHash": (1, 1, self._count_by_hash),
            "eth_getUncleCountByBlockNumber": (1, 1, self._uncles_by_number),
            "eth_getUncleCountByBlockHash": (1, 1, self._uncles_by_hash),
            "eth_getUncleByBlockNumberAndIndex": (2, 2, self._no_uncle_by_number),
            "eth_getUncleByBlockHashAndIndex": (2, 2, self._no_uncle_by_hash),
            "eth_getTransactionByHash": (1, 1, self._transaction),
            "eth_getTransactionByBlockNumberAndIndex": (2, 2, self._transaction_by_number),
            "eth_getTransactionByBlockHashAndIndex": (2, 2, self._transaction_by_hash),
            "eth_getRawTransactionByHash": (1, 1, self._raw_transaction),
            "eth_getRawTransactionByBlockNumberAndIndex": (2, 2, self._raw_by_number),
            "eth_getRawTransactionByBlockHashAndIndex": (2, 2, self._raw_by_hash),
            "eth_getTransactionReceipt": (1, 1, self._receipt),
            "eth_getBlockReceipts": (1, 1, self._block_receipts),
            "debug_getRawHeader": (1, 1, self._raw_header),
            "debug_getRawBlock": (1, 1, self._raw_block),
            "debug_getRawReceipts": (1, 1, self._raw_receipts),
            "debug_getRawTransaction": (1, 1, self._raw_transaction),
            "deaios_getHeader": (1, 1, self._signed_header),
        }

    # Blocks

    async def _block_by_number(self, params: list[Any]) -> object:
        ref: BlockRef = read_at(params, 0, read_block_ref)
        is_full = read_at(params, 1, read_flag, "fullTx")
        if ref.is_pending:
            return self._render_pending()
        return await self._render_block(await self._places.find_number(ref), is_full)

    async def _block_by_hash(self, params: list[Any]) -> object:
        is_full = read_at(params, 1, read_flag, "fullTx")
        return await self._render_block(await self._places.number_of_hash(params), is_full)

    async def _render_block(self, number: int | None, is_full: bool) -> object:
        block = await self._places.fetch(number)
        return None if block is None else render_block(block, is_full=is_full)

    def _render_pending(self) -> dict[str, Any]:
        """The next block as far as it is known: no hash, no transactions, and as in geth no nonce and no miner."""
        head, context = self._chain.head, self._chain.pending_context()
        return render_header(head) | {
            "number": hex(context.number),
            "hash": None,
            "nonce": None,
            "miner": None,
            "parentHash": hex_data(head.hash),
            "timestamp": hex(context.timestamp),
            "baseFeePerGas": hex(next_base_fee(head)),
            "gasUsed": "0x0",
            "size": "0x0",
            "uncles": [],
            "transactions": [],
        }

    async def _header_by_number(self, params: list[Any]) -> object:
        return await self._render_header(await self._places.number_of(params))

    async def _header_by_hash(self, params: list[Any]) -> object:
        return await self._render_header(await self._places.number_of_hash(params))

    async def _render_header(self, number: int | None) -> object:
        if number is None:
            return None
        (header,) = await self._places.fetch_headers(number, number)
        return render_header(header)

    async def _count_by_number(self, params: list[Any]) -> object:
        return _count(await self._places.fetch(await self._places.number_of(params)))

    async def _count_by_hash(self, params: list[Any]) -> object:
        return _count(await self._places.fetch(await self._places.number_of_hash(params)))

    async def _uncles_by_number(self, params: list[Any]) -> object:
        return None if await self._places.number_of(params) is None else "0x0"

    async def _uncles_by_hash(self, params: list[Any]) -> object:
        return None if await self._places.number_of_hash(params) is None else "0x0"

    async def _no_uncle_by_number(self, params: list[Any]) -> None:
        read_at(params, 1, read_quantity, "index", 32)
        await self._places.number_of(params)

    async def _no_uncle_by_hash(self, params: list[Any]) -> None:
        read_at(params, 1, read_quantity, "index", 32)
        await self._places.number_of_hash(params)

    async def _signed_header(self, params: list[Any]) -> object:
        wanted = params[0]
        given = hex(wanted) if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 0 else wanted
        number = await self._places.number_of([given])
        return None if number is None else await self._chain.signed_header(number)

    # Transactions

    async def _transaction(self, params: list[Any]) -> object:
        transaction_hash = read_at(params, 0, read_hash, "transaction hash")
        if waiting := self._chain.pool.get(transaction_hash):
            return render_transaction(waiting.transaction, waiting.sender)
        if (found := await self._chain.receipt(transaction_hash)) is None:
            return None
        header, receipt = found
        return render_transaction(receipt.transaction, receipt.sender, header, receipt)

    async def _transaction_by_number(self, params: list[Any]) -> object:
        return _render_at(*await self._find_at(params, await self._places.number_of(params)))

    async def _transaction_by_hash(self, params: list[Any]) -> object:
        return _render_at(*await self._find_at(params, await self._places.number_of_hash(params)))

    async def _find_at(self, params: list[Any], number: int | None) -> tuple[Block | None, Receipt | None]:
        position = read_at(params, 1, read_quantity, "index", 32)
        block = await self._places.fetch(number)
        is_there = block is not None and position < len(block.receipts)
        return block, block.receipts[position] if block is not None and is_there else None

    async def _raw_by_number(self, params: list[Any]) -> str:
        _, receipt = await self._find_at(params, await self._places.number_of(params))
        return "0x" if receipt is None else hex_data(receipt.transaction.raw)

    async def _raw_by_hash(self, params: list[Any]) -> str:
        _, receipt = await self._find_at(params, await self._places.number_of_hash(params))
        return "0x" if receipt is None else hex_data(receipt.transaction.raw)

    async def _raw_transaction(self, params: list[Any]) -> str:
        """The signed bytes; `0x` where there is no such transaction, as geth."""
        transaction_hash = read_at(params, 0, read_hash, "transaction hash")
        if waiting := self._chain.pool.get(transaction_hash):
            return hex_data(waiting.transaction.raw)
        found = await self._chain.receipt(transaction_hash)
        return "0x" if found is None else hex_data(found[1].transaction.raw)

    async def _receipt(self, params: list[Any]) -> object:
        found = await self._chain.receipt(read_at(params, 0, read_hash, "transaction hash"))
        return None if found is None else render_receipt(found[1], found[0])

    async def _block_receipts(self, params: list[Any]) -> object:
        block = await self._places.fetch(await self._places.number_of(params))
        return None if block is None else [render_receipt(receipt, block.header) for receipt in block.receipts]

    # Raw bytes

    async def _raw_header(self, params: list[Any]) -> str:
        return hex_data((await self._need_block(params)).header.encoded)

    async def _raw_block(self, params: list[Any]) -> str:
        """RLP of header, transactions and no ommers: the form before withdrawals, as the header's is."""
        block = await self._need_block(params)
        transactions = [_envelope(receipt.transaction) for receipt in block.receipts]
        return hex_data(encode_rlp([decode_rlp(block.header.encoded), transactions, []]))

    async def _raw_receipts(self, params: list[Any]) -> list[str]:
        return [hex_data(_encode_receipt(receipt)) for receipt in (await self._need_block(params)).receipts]

    async def _need_block(self, params: list[Any]) -> Block:
        block = await self._places.fetch(await self._places.number_of(params))
        if block is None:
            raise server_error("block not found")
        return block


def _count(block: Block | None) -> str | None:
    return None if block is None else hex(len(block.receipts))


def _render_at(block: Block | None, receipt: Receipt | None) -> object:
    if block is None or receipt is None:
        return None
    return render_transaction(receipt.transaction, receipt.sender, block.header, receipt)


def _envelope(transaction: Transaction) -> Decoded:
    """A transaction as a block's list holds it (EIP-2718): a legacy one as a list, a typed one as its bytes."""
    return decode_rlp(transaction.raw) if transaction.kind == LEGACY else transaction.raw


def _encode_receipt(receipt: Receipt) -> bytes:
    """A receipt as receipt tries hold it (EIP-658, EIP-2718)."""
    payload = encode_rlp(
        [
            encode_integer(int(receipt.is_success)),
            encode_integer(receipt.gas_before + receipt.gas_used),
            compute_bloom(receipt.logs),
            [[log.address, list(log.topics), log.data] for log in receipt.logs],
        ]
    )
    kind = receipt.transaction.kind
    return payload if kind == LEGACY else bytes([kind]) + payload
