"""The operator's counter, beside whatever else its role serves: the network's descriptor, and a share for newcomers."""

import asyncio
from collections.abc import Collection

import msgspec
from aiohttp import web

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.faucet import Faucet, RefusedGrant
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.descriptor import NetworkDescriptor
from deaios.node.context import RoleContext
from deaios.node.purse import GasPurse
from deaios.node.sponsoring import Application, Sponsor, encode_terms
from deaios.primitives.encoding import encode_hex
from deaios.primitives.keys import Address, PrivateKey, parse_address
from deaios.runtime.errors import NotFound
from deaios.runtime.http import json_response, read_json


class _Beneficiary(msgspec.Struct, forbid_unknown_fields=True):
    address: str


class Office:
    """Serves `/descriptor`, `/faucet` and, where it is configured, `/sponsor`; all open once the network is founded."""

    def __init__(
        self,
        context: RoleContext,
        key: PrivateKey,
        rpc: Rpc,
        *,
        sender: Sender | None = None,
        purse: GasPurse | None = None,
    ) -> None:
        """Make the counter.

        Args:
            context: of the role that it is a part of.
            key: the operator's; it holds what is given.
            rpc: the chain.
            sender: of this key, where its process has one already.
            purse: gas money for some; as the descriptor says for everybody without one.
        """
        self._folder = context.folder
        self._context = context
        self._key = key
        self._rpc = rpc
        self._sender = sender
        self._purse = purse
        self._faucet: Faucet | None = None
        self._sponsor: Sponsor | None = None
        self._own: dict[str, Address] = {}

    def add_routes(self, application: web.Application) -> None:
        """Put the routes into a role's application."""
        application.router.add_get("/descriptor", self.get_descriptor)
        application.router.add_post("/faucet", self.give)
        if self._context.config.sponsor.enabled:
            application.router.add_get("/sponsor", self.get_terms)
            application.router.add_post("/sponsor", self.sponsor)

    async def get_descriptor(self, _request: web.Request) -> web.Response:
        """The signed descriptor's exact bytes."""
        if not self._folder.descriptor_path.exists():
            raise NotFound("this network is being founded; it has no descriptor yet")
        return web.Response(body=self._folder.descriptor_path.read_bytes(), content_type="application/json")

    async def give(self, request: web.Request) -> web.Response:
        """Gas and Credit for a new address, once."""
        address = parse_address((await read_json(request, _Beneficiary)).address)
        if self._context.config.network.faucet == "own" and address not in await self._list_own():
            raise RefusedGrant(f"this faucet gives to the keys of its own folder only, not to {encode_hex(address)}")
        faucet = self._open_faucet()
        grant = await faucet.give(address, None if self._purse is None else await self._purse.find_grant(address))
        if self._purse is not None:
            self._purse.spend(grant.native_amount)
        return json_response({"native": str(grant.native_amount), "credit": str(grant.credit_amount)})

    async def get_terms(self, _request: web.Request) -> web.Response:
        """What a newcomer is lent."""
        return json_response(encode_terms(self._open_sponsor().terms))

    async def sponsor(self, request: web.Request) -> web.Response:
        """Lend a newcomer its first stake, once."""
        return json_response(await self._open_sponsor().sponsor(await read_json(request, Application)))

    async def _list_own(self) -> Collection[Address]:
        """Addresses of the folder's keys; each is opened once."""
        keystore = self._context.keystore
        for name in keystore.names():
            if name not in self._own:
                self._own[name] = (await asyncio.to_thread(keystore.open_key, name)).address
        return self._own.values()

    def _open(self) -> tuple[Sender, Contracts, NetworkDescriptor]:
        if not self._folder.descriptor_path.exists():
            raise NotFound("this network is being founded; its counter opens afterwards")
        descriptor = self._folder.load_descriptor()
        self._sender = self._sender or Sender(self._rpc, self._key, descriptor.chain_id)
        return self._sender, Contracts(self._rpc, descriptor.contracts), descriptor

    def _open_faucet(self) -> Faucet:
        if self._faucet is None:
            sender, contracts, descriptor = self._open()
            windows = descriptor.windows
            self._faucet = Faucet(sender, contracts, windows.faucet_native, windows.faucet_credit)
        return self._faucet

    def _open_sponsor(self) -> Sponsor:
        if self._sponsor is None:
            config, clock = self._context.config.sponsor, self._context.clock
            self._sponsor = Sponsor(*self._open(), config, clock)
        return self._sponsor
