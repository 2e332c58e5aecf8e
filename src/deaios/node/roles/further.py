"""The chain of a further network on this machine: one operator orders blocks, as on the root's.

The role's key is the operator, and deploys the network's contracts as its first transactions; afterwards it gives
native coin to whoever has none. It holds no Credit: that comes over the bridge.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import msgspec
from aiohttp import web

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.chain.store import holds_chain
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.further import plan_addresses
from deaios.ledger.settings import LOCAL
from deaios.node.context import RoleContext
from deaios.node.ports import HOST, keep_port
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused
from deaios.primitives.keys import Address, PrivateKey, parse_address
from deaios.runtime.errors import NotFound, RefusedBusy
from deaios.runtime.http import json_response, read_json, serve

OPERATOR_ETHER = 1_000_000_000
THREADS = 4
GRANTS_AT_ONCE_MAX = 16


class RefusedGift(Refused):
    """This address has native coin, or is no account of a key."""


class _Beneficiary(msgspec.Struct, forbid_unknown_fields=True):
    address: str


async def run(context: RoleContext) -> None:
    """Make blocks, answer JSON-RPC and give native coin until told to stop."""
    key = context.open_key()
    path = context.data / "chain.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    genesis = None if await asyncio.to_thread(holds_chain, path) else _new_genesis(context, key)
    port = keep_port(context.data, context.spec.port)
    async with Rpc(f"http://{HOST}:{port}") as rpc:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="chain") as executor:
            chain = await ChainService.start(
                path,
                key,
                genesis,
                executor=executor,
                clock=context.clock,
                limits=Limits(block_ms=context.config.chain.block_interval_ms),
            )
            try:
                sender = Sender(rpc, key, chain.chain_id)
                application = build_application(chain)
                application.router.add_post("/faucet", _Giver(rpc, sender, key.address).give)
                async with serve(application, HOST, port) as url:
                    context.report_ready(url)
                    await context.work_until_stopped(chain.run())
                await sender.close()
            finally:
                await chain.close()


def _new_genesis(context: RoleContext, key: PrivateKey) -> Genesis:
    return Genesis(
        seed=context.dice.token_bytes(32),
        operator=key.address,
        timestamp=context.clock.now_ms() // 1000,
        allocations=(Allocation(key.address, OPERATOR_ETHER * ETHER),),
    )


class _Giver:
    """Native coin for who has none; silent until the contracts stand, whose addresses hang on the key's nonces."""

    def __init__(self, rpc: Rpc, sender: Sender, operator: Address) -> None:
        self._rpc = rpc
        self._sender = sender
        self._last_contract = plan_addresses(operator, 0).channels
        self._pending: set[Address] = set()

    async def give(self, request: web.Request) -> web.Response:
        """`POST /faucet`."""
        address = parse_address((await read_json(request, _Beneficiary)).address)
        if not await self._rpc.get_code(self._last_contract):
            raise NotFound("this network is being founded; its faucet opens afterwards")
        if address in self._pending or len(self._pending) >= GRANTS_AT_ONCE_MAX:
            raise RefusedBusy(f"{len(self._pending)} gifts are under way; ask later")
        self._pending.add(address)
        try:
            if await self._rpc.get_balance(address) > 0 or await self._rpc.get_code(address):
                raise RefusedGift(f"{encode_hex(address)} has native coin, or is a contract")
            await self._sender.send(address, value=LOCAL.faucet_native)
        finally:
            self._pending.discard(address)
        return json_response({"native": str(LOCAL.faucet_native), "credit": "0"})
