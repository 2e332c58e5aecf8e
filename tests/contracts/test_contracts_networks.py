"""Networks: founders and bonds, keys that are never used twice, epochs that freeze keys and powers."""

import boa
import pytest
from contracts_lies import CHAIN_ID, Chains, expected_set
from contracts_world import (
    CONSENSUS,
    EVIDENCE_SECONDS,
    JAIL_SECONDS,
    NETWORK_BOND,
    NETWORK_EPOCH_SECONDS,
    NOBODY,
    TRUST_SECONDS,
    UNBONDING,
    VALIDATOR_MIN,
    ZERO32,
    make_actor,
)

from deaios.ledger.networks import build_network_id, hash_validators
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

ANSWER_SECONDS = TRUST_SECONDS + EVIDENCE_SECONDS
GROUP_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture
def chains(world):
    return Chains(world)


@pytest.fixture
def keys():
    return [make_actor(f"key {number}") for number in range(4)]


def test_a_founder_adds_a_network_for_a_bond(world, chains):
    before = world.balance(chains.founder)
    network = chains.add("a")
    assert world.balance(chains.founder) == before - NETWORK_BOND
    assert world.balance(world.networks) == NETWORK_BOND
    assert bytes(world.networks.idOf(chains.founder.text, chains.genesis("a"), CHAIN_ID, ZERO32)) == network
    assert (world.networks.networkCount(), bytes(world.networks.networkAt(0))) == (1, network)
    state = world.networks.networkOf(network)
    known = (chains.founder.text, chains.genesis("a"), CHAIN_ID, world.deployer.text, world.now, 0, NETWORK_BOND)
    assert tuple(state) == known
    assert [bytes(item) for item in world.networks.servicesOf(network)] == [keccak256(b"payments")]
    with boa.reverts("networks: network is known"):
        chains.add("a")
    for genesis, chain_id in ((ZERO32, CHAIN_ID), (chains.genesis("b"), 0)):
        with boa.reverts("networks: no such network"):
            world.networks.add(genesis, chain_id, NOBODY, ZERO32, [], sender=chains.founder.text)


def test_nobody_takes_another_s_network(world, chains):
    """The same chain by another founder is another network."""
    network = chains.add("a")
    world.approve(world.buyer, world.networks)
    world.networks.add(chains.genesis("a"), CHAIN_ID, NOBODY, ZERO32, [], sender=world.buyer.text)
    other = build_network_id(world.buyer.address, chains.genesis("a"), CHAIN_ID, ZERO32)
    assert bytes(world.networks.networkAt(1)) == other != network
    with boa.reverts("networks: caller is not the founder"):
        world.networks.retire(network, sender=world.buyer.text)


def test_a_bond_comes_back_when_no_key_answers_any_more(world, chains, keys):
    network = chains.add("a")
    chains.join(network, world.validators[0], keys[0])
    with boa.reverts("networks: network is not retired"):
        world.networks.reclaim(network, sender=world.buyer.text)
    world.networks.retire(network, sender=chains.founder.text)
    with boa.reverts("networks: network is retired"):
        world.networks.retire(network, sender=chains.founder.text)
    with boa.reverts("networks: network is retired"):
        world.networks.beginEpoch(network, sender=world.buyer.text)
    with boa.reverts("networks: network is retired"):
        chains.join(network, world.validators[1], keys[1])
    world.wait(ANSWER_SECONDS - 1)
    assert world.networks.isAccountable(keys[0].text)
    with boa.reverts("networks: its keys still answer"):
        world.networks.reclaim(network, sender=world.buyer.text)
    world.wait(1)
    assert not world.networks.isAccountable(keys[0].text)
    before = world.balance(chains.founder)
    world.networks.reclaim(network, sender=world.buyer.text)
    assert (world.balance(chains.founder), world.balance(world.networks)) == (before + NETWORK_BOND, 0)
    with boa.reverts("networks: bond was returned"):
        world.networks.reclaim(network, sender=world.buyer.text)
    world.networks.leave(network, sender=world.validators[0].text)
    assert not world.networks.isAccountable(keys[0].text)


def test_a_key_is_never_used_twice(world, chains, keys):
    first, second = world.validators[:2]
    a, b = chains.add("a"), chains.add("b")
    chains.join(a, first, keys[0])
    for network, operator in ((a, second), (b, second), (b, first)):
        with boa.reverts("networks: key was used before"):
            chains.join(network, operator, keys[0])
    with boa.reverts("networks: operator has a key here"):
        chains.join(a, first, keys[1])
    world.networks.leave(a, sender=first.text)
    with boa.reverts("networks: operator has no key here"):
        world.networks.leave(a, sender=first.text)
    for network, operator in ((a, first), (b, first), (a, second)):
        with boa.reverts("networks: key was used before"):
            chains.join(network, operator, keys[0])
    chains.join(a, first, keys[1])
    chains.join(b, first, keys[2])
    assert world.networks.keyOf(a, first.text) == keys[1].text
    assert tuple(world.networks.assignmentOf(keys[0].text)) == (first.text, a, world.now, False)
    assert tuple(world.networks.assignmentOf(keys[1].text)) == (first.text, a, 0, False)


