"""A chain that this machine runs for a network of its own: opened for a role, which adds its routes and serves it."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits
from deaios.chain.service.pace import Deadline
from deaios.chain.store import holds_chain
from deaios.ledger.x402 import list_predeploys
from deaios.node.context import RoleContext
from deaios.primitives.keys import PrivateKey
from deaios.runtime.clock import Clock
from deaios.runtime.garbage import spare_collector

OPERATOR_ETHER = 1_000_000_000
THREADS = 4


@asynccontextmanager
async def open_own_chain(
    context: RoleContext,
    key: PrivateKey,
    limits: Limits,
    *,
    clock: Clock | None = None,
    deadline: Deadline | None = None,
) -> AsyncIterator[ChainService]:
    """The role's chain, made at its first start; closed when the block ends.

    Args:
        context: of the role, whose folder holds the chain.
        key: the operator's.
        limits: pace and bounds.
        clock: another than the role's.
        deadline: until when empty blocks are wanted.
    """
    path = context.data / "chain.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    genesis = None if await asyncio.to_thread(holds_chain, path) else _new_genesis(context, key)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="chain") as executor:
        chain = await ChainService.start(
            path, key, genesis, executor=executor, clock=clock or context.clock, deadline=deadline, limits=limits
        )
        spare_collector()
        try:
            yield chain
        finally:
            await chain.close()


def _new_genesis(context: RoleContext, key: PrivateKey) -> Genesis:
    return Genesis(
        seed=context.dice.token_bytes(32),
        operator=key.address,
        timestamp=context.clock.now_ms() // 1000,
        allocations=(
            Allocation(key.address, OPERATOR_ETHER * ETHER),
            *(Allocation(address, nonce=1, code=code) for address, code in list_predeploys()),
        ),
    )
