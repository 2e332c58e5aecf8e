"""Credit between networks: what is burned on one is minted on another, and on all together there is as much as before.

The machine runs three networks and a captured one: its validators sign what they like, and can take what went there
and nothing else.
"""

from collections import Counter

import boa
import pytest
from contracts_world import SUPPLY, ZERO32, address_of, make_actor
from eth_abi import encode
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from networks_world import CREDIT_NAMES, NOBODY, NetworksWorld, message_tuple

from deaios.ledger.messages import encode_transfer
from deaios.primitives.units import CREDIT

ALICE, BOB = make_actor("alice"), make_actor("bob")


@pytest.fixture
def networks():
    with boa.env.anchor():
        world = NetworksWorld([1, 1, 1], [1], [1])
        world.root.credit.transfer(ALICE.text, 1000 * CREDIT, sender=world.holder.text)
        yield world


def carry(source, target):
    """Deliver all that was sent and can be delivered."""
    tree = source.trees[target.id]
    top = target.accept(source)
    for nonce in range(tree.count):
        if not target.inbox.isDelivered(source.id, nonce):
            target.deliver(source, nonce, top)


def forwarded(world, receiver, amount, destination):
    """The root's outbox was given this by its bridge; remember it."""
    payload = encode_transfer(destination.id, receiver.address, amount)
    return world.root.note(destination.id, address_of(world.root.bridge), destination.bridge.address, payload)


def test_there_and_back(networks):
    root, a = networks.root, networks.further[0]
    root.send_credit(a, ALICE, BOB, 300)
    assert (root.credit.totalSupply(), root.bridge.outstanding(a.id)) == (SUPPLY - 300, 300)
    assert (a.credit.totalSupply(), root.credit.balanceOf(root.bridge.address)) == (0, 0)
    carry(root, a)
    assert (a.credit.totalSupply(), a.credit.balanceOf(BOB.text)) == (300, 300)
    a.send_credit(root, BOB, ALICE, 120)
    assert (a.credit.totalSupply(), root.credit.totalSupply()) == (180, SUPPLY - 300)
    carry(a, root)
    assert (root.credit.totalSupply(), root.bridge.outstanding(a.id)) == (SUPPLY - 180, 180)
    assert root.credit.balanceOf(ALICE.text) == 1000 * CREDIT - 180


def test_between_two_networks_it_passes_through_the_hub(networks):
    root, (a, b, _) = networks.root, networks.further
    root.send_credit(a, ALICE, ALICE, 300)
    carry(root, a)
    a.send_credit(b, ALICE, BOB, 100)
    carry(a, root)
    forwarded(networks, BOB, 100, b)
    assert tuple(root.outbox.checkpoint(b.id)) == (1, root.trees[b.id].root(1))
    assert root.credit.totalSupply() == SUPPLY - 300
    assert [root.bridge.outstanding(item.id) for item in (a, b)] == [200, 100]
    carry(root, b)
    assert (b.credit.balanceOf(BOB.text), a.credit.totalSupply(), b.credit.totalSupply()) == (100, 200, 100)


def test_what_cannot_go_on_arrives_at_the_hub(networks):
    root, (a, b, _) = networks.root, networks.further
    root.send_credit(a, ALICE, ALICE, 300)
    carry(root, a)
    networks.registry.retire(b.id)
    for number, unknown in enumerate((b.id, b"\7" * 32), 1):
        a.credit.approve(a.bridge.address, 100, sender=ALICE.text)
        a.bridge.send(unknown, BOB.text, 100, sender=ALICE.text)
        a.note(root.id, address_of(a.bridge), root.bridge.address, encode_transfer(unknown, BOB.address, 100))
        carry(a, root)
        assert root.credit.balanceOf(BOB.text) == 100 * number
    assert (root.bridge.outstanding(a.id), root.bridge.outstanding(b.id)) == (100, 0)
    for gone, reason in ((b.id, "network is retired"), (b"\7" * 32, "network is not connected")):
        with boa.reverts(f"bridge: {reason}"):
            root.bridge.send(gone, BOB.text, 1, sender=ALICE.text)
    # Money comes home from a retired network.
    networks.registry.retire(a.id)
    a.send_credit(root, ALICE, BOB, 100)
    carry(a, root)
    assert (root.bridge.outstanding(a.id), root.credit.totalSupply()) == (0, SUPPLY)


