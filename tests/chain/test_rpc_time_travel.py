"""dev_*: there when asked for, and only forward."""

import pytest
from rpc_world import running

from deaios.chain.service.time_travel import SHIFT_S_MAX, MovedClock
from deaios.runtime.clock import SystemClock

TO = b"\x66" * 20


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path, moved=True) as found:
        yield found


async def timestamp(world):
    return int((await world.result("eth_getBlockByNumber", "latest", False))["timestamp"], 16)


async def test_time_moves_blocks_come_and_code_sees_it(world):
    start = SystemClock().now_ms() // 1000
    assert await world.result("dev_increaseTime", 86_400) == hex(86_400)
    assert await world.result("dev_mine") == "0x1"
    assert start + 86_400 <= await timestamp(world) <= start + 86_430
    wanted = start + 10 * 86_400
    await world.result("dev_setNextBlockTimestamp", hex(wanted))
    address = await world.deploy(bytes.fromhex("4260005260206000f3"))  # returns TIMESTAMP
    assert wanted <= await timestamp(world) <= wanted + 30
    seen = int(await world.result("eth_call", {"to": address}), 16)
    assert wanted <= seen <= wanted + 30
    head = world.chain.head.number
    assert await world.result("dev_mine", "0x5") == hex(head + 5)
    assert world.chain.head.number == head + 5
    assert "dev" in await world.result("rpc_modules")


async def test_it_never_moves_back_nor_beyond_its_bound(world):
    error = await world.error("dev_setNextBlockTimestamp", "0x1")
    assert (error["code"], "is in the past" in error["message"]) == (-32602, True)
    assert (await world.error("dev_increaseTime", SHIFT_S_MAX + 1))["code"] == -32000
    assert (await world.error("dev_increaseTime", -1))["code"] == -32602
    assert (await world.error("dev_mine", "0x0"))["code"] == -32602
    assert (await world.error("dev_mine", "0x1000"))["code"] == -32602
    assert await world.result("dev_increaseTime", 0) == "0x0"


def test_a_restart_is_never_before_the_last_block():
    clock = MovedClock(SystemClock())
    future = SystemClock().now_ms() // 1000 + 5000
    clock.catch_up(future)
    assert 5000 <= clock.now_ms() // 1000 - SystemClock().now_ms() // 1000 + 1 <= 5002
    clock.catch_up(0)
    assert clock.shift_s >= 4999
