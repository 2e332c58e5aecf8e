"""Outbox and Inbox: every message that was sent is delivered once, and nothing else is."""

from dataclasses import fields, replace

import boa
import pytest
from contracts_world import ZERO32, struct_tuple
from eth_abi import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from networks_world import TRUST_SECONDS, NetworksWorld, deploy_harness, message_tuple, sign_by

from deaios.ledger.eip712 import hash_struct
from deaios.ledger.messages import PAYLOAD_BYTES_MAX, TAG, InvalidMessages, MessageTree
from deaios.ledger.structs import Checkpoint, Message
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import ADDRESS_SIZE, Address, checksum_address
from deaios.primitives.merkle import build_root, prove_leaf, verify_leaf

DELIVER = keccak256(b"deliver((bytes32,bytes32,uint64,address,address,bytes),bytes32,bytes32[])")[:4]


@pytest.fixture
def networks():
    with boa.env.anchor():
        yield NetworksWorld([2, 1, 1], [1])


@pytest.fixture
def receiver(networks):
    return deploy_harness("ReceiverHarness")


def make_message(nonce, source=b"\1" * 32, destination=b"\2" * 32, payload=b"x"):
    return Message(source, destination, nonce, Address(b"\3" * 20), Address(b"\4" * 20), payload)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 80), data=st.data())
def test_the_growing_tree_is_the_list_s_tree(count, data):
    """Roots and proofs of any earlier count, from a tree that went on."""
    items = [make_message(number, payload=bytes([number])) for number in range(80)]
    tree = MessageTree(items[0].source, items[0].destination)
    for item in items:
        tree.append(item)
    leaves = [hash_struct(item) for item in items[:count]]
    assert tree.root(count) == build_root(TAG, leaves)
    nonce = data.draw(st.integers(0, count - 1))
    path = tree.prove(nonce, count)
    assert path == prove_leaf(leaves, nonce)
    assert verify_leaf(TAG, tree.root(count), count, nonce, leaves[nonce], path)


def test_a_tree_takes_its_next_message_only():
    tree = MessageTree(b"\1" * 32, b"\2" * 32)
    for wrong in (make_message(1), make_message(0, source=b"\5" * 32), make_message(0, destination=b"\5" * 32)):
        with pytest.raises(InvalidMessages):
            tree.append(wrong)
    tree.append(make_message(0))
    for question in (lambda: tree.root(0), lambda: tree.root(2), lambda: tree.prove(1, 1), lambda: tree.prove(-1, 1)):
        with pytest.raises(InvalidMessages):
            question()


def test_the_outbox_keeps_python_s_tree(networks):
    a, root = networks.further[0], networks.root
    assert tuple(a.outbox.checkpoint(root.id)) == (0, ZERO32)
    for number in range(37):
        message = a.say(root, networks.stranger.text, bytes([number]) * (number * 7))
        assert message.nonce == number
        assert tuple(a.outbox.checkpoint(root.id)) == (number + 1, a.trees[root.id].root(number + 1))
    # One destination's numbers are its own.
    assert a.say(networks.further[1], networks.stranger.text, b"").nonce == 0
    assert a.outbox.countOf(root.id) == 37


def test_what_an_outbox_refuses(networks):
    a, root = networks.further[0], networks.root
    sender = networks.stranger.text
    with boa.reverts("outbox: destination is this network"):
        a.outbox.send(a.id, sender, b"", sender=sender)
    with boa.reverts("outbox: destination is this network"):
        root.outbox.send(root.id, sender, b"", sender=sender)
    with boa.reverts("outbox: target is zero"):
        a.outbox.send(root.id, checksum_address(Address(bytes(20))), b"", sender=sender)
    a.say(root, sender, bytes(PAYLOAD_BYTES_MAX))
    with boa.reverts():
        a.outbox.send(root.id, sender, bytes(PAYLOAD_BYTES_MAX + 1), sender=sender)
    assert a.outbox.countOf(root.id) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("inward", [True, False])