def test_a_key_agrees_to_network_and_operator(world, chains, keys):
    a, b = chains.add("a"), chains.add("b")
    operator, other, key = *world.validators[:2], keys[0]
    good = chains.consent(key, a, operator)
    malleable = good[:32] + (GROUP_ORDER - int.from_bytes(good[32:64])).to_bytes(32) + bytes([55 - good[64]])
    wrong = (
        chains.consent(key, b, operator),
        chains.consent(key, a, other),
        chains.consent(keys[1], a, operator),
        malleable,
        b"",
        good[:64],
    )
    for consent in wrong:
        with boa.reverts("networks: the key did not sign"):
            world.networks.join(a, key.text, consent, sender=operator.text)
    with boa.reverts("networks: the key did not sign"):
        world.networks.join(a, NOBODY, b"", sender=operator.text)
    with boa.reverts("networks: the key did not sign"):
        world.networks.join(a, key.text, good, sender=other.text)
    world.networks.join(a, key.text, good, sender=operator.text)


def test_only_who_has_power_in_consensus_joins(world, chains, keys):
    network = chains.add("a")
    for operator in (world.buyer, world.provider):
        with boa.reverts("networks: operator has no power in consensus"):
            chains.join(network, operator, keys[0])
    with boa.reverts("networks: unknown network"):
        chains.join(b"\x01" * 32, world.validators[0], keys[0])


def test_an_epoch_freezes_keys_and_powers(world, chains):
    network, keys = chains.populate("a")
    everybody = expected_set(list(zip(keys, (100, 60, 40), strict=True)))
    assert chains.validators(network) == everybody
    epoch, begun_at, found = world.networks.epochOf(network)
    assert (epoch, begun_at, bytes(found)) == (1, world.now, hash_validators(everybody))
    with boa.reverts("networks: the epoch is not over"):
        world.networks.beginEpoch(network, sender=world.buyer.text)
    world.staking.beginUnbond(30 * CREDIT, sender=world.validators[0].text)
    world.networks.leave(network, sender=world.validators[1].text)
    new_key = make_actor("a new key")
    chains.join(network, world.validators[1], new_key)
    assert tuple(world.networks.snapshotOf(network, 1)) == (begun_at, hash_validators(everybody))
    world.wait(NETWORK_EPOCH_SECONDS - 1)
    with boa.reverts("networks: the epoch is not over"):
        world.networks.beginEpoch(network, sender=world.buyer.text)
    world.wait(1)
    world.networks.beginEpoch(network, sender=world.buyer.text)
    log = world.networks.get_logs()[-1]
    now = expected_set([(keys[0], 70), (keys[2], 40), (new_key, 60)])
    assert chains.validators(network) == now
    assert [int(word) for word in log.validators] == list(world.networks.validatorsOf(network))
    assert bytes(world.networks.epochOf(network)[2]) == hash_validators(now)
    assert tuple(world.networks.snapshotOf(network, 3)) == (0, ZERO32)


def test_who_has_no_power_is_not_in_an_epoch(world, chains):
    network, keys = chains.populate("a")
    first, second, third = world.validators
    world.staking.beginUnbond(100 * CREDIT - VALIDATOR_MIN + 1, sender=first.text)
    world.staking.optOut(CONSENSUS, sender=second.text)
    assert chains.validators(network) == expected_set([(keys[2], 40)])
    world.staking.optOut(CONSENSUS, sender=third.text)
    world.wait(NETWORK_EPOCH_SECONDS)
    with boa.reverts("networks: nobody has a key and power"):
        world.networks.beginEpoch(network, sender=world.buyer.text)


def test_one_stake_counts_on_every_network(world, chains):
    """The same power on each, and whoever loses it, by whatever, loses it on each."""
    a, keys_a = chains.populate("a")
    b, keys_b = chains.populate("b")
    world.approve(world.buyer, world.staking)
    world.staking.delegate(world.validators[2].text, 5 * CREDIT, sender=world.buyer.text)
    for network, keys in ((a, keys_a), (b, keys_b)):
        assert chains.validators(network) == expected_set(list(zip(keys, (100, 60, 45), strict=True)))
    chains.lie(b, "b", keys_b[0])
    assert chains.validators(a) == expected_set([(keys_a[1], 60), (keys_a[2], 45)])
    assert {item.key for item in chains.validators(b)} == {keys_b[1].address, keys_b[2].address}
    world.wait(JAIL_SECONDS)
    world.staking.unjail(CONSENSUS, sender=world.validators[0].text)
    assert chains.validators(a) == expected_set([(keys_a[0], 50), (keys_a[1], 60), (keys_a[2], 45)])
    assert len(chains.validators(b)) == 2


def test_deployment_refuses_unsound_windows(world, deploy_contract, deployment_reverts):
    token, staking, judge = world.credit.address, world.staking.address, world.equivocation.address
    other = deploy_contract("SharedStaking", token, UNBONDING, 1, 1, 1, [], []).address
    good = (token, staking, judge, 100, 1000, 500, 1)
    cases = {
        "networks: staking holds another token": (staking, *good[1:]),
        "networks: staking has no consensus service": (token, other, *good[2:]),
        "networks: equivocation is zero": (token, staking, NOBODY, *good[3:]),
        "networks: a window is out of range": (*good[:3], 0, 1000, 500, 1),
        "networks: an epoch outlasts the trust in it": (*good[:3], 1000, 1000, 500, 1),
        "networks: stake could leave before the evidence": (*good[:3], 100, 1000, UNBONDING - 1000, 1),
        "networks: bond is zero": (*good[:6], 0),
    }
    for message, arguments in cases.items():
        with deployment_reverts(message):
            deploy_contract("Networks", *arguments)
    deploy_contract("Networks", *good[:5], UNBONDING - 1001, 1)
