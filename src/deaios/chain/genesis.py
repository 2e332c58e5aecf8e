"""How a chain begins: a random seed, the operator, first balances and code.

The chain id is derived from the seed, so that nothing signed on one private network replays on another or after a
reset: chain id = 2^32 + (first 5 bytes of tagged_sha256("deaios/chain/id/1", seed)) mod (2^40 - 2^32). That is above
every registered small id and small enough for wallets (MetaMask stops near 2^52) and for `v` of legacy signatures.
"""

from dataclasses import dataclass

import msgspec

from deaios.chain.blocks import BLOOM_BYTES, BlockHeader, compute_logs_root, compute_transactions_root
from deaios.chain.commitment import StateCommitment
from deaios.chain.evm import EMPTY_CODE_HASH, Account, Changes, State
from deaios.chain.opcodes import explain_refusal, find_forbidden_opcode
from deaios.primitives.encoding import decode_decimal, decode_hex, encode_canonical_json, encode_decimal, encode_hex
from deaios.primitives.errors import ConfigError, Invalid
from deaios.primitives.hashing import ZERO32, keccak256, tagged_sha256
from deaios.primitives.keys import Address, parse_address

CHAIN_ID_MIN = 1 << 32
CHAIN_ID_LIMIT = 1 << 40
SEED_SIZE = 32
GAS_LIMIT = 30_000_000
BASE_FEE = 1_000_000_000
"""One gwei."""
ETHER = 10**18
GENESIS_BYTES_MAX = 64 << 20
VERSION = 1


class InvalidGenesis(Invalid):
    """Bytes that are not a genesis of this version."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One account that exists from the start."""

    address: Address
    balance: int = 0
    nonce: int = 0
    code: bytes = b""
    slots: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Genesis:
    """Everything that fixes block 0.

    Attributes:
        seed: 32 random bytes.
        operator: orders and signs blocks, receives priority fees.
        timestamp: seconds since the epoch.
    """

    seed: bytes
    operator: Address
    timestamp: int
    allocations: tuple[Allocation, ...] = ()
    gas_limit: int = GAS_LIMIT
    base_fee: int = BASE_FEE

    @property
    def chain_id(self) -> int:
        """Derived from the seed; see the module."""
        return derive_chain_id(self.seed)


def derive_chain_id(seed: bytes) -> int:
    """The chain id that belongs to a seed, in [2^32, 2^40)."""
    digest = tagged_sha256("deaios/chain/id/1", seed)
    return CHAIN_ID_MIN + int.from_bytes(digest[:5]) % (CHAIN_ID_LIMIT - CHAIN_ID_MIN)


def build_genesis_changes(genesis: Genesis) -> Changes:
    """The allocations as writes to an empty state.

    Raises:
        ConfigError: wrong seed size, an address twice, a value out of range, or code the engine cannot run exactly.
    """
    if len(genesis.seed) != SEED_SIZE:
        raise ConfigError(f"genesis seed has {len(genesis.seed)} bytes, {SEED_SIZE} expected")
    changes = Changes()
    for allocation in genesis.allocations:
        if allocation.address in changes.accounts:
            raise ConfigError(f"genesis allocates {encode_hex(allocation.address)} twice")
        if not (0 <= allocation.balance < 1 << 128 and 0 <= allocation.nonce < 1 << 64):
            raise ConfigError(f"genesis balance or nonce of {encode_hex(allocation.address)} is out of range")
        if opcode := find_forbidden_opcode(allocation.code):
            raise ConfigError(f"genesis contract {encode_hex(allocation.address)}: {explain_refusal(opcode)}")
        code_hash = keccak256(allocation.code) if allocation.code else EMPTY_CODE_HASH
        changes.accounts[allocation.address] = Account(allocation.nonce, allocation.balance, allocation.code, code_hash)
        changes.slots |= {(allocation.address, slot): value for slot, value in allocation.slots}
    return changes