def test_each_message_is_delivered_once_in_any_order(networks, receiver, count, inward):
    a, root = networks.further[0], networks.root
    source, target = (root, a) if inward else (a, root)
    for number in range(count):
        source.say(target, receiver.address, bytes([number]))
    top = target.accept(source)
    for told, nonce in enumerate([*range(1, count, 2), *range(0, count, 2)], 1):
        assert not target.inbox.isDelivered(source.id, nonce)
        target.deliver(source, nonce, top)
        assert target.inbox.isDelivered(source.id, nonce)
        assert receiver.told() == told
        message = source.messages[target.id][nonce]
        heard = (message.source, checksum_address(message.sender), nonce, message.payload, target.inbox.address)
        assert receiver.last() == keccak256(encode(["bytes32", "address", "uint64", "bytes", "address"], heard))
        with boa.reverts("inbox: message is delivered"):
            target.deliver(source, nonce, top)
    assert target.inbox.deliveredWord(source.id, 0) == (1 << count) - 1


def test_a_later_checkpoint_repeats_nothing_and_an_earlier_one_stays_good(networks, receiver):
    a, root = networks.further[0], networks.root
    for number in range(5):
        a.say(root, receiver.address, bytes([number]))
    early = root.accept(a, 3)
    late = root.accept(a)
    root.deliver(a, 1, early, 3)
    root.deliver(a, 4, late)
    with boa.reverts("inbox: message is delivered"):
        root.deliver(a, 1, late)
    with boa.reverts("inbox: message is delivered"):
        path = list(a.trees[root.id].prove(1, 3))
        root.inbox.deliver(message_tuple(a.messages[root.id][1]), early, path, sender=networks.stranger.text)
    with boa.reverts("inbox: message is not under the root"):
        path = list(a.trees[root.id].prove(4, 5))
        root.inbox.deliver(message_tuple(a.messages[root.id][4]), early, path, sender=networks.stranger.text)
    with boa.reverts("inbox: checkpoint is accepted"):
        root.accept(a, 3)
    root.deliver(a, 0, early, 3)
    assert root.inbox.deliveredWord(a.id, 0) == 0b10011


def test_nothing_of_a_message_can_be_changed(networks, receiver):
    a, root = networks.further[0], networks.root
    for number in range(4):
        a.say(root, receiver.address, bytes([number]) * 40)
    top = root.accept(a)
    message, path = a.messages[root.id][2], list(a.trees[root.id].prove(2, 4))
    deliver, stranger = root.inbox.deliver, networks.stranger.text
    other = {int: 3, bytes: b"y" * 32}
    for field in fields(message):
        value = getattr(message, field.name)
        changed = other[type(value)] if field.name != "payload" else message.payload + b"\0"
        if isinstance(value, bytes) and len(value) == ADDRESS_SIZE:
            changed = Address(b"\7" * 20)
        with boa.reverts():
            deliver(message_tuple(replace(message, **{field.name: changed})), top, path, sender=stranger)
    for wrong in (path[::-1], path[:1], [*path, ZERO32], []):
        with boa.reverts("inbox: message is not under the root"):
            deliver(message_tuple(message), top, wrong, sender=stranger)
    with boa.reverts("inbox: root is not accepted"):
        deliver(message_tuple(message), a.trees[root.id].root(3), path, sender=stranger)
    deliver(message_tuple(message), top, path, sender=stranger)


def test_a_place_beyond_the_count_is_no_message(networks, receiver):
    """The tree's empty places, and numbers that would name a known place again."""
    a, root = networks.further[0], networks.root
    for number in range(3):
        a.say(root, receiver.address, bytes([number]))
    top = root.accept(a)
    last = a.messages[root.id][2]
    for nonce in (3, 4, 6, 2 + (1 << 32), (1 << 64) - 1):
        with boa.reverts("inbox: message is not under the root"):
            path = list(a.trees[root.id].prove(2, 3))
            root.inbox.deliver(message_tuple(replace(last, nonce=nonce)), top, path, sender=networks.stranger.text)


def test_a_target_that_refuses_keeps_nobody_waiting_and_loses_nothing(networks, receiver):
    a, root = networks.further[0], networks.root
    patient = deploy_harness("ReceiverHarness")
    a.say(root, receiver.address, b"first")
    a.say(root, patient.address, b"second")
    a.say(root, networks.stranger.text, b"to nobody who can listen")
    top = root.accept(a)
    receiver.refuse(True)
    with boa.reverts("receiver: not now"):
        root.deliver(a, 0, top)
    with boa.reverts():
        root.deliver(a, 2, top)
    root.deliver(a, 1, top)
    assert (patient.told(), root.inbox.deliveredWord(a.id, 0)) == (1, 0b010)
    receiver.refuse(False)
    root.deliver(a, 0, top)
    assert (receiver.told(), root.inbox.deliveredWord(a.id, 0)) == (1, 0b011)


