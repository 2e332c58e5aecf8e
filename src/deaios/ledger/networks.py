"""Networks behind one stake: their ids, and validator sets as the contracts have them.

A network's id binds who founded it, so that nobody can take another's name; it binds no contract of the further chain,
so that such a contract can have the id in its constructor. Does no I/O.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deaios.ledger.abi import encode_values
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ADDRESS_SIZE, ZERO_ADDRESS, Address

NETWORK_TAG = "deaios/network/1"
VALIDATORS_MAX = 100
SERVICES_MAX = 16
"""What one network can say that it hosts."""
POWER_BITS = 96
_KEY_BITS = 8 * ADDRESS_SIZE


class InvalidValidators(Invalid):
    """A validator set that no root can have written."""


@dataclass(frozen=True, slots=True)
class Validator:
    """A key of a network and what its vote weighs."""

    key: Address
    power: int


def build_network_id(founder: Address, genesis_hash: bytes, chain_id: int, salt: bytes) -> bytes:
    """What a network is called on the root and in every signature."""
    kinds = ("string", "address", "bytes32", "uint256", "bytes32")
    return keccak256(encode_values(kinds, (NETWORK_TAG, founder, genesis_hash, chain_id, salt), "network id"))


def encode_validators(validators: Sequence[Validator]) -> tuple[int, ...]:
    """The set as the contracts' words, in the same order.

    Raises:
        InvalidValidators: as by `decode_validators`.
    """
    words = tuple(item.power << _KEY_BITS | int.from_bytes(item.key) for item in validators)
    decode_validators(words)
    return words


def decode_validators(words: Iterable[int]) -> tuple[Validator, ...]:
    """Read a set from the contracts' words.

    Raises:
        InvalidValidators: none, or too many; a key that is zero or there twice; a power that is zero or too large.
    """
    found = tuple(
        Validator(Address((word & ((1 << _KEY_BITS) - 1)).to_bytes(ADDRESS_SIZE)), word >> _KEY_BITS) for word in words
    )
    if not 0 < len(found) <= VALIDATORS_MAX:
        raise InvalidValidators(f"{len(found)} validators, 1 to {VALIDATORS_MAX} allowed")
    keys = {item.key for item in found}
    if len(keys) != len(found) or ZERO_ADDRESS in keys:
        raise InvalidValidators("a validator's key is zero, or there twice")
    if any(not 0 < item.power < 1 << POWER_BITS for item in found):
        raise InvalidValidators(f"a validator's power is not 1 to 2^{POWER_BITS} - 1")
    return found


def hash_validators(validators: Sequence[Validator]) -> bytes:
    """What a validator set is called in a `ValsetUpdate`."""
    return keccak256(encode_values(("uint256[]",), (encode_validators(validators),), "validators"))
