"""Ethereum JSON-RPC as values: reading parameters, writing blocks, transactions, receipts and logs, error objects.

Field names, shapes, codes and messages are those of geth where clients depend on them
(https://ethereum.github.io/execution-apis/, https://www.jsonrpc.org/specification). Knows no transport and no chain.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deaios.chain.blocks import BLOCK_NONCE, EMPTY_OMMERS_HASH, Block, BlockHeader, Receipt, compute_bloom
from deaios.chain.evm import Log, Outcome, Status
from deaios.ledger.suite import compute_contract_address
from deaios.ledger.transactions import (
    ACCESS_ITEMS_MAX,
    DYNAMIC_FEE,
    LEGACY,
    TRANSACTION_BYTES_MAX,
    AccessList,
    Transaction,
)
from deaios.primitives.errors import DeaiosError
from deaios.primitives.keys import ADDRESS_SIZE, Address

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
SERVER_ERROR = -32000
LIMIT_EXCEEDED = -32005
REVERTED = 3

HASH_SIZE = 32
CALL_BYTES_MAX = TRANSACTION_BYTES_MAX * 8
"""Input of eth_call and eth_estimateGas: more than any transaction could carry."""
TOPICS_MAX = 4
TOPIC_CHOICES_MAX = 1000
ADDRESSES_MAX = 1000

_QUANTITY = re.compile(r"0x(?:0|[1-9a-fA-F][0-9a-fA-F]{0,63})", re.ASCII)
_DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)
_TAGS = ("latest", "pending", "safe", "finalized", "earliest")

_ERROR_SELECTOR = bytes.fromhex("08c379a0")
_PANIC_SELECTOR = bytes.fromhex("4e487b71")
_PANICS = {
    0x00: "generic panic",
    0x01: "assert(false)",
    0x11: "arithmetic underflow or overflow",
    0x12: "division or modulo by zero",
    0x21: "enum overflow",
    0x22: "invalid encoded storage byte array accessed",
    0x31: "out-of-bounds array access; popping on an empty array",
    0x32: "out-of-bounds access of an array or bytesN",
    0x41: "out of memory",
    0x51: "uninitialized function",
}
_HALTS = {
    "OutOfGas": "out of gas",
    "InvalidFEOpcode": "invalid opcode: INVALID",
    "OpcodeNotFound": "invalid opcode",
    "InvalidJump": "invalid jump destination",
    "StackUnderflow": "stack underflow",
    "StackOverflow": "stack limit reached 1024 (1023)",
    "CreateCollision": "contract address collision",
    "CreateContractSizeLimit": "max code size exceeded",
    "CreateContractStartingWithEF": "invalid code: must not begin with 0xef",
    "CreateInitCodeSizeLimit": "max initcode size exceeded",
    "StateChangeDuringStaticCall": "write protection",
    "CallNotAllowedInsideStatic": "write protection",
    "OutOfOffset": "return data out of bounds",
    "OutOfFunds": "insufficient balance for transfer",
    "CallTooDeep": "max call depth exceeded",
    "NonceOverflow": "nonce uint64 overflow",
}


class RpcFault(DeaiosError):
    """An error object of JSON-RPC.

    Attributes:
        code: see the constants above.
        data: hex text for a revert, else None.
    """

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data

    def render(self) -> dict[str, object]:
        """The `error` member of a response."""
        error: dict[str, object] = {"code": self.code, "message": str(self)}
        if self.data is not None:
            error["data"] = self.data
        return error


def bad_params(message: str) -> RpcFault:
    """Parameters that do not fit the method."""
    return RpcFault(INVALID_PARAMS, message)


@dataclass(frozen=True, slots=True)
class BlockRef:
    """Which block a caller means: a number, a hash, or the newest (`is_pending`: one further)."""

    number: int | None = None
    block_hash: bytes | None = None
    is_pending: bool = False


@dataclass(frozen=True, slots=True)
class CallRequest:
    """The transaction object of eth_call and eth_estimateGas."""

    sender: Address
    to: Address | None
    data: bytes
    value: int
    gas: int | None
    price: int
    access_list: AccessList


@dataclass(frozen=True, slots=True)
class LogFilter:
    """The filter object of eth_getLogs."""

    first: BlockRef
    last: BlockRef
    block_hash: bytes | None
    addresses: tuple[Address, ...]
    topics: tuple[tuple[bytes, ...], ...]


def hex_quantity(value: int) -> str:
    """A number as JSON-RPC writes it."""
    return hex(value)


def hex_data(data: bytes) -> str:
    """Bytes as JSON-RPC writes them."""
    return "0x" + data.hex()


def read_quantity(value: object, name: str, bits: int = 256) -> int:
    """A hex quantity without leading zeros; a JSON integer is taken too, as geth does for counts."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << bits:
        return value
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value) or (number := int(value, 16)) >> bits:
        raise bad_params(f"invalid argument: {name} is {str(value)[:80]!r}, a hex quantity below 2^{bits} expected")
    return number


