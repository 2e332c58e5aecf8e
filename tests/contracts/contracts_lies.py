"""Networks, keys and what keys sign, true or not, over the suite of `contracts_world.py`."""

from dataclasses import replace
from typing import Any

from contracts_world import ZERO32, Actor, World, address_of, make_actor, struct_tuple

from deaios.ledger.eip712 import Domain, hash_struct, sign_struct
from deaios.ledger.networks import Validator, build_network_id, decode_validators, hash_validators
from deaios.ledger.structs import Checkpoint, Header, KeyAssignment, ValsetUpdate, header_domain, networks_domain
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

SALT = b"\x31" * 32
CHAIN_ID = 424_242


class Chains:
    """Networks that the stranger founds, and their validators."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.founder, self.prover = world.stranger, world.accuser
        world.approve(self.founder, world.networks)

    @property
    def domain(self) -> Domain:
        return networks_domain(self.world.chain_id, address_of(self.world.networks))

    def genesis(self, name: str) -> bytes:
        return keccak256(b"genesis/" + name.encode())

    def id_of(self, name: str) -> bytes:
        return build_network_id(self.founder.address, self.genesis(name), CHAIN_ID, ZERO32)

    def add(self, name: str) -> bytes:
        arguments = (self.genesis(name), CHAIN_ID, self.world.deployer.text, ZERO32, [keccak256(b"payments")])
        self.world.networks.add(*arguments, sender=self.founder.text)
        return self.id_of(name)

    def consent(self, key: Actor, network: bytes, operator: Actor) -> bytes:
        return sign_struct(key.key, self.domain, KeyAssignment(network, operator.address))

    def join(self, network: bytes, operator: Actor, key: Actor) -> None:
        consent = self.consent(key, network, operator)
        self.world.networks.join(network, key.text, consent, sender=operator.text)

    def populate(self, name: str) -> tuple[bytes, list[Actor]]:
        """A network with a key of every validator, in its first epoch."""
        network = self.add(name)
        keys = [make_actor(f"{name} key {number}") for number in range(len(self.world.validators))]
        for operator, key in zip(self.world.validators, keys, strict=True):
            self.join(network, operator, key)
        self.world.networks.beginEpoch(network, sender=self.world.buyer.text)
        return network, keys

    def validators(self, network: bytes) -> tuple[Validator, ...]:
        return decode_validators(self.world.networks.validatorsOf(network))

    # What keys sign

    def header(self, name: str, height: int = 7, **changes: Any) -> Header:
        header = Header(self.genesis(name), height, ZERO32, ZERO32, ZERO32, ZERO32, 1000)
        return replace(header, **changes)

    def true_update(self, network: bytes) -> ValsetUpdate:
        epoch, begun_at, validators_hash = self.world.networks.epochOf(network)
        return ValsetUpdate(network, epoch, begun_at, bytes(validators_hash))

    def checkpoint(self, source: bytes, destination: bytes, **changes: Any) -> Checkpoint:
        return replace(Checkpoint(source, destination, 3, b"\x01" * 32), **changes)

    # Proofs

    def commit(self, first: bytes, second: bytes, prover: Actor | None = None, salt: bytes = SALT) -> None:
        prover = prover or self.prover
        commitment = keccak256(prover.address.rjust(32, b"\0") + first + second + salt)
        self.world.equivocation.commitEvidence(commitment, sender=prover.text)

    def headers_arguments(
        self, network: bytes, a: Header, b: Header, key: Actor, other: Actor | None = None, chain_id: int = CHAIN_ID
    ) -> tuple[Any, ...]:
        domain = header_domain(chain_id)
        signatures = [sign_struct(actor.key, domain, item) for actor, item in ((key, a), (other or key, b))]
        return (network, struct_tuple(a), signatures[0], struct_tuple(b), signatures[1], SALT)

    def prove_headers(self, network: bytes, a: Header, b: Header, key: Actor, **options: Any) -> int:
        """By the prover, who committed a block before."""
        self.commit(hash_struct(a), hash_struct(b))
        self.world.wait(1)
        arguments = self.headers_arguments(network, a, b, key, **options)
        return int(self.world.equivocation.proveHeaders(*arguments, sender=self.prover.text))

    def prove_checkpoints(self, a: Checkpoint, b: Checkpoint, key: Actor, other: Actor | None = None) -> int:
        self.commit(hash_struct(a), hash_struct(b))
        self.world.wait(1)
        signatures = [sign_struct(actor.key, self.domain, item) for actor, item in ((key, a), (other or key, b))]
        arguments = (struct_tuple(a), signatures[0], struct_tuple(b), signatures[1], SALT)
        return int(self.world.equivocation.proveCheckpoints(*arguments, sender=self.prover.text))

    def prove_valset(self, update: ValsetUpdate, key: Actor) -> int:
        self.commit(hash_struct(update), ZERO32)
        self.world.wait(1)
        arguments = (struct_tuple(update), sign_struct(key.key, self.domain, update), SALT)
        return int(self.world.equivocation.proveValset(*arguments, sender=self.prover.text))

    def lie(self, network: bytes, name: str, key: Actor, height: int = 7) -> int:
        """Two headers of one height, proven."""
        a = self.header(name, height)
        return self.prove_headers(network, a, replace(a, state_commitment=b"\x02" * 32), key)


def expected_set(pairs: list[tuple[Actor, int]]) -> tuple[Validator, ...]:
    """Keys with powers in CREDIT."""
    return tuple(Validator(key.address, power * CREDIT) for key, power in pairs)


def hash_of(validators: tuple[Validator, ...]) -> bytes:
    return hash_validators(validators)
