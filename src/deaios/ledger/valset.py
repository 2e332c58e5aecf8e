"""A network's validators in an epoch, and their quorums, equal to `ledger/contracts/quorum.vy` to the last bit.

More than two thirds of a set's power speak for its network: exactly two thirds are too few. Knows no chain and no key.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from deaios.ledger.networks import Validator, decode_validators, encode_validators, hash_validators
from deaios.ledger.structs import ValsetUpdate
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address, InvalidSignature, recover_address

NETWORK_ID_SIZE = 32


class InvalidValset(Invalid):
    """A set that is not the one a chain names."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What a chain says about a network's validators; epoch 0 where it knows none. `begun_at` in Unix seconds."""

    number: int
    begun_at: int
    validators_hash: bytes

    def to_update(self, network: bytes) -> ValsetUpdate:
        """The same as validators sign it."""
        return ValsetUpdate(network, self.number, self.begun_at, self.validators_hash)


@dataclass(frozen=True, slots=True)
class Valset:
    """An epoch with its validators, in the root's order."""

    epoch: Epoch
    validators: tuple[Validator, ...]

    def __post_init__(self) -> None:
        if hash_validators(self.validators) != self.epoch.validators_hash:
            raise InvalidValset(f"these are not the validators of epoch {self.epoch.number}")

    @classmethod
    def of_words(cls, epoch: Epoch, words: tuple[int, ...]) -> "Valset":
        """Read a set from the contracts' words.

        Raises:
            InvalidValset: it is not that epoch's.
            InvalidValidators: it is no set.
        """
        return cls(epoch, decode_validators(words))

    @property
    def words(self) -> tuple[int, ...]:
        """The set as contracts want it."""
        return encode_validators(self.validators)

    @property
    def total(self) -> int:
        """All power."""
        return sum(validator.power for validator in self.validators)

    def is_quorum(self, power: int) -> bool:
        """Is this more than two thirds of all power?"""
        return 3 * power > 2 * self.total

    def has_key(self, key: Address) -> bool:
        """Is this one of the validators' keys?"""
        return any(validator.key == key for validator in self.validators)


@dataclass(frozen=True, slots=True)
class Quorum:
    """Signatures of more than two thirds, as contracts want them: bit i of `signers` is the validator at place i."""

    signers: int
    signatures: tuple[bytes, ...]


def build_root_id(chain_id: int) -> bytes:
    """What the root is called in messages: its chain id as a word; it has no validators of its own."""
    return chain_id.to_bytes(NETWORK_ID_SIZE)


def build_quorum(valset: Valset, digest: bytes, signatures: Mapping[Address, bytes]) -> Quorum | None:
    """The fewest signatures that are a quorum, strongest first; None where those that are right are too few.

    Args:
        valset: whose quorum.
        digest: the 32 bytes that are signed.
        signatures: by key; from strangers, so wrong ones are left out.
    """
    power, chosen = 0, dict[int, bytes]()
    for place, validator in sorted(enumerate(valset.validators), key=lambda item: (-item[1].power, item[0])):
        signature = signatures.get(validator.key)
        if signature is None or not has_signed(validator.key, digest, signature):
            continue
        chosen[place] = signature
        power += validator.power
        if valset.is_quorum(power):
            return Quorum(sum(1 << item for item in chosen), tuple(chosen[item] for item in sorted(chosen)))
    return None


def has_signed(key: Address, digest: bytes, signature: bytes) -> bool:
    """Is this a key's canonical signature of a digest?"""
    try:
        return recover_address(digest, signature) == key
    except InvalidSignature:
        return False
