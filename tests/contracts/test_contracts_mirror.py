"""Sets of validators on a further network: who may say what the next one is, and for how long."""

from dataclasses import replace
from fractions import Fraction

import boa
import pytest
from contracts_world import make_actor, struct_tuple
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from networks_world import TRUST_SECONDS, NetworksWorld, sign_by

from deaios.ledger.eip712 import hash_typed_data
from deaios.ledger.networks import Validator, encode_validators, hash_validators
from deaios.ledger.structs import Checkpoint, networks_domain
from deaios.ledger.valset import Epoch, Valset, build_quorum
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import _CURVE_ORDER as ORDER

POWER_MAX = 2**96 - 1
powers = st.lists(st.integers(1, 6) | st.integers(1, POWER_MAX) | st.just(POWER_MAX), min_size=1, max_size=9)


@pytest.fixture
def networks():
    with boa.env.anchor():
        yield NetworksWorld([5, 3, 1])


@pytest.fixture
def network(networks):
    return networks.further[0]


def epoch_of(network):
    return tuple(network.mirror.epochOf(network.id))


def test_it_begins_with_what_the_root_said(networks, network):
    assert epoch_of(network) == (1, networks.now, network.validators_hash)
    assert tuple(network.mirror.epochOf(networks.root.id)) == (0, 0, bytes(32))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), of=powers)
def test_more_than_two_thirds_decide(data, of):
    """Python says the same, and finds such a quorum wherever there is one."""
    places = data.draw(st.sets(st.integers(0, len(of) - 1)))
    with boa.env.anchor():
        network = NetworksWorld(of).further[0]
        update = network.make_update(2)
        power = sum(of[place] for place in places)
        enough = Fraction(power, sum(of)) > Fraction(2, 3)
        valset = Valset(Epoch(1, 0, network.validators_hash), network.validators)
        assert valset.is_quorum(power) == enough
        digest = hash_typed_data(network.world.domain, update)
        signatures = {network.actors[place].address: network.actors[place].key.sign_digest(digest) for place in places}
        quorum = build_quorum(valset, digest, signatures)
        assert (quorum is not None) == enough
        if quorum is None:
            with boa.reverts("mirror: too little power signed"):
                network.update(update, places)
            return
        arguments = (struct_tuple(update), network.words)
        with boa.env.anchor():
            network.update(update, places)
        network.mirror.update(*arguments, quorum.signers, list(quorum.signatures), sender=network.world.stranger.text)
        assert epoch_of(network) == (2, network.world.now, update.validators_hash)


