"""The chain of a further network on this machine: one operator orders blocks, as on the root's.

The role's key is the operator, and deploys the network's contracts as its first transactions; afterwards it gives
native coin to whoever has none. It holds no Credit: that comes over the bridge.
"""

import msgspec
from aiohttp import web

from deaios.chain.service import Limits, build_application
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.further import plan_addresses
from deaios.ledger.settings import LOCAL
from deaios.node.context import RoleContext
from deaios.node.own_chain import open_own_chain
from deaios.node.ports import keep_port
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused
from deaios.primitives.keys import Address, parse_address
from deaios.runtime.errors import NotFound, RefusedBusy
from deaios.runtime.http import json_response, read_json, serve

GRANTS_AT_ONCE_MAX = 16


class RefusedGift(Refused):
    """This address has native coin, or is no account of a key."""


class _Beneficiary(msgspec.Struct, forbid_unknown_fields=True):
    address: str


async def run(context: RoleContext) -> None:
    """Make blocks, answer JSON-RPC and give native coin until told to stop."""
    key = context.open_key()
    port = keep_port(context.data, context.spec.port, context.host)
    limits = Limits(block_ms=context.config.chain.block_interval_ms)
    async with Rpc(f"http://{context.host}:{port}") as rpc, open_own_chain(context, key, limits) as chain:
        sender = Sender(rpc, key, chain.chain_id)
        application = build_application(chain)
        application.router.add_post("/faucet", _Giver(rpc, sender, key.address).give)
        async with serve(application, context.host, port) as url:
            context.report_ready(url)
            await context.work_until_stopped(chain.run())
        await sender.close()


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