def read_data(value: object, name: str, size: int | None = None, size_max: int = CALL_BYTES_MAX) -> bytes:
    """Hex bytes, of an exact size where the field has one."""
    if not isinstance(value, str) or not _DATA.fullmatch(value):
        raise bad_params(f"invalid argument: {name} is {str(value)[:80]!r}, 0x hex bytes expected")
    length = (len(value) - 2) // 2
    if (size is not None and length != size) or length > size_max:
        raise bad_params(
            f"invalid argument: {name} has {length} bytes, {f'at most {size_max}' if size is None else size} expected"
        )
    return bytes.fromhex(value[2:])


def read_address(value: object, name: str) -> Address:
    """An address in any case; wallets send checksummed and lower-case ones."""
    return Address(read_data(value, name, ADDRESS_SIZE))


def read_hash(value: object, name: str) -> bytes:
    """A 32-byte hash."""
    return read_data(value, name, HASH_SIZE)


def read_word(value: object, name: str) -> int:
    """A storage key: hex with or without leading zeros, at most 32 bytes."""
    if not isinstance(value, str) or not re.fullmatch(r"0x[0-9a-fA-F]{1,64}", value, re.ASCII):
        raise bad_params(f"invalid argument: {name} is {str(value)[:80]!r}, at most 32 hex bytes expected")
    return int(value, 16)


def read_block_ref(value: object, name: str = "block") -> BlockRef:
    """A tag, a number, or an EIP-1898 object."""
    if value is None or value in ("latest", "safe", "finalized"):
        return BlockRef()
    if value == "pending":
        return BlockRef(is_pending=True)
    if value == "earliest":
        return BlockRef(number=0)
    if isinstance(value, Mapping):
        if "blockHash" in value:
            return BlockRef(block_hash=read_hash(value["blockHash"], "blockHash"))
        if "blockNumber" in value:
            return BlockRef(number=read_quantity(value["blockNumber"], "blockNumber", 64))
    if isinstance(value, str) and value.startswith("0x"):
        if len(value) == 2 + 2 * HASH_SIZE:
            return BlockRef(block_hash=read_hash(value, name))
        return BlockRef(number=read_quantity(value, name, 64))
    raise bad_params(f"invalid argument: {name} is {str(value)[:80]!r}, a number or one of {', '.join(_TAGS)} expected")


