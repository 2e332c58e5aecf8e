"""Equivocation: what a key signed convicts it, on whatever network, by whoever shows it; nothing else does."""

from dataclasses import replace

import boa
import pytest
from contracts_lies import CHAIN_ID, SALT, Chains
from contracts_world import (
    CONSENSUS,
    EVIDENCE_SECONDS,
    JAIL_SECONDS,
    NETWORK_EPOCH_SECONDS,
    PAYOUT_SECONDS,
    SLASH_BPS,
    TRUST_SECONDS,
    UNBONDING,
    ZERO32,
    make_actor,
    struct_tuple,
)

from deaios.ledger.eip712 import hash_struct, sign_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

ANSWER_SECONDS = TRUST_SECONDS + EVIDENCE_SECONDS


@pytest.fixture
def chains(world):
    return Chains(world)


@pytest.fixture
def populated(chains):
    return chains.populate("a")


def test_a_double_sign_is_slashed_by_a_stranger(world, chains, populated):
    network, keys = populated
    liar, supply, before = world.validators[0], world.credit.totalSupply(), world.balance(chains.prover)
    assert chains.lie(network, "a", keys[0]) == 50 * CREDIT
    assert world.balance(chains.prover) == before + 5 * CREDIT
    assert world.credit.totalSupply() == supply - 45 * CREDIT
    assert world.balance(world.equivocation) == 0
    assert world.staking.stakeOf(liar.text) == 50 * CREDIT
    assert world.staking.power(CONSENSUS, liar.text) == 0
    assert tuple(world.networks.assignmentOf(keys[0].text)) == (liar.text, network, world.now, True)
    assert len(chains.validators(network)) == 2
    with boa.reverts("networks: key does not answer"):
        chains.lie(network, "a", keys[0])
    with boa.reverts("networks: key does not answer"):
        chains.lie(network, "a", keys[0], height=8)


def test_the_liar_is_out_before_the_epoch_is_over(world, chains, populated):
    network, keys = populated
    with boa.reverts("networks: the epoch is not over"):
        world.networks.beginEpoch(network, sender=world.buyer.text)
    chains.lie(network, "a", keys[0])
    assert world.networks.isUrgent(network)
    world.networks.beginEpoch(network, sender=world.buyer.text)
    assert world.networks.epochOf(network)[0] == 2
    with boa.reverts("networks: the epoch is not over"):
        world.networks.beginEpoch(network, sender=world.buyer.text)


def test_headers_that_exclude_nothing_prove_nothing(world, chains, populated):
    network, keys = populated
    other_network, other_keys = chains.populate("b")
    a = chains.header("a")
    b = replace(a, logs_root=b"\x05" * 32)
    refused = {
        "equivocation: one and the same": (network, a, a, keys[0], {}),
        "equivocation: heights differ": (network, a, replace(b, height=8), keys[0], {}),
        "equivocation: a header is of another chain": (network, a, replace(b, genesis_hash=ZERO32), keys[0], {}),
        "equivocation: signed by different keys": (network, a, b, keys[0], {"other": keys[1]}),
        "equivocation: nobody's key": (network, a, b, make_actor("nobody"), {}),
        "equivocation: the key is of another network": (network, a, b, other_keys[0], {}),
    }
    for reason, (where, first, second, key, options) in refused.items():
        with boa.reverts(reason):
            chains.prove_headers(where, first, second, key, **options)
    with boa.reverts("equivocation: a header is of another chain"):
        chains.prove_headers(other_network, a, b, keys[0])
    with boa.reverts("equivocation: signed by different keys"):
        chains.prove_headers(network, a, b, keys[0], chain_id=CHAIN_ID + 1)
    with boa.reverts("equivocation: a header is of another chain"):
        chains.prove_headers(b"\x01" * 32, a, b, keys[0])
    chains.commit(hash_struct(a), hash_struct(b))
    world.wait(1)
    arguments = list(chains.headers_arguments(network, a, b, keys[0]))
    arguments[2] = b"\0" * 65
    with boa.reverts("equivocation: signature recovers to no key"):
        world.equivocation.proveHeaders(*arguments, sender=chains.prover.text)
    assert world.staking.stakeOf(world.validators[0].text) == 100 * CREDIT


def test_two_checkpoints_of_one_count(world, chains, populated):
    network, keys = populated
    other, other_keys = chains.populate("b")
    third = chains.add("c")
    a = chains.checkpoint(network, other)
    b = replace(a, root=b"\x02" * 32)
    with boa.reverts("equivocation: one and the same"):
        chains.prove_checkpoints(a, a, keys[0])
    with boa.reverts("equivocation: counts differ"):
        chains.prove_checkpoints(a, replace(b, count=4), keys[0])
    for changes in ({"source": third}, {"destination": third}):
        with boa.reverts("equivocation: checkpoints of other networks"):
            chains.prove_checkpoints(a, replace(b, **changes), keys[0])
    with boa.reverts("equivocation: signed by different keys"):
        chains.prove_checkpoints(a, b, keys[0], keys[1])
    stray = [replace(item, destination=third, source=third) for item in (a, b)]
    with boa.reverts("equivocation: the key is of another network"):
        chains.prove_checkpoints(*stray, keys[0])
    assert chains.prove_checkpoints(a, b, keys[0]) == 50 * CREDIT
    assert chains.prove_checkpoints(b, a, other_keys[1]) == 30 * CREDIT