@pytest.mark.parametrize(
    ("of", "short", "enough"),
    [
        ([2, 1], [0], [0, 1]),
        ([1, 1, 1], [0, 1], [0, 1, 2]),
        ([4, 2, 3], [0, 1], [0, 2]),
        ([2 * POWER_MAX // 3, POWER_MAX // 3], [0], [0, 1]),
        ([2 * POWER_MAX // 3 + 1, POWER_MAX // 3], [1], [0]),
    ],
)
def test_exactly_two_thirds_are_too_few(of, short, enough):
    with boa.env.anchor():
        network = NetworksWorld(of).further[0]
        with boa.reverts("mirror: too little power signed"):
            network.update(network.make_update(2), short)
        network.update(network.make_update(2), enough)


def test_epochs_only_rise_and_may_be_left_out(networks, network):
    same = network.validators_hash
    network.update(network.make_update(7, same))
    for number in (7, 6, 1, 0):
        with boa.reverts("mirror: epoch is not later"):
            network.update(network.make_update(number, same))
    with boa.reverts("mirror: epoch began before"):
        network.update(network.make_update(8, same, networks.now - 1))
    network.update(network.make_update(8))
    with boa.reverts("mirror: not the current set"):
        network.update(network.make_update(9, same))


def test_an_update_is_of_one_network_and_of_one_root(networks):
    with boa.env.anchor():
        first, second = NetworksWorld([1], [1]).further
        second.actors, second.powers = first.actors, first.powers
        with boa.reverts("mirror: update is of another network"):
            first.update(second.make_update(2))
        update = first.make_update(2)
        stranger = first.world.stranger.text
        elsewhere = networks_domain(first.world.chain_id + 1, first.world.domain.contract)
        signed = sign_by(first.actors, [0], elsewhere, update)
        with boa.reverts("quorum: signature is not the validator's"):
            first.mirror.update(struct_tuple(update), first.words, *signed, sender=stranger)
        # What they say about messages says nothing about sets.
        checkpoint = Checkpoint(update.network, update.validators_hash, update.epoch, update.validators_hash)
        signed = sign_by(first.actors, [0], first.world.domain, checkpoint)
        with boa.reverts("quorum: signature is not the validator's"):
            first.mirror.update(struct_tuple(update), first.words, *signed, sender=stranger)


def test_no_signature_counts_twice_or_for_another(networks, network):
    update, stranger = network.make_update(2), networks.stranger.text
    signers, signatures = sign_by(network.actors, [0, 1], networks.domain, update)
    send = network.mirror.update

    def refused(reason, words, *signed):
        with boa.reverts(reason):
            send(struct_tuple(update), words, *signed, sender=stranger)

    words = network.words
    refused("quorum: signature is not the validator's", words, signers, signatures[::-1])
    refused("quorum: signature is not the validator's", words, 0b101, signatures)
    refused("quorum: signature is not the validator's", words, 0b111, [*signatures, signatures[0]])
    refused("quorum: a signature is missing", words, 0b111, signatures)
    refused("quorum: signer is not in the set", words, 0b001, signatures)
    refused("quorum: signer is not in the set", words, signers | 1 << 3, signatures)
    refused("quorum: signer is not in the set", words, signers | 1 << 255, signatures)
    refused("mirror: too little power signed", words, 0, [])
    refused("mirror: not the current set", words[::-1], signers, signatures)
    refused("mirror: not the current set", words[:2], signers, signatures)
    refused("mirror: not the current set", [words[0] + (1 << 160), *words[1:]], signers, signatures)
    first = signatures[0]
    high_s = first[:32] + (ORDER - int.from_bytes(first[32:64])).to_bytes(32) + bytes([55 - first[64]])
    for restated in (high_s, first[:64] + bytes([first[64] - 27]), first[:64], bytes(65)):
        refused("quorum: signature is not the validator's", words, signers, [restated, signatures[1]])
    with boa.reverts("mirror: set is zero"):
        network.update(network.make_update(2, bytes(32)))
    send(struct_tuple(update), words, signers, signatures, sender=stranger)


def test_after_the_trust_period_they_say_nothing(networks, network):
    update = network.make_update(2, network.validators_hash)
    networks.wait(TRUST_SECONDS)
    assert network.mirror.isTrusted()
    with boa.env.anchor():
        network.update(update)
        # The new epoch began when the root says, not when it came here.
        networks.wait(1)
        assert not network.mirror.isTrusted()
    networks.wait(1)
    with boa.reverts("mirror: trust period is over"):
        network.update(update)


def test_a_hundred_validators_fit(networks):
    with boa.env.anchor():
        network = NetworksWorld([10] * 100).further[0]
        update = network.make_update(2)
        with boa.reverts("mirror: too little power signed"):
            network.update(update, range(66))
        before = boa.env.get_gas_used()
        network.update(update, range(67))
        assert boa.env.get_gas_used() - before < 2_000_000


class Mirror(RuleBasedStateMachine):
    """Any updates by any validators, beside what the mirror should hold."""

    def __init__(self):
        super().__init__()
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()
        self.world = NetworksWorld([3, 3, 2])
        self.network = self.world.further[0]
        self.now = self.world.now
        self.expected = (1, self.now, self.network.validators_hash)

    def teardown(self):
        self.anchor.__exit__(None, None, None)

    @rule(
        number=st.integers(0, 5),
        of=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        generation=st.integers(0, 2),
        data=st.data(),
    )
    def update(self, number, of, generation, data):
        network = self.network
        actors = [make_actor(f"generation {generation} validator {place}") for place in range(len(of))]
        new = tuple(Validator(actor.address, power) for actor, power in zip(actors, of, strict=True))
        update = network.make_update(self.expected[0] + number - 2 if self.expected[0] + number >= 2 else 0)
        update = replace(update, validators_hash=hash_validators(new), begun_at=self.world.now)
        places = data.draw(st.sets(st.integers(0, len(network.actors) - 1)))
        power = sum(network.powers[place] for place in places)
        is_over = self.world.now > self.expected[1] + TRUST_SECONDS
        if is_over or 3 * power <= 2 * sum(network.powers) or update.epoch <= self.expected[0]:
            with boa.reverts():
                network.update(update, places)
            return
        network.update(update, places)
        network.actors, network.powers = actors, of
        self.expected = (update.epoch, update.begun_at, update.validators_hash)
        with boa.reverts():
            network.update(update)

    @precondition(lambda self: self.world.now <= self.expected[1] + TRUST_SECONDS)
    @rule(seconds=st.integers(1, TRUST_SECONDS))
    def wait(self, seconds):
        self.world.wait(seconds)

    @invariant()
    def holds_what_was_signed(self):
        assert epoch_of(self.network) == self.expected


@pytest.mark.slow
def test_any_order_of_updates():
    run_state_machine_as_test(
        Mirror, settings=settings(max_examples=12, stateful_step_count=12, deadline=None, database=None)
    )


def test_words_of_a_set_are_those_of_python(network):
    assert keccak256(
        bytes(31) + b"\x20" + (3).to_bytes(32) + b"".join(word.to_bytes(32) for word in network.words)
    ) == (network.validators_hash)
    assert encode_validators(network.validators) == tuple(network.words)
