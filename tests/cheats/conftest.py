"""One world for all cheats: a chain, the contracts and four honest auditors; each test brings its own strangers."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parents[1] / "da"))
sys.path.insert(0, str(Path(__file__).parent))
from cheats_world import AUDITORS, open_world


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def world(tmp_path_factory):
    with ThreadPoolExecutor(4) as executor:
        async with open_world(tmp_path_factory.mktemp("cheats"), executor) as made:
            for _ in range(AUDITORS):
                await made.add_watcher()
            yield made
