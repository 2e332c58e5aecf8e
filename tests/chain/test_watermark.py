"""Waiting for a height: told at once, bounded in time and number, let go when the server ends."""

import asyncio

from deaios.chain.service.watermark import WAITERS_MAX, Watermark


async def test_waiters_are_told_in_the_step_in_which_it_grows():
    mark = Watermark()
    tasks = [asyncio.create_task(mark.wait_for(number, 10)) for number in (0, 1, 2)]
    await asyncio.sleep(0)
    mark.raise_to(1)
    mark.raise_to(0)
    assert (await tasks[0], await tasks[1], mark.number) == (True, True, 1)
    assert not tasks[2].done()
    mark.raise_to(5)
    assert await tasks[2]
    assert await mark.wait_for(5, 0)


async def test_time_is_bounded():
    mark = Watermark()
    assert not await mark.wait_for(0, 0)
    assert not await mark.wait_for(0, 0.001)


async def test_one_too_many_is_answered_at_once_and_all_are_let_go():
    mark = Watermark()
    tasks = [asyncio.create_task(mark.wait_for(0, 60)) for _ in range(WAITERS_MAX)]
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        assert not await mark.wait_for(0, 60)
        tasks.pop().cancel()
        await asyncio.sleep(0)
        waiting = asyncio.create_task(mark.wait_for(0, 60))
        await asyncio.sleep(0)
        assert not waiting.done()
        mark.close()
        assert not any(await asyncio.gather(waiting, *tasks))
        assert not await mark.wait_for(0, 60)
