"""Fixtures: the contract suite, as it was deployed, for every test anew."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import boa
import pytest

HERE = Path(__file__).resolve().parent


def load_module(path: Path) -> ModuleType:
    """Import a helper module that lies beside the tests, so that they can import it by its name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


HELPERS = (
    "contracts_world",
    "networks_world",
    "contracts_lies",
    "contracts_scene",
    "contracts_calls",
    "contracts_gas",
    "contracts_model",
    "contracts_stakes",
    "contracts_machine",
    "contracts_registry",
)
for _helper in HELPERS:
    load_module(HERE / f"{_helper}.py")

from contracts_world import DeploymentReverted, World, deploy  # noqa: E402 - loaded by its path just above
from networks_world import make_abroad  # noqa: E402 - likewise


@pytest.fixture(scope="session")
def deployed() -> World:
    """One suite for all tests, and networks beside it; each test's changes are undone."""
    suite = World()
    suite.abroad = make_abroad()
    return suite


@pytest.fixture
def world(deployed: World) -> Iterator[World]:
    """The suite, as it was deployed."""
    with boa.env.anchor():
        deployed.counter = 0
        yield deployed


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """For tests that need other settings or several suites; everything is undone."""
    with boa.env.anchor():
        yield World


@pytest.fixture(scope="session")
def deploy_contract(deployed: World) -> Callable[..., Any]:
    """Deploy a single contract by its name."""

    def deploy_one(name: str, *arguments: object) -> Any:
        return deploy(name, *arguments, sender=deployed.stranger.text)

    return deploy_one


@pytest.fixture(scope="session")
def deployment_reverts() -> Callable[[str], AbstractContextManager[Any]]:
    """Expect a constructor to refuse its arguments for a reason."""
    return lambda reason: pytest.raises(DeploymentReverted, match=re.escape(reason))
