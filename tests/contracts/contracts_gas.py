"""Gas of each typical call in `contracts_calls.py`, as a transaction of its own would pay it.

Every call starts from the same stored state with nothing warm but what a transaction warms, so that the figures depend
on the contracts alone, not on the order in which they are taken. Intrinsic gas and refunds are counted (EIP-2028,
EIP-2929, EIP-3529).
"""

import json
from pathlib import Path
from typing import Any

import boa
from contracts_calls import ROWS, Row
from contracts_scene import CONTRACT_NAMES, Scene
from contracts_world import World, struct_tuple
from networks_world import NetworksWorld, make_abroad, sign_by

from deaios.ledger.structs import Checkpoint
from deaios.primitives.units import CREDIT

SNAPSHOT = Path(__file__).resolve().parents[2] / "docs" / "spec" / "gas.json"
TOLERANCE = 0.02
TRANSACTION_GAS, ZERO_BYTE_GAS, OTHER_BYTE_GAS = 21_000, 4, 16
REFUND_DIVISOR = 5
GENESIS_TIME = 1_800_000_000
COMMITTEES = (4, 16, 32)
"""Members of unequal stake that share 64 seats."""
COMMITTEE_SEATS, COMMITTEE_STAKE = 64, 20 * CREDIT
VALSETS = (4, 16, 100)
"""Validators of equal power."""
LARGEST_COMMITTEE = 256
"""Seats, and members of unequal stake: what apportioning can cost at most."""
PRECOMPILES = range(1, 10)


def measure() -> dict[str, int]:
    """Gas by contract, function and case, in the order of the table."""
    with boa.swap_env(boa.Env()):
        # Deadlines stand in signatures and call data, whose zero bytes are cheaper.
        boa.env.evm.patch.timestamp = GENESIS_TIME
        suite = World()
        suite.abroad = make_abroad()
        scene = Scene(suite)
        state, patch = boa.env.evm.vm.state, boa.env.evm.patch
        state.persist()
        root, time, block = state.state_root, patch.timestamp, patch.block_number
        people = dict(scene.__dict__)
        found = {}
        for row in ROWS:
            state._account_db = state.get_account_db_class()(state._db, root)
            patch.timestamp, patch.block_number = time, block
            scene.__dict__.update(people)
            scene.world.counter = 0
            found[name_of(row)] = measure_row(scene, row, state)
        state._account_db = state.get_account_db_class()(state._db, root)
        return found | measure_committees(state) | measure_valsets(state)


def measure_committees(state: Any) -> dict[str, int]:
    """Epochs and certificates of committees of several sizes."""
    found = {}
    for count in COMMITTEES:
        world = make_committee(count, COMMITTEE_SEATS)
        found[f"DataAvailability.beginEpoch/0 ({count} members)"] = measure_begin(world, state)
        blob = world.make_blob()
        world.approve(world.buyer, world.availability)
        arguments = (*blob.tuples, world.sign_rows(blob))
        name = f"DataAvailability.certify/3 ({count} members)"
        found[name] = measure_call(world.availability, "certify", arguments, world.buyer.text, state)
    largest = make_committee(LARGEST_COMMITTEE, LARGEST_COMMITTEE)
    found[f"DataAvailability.beginEpoch/0 ({LARGEST_COMMITTEE} members)"] = measure_begin(largest, state)
    return found


def measure_valsets(state: Any) -> dict[str, int]:
    """Updates and checkpoints of sets of several sizes, signed by the fewest that are a quorum."""
    found = {}
    for count in VALSETS:
        network = NetworksWorld([1] * count).further[0]
        world, places = network.world, range(2 * count // 3 + 1)
        world.root.say(network, world.stranger.text, b"x")
        checkpoint = Checkpoint(world.root.id, network.id, 1, world.root.trees[network.id].root(1))
        for contract, name, struct in (
            (network.inbox, "accept", checkpoint),
            (network.mirror, "update", network.make_update(2)),
        ):
            arguments = (struct_tuple(struct), network.words, *sign_by(network.actors, places, world.domain, struct))
            label = {"accept": "Inbox.accept/4", "update": "ValsetMirror.update/4"}[name]
            found[f"{label} ({count} validators)"] = measure_call(contract, name, arguments, world.stranger.text, state)
    return found


def make_committee(count: int, seats: int) -> World:
    return World(holder_stakes=tuple(COMMITTEE_STAKE + number for number in range(count)), seats=seats)


def measure_begin(world: World, state: Any) -> int:
    return measure_call(world.availability, "beginEpoch", (), world.stranger.text, state)


def name_of(row: Row) -> str:
    inputs = row.function.split("/")[1]
    case = f" ({row.case})" if row.case else ""
    return f"{CONTRACT_NAMES[row.contract]}.{row.name}/{inputs}{case}"


def measure_row(scene: Scene, row: Row, state: Any) -> int:
    arguments = row.prepare(scene)
    caller = scene.address("stranger" if "stranger" in row.allowed else min(row.allowed))
    return measure_call(scene.contracts[row.contract], row.name, arguments, caller, state)


def measure_call(contract: Any, name: str, arguments: tuple[Any, ...], caller: str, state: Any) -> int:
    function = getattr(contract, name)
    state.lock_changes()
    warm = [bytes.fromhex(address[2:]) for address in (caller, str(contract.address))]
    for address in [*warm, *(number.to_bytes(20) for number in PRECOMPILES)]:
        state.mark_address_warm(address)
    function(*arguments, sender=caller)
    computation = contract._computation
    data = function.prepare_calldata(*arguments)
    zeros = data.count(0)
    used = TRANSACTION_GAS + zeros * ZERO_BYTE_GAS + (len(data) - zeros) * OTHER_BYTE_GAS + computation.get_gas_used()
    return used - min(computation.get_gas_refund(), used // REFUND_DIVISOR)


def render(gas: dict[str, int]) -> str:
    return json.dumps({"version": 1, "evm": "cancun", "tolerance": TOLERANCE, "gas": gas}, indent=1) + "\n"