def test_a_validator_set_that_is_not_the_root_s(world, chains, populated):
    network, keys = populated
    chains.populate("b")
    truth = chains.true_update(network)
    with boa.reverts("equivocation: the update is true"):
        chains.prove_valset(truth, keys[0])
    with boa.reverts("equivocation: the key is of another network"):
        chains.prove_valset(replace(truth, network=chains.id_of("b")), keys[0])
    with boa.reverts("equivocation: nobody's key"):
        chains.prove_valset(replace(truth, epoch=9), make_actor("nobody"))
    lies = (
        replace(truth, validators_hash=b"\x01" * 32),
        replace(truth, begun_at=truth.begun_at + 1),
        replace(truth, epoch=2, begun_at=0, validators_hash=ZERO32),
    )
    for lie, key, stake in zip(lies, keys, (100, 60, 40), strict=True):
        assert chains.prove_valset(lie, key) == stake * CREDIT * SLASH_BPS // 10_000
    with boa.reverts("networks: key does not answer"):
        chains.prove_valset(lies[0], keys[0])


def test_an_update_of_an_epoch_gone_by_stays_true(world, chains, populated):
    network, keys = populated
    truth = chains.true_update(network)
    world.staking.beginUnbond(CREDIT, sender=world.validators[0].text)
    world.wait(NETWORK_EPOCH_SECONDS)
    world.networks.beginEpoch(network, sender=world.buyer.text)
    assert chains.true_update(network) != truth
    with boa.reverts("equivocation: the update is true"):
        chains.prove_valset(truth, keys[0])


def test_evidence_is_of_who_committed_to_it(world, chains, populated):
    network, keys = populated
    a = chains.header("a")
    b = replace(a, logs_root=b"\x05" * 32)
    arguments = chains.headers_arguments(network, a, b, keys[0])
    prove = world.equivocation.proveHeaders
    with boa.reverts("equivocation: evidence was not committed"):
        prove(*arguments, sender=chains.prover.text)
    chains.commit(hash_struct(a), hash_struct(b))
    with boa.reverts("equivocation: evidence was committed in this block"):
        prove(*arguments, sender=chains.prover.text)
    thief = world.buyer
    commitment = keccak256(chains.prover.address.rjust(32, b"\0") + hash_struct(a) + hash_struct(b) + SALT)
    world.equivocation.commitEvidence(commitment, sender=thief.text)
    chains.commit(hash_struct(a), hash_struct(b), thief)
    with boa.reverts("equivocation: evidence was committed in this block"):
        prove(*arguments, sender=thief.text)
    world.wait(1)
    world.equivocation.commitEvidence(commitment, sender=thief.text)
    swapped = (network, *arguments[3:5], *arguments[1:3], SALT)
    with boa.reverts("equivocation: evidence was not committed"):
        prove(*swapped, sender=chains.prover.text)
    assert prove(*arguments, sender=chains.prover.text) == 50 * CREDIT


def test_who_leaves_answers_until_nobody_could_believe_it(world, chains, populated):
    network, keys = populated
    operator = world.validators[0]
    world.staking.beginUnbond(100 * CREDIT, sender=operator.text)
    world.staking.optOut(CONSENSUS, sender=operator.text)
    world.networks.leave(network, sender=operator.text)
    world.wait(ANSWER_SECONDS - 2)
    with boa.env.anchor():
        assert chains.lie(network, "a", keys[0]) == 50 * CREDIT
        assert tuple(world.staking.potsOf(operator.text)) == (0, 50 * CREDIT)
        world.wait(UNBONDING)
        before = world.balance(operator)
        world.staking.withdraw(sender=operator.text)
        assert world.balance(operator) == before + 50 * CREDIT
    world.wait(1)
    with boa.reverts("networks: key does not answer"):
        chains.lie(network, "a", keys[0])


def test_slash_while_all_of_it_unbonds_takes_from_everybody_alike(world, chains, populated):
    """Operator and delegators, active and on their way out."""
    network, keys = populated
    operator, backer = world.validators[0], world.buyer
    world.approve(backer, world.staking)
    world.staking.delegate(operator.text, 50 * CREDIT, sender=backer.text)
    world.staking.undelegate(operator.text, 20 * CREDIT, sender=backer.text)
    world.staking.beginUnbond(60 * CREDIT, sender=operator.text)
    assert chains.lie(network, "a", keys[0]) == 75 * CREDIT
    accounts = [world.staking.accountOf(operator.text, who.text)[:2] for who in (operator, backer)]
    assert accounts == [(20 * CREDIT, 30 * CREDIT), (15 * CREDIT, 10 * CREDIT)]