def test_what_a_bridge_refuses(networks):
    root, a = networks.root, networks.further[0]
    for at, destination in ((root, root), (a, a)):
        with boa.reverts("bridge: destination is this network"):
            at.bridge.send(destination.id, BOB.text, 1, sender=ALICE.text)
    for at, destination in ((root, a), (a, root)):
        with boa.reverts("bridge: receiver is zero"):
            at.bridge.send(destination.id, NOBODY, 1, sender=ALICE.text)
        with boa.reverts("bridge: amount is zero"):
            at.bridge.send(destination.id, BOB.text, 0, sender=ALICE.text)
        with boa.reverts("credit: allowance is too small"):
            at.bridge.send(destination.id, BOB.text, 1, sender=ALICE.text)
    root.credit.approve(root.bridge.address, 2**256 - 1, sender=BOB.text)
    for amount in (1, 2**256 - 1):
        with boa.reverts("credit: balance is too small"):
            root.bridge.send(a.id, BOB.text, amount, sender=BOB.text)
    assert root.outbox.countOf(a.id) == 0


def test_nobody_but_inbox_and_bridges_are_heard(networks):
    root, (a, b, _) = networks.root, networks.further
    root.send_credit(a, ALICE, BOB, 300)
    payload = encode_transfer(root.id, BOB.address, 300)
    for caller in (BOB.text, a.founder.text, root.outbox.address, root.bridge.address):
        with boa.reverts("bridge: caller is not the inbox"):
            root.bridge.receiveMessage(a.id, a.bridge.address, 0, payload, sender=caller)
    # Anyone may send to a bridge; it looks at who did.
    a.say(root, root.bridge.address, payload, BOB)
    b.say(root, root.bridge.address, payload, BOB)
    for source in (a, b):
        top = root.accept(source)
        with boa.reverts("bridge: sender is not a bridge"):
            root.deliver(source, 0, top)
    b.say(a, a.bridge.address, payload, BOB)
    top = a.accept(b)
    with boa.reverts("bridge: sender is not a bridge"):
        a.deliver(b, 0, top)
    for holder in (BOB, a.founder, root.founder, networks.holder):
        for at in (root, a):
            with boa.reverts("credit: caller is not the bridge"):
                at.credit.mint(BOB.text, 1, sender=holder.text)


def test_a_bridge_is_connected_once_by_the_network_s_founder(networks):
    root, a = networks.root, networks.further[0]
    fresh, mallory = b"\x31" * 32, make_actor("mallory")
    networks.registry.add(fresh, BOB.text)
    with boa.reverts("bridge: caller did not found the network"):
        root.bridge.connect(fresh, BOB.text, sender=mallory.text)
    with boa.reverts("bridge: caller did not found the network"):
        root.bridge.connect(b"\x32" * 32, BOB.text, sender=mallory.text)
    with boa.reverts("bridge: no such network"):
        root.bridge.connect(fresh, NOBODY, sender=BOB.text)
    with boa.reverts("bridge: no such network"):
        root.bridge.connect(root.id, BOB.text, sender=BOB.text)
    root.bridge.connect(fresh, BOB.text, sender=BOB.text)
    with boa.reverts("bridge: network is connected"):
        root.bridge.connect(fresh, mallory.text, sender=BOB.text)
    with boa.reverts("bridge: not the hub"):
        a.bridge.connect(fresh, BOB.text, sender=BOB.text)


def test_a_captured_network_takes_what_is_there_and_no_more(networks):
    root, (a, b, _) = networks.root, networks.further
    root.send_credit(a, ALICE, ALICE, 300)
    root.send_credit(b, ALICE, ALICE, 500)
    carry(root, a)
    bridge = address_of(a.bridge)
    for amount, destination in ((301, root), (301, b), (2**256 - 1, root), (200, root), (101, root), (100, b), (1, b)):
        a.note(root.id, bridge, root.bridge.address, encode_transfer(destination.id, BOB.address, amount))
    top = root.accept(a)
    for nonce in range(7):
        if nonce in (3, 5):
            root.deliver(a, nonce, top)
        else:
            with boa.reverts("bridge: more than went to this network"):
                root.deliver(a, nonce, top)
    assert [root.bridge.outstanding(item.id) for item in (a, b)] == [0, 600]
    assert root.credit.totalSupply() == SUPPLY - 800 + 200


