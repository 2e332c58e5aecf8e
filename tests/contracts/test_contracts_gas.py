"""What each call costs stays what it was, and the heaviest fit into a block with every seat of `audit` taken."""

import json
from dataclasses import replace

import boa
import pytest
from contracts_calls import ROWS
from contracts_gas import SNAPSHOT, TOLERANCE, measure, name_of
from contracts_lies import Chains
from contracts_world import CONSENSUS, NOBODY, VALIDATOR_MIN, make_actor

from deaios.ledger.eip712 import hash_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.units import CREDIT

AUDIT = keccak256(b"audit")
GAS_MAX = 22_000_000
"""Below the common limit of 30 million by more than the cold reads that this EVM does not charge between calls."""
INTRINSIC_GAS = 21_000


class Meter:
    """Gas of each named call, without calldata and intrinsic costs."""

    def __init__(self):
        self.used = {}

    def __call__(self, name, function, *arguments, sender):
        before = boa.env.get_gas_used()
        result = function(*arguments, sender=sender.text)
        self.used[name] = boa.env.get_gas_used() - before + INTRINSIC_GAS
        return result


@pytest.mark.slow
def test_a_full_committee_fits_into_blocks(make_world, world):
    big = make_world(replace(world.settings, jury_size=31), auditors=256)
    with boa.reverts("staking: service has no free seat"):
        big.join(big.stranger, AUDIT, 20 * CREDIT)
    meter = Meter()
    config = big.make_config()
    big.deposit(config, CREDIT)
    purchase = big.make_receipt(config)
    big.commit_evidence(big.accuser)
    before = boa.env.get_gas_used()
    dispute_id = big.open_dispute(purchase, commit=False)
    meter.used["open"] = boa.env.get_gas_used() - before
    number = big.dispute(dispute_id).round
    *most, last = big.auditors
    for auditor in most:
        big.beacon.commit(number, big.beacon_commitment(number, auditor), sender=auditor.text)
    meter("last commit", big.beacon.commit, number, big.beacon_commitment(number, last), sender=last)
    big.beacon.reveal(number, keccak256(b"secret" + last.address), sender=last.text)
    big.wait(20)
    meter("beacon finalize", big.beacon.finalize, number, sender=big.stranger)
    meter("draw", big.disputes.draw, dispute_id, sender=big.stranger)
    big.wait(90)
    meter("tally", big.disputes.tally, dispute_id, sender=big.stranger)
    assert {name: used for name, used in meter.used.items() if used > GAS_MAX} == {}


@pytest.mark.slow
def test_a_full_network_fits_into_blocks(world):
    """A hundred validators: frozen in one call; who comes later takes the place of the weakest, or finds none."""
    chains, meter = Chains(world), Meter()
    network, actors = chains.add("full"), [make_actor(f"validator {number} of many") for number in range(101)]
    for number, actor in enumerate(actors):
        world.credit.transfer(actor.text, 100 * CREDIT, sender=world.faucet.text)
        world.join(actor, CONSENSUS, VALIDATOR_MIN + (number + 50) % 100 + 1)
    keys = [make_actor(f"key {number} of many") for number in range(102)]
    for actor, key in zip(actors[:100], keys, strict=False):
        chains.join(network, actor, key)
    world.staking.beginUnbond(50, sender=actors[100].text)
    with boa.reverts("networks: no validator is weaker"):
        chains.join(network, actors[100], keys[100])
    last = chains.consent(keys[101], network, world.validators[2])
    meter("join a full network", world.networks.join, network, keys[101].text, last, sender=world.validators[2])
    weakest = actors[50]
    assert world.networks.keyOf(network, weakest.text) == NOBODY
    assert world.networks.assignmentOf(keys[50].text)[2] == world.now
    assert len(world.networks.operatorsOf(network)) == 100
    meter("begin the epoch of a full network", world.networks.beginEpoch, network, sender=world.buyer)
    assert len(chains.validators(network)) == 100
    chains.commit(hash_struct(chains.header("full")), hash_struct(chains.header("full", timestamp=1)))
    world.wait(1)
    proof = chains.headers_arguments(network, chains.header("full"), chains.header("full", timestamp=1), keys[101])
    meter("prove a lie in a full network", world.equivocation.proveHeaders, *proof, sender=chains.prover)
    assert {name: used for name, used in meter.used.items() if used > GAS_MAX} == {}


def test_typical_calls_cost_what_they_did():
    """Within two in a hundred; when it is meant, run tools/make-gas-snapshot and say why in the change."""
    snapshot = json.loads(SNAPSHOT.read_text())
    recorded, found = snapshot["gas"], measure()
    assert list(recorded) == list(found)
    assert list(found)[: len(ROWS)] == [name_of(row) for row in ROWS]
    assert found["DataAvailability.beginEpoch/0 (256 members)"] < GAS_MAX
    assert snapshot["tolerance"] == TOLERANCE
    changed = {
        name: (recorded[name], gas)
        for name, gas in found.items()
        if abs(gas - recorded[name]) > TOLERANCE * recorded[name]
    }
    assert changed == {}, "gas changed: run tools/make-gas-snapshot if it is meant"
