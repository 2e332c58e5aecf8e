"""Any order of calls over the contract suite beside its model, for as long as the budget allows.

The machines are those of `make test` (contracts_machine.py and contracts_registry.py in tests/contracts), with longer
runs and fresh seeds.
"""

import importlib.util
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import boa
import hypothesis

from soak.searches import Budget, Finding

TESTS = Path(__file__).resolve().parents[1] / "tests" / "contracts"
HELPERS = (
    "contracts_world",
    "contracts_lies",
    "contracts_model",
    "contracts_stakes",
    "contracts_machine",
    "contracts_registry",
)
"""In the order in which they import each other."""
EXAMPLES = 10
"""Runs of one seed: few, so that a finding is repeated within a minute."""
STEPS = 60
SEED_STRIDE = 1000
"""Between the seeds of one budget; rounds of `python -m soak` count on by one."""


def search(budget: Budget) -> str:
    """Run seed after seed until the budget ends; at least one.

    Raises:
        Finding: a step after which an invariant did not hold; the steps are printed.
    """
    helpers = [load_helper(name) for name in HELPERS]
    deadline_s, seed, runs, seen = budget.deadline_s(), budget.seed, 0, Counter()
    while runs == 0 or time.monotonic() < deadline_s:
        try:
            seen += run_seed(seed, helpers[0], *helpers[-2:])
        except Exception as error:
            what = f"contracts: {type(error).__name__}: {error}\n" + "\n".join(getattr(error, "__notes__", ()))
            raise Finding(what, f"python -m soak contracts --seed {seed} --seconds 1 --rounds 1") from error
        runs += 2 * EXAMPLES
        seed += SEED_STRIDE
    happened = ", ".join(
        f"{name} {count}" for name, count in sorted(seen.items()) if " " in name and "refused" not in name
    )
    return f"contracts: {runs} runs, {seen.total()} calls and events; {happened}"


def run_seed(seed: int, suite: ModuleType, machines: ModuleType, registry: ModuleType) -> Counter:
    """Run both machines on a suite of their own; what happened."""
    with boa.env.anchor():

        class SeededSuite(machines.Suite):
            world = suite.World()
            seen: ClassVar = Counter()

        class SeededRegistry(registry.Registry):
            world = SeededSuite.world
            seen: ClassVar = Counter()

        machines.run_machine(hypothesis.seed(seed)(SeededSuite), EXAMPLES, STEPS, keep=False)
        registry.run_registry(hypothesis.seed(seed)(SeededRegistry), EXAMPLES, STEPS, keep=False)
        return SeededSuite.seen + SeededRegistry.seen


def load_helper(name: str) -> ModuleType:
    """Import a module that lies beside the tests, under its own name."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
