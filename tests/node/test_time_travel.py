"""The chain's role with and without time travel: off unless asked for, and said when it is on."""

import asyncio
import contextlib

import pytest
from structlog.testing import capture_logs

from deaios.ledger.client.rpc import Rpc
from deaios.node import own_chain
from deaios.node.config import ChainConfig, Config
from deaios.node.context import RoleContext
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.keystore import Keystore
from deaios.node.roles import chain as role
from deaios.primitives.errors import DeaiosError
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.metrics import Metrics

DAY_S = 86_400


@contextlib.asynccontextmanager
async def running(folder, *, time_travel):
    """The role in this process; yields a client of its URL."""
    config = Config(chain=ChainConfig(time_travel=time_travel, block_interval_ms=250))
    spec, dice = RoleSpec("chain", "chain"), SystemDice()
    keystore = Keystore(folder.keys, dice, "password")
    context = RoleContext(spec, folder, config, keystore, SystemClock(), dice, Metrics("chain"))
    task = asyncio.create_task(role.run(context))
    async with asyncio.timeout(30):
        while (state := folder.load_run_state("chain")) is None or not state.url:
            assert not task.done(), task.result()
            await asyncio.sleep(0.02)
    try:
        async with Rpc(state.url) as rpc:
            yield rpc
    finally:
        context.stopping.set()
        await task
        (folder.root / "run" / "chain.json").unlink()


async def test_it_is_off_unless_asked_for_said_when_on_and_kept_over_a_restart(tmp_path, monkeypatch):
    # It sets the collector of the whole process, which is the tests' here, and finds what they left.
    monkeypatch.setattr(own_chain, "spare_collector", lambda: None)
    folder = StateFolder(tmp_path)
    with capture_logs() as logs:
        async with running(folder, time_travel=False) as rpc:
            with pytest.raises(DeaiosError, match="dev_mine does not exist"):
                await rpc.call("dev_mine")
    assert not [line for line in logs if "TIME TRAVEL" in line["event"]]
    with capture_logs() as logs:
        async with running(folder, time_travel=True) as rpc:
            await rpc.call("dev_increaseTime", [DAY_S])
            await rpc.call("dev_mine")
            before = await timestamp(rpc)
    assert [line["log_level"] for line in logs if "TIME TRAVEL" in line["event"]] == ["warning"]
    async with running(folder, time_travel=True) as rpc:
        await rpc.call("dev_mine")
        assert before <= await timestamp(rpc) <= before + 60


async def timestamp(rpc):
    block = await rpc.call("eth_getBlockByNumber", ["latest", False])
    return int(block["timestamp"], 16)
