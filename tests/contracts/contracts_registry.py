"""Any order of calls about networks, keys, epochs and lies, beside a model in plain Python.

The model knows who founded what, whose every key ever was, who sits in which order, and what each epoch froze. Powers
and slices are asked of the staking contract, whose own model is in `contracts_model.py`.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

import boa
from boa.contracts.base_evm_contract import BoaError
from contracts_lies import Chains
from contracts_world import (
    CONSENSUS,
    EVIDENCE_SECONDS,
    JAIL_SECONDS,
    NETWORK_BOND,
    NETWORK_EPOCH_SECONDS,
    NOBODY,
    SLASH_BPS,
    TRUST_SECONDS,
    UNBONDING,
    ZERO32,
    make_actor,
    struct_tuple,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.ledger.networks import Validator, encode_validators, hash_validators
from deaios.ledger.structs import ValsetUpdate
from deaios.primitives.keys import Address
from deaios.primitives.units import CREDIT

ANSWER_SECONDS = TRUST_SECONDS + EVIDENCE_SECONDS
NAMES = ("a", "b")
names = st.sampled_from(NAMES)
operators = st.integers(0, 2)
KINDS = ("headers", "checkpoints", "valset", "truth", "one header")


@dataclass
class Net:
    """A network of the model; it is known once `added`."""

    added: bool = False
    retired_at: int | None = None
    bond: int = 0
    seats: list[int] = field(default_factory=list)
    keys: dict[int, int] = field(default_factory=dict)
    epochs: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    is_urgent: bool = False

    def dismiss(self, operator):
        """The last one takes the place that is free."""
        place, last = self.seats.index(operator), self.seats.pop()
        if last != operator:
            self.seats[place] = last
        del self.keys[operator]


@dataclass
class Key:
    """Whose key it is or was."""

    operator: int
    name: str
    left_at: int | None = None
    is_buried: bool = False


class Registry(RuleBasedStateMachine):
    """Two networks, three validators, and as many keys as they like."""

    world = None
    seen: ClassVar = Counter()

    @initialize()
    def begin(self):
        self.anchor = boa.env.anchor()
        self.anchor.__enter__()
        self.chains = Chains(self.world)
        self.ids = {name: self.chains.id_of(name) for name in NAMES}
        self.nets = {name: Net() for name in NAMES}
        self.keys = {}
        self.serial = 0
        self.supply = self.world.credit.totalSupply()
        self.begun_with = self.world.balance(self.chains.founder)

    def teardown(self):
        if hasattr(self, "anchor"):
            self.anchor.__exit__(None, None, None)

    def call(self, what, function, *arguments, sender, expected):
        try:
            function(*arguments, sender=sender.text)
        except BoaError:
            through = False
        else:
            through = True
        assert through == expected, f"{what}: {through}"
        self.seen[what if through else f"{what} refused"] += 1
        return through

    def actor(self, number):
        return make_actor(f"machine key {number}")

    def power(self, operator):
        return self.world.staking.power(CONSENSUS, self.world.validators[operator].text)

    def is_open(self, name):
        return self.nets[name].added and self.nets[name].retired_at is None

    def is_accountable(self, number):
        key = self.keys.get(number)
        if key is None or key.is_buried:
            return False
        ends = [at for at in (key.left_at, self.nets[key.name].retired_at) if at is not None]
        return not ends or self.world.now < min(ends) + ANSWER_SECONDS

    def words(self, name):
        net = self.nets[name]
        found = [
            Validator(self.actor(net.keys[operator]).address, power)
            for operator in net.seats
            if (power := self.power(operator)) > 0
        ]
        return encode_validators(found) if found else ()

    # Networks

    @rule(name=names)
    def add(self, name):
        arguments = (self.chains.genesis(name), 424_242, NOBODY, ZERO32, [])
        expected = not self.nets[name].added
        if self.call("add", self.world.networks.add, *arguments, sender=self.chains.founder, expected=expected):
            self.nets[name] = Net(added=True, bond=NETWORK_BOND)

    @rule(name=names, by_founder=st.sampled_from([True, True, False]))
    def retire(self, name, by_founder):
        sender = self.chains.founder if by_founder else self.world.buyer
        expected = by_founder and self.is_open(name)
        if self.call("retire", self.world.networks.retire, self.ids[name], sender=sender, expected=expected):
            self.nets[name].retired_at = self.world.now

    @rule(name=names)
    def reclaim(self, name):
        net = self.nets[name]
        expected = net.retired_at is not None and net.bond > 0 and self.world.now >= net.retired_at + ANSWER_SECONDS
        if self.call(
            "reclaim", self.world.networks.reclaim, self.ids[name], sender=self.world.buyer, expected=expected
        ):
            net.bond = 0

    # Keys

    @rule(name=names, operator=operators, again=st.sampled_from([False, False, False, True]), data=st.data())
    def join(self, name, operator, again, data):
        """With a new key, or with one that was used somewhere."""
        again = again and bool(self.keys)
        number = data.draw(st.sampled_from(sorted(self.keys))) if again else self.serial
        self.serial += 1
        net, actor, who = self.nets[name], self.actor(number), self.world.validators[operator]
        expected = self.is_open(name) and not again and operator not in net.keys and self.power(operator) > 0
        arguments = (self.ids[name], actor.text, self.chains.consent(actor, self.ids[name], who))
        what = "join with a used key" if again else "join"
        if self.call(what, self.world.networks.join, *arguments, sender=who, expected=expected):
            net.seats.append(operator)
            net.keys[operator] = number
            self.keys[number] = Key(operator, name)

    @rule(name=names, operator=operators)
    def leave(self, name, operator):
        net, who = self.nets[name], self.world.validators[operator]
        expected = operator in net.keys
        if self.call("leave", self.world.networks.leave, self.ids[name], sender=who, expected=expected):
            self.keys[net.keys[operator]].left_at = self.world.now
            net.dismiss(operator)

    @rule(name=names)
    def begin_epoch(self, name):
        net, words = self.nets[name], self.words(name)
        is_due = net.is_urgent or not net.epochs or self.world.now >= net.epochs[-1][0] + NETWORK_EPOCH_SECONDS
        expected = self.is_open(name) and bool(words) and is_due
        call = (self.world.networks.beginEpoch, self.ids[name])
        if self.call("epoch", *call, sender=self.world.buyer, expected=expected):
            net.epochs.append((self.world.now, words))
            net.is_urgent = False

    # Stake

    @rule(operator=operators, amount=st.sampled_from([1, 10 * CREDIT, 30 * CREDIT]))
    def unbond(self, operator, amount):
        who = self.world.validators[operator]
        expected = amount <= self.world.staking.accountOf(who.text, who.text)[0]
        self.call("unbond", self.world.staking.beginUnbond, amount, sender=who, expected=expected)

    @rule(operator=operators)
    def return_(self, operator):
        """Out of jail, and back to a seat in consensus."""
        staking, who = self.world.staking, self.world.validators[operator]
        until = staking.jailedUntil(CONSENSUS, who.text)
        expected = 0 < until <= self.world.now
        self.call("unjail", staking.unjail, CONSENSUS, sender=who, expected=expected)

    @rule(seconds=st.sampled_from([1, 50, NETWORK_EPOCH_SECONDS, JAIL_SECONDS, ANSWER_SECONDS, UNBONDING]))
    def wait(self, seconds):
        self.world.wait(seconds)

    # Lies

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), kind=st.sampled_from(KINDS), wrong_network=st.sampled_from([False, False, False, True]))
    def prove(self, data, kind, wrong_network):
        self.prove_key(data.draw(st.sampled_from(sorted(self.keys))), kind, wrong_network=wrong_network)

    def prove_key(self, number, kind, *, wrong_network=False):
        """What is no lie, or of another network, or of a key that answers no more, convicts nobody."""
        key, actor = self.keys[number], self.actor(number)
        name = next(other for other in NAMES if other != key.name) if wrong_network else key.name
        function, arguments, digests, is_lie = getattr(self, f"make_{kind.replace(' ', '_')}")(name, actor)
        self.chains.commit(*digests)
        self.world.wait(1)
        staking, prover = self.world.staking, self.chains.prover
        operator = self.world.validators[key.operator].text
        expected = is_lie and not wrong_network and self.is_accountable(number)
        taken = staking.sliceOf(CONSENSUS, operator) * SLASH_BPS // 10_000
        before, pots = self.world.balance(prover), sum(staking.potsOf(operator))
        if not self.call(kind, function, *arguments, sender=prover, expected=expected):
            return
        assert sum(staking.potsOf(operator)) == pots - taken
        assert self.world.balance(prover) == before + taken // 10
        self.supply -= taken - taken // 10
        assert self.power(key.operator) == 0
        net = self.nets[key.name]
        key.is_buried = net.is_urgent = True
        if key.left_at is None:
            key.left_at = self.world.now
            net.dismiss(key.operator)
        else:
            self.seen["lie of who left"] += 1

    def pair(self, function, a, b, domain, actor, *first):
        signed = [sign_struct(actor.key, domain, item) for item in (a, b)]
        arguments = (*first, struct_tuple(a), signed[0], struct_tuple(b), signed[1], b"\x31" * 32)
        return function, arguments, (hash_struct(a), hash_struct(b)), a != b

    def make_headers(self, name, actor):
        a = self.chains.header(name)
        b = replace(a, logs_root=b"\x01" * 32)
        arguments = self.chains.headers_arguments(self.ids[name], a, b, actor)
        return self.world.equivocation.proveHeaders, arguments, (hash_struct(a), hash_struct(b)), True

    def make_one_header(self, name, actor):
        a = self.chains.header(name)
        arguments = self.chains.headers_arguments(self.ids[name], a, a, actor)
        return self.world.equivocation.proveHeaders, arguments, (hash_struct(a), hash_struct(a)), False

    def make_checkpoints(self, name, actor):
        a = self.chains.checkpoint(self.ids[name], ZERO32)
        b = replace(a, root=b"\x02" * 32)
        return self.pair(self.world.equivocation.proveCheckpoints, a, b, self.chains.domain, actor)

    def make_update(self, update, actor):
        signature = sign_struct(actor.key, self.chains.domain, update)
        arguments = (struct_tuple(update), signature, b"\x31" * 32)
        return self.world.equivocation.proveValset, arguments, (hash_struct(update), ZERO32)

    def make_valset(self, name, actor):
        epochs = self.nets[name].epochs
        begun_at = epochs[-1][0] if epochs else 0
        return (*self.make_update(ValsetUpdate(self.ids[name], len(epochs), begun_at, b"\x03" * 32), actor), True)

    def make_truth(self, name, actor):
        """The last epoch as it is; there is none before the first, and who signs that lies."""
        epochs = self.nets[name].epochs
        if not epochs:
            return (*self.make_update(ValsetUpdate(self.ids[name], 0, 0, ZERO32), actor), True)
        begun_at, words = epochs[-1]
        update = ValsetUpdate(self.ids[name], len(epochs), begun_at, hash_words(words))
        return (*self.make_update(update, actor), False)

    # What must always hold

    @invariant()
    def keys_are_the_model_s(self):
        if not hasattr(self, "keys"):
            return
        networks = self.world.networks
        for number, key in self.keys.items():
            operator = self.world.validators[key.operator].text
            expected = (operator, self.ids[key.name], key.left_at or 0, key.is_buried)
            text = self.actor(number).text
            assert tuple(networks.assignmentOf(text)) == expected
            assert networks.isAccountable(text) == self.is_accountable(number)
        for name, net in self.nets.items():
            held = {place: self.actor(number).text for place, number in net.keys.items()}
            for place, validator in enumerate(self.world.validators):
                assert networks.keyOf(self.ids[name], validator.text) == held.get(place, NOBODY)
            assert networks.operatorsOf(self.ids[name]) == [self.world.validators[place].text for place in net.seats]

    @invariant()
    def epochs_are_the_model_s(self):
        if not hasattr(self, "nets"):
            return
        for name, net in self.nets.items():
            words = self.words(name)
            assert tuple(self.world.networks.validatorsOf(self.ids[name])) == words
            begun_at, frozen = net.epochs[-1] if net.epochs else (0, None)
            last = (len(net.epochs), begun_at, hash_words(frozen) if frozen else ZERO32)
            assert tuple(self.world.networks.epochOf(self.ids[name])) == last
            assert self.world.networks.isUrgent(self.ids[name]) == net.is_urgent

    @invariant()
    def money_is_conserved(self):
        if not hasattr(self, "nets"):
            return
        world, bonds = self.world, sum(net.bond for net in self.nets.values())
        assert world.balance(world.networks) == bonds
        assert world.balance(self.chains.founder) == self.begun_with - bonds
        assert world.balance(world.equivocation) == 0
        assert world.total_held() + world.balance(world.deployer) == world.credit.totalSupply() == self.supply


def hash_words(words):
    validators = [Validator(Address((word & (2**160 - 1)).to_bytes(20)), word >> 160) for word in words]
    return hash_validators(validators)


def run_registry(machine, examples, steps, *, keep=True):
    """Run a machine class; as `contracts_machine.run_machine`."""
    wanted = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=wanted if keep else settings(wanted, database=None))