def test_a_target_cannot_be_told_twice_from_within(networks, receiver):
    a, root = networks.further[0], networks.root
    for number in range(2):
        a.say(root, receiver.address, bytes([number]))
    top = root.accept(a)
    kinds = ["(bytes32,bytes32,uint64,address,address,bytes)", "bytes32", "bytes32[]"]
    for nonce in range(2):
        message, path = message_tuple(a.messages[root.id][nonce]), list(a.trees[root.id].prove(nonce, 2))
        receiver.arm(root.inbox.address, DELIVER + encode(kinds, [message, top, path]))
        with boa.env.anchor():
            root.deliver(a, 0, top)
            assert (receiver.told(), receiver.gotThrough()) == (1, 0)
            assert root.inbox.deliveredWord(a.id, 0) == 0b01


@pytest.mark.parametrize("inward", [True, False])
def test_a_checkpoint_needs_more_than_two_thirds(networks, receiver, inward):
    """Of the source's power on the root, of its own power on a further network."""
    b = NetworksWorld([4, 2, 3]).further[0]
    root = b.world.root
    source, target = (root, b) if inward else (b, root)
    source.say(target, receiver.address, b"x")
    with boa.reverts("inbox: too little power signed"):
        target.accept(source, places=[0, 1])
    with boa.reverts("inbox: too little power signed"):
        target.accept(source, places=[])
    target.accept(source, places=[0, 2])


def test_whose_word_counts(networks, receiver):
    """Neither the root's inbox nor a network's believes another network's validators."""
    a, b = networks.further
    root = networks.root
    stranger = networks.stranger.text
    for source, target in ((a, root), (a, b), (root, b)):
        source.say(target, receiver.address, b"x")
    checkpoint = Checkpoint(a.id, root.id, 1, a.trees[root.id].root(1))
    signed = sign_by(b.actors, [0], networks.domain, checkpoint)
    with boa.reverts("inbox: not the current set"):
        root.inbox.accept(struct_tuple(checkpoint), b.words, *signed, sender=stranger)
    checkpoint = Checkpoint(a.id, b.id, 1, a.trees[b.id].root(1))
    signed = sign_by(a.actors, range(3), networks.domain, checkpoint)
    with boa.reverts("inbox: not the current set"):
        b.inbox.accept(struct_tuple(checkpoint), a.words, *signed, sender=stranger)
    b.deliver(a, 0, b.accept(a))
    b.deliver(root, 0, b.accept(root))
    with boa.reverts("inbox: checkpoint is for another network"):
        b.accept_checkpoint(replace(checkpoint, destination=a.id), a)
    with boa.reverts("inbox: checkpoint is empty"):
        b.accept_checkpoint(replace(checkpoint, count=0), a)
    with boa.reverts("inbox: source is not known"):
        unknown = replace(checkpoint, source=b"\7" * 32, destination=root.id)
        signed = sign_by(a.actors, range(3), networks.domain, unknown)
        root.inbox.accept(struct_tuple(unknown), a.words, *signed, sender=stranger)


@pytest.mark.parametrize("inward", [True, False])
def test_sets_of_before_and_trust_that_is_over(networks, receiver, inward):
    a, root = networks.further[0], networks.root
    source, target = (root, a) if inward else (a, root)
    source.say(target, receiver.address, b"x")
    with boa.env.anchor():
        networks.wait(TRUST_SECONDS + 1)
        with boa.reverts("inbox: trust period is over"):
            target.accept(source)
    old = list(a.powers)
    a.powers = [1, 1, 2]
    a.begin_epoch(2)
    update = a.make_update(2, a.validators_hash)
    a.powers = old
    a.update(update)
    with boa.reverts("inbox: not the current set"):
        target.accept(source)
    a.powers = [1, 1, 2]
    # What was signed under the old set counts under the new one: a checkpoint names no epoch.
    target.deliver(source, 0, target.accept(source))


