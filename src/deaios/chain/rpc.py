"""Ethereum JSON-RPC requests as values: reading parameters, and the error object of a response.

Field names, codes and messages are those of geth where clients depend on them
(https://ethereum.github.io/execution-apis/, https://www.jsonrpc.org/specification, geth's rpc and internal/ethapi).
Knows no transport and no chain; `chain.rendering` writes what `chain.rpc` reads.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from deaios.chain.evm import Log
from deaios.ledger.transactions import ACCESS_ITEMS_MAX, TRANSACTION_BYTES_MAX, AccessList
from deaios.primitives.errors import DeaiosError
from deaios.primitives.keys import ADDRESS_SIZE, Address

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
SERVER_ERROR = -32000
TIMED_OUT = -32002
RESPONSE_TOO_LARGE = -32003
NOT_SUPPORTED = -32004
LIMIT_EXCEEDED = -32005
REVERTED = 3
PRUNED = 4444

HASH_SIZE = 32
CALL_BYTES_MAX = TRANSACTION_BYTES_MAX * 8
"""Input of eth_call and eth_estimateGas: more than any transaction could carry."""
TOPICS_MAX = 4
TOPIC_CHOICES_MAX = 1000
ADDRESSES_MAX = 1000

_QUANTITY = re.compile(r"0x(?:0|[1-9a-fA-F][0-9a-fA-F]{0,63})", re.ASCII)

_WORD = re.compile(r"(?:0[xX])?([0-9a-fA-F]*)", re.ASCII)
_TAGS = ("latest", "pending", "safe", "finalized", "earliest")

T = TypeVar("T")


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


def server_error(message: str) -> RpcFault:
    """What geth answers with its default code: the request was understood, and cannot be answered so."""
    return RpcFault(SERVER_ERROR, message)


@dataclass(frozen=True, slots=True)
class BlockRef:
    """Which block a caller means: a number, a hash, or the newest.

    Attributes:
        is_pending: the newest, and one further.
        is_earliest: the oldest that is kept; its number is 0 where all are.
    """

    number: int | None = None
    block_hash: bytes | None = None
    is_pending: bool = False
    is_earliest: bool = False

    @property
    def is_newest(self) -> bool:
        """No block in particular: wherever the chain is."""
        return self.number is None and self.block_hash is None


@dataclass(frozen=True, slots=True)
class CallRequest:
    """The transaction object of eth_call, eth_estimateGas and eth_createAccessList.

    Attributes:
        fee_cap: most wei per gas; 0 for a message that pays nothing.
        tip: wei per gas above the base fee; None for a gas price of the old kind.
        nonce: names the contract that a creation makes; None for the sender's own.
    """

    sender: Address
    to: Address | None
    data: bytes
    value: int
    gas: int | None
    fee_cap: int
    tip: int | None
    nonce: int | None
    access_list: AccessList

    def price_at(self, base_fee: int) -> int:
        """What a gas unit costs the sender in a block with this base fee."""
        return self.fee_cap if self.tip is None else min(self.fee_cap, base_fee + self.tip)


@dataclass(frozen=True, slots=True)
class LogFilter:
    """The filter object of eth_getLogs, eth_newFilter and eth_subscribe."""

    first: BlockRef
    last: BlockRef
    block_hash: bytes | None
    addresses: tuple[Address, ...]
    topics: tuple[tuple[bytes, ...], ...]

    @property
    def size(self) -> int:
        """Addresses and topics named; what keeping it costs."""
        return len(self.addresses) + sum(len(choices) for choices in self.topics)

    def matches(self, log: Log) -> bool:
        """Is this log wanted, wherever it stands?"""
        if self.addresses and log.address not in self.addresses:
            return False
        if len(self.topics) > len(log.topics):
            return False
        return all(not wanted or topic in wanted for wanted, topic in zip(self.topics, log.topics, strict=False))


def read_quantity(value: object, name: str, bits: int = 256) -> int:
    """A hex quantity without leading zeros; a JSON integer is taken too, as geth does for counts."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << bits:
        return value
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value) or (number := int(value, 16)) >> bits:
        raise bad_params(f"{name} is {_show(value)}, a hex quantity below 2^{bits} expected")
    return number


