"""Runs one embedded chain for tests, prints its URL, ends cleanly on SIGTERM. Not a test module."""

import asyncio
import contextlib
import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chain_values import OPERATOR, USERS

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.pool import PoolLimits
from deaios.chain.service import ChainService, Limits, build_application
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

GENESIS = Genesis(
    seed=b"\x07" * 32,
    operator=OPERATOR.address,
    timestamp=1_700_000_000,
    allocations=tuple(Allocation(user.address, 1000 * ETHER) for user in USERS),
)


async def main(path: Path, options: dict[str, int]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def deadline() -> int:
        return options.get("deadline", 0)

    limits = Limits(
        block_ms=options.get("block_ms", 100),
        gather_ms=options.get("gather_ms", 20),
        pool=PoolLimits(transactions=options.get("pool", 16_384)),
    )
    with ThreadPoolExecutor(4) as executor:
        chain = await ChainService.start(
            path, OPERATOR, GENESIS, executor=executor, clock=SystemClock(), deadline=deadline, limits=limits
        )
        running = asyncio.create_task(chain.run())
        async with serve(build_application(chain)) as url:
            print(url, flush=True)  # noqa: T201 # the parent reads it
            await stop.wait()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await chain.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
