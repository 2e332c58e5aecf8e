"""Blocks, transactions, receipts and logs as the JSON objects of Ethereum's JSON-RPC.

Names, shapes and absent fields are those of geth and of https://ethereum.github.io/execution-apis/; the tests hold
every method's answer against that schema. Knows no transport and no chain.
"""

from typing import Any

from deaios.chain.blocks import BLOCK_NONCE, EMPTY_OMMERS_HASH, Block, BlockHeader, Receipt, compute_bloom
from deaios.chain.evm import Log
from deaios.ledger.suite import compute_contract_address
from deaios.ledger.transactions import DYNAMIC_FEE, LEGACY, AccessList, Transaction
from deaios.primitives.keys import Address


def hex_data(data: bytes) -> str:
    """Bytes as JSON-RPC writes them."""
    return "0x" + data.hex()


def render_header(header: BlockHeader) -> dict[str, Any]:
    """A header's JSON fields. Any: a JSON object."""
    return {
        "number": hex(header.number),
        "hash": hex_data(header.hash),
        "parentHash": hex_data(header.parent_hash),
        "nonce": hex_data(BLOCK_NONCE),
        "sha3Uncles": hex_data(EMPTY_OMMERS_HASH),
        "logsBloom": hex_data(header.logs_bloom),
        "transactionsRoot": hex_data(header.transactions_root),
        "stateRoot": hex_data(header.state_commitment),
        "receiptsRoot": hex_data(header.logs_root),
        "miner": hex_data(header.coinbase),
        "difficulty": "0x0",
        "extraData": hex_data(header.extra_data),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "mixHash": hex_data(header.prevrandao),
        "baseFeePerGas": hex(header.base_fee),
    }


def render_block(block: Block, *, is_full: bool) -> dict[str, Any]:
    """A block with transaction hashes, or with whole transactions. Any: a JSON object."""
    header = block.header
    return render_header(header) | {
        "size": hex(block.size_bytes),
        "uncles": [],
        "transactions": [
            render_transaction(receipt.transaction, receipt.sender, header, receipt)
            if is_full
            else hex_data(receipt.transaction.hash)
            for receipt in block.receipts
        ],
    }


def render_transaction(
    transaction: Transaction, sender: Address, header: BlockHeader | None = None, receipt: Receipt | None = None
) -> dict[str, Any]:
    """A transaction, waiting or included. Any: a JSON object."""
    price = receipt.price if receipt is not None else transaction.max_fee
    found: dict[str, Any] = {
        "type": hex(transaction.kind),
        "hash": hex_data(transaction.hash),
        "nonce": hex(transaction.nonce),
        "from": hex_data(sender),
        "to": None if transaction.to is None else hex_data(transaction.to),
        "value": hex(transaction.value),
        "gas": hex(transaction.gas),
        "gasPrice": hex(price),
        "input": hex_data(transaction.data),
        "v": hex(transaction.v),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "blockHash": None if header is None else hex_data(header.hash),
        "blockNumber": None if header is None else hex(header.number),
        "blockTimestamp": None if header is None else hex(header.timestamp),
        "transactionIndex": None if receipt is None else hex(receipt.index),
    }
    if transaction.chain_id is not None:
        found["chainId"] = hex(transaction.chain_id)
    if transaction.kind != LEGACY:
        found["yParity"] = hex(transaction.parity)
        found["accessList"] = render_access_list(transaction.access_list)
    if transaction.kind == DYNAMIC_FEE:
        found["maxFeePerGas"] = hex(transaction.max_fee)
        found["maxPriorityFeePerGas"] = hex(transaction.tip)
    return found


def render_receipt(receipt: Receipt, header: BlockHeader) -> dict[str, Any]:
    """A receipt; `refusal` is ours: why the engine would not run the transaction. Any: a JSON object.

    A creation that failed shows the address that it would have had, as geth does; whether anything lies there, the
    status says.
    """
    transaction = receipt.transaction
    created = None if transaction.to else compute_contract_address(receipt.sender, transaction.nonce)
    found: dict[str, Any] = {
        "type": hex(transaction.kind),
        "status": hex(receipt.is_success),
        "transactionHash": hex_data(transaction.hash),
        "transactionIndex": hex(receipt.index),
        "blockHash": hex_data(header.hash),
        "blockNumber": hex(header.number),
        "from": hex_data(receipt.sender),
        "to": None if transaction.to is None else hex_data(transaction.to),
        "cumulativeGasUsed": hex(receipt.gas_before + receipt.gas_used),
        "gasUsed": hex(receipt.gas_used),
        "effectiveGasPrice": hex(receipt.price),
        "contractAddress": None if created is None else hex_data(created),
        "logs": [
            render_log(log, header, receipt.log_start + offset, transaction.hash, receipt.index)
            for offset, log in enumerate(receipt.logs)
        ],
        "logsBloom": hex_data(compute_bloom(receipt.logs)),
    }
    if receipt.reason:
        found["refusal"] = receipt.reason
    return found


def render_log(
    log: Log, header: BlockHeader, position: int, transaction_hash: bytes, transaction_position: int
) -> dict[str, Any]:
    """A log with its place. Any: a JSON object."""
    return {
        "address": hex_data(log.address),
        "topics": [hex_data(topic) for topic in log.topics],
        "data": hex_data(log.data),
        "blockNumber": hex(header.number),
        "blockHash": hex_data(header.hash),
        "blockTimestamp": hex(header.timestamp),
        "transactionHash": hex_data(transaction_hash),
        "transactionIndex": hex(transaction_position),
        "logIndex": hex(position),
        "removed": False,
    }


def render_access_list(entries: AccessList) -> list[dict[str, Any]]:
    """An EIP-2930 access list. Any: JSON objects."""
    return [
        {"address": hex_data(address), "storageKeys": [hex_data(key.to_bytes(32)) for key in keys]}
        for address, keys in entries
    ]
