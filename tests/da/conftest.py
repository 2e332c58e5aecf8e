"""The village of `da_village.py` as fixtures."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kit():
    """The module with members by what they do."""
    if "da_village" not in sys.modules:
        path = Path(__file__).parent / "da_village.py"
        spec = importlib.util.spec_from_file_location("da_village", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["da_village"] = module
        spec.loader.exec_module(module)
    return sys.modules["da_village"]


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
