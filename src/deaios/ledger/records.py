"""What a node answers over Ethereum JSON-RPC, read into typed records: blocks, receipts, logs.

Every reader takes parsed JSON that is hostile until it is read, bounds what it keeps, and raises `InvalidAnswer`.
Knows nothing of transport. Source: https://ethereum.github.io/execution-apis/
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from deaios.ledger.abi import DATA_BYTES_MAX, TOPICS_MAX
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import ADDRESS_SIZE, Address

LOGS_MAX = 20_000
"""Most logs taken from one answer."""
HASH_SIZE = 32
CODE_BYTES_MAX = 1 << 20

_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}", re.ASCII)
_DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)


class InvalidAnswer(Invalid):
    """The node answered, but not in the Ethereum JSON-RPC format."""


class InvalidAnswerSize(InvalidAnswer):
    """The answer is larger than what we take at once; a narrower question may have a smaller one."""


@dataclass(frozen=True, slots=True)
class Log:
    """One event as the chain keeps it."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block_number: int
    transaction_hash: bytes
    log_index: int


@dataclass(frozen=True, slots=True)
class TransactionReceipt:
    """What became of a transaction that is in a block."""

    transaction_hash: bytes
    block_number: int
    block_hash: bytes
    gas_used: int
    gas_price: int
    is_success: bool
    contract: Address | None
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """The part of a block header that clients use; `base_fee` is None before London."""

    number: int
    hash: bytes
    parent_hash: bytes
    timestamp: int
    gas_limit: int
    base_fee: int | None


def read_quantity(value: object, where: str = "quantity") -> int:
    """A hex number of at most 256 bits."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise InvalidAnswer(f"{where} is not a hex quantity: {str(value)[:80]!r}")
    return int(value, 16)


def read_data(value: object, where: str = "data", size_bytes: int | None = None, limit: int = DATA_BYTES_MAX) -> bytes:
    """Hex bytes, of an exact size or at most `limit`."""
    if not isinstance(value, str) or len(value) > 2 + 2 * limit or not _DATA.fullmatch(value):
        raise InvalidAnswer(f"{where} is not hex of at most {limit} bytes: {str(value)[:80]!r}")
    data = bytes.fromhex(value[2:])
    if size_bytes is not None and len(data) != size_bytes:
        raise InvalidAnswer(f"{where} has {len(data)} bytes, {size_bytes} expected")
    return data


def read_hash(value: object, where: str = "hash") -> bytes:
    """A 32-byte hash."""
    return read_data(value, where, HASH_SIZE)


def read_block(value: object) -> Block:
    """A block object."""
    items = _object(value, "block")
    base_fee = items.get("baseFeePerGas")
    return Block(
        number=read_quantity(items.get("number"), "block number"),
        hash=read_hash(items.get("hash"), "block hash"),
        parent_hash=read_hash(items.get("parentHash"), "parent hash"),
        timestamp=read_quantity(items.get("timestamp"), "block timestamp"),
        gas_limit=read_quantity(items.get("gasLimit"), "block gas limit"),
        base_fee=None if base_fee is None else read_quantity(base_fee, "base fee"),
    )


def read_receipt(value: object) -> TransactionReceipt:
    """A transaction receipt object."""
    items = _object(value, "receipt")
    status = read_quantity(items.get("status"), "receipt status")
    if status not in (0, 1):
        raise InvalidAnswer(f"receipt status is {status}, 0 or 1 expected")
    contract = items.get("contractAddress")
    return TransactionReceipt(
        transaction_hash=read_hash(items.get("transactionHash"), "transaction hash"),
        block_number=read_quantity(items.get("blockNumber"), "block number"),
        block_hash=read_hash(items.get("blockHash"), "block hash"),
        gas_used=read_quantity(items.get("gasUsed"), "gas used"),
        gas_price=read_quantity(items.get("effectiveGasPrice"), "gas price"),
        is_success=status == 1,
        contract=None if contract is None else Address(read_data(contract, "contract address", ADDRESS_SIZE)),
        logs=read_logs(items.get("logs")),
    )


def read_logs(value: object) -> tuple[Log, ...]:
    """A list of log objects."""
    if not isinstance(value, list):
        raise InvalidAnswer("logs are not a list")
    if len(value) > LOGS_MAX:
        raise InvalidAnswerSize(f"{len(value)} logs, at most {LOGS_MAX} are taken at once")
    return tuple(_read_log(item) for item in value)


def _read_log(value: object) -> Log:
    items = _object(value, "log")
    topics = items.get("topics")
    if not isinstance(topics, list) or len(topics) > TOPICS_MAX:
        raise InvalidAnswer(f"log topics are not a list of at most {TOPICS_MAX}")
    return Log(
        address=Address(read_data(items.get("address"), "log address", ADDRESS_SIZE)),
        topics=tuple(read_hash(topic, "log topic") for topic in topics),
        data=read_data(items.get("data"), "log data"),
        block_number=read_quantity(items.get("blockNumber"), "log block number"),
        transaction_hash=read_hash(items.get("transactionHash"), "log transaction hash"),
        log_index=read_quantity(items.get("logIndex"), "log index"),
    )


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise InvalidAnswer(f"{where} is not a JSON object")
    return value