def read_data(value: object, name: str, size: int | None = None, size_max: int = CALL_BYTES_MAX) -> bytes:
    """Hex bytes, of an exact size where the field has one."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise bad_params(f"{name} is {_show(value)}, 0x hex bytes expected")
    try:
        data = bytes.fromhex(value[2:])
    except ValueError as error:
        raise bad_params(f"{name} is {_show(value)}, 0x hex bytes expected") from error
    length = len(data)
    if 2 * length != len(value) - 2:  # `fromhex` steps over spaces
        raise bad_params(f"{name} is {_show(value)}, 0x hex bytes expected")
    if (size is not None and length != size) or length > size_max:
        raise bad_params(f"{name} has {length} bytes, {f'at most {size_max}' if size is None else size} expected")
    return data


def read_address(value: object, name: str) -> Address:
    """An address in any case; wallets send checksummed and lower-case ones."""
    return Address(read_data(value, name, ADDRESS_SIZE))


def read_hash(value: object, name: str) -> bytes:
    """A 32-byte hash."""
    return read_data(value, name, HASH_SIZE)


def read_word(value: object, name: str) -> int:
    """A storage key: hex with or without prefix and leading zeros, at most 32 bytes, as geth reads them."""
    found = _WORD.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise bad_params(f"{name} is {_show(value)}, at most 32 hex bytes expected")
    if len(found[1]) > 2 * HASH_SIZE:
        raise bad_params(f"storage key too long (want at most 32 bytes): {name} is {_show(value)}")
    return int(found[1] or "0", 16)


def read_flag(value: object, name: str) -> bool:
    """A JSON boolean; absent is false."""
    if value is not None and not isinstance(value, bool):
        raise bad_params(f"{name} is {_show(value)}, a boolean expected")
    return bool(value)


def read_block_ref(value: object, name: str = "block") -> BlockRef:
    """A tag, a number, or an EIP-1898 object."""
    if value is None or value in ("latest", "safe", "finalized"):
        return BlockRef()
    if value == "pending":
        return BlockRef(is_pending=True)
    if value == "earliest":
        return BlockRef(number=0, is_earliest=True)
    if isinstance(value, Mapping):
        number, block_hash = value.get("blockNumber"), value.get("blockHash")
        if number is not None and block_hash is not None:
            raise bad_params("cannot specify both BlockHash and BlockNumber, choose one or the other")
        if block_hash is not None:
            return BlockRef(block_hash=read_hash(block_hash, "blockHash"))
        if number is not None:
            return read_block_ref(number, "blockNumber") if not isinstance(number, Mapping) else _no_ref(value, name)
        raise bad_params("must specify either BlockHash or BlockNumber")
    if isinstance(value, str) and value.startswith("0x"):
        if len(value) == 2 + 2 * HASH_SIZE:
            return BlockRef(block_hash=read_hash(value, name))
        return BlockRef(number=read_quantity(value, name, 64))
    return _no_ref(value, name)


def _no_ref(value: object, name: str) -> BlockRef:
    raise bad_params(f"{name} is {_show(value)}, a number or one of {', '.join(_TAGS)} expected")


def read_access_list(value: object) -> AccessList:
    """An EIP-2930 access list as JSON."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise bad_params("accessList is not a list")
    entries: list[tuple[Address, tuple[int, ...]]] = []
    items = 0
    for entry in value:
        keys = entry.get("storageKeys") if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(keys, list):
            raise bad_params("an accessList entry is not {address, storageKeys}")
        items += 1 + len(keys)
        if items > ACCESS_ITEMS_MAX:
            raise bad_params(f"accessList names more than {ACCESS_ITEMS_MAX} addresses and keys")
        address = read_address(entry.get("address"), "accessList.address")
        entries.append((address, tuple(int.from_bytes(read_hash(key, "accessList.storageKeys")) for key in keys)))
    return tuple(entries)


