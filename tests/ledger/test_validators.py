"""What a validator sees and signs, and which signatures make a quorum."""

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from deaios.ledger.client.bound import ContractEvent
from deaios.ledger.client.messages import OutboxView
from deaios.ledger.client.rpc import UnavailableChain
from deaios.ledger.client.scanner import Scanner
from deaios.ledger.eip712 import hash_typed_data, recover_signer
from deaios.ledger.networks import InvalidValidators, Validator, hash_validators
from deaios.ledger.service.validator import SignedAnswer, ValidatorDoor, build_validator_application
from deaios.ledger.store import PromiseStore, RefusedSecondPromise
from deaios.ledger.structs import Checkpoint, networks_domain
from deaios.ledger.valset import Epoch, InvalidValset, Valset, build_quorum, build_root_id
from deaios.primitives.errors import ConfigError
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.client import HttpClient, RefusedByPeer
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

KEYS = [PrivateKey(keccak256(b"validator %d" % number)) for number in range(4)]
DOMAIN = networks_domain(7, Address(b"\7" * 20))
ROOT, ISLAND = build_root_id(7), b"\x11" * 32


def make_valset(*powers):
    validators = tuple(Validator(key.address, power) for key, power in zip(KEYS, powers, strict=False))
    return Valset(Epoch(3, 1000, hash_validators(validators)), validators)


def test_a_quorum_leaves_out_what_is_wrong_and_what_is_not_needed():
    valset = make_valset(1, 4, 2, 3)
    checkpoint = Checkpoint(ISLAND, ROOT, 1, b"\x22" * 32)
    digest = hash_typed_data(DOMAIN, checkpoint)
    good = {key.address: key.sign_digest(digest) for key in KEYS}
    # 4 + 3 of 10 are more than two thirds; places 1 and 3, in the order of places.
    quorum = build_quorum(valset, digest, good)
    assert (quorum.signers, quorum.signatures) == (0b1010, (good[KEYS[1].address], good[KEYS[3].address]))
    for wrong in (KEYS[0].sign_digest(digest), bytes(65), b"", good[KEYS[1].address][:64] + b"\0"):
        spoiled = build_quorum(valset, digest, good | {KEYS[1].address: wrong})
        assert spoiled is None, "without the strongest exactly six of ten are left"
        assert build_quorum(valset, digest, good | {KEYS[0].address: wrong}).signers == 0b1010
    assert build_quorum(valset, digest, {}) is None


def test_a_set_is_the_one_that_its_epoch_names():
    valset = make_valset(1, 2)
    assert Valset.of_words(valset.epoch, valset.words) == valset
    with pytest.raises(InvalidValset):
        Valset(replace(valset.epoch, validators_hash=bytes(32)), valset.validators)
    with pytest.raises(InvalidValset):
        Valset(valset.epoch, valset.validators[::-1])
    with pytest.raises(InvalidValidators):
        Valset.of_words(valset.epoch, (valset.words[0], valset.words[0]))
    assert valset.has_key(KEYS[1].address)
    assert not valset.has_key(KEYS[2].address)


def test_a_slot_has_one_content_for_ever(tmp_path):
    store = PromiseStore(tmp_path / "promises.db")
    store.promise(b"slot", b"one")
    store.promise(b"slot", b"one")
    store.promise(b"another", b"two")
    with pytest.raises(RefusedSecondPromise):
        store.promise(b"slot", b"two")
    store.close()
    again = PromiseStore(tmp_path / "promises.db")
    with pytest.raises(RefusedSecondPromise):
        again.promise(b"slot", b"two")
    assert again.count() == 2
    again.close()
    (tmp_path / "broken.db").write_bytes(b"this is no database at all, and long enough to be seen as one" * 20)
    with pytest.raises(ConfigError):
        PromiseStore(tmp_path / "broken.db")


