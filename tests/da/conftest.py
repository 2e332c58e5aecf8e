"""The village of `da_village.py` and the lone member of `member_door.py` as fixtures."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load_module(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def kit():
    """The module with members by what they do."""
    return load_module("da_village")


@pytest.fixture(scope="session")
def member_door():
    """The module with one member's door, without a chain."""
    return load_module("member_door")


@pytest.fixture
async def village(kit, tmp_path):
    """Sixteen members with a seat each, k = 5; nobody runs yet."""
    async with kit.open_village(tmp_path) as opened:
        yield opened


@pytest.fixture
async def hamlet(kit, tmp_path):
    """Three members with four seats each, k = 4, as on one machine; nobody runs yet."""
    async with kit.open_village(tmp_path, members=3, seats=12) as opened:
        yield opened