def test_constructors_refuse_what_makes_no_sense(deploy_contract, deployment_reverts, networks):
    somewhere, nowhere = networks.stranger.text, checksum_address(Address(bytes(20)))
    with deployment_reverts("inbox: a contract is zero"):
        deploy_contract("Inbox", b"\1" * 32, nowhere, 1, somewhere)
    with deployment_reverts("inbox: a contract is zero"):
        deploy_contract("Inbox", b"\1" * 32, somewhere, 1, nowhere)
    for network, root_chain_id in ((ZERO32, 1), (b"\1" * 32, 0)):
        with deployment_reverts("inbox: the root has no id but its chain's"):
            deploy_contract("Inbox", network, somewhere, root_chain_id, somewhere)
    with deployment_reverts("mirror: registry or trust period is zero"):
        deploy_contract("ValsetMirror", b"\1" * 32, 1, nowhere, 1, 1, 1, b"\2" * 32)
    with deployment_reverts("mirror: registry or trust period is zero"):
        deploy_contract("ValsetMirror", b"\1" * 32, 1, somewhere, 0, 1, 1, b"\2" * 32)
    with deployment_reverts("mirror: epoch is not later"):
        deploy_contract("ValsetMirror", b"\1" * 32, 1, somewhere, 1, 0, 1, b"\2" * 32)
    with deployment_reverts("mirror: set is zero"):
        deploy_contract("ValsetMirror", b"\1" * 32, 1, somewhere, 1, 1, 1, ZERO32)


class Mail(RuleBasedStateMachine):
    """Messages between a root and two networks in any order, with forgeries and repetitions."""

    def __init__(self):
        super().__init__()
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()
        self.world = NetworksWorld([2, 1, 1], [1])
        self.all = [self.world.root, *self.world.further]
        self.receiver = deploy_harness("ReceiverHarness")
        self.accepted = {}
        self.delivered = set()

    def teardown(self):
        self.anchor.__exit__(None, None, None)

    def pairs(self):
        return [(source, target) for source in self.all for target in self.all if source.trees.get(target.id)]

    @rule(data=st.data(), payload=st.binary(max_size=40))
    def say(self, data, payload):
        source, target = data.draw(st.permutations(self.all))[:2]
        source.say(target, self.receiver.address, payload)

    @precondition(lambda self: self.pairs())
    @rule(data=st.data(), is_cut=st.booleans())
    def accept(self, data, is_cut):
        source, target = data.draw(st.sampled_from(self.pairs()))
        count = (
            source.trees[target.id].count if not is_cut else data.draw(st.integers(1, source.trees[target.id].count))
        )
        speaker = source if target.is_root else target
        places = data.draw(st.sets(st.integers(0, len(speaker.actors) - 1)))
        enough = 3 * sum(speaker.powers[place] for place in places) > 2 * sum(speaker.powers)
        known = self.accepted.setdefault((source.name, target.name), {})
        if not enough or count in known:
            with boa.reverts():
                target.accept(source, count, places)
        else:
            known[count] = target.accept(source, count, places)

    @precondition(lambda self: any(self.accepted.values()))
    @rule(data=st.data(), is_forged=st.booleans())
    def deliver(self, data, is_forged):
        source, target = data.draw(
            st.sampled_from([pair for pair in self.pairs() if self.accepted.get((pair[0].name, pair[1].name))])
        )
        count, top = data.draw(st.sampled_from(sorted(self.accepted[source.name, target.name].items())))
        nonce = data.draw(st.integers(0, source.trees[target.id].count - 1))
        name = source.name, target.name, nonce
        message = source.messages[target.id][nonce]
        if is_forged:
            message = replace(message, payload=message.payload + b"!")
        path = list(source.trees[target.id].prove(nonce, count)) if nonce < count else []
        arguments = message_tuple(message), top, path
        if is_forged or nonce >= count or name in self.delivered:
            with boa.reverts():
                target.inbox.deliver(*arguments, sender=self.world.stranger.text)
        else:
            target.inbox.deliver(*arguments, sender=self.world.stranger.text)
            self.delivered.add(name)

    @invariant()
    def each_was_told_once(self):
        assert self.receiver.told() == len(self.delivered)


@pytest.mark.slow
def test_any_order_of_messages():
    run_state_machine_as_test(
        Mail,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
