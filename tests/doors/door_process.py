"""Roles' doors, each in a process of its own: `python door_process.py FOLDER LIMITS NAME ...`; ends on SIGTERM.

The processes are forked from one that has imported everything; each prints a line with its name, process id and URL.

The application is the role's own, over small real pieces: an empty chain, an empty row store, a provider that sells
numbers, a gateway that sells bytes. Not a test module.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deaios.alignment.auditor.store import AuditorStore
from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService
from deaios.chain.service import Limits as ChainLimits
from deaios.chain.service import build_application as build_chain_application
from deaios.da.seating import Seating
from deaios.da.service.door import MemberDoor, build_member_application
from deaios.da.store import PledgeStore
from deaios.gateway.desk import Limits as GatewayLimits
from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.committee import Committee, CommitteeMember
from deaios.ledger.structs import availability_domain
from deaios.market.seller.service import Seller
from deaios.node.config import Config
from deaios.node.context import RoleContext
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.keystore import Keystore
from deaios.node.office import Office
from deaios.node.roles.auditor import build_auditor_application
from deaios.primitives.keys import PrivateKey
from deaios.rows.store import RowStore
from deaios.runtime.clock import SystemClock
from deaios.runtime.connections import Limits, raise_descriptor_limit
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve
from deaios.runtime.logs import configure_logs
from deaios.runtime.metrics import Metrics
from deaios.storage.service import build_storage_application

TESTS = Path(__file__).resolve().parents[1]
OPERATOR = PrivateKey(b"\x0f" * 32)
NETWORK = b"\x77" * 32
QUOTA_BYTES = 1 << 30


def load_helpers(part):
    """Another part's fakes, as `tests/PART/conftest.py` defines them."""
    spec = importlib.util.spec_from_file_location(f"{part}_helpers", TESTS / part / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextlib.asynccontextmanager
async def open_chain(folder, stack):
    genesis = Genesis(
        seed=b"\x07" * 32,
        operator=OPERATOR.address,
        timestamp=1_700_000_000,
        allocations=(Allocation(OPERATOR.address, 1000 * ETHER),),
    )
    executor = stack.enter_context(ThreadPoolExecutor(4))
    chain = await ChainService.start(
        folder / "chain.db",
        OPERATOR,
        genesis,
        executor=executor,
        clock=SystemClock(),
        limits=ChainLimits(block_ms=200, gather_ms=20),
    )
    running = asyncio.create_task(chain.run())
    application = build_chain_application(chain)
    async with Rpc("http://127.0.0.1:1") as rpc:
        state, dice = StateFolder(folder / "state"), SystemDice()
        keystore = Keystore(state.keys, dice, "a password")
        context = RoleContext(
            RoleSpec("chain", "chain"), state, Config(), keystore, SystemClock(), dice, Metrics("office")
        )
        Office(context, OPERATOR, rpc).add_routes(application)
        yield application
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await chain.close()


@contextlib.asynccontextmanager
async def open_storage(folder, stack):
    store = RowStore(folder / "rows", QUOTA_BYTES)
    stack.callback(store.close)
    yield build_storage_application(store, network_id=NETWORK)


@contextlib.asynccontextmanager
async def open_da(folder, stack):
    store, pledges = RowStore(folder / "rows", QUOTA_BYTES), PledgeStore(folder / "pledges.db")
    stack.callback(store.close)
    stack.callback(pledges.close)
    door = MemberDoor(OPERATOR, availability_domain(1, OPERATOR.address), store, pledges, network_id=NETWORK)
    committee = Committee(1, 0, (CommitteeMember(OPERATOR.address, 0, 12),), 12)
    door.seating = Seating(OPERATOR.address, (committee,), 3600)
    yield build_member_application(door, store, pledges)


@contextlib.asynccontextmanager
async def open_provider(folder, stack):
    market = load_helpers("market")
    chain = market.FakeChain()
    settings = market.build_settings()
    seller = Seller(
        market.SELLER, market.TERMS, settings, folder / "seller.db", chain, market.FakeGenerator(), market.FakeVault()
    )
    chain.put(market.build_config(), 100 * market.CREDIT)
    async with seller:
        yield seller.application


@contextlib.asynccontextmanager
async def open_gateway(folder, stack):
    helpers = load_helpers("gateway")
    keys = KeyStore.open(folder / "keys.sqlite", b"p" * 32)
    stack.callback(keys.close)
    key, _ = keys.create(SystemDice(), 0, name="test")
    (folder / "key").write_text(key)
    served = ServedModel(
        record_id=helpers.RECORD_ID,
        record=helpers.build_record(),
        tokenizer=helpers.ByteTokenizer(),
        render=helpers.render,
        input_price=helpers.INPUT_PRICE,
        output_price=helpers.OUTPUT_PRICE,
        created_s=1_700_000_000,
        owned_by="tests",
        aliases=("tiny",),
    )
    yield build_gateway_application(
        network_id=NETWORK,
        buyer=helpers.FakeBuyer(),
        models=ServedModels((served,)),
        keys=keys,
        clock=SystemClock(),
        dice=SystemDice(),
        limits=GatewayLimits(body_s=3.0),
    )


@contextlib.asynccontextmanager
async def open_auditor(folder, stack):
    store = AuditorStore(folder / "auditor.db")
    stack.callback(store.close)
    yield build_auditor_application(store)


OPENERS = {
    "auditor": open_auditor,
    "chain": open_chain,
    "da": open_da,
    "gateway": open_gateway,
    "provider": open_provider,
    "storage": open_storage,
}


async def main(name, folder, limits):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    folder.mkdir(parents=True)
    configure_logs(name, folder / "log.json")
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        async with OPENERS[name](folder, stack) as application, serve(application, limits=limits) as url:
            os.write(sys.stdout.fileno(), f"{name} {os.getpid()} {url}\n".encode())
            await stop.wait()


def start(name, folder, limits):
    """The child's process id."""
    if child := os.fork():
        return child
    status = 1
    try:
        asyncio.run(main(name, folder, limits))
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    place, bounds = Path(sys.argv[1]), Limits(**json.loads(sys.argv[2]))
    children = [start(name, place / name, bounds) for name in sys.argv[3:]]
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(child, signal.SIGTERM) for child in children])
    sys.exit(max(os.waitpid(child, 0)[1] != 0 for child in children))
