"""What a role must not load: every module costs start-up time and memory eleven times over in a local network.

Each role's modules are imported in a fresh interpreter, as its process imports them, before any work.
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
    | {"pyrevm": CHAIN["pyrevm"], "deaios.chain": "only starts processes"},
    ("deaios.cli.main",): CHAIN
    | MODELS
    | TRADE
    | CODING
    | dict.fromkeys(("numpy", "aiohttp", "coincurve", "eth_abi", "pydantic"), "`deaios --help` shall be quick"),
}


def list_loaded(modules):
    """Names of all modules after importing some in a fresh interpreter."""
    script = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("modules", BUDGETS, ids=lambda modules: modules[0])
def test_a_role_loads_nothing_that_it_must_not(modules):
    loaded = list_loaded(modules)
    assert set(modules) <= loaded
    forbidden = FOR_TESTS | TOO_HEAVY | BUDGETS[modules]
    assert {name: forbidden[name] for name in sorted(forbidden.keys() & loaded)} == {}


def test_what_is_forbidden_exists_or_is_known_to_be_foreign():
    """A renamed module of ours would silently leave the budget."""
    ours = {name for budget in BUDGETS.values() for name in budget if name.startswith("deaios.")}
    assert ours <= list_loaded(sorted(ours))
