"""The chain of a local network: one operator orders blocks, and the same process hands out the faucet's share.

The operator's key is this role's key. The descriptor is served at `/descriptor` once the network is founded.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.chain.store import holds_chain
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deadlines import fetch_deadline
from deaios.ledger.client.rpc import Rpc
from deaios.node.context import RoleContext
from deaios.node.folder import StateFolder
from deaios.node.office import Office
from deaios.node.ports import HOST, keep_port
from deaios.primitives.keys import PrivateKey
from deaios.runtime.http import serve

OPERATOR_ETHER = 1_000_000_000
THREADS = 4


async def run(context: RoleContext) -> None:
    """Make blocks, answer JSON-RPC, serve descriptor and faucet until told to stop."""
    key = context.open_key()
    path = context.data / "chain.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    genesis = None if await asyncio.to_thread(holds_chain, path) else _new_genesis(context, key)
    port = keep_port(context.data, context.spec.port)
    async with Rpc(f"http://{HOST}:{port}") as rpc:
        deadlines = _Deadlines(context.folder, rpc)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="chain") as executor:
            chain = await ChainService.start(
                path,
                key,
                genesis,
                executor=executor,
                clock=context.clock,
                deadline=deadlines.latest,
                limits=Limits(block_ms=context.config.chain.block_interval_ms),
            )
            try:
                application = build_application(chain)
                Office(context.folder, key, rpc).add_routes(application)
                async with serve(application, HOST, port) as url:
                    context.report_ready(url)
                    await context.work_until_stopped(chain.run())
            finally:
                await chain.close()


def _new_genesis(context: RoleContext, key: PrivateKey) -> Genesis:
    return Genesis(
        seed=context.dice.token_bytes(32),
        operator=key.address,
        timestamp=context.clock.now_ms() // 1000,
        allocations=(Allocation(key.address, OPERATOR_ETHER * ETHER),),
    )


class _Deadlines:
    """Until when blocks must keep coming, as the contracts say."""

    def __init__(self, folder: StateFolder, rpc: Rpc) -> None:
        self._folder = folder
        self._rpc = rpc
        self._contracts: Contracts | None = None

    async def latest(self) -> int:
        """Latest open deadline as a block time; 0 for none, and before there are contracts."""
        if self._contracts is None:
            if not self._folder.descriptor_path.exists():
                return 0
            self._contracts = Contracts(self._rpc, self._folder.load_descriptor().contracts)
        return await fetch_deadline(self._contracts)
