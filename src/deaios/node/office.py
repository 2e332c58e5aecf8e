"""The operator's counter, beside whatever else its role serves: the network's descriptor, and a share for newcomers."""

import msgspec
from aiohttp import web

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.faucet import Faucet
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.node.folder import StateFolder
from deaios.node.purse import GasPurse
from deaios.primitives.keys import PrivateKey, parse_address
from deaios.runtime.errors import NotFound
from deaios.runtime.http import json_response, read_json


class _Beneficiary(msgspec.Struct, forbid_unknown_fields=True):
    address: str


class Office:
    """Serves `/descriptor` and `/faucet`; both open once the network is founded."""

    def __init__(
        self,
        folder: StateFolder,
        key: PrivateKey,
        rpc: Rpc,
        *,
        sender: Sender | None = None,
        purse: GasPurse | None = None,
    ) -> None:
        """Make the counter.

        Args:
            folder: of the network.
            key: the operator's; it holds what is given.
            rpc: the chain.
            sender: of this key, where its process has one already.
            purse: gas money for some; as the descriptor says for everybody without one.
        """
        self._folder = folder
        self._key = key
        self._rpc = rpc
        self._sender = sender
        self._purse = purse
        self._faucet: Faucet | None = None

    def add_routes(self, application: web.Application) -> None:
        """Put the routes into a role's application."""
        application.router.add_get("/descriptor", self.get_descriptor)
        application.router.add_post("/faucet", self.give)

    async def get_descriptor(self, _request: web.Request) -> web.Response:
        """The signed descriptor's exact bytes."""
        if not self._folder.descriptor_path.exists():
            raise NotFound("this network is being founded; it has no descriptor yet")
        return web.Response(body=self._folder.descriptor_path.read_bytes(), content_type="application/json")

    async def give(self, request: web.Request) -> web.Response:
        """Gas and Credit for a new address, once."""
        address = parse_address((await read_json(request, _Beneficiary)).address)
        faucet = self._open_faucet()
        grant = await faucet.give(address, None if self._purse is None else await self._purse.find_grant(address))
        if self._purse is not None:
            self._purse.spend(grant.native_amount)
        return json_response({"native": str(grant.native_amount), "credit": str(grant.credit_amount)})

    def _open_faucet(self) -> Faucet:
        if self._faucet is None:
            if not self._folder.descriptor_path.exists():
                raise NotFound("this network is being founded; its faucet opens afterwards")
            descriptor = self._folder.load_descriptor()
            sender = self._sender or Sender(self._rpc, self._key, descriptor.chain_id)
            contracts, windows = Contracts(self._rpc, descriptor.contracts), descriptor.windows
            self._faucet = Faucet(sender, contracts, windows.faucet_native, windows.faucet_credit)
        return self._faucet