def build_genesis_header(genesis: Genesis, commitment: StateCommitment) -> BlockHeader:
    """Header of block 0; its extra data is the seed, so its hash names the network."""
    return BlockHeader(
        parent_hash=ZERO32,
        coinbase=genesis.operator,
        state_commitment=commitment.digest(),
        transactions_root=compute_transactions_root([]),
        logs_root=compute_logs_root([]),
        logs_bloom=bytes(BLOOM_BYTES),
        number=0,
        gas_limit=genesis.gas_limit,
        gas_used=0,
        timestamp=genesis.timestamp,
        extra_data=genesis.seed,
        prevrandao=ZERO32,
        base_fee=genesis.base_fee,
    )


def build_genesis_commitment(changes: Changes) -> StateCommitment:
    """Commitment of block 0's state."""
    return StateCommitment().updated(State(), changes)


def compute_genesis_hash(genesis: Genesis) -> bytes:
    """Hash of block 0: the network id."""
    return build_genesis_header(genesis, build_genesis_commitment(build_genesis_changes(genesis))).hash


class _AllocationJson(msgspec.Struct, forbid_unknown_fields=True):
    address: str
    balance: str
    nonce: str
    code: str
    slots: dict[str, str]


class _GenesisJson(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    seed: str
    operator: str
    timestamp: int
    gasLimit: int  # noqa: N815 # wire spelling
    baseFee: str  # noqa: N815 # wire spelling
    allocations: list[_AllocationJson]


def encode_genesis(genesis: Genesis) -> bytes:
    """Canonical JSON of a genesis."""
    return encode_canonical_json(
        {
            "version": VERSION,
            "seed": encode_hex(genesis.seed),
            "operator": encode_hex(genesis.operator),
            "timestamp": genesis.timestamp,
            "gasLimit": genesis.gas_limit,
            "baseFee": encode_decimal(genesis.base_fee),
            "allocations": [
                {
                    "address": encode_hex(allocation.address),
                    "balance": encode_decimal(allocation.balance),
                    "nonce": encode_decimal(allocation.nonce),
                    "code": encode_hex(allocation.code),
                    "slots": {
                        encode_hex(slot.to_bytes(32)): encode_hex(value.to_bytes(32))
                        for slot, value in allocation.slots
                    },
                }
                for allocation in genesis.allocations
            ],
        }
    )


def decode_genesis(data: bytes) -> Genesis:
    """Read a genesis.

    Raises:
        InvalidGenesis: not JSON, another version, unknown or missing fields, or values out of range.
    """
    if len(data) > GENESIS_BYTES_MAX:
        raise InvalidGenesis(f"genesis has {len(data)} bytes, at most {GENESIS_BYTES_MAX}")
    try:
        record = msgspec.json.decode(data, type=_GenesisJson)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidGenesis(f"not a genesis: {error}") from error
    if record.version != VERSION:
        raise InvalidGenesis(f"genesis version {record.version}, this program knows {VERSION}")
    if not 0 <= record.timestamp < 1 << 40 or not 0 < record.gasLimit < 1 << 40:
        raise InvalidGenesis(f"genesis timestamp {record.timestamp} or gas limit {record.gasLimit} is out of range")
    return Genesis(
        seed=decode_hex(record.seed, SEED_SIZE),
        operator=parse_address(record.operator),
        timestamp=record.timestamp,
        gas_limit=record.gasLimit,
        base_fee=decode_decimal(record.baseFee, 128),
        allocations=tuple(
            Allocation(
                parse_address(item.address),
                decode_decimal(item.balance, 128),
                decode_decimal(item.nonce, 64),
                decode_hex(item.code),
                tuple(
                    (int.from_bytes(decode_hex(slot, 32)), int.from_bytes(decode_hex(value, 32)))
                    for slot, value in item.slots.items()
                ),
            )
            for item in record.allocations
        ),
    )