def test_who_has_nothing_left_loses_its_key(world, chains, populated):
    network, keys = populated
    operator = world.validators[0]
    world.staking.optOut(CONSENSUS, sender=operator.text)
    world.staking.beginUnbond(100 * CREDIT, sender=operator.text)
    world.wait(UNBONDING)
    world.staking.completeOptOut(CONSENSUS, operator.text, sender=world.buyer.text)
    world.staking.withdraw(sender=operator.text)
    assert world.networks.isAccountable(keys[0].text)
    assert chains.lie(network, "a", keys[0]) == 0
    assert not world.networks.isAccountable(keys[0].text)
    assert world.staking.jailedUntil(CONSENSUS, operator.text) == 0


def test_a_jailed_operator_returns_with_another_key(world, chains, populated):
    network, keys = populated
    operator, new_key = world.validators[0], make_actor("a new key")
    chains.lie(network, "a", keys[0])
    with boa.reverts("networks: operator has no power in consensus"):
        chains.join(network, operator, new_key)
    world.wait(JAIL_SECONDS - 1)
    with boa.reverts("staking: jail time has not passed"):
        world.staking.unjail(CONSENSUS, sender=operator.text)
    world.wait(1)
    world.staking.unjail(CONSENSUS, sender=operator.text)
    with boa.reverts("networks: key was used before"):
        chains.join(network, operator, keys[0])
    chains.join(network, operator, new_key)
    assert new_key.address in {item.key for item in chains.validators(network)}
    assert chains.lie(network, "a", new_key) == 25 * CREDIT


def test_jail_is_not_left_by_leaving(world, chains, populated):
    network, keys = populated
    operator = world.validators[0]
    chains.lie(network, "a", keys[0])
    world.staking.evict(CONSENSUS, operator.text, sender=world.buyer.text)
    with boa.reverts("staking: power is below the service's minimum"):
        world.staking.optIn(CONSENSUS, 10_000, sender=operator.text)
    world.staking.optOut(CONSENSUS, sender=operator.text)
    world.wait(UNBONDING - 1)
    with boa.reverts("staking: leaving time has not passed"):
        world.staking.completeOptOut(CONSENSUS, operator.text, sender=operator.text)


def test_many_lies_pay_no_more_than_the_bound(make_world):
    """Everybody loses its half; what exceeds the bound is burned whole."""
    world = make_world(payout_max=60 * CREDIT)
    chains = Chains(world)
    network, keys = chains.populate("a")
    supply, before = world.credit.totalSupply(), world.balance(chains.prover)
    assert chains.lie(network, "a", keys[0]) == 50 * CREDIT
    left = world.staking.payoutLeft(CONSENSUS)
    assert left == 10 * CREDIT
    worn_off = 60 * CREDIT // PAYOUT_SECONDS
    assert chains.lie(network, "a", keys[1]) == left + worn_off
    assert [world.staking.stakeOf(item.text) // CREDIT for item in world.validators] == [50, 30, 40]
    assert world.balance(chains.prover) == before + 5 * CREDIT + (left + worn_off) // 10
    assert world.credit.totalSupply() == supply - 80 * CREDIT + 5 * CREDIT + (left + worn_off) // 10
    world.wait(PAYOUT_SECONDS)
    assert world.staking.payoutLeft(CONSENSUS) == 60 * CREDIT


def test_only_equivocation_buries(world, chains, populated):
    _, keys = populated
    with boa.reverts("networks: caller is not the judge of keys"):
        world.networks.bury(keys[0].text, sender=chains.founder.text)


def test_the_engine_s_own_headers_convict(world, chains):
    """The struct and domain are those of the embedded engine, for a key that its operator assigned."""
    network, keys = chains.populate("engine")
    a = chains.header("engine", previous_hash=b"\x07" * 32, transactions_root=b"\x08" * 32, timestamp=2**40)
    b = replace(a, timestamp=2**40 + 1)
    assert chains.prove_headers(network, a, b, keys[2]) == 20 * CREDIT


def test_a_signature_over_another_domain_proves_nothing(world, chains, populated):
    network, keys = populated
    lie = replace(chains.true_update(network), epoch=5)
    chains.commit(hash_struct(lie), ZERO32)
    world.wait(1)
    elsewhere = replace(chains.domain, chain_id=world.chain_id + 1)
    signature = sign_struct(keys[0].key, elsewhere, lie)
    with boa.reverts("equivocation: nobody's key"):
        world.equivocation.proveValset(struct_tuple(lie), signature, SALT, sender=chains.prover.text)


def test_deployment_refuses_wrong_addresses(world, deploy_contract, deployment_reverts):
    token, staking, networks = world.credit.address, world.staking.address, world.networks.address
    with deployment_reverts("equivocation: staking does not know this judge"):
        deploy_contract("Equivocation", token, staking, networks, SLASH_BPS)
    with deployment_reverts("equivocation: staking holds another token"):
        deploy_contract("Equivocation", staking, staking, networks, SLASH_BPS)