def test_the_greatest_supply_is_never_exceeded(networks, deploy_contract, deployment_reverts):
    with deployment_reverts("credit: supply exceeds its greatest"):
        deploy_contract("Credit", *CREDIT_NAMES, ALICE.text, 11, ALICE.text, 10)
    credit = deploy_contract("Credit", *CREDIT_NAMES, ALICE.text, 3, BOB.text, 10)
    with boa.reverts("credit: receiver is zero"):
        credit.mint(NOBODY, 1, sender=BOB.text)
    for amount in (8, 2**256 - 1):
        with boa.reverts("credit: supply exceeds its greatest"):
            credit.mint(ALICE.text, amount, sender=BOB.text)
    credit.mint(ALICE.text, 7, sender=BOB.text)
    credit.burn(2, sender=ALICE.text)
    with boa.reverts("credit: supply exceeds its greatest"):
        credit.mint(ALICE.text, 3, sender=BOB.text)
    credit.mint(ALICE.text, 2, sender=BOB.text)
    assert (credit.totalSupply(), credit.balanceOf(ALICE.text)) == (10, 10)


def test_without_a_bridge_nobody_mints(deploy_contract):
    credit = deploy_contract("Credit", *CREDIT_NAMES, ALICE.text, 3, NOBODY, 10)
    for sender in (ALICE.text, BOB.text):
        with boa.reverts("credit: caller is not the bridge"):
            credit.mint(ALICE.text, 1, sender=sender)


def test_a_malformed_payload_is_refused(networks):
    root, a = networks.root, networks.further[0]
    root.send_credit(a, ALICE, BOB, 300)
    bridge = address_of(a.bridge)
    good = encode(["bytes32", "address", "uint256"], [root.id, BOB.text, 1])
    dirty = good[:32] + b"\xff" + good[33:]
    for payload in (b"", good[:-1], good[:64], dirty):
        a.note(root.id, bridge, root.bridge.address, payload)
    top = root.accept(a)
    for nonce in range(4):
        with boa.reverts():
            root.deliver(a, nonce, top)


def test_deployment_tells_hub_from_the_rest(networks, deploy_contract, deployment_reverts):
    outbox, somewhere = networks.root.outbox.address, networks.stranger.text
    with deployment_reverts("bridge: a contract is zero"):
        deploy_contract("Bridge", NOBODY, outbox, somewhere, somewhere, ZERO32, NOBODY)
    wrong = (
        (somewhere, b"\1" * 32, NOBODY),
        (somewhere, ZERO32, somewhere),
        (NOBODY, ZERO32, somewhere),
        (NOBODY, b"\1" * 32, NOBODY),
    )
    for registry, hub, hub_bridge in wrong:
        with deployment_reverts("bridge: hub or not"):
            deploy_contract("Bridge", somewhere, outbox, somewhere, registry, hub, hub_bridge)