@dataclass
class FakeChain:
    """Blocks by their names, with events in them; stands for a node and for a contract on it."""

    blocks: list[str] = field(default_factory=lambda: ["genesis"])
    events: dict[str, list[ContractEvent]] = field(default_factory=dict)
    url: str = "fake"
    asked: int = 0
    between: object = None

    @property
    def rpc(self):
        return self

    async def block_number(self):
        return len(self.blocks) - 1

    async def get_block(self, number):
        if not 0 <= number < len(self.blocks):
            return None
        return SimpleNamespace(number=number, hash=keccak256(self.blocks[number].encode()))

    async def fetch_events(self, _name, *, from_block, to_block):
        self.asked += 1
        found = [event for block in self.blocks[from_block : to_block + 1] for event in self.events.get(block, [])]
        if self.between is not None:
            self.between()
        return tuple(found)

    def add(self, name, *events):
        self.blocks.append(name)
        self.events[name] = list(events)


def sent(nonce, payload=b"x", destination=ROOT):
    values = {
        "destination": destination,
        "sender": Address(b"\3" * 20),
        "target": Address(b"\4" * 20),
        "nonce": nonce,
        "payload": payload,
    }
    return ContractEvent("Sent", values, None)


async def test_events_are_taken_once_and_when_they_are_confirmed():
    chain, taken, restarts = FakeChain(), [], []
    scanner = Scanner(chain, "Sent", 3, taken.append, lambda: restarts.append(True))
    for number in range(6):
        chain.add(f"block {number}", sent(number))
        await scanner.sync()
        await scanner.sync()
        assert [event.values["nonce"] for event in taken] == list(range(max(number - 1, 0)))
    assert restarts == []
    asked = chain.asked
    await scanner.sync()
    assert chain.asked == asked, "nothing new, nothing asked"


async def test_a_chain_that_turns_out_to_be_another_is_read_anew():
    chain, taken = FakeChain(), []
    scanner = Scanner(chain, "Sent", 1, taken.append, taken.clear)
    chain.add("one", sent(0, b"old"))
    chain.add("two", sent(1, b"old"))
    await scanner.sync()
    del chain.blocks[2:]
    chain.add("another two", sent(1, b"new"))
    await scanner.sync()
    assert [event.values["payload"] for event in taken] == [b"old", b"new"]
    # And what changes between question and answer is not taken at all.
    chain.add("three", sent(2))
    chain.between = lambda: chain.blocks.__setitem__(3, "another three")
    with pytest.raises(UnavailableChain):
        await scanner.sync()
    assert len(taken) == 2


@asynccontextmanager
async def open_door(tmp_path, chain):
    promises = PromiseStore(tmp_path / "promises.db")
    view = OutboxView(SimpleNamespace(contract=chain), ISLAND, 1, keeps_messages=False)
    door = ValidatorDoor(
        root=ROOT,
        domain=DOMAIN,
        keys={ISLAND: KEYS[0]},
        epochs=SimpleNamespace(get=lambda _network, _epoch: None, sync=view.sync),
        outboxes={ISLAND: view},
        promises=promises,
        clock=SystemClock(),
    )
    async with serve(build_validator_application(door, promises)) as url, HttpClient() as http:
        yield (
            view,
            promises,
            lambda count: http.get_json(f"{url}/checkpoints/0x{ISLAND.hex()}/0x{ROOT.hex()}/{count}", SignedAnswer),
        )
    promises.close()


async def test_a_validator_whose_chain_changed_under_it_falls_silent(tmp_path):
    chain = FakeChain()
    chain.add("one", sent(0, b"old"))
    async with open_door(tmp_path, chain) as (view, promises, ask):
        answer = await ask(1)
        checkpoint = Checkpoint(ISLAND, ROOT, 1, view.trees[ROOT].root(1))
        assert recover_signer(DOMAIN, checkpoint, bytes.fromhex(answer.signature[2:])) == KEYS[0].address
        assert await ask(1) == answer
        chain.blocks[1:] = []
        chain.add("another one", sent(0, b"new"))
        await view.sync()
        assert view.trees[ROOT].root(1) != checkpoint.root
        with pytest.raises(RefusedByPeer, match="RefusedSecondPromise"):
            await ask(1)
        assert promises.count() == 1
    # Its next life remembers.
    async with open_door(tmp_path, chain) as (view, promises, ask):
        with pytest.raises(RefusedByPeer, match="RefusedSecondPromise"):
            await ask(1)
        chain.add("two", sent(1))
        await view.sync()
        assert await ask(2)
        assert promises.count() == 2
