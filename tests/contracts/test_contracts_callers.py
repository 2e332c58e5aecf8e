"""Who may call what: one row for every function that can change anything, tried by everybody.

A function without a row fails the first test. Each row of `contracts_calls.py` names who gets through, what everybody
else is told, and whom but the caller a stranger's call can cost money.
"""

import copy
import json
import re

import boa
import pytest
from boa.contracts.base_evm_contract import BoaError
from contracts_calls import ROWS
from contracts_scene import CONTRACT_NAMES, EVERYONE, Scene
from contracts_world import ARTIFACTS

PREFIXES = (
    "credit|identity|channels|staking|beacon|disputes|forks|availability|networks|equivocation|inbox|bridge|sponsorship"
    "|settlement|collector"
)
"""With what each contract's errors begin."""


def test_every_function_that_can_change_anything_has_a_row():
    found = set()
    assert {path.stem for path in ARTIFACTS.glob("*.json")} == set(CONTRACT_NAMES.values())
    for field_name, contract in CONTRACT_NAMES.items():
        for entry in json.loads((ARTIFACTS / f"{contract}.json").read_text())["abi"]:
            assert entry["type"] not in ("fallback", "receive")
            if entry["type"] == "function" and entry["stateMutability"] not in ("view", "pure"):
                assert entry["stateMutability"] == "nonpayable"
                found.add(f"{field_name}.{entry['name']}/{len(entry['inputs'])}")
    assert {row.function for row in ROWS} == found


@pytest.fixture(scope="module")
def prepared(deployed):
    """Everybody with money and the suite's leave to take it, once for all rows."""
    with boa.env.anchor():
        deployed.counter = 0
        scene = Scene(deployed)
        yield scene, deployed.counter


@pytest.fixture
def scene(prepared):
    scene, counter = prepared
    with boa.env.anchor():
        scene.world.counter = counter
        yield copy.copy(scene)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.function + row.case)
def test_who_may_call(scene, row):
    arguments = row.prepare(scene)
    function = getattr(scene.contracts[row.contract], row.name)
    through, told = set(), set()
    for role in EVERYONE:
        with boa.env.anchor():
            try:
                function(*arguments, sender=scene.address(role))
                through.add(role)
            except BoaError as error:
                told.add(reason_of(error))
    assert through == row.allowed
    assert told == set(row.refusals)


def reason_of(error: BoaError) -> str:
    """What the contract said; a refusal without a text gives the whole trace, which no row expects."""
    trace = str(error.stack_trace.last_frame)
    found = re.search(rf"""((?:{PREFIXES}): .*?)(?:\\x00|'\(|"\()""", trace)
    return found.group(1) if found else trace


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.allowed == EVERYONE], ids=lambda row: row.function + row.case
)
def test_whom_a_stranger_s_call_can_cost_money(scene, row):
    arguments = row.prepare(scene)
    before = scene.wealth()
    getattr(scene.contracts[row.contract], row.name)(*arguments, sender=scene.stranger.text)
    now = scene.wealth()
    assert {role for role in now if now[role] < before[role]} - {"stranger"} == row.costs


def test_names_of_the_table_are_different_people(scene):
    addresses = [scene.address(role) for role in sorted(EVERYONE)]
    assert len(set(addresses)) == len(addresses)
