"""A node that can be told to fail in every way a node fails, and a clock that runs when somebody sleeps."""

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from deaios.ledger.client.rpc import Rpc


def load_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


fake_node = load_module(Path(__file__).resolve().parent / "fake_node.py")


@pytest.fixture
def clock() -> Any:
    return fake_node.VirtualClock()


@pytest.fixture
async def node() -> AsyncIterator[Any]:
    fake = fake_node.FakeNode()
    application = web.Application(client_max_size=1 << 24)
    application.router.add_post("/", fake.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    bound: Any = runner.addresses[0]
    fake.url = f"http://127.0.0.1:{bound[1]}"
    yield fake
    await runner.cleanup()


@pytest.fixture
async def rpc(node: Any, clock: Any) -> AsyncIterator[Rpc]:
    async with Rpc(node.url, clock=clock) as client:
        yield client
