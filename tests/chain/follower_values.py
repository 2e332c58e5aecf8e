"""Chains and followers that several tests share. Not a test module."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

from chain_values import OPERATOR, USERS, transaction, transfer

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.chain.service.follower import Follower, start_follower
from deaios.chain.service.source import Source
from deaios.ledger.client.rpc import Rpc
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

GENESIS = Genesis(
    b"\x51" * 32, OPERATOR.address, 1_700_000_000, tuple(Allocation(user.address, 100 * ETHER) for user in USERS)
)
CHAIN_ID = GENESIS.chain_id
TO = b"\x66" * 20
# Stores calldata's first word at slot 0 and logs it; reverts where it is zero.
COUNTER = bytes.fromhex("60003580600b57600080fd5b80600055600052600160206000a100")
DEPLOY = bytes.fromhex(f"60{len(COUNTER):02x}600c60003960{len(COUNTER):02x}6000f3") + COUNTER


@contextlib.asynccontextmanager
async def producing(path, *, genesis=GENESIS, key=OPERATOR, port=0):
    """A chain that makes blocks, and its URL."""
    with ThreadPoolExecutor(3) as executor:
        limits = Limits(block_ms=5, gather_ms=1)
        chain = await ChainService.start(
            path, key, genesis, executor=executor, clock=SystemClock(), limits=limits, deadline=None
        )
        running = asyncio.create_task(chain.run())
        try:
            async with serve(build_application(chain), port=port) as url:
                yield chain, url
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await chain.close()


class Following:
    """A follower that runs; `trouble` and `heights` are what it reported."""

    def __init__(self, chain, follower, progress):
        self.chain, self.follower, self.progress = chain, follower, progress
        self.task = asyncio.create_task(follower.run())

    async def reach(self, number):
        """Until it has this block, or ends."""
        waiting = asyncio.create_task(self.chain.sealed.wait_for(number, 30))
        await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            waiting.cancel()
            self.task.result()
        assert await waiting, f"block {number} was not reached; {self.progress[-3:]}"


@contextlib.asynccontextmanager
async def following(path, url, *, genesis_hash=None, forward=True, source_of=Source):
    """A follower of `url`."""
    with ThreadPoolExecutor(3) as executor:
        async with Rpc(url, attempts=1) as rpc:
            clock, progress = SystemClock(), []
            source = source_of(rpc)
            chain = await start_follower(
                path, source, genesis_hash, executor=executor, clock=clock, is_forwarding=forward
            )
            follower = Follower(
                chain, source, executor=executor, clock=clock, evidence=path.parent / "evidence", report=progress.append
            )
            one = Following(chain, follower, progress)
            try:
                yield one
            finally:
                one.task.cancel()
                await asyncio.gather(one.task, return_exceptions=True)
                await chain.close()


async def include(chain, *signed):
    """Send transactions and wait for their block; its receipts."""
    hashes = await chain.submit([item.raw for item in signed])
    assert all(isinstance(item, bytes) for item in hashes), hashes
    number = chain.sealed.number
    while (found := await chain.receipt(hashes[-1])) is None:
        assert await chain.sealed.wait_for(number + 1, 10)
        number = chain.sealed.number
    await chain.sealed.wait_for(found[0].number, 5)
    return [(await chain.receipt(item))[1] for item in hashes]


async def make_history(chain, blocks):
    """A contract, calls that store and log, calls that revert, plain transfers; `blocks` blocks or a few more."""
    (deployed,) = await include(chain, transaction(USERS[0], CHAIN_ID, 0, None, data=DEPLOY, gas=200_000))
    contract, nonce = deployed.created, 1
    assert contract is not None
    while chain.head.number < blocks:
        await include(
            chain,
            transfer(USERS[1], CHAIN_ID, nonce - 1, TO, nonce),
            transaction(USERS[0], CHAIN_ID, nonce, contract, data=nonce.to_bytes(32), gas=100_000),
            transaction(USERS[2], CHAIN_ID, nonce - 1, contract, data=bytes(32), gas=100_000),
        )
        nonce += 1
    return contract
