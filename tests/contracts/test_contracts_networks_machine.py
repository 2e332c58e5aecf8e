"""Networks, keys, epochs and lies in any order of calls: the machine and model of `contracts_registry.py`."""

from collections import Counter
from typing import ClassVar

import pytest
from contracts_registry import ANSWER_SECONDS, NAMES, Registry, run_registry
from contracts_world import JAIL_SECONDS


@pytest.fixture
def machine(world):
    """A machine class of its own over this test's world."""

    class RegistryInThisWorld(Registry):
        seen: ClassVar = Counter()

    RegistryInThisWorld.world = world
    return RegistryInThisWorld


@pytest.mark.slow
def test_keys_and_epochs_are_the_model_s_in_any_order_of_calls(machine):
    run_registry(machine, examples=3, steps=25)
    assert machine.seen["add"] > 0


def test_the_machine_s_rules_reach_every_event(machine):
    """In one fixed order, so that the property above is not empty."""
    here = machine()
    here.begin()
    try:
        for name in NAMES:
            here.add(name)
            here.add(name)
        keys = [here.serial + step for step in range(6)]
        for name in NAMES:
            for operator in range(3):
                here.join(name, operator, False, None)
            here.begin_epoch(name)
            here.begin_epoch(name)
        for kind in ("truth", "one header"):
            here.prove_key(keys[0], kind)
        here.prove_key(keys[0], "headers", wrong_network=True)
        here.leave("a", 1)
        here.leave("a", 1)
        for number, kind in ((keys[0], "headers"), (keys[1], "valset"), (keys[5], "checkpoints")):
            here.prove_key(number, kind)
            here.prove_key(number, kind)
            here.keys_are_the_model_s()
            here.epochs_are_the_model_s()
            here.money_is_conserved()
        here.join("a", 0, False, None)
        here.wait(JAIL_SECONDS)
        for operator in range(3):
            here.return_(operator)
        here.join("a", 0, False, None)
        here.begin_epoch("a")
        here.retire("b", False)
        here.retire("b", True)
        here.reclaim("b")
        here.wait(ANSWER_SECONDS)
        here.prove_key(keys[4], "headers")
        here.reclaim("b")
        here.keys_are_the_model_s()
        here.epochs_are_the_model_s()
        here.money_is_conserved()
    finally:
        here.teardown()
    expected = {
        "add": 2,
        "add refused": 2,
        "join": 7,
        "join refused": 1,
        "epoch": 3,
        "epoch refused": 2,
        "truth refused": 1,
        "one header refused": 1,
        "headers": 1,
        "headers refused": 3,
        "valset": 1,
        "checkpoints": 1,
        "lie of who left": 1,
        "leave": 1,
        "leave refused": 1,
        "unjail": 3,
        "retire": 1,
        "retire refused": 1,
        "reclaim": 1,
        "reclaim refused": 1,
    }
    assert {name: machine.seen[name] for name in expected} == expected
