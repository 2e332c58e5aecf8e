"""How a chain seals, what it refuses when it is full, and what it says of what it gave up."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from chain_values import GWEI, OPERATOR, USERS, transaction, transfer

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.pool import PoolLimits, RefusedByPool
from deaios.chain.service import ChainService, Limits, Sealing
from deaios.chain.service.chain import RefusedPruned
from deaios.node.config import ChainConfig
from deaios.node.roles.chain import read_limits
from deaios.primitives.errors import ConfigError
from deaios.runtime.clock import SystemClock

GENESIS = Genesis(
    b"\x31" * 32, OPERATOR.address, 1_700_000_000, tuple(Allocation(user.address, 100 * ETHER) for user in USERS)
)
CHAIN_ID = GENESIS.chain_id
TO = b"\x66" * 20
NEVER_MS = 3_600_000


@contextlib.asynccontextmanager
async def running(path, limits):
    with ThreadPoolExecutor(3) as executor:
        chain = await ChainService.start(
            path / "chain.db", OPERATOR, GENESIS, executor=executor, clock=SystemClock(), limits=limits
        )
        task = asyncio.create_task(chain.run())
        try:
            yield chain
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await chain.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def admit(chain, *signed):
    results = await chain.submit([item.raw for item in signed])
    assert results == [item.hash for item in signed]
    return results


async def test_instant_sealing_waits_for_nobody(tmp_path):
    limits = Limits(block_ms=NEVER_MS, gather_ms=NEVER_MS, sealing=Sealing.INSTANT)
    async with running(tmp_path, limits) as chain:
        for nonce in range(3):
            await admit(chain, transfer(USERS[0], CHAIN_ID, nonce, TO, 1))
            await until(lambda nonce=nonce: chain.state.account(USERS[0].address).nonce == nonce + 1)
        assert chain.head.number == 3
        # One that cannot pay the base fee is no reason for a block.
        await admit(chain, transaction(USERS[0], CHAIN_ID, 4, TO))
        assert chain.pool.pending_nonce(USERS[0].address, chain.state) == 3
    assert chain.head.number == 3


async def test_interval_sealing_makes_blocks_of_nothing(tmp_path):
    async with running(tmp_path, Limits(block_ms=5, gather_ms=NEVER_MS, sealing=Sealing.INTERVAL)) as chain:
        await until(lambda: chain.head.number >= 3)
        (sent,) = await admit(chain, transfer(USERS[0], CHAIN_ID, 0, TO, 1))
        await until(lambda: chain.pool.get(sent) is None)
    assert chain.state.account(TO).balance == 1


async def test_a_full_state_admits_nothing_more_and_says_what_to_do(tmp_path):
    async with running(tmp_path, Limits(slots_max=0)) as chain:
        (refusal,) = await chain.submit([transfer(USERS[0], CHAIN_ID, 0, TO, 1).raw])
    assert isinstance(refusal, RefusedByPool)
    assert "state is full: 0 storage words, at most 0" in str(refusal)
    assert "--chain URL" in str(refusal)


async def test_what_a_full_pool_evicts_stays_evicted_and_has_a_record(tmp_path):
    limits = Limits(gather_ms=NEVER_MS, pool=PoolLimits(transactions=2))
    async with running(tmp_path, limits) as chain:
        cheap, same = (transaction(USERS[user], CHAIN_ID, 0, TO, tip=GWEI // 100) for user in (0, 1))
        await admit(chain, cheap, same)
        dear = transaction(USERS[2], CHAIN_ID, 0, TO, tip=GWEI)
        await admit(chain, dear)
        # Of two that pay the same, the later one goes.
        reason = f"evicted from a full pool by 0x{dear.hash.hex()}, which pays more"
        assert [await chain.dropped(item.hash) for item in (cheap, same, dear)] == [None, reason, None]
        (refusal,) = await chain.submit([transaction(USERS[3], CHAIN_ID, 0, TO, tip=GWEI // 100).raw])
        assert "underpriced" in str(refusal)
        new = transaction(USERS[0], CHAIN_ID, 0, TO, max_fee=4 * GWEI, tip=2 * GWEI)
        await admit(chain, new)
        assert await chain.dropped(cheap.hash) == f"replaced by 0x{new.hash.hex()}"
    async with running(tmp_path, Limits(gather_ms=NEVER_MS)) as chain:
        assert {item.transaction.hash for item in chain.pool} == {dear.hash, new.hash}
        assert await chain.dropped(same.hash) == reason
        # What was given up may be sent again, and is then no longer gone.
        await admit(chain, same)
    async with running(tmp_path, Limits(block_ms=5, gather_ms=1)) as chain:
        await until(lambda: not len(chain.pool))
        assert await chain.receipt(same.hash) is not None
        assert await chain.dropped(same.hash) is None


async def test_old_blocks_are_pruned_as_new_ones_come(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="keep_blocks is 5; it must be 0"):
        Limits(keep_blocks=5)
    monkeypatch.setattr("deaios.chain.service.pace.KEEP_BLOCKS_MIN", 2)
    async with running(tmp_path, Limits(block_ms=1, gather_ms=1, keep_blocks=2)) as chain:
        for nonce in range(4):
            (sent,) = await admit(chain, transfer(USERS[0], CHAIN_ID, nonce, TO, 1))
            await until(lambda sent=sent: chain.pool.get(sent) is None)
        await until(lambda: chain.oldest_block == chain.head.number - 1)
        with pytest.raises(RefusedPruned, match="pruned history unavailable"):
            await chain.block(1)
    async with running(tmp_path, Limits()) as chain:
        assert chain.oldest_block == chain.head.number - 1
        assert await chain.receipt(sent) is not None
        assert chain.state.account(TO).balance == 4


def test_what_is_configured_never_forgets_what_slashing_may_need():
    with pytest.raises(ConfigError, match=r"keep_blocks is 300; .*172800 blocks here"):
        read_limits(ChainConfig(keep_blocks=300))
    config = ChainConfig(block_interval_ms=1000, keep_blocks=86_400, sealing="instant", state_slots_max=7)
    assert read_limits(config) == Limits(1000, sealing=Sealing.INSTANT, keep_blocks=86_400, slots_max=7)
