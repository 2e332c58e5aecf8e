"""What a role must not load: every module costs start-up time and memory eleven times over in a local network.

Each role's modules are imported in a fresh process, as its own imports them, before any work. The processes are forked
from one interpreter that has loaded nothing, and those of roles from one that has loaded what every role begins with.
"""

import json
import subprocess
import sys

import pytest

FOR_TESTS = {
    "web3": "1.7 s; a foreign client",
    "eth_account": "a foreign wallet; slow recovery",
    "boa": "runs contracts in tests",
    "vyper": "contracts ship compiled",
    "snekmate": "contract sources",
    "openai": "a foreign client",
    "requests": "aiohttp is the one HTTP client",
    "httpx": "aiohttp is the one HTTP client",
    "pytest": "tests only",
    "hypothesis": "tests only",
}
TOO_HEAVY = {
    "torch": "training is an extra",
    "transformers": "an extra; templates and tokenizers are our own",
    "numba": "a second of import; llvmlite does",
    "llvmlite": "all of LLVM; loaded when the first row is coded or checked",
    "xllamacpp": "its Python module starts a server library; the engine opens the shared object by itself",
}
ENGINES = {
    "deaios.compute.engines.llama": "an engine is opened by whoever runs one",
    "deaios.compute.engines.numpy_llama": "an engine is opened by whoever runs one",
}
MODELS = {
    "deaios.compute": "runs no model",
    "tokenizers": "sees no text",
    "jinja2": "renders no template",
    "gguf": "reads no model file",
}
CHAIN = {"pyrevm": "the EVM belongs to the chain's process", "deaios.chain": "the network is a URL"}
TRADE = {"deaios.market": "neither buys nor sells", "deaios.alignment": "judges nobody"}
CODING = {"deaios.coding.matrix": "codes no rows", "reed_solomon_leopard": "codes no rows"}
PROCESS = "deaios.node.process"
BUDGETS = {
    ("deaios.node.roles.chain", PROCESS): MODELS | ENGINES | TRADE | CODING | {"deaios.storage": "keeps no rows"},
    ("deaios.node.roles.operator", PROCESS): MODELS | ENGINES | TRADE | CHAIN | CODING,
    ("deaios.node.roles.storage", PROCESS): MODELS | ENGINES | TRADE | CHAIN,
    ("deaios.node.roles.da", PROCESS): MODELS
    | ENGINES
    | TRADE
    | CHAIN
    | {"deaios.gateway": "has another door", "deaios.storage": "keeps no files"},
    ("deaios.node.roles.provider", PROCESS): CHAIN | ENGINES | {"deaios.gateway": "has another door"},
    ("deaios.node.roles.auditor", PROCESS): CHAIN | ENGINES | {"deaios.gateway": "has another door"},
    ("deaios.node.roles.gateway", PROCESS): CHAIN
    | ENGINES
    | {
        "deaios.compute.engines": "runs no model",
        "deaios.compute.service": "runs no model",
        "deaios.compute.verification": "checks no answer",
        "deaios.alignment": "judges nobody",
        "deaios.market.seller": "sells nothing",
    },
    ("deaios.node.roles.further", PROCESS): MODELS | ENGINES | TRADE | CODING | {"deaios.storage": "keeps no rows"},
    ("deaios.node.roles.validator", PROCESS): MODELS | ENGINES | TRADE | CHAIN | CODING,
    ("deaios.node.roles.relayer", PROCESS): MODELS | ENGINES | TRADE | CHAIN | CODING,
    ("deaios.node.local",): {
        "deaios.gateway": "only starts processes",
        "deaios.alignment.auditor": "only starts processes",
        "deaios.market.seller": "only starts processes",
    }
    | {"pyrevm": CHAIN["pyrevm"], "deaios.chain": "only starts processes"}
    | MODELS
    | TRADE
    | CODING
    | dict.fromkeys(("numpy", "eth_abi", "pydantic"), "only starts processes"),
    ("deaios.node.ground",): MODELS | ENGINES | TRADE | CHAIN | CODING,
    ("deaios.cli.network", "deaios.cli.answers", "deaios.cli.networks", "deaios.cli.wallet"): CHAIN
    | MODELS
    | TRADE
    | CODING
    | dict.fromkeys(("numpy", "aiohttp", "eth_abi", "pydantic"), "`deaios up --help` shall be quick"),
    ("deaios.cli.main",): CHAIN
    | MODELS
    | TRADE
    | CODING
    | dict.fromkeys(("numpy", "aiohttp", "coincurve", "eth_abi", "pydantic"), "`deaios --help` shall be quick"),
}


OURS = tuple(sorted({name for budget in BUDGETS.values() for name in budget if name.startswith("deaios.")}))
_SCRIPT = """
import importlib, json, os, sys

def within(modules, work):
    # in a process of its own, so that this one stays as it is
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0, modules
        return
    for name in modules:
        importlib.import_module(name)
    work()
    sys.stdout.flush()
    os._exit(0)

def tell(modules):
    within(modules, lambda: print(json.dumps([modules, sorted(sys.modules)]), flush=True))

process, roles, others = json.loads(sys.argv[1])
within([process], lambda: [tell(modules) for modules in roles])
for modules in others:
    tell(modules)
"""


@pytest.fixture(scope="module")
def loaded_by():
    """Names of all modules after importing some, by what was imported."""
    roles = [modules for modules in BUDGETS if PROCESS in modules]
    others = [modules for modules in (*BUDGETS, OURS) if PROCESS not in modules]
    wanted = json.dumps([PROCESS, roles, others])
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, wanted], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {tuple(modules): set(loaded) for modules, loaded in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == {*BUDGETS, OURS}
    return found


@pytest.mark.parametrize("modules", BUDGETS, ids=lambda modules: modules[0])
def test_a_role_loads_nothing_that_it_must_not(loaded_by, modules):
    loaded = loaded_by[modules]
    assert set(modules) <= loaded
    forbidden = FOR_TESTS | TOO_HEAVY | BUDGETS[modules]
    assert {name: forbidden[name] for name in sorted(forbidden.keys() & loaded)} == {}


def test_what_is_forbidden_exists_or_is_known_to_be_foreign(loaded_by):
    """A renamed module of ours would silently leave the budget."""
    assert set(OURS) <= loaded_by[OURS]


def test_a_nursery_that_expects_nothing_loads_no_role():
    """What a role needs is loaded when it is asked for, and not by each `deaios provide` for all."""
    script = "import sys, deaios.node.nursery as n; n._load(n.PROCESS); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert not [name for name in done.stdout.split() if name.startswith("deaios.node.roles.")]