def read_access_list(value: object) -> AccessList:
    """An EIP-2930 access list as JSON."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise bad_params("invalid argument: accessList is not a list")
    entries: list[tuple[Address, tuple[int, ...]]] = []
    items = 0
    for entry in value:
        keys = entry.get("storageKeys") if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(keys, list):
            raise bad_params("invalid argument: an accessList entry is not {address, storageKeys}")
        items += 1 + len(keys)
        if items > ACCESS_ITEMS_MAX:
            raise bad_params(f"invalid argument: accessList names more than {ACCESS_ITEMS_MAX} addresses and keys")
        address = read_address(entry.get("address"), "accessList.address")
        entries.append((address, tuple(int.from_bytes(read_hash(key, "accessList.storageKeys")) for key in keys)))
    return tuple(entries)


def read_call(value: object) -> CallRequest:
    """The transaction object of a call; unknown keys are ignored, as everywhere in Ethereum."""
    if not isinstance(value, Mapping):
        raise bad_params("invalid argument 0: a transaction object is expected")
    data, given = value.get("data"), value.get("input")
    if data is not None and given is not None and data != given:
        raise bad_params(
            'both "data" and "input" are set and not equal; please use "input" to pass transaction call data'
        )
    chosen = given if given is not None else data
    if value.get("blobVersionedHashes") or value.get("authorizationList"):
        raise bad_params("transaction type not supported: blob and set-code fields; this ledger takes types 0, 1 and 2")
    legacy, cap, tip = value.get("gasPrice"), value.get("maxFeePerGas"), value.get("maxPriorityFeePerGas")
    if legacy is not None and (cap is not None or tip is not None):
        raise bad_params("both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified")
    price = read_quantity(legacy or cap or 0, "gasPrice")
    return CallRequest(
        sender=read_address(value["from"], "from") if value.get("from") is not None else Address(bytes(ADDRESS_SIZE)),
        to=read_address(value["to"], "to") if value.get("to") is not None else None,
        data=b"" if chosen is None else read_data(chosen, "input"),
        value=read_quantity(value.get("value") or 0, "value"),
        gas=read_quantity(value["gas"], "gas", 64) if value.get("gas") is not None else None,
        price=price,
        access_list=read_access_list(value.get("accessList")),
    )


def read_log_filter(value: object) -> LogFilter:
    """The filter object of eth_getLogs and eth_newFilter."""
    if not isinstance(value, Mapping):
        raise bad_params("invalid argument 0: a filter object is expected")
    block_hash = None
    if value.get("blockHash") is not None:
        if value.get("fromBlock") is not None or value.get("toBlock") is not None:
            raise bad_params("cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other")
        block_hash = read_hash(value["blockHash"], "blockHash")
    given = value.get("address")
    addresses = given if isinstance(given, list) else [] if given is None else [given]
    if len(addresses) > ADDRESSES_MAX:
        raise bad_params(f"exceed max addresses: {len(addresses)}, limit {ADDRESSES_MAX}")
    topics = value.get("topics") or []
    if not isinstance(topics, list) or len(topics) > TOPICS_MAX:
        raise bad_params(f"exceed max topics: a list of at most {TOPICS_MAX} expected")
    return LogFilter(
        first=read_block_ref(value.get("fromBlock"), "fromBlock"),
        last=read_block_ref(value.get("toBlock"), "toBlock"),
        block_hash=block_hash,
        addresses=tuple(read_address(item, "address") for item in addresses),
        topics=tuple(_read_topic(item) for item in topics),
    )


def _read_topic(value: object) -> tuple[bytes, ...]:
    choices = value if isinstance(value, list) else [] if value is None else [value]
    if len(choices) > TOPIC_CHOICES_MAX:
        raise bad_params(f"exceed max topics: {len(choices)} choices, limit {TOPIC_CHOICES_MAX}")
    return () if None in choices else tuple(read_hash(item, "topic") for item in choices)


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
        "transactionIndex": None if receipt is None else hex(receipt.index),
    }
    if transaction.chain_id is not None:
        found["chainId"] = hex(transaction.chain_id)
    if transaction.kind != LEGACY:
        found["yParity"] = hex(transaction.parity)
        found["accessList"] = [
            {"address": hex_data(address), "storageKeys": [hex_data(key.to_bytes(32)) for key in keys]}
            for address, keys in transaction.access_list
        ]
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
            render_log(log, header.number, header.hash, receipt.log_start + offset, transaction.hash, receipt.index)
            for offset, log in enumerate(receipt.logs)
        ],
        "logsBloom": hex_data(compute_bloom(receipt.logs)),
    }
    if receipt.reason:
        found["refusal"] = receipt.reason
    return found


def render_log(
    log: Log, number: int, block_hash: bytes, position: int, transaction_hash: bytes, transaction_position: int
) -> dict[str, Any]:
    """A log with its place. Any: a JSON object."""
    return {
        "address": hex_data(log.address),
        "topics": [hex_data(topic) for topic in log.topics],
        "data": hex_data(log.data),
        "blockNumber": hex(number),
        "blockHash": hex_data(block_hash),
        "transactionHash": hex_data(transaction_hash),
        "transactionIndex": hex(transaction_position),
        "logIndex": hex(position),
        "removed": False,
    }


def explain_revert(data: bytes) -> str:
    """The message of a revert as geth words it: `Error(string)` and `Panic(uint256)` are decoded."""
    reason = None
    if data[:4] == _ERROR_SELECTOR and len(data) >= 68:
        offset = int.from_bytes(data[4:36])
        size = int.from_bytes(data[4 + offset : 36 + offset]) if offset <= len(data) - 36 else len(data)
        if 36 + offset + size <= len(data):
            reason = data[36 + offset : 36 + offset + size].decode(errors="replace")
    elif data[:4] == _PANIC_SELECTOR and len(data) == 36:
        code = int.from_bytes(data[4:])
        reason = f"{_PANICS.get(code, 'unknown panic code')} (0x{code:x})"
    return "execution reverted" if reason is None else f"execution reverted: {reason}"


def failure_of(outcome: Outcome) -> RpcFault:
    """The error that a call's failed outcome becomes."""
    if outcome.status is Status.REVERT:
        return RpcFault(REVERTED, explain_revert(outcome.output), hex_data(outcome.output))
    if outcome.is_refused:
        return RpcFault(SERVER_ERROR, outcome.reason)
    return RpcFault(SERVER_ERROR, _HALTS.get(outcome.reason.partition("(")[0], outcome.reason))


def take_params(params: object, least: int, most: int) -> list[Any]:
    """Positional parameters, filled with None up to `most`. Any: JSON values, read by the method."""
    if params is None:
        params = []
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise bad_params("non-array args")
    if len(params) < least:
        raise bad_params(f"missing value for required argument {len(params)}")
    if len(params) > most:
        raise bad_params(f"too many arguments, want at most {most}")
    return [*params, *[None] * (most - len(params))]