def read_call(value: object) -> CallRequest:
    """The transaction object of a call; unknown keys are ignored, as everywhere in Ethereum."""
    if not isinstance(value, Mapping):
        raise bad_params("a transaction object is expected")
    data, given = value.get("data"), value.get("input")
    if data is not None and given is not None and data != given:
        raise server_error(
            'both "data" and "input" are set and not equal; please use "input" to pass transaction call data'
        )
    chosen = given if given is not None else data
    if value.get("blobVersionedHashes") or value.get("authorizationList"):
        raise server_error(
            "transaction type not supported: blob and set-code fields; this ledger takes types 0, 1 and 2"
        )
    legacy, cap, tip = value.get("gasPrice"), value.get("maxFeePerGas"), value.get("maxPriorityFeePerGas")
    if legacy is not None and (cap is not None or tip is not None):
        raise server_error("both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified")
    fee_cap, priority = read_quantity(legacy or cap or 0, "gasPrice"), read_quantity(tip or 0, "maxPriorityFeePerGas")
    if priority > fee_cap:
        raise server_error(
            "max priority fee per gas higher than max fee per gas: "
            f"maxPriorityFeePerGas: {priority}, maxFeePerGas: {fee_cap}"
        )
    nonce = value.get("nonce")
    return CallRequest(
        sender=read_address(value["from"], "from") if value.get("from") is not None else Address(bytes(ADDRESS_SIZE)),
        to=read_address(value["to"], "to") if value.get("to") is not None else None,
        data=b"" if chosen is None else read_data(chosen, "input"),
        value=read_quantity(value.get("value") or 0, "value"),
        gas=read_quantity(value["gas"], "gas", 64) if value.get("gas") is not None else None,
        fee_cap=fee_cap,
        tip=priority if cap is not None else None,
        nonce=None if nonce is None else read_quantity(nonce, "nonce", 64),
        access_list=read_access_list(value.get("accessList")),
    )


def read_log_filter(value: object) -> LogFilter:
    """The filter object of eth_getLogs, eth_newFilter and eth_subscribe."""
    if not isinstance(value, Mapping):
        raise bad_params("a filter object is expected")
    block_hash = None
    if value.get("blockHash") is not None:
        if value.get("fromBlock") is not None or value.get("toBlock") is not None:
            raise bad_params("cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other")
        block_hash = read_hash(value["blockHash"], "blockHash")
    given = value.get("address")
    addresses = given if isinstance(given, list) else [] if given is None else [given]
    if len(addresses) > ADDRESSES_MAX:
        raise bad_params(f"exceed max addresses or topics per search position: {len(addresses)}, limit {ADDRESSES_MAX}")
    topics = value.get("topics") or []
    if not isinstance(topics, list):
        raise bad_params("invalid topic(s)")
    if len(topics) > TOPICS_MAX:
        raise bad_params("exceed max topics")
    return LogFilter(
        first=_read_bound(value.get("fromBlock"), "fromBlock"),
        last=_read_bound(value.get("toBlock"), "toBlock"),
        block_hash=block_hash,
        addresses=tuple(read_address(item, "address") for item in addresses),
        topics=tuple(_read_topic(item) for item in topics),
    )


def _read_bound(value: object, name: str) -> BlockRef:
    ref = read_block_ref(value, name)
    if ref.block_hash is not None:
        raise bad_params(f"{name} is {_show(value)}, a number or a tag expected")
    return ref


def _read_topic(value: object) -> tuple[bytes, ...]:
    choices = value if isinstance(value, list) else [] if value is None else [value]
    if len(choices) > TOPIC_CHOICES_MAX:
        raise bad_params("exceed max topics")
    return () if None in choices else tuple(read_hash(item, "topic") for item in choices)


def take_params(params: object, least: int, most: int) -> list[Any]:
    """Positional parameters, filled with None up to `most`. Any: JSON values, read by the method."""
    if params is None:
        params = []
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise bad_params("non-array args")
    if len(params) > most:
        raise bad_params(f"too many arguments, want at most {most}")
    missing = next((index for index in range(least) if index >= len(params) or params[index] is None), None)
    if missing is not None:
        raise bad_params(f"missing value for required argument {missing}")
    return [*params, *[None] * (most - len(params))]


def read_at(params: Sequence[Any], index: int, reader: Callable[..., T], *options: object) -> T:
    """One parameter, with its place in the error. Any: JSON values; options are the reader's own arguments."""
    try:
        return reader(params[index], *options)
    except RpcFault as fault:
        if fault.code != INVALID_PARAMS:
            raise
        raise bad_params(f"invalid argument {index}: {fault}") from fault


def _show(value: object) -> str:
    """A stranger's value in a message: never long, and in one line."""
    return repr(str(value)[:80])