class Economy(RuleBasedStateMachine):
    """Transfers between three networks and the hub in any order, repeated, burned, retired and stolen from one."""

    seen: Counter

    def __init__(self):
        super().__init__()
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()
        self.world = NetworksWorld([1, 1, 1], [2, 1], [1])
        self.root = self.world.root
        self.all = [self.root, *self.world.further]
        self.captured = self.world.further[-1]
        self.people = [ALICE, BOB]
        self.root.credit.transfer(ALICE.text, 1000, sender=self.world.holder.text)
        for place in self.world.further:
            self.root.send_credit(place, ALICE, ALICE, 200)
            carry(self.root, place)
        self.waiting = []  # (source, target, nonce, receiver, amount, destination)
        self.burned = 0
        self.stolen = 0
        self.retired = set()

    def teardown(self):
        self.anchor.__exit__(None, None, None)

    @rule(data=st.data(), amount=st.integers(1, 400))
    def send(self, data, amount):
        source, destination = data.draw(st.permutations(self.all))[:2]
        owner, receiver = data.draw(st.permutations(self.people))
        is_short = source.credit.balanceOf(owner.text) < amount
        is_closed = source.is_root and destination.id in self.retired
        if is_short or is_closed:
            source.credit.approve(source.bridge.address, amount, sender=owner.text)
            with boa.reverts():
                source.bridge.send(destination.id, receiver.text, amount, sender=owner.text)
            return
        message = source.send_credit(destination, owner, receiver, amount)
        target = destination if source.is_root else self.root
        self.waiting.append((source, target, message.nonce, receiver, amount, destination))
        self.seen["sent"] += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def deliver(self, data):
        item = data.draw(st.sampled_from(self.waiting))
        source, target, nonce, receiver, amount, destination = item
        tree = source.trees[target.id]
        if target.inbox.acceptedCount(source.id, tree.root(tree.count)) == 0:
            target.accept(source)
        arguments = (
            message_tuple(source.messages[target.id][nonce]),
            tree.root(tree.count),
            list(tree.prove(nonce, tree.count)),
        )
        if target.is_root and self.root.bridge.outstanding(source.id) < amount:
            assert source is self.captured
            with boa.reverts("bridge: more than went to this network"):
                target.inbox.deliver(*arguments, sender=self.world.stranger.text)
            return
        before = target.credit.balanceOf(receiver.text)
        target.inbox.deliver(*arguments, sender=self.world.stranger.text)
        self.waiting.remove(item)
        with boa.reverts("inbox: message is delivered"):
            target.inbox.deliver(*arguments, sender=self.world.stranger.text)
        if target is destination or destination.id in self.retired:
            assert target.credit.balanceOf(receiver.text) == before + amount
            self.seen["arrived"] += 1
        else:
            message = forwarded(self.world, receiver, amount, destination)
            self.waiting.append((self.root, destination, message.nonce, receiver, amount, destination))
            self.seen["forwarded"] += 1

    @rule(data=st.data(), amount=st.integers(1, 50))
    def burn(self, data, amount):
        at, owner = data.draw(st.sampled_from(self.all)), data.draw(st.sampled_from(self.people))
        if at.credit.balanceOf(owner.text) >= amount:
            at.credit.burn(amount, sender=owner.text)
            self.burned += amount
            self.seen["burned"] += 1

    @rule(data=st.data(), amount=st.integers(1, 400))
    def forge(self, data, amount):
        """The captured network's validators sign a transfer for which nothing was burned."""
        destination, receiver = data.draw(st.sampled_from(self.all[:-1])), data.draw(st.sampled_from(self.people))
        payload = encode_transfer(destination.id, receiver.address, amount)
        source = self.captured
        # Its outbox is said to hold what it does not; what it really sends has no number any more.
        message = source.note(self.root.id, address_of(source.bridge), self.root.bridge.address, payload)
        self.waiting.append((source, self.root, message.nonce, receiver, amount, destination))
        self.stolen += amount
        self.seen["forged"] += 1

    @precondition(lambda self: not self.retired)
    @rule(is_now=st.integers(0, 5))
    def retire(self, is_now):
        if is_now == 0:
            self.world.registry.retire(self.all[1].id)
            self.retired.add(self.all[1].id)
            self.seen["retired"] += 1

    @invariant()
    def supply_is_conserved(self):
        supplies = sum(item.credit.totalSupply() for item in self.all)
        on_the_way = sum(item[4] for item in self.waiting)
        assert supplies + on_the_way + self.burned == SUPPLY + self.stolen

    @invariant()
    def the_honest_are_backed(self):
        """What the hub lets come back covers all that is on an honest network or on its way from or to it."""
        for place in self.world.further[:-1]:
            near = sum(
                item[4] for item in self.waiting if item[0] is place or (item[1] is place and item[0] is self.root)
            )
            assert place.credit.totalSupply() + near <= self.root.bridge.outstanding(place.id)
        away = sum(self.root.bridge.outstanding(item.id) for item in self.world.further)
        assert self.root.credit.totalSupply() + away <= SUPPLY

    @invariant()
    def bridges_hold_nothing(self):
        assert all(item.credit.balanceOf(item.bridge.address) == 0 for item in self.all)


@pytest.mark.slow
def test_any_order_of_transfers():
    Economy.seen = Counter()
    run_state_machine_as_test(
        Economy,
        settings=settings(
            max_examples=8,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert set(Economy.seen) == {"sent", "arrived", "forwarded", "burned", "forged", "retired"}
