"""The chain of a local network: one operator orders blocks, and the same process hands out the faucet's share.

The operator's key is this role's key. The descriptor is served at `/descriptor` once the network is founded.
"""

from deaios.chain.service import Limits, Sealing, build_application
from deaios.chain.service.time_travel import MovedClock
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deadlines import fetch_deadline
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.settings import LOCAL
from deaios.node.config import ChainConfig
from deaios.node.context import RoleContext
from deaios.node.folder import StateFolder
from deaios.node.office import Office
from deaios.node.own_chain import open_own_chain
from deaios.node.ports import keep_port
from deaios.primitives.errors import ConfigError
from deaios.runtime.http import serve
from deaios.runtime.logs import get_logger

_log = get_logger("chain")


async def run(context: RoleContext) -> None:
    """Make blocks, answer JSON-RPC, serve descriptor and faucet until told to stop."""
    key = context.open_key()
    port = keep_port(context.data, context.spec.port, context.host)
    moved_clock = MovedClock(context.clock) if context.config.chain.time_travel else None
    if moved_clock is not None:
        _log.warning("TIME TRAVEL IS ON: anybody who reaches this chain may move its time; never keep value on it")
    async with Rpc(f"http://{context.host}:{port}") as rpc:
        deadline, limits = _Deadlines(context.folder, rpc).latest, read_limits(context.config.chain)
        async with open_own_chain(context, key, limits, clock=moved_clock, deadline=deadline) as chain:
            if moved_clock is not None:
                moved_clock.catch_up(chain.head.timestamp)
            application = build_application(chain, moved_clock)
            Office(context, key, rpc).add_routes(application)
            async with serve(application, context.host, port) as url:
                context.report_ready(url)
                await context.work_until_stopped(chain.run())


def read_limits(config: ChainConfig) -> Limits:
    """Pace and bounds as configured.

    Raises:
        ConfigError: transactions and logs would be forgotten while somebody may still be held to them.
    """
    needed = -(-LOCAL.unbonding_s * 1000 // config.block_interval_ms)
    if config.keep_blocks and config.keep_blocks < needed:
        raise ConfigError(
            f"chain.keep_blocks is {config.keep_blocks}; roles look back for as long as stake can be slashed, which is "
            f"{needed} blocks here: set at least that, or 0 to keep all"
        )
    return Limits(
        block_ms=config.block_interval_ms,
        sealing=Sealing(config.sealing),
        keep_blocks=config.keep_blocks,
        slots_max=config.state_slots_max,
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
