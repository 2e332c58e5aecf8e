"""A root and further networks in one EVM: contracts between networks, deployed from the shipped artifacts.

The registry of the root is a stand-in that says what a test tells it to. Validators sign what a test tells them to.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import boa
import vyper
from contracts_world import (
    SUPPLY,
    ZERO32,
    Actor,
    abi_type,
    address_of,
    create_address,
    deploy,
    make_actor,
    struct_tuple,
)
from eth_abi import encode
from vyper.compiler.settings import Settings

from deaios.ledger import structs
from deaios.ledger.eip712 import Domain, sign_struct
from deaios.ledger.messages import MessageTree, encode_transfer
from deaios.ledger.networks import Validator, encode_validators, hash_validators
from deaios.ledger.structs import Checkpoint, Message, ValsetUpdate
from deaios.ledger.valset import build_root_id
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ZERO_ADDRESS, Address, checksum_address

HERE = Path(__file__).resolve().parent
TRUST_SECONDS = 1000
CREDIT_NAMES = ("DeAIOS Credit", "CREDIT", "1")
NOBODY = checksum_address(ZERO_ADDRESS)


@lru_cache
def compile_harness(name: str) -> tuple[bytes, list[dict[str, Any]]]:
    """Creation code and ABI of a contract that only tests have."""
    output = vyper.compile_code(
        (HERE / f"{name}.vy").read_text(), output_formats=["abi", "bytecode"], settings=Settings(evm_version="cancun")
    )
    return bytes.fromhex(output["bytecode"][2:]), output["abi"]


def deploy_harness(name: str, *arguments: object) -> Any:
    """Deploy it."""
    code, abi = compile_harness(name)
    inputs = [entry["inputs"] for entry in abi if entry["type"] == "constructor"]
    types = [abi_type(item) for item in inputs[0]] if inputs else []
    address, _ = boa.env.deploy_code(bytecode=code + encode(types, arguments))
    return boa.loads_abi(json.dumps(abi), name=name).at(address)


def sign_by(actors: Sequence[Actor], places: Iterable[int], domain: Domain, struct: Any) -> tuple[int, list[bytes]]:
    """Signatures of the actors at these places, as contracts want them."""
    chosen = sorted(set(places))
    return sum(1 << place for place in chosen), [sign_struct(actors[place].key, domain, struct) for place in chosen]


class Network:
    """The contracts of one network, and what its outbox said; the root's when it has no validators."""

    def __init__(self, world: "NetworksWorld", name: str, powers: Sequence[int] = ()) -> None:
        self.world = world
        self.name = name
        self.is_root = not powers
        self.founder = make_actor(f"{name} founder")
        self.actors = [make_actor(f"{name} validator {number}") for number in range(len(powers))]
        self.powers = list(powers)
        self.epoch = 1
        self.trees: dict[bytes, MessageTree] = {}
        self.messages: dict[bytes, list[Message]] = {}
        if self.is_root:
            self.id = build_root_id(world.chain_id)
            self._deploy_root()
        else:
            self.id = keccak256(b"network " + name.encode())
            self._deploy_further()

    def _plan(self, before: int) -> Iterator[str]:
        """Where the three contracts will be that follow so many others."""
        nonce = boa.env.evm.vm.state.get_nonce(self.founder.address) + before
        return (create_address(self.founder.address, nonce + place) for place in range(3))

    def _deploy_root(self) -> None:
        world, sender = self.world, self.founder.text
        outbox, inbox, bridge = self._plan(1)
        self.credit = deploy("Credit", *CREDIT_NAMES, world.holder.text, SUPPLY, bridge, SUPPLY, sender=sender)
        self.outbox = deploy("Outbox", ZERO32, sender=sender)
        registry = world.registry.address
        self.inbox = deploy("Inbox", ZERO32, registry, 0, registry, sender=sender)
        self.bridge = deploy("Bridge", self.credit.address, outbox, inbox, registry, ZERO32, NOBODY, sender=sender)

    def _deploy_further(self) -> None:
        world, sender = self.world, self.founder.text
        self.begin_epoch(self.epoch)
        outbox, inbox, bridge = self._plan(2)
        self.credit = deploy("Credit", *CREDIT_NAMES, sender, 0, bridge, SUPPLY, sender=sender)
        registry = world.registry.address
        self.mirror = deploy(
            "ValsetMirror",
            self.id,
            world.chain_id,
            registry,
            TRUST_SECONDS,
            self.epoch,
            world.now,
            self.validators_hash,
            sender=sender,
        )
        self.outbox = deploy("Outbox", self.id, sender=sender)
        self.inbox = deploy("Inbox", self.id, self.mirror.address, world.chain_id, registry, sender=sender)
        root = world.root
        self.bridge = deploy(
            "Bridge", self.credit.address, outbox, inbox, NOBODY, root.id, root.bridge.address, sender=sender
        )
        world.registry.add(self.id, sender)
        root.bridge.connect(self.id, bridge, sender=sender)

    # Validators

    @property
    def validators(self) -> tuple[Validator, ...]:
        return tuple(Validator(actor.address, power) for actor, power in zip(self.actors, self.powers, strict=True))

    @property
    def words(self) -> list[int]:
        return list(encode_validators(self.validators))

    @property
    def validators_hash(self) -> bytes:
        return hash_validators(self.validators)

    def begin_epoch(self, number: int) -> None:
        """The root says so."""
        self.epoch = number
        self.world.registry.begin(self.id, number, self.validators_hash)

    def make_update(self, epoch: int, validators_hash: bytes = b"\x22" * 32, begun_at: int | None = None) -> Any:
        return ValsetUpdate(self.id, epoch, self.world.now if begun_at is None else begun_at, validators_hash)

    def update(self, update: Any, places: Iterable[int] | None = None) -> None:
        """Signed by the validators at these places, all by default."""
        chosen = range(len(self.actors)) if places is None else places
        signed = sign_by(self.actors, chosen, self.world.domain, update)
        self.mirror.update(struct_tuple(update), self.words, *signed, sender=self.world.stranger.text)

    # Messages

    def say(self, destination: "Network", target: str, payload: bytes, sender: Actor | None = None) -> Message:
        """Send through the outbox, and remember it."""
        who = sender or self.world.stranger
        self.outbox.send(destination.id, target, payload, sender=who.text)
        return self.note(destination.id, who.address, target, payload)

    def note(self, destination: bytes, sender: Address, target: str, payload: bytes) -> Message:
        """Remember what the outbox was given."""
        tree = self.trees.setdefault(destination, MessageTree(self.id, destination))
        message = Message(self.id, destination, tree.count, sender, Address(bytes.fromhex(target[2:])), payload)
        tree.append(message)
        self.messages.setdefault(destination, []).append(message)
        return message

    def accept(self, source: "Network", count: int | None = None, places: Iterable[int] | None = None) -> bytes:
        """A checkpoint of what a network sent here, signed by whom this network believes; its root."""
        tree = source.trees[self.id]
        root = tree.root(count or tree.count)
        self.accept_checkpoint(Checkpoint(source.id, self.id, count or tree.count, root), source, places)
        return root

    def accept_checkpoint(self, checkpoint: Any, source: "Network", places: Iterable[int] | None = None) -> None:
        speaker = source if self.is_root else self
        chosen = range(len(speaker.actors)) if places is None else places
        signed = sign_by(speaker.actors, chosen, self.world.domain, checkpoint)
        self.inbox.accept(struct_tuple(checkpoint), speaker.words, *signed, sender=self.world.stranger.text)

    def deliver(self, source: "Network", nonce: int, root: bytes, count: int | None = None) -> None:
        tree = source.trees[self.id]
        path = list(tree.prove(nonce, count or tree.count))
        message = source.messages[self.id][nonce]
        self.inbox.deliver(message_tuple(message), root, path, sender=self.world.stranger.text)

    # Money

    def send_credit(self, destination: "Network", owner: Actor, receiver: Actor, amount: int) -> Message:
        """Through the bridge; the message that carries it."""
        self.credit.approve(self.bridge.address, amount, sender=owner.text)
        self.bridge.send(destination.id, receiver.text, amount, sender=owner.text)
        via = destination if self.is_root else self.world.root
        payload = encode_transfer(destination.id, receiver.address, amount)
        return self.note(via.id, address_of(self.bridge), via.bridge.address, payload)


def message_tuple(message: Message) -> tuple[Any, ...]:
    """As the ABI wants it; a payload may have twenty bytes, which are no address."""
    *head, sender, target, payload = message.__dict__.values()
    return *head, checksum_address(sender), checksum_address(target), payload


class NetworksWorld:
    """The root and some further networks, named by letters; validators of `powers` each."""

    def __init__(self, *further: Sequence[int]) -> None:
        self.chain_id = int(boa.env.evm.patch.chain_id)
        self.holder, self.stranger = make_actor("holder of all"), make_actor("passer-by")
        self.registry = deploy_harness("RegistryHarness", TRUST_SECONDS)
        self.root = Network(self, "root")
        self.further = [Network(self, "abcdefgh"[place], powers) for place, powers in enumerate(further)]

    @property
    def domain(self) -> Domain:
        return structs.networks_domain(self.chain_id, address_of(self.registry))

    @property
    def now(self) -> int:
        return int(boa.env.evm.patch.timestamp)

    def wait(self, seconds: int) -> None:
        boa.env.time_travel(seconds=seconds, block_delta=1)


def make_abroad() -> NetworksWorld:
    """A root and one further network, three of whose four validators are a quorum."""
    return NetworksWorld([5, 4, 4, 4])
